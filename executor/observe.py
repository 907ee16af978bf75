"""What measured traces say of single tasks: work, time, and which lanes were busy beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.hardware import LANES
from simulator.operations import OPERATIONS
from simulator.policy import FloatArray
from simulator.trace import Trace

WORK = ("flops", "bytes", "kernels", "steps", "blocks")
_QUIET = 0.05  # share of a task's time in which other lanes may work for it to count as alone

_DISK = [LANES.index("disk_read"), LANES.index("disk_write")]

#: Operation and number type; copies are alike for all types.
Kind = tuple[str, str]


@dataclass(frozen=True)
class Observations:
    """N tasks of one operation, or kinds of tasks with the mean of their times.

    Attributes:
        flops: work. [N] [FLOP]
        bytes: moved. [N] [B]
        kernels: launches or copies. [N]
        steps: inner dimensions of all kernels together. [N]
        blocks: attention blocks, or pieces of a copy. [N]
        seconds: measured time. [N] [s]
        run: the number of the run that each was seen in. [N]
    """

    flops: FloatArray
    bytes: FloatArray
    kernels: FloatArray
    steps: FloatArray
    blocks: FloatArray
    seconds: FloatArray
    run: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Count them."""
        return len(self.seconds)

    @property
    def work(self) -> tuple[FloatArray, ...]:
        """The columns that say how much there is to do."""
        return self.flops, self.bytes, self.kernels, self.steps, self.blocks

    @property
    def times_seen(self) -> FloatArray:
        """Count for each kind in how many runs there is one with the same work. [N]"""
        keys = np.stack([np.round(column, 3) for column in self.work], axis=1)
        _, place, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        return np.asarray(count[place.ravel()], dtype=float)

    def gathered(self) -> Observations:
        """Put tasks of a run with equal work together, with the mean of their times.

        The mean, because it is what sums up: a task that stalls now and then costs what it costs on average.
        The first of a kind is left out where there are others: kernels are prepared for a new size once.
        """
        keys = np.stack([*(np.round(column, 3) for column in self.work), self.run], axis=1)
        kinds, place = np.unique(keys, axis=0, return_inverse=True)
        place = place.ravel()
        seconds = [_later_mean(self.seconds[place == number]) for number in range(len(kinds))]
        return observations(kinds[:, :-1].T, np.array(seconds), kinds[:, -1])


def _later_mean(seconds: FloatArray) -> float:
    """Average all but the first, if there are others."""
    return float(np.mean(seconds[1:] if len(seconds) > 1 else seconds))


def observations(work: Iterable[FloatArray], seconds: FloatArray, run: FloatArray) -> Observations:
    """Gather columns, those of the work in the order of ``WORK``."""
    return Observations(**dict(zip(WORK, work, strict=True)), seconds=seconds, run=run.astype(np.int64))


@dataclass(frozen=True)
class Run:
    """A trace, and the number type that its model was computed in."""

    trace: Trace
    dtype: str


def busy_beside(trace: Trace) -> FloatArray:
    """Give the share of each task's time in which each lane works. [N, lanes]; its own lane's is 0."""
    took = np.maximum(trace.end - trace.start, 1e-9)
    shares = np.zeros((len(trace), len(LANES)))
    for index in range(len(LANES)):
        on = np.nonzero(trace.lane == index)[0]
        if len(on) == 0:
            continue
        order = on[np.argsort(trace.start[on], kind="stable")]
        start, end = trace.start[order], trace.end[order]
        worked = np.concatenate([[0.0], np.cumsum(end - start)])
        until = [_worked(at, start, worked) for at in (trace.end, trace.start)]
        shares[:, index] = np.clip((until[0] - until[1]) / took, 0.0, 1.0)
        shares[on, index] = 0.0
    return shares


def _worked(at: FloatArray, start: FloatArray, worked: FloatArray) -> FloatArray:
    """Give how long a lane has worked until some instants; its tasks do not overlap."""
    place = np.searchsorted(start, at, side="right") - 1
    inside = np.maximum(place, 0)
    length = np.diff(worked)
    partial = np.minimum(at - start[inside], length[inside])
    return np.where(place < 0, 0.0, worked[inside] + partial)


