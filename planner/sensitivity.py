"""What a plan depends on: prices, how far each holds, and what more or less of each resource does.

A price is the slope of the placement program's answer at the machine as it is. Here the program is solved
again with more and with less of a resource, to find how far the slope tells the truth, and whole plans are
made again and simulated, to see what remains of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from planner.plan import Plan
from planner.prices import Figure, figures
from planner.problem import Outer, Problem
from planner.program import Program
from planner.study_answer import Answer, Ask
from planner.study_cells import Cell
from planner.uncertainty import Cause
from planner.words import resource
from simulator.errors import InputError
from simulator.layers import Shape
from simulator.operations import OP, OPERATIONS
from simulator.profiles import override_profile

#: A price holds where it is off by no more than this share of what it promises.
TOLERANCE = 0.1
_BISECTIONS = 7
_NOTHING = 1e-5  # of the throughput: a gain that is none


@dataclass(frozen=True)
class Held:
    """A price, what the resource is now, and the factors on it between which the price holds.

    ``value`` and ``tok_s_per_unit`` are in the figure's unit.
    """

    figure: Figure
    value: float
    tok_s_per_unit: float
    low: float
    high: float


@dataclass(frozen=True)
class Sensitivity:
    """A plan's prices, its throughput with more and less of every resource, and all that was asked.

    Attributes:
        prices: of every resource, and how far each holds.
        swings: of every resource, throughput by factor; None where nothing fits. [tok/s]
        pair: two resources that are changed together, and throughput by their factors. [tok/s]
        cells, answers: everything asked; the base comes first.
    """

    plan: Plan
    prices: tuple[Held, ...]
    swings: dict[str, dict[float, float | None]]
    pair: tuple[str, str]
    pairs: dict[tuple[float, float], float | None]
    cells: tuple[Cell, ...]
    answers: tuple[Answer, ...]

    @property
    def base_tok_s(self) -> float:
        """Throughput of the machine as it is. [tok/s]"""
        return self.plan.predictions.throughput_tok_s

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What makes the throughput uncertain, on a profile that was measured; the most important first."""
        return self.plan.throughput_range.by if self.plan.throughput_range else ()

    def swing(self, resource: str) -> float:
        """Give how far throughput moves with a resource; where nothing fits it is zero. [tok/s]"""
        return _swing(self.swings[resource])

    def number(self, changed: dict[str, float]) -> int | None:
        """Find the row of a change, given as factors on resources."""
        wanted = _variant({name: factor for name, factor in changed.items() if factor != 1.0})
        return next((n for n, cell in enumerate(self.cells) if cell.variant == wanted), None)


def sensitivity(
    base: Cell, plan: Plan, factors: Sequence[float], grid: Sequence[float], pair: Sequence[str], ask: Ask
) -> Sensitivity:
    """Plan again with every resource changed by factors, and with two of them changed together.

    Args:
        base: the machine as it is, and the work; of one part, and without a limit or with it.
        plan: its plan.
        factors: on each resource.
        grid: factors on the two that are changed together.
        pair: their names; empty for the two that matter most.
        ask: answers cells.
    """
    known = {figure.name: figure for figure in figures(problem_of(base), outer_of(base, plan))}
    chosen = _chosen(pair, list(known))
    speed = plan.predictions.throughput_tok_s
    swings: dict[str, dict[float, float | None]] = {name: {1.0: speed} for name in known}
    single = {}
    for (name, figure), factor in itertools.product(known.items(), factors):
        swings[name][factor] = None
        if (cell := _possible(base, {figure: factor})) is not None:
            single[name, factor] = cell
    replies = list(ask([base, *single.values()]))
    for (name, factor), reply in zip(single, replies[1:], strict=True):
        swings[name][factor] = _tok_s(reply)
    first, second = chosen or sorted(known, key=lambda name: -_swing(swings[name]))[:2]
    pairs: dict[tuple[float, float], float | None] = dict.fromkeys(itertools.product(grid, grid))
    both = {}
    for across, down in pairs:
        if (cell := _possible(base, {known[first]: across, known[second]: down})) is not None:
            both[across, down] = cell
    more = list(ask(list(both.values())))
    pairs |= {factors: _tok_s(reply) for factors, reply in zip(both, more, strict=True)}
    return Sensitivity(
        plan,
        tuple(held(base, plan)),
        swings,
        (first, second),
        pairs,
        (base, *single.values(), *both.values()),
        (*replies, *more),
    )


def _chosen(pair: Sequence[str], known: Sequence[str]) -> list[str]:
    """Find two resources by their names; where memory is pinned, that of the CPU is what can be pinned.

    Raises:
        InputError: the machine has none of that name, or both are the same.
    """
    chosen = [next((each for each in (name, f"{name} (pinned)") if each in known), name) for name in pair]
    for name in chosen:
        if name not in known:
            raise InputError(f"--pair {name}: the machine has none; there are: {', '.join(known)}")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"--pair {chosen[0]}: name two different resources")
    return chosen


def _possible(base: Cell, factors: dict[Figure, float]) -> Cell | None:
    """Give the cell of a changed machine, or none if it would have less memory than its reserve."""
    try:
        return changed(base, factors)
    except InputError:
        return None


