"""The timeline of a plan: its schedule played for a few passes, as few enough spans to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from pydantic import model_validator

from planner.plan import Plan
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.layout import Placed, lay_out
from simulator.operations import OPERATIONS, IntArray
from simulator.passes import Pass, Window, window
from simulator.policy import FloatArray
from simulator.schema import Record
from simulator.simulate import Simulation, pass_edges, play, rates_of

#: Passes that a timeline shows at most: one with prompts and some without.
SHOWN = 3


class Span(NamedTuple):
    """What a lane does for a while: some tasks, named after the operation that takes most of the time.

    ``lane`` is the number of the lane; ``busy`` the seconds in which it works (None: all of them).
    """

    lane: int
    operation: str
    start: float
    end: float
    tasks: int = 1
    busy: float | None = None


class PassMark(NamedTuple):
    """Where a pass begins on the GPU. [s]"""

    number: int
    start: float
    prompts: bool


class Timeline(Record):
    """What each lane does when. Spans stand lane by lane in order of time. [s]"""

    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    passes: tuple[PassMark, ...] = ()

    @model_validator(mode="after")
    def _check_lanes(self) -> Timeline:
        """Refuse spans of lanes that do not exist."""
        for span in self.spans:
            if not 0 <= span.lane < len(self.lanes):
                raise ValueError(f"a span is of lane {span.lane}, and there are {len(self.lanes)}")
        return self


@dataclass(frozen=True)
class Columns:
    """N spans as columns, lane by lane in order of time.

    Attributes:
        lane: number of the lane. [N]
        operation: index into ``OPERATIONS`` of the operation that takes most of the time. [N]
        start: [N] [s]
        end: [N] [s]
        own: time that this operation takes. [N] [s]
        busy: time that all tasks take. [N] [s]
        tasks: tasks in the span. [N]
    """

    lane: IntArray
    operation: IntArray
    start: FloatArray
    end: FloatArray
    own: FloatArray
    busy: FloatArray
    tasks: IntArray

    def __len__(self) -> int:
        """Count the spans."""
        return len(self.lane)


def timeline(plan: Plan, spans: int = 1500) -> Timeline:
    """Play a plan for a pass with prompts and up to two later ones; show at most so many spans.

    ``spans`` must leave one for each lane.
    """
    placed = lay_out(plan.model, plan.runtime, plan.workload, plan.policy)
    rates = rates_of(placed, plan.hardware.profile)
    simulation = play(generate(placed, None, short_window(placed)), rates)
    edges, first, last = _shown(simulation)
    shown = merged(_between(simulation, edges[first], edges[last]), spans)
    passes = simulation.schedule.window.passes[first:last]
    names = [OPERATIONS[code].name for code in shown.operation.tolist()]
    times = ((each - edges[first]).round(9).tolist() for each in (shown.start, shown.end))
    busy = shown.busy.round(9).tolist()
    return Timeline(
        lanes=LANES,
        spans=tuple(map(Span, shown.lane.tolist(), names, *times, shown.tasks.tolist(), busy)),
        passes=tuple(
            PassMark(one.number, round(float(start - edges[first]), 9), _admits(one))
            for one, start in zip(passes, edges[first:last], strict=True)
        ),
    )


def short_window(placed: Placed) -> Window:
    """Choose few passes of those that a sampled simulation plays: an admission and the next ones.

    Passes that only fill or close the window stay, since the pipeline is empty without them.
    """
    whole = window(placed.policy, placed.workload, 1)
    counted = [one for one in whole.passes if one.weight > 0]
    begin = next((i for i, one in enumerate(counted) if _admits(one)), 0)
    later = counted[begin + 1 :]
    chosen = [counted[begin], *later[:1], *later[len(later) // 2 :][: SHOWN - 2]]
    kept = {one.number for one in chosen} | {one.number for one in whole.passes if one.weight == 0}
    return replace(whole, passes=tuple(one for one in whole.passes if one.number in kept))


def _admits(one: Pass) -> bool:
    return any(position == 0 for _, position in one.cohorts)


def _shown(simulation: Simulation) -> tuple[FloatArray, int, int]:
    """Give when passes begin, the first pass that counts, and the one after the last that does."""
    counted = [i for i, one in enumerate(simulation.schedule.window.passes) if one.weight > 0]
    return pass_edges(simulation), counted[0], counted[-1] + 1


def _between(simulation: Simulation, begin: float, finish: float) -> Columns:
    """Cut what is played between two instants out of a simulation, without tasks that take no time."""
    start, end = np.maximum(simulation.start, begin), np.minimum(simulation.end, finish)
    chosen = np.nonzero(end > start)[0]
    order = chosen[np.lexsort((start[chosen], simulation.schedule.lane[chosen]))]
    return Columns(
        lane=simulation.schedule.lane[order].astype(np.int64),
        operation=simulation.schedule.operation[order].astype(np.int64),
        start=start[order],
        end=end[order],
        own=(end - start)[order],
        busy=(end - start)[order],
        tasks=np.ones(len(order), dtype=np.int64),
    )


def merged(spans: Columns, most: int) -> Columns:
    """Merge neighbours until there are at most ``most`` spans, those first that falsify the picture least.

    What a merger falsifies is the idle time between the two, and the time of the one whose operation gives
    way if they differ, and it does so over the length of both. So neighbours of one operation without a gap
    are merged for nothing, then the shortest and those with the smallest gaps; long idle times stay. Every
    lane keeps at least a span, and ``busy`` its sum.

    Raises:
        ValueError: there are more lanes in use than spans allowed.
    """
    lanes = len(np.unique(spans.lane))
    if most < lanes:
        raise ValueError(f"{most} spans cannot show {lanes} lanes; allow at least one for each")
    while len(spans) > most:
        spans = _merge(spans, _cheapest(_falsified(spans), len(spans) - most))
    return spans


def _falsified(spans: Columns) -> FloatArray:
    """Give what each span's merger with the next would falsify, times the length of both. [N - 1] [s^2]"""
    gap = np.maximum(0.0, spans.start[1:] - spans.end[:-1])
    differ = spans.operation[1:] != spans.operation[:-1]
    wrong = gap + differ * np.minimum(spans.own[1:], spans.own[:-1])
    wrong *= spans.end[1:] - spans.start[:-1]
    return np.where(spans.lane[1:] == spans.lane[:-1], wrong, np.inf)


