"""Who does what in a schedule: the cell that each of its tasks belongs to."""

from __future__ import annotations

from collections.abc import Callable

from executor.cells import Cell, Group
from executor.script import Script
from simulator.cells import groups_per_cohort
from simulator.layout import Placed
from simulator.memory import BUFFERS
from simulator.operations import LAYER_OPERATIONS, OPERATIONS
from simulator.passes import Window
from simulator.schedule import Schedule

_NOBODY = Cell(None, 0, 0, range(0), final=False)


class Cast:
    """The cells of a schedule: which group each is, where it stands, and which of its sequences it has."""

    def __init__(self, placed: Placed, played: Window, group: Callable[[int], Group | None]) -> None:
        self._placed, self._group = placed, group
        gen_len = placed.workload.gen_len
        self._together = groups_per_cohort(placed.policy.num_groups, placed.policy.cohorts(gen_len))
        self._positions = [dict(one.cohorts) for one in played.passes]
        self._cells: dict[tuple[int, int, int, int], Cell] = {}

    def cell(self, schedule: Schedule, script: Script, number: int) -> Cell:
        """Give the cell of a task, with the slot that the task takes."""
        pass_index, layer, group = (
            int(column[number]) for column in (schedule.pass_index, schedule.layer, schedule.group)
        )
        name = OPERATIONS[schedule.operation[number]].name
        if name in LAYER_OPERATIONS:
            return _NOBODY
        part = int(script.part[number])
        key = (pass_index, layer, group, part)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells.setdefault(key, self._make(pass_index, layer, group, part))
        taken = int(schedule.takes[number])
        if taken >= 0:
            cell.slots[BUFFERS[taken]] = int(script.slot[number])
        if name == "store_query":
            cell.order = int(script.order[number]) % (1 + self._placed.ahead)
        return cell

    def _make(self, pass_index: int, layer: int, number: int, part: int) -> Cell:
        policy = self._placed.policy
        position = self._positions[pass_index][number // self._together]
        size = policy.gpu_batch if position else policy.prompts_together
        group = self._group(number)
        present = len(group.members) if group is not None else 0
        first = min(part * size, present)
        final = position == self._placed.workload.gen_len - 1
        return Cell(group, layer, position, range(first, min(first + size, present)), final)