def _swing(found: dict[float, float | None]) -> float:
    values = [value or 0.0 for value in found.values()]
    return max(values) - min(values)


def _tok_s(reply: Answer) -> float | None:
    return reply.plans[0].plan.predictions.throughput_tok_s if reply.plans else None


def changed(base: Cell, factors: dict[Figure, float]) -> Cell:
    """Give the cell of a changed machine; figures that stay as they are do not count as changed."""
    moved = {figure: factor for figure, factor in factors.items() if factor != 1.0}
    overrides = tuple(text for figure, factor in moved.items() for text in changes(figure, factor))
    return base.model_copy(
        update={
            "hardware": override_profile(base.hardware, overrides),
            "overrides": (*base.overrides, *overrides),
            "variant": _variant({figure.name: factor for figure, factor in moved.items()}),
        }
    )


def _variant(factors: dict[str, float]) -> str | None:
    """Name a changed machine."""
    return ", ".join(f"{factor:.3g} x {resource(name)}" for name, factor in factors.items()) or None


def changes(figure: Figure, factor: float) -> tuple[str, ...]:
    """Write a change of a resource as one would type it; a peak rises with what is achieved.

    >>> disk = Figure("disk_read", "GB/s", 1e9, (("links", "disk_read", "bandwidth"),))
    >>> changes(disk, 2.0), changes(disk, 0.5)
    (('links.disk_read.bandwidth=x2', 'links.disk_read.peak=x2'), ('links.disk_read.bandwidth=x0.5',))
    """
    paths = [".".join(path) for path in figure.paths]
    if factor > 1.0:
        paths += dict.fromkeys(above for path in figure.paths if (above := _peak(path)))
    return tuple(f"{path}=x{factor:.10g}" for path in paths)


def _peak(path: tuple[str, ...]) -> str | None:
    """Name the figure that bounds another one."""
    peak = None
    match path:
        case ("links", lane, *_, "bandwidth"):
            peak = f"links.{lane}.peak"
        case ("engines", engine, "matmul", dtype, "flops"):
            peak = f"engines.{engine}.peak.flops.{dtype}"
        case ("engines", engine, *_, "bandwidth"):
            peak = f"engines.{engine}.peak.memory_bandwidth"
        case ("operations", "transfers", name, _):
            peak = f"links.{OPERATIONS[OP[name]].lane}.peak"
        case ("operations", "kernels", dtype, name, rate):
            engine = "cpu" if OPERATIONS[OP[name]].lane == "cpu" else "gpu"
            peak = f"engines.{engine}.peak." + (f"flops.{dtype}" if rate == "flops" else "memory_bandwidth")
        case ("tiers", "cpu", "pinnable"):
            peak = "tiers.cpu.capacity"
    return peak


def problem_of(cell: Cell) -> Problem:
    """Give the problem of a cell whose work has one part."""
    return Problem(cell.hardware, cell.model, cell.mix.parts[0].workload, cell.runtime, cell.max_latency)


def outer_of(cell: Cell, plan: Plan) -> Outer:
    """Give the choices outside the program that a plan made."""
    policy = plan.policy
    shape = Shape(
        policy.weight_bits, policy.cache_bits, policy.quant_group, attention_top=policy.attention_top
    )
    return Outer(
        gpu_batch=policy.gpu_batch,
        stagger=policy.stagger,
        shape=shape,
        pinned=policy.pinned,
        prefetch=policy.prefetch,
        prompt_batch=cell.options.pins.get("prompt_batch"),
        pins=cell.options.pins.placement(),
    )


def held(cell: Cell, plan: Plan) -> Iterator[Held]:
    """Find how far each price holds, by solving the plan's program again.

    Up to twice and down to half of the resource: to the largest change at which what the program gains is
    within ``TOLERANCE`` of what the price promises.
    """
    problem, outer = problem_of(cell), outer_of(cell, plan)
    start = Program(problem, outer).solve()
    if start is None:
        return
    worth = {price.resource: price.tok_s_per_unit for price in plan.prices}
    for figure in figures(problem, outer):
        value = figure.value(problem.hardware) / figure.size
        price = worth.get(figure.name, 0.0)

        def is_right(factor: float, figure: Figure = figure, slope: float = price * value) -> bool:
            other = _possible(cell, {figure: factor})
            solved = Program(replace(problem, hardware=other.hardware), outer).solve() if other else None
            promised = slope * (factor - 1.0)
            found = (solved.throughput if solved else 0.0) - start.throughput
            return abs(found - promised) <= max(TOLERANCE * abs(promised), _NOTHING * start.throughput)

        yield Held(figure, value, price, _furthest(is_right, 0.5), _furthest(is_right, 2.0))


def _furthest(is_right: Callable[[float], bool], end: float) -> float:
    """Bisect, on a logarithmic scale, for the factor furthest from 1 at which something is right."""
    if is_right(end):
        return end
    right, wrong = 0.0, math.log(end)
    for _ in range(_BISECTIONS):
        middle = (right + wrong) / 2
        right, wrong = (middle, wrong) if is_right(math.exp(middle)) else (right, middle)
    return math.exp(right)