def _cheapest(cost: FloatArray, count: int) -> IntArray:
    """Choose pairs to merge at once: of the cheapest, where some share a span, every other one.

    Only a part of what is left to do at a time, since a merger changes what its neighbours cost.
    """
    order = np.argsort(cost, kind="stable")[: max(1, count // 4)]
    chosen = np.sort(order[np.isfinite(cost[order])])
    begins = np.diff(chosen, prepend=-2) > 1  # of a run of neighbours
    place = np.arange(len(chosen))
    return np.asarray(chosen[(place - np.maximum.accumulate(np.where(begins, place, 0))) % 2 == 0])


def _merge(spans: Columns, pairs: IntArray) -> Columns:
    """Merge each of these spans with the next; no two pairs share a span."""
    after = pairs + 1
    same = spans.operation[pairs] == spans.operation[after]
    second = ~same & (spans.own[after] > spans.own[pairs])
    own = np.where(same, spans.own[pairs] + spans.own[after], np.maximum(spans.own[pairs], spans.own[after]))
    columns = {name: column.copy() for name, column in vars(spans).items()}
    columns["operation"][pairs] = np.where(second, spans.operation[after], spans.operation[pairs])
    columns["end"][pairs] = spans.end[after]
    columns["own"][pairs] = own
    for name in ("busy", "tasks"):
        columns[name][pairs] += columns[name][after]
    return Columns(**{name: np.delete(column, after) for name, column in columns.items()})
