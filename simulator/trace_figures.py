"""What two traces of one schedule say of lanes, operations and memory, predicted beside measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simulator.hardware import LANES, TIERS, LaneName, TierName
from simulator.operations import OPERATIONS, IntArray
from simulator.policy import FloatArray
from simulator.trace_pair import Side, TracePair


@dataclass(frozen=True)
class Both:
    """One figure of both traces; None where a trace has none."""

    predicted: float | None
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """How many times the predicted figure the measured one is; None where nothing is predicted.

        >>> Both(2.0, 3.0).ratio, Both(0.0, 3.0).ratio
        (1.5, None)
        """
        return self.measured / self.predicted if self.predicted and self.measured is not None else None

    @property
    def difference(self) -> float:
        """Measured less predicted."""
        return (self.measured or 0.0) - (self.predicted or 0.0)


@dataclass(frozen=True)
class LaneFigures:
    """A lane in both traces.

    Attributes:
        lane: which one.
        tasks: matched ones.
        seconds: busy time over these, in one block. [s]
        share: of its trace's time, over all tasks, matched or not.
        part: the part of the difference of makespans that the difference of busy times is; as lanes
            overlap, parts need not sum to 1. None if makespans do not differ, or cover different passes.
        out_of_order: the first violation of the predicted order, in words; None if there is none.
    """

    lane: LaneName
    tasks: int
    seconds: Both
    share: Both
    part: float | None
    out_of_order: str | None


@dataclass(frozen=True)
class OperationFigures:
    """The matched tasks of an operation in both traces, in one block.

    Attributes:
        lane: where they run.
        operation: its name.
        tasks: how many.
        seconds: their total. [s]
        median: of their times. [s]
        byte_rate: bytes of all over seconds of all; None where there are none. [B/s]
        flop_rate: the same of work. [FLOP/s]
    """

    lane: LaneName
    operation: str
    tasks: int
    seconds: Both
    median: Both
    byte_rate: Both
    flop_rate: Both


@dataclass(frozen=True)
class Unmatched:
    """What one trace has and the other lacks.

    Attributes:
        tasks: spans without a partner, in all blocks together.
        operations: these by operation.
        passes: the passes that they are in.
        passes_between: of these, passes without a matched task that lie between passes with some. They are
            in the makespan of this trace only.
        incomplete: matched tasks that some block of this trace lacks.
    """

    tasks: int
    operations: dict[str, int]
    passes: tuple[int, ...]
    passes_between: int
    incomplete: int


def both(pair: TracePair, figure: Callable[[Side], float | None]) -> Both:
    """Give a figure of each trace."""
    return Both(figure(pair.predicted), figure(pair.measured))


def makespan(pair: TracePair, *, matched: bool = True) -> Both:
    """Give the time from the first start to the last end of one block, of matched tasks or of all. [s]"""
    return both(pair, lambda side: side.makespan(matched=matched))


def high_water(pair: TracePair) -> dict[TierName, Both]:
    """Give the most bytes in use at once on every tier. [B]"""
    predicted, measured = (side.trace.high_water() for side in pair.sides)
    return {tier: Both(predicted[tier], measured[tier]) for tier in TIERS}


def lane_figures(pair: TracePair) -> list[LaneFigures]:
    """Compare lanes that either trace uses, in the order of ``LANES``."""
    used = np.unique(np.concatenate([side.trace.lane for side in pair.sides])).tolist()
    comparable = not any(each.passes_between for each in unmatched(pair))
    longer = makespan(pair).difference if comparable else 0.0
    return [_lane(pair, code, longer) for code in used]


def _lane(pair: TracePair, code: int, longer: float) -> LaneFigures:
    tasks = np.nonzero(pair.lane == code)[0]
    seconds = _totals(pair, tasks)
    return LaneFigures(
        lane=LANES[code],
        tasks=len(tasks),
        seconds=seconds,
        share=both(pair, lambda side: side.busy(code)),
        part=seconds.difference / longer if longer else None,
        out_of_order=first_violation(pair, code),
    )


def operation_figures(pair: TracePair) -> list[OperationFigures]:
    """Compare operations, those first whose totals differ most."""
    kinds = np.unique(np.stack([pair.lane, pair.operation]), axis=1).T.tolist()
    rows = [_operation(pair, lane, code) for lane, code in kinds]
    return sorted(rows, key=lambda row: -round(abs(row.seconds.difference), 9))  # below are roundings


def _operation(pair: TracePair, lane: int, code: int) -> OperationFigures:
    tasks = np.nonzero((pair.lane == lane) & (pair.operation == code))[0]
    return OperationFigures(
        lane=LANES[lane],
        operation=OPERATIONS[code].name,
        tasks=len(tasks),
        seconds=_totals(pair, tasks),
        median=both(pair, lambda side: float(np.median(side.seconds[tasks]))),
        byte_rate=both(pair, lambda side: _rate(side, side.trace.bytes, tasks)),
        flop_rate=both(pair, lambda side: _rate(side, side.trace.flops, tasks)),
    )


def _totals(pair: TracePair, tasks: IntArray) -> Both:
    return both(pair, lambda side: float(side.seconds[tasks].sum()))


def _rate(side: Side, amounts: FloatArray, tasks: IntArray) -> float | None:
    """Divide what was done by the time that it took; None if nothing was, or in no time."""
    amount, seconds = float(side.mean(amounts)[tasks].sum()), float(side.seconds[tasks].sum())
    return amount / seconds if amount and seconds else None


def first_violation(pair: TracePair, lane: int) -> str | None:
    """Say which task of a lane was the first to start before one that the prediction starts first.

    Every measured block is held against the first predicted one, over the tasks that both have, each stretch
    of passes for itself (`TracePair.stretch`).
    """
    expected = pair.predicted.order(lane, pair.predicted.blocks[0])
    place = np.full(len(pair.first), -1)
    place[expected] = np.arange(len(expected))
    stretch = pair.stretch
    for number, block in enumerate(pair.measured.blocks):
        found = pair.measured.order(lane, block)
        found = found[place[found] >= 0]
        for one in np.unique(stretch[found]):
            words = _disorder(pair, found[stretch[found] == one], place)
            if words:
                return words + (f" in block {number + 1}" if len(pair.measured.blocks) > 1 else "")
    return None


def _disorder(pair: TracePair, found: IntArray, place: IntArray) -> str | None:
    due = found[np.argsort(place[found])]
    wrong = np.nonzero(found != due)[0]
    if len(wrong) == 0:
        return None
    return f"{pair.describe(found[wrong[0]])} started before {pair.describe(due[wrong[0]])}"


def unmatched(pair: TracePair) -> tuple[Unmatched, Unmatched]:
    """Count what only the prediction has, and what only the measurement has."""
    return _unmatched(pair.predicted), _unmatched(pair.measured)


def _unmatched(side: Side) -> Unmatched:
    trace, alone = side.trace, side.task < 0
    common = np.unique(trace.pass_number[~alone])
    passes = np.unique(trace.pass_number[alone])
    between = (passes > common[0]) & (passes < common[-1]) & ~np.isin(passes, common)
    names = Counter(OPERATIONS[code].name for code in trace.operation[alone].tolist())
    return Unmatched(
        tasks=int(alone.sum()),
        operations=dict(names.most_common()),
        passes=tuple(passes.tolist()),
        passes_between=int(between.sum()),
        incomplete=int((side.times < len(side.blocks)).sum()),
    )
