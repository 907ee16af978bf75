"""Demand on every lane and shared capacity, with placement left open.

The forms of ``simulator.operations`` summed over a period of the schedule: what recurs once a pass, and what
recurs once a sequence in flight. The placement program reads these; nothing is derived a second time.

Not contained: latencies of copies and of kernels that a placement may not need at all, so that demand is
linear in the placement. It is a lower bound of what the simulator sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cells import cell_kinds
from simulator.cost import Rates, limit
from simulator.hardware import LANES
from simulator.layers import WORKING, CellKind, Shape, count_layers
from simulator.memory import BufferName, buffer_slots
from simulator.model import ModelSpec
from simulator.operations import OP, OPERATIONS
from simulator.passes import period_positions
from simulator.policy import PLACEMENT, FloatArray, cohorts_in_flight
from simulator.runtime import Runtime
from simulator.work import Work, cell_work, layer_work
from simulator.workload import Workload

#: Operations that every placement runs: their launch latencies belong to the demand.
_ALWAYS = ("qkv", "project", "mlp", "head", "embed", "attend_prompt", "attend_prefix")
#: Operations of the GPU that do not wait for the CPU's attention in the same cell.
_BESIDE_CPU = ("quantize_cache", "attend_prefix", "dequantize_cache", "attend")
_ONE = PLACEMENT.index("one")
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
    cohorts = cohorts_in_flight(stagger, workload.passes)
    every = stagger if stagger and cohorts > 1 else workload.passes
    beside, others = period_positions(workload, every)
    positions = np.concatenate([[0.0], beside, others])
    kinds = cell_kinds(workload, positions, gpu_batch, prompt_batch)
    counts = count_layers(model, runtime)
    layers = np.repeat([float(counts[kind]) for kind in WORKING], len(positions))
    in_admission = np.tile(np.arange(len(positions)) <= len(beside), len(WORKING))
    summing = _Sum(rates)
    per_sequence = np.zeros((2, summing.resources, len(PLACEMENT)))
    per_pass = np.zeros_like(per_sequence)
    carry = np.zeros((summing.resources, len(PLACEMENT)))
    beside_cpu = np.zeros((2, len(PLACEMENT)))
    ahead = runtime.attention_lookahead
    slots = _carried(buffer_slots(runtime, prefetch, ahead), ahead + 1)
    for name, work in cell_work(model, shape, runtime, kinds).items():
        each = summing.forms(name, work)  # [C, R, 12]
        if name == "dequantize_weights" and runtime.dequantize == "per_pass":
            once = (each * layers[:, None, None])[:: len(positions)].sum(axis=0)  # alike at all positions
            per_pass += np.array([1.0, every - 1.0])[:, None, None] * once
            continue
        weighted = each * (layers / kinds.sequences / cohorts)[:, None, None]
        per_sequence[0] += weighted[in_admission].sum(axis=0)
        per_sequence[1] += weighted[~in_admission].sum(axis=0)
        carry += slots.get(name, 0) * each.max(axis=0)
        if name in _BESIDE_CPU:
            beside_cpu[0] += weighted[in_admission, _GPU].sum(axis=0)
            beside_cpu[1] += weighted[~in_admission, _GPU].sum(axis=0)
    inside = (CellKind.BLOCK, CellKind.ATTENTION, CellKind.MLP)
    for kind, count in counts.items():
        for name, work in layer_work(model, shape, runtime, kind).items():
            each = summing.forms(name, work)[0]
            per_pass += np.array([1.0, every - 1.0])[:, None, None] * count * each
            if kind in inside and count:
                carry = np.maximum(carry, carry + slots[name] * each)
    return (
        Demand(1, per_pass[0], per_sequence[0], carry, beside_cpu[0]),
        Demand(every - 1, per_pass[1], per_sequence[1], carry, beside_cpu[1]),
    )


@dataclass(frozen=True)
class _Sum:
    """Turns the work of an operation into forms over resources."""

    rates: Rates

    @property
    def resources(self) -> int:
        return len(LANES) + len(self.rates.hardware.capacities)

    def forms(self, name: str, work: Work) -> FloatArray:
        """Give seconds on the operation's lane and draws on capacities, with placement open. [C, R, 12]"""
        operation = OPERATIONS[OP[name]]
        seconds = self.rates.seconds(operation, work.flops, work.bytes, 0.0, 0.0, work.blocks)
        if name in _ALWAYS:
            flops, bytes_, blocks = (form[:, _ONE] for form in (work.flops, work.bytes, work.blocks))
            seconds[:, _ONE] = self.rates.seconds(operation, flops, bytes_, work.kernels, work.steps, blocks)
        forms = np.zeros((len(seconds), self.resources, len(PLACEMENT)))
        forms[:, LANES.index(operation.lane)] = seconds
        for index, capacity in enumerate(self.rates.hardware.capacities.values()):
            forms[:, len(LANES) + index] = self.rates.draw(capacity, operation, work.bytes, seconds)
        return forms


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
