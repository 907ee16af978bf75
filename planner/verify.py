"""Prediction proved against execution: what each run took beside what its plan said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.hardware import TierName
from simulator.schema import Record
from simulator.trace_figures import operation_figures
from simulator.trace_pair import TracePair

_ROUNDING = 2.0**20  # bytes: direct reads take whole pages, and so do buffers
_IN_MEMORY: tuple[TierName, ...] = ("gpu", "cpu")


class OperationTime(Record):
    """Seconds of an operation in all, predicted and measured. [s]"""

    lane: str
    operation: str
    predicted: float
    measured: float


class Outcome(Record):
    """A plan that was run.

    Attributes:
        kind: of the policy.
        schedule: zig-zag, diagonal or row by row.
        batch: sequences of a group.
        groups: how many.
        prompt_len: tokens in.
        gen_len: tokens out.
        predicted: throughput. [tok/s]
        low: end of its range; None for a profile without intervals. [tok/s]
        high: the other end. [tok/s]
        measured: the median over repeats. [tok/s]
        repeats: all measured. [tok/s]
        memory: by tier, planned at most and allocated. [B]
        resident: what the process really took in that run, where all of it is CPU memory. [B]
        operations: of the median run.
    """

    kind: str
    schedule: str
    batch: int
    groups: int
    prompt_len: int
    gen_len: int
    predicted: float
    low: float | None
    high: float | None
    measured: float
    repeats: tuple[float, ...]
    memory: dict[TierName, tuple[float, float]]
    resident: float | None
    operations: tuple[OperationTime, ...]

    @property
    def planned(self) -> float:
        """GPU and CPU memory of the plan. [B]"""
        return sum(self.memory[tier][0] for tier in _IN_MEMORY)

    @property
    def error(self) -> float:
        """Predicted throughput over measured, less 1."""
        return self.predicted / self.measured - 1.0

    @property
    def inside(self) -> bool | None:
        """Whether the measured throughput lies in the range; None without one."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class Verdict:
    """What all runs together say.

    Attributes:
        runs: how many.
        median: of |error|.
        ninth: |error| that nine in ten keep.
        inside: share of the runs in their range; None without ranges.
        memory_over: the most that a tier was allocated beyond its plan and what direct reads round up to,
            over the plan; not above 0: never.
        resident_off: of the memory that processes really took, the median and the largest over the planned
            one, less 1; None where it is not known.
        best_loss: how much slower the policy predicted to be the fastest is than the one that was, 0 to 1.
    """

    runs: int
    median: float
    ninth: float
    inside: float | None
    memory_over: float
    resident_off: tuple[float, float] | None
    best_loss: float

    def to_json(self) -> dict[str, Any]:
        """Give the figures for programs."""
        return dict(self.__dict__)


def judge(outcomes: Sequence[Outcome]) -> Verdict:
    """Sum runs up.

    Raises:
        ValueError: there are none.
    """
    if not outcomes:
        raise ValueError("no runs to judge")
    errors = np.abs([each.error for each in outcomes])
    inside = [each.inside for each in outcomes if each.inside is not None]
    over = [share for each in outcomes for share in _over(each)]
    taken = [each.resident / each.planned - 1.0 for each in outcomes if each.resident is not None]
    best = max(outcomes, key=lambda each: each.predicted)
    return Verdict(
        runs=len(outcomes),
        median=float(np.median(errors)),
        ninth=float(np.quantile(errors, 0.9, method="inverted_cdf")),
        inside=float(np.mean(inside)) if inside else None,
        memory_over=max(over, default=0.0),
        resident_off=(float(np.median(taken)), max(taken)) if taken else None,
        best_loss=1.0 - best.measured / max(each.measured for each in outcomes),
    )


def _over(outcome: Outcome) -> list[float]:
    """Give what was allocated beyond the plan, over the plan, by tier."""
    return [
        max(0.0, allocated - planned - _ROUNDING) / planned
        for planned, allocated in outcome.memory.values()
        if planned
    ]


def operation_times(pair: TracePair) -> tuple[OperationTime, ...]:
    """Give the seconds of every operation in both traces, those first that differ most."""
    return tuple(
        OperationTime(
            lane=row.lane,
            operation=row.operation,
            predicted=row.seconds.predicted or 0.0,
            measured=row.seconds.measured or 0.0,
        )
        for row in operation_figures(pair)
    )


def summed(outcomes: Sequence[Outcome]) -> list[OperationTime]:
    """Sum operations over all runs, those first that differ most."""
    totals: dict[tuple[str, str], list[float]] = {}
    for outcome in outcomes:
        for one in outcome.operations:
            sums = totals.setdefault((one.lane, one.operation), [0.0, 0.0])
            sums[0] += one.predicted
            sums[1] += one.measured
    rows = [
        OperationTime(lane=lane, operation=operation, predicted=predicted, measured=measured)
        for (lane, operation), (predicted, measured) in totals.items()
    ]
    return sorted(rows, key=lambda row: -abs(row.measured - row.predicted))
