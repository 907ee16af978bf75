"""The rules of a legal schedule, independent of the generator.

What must happen follows from the model, the policy, the passes played and the layout; a schedule is judged
by what its tasks say and by the orders that waits and in-order lanes guarantee, whatever tasks take.

    graph       every wait is for an earlier task; the lane is the operation's
    work        every operation that is due stands there as often as it is due, with its FLOPs, bytes and
                kernels; a read of mapped files counts those that are read beside it
    layer order layers are computed in order, pass by pass
    order       data is there before it is used (``check_order.NEEDS``)
    weights     a layer's loads, and before each of them its part of the disk share
    prefetch    weights are loaded at most ``prefetch`` layers ahead
    slots       every slot taken is given back once, and taken again only when its users have ended
    serial      without overlap, every task has ended before the next one starts
    barrier     where the runtime says so, tasks issued before a barrier end before those after it start
    host        there, kernels wait for the copies that the host itself made since the barrier
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simulator.check_order import order_violations, weight_violations
from simulator.check_slots import slot_violations
from simulator.check_tasks import Index, Violation
from simulator.check_work import stream_violations, work_violations
from simulator.cost import BEGINS, LANE_OF_OPERATION
from simulator.errors import PlannerError
from simulator.hardware import LANES
from simulator.layout import Placed
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS
from simulator.schedule import Schedule

__all__ = ["ScheduleError", "Violation", "check", "violations"]

_IN_ORDER = (("embed", "qkv"), ("mlp", "head"))  # projections may run ahead of outputs
_AROUND = 3  # tasks printed before and after the one at fault


class ScheduleError(PlannerError):
    """A schedule breaks a rule: a fault of this program, not of its input."""


def check(schedule: Schedule, placed: Placed) -> None:
    """Check that a schedule does what its layout asks, in an order that is safe under any timing.

    Raises:
        ScheduleError: it breaks a rule; the message names the first fault and prints the tasks around it.
    """
    found = violations(schedule, placed)
    if found:
        raise ScheduleError(_explain(schedule, found))


def violations(schedule: Schedule, placed: Placed) -> list[Violation]:
    """List what is wrong with a schedule; faults of graph or work hide those of order."""
    found = list(_graph_violations(schedule))
    if found:
        return found
    index = Index.of(schedule)
    found += work_violations(schedule, placed, index)
    if found:
        return found
    found += _layer_violations(schedule)
    found += order_violations(index)
    found += weight_violations(schedule, placed, index)
    found += slot_violations(schedule, placed, index)
    if placed.serial:
        found += _serial_violations(schedule, index)
    elif placed.runtime.synchronization == "barrier":
        found += _barrier_violations(schedule, placed, index)
        found += _host_violations(schedule, index)
        found += stream_violations(schedule, placed)
    return found


def _graph_violations(schedule: Schedule) -> Iterator[Violation]:
    """There are tasks, in passes that are played, and every wait is for an earlier one."""
    if not len(schedule):
        yield Violation("graph", 0, "it has no tasks")
        return
    yield from _lane_violations(schedule)
    numbers = np.arange(len(schedule))
    for task, column in np.argwhere(schedule.waits_for >= numbers[:, None]).tolist():
        other = schedule.waits_for[task, column]
        yield Violation("graph", task, f"it waits for task {other}, which is not earlier")
    last = len(schedule.window.passes) - 1
    for task in np.nonzero((schedule.pass_index < 0) | (schedule.pass_index > last))[0].tolist():
        yield Violation("graph", task, f"there is no pass {schedule.pass_index[task]}; the last is {last}")


def _lane_violations(schedule: Schedule) -> Iterator[Violation]:
    """Operations exist, and run on their lanes."""
    columns = (schedule.operation.tolist(), schedule.lane.tolist())
    for number, (code, lane) in enumerate(zip(*columns, strict=True)):
        if not 0 <= code < len(OPERATIONS):
            yield Violation("graph", number, f"there is no operation {code}")
        elif lane != LANE_OF_OPERATION[code]:
            wrong = LANES[lane] if 0 <= lane < len(LANES) else lane
            yield Violation("graph", number, f"{OPERATIONS[code].name} does not run on lane {wrong}")


def _layer_violations(schedule: Schedule) -> Iterator[Violation]:
    """Layers are computed in order, pass by pass."""
    pass_index, layer = schedule.pass_index.tolist(), schedule.layer.tolist()
    for names in _IN_ORDER:
        latest = (-1, -1)
        for number in np.nonzero(np.isin(schedule.operation, [OP[name] for name in names]))[0].tolist():
            place = (pass_index[number], layer[number])
            if place < latest:
                yield Violation("layer order", number, f"pass {latest[0]} had come to layer {latest[1]}")
            latest = max(latest, place)


def _serial_violations(schedule: Schedule, index: Index) -> Iterator[Violation]:
    """Every task has ended before the next one starts; the loads of one layer may run together."""
    loads = np.isin(schedule.operation, [OP[name] for name in LAYER_OPERATIONS])
    place = list(zip(schedule.pass_index.tolist(), schedule.layer.tolist(), strict=True))
    for number in range(1, len(schedule)):
        for other in range(number - 1, -1, -1):
            together = loads[other] and loads[number] and place[other] == place[number]
            if not together and not index.before(other, number):
                yield Violation("serial", number, f"task {other} need not have ended")
            if not (loads[other] and place[other] == place[number - 1]):
                break


def _barrier_violations(schedule: Schedule, placed: Placed, index: Index) -> Iterator[Violation]:
    """A barrier separates what is issued before it from what is issued after it."""
    yield from _cells_apart(schedule, BEGINS[placed.runtime.layers])
    last_of_lane = [-1] * len(LANES)
    barrier = -1
    for number, (code, lane) in enumerate(
        zip(schedule.operation.tolist(), schedule.lane.tolist(), strict=True)
    ):
        if code == OP["sync"]:
            barrier = number
            for other in last_of_lane:
                if other >= 0 and not index.before(other, number):
                    yield Violation("barrier", number, f"task {other} need not have ended")
        elif barrier >= 0 and not index.before(barrier, number):
            yield Violation("barrier", number, f"it need not wait for the barrier {barrier}")
        last_of_lane[lane] = number


def _host_violations(schedule: Schedule, index: Index) -> Iterator[Violation]:
    """The thread that launches kernels also stages: a launch follows what it copied since the barrier."""
    copies = [code for code, operation in enumerate(OPERATIONS) if operation.cost in ("stage", "expand")]
    host = np.isin(schedule.operation, copies)
    latest = -1
    for number, (code, lane) in enumerate(
        zip(schedule.operation.tolist(), schedule.lane.tolist(), strict=True)
    ):
        if code == OP["sync"]:
            latest = -1
        elif host[number]:
            latest = number
        elif latest >= 0 and LANES[lane] == "gpu" and not index.before(latest, number):
            yield Violation("host", number, f"it need not wait for the host's copy, task {latest}")


def _cells_apart(schedule: Schedule, begins: tuple[str, ...]) -> Iterator[Violation]:
    """A barrier stands between the computations of any two cells, and after the last."""
    computes = np.isin(schedule.operation, [OP[name] for name in begins])
    marks = np.nonzero(computes | schedule.where("sync"))[0]
    for one, next_one in zip(marks.tolist(), [*marks.tolist()[1:], -1], strict=True):
        if computes[one] and (next_one < 0 or computes[next_one]):
            yield Violation("barrier", one, "no barrier stands between its cell and the next")


def _explain(schedule: Schedule, found: list[Violation]) -> str:
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    lines = [f"the schedule breaks the rule {first.rule!r} at task {first.task}: {first.message}{more}"]
    if len(schedule):
        around = range(max(0, first.task - _AROUND), min(len(schedule), first.task + _AROUND + 1))
        lines += [f"{'>' if number == first.task else ' '} {schedule.task(number)}" for number in around]
    return "\n".join(lines)
