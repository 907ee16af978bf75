"""Prices: what one more unit of each resource is worth in tokens per second, from the program's duals.

By the envelope theorem the optimum moves with a figure of the machine as the rows do at the optimum, weighted
by their duals. The rows are made again from a machine with the figure changed a little, so every figure that
the cost model reads has a price, also where it enters non-linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.phases import rates_of
from planner.problem import Outer, Problem, Solution
from planner.program import Program
from simulator.cost import Rates
from simulator.hardware import HardwareProfile, LaneName
from simulator.operations import OP, OPERATIONS
from simulator.schema import Record
from simulator.units import GB, GIB, TFLOP

_STEP = 1e-4  # relative change of a figure


class Price(Record):
    """Worth of one more unit of a resource, with everything else as it is. [tok/s per unit]"""

    resource: str
    unit: str
    tok_s_per_unit: float


@dataclass(frozen=True)
class Figure:
    """A figure of a machine: its name in reports, its unit, how to read and how to change it.

    Its value is that of the first path; the others change in proportion, such as the rates of single
    operations that were measured on the same hardware.
    """

    name: str
    unit: str
    size: float
    paths: tuple[tuple[str, ...], ...]

    def value(self, hardware: HardwareProfile) -> float:
        """Read the figure in SI units."""
        node: object = hardware
        for key in self.paths[0]:
            node = node[key] if isinstance(node, dict) else getattr(node, key)
        assert isinstance(node, float | int)
        return float(node)

    def step(self, hardware: HardwareProfile) -> float:
        """Give a small change of the figure in SI units."""
        return _STEP * (self.value(hardware) or self.size)

    def raised(self, hardware: HardwareProfile, amount: float) -> HardwareProfile:
        """Give the machine with the figure raised by an amount in SI units."""
        value = self.value(hardware)
        for path in self.paths:
            hardware = _changed(hardware, path, lambda now: now * (1.0 + amount / value) if value else amount)
        return hardware


def _changed(node: Any, path: tuple[str, ...], change: Callable[[float], float]) -> Any:
    if not path:
        return change(node)
    key, rest = path[0], path[1:]
    if isinstance(node, dict):
        return node | {key: _changed(node[key], rest, change)}
    return node.model_copy(update={key: _changed(getattr(node, key), rest, change)})


def figures(problem: Problem, outer: Outer) -> list[Figure]:
    """List the figures of the machine that have a price for a plan's choices."""
    hardware = problem.hardware
    host = "pinned" if outer.pinned else "pageable"
    dtype = hardware.engines["gpu"].compute_dtype(problem.model.dtype)
    gpu = ("engines", "gpu")
    found = [
        Figure(f"{tier} memory", "GiB", GIB, (("tiers", tier, "capacity"),))
        for tier in ("gpu", "cpu", "disk")
    ]
    if outer.pinned and hardware.tiers["cpu"].pinnable is not None:
        found[1] = Figure("cpu memory (pinned)", "GiB", GIB, (("tiers", "cpu", "pinnable"),))
    rates = rates_of(problem, outer)
    copies: tuple[tuple[LaneName, tuple[str, ...]], ...] = (
        ("h2d", ("links", "h2d", host)),
        ("d2h", ("links", "d2h", host)),
        ("disk_read", ("links", "disk_read")),
        ("disk_write", ("links", "disk_write")),
    )
    found += [
        Figure(lane, "GB/s", GB, ((*link, "bandwidth"), *_measured_copies(rates, lane)))
        for lane, link in copies
    ]
    products = _measured_kernels(rates, "gpu", "matmul", "flops")
    moved = (
        *_measured_kernels(rates, "gpu", "matmul", "bandwidth"),
        *_measured_kernels(rates, "gpu", "attention", "bandwidth"),
    )
    attended = _measured_kernels(rates, "cpu", "attention", "bandwidth")
    decoded = ("attention", "decode", "bandwidth")
    found += [
        Figure("gpu matrix products", "TFLOP/s", TFLOP, ((*gpu, "matmul", dtype, "flops"), *products)),
        Figure(
            "gpu memory bandwidth",
            "GB/s",
            GB,
            ((*gpu, "matmul", dtype, "bandwidth"), (*gpu, *decoded), *moved),
        ),
        Figure("cpu attention", "GB/s", GB, (("engines", "cpu", *decoded), *attended)),
    ]
    found += [
        Figure(name, "GB/s", GB, (("capacities", name, "bandwidth"),))
        for name, capacity in hardware.capacities.items()
        if capacity.bandwidth is not None
    ]
    return found


def _measured_kernels(rates: Rates, lane: LaneName, cost: str, rate: str) -> Iterator[tuple[str, ...]]:
    """List the paths of a rate of the kernels of a lane, of those operations that were measured."""
    engine = rates.hardware.engines["cpu" if lane == "cpu" else "gpu"]
    dtype = engine.compute_dtype(rates.dtype)
    for name in rates.measured.kernels.get(dtype, {}) if rates.measured else ():
        if (OPERATIONS[OP[name]].lane, OPERATIONS[OP[name]].cost) == (lane, cost):
            yield ("operations", "kernels", dtype, name, rate)


def _measured_copies(rates: Rates, lane: LaneName) -> Iterator[tuple[str, ...]]:
    """List the paths of the rates of the copies of a lane, of those operations that were measured."""
    for name in rates.measured.transfers if rates.measured else ():
        if (OPERATIONS[OP[name]].lane, OPERATIONS[OP[name]].cost) == (lane, "copy"):
            yield ("operations", "transfers", name, "bandwidth")


def prices(problem: Problem, outer: Outer, solution: Solution) -> list[Price]:
    """Price every figure at an optimum of the program with the block open, dearest first in its effect."""
    base = _residuals(problem, outer, solution)
    result = []
    for figure in figures(problem, outer):
        step = figure.step(problem.hardware)
        changed = replace(problem, hardware=figure.raised(problem.hardware, step))
        moved = _residuals(changed, outer, solution)
        # d(seconds) = sum over rows of multiplier x change of (terms - constant); multipliers are -duals.
        change = sum(-solution.duals[name] * (moved[name] - base[name]) for name in base)
        per_unit = -solution.throughput / solution.seconds * change / (step / figure.size)
        result.append(Price(resource=figure.name, unit=figure.unit, tok_s_per_unit=per_unit + 0.0))
    return result


def _residuals(problem: Problem, outer: Outer, solution: Solution) -> dict[str, float]:
    """Evaluate ``terms - constant`` of every row at a solution."""
    program = Program(problem, outer)
    values = solution.values
    return {
        row.name: sum(value * values[name] for name, value in row.terms.items()) - row.constant
        for row in program.rows
    }


def limits(solution: Solution) -> dict[str, dict[str, float]]:
    """Give, for the passes with and without an admission, each resource's share of what sets their time.

    The duals of the rows that bound a phase's time sum to 1; those of the whole period count for both.
    """
    shares: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}}
    phases: dict[str, tuple[str, ...]] = {
        "admission": ("prefill",),
        "others": ("decode",),
        "period": ("prefill", "decode"),
    }
    for name, dual in solution.duals.items():
        resource, _, phase = name.partition(", ")
        for target in phases.get(phase, ()):
            if -dual > 1e-9:
                shares[target][resource] = shares[target].get(resource, 0.0) - dual
    return {phase: _normalised(found) for phase, found in shares.items()}


def _normalised(found: dict[str, float]) -> dict[str, float]:
    total = sum(found.values())
    return {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1])}