def alone(runs: Iterable[Run]) -> dict[Kind, Observations]:
    """Gather the tasks that had what they use to themselves, by operation and number type.

    The disk is not slower while others compute; what computes is slower while the disk is read.
    """
    parts: dict[Kind, list[FloatArray]] = {}
    for number, run in enumerate(runs):
        trace = run.trace
        beside = busy_beside(trace)
        disk = np.isin(trace.lane, _DISK)
        quiet = np.where(disk, beside[:, _DISK].sum(axis=1), beside.sum(axis=1)) < _QUIET
        for code in np.unique(trace.operation).tolist():
            operation = OPERATIONS[code]
            chosen = quiet & (trace.operation == code) & (trace.kernels > 0)
            if operation.cost == "none" or not chosen.any():
                continue
            computed = operation.cost in ("matmul", "attention", "prompt_attention")
            columns = [getattr(trace, name)[chosen] for name in WORK]
            columns += [(trace.end - trace.start)[chosen], np.full(int(chosen.sum()), float(number))]
            kind = (operation.name, run.dtype if computed else "")
            parts.setdefault(kind, []).append(np.stack(columns))
    return {kind: _joined(each).gathered() for kind, each in parts.items()}


def _joined(parts: list[FloatArray]) -> Observations:
    *work, seconds, run = np.concatenate(parts, axis=1)
    return observations(work, seconds, run)


@dataclass(frozen=True)
class Beside:
    """Tasks of one lane in runs where lanes overlap.

    Attributes:
        alone: time that each would take alone, by the fits. [N] [s]
        measured: time that it took. [N] [s]
        shares: of its time in which each lane worked. [N, lanes]
        run: the number of its run. [N]
    """

    alone: FloatArray
    measured: FloatArray
    shares: FloatArray
    run: npt.NDArray[np.int64]


def beside(runs: Iterable[Run], seconds: Mapping[Kind, FloatArray], lane: int) -> Beside:
    """Gather the tasks of a lane with the time that each takes alone.

    Args:
        runs: with overlapping lanes.
        seconds: of each operation and type, the times of all such tasks in all runs, in order. [s]
        lane: index into ``LANES``.
    """
    taken = dict.fromkeys(seconds, 0)
    found: list[tuple[FloatArray, FloatArray, FloatArray, FloatArray]] = []
    for number, run in enumerate(runs):
        trace, shares = run.trace, busy_beside(run.trace)
        for kind in seconds:
            chosen = tasks_of(run, kind)
            times = seconds[kind][taken[kind] : taken[kind] + len(chosen)]
            taken[kind] += len(chosen)
            if len(chosen) and trace.lane[chosen[0]] == lane:
                took = (trace.end - trace.start)[chosen]
                found.append((times, took, shares[chosen], np.full(len(chosen), float(number))))
    if not found:
        nothing = np.zeros(0)
        return Beside(nothing, nothing, np.zeros((0, len(LANES))), nothing.astype(np.int64))
    first, second, third, fourth = (np.concatenate(column) for column in zip(*found, strict=True))
    return Beside(first, second, third, fourth.astype(np.int64))


def tasks_of(run: Run, kind: Kind) -> npt.NDArray[np.intp]:
    """List the tasks of an operation in a run, if its type is the one asked for."""
    name, dtype = kind
    codes = [code for code, operation in enumerate(OPERATIONS) if operation.name == name]
    if dtype not in ("", run.dtype):
        return np.zeros(0, dtype=np.intp)
    return np.nonzero((run.trace.operation == codes[0]) & (run.trace.kernels > 0))[0]


def tasks(run: Run, kind: Kind) -> Observations:
    """Gather the tasks of an operation in a run, one by one."""
    chosen, trace = tasks_of(run, kind), run.trace
    took = (trace.end - trace.start)[chosen]
    return observations((getattr(trace, name)[chosen] for name in WORK), took, np.zeros(len(chosen)))
