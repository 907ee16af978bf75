"""Demand on every lane and shared capacity, with placement left open.

The forms of ``simulator.operations`` summed over a period of the schedule: what recurs once a pass, and what
recurs once a sequence in flight. The placement program reads these; nothing is derived a second time.

Not contained: latencies of copies and of kernels that a placement may not need at all, so that demand is
linear in the placement. It is a lower bound of what the simulator sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simulator.cost import Rates, limit
from simulator.demand_work import Part, in_order, period_work
from simulator.hardware import LANES
from simulator.layers import Shape
from simulator.memory import BufferName, buffer_slots
from simulator.model import ModelSpec
from simulator.policy import PLACEMENT, FloatArray
from simulator.runtime import Runtime
from simulator.workload import Workload

#: Operations of the GPU that do not wait for the CPU's attention in the same cell.
_BESIDE_CPU = ("quantize_cache", "attend_prefix", "dequantize_cache", "attend")
_GPU = LANES.index("gpu")


@dataclass(frozen=True)
class Demand:
    """Demand of the passes of one phase in a period, on R resources: the lanes, then the capacities.

    Attributes:
        passes: how many passes the phase has in a period.
        per_pass: affine form of what all its passes need, whatever the block. [R, len(PLACEMENT)]
        per_sequence: affine form per sequence in flight. [R, len(PLACEMENT)]
        carry: what buffers let a lane do before or after the phase. [R, len(PLACEMENT)]
        beside_cpu: of ``per_sequence``, what the GPU can do while the CPU attends for the same cell.
            [len(PLACEMENT)]
    """

    passes: int
    per_pass: FloatArray
    per_sequence: FloatArray
    carry: FloatArray
    beside_cpu: FloatArray

    def at(self, placement: FloatArray, block: float) -> FloatArray:
        """Evaluate: seconds on each lane, bytes (or seconds) on each capacity. [R]"""
        return np.asarray(self.per_pass @ placement + block * (self.per_sequence @ placement))


def resource_limits(rates: Rates) -> FloatArray:
    """Give what each resource offers per second: 1 of a lane, the rate of a capacity. [R]"""
    return np.array([1.0] * len(LANES) + [limit(c) for c in rates.hardware.capacities.values()])


def period_demand(  # noqa: PLR0913 - what decides the form of the demand, each by its name
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    workload: Workload,
    rates: Rates,
    *,
    gpu_batch: int,
    prompt_batch: int,
    stagger: int | None,
    prefetch: int = 1,
) -> tuple[Demand, Demand]:
    """Sum the work of one period: the pass with an admission, and the passes without.

    In a period every position of a sequence's life is visited once by one cohort, so a sequence in flight
    accounts for 1/cohorts of a life.
    """
    period = period_work(model, shape, runtime, workload, gpu_batch, prompt_batch, stagger)
    ahead = runtime.attention_lookahead
    slots = _carried(buffer_slots(runtime, prefetch, ahead), ahead + 1)
    sums = _Sums.of(period.passes, rates)
    for part in period.once:
        for resource, each in _drawn(part, rates):
            sums.add_once(part, resource, in_order(each * part.shares))
    for part in period.cells:
        for resource, each in _drawn(part, rates):
            sums.add_cells(part, resource, each, slots.get(part.operation.name, 0))
    for part in period.layers:
        for resource, each in _drawn(part, rates):
            sums.add_once(part, resource, each[0], times=part.shares[0])
            if part.inside:
                sums.carry[resource, part.columns] += slots[part.operation.name] * each[0]
    return sums.demand(0), sums.demand(1)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Demand of the passes with and without an admission, as it is added up; as in :class:`Demand`."""

    passes: FloatArray  # [2]
    per_pass: FloatArray  # [2, R, len(PLACEMENT)]
    per_sequence: FloatArray  # [2, R, len(PLACEMENT)]
    carry: FloatArray
    beside_cpu: FloatArray  # [2, len(PLACEMENT)]

    @classmethod
    def of(cls, passes: int, rates: Rates) -> _Sums:
        """Begin with nothing."""
        shape = (len(LANES) + len(rates.hardware.capacities), len(PLACEMENT))
        both = np.array([1.0, passes - 1.0])
        return cls(
            both, np.zeros((2, *shape)), np.zeros((2, *shape)), np.zeros(shape), np.zeros((2, shape[1]))
        )

    def add_once(
        self, part: Part, resource: int, amount: FloatArray, times: FloatArray | float = 1.0
    ) -> None:
        """Add what every pass needs so many times. [k]"""
        self.per_pass[:, resource, part.columns] += self.passes[:, None] * times * amount

    def add_cells(self, part: Part, resource: int, each: FloatArray, slots: int) -> None:
        """Add what cells need, and what of it so many slots of a buffer let a lane do apart. [n, k]"""
        weighted = each * part.shares
        for phase, rows in enumerate((weighted[: part.admission], weighted[part.admission :])):
            if len(rows):
                total = in_order(rows)
                self.per_sequence[phase, resource, part.columns] += total
                if resource == _GPU and part.operation.name in _BESIDE_CPU:
                    self.beside_cpu[phase, part.columns] += total
        if slots:
            self.carry[resource, part.columns] += slots * each.max(axis=0)

    def demand(self, phase: int) -> Demand:
        """Give the demand of one phase."""
        passes = int(self.passes[phase])
        return Demand(
            passes, self.per_pass[phase], self.per_sequence[phase], self.carry, self.beside_cpu[phase]
        )


def _drawn(part: Part, rates: Rates) -> Iterator[tuple[int, FloatArray]]:
    """Give seconds on the operation's lane and draws on capacities, each with its resource. [n, k]"""
    operation = part.operation
    seconds = rates.seconds(operation, part.flops, part.bytes, 0.0, 0.0, part.blocks)
    if part.always is not None:
        at = part.always
        flops, bytes_, blocks = (form[:, at] for form in (part.flops, part.bytes, part.blocks))
        seconds[:, at] = rates.seconds(operation, flops, bytes_, part.kernels, part.steps, blocks)
    yield LANES.index(operation.lane), seconds
    for index, capacity in enumerate(rates.hardware.capacities.values()):
        if operation.lane in capacity.lanes:
            yield len(LANES) + index, rates.draw(capacity, operation, part.bytes, seconds)


def _carried(slots: dict[BufferName, int], ahead: int) -> dict[str, int]:
    """Count how many uses of each operation can lie outside the time in which the GPU works on its phase.

    A load runs ahead by the slots of its chain of buffers, a store trails by them; CPU attention runs ahead
    by the groups whose projections are.
    """
    return {
        "load_weights": slots["weights"],
        "stage_weights": slots["weights"],
        "relay_weights": slots["weights"],
        "read_weights": slots["weights"] + slots["weight_staging"],
        "load_cache": slots["cache"],
        "read_cache": slots["cache"] + slots["cache_staging"],
        "stage_cache": slots["cache"],
        "expand_cache": slots["cache"],
        "load_activations": slots["activations"],
        "read_activations": slots["activations"],
        "store_activations": slots["activations"],
        "write_activations": slots["activations"],
        "store_cache": slots["new_cache"],
        "write_cache": slots["new_cache"] + slots["cache_writing"],
        "store_query": ahead,
        "attend_cpu": ahead,
        "dequantize_cache_cpu": ahead,
        "load_output": ahead,
    }
