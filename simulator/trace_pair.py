"""Two traces of one schedule side by side, task by task: what was predicted and what was measured.

Tasks of two traces are alike if pass, layer, group, lane and operation are, and if as many such tasks were
issued before them in their block. A trace may hold several blocks one after the other; its metadata then
has ``block_starts``, the numbers of their first spans, such as ``0,512``.

A task counts with its mean over the blocks of a trace. The mean and not the median, because means add up:
their sum over a lane is the busy time of the mean block, which can be held against the mean makespan, while
medians leave out what stalls cost and sum to the time of no run. A stall still shows: the median over the
tasks of an operation stands beside their total.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.operations import OPERATIONS, IntArray
from simulator.policy import FloatArray
from simulator.trace import Trace
from simulator.units import shortened

_ALIKE = ("pass_number", "layer", "group", "lane", "operation")


@dataclass(frozen=True, eq=False)
class Side:
    """One of two traces, cut into blocks.

    Attributes:
        trace: N spans.
        blocks: the spans of each block.
        task: number of the matched task that a span is, -1 for none. [N]
        tasks: how many matched tasks there are.
    """

    trace: Trace
    blocks: tuple[slice, ...]
    task: IntArray
    tasks: int

    @property
    def times(self) -> IntArray:
        """Count how often each matched task stands in the trace. [M]"""
        return np.bincount(self.task[self.task >= 0], minlength=self.tasks)

    def mean(self, column: FloatArray) -> FloatArray:
        """Average a column over the blocks, for each matched task. [N] to [M]"""
        matched = self.task >= 0
        total = np.bincount(self.task[matched], column[matched], minlength=self.tasks)
        return np.asarray(total / self.times)

    @property
    def seconds(self) -> FloatArray:
        """How long each matched task takes. [M] [s]"""
        return self.mean(self.trace.end - self.trace.start)

    def makespan(self, *, matched: bool = True) -> float:
        """Average the time from the first start to the last end over the blocks that have spans. [s]"""
        chosen = self.task >= 0 if matched else np.ones(len(self.trace), dtype=bool)
        spans = [
            float(self.trace.end[block][chosen[block]].max() - self.trace.start[block][chosen[block]].min())
            for block in self.blocks
            if chosen[block].any()
        ]
        return float(np.mean(spans))

    def busy(self, lane: int) -> float:
        """Give the share of time that a lane works: all spans, over the whole of all blocks."""
        on = self.trace.lane == lane
        worked = float((self.trace.end[on] - self.trace.start[on]).sum())
        whole = self.makespan(matched=False) * len(self.blocks)
        return worked / whole if whole else 0.0

    def order(self, lane: int, block: slice) -> IntArray:
        """List the matched tasks of a lane by start time; of equal times by issue order."""
        here = np.nonzero((self.trace.lane[block] == lane) & (self.task[block] >= 0))[0]
        here = here[np.argsort(self.trace.start[block][here], kind="stable")]
        return self.task[block][here]


@dataclass(frozen=True, eq=False)
class TracePair:
    """Two traces with M tasks in common, which are numbered as the prediction issues them.

    Attributes:
        first: the predicted span that each task is in the first block to have it. [M]
        occurrence: how many like it its block issues before it. [M]
        predicted: the one trace.
        measured: the other.
    """

    first: IntArray
    occurrence: IntArray
    predicted: Side
    measured: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both traces, the predicted one first."""
        return self.predicted, self.measured

    @property
    def lane(self) -> npt.NDArray[np.int8]:
        """The lane of each task. [M]"""
        return np.asarray(self.predicted.trace.lane[self.first])

    @property
    def operation(self) -> npt.NDArray[np.int8]:
        """The operation of each task. [M]"""
        return np.asarray(self.predicted.trace.operation[self.first])

    @property
    def stretch(self) -> IntArray:
        """Number the stretches of passes that follow one another in both traces. [M]

        Where one trace plays passes between two and the other does not, what is issued around the end of
        the first of the two differs, and rightly so: tasks run ahead into the pass that comes next.
        """
        passes = self.predicted.trace.pass_number[self.first]
        played = np.concatenate([side.trace.pass_number for side in self.sides])
        return np.searchsorted(np.setdiff1d(played, passes), passes)

    def describe(self, task: int) -> str:
        """Name a task: ``attend of pass 1, layer 2, group 0``, and which of several."""
        span, trace = self.first[task], self.predicted.trace
        place = f"pass {trace.pass_number[span]}, layer {trace.layer[span]}, group {trace.group[span]}"
        which = f", number {self.occurrence[task] + 1}" if self.occurrence[task] else ""
        return f"{OPERATIONS[trace.operation[span]].name} of {place}{which}"


