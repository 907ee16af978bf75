"""Slots: every one that is taken is given back, and no buffer ever holds more than it has.

Slot number k modulo the number of slots belongs to the k-th cell (or layer) that uses the buffer, in the
order in which these are computed. A schedule is safe under any timing if each take surely follows all users
of what lay in its slot before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simulator.check_order import WEIGHT_USERS
from simulator.check_tasks import Index, Violation
from simulator.layout import Placed
from simulator.memory import BUFFERS, BufferName
from simulator.schedule import Schedule

#: Pass, layer, group and part; group and part are 0 for weights.
Holder = tuple[int, int, int, int]


@dataclass(frozen=True)
class Use:
    """How a buffer is used: what fills a slot, what uses it until it is free; by a cell or a whole layer."""

    fills: tuple[str, ...]
    users: tuple[str, ...]
    of_layer: bool = False


USES: dict[BufferName, Use] = {
    "weights": Use(("load_weights", "relay_weights"), WEIGHT_USERS, of_layer=True),
    "weight_staging": Use(("read_weights",), ("load_weights", "relay_weights"), of_layer=True),
    "cache": Use(("load_cache",), ("dequantize_cache", "attend")),
    "cache_staging": Use(("read_cache",), ("load_cache", "dequantize_cache_cpu", "attend_cpu")),
    "new_cache": Use(("store_cache",), ("quantize_cache", "store_cache", "attend_prompt", "attend")),
    "cache_writing": Use(("write_cache",), ("write_cache",)),
    "activations": Use(
        ("load_activations", "store_activations"), ("qkv", "project", "mlp", "head", "store_activations")
    ),
}


def slot_violations(schedule: Schedule, placed: Placed, index: Index) -> Iterator[Violation]:
    """Check every buffer of a schedule."""
    have = {item.name: item.slots for item in placed.items() if item.name in BUFFERS}
    for number, buffer in enumerate(BUFFERS):
        if schedule.slots.get(buffer) != have[buffer]:
            message = f"{buffer} has {schedule.slots.get(buffer)} slots; memory holds {have[buffer]}"
            yield Violation("slots", 0, message)
        takes = _by_holder(schedule, index, buffer, np.nonzero(schedule.takes == number)[0].tolist())
        frees = _by_holder(schedule, index, buffer, np.nonzero(schedule.frees >> number & 1)[0].tolist())
        yield from _paired(index, buffer, takes, frees)
        yield from _reused(schedule, index, buffer, takes, frees)


def _by_holder(
    schedule: Schedule, index: Index, buffer: BufferName, numbers: list[int]
) -> dict[Holder, list[int]]:
    """Sort tasks by whose slot it is. The part of a task is its rank among those of its operation."""
    found: dict[Holder, list[int]] = {}
    for number in numbers:
        task = schedule.task(number)
        holder = (task.pass_index, task.layer, 0, 0)
        if not USES[buffer].of_layer:
            part = index.at(task.operation, (task.pass_index, task.layer, task.group)).index(number)
            holder = (task.pass_index, task.layer, task.group, part)
        found.setdefault(holder, []).append(number)
    return found


def _tasks_of(index: Index, names: tuple[str, ...], holder: Holder, of_layer: bool) -> list[int]:
    if of_layer:
        return [task for name in names for task in index.layers[name].get(holder[:2], [])]
    *place, part = holder
    here = (index.at(name, (place[0], place[1], place[2])) for name in names)
    return [tasks[part] for tasks in here if part < len(tasks)]


def _paired(
    index: Index, buffer: BufferName, takes: dict[Holder, list[int]], frees: dict[Holder, list[int]]
) -> Iterator[Violation]:
    """Whoever fills a slot takes one before, and whoever takes one frees it once, after that."""
    use = USES[buffer]
    holders = {holder for name in use.fills for holder in _holders(index, name, use.of_layer)}
    for holder in sorted(holders | takes.keys() | frees.keys()):
        taken, freed = takes.get(holder, []), frees.get(holder, [])
        filling = _tasks_of(index, use.fills, holder, use.of_layer)
        at = (taken or freed or filling)[0]
        if len(taken) != 1 or len(freed) != 1 or not filling:
            message = f"{buffer} of {holder} is taken {len(taken)} times and freed {len(freed)} times"
            yield Violation("slots", at, message)
            continue
        early = [task for task in filling if task != at and not index.before(at, task)]
        if early:
            yield Violation("slots", early[0], f"it uses {buffer} before task {at} takes it")
        if freed[0] != at and not index.before(at, freed[0]):
            yield Violation("slots", freed[0], f"it frees {buffer} before task {at} takes it")


def _holders(index: Index, name: str, of_layer: bool) -> Iterator[Holder]:
    if of_layer:
        yield from ((*place, 0, 0) for place in index.layers[name])
    else:
        for place, numbers in index.cells[name].items():
            yield from ((*place, part) for part in range(len(numbers)))


def _in_order(index: Index, takes: dict[Holder, list[int]], of_layer: bool) -> list[Holder]:
    """Sort holders of slots by pass and layer, and cells then by when their computation is issued."""
    if of_layer:
        return sorted(takes)

    def computed(holder: Holder) -> tuple[int, int, int]:
        task = _tasks_of(index, ("embed", "qkv", "mlp", "head"), holder, of_layer=False)[0]
        return holder[0], holder[1], task

    return sorted(takes, key=computed)


def _reused(
    schedule: Schedule,
    index: Index,
    buffer: BufferName,
    takes: dict[Holder, list[int]],
    frees: dict[Holder, list[int]],
) -> Iterator[Violation]:
    """Whoever takes a slot surely follows all users of what lay in it before."""
    use, slots = USES[buffer], schedule.slots.get(buffer, 0)
    order = _in_order(index, takes, use.of_layer)
    for earlier, later in zip(order, order[slots:], strict=False):
        taker = takes[later][0]
        users = [*_tasks_of(index, use.users, earlier, use.of_layer), *frees.get(earlier, [])]
        late = [user for user in users if not index.before(user, taker)]
        if late:
            message = f"it takes a slot of {buffer} that task {late[0]} may still use"
            yield Violation("slots held", taker, message)
