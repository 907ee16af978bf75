"""What the rules of a schedule look at: tasks by their place, and the orders that hold under any timing."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.hardware import LANES
from simulator.operations import OPERATIONS
from simulator.schedule import Schedule

#: Pass (as played), layer, group.
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Violation:
    """A rule that a schedule breaks, the task at which it does, and how."""

    rule: str
    task: int
    message: str


@dataclass(frozen=True)
class Index:
    """The tasks of a schedule by operation and place, and what surely ends before what starts.

    Attributes:
        cells: numbers of the tasks of an operation at a place, in issue order; a prompt computed in parts
            has several.
        layers: the same by pass and layer alone.
        lane: lane of each task. [N]
        position: place of each task in its lane. [N]
        clock: for each task and lane, the last position that has ended when the task ends. [N, lanes]
    """

    cells: dict[str, dict[Place, list[int]]]
    layers: dict[str, dict[tuple[int, int], list[int]]]
    lane: list[int]
    position: list[int]
    clock: list[list[int]]

    @classmethod
    def of(cls, schedule: Schedule) -> Index:
        """Sort the tasks and follow waits and lanes; every wait must be for an earlier task."""
        cells: dict[str, dict[Place, list[int]]] = {operation.name: {} for operation in OPERATIONS}
        layers: dict[str, dict[tuple[int, int], list[int]]] = {operation.name: {} for operation in OPERATIONS}
        columns = (schedule.operation, schedule.pass_index, schedule.layer, schedule.group)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for number, (code, pass_index, layer, group) in enumerate(rows):
            name = OPERATIONS[code].name
            cells[name].setdefault((pass_index, layer, group), []).append(number)
            layers[name].setdefault((pass_index, layer), []).append(number)
        lane = schedule.lane.tolist()
        position, clock = _clocks(lane, schedule.waits_for.tolist())
        return cls(cells, layers, lane, position, clock)

    def before(self, first: int, second: int) -> bool:
        """Say whether a task has surely ended when another one starts."""
        lane = self.lane[first]
        reached = self.clock[second][lane] - (1 if self.lane[second] == lane else 0)
        return reached >= self.position[first]

    def at(self, name: str, place: Place) -> list[int]:
        """List the tasks of an operation at a place."""
        return self.cells[name].get(place, [])


def _clocks(lane: list[int], waits_for: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Number the tasks of each lane; merge the clocks of all that a task follows.

    Lanes are in order, so that what has ended is known by one number a lane: a vector clock.
    """
    latest = [[-1] * len(LANES) for _ in LANES]
    position: list[int] = []
    clock: list[list[int]] = []
    for index, others in zip(lane, waits_for, strict=True):
        ended = latest[index]
        for other in others:
            if other >= 0:
                ended = list(map(max, ended, clock[other]))
        ended = ended.copy()
        ended[index] = latest[index][index] + 1
        position.append(ended[index])
        clock.append(ended)
        latest[index] = ended
    return position, clock