def pair_traces(
    predicted: Trace, measured: Trace, names: tuple[str, str] = ("predicted", "measured")
) -> TracePair:
    """Find which span of one trace is which of the other; ``names`` are those of the traces in errors.

    Raises:
        InputError: ``block_starts`` are no such numbers, or no task is in both traces.
    """
    traces = (predicted, measured)
    nothing = f"{names[1]}: no task in common with {names[0]}; give two traces of the same plan"
    if not all(map(len, traces)):
        raise InputError(nothing)
    blocks = [_blocks(trace, name) for trace, name in zip(traces, names, strict=True)]
    code, occurrence = _codes(traces, blocks)
    one, other = np.split(code, [len(predicted)])
    codes, first = np.unique(one, return_index=True)
    first = np.sort(first[np.isin(codes, other)])
    if len(first) == 0:
        raise InputError(nothing)
    number = np.full(code.max() + 1, -1)
    number[one[first]] = np.arange(len(first))
    sides = (
        Side(trace, cut, number[own], len(first))
        for trace, cut, own in zip(traces, blocks, (one, other), strict=True)
    )
    return TracePair(first, occurrence[first], *sides)


def _blocks(trace: Trace, name: str) -> tuple[slice, ...]:
    """Cut a trace where its metadata say."""
    text = trace.metadata.get("block_starts", "0")
    where = f"{name}: otherData.block_starts"
    try:
        starts = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f'{where}: expected numbers of spans such as "0,512"; got {shortened(text)}'
        ) from None
    edges = [*starts, len(trace)]
    if starts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(edges)):
        raise InputError(
            f"{where}: expected 0 and then growing numbers below {len(trace)}, the number of spans; "
            f"got {shortened(text)}"
        )
    return tuple(itertools.starmap(slice, itertools.pairwise(edges)))


def _codes(traces: Sequence[Trace], blocks: Sequence[tuple[slice, ...]]) -> tuple[IntArray, IntArray]:
    """Give all spans numbers that are equal for the same task, and their ranks among equals of a block."""
    key = _distinct(np.concatenate([getattr(trace, name) for trace in traces]) for name in _ALIKE)
    lengths = [block.stop - block.start for cut in blocks for block in cut]
    rank = _ranks(_distinct((np.repeat(np.arange(len(lengths)), lengths), key)))
    return _distinct((key, rank)), rank


def _distinct(columns: Iterable[npt.NDArray[np.integer]]) -> IntArray:
    """Number rows of columns so that equal rows have equal numbers, all below the number of rows."""
    code: IntArray | None = None
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        if code is not None:
            _, place = np.unique(code * len(values) + place, return_inverse=True)
        code = place
    assert code is not None
    return code


def _ranks(code: IntArray) -> IntArray:
    """Count for each element how many equal ones stand before it.

    >>> _ranks(np.array([7, 5, 7, 7, 5])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(code, kind="stable")
    ordered = code[order]
    rank = np.empty(len(code), dtype=np.int64)
    rank[order] = np.arange(len(code)) - np.searchsorted(ordered, ordered)
    return rank
