"""Why nothing fits: which memory is short, by how much, and the smallest change that would help.

Every remedy named is tried first: with so much more memory the program has a solution whose layout in whole
tensors fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planner.blocks import candidate_of
from planner.choices import Options, roots, smallest_block
from planner.evaluate import fit
from planner.linear import Row, minimise
from planner.problem import Outer, Problem, memory_limit
from planner.program import Program
from simulator.hardware import TIERS, TierName
from simulator.layers import total_weight_bytes
from simulator.units import GB, GIB

_MARGIN = 1.02
#: Tried beyond what the program needs, in shares of a layer: rounding to whole tensors takes a little more.
_LAYERS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class _Shortage:
    """What a tier lacks, and how to say it. ``size`` orders shortages. [B]"""

    size: float
    text: str


def explain(problem: Problem, options: Options) -> str:
    """Say in one line why no plan exists for a problem."""
    name = f"{problem.model.name} on {problem.hardware.name}"
    shortages = [_shortage(problem, options, root) for root in roots(problem, options)]
    found = [each for each in shortages if each is not None]
    if found:
        return f"{name} does not fit: {min(found, key=lambda each: each.size).text}"
    if problem.max_latency is not None:
        fastest = quickest(problem, options)
        if fastest is not None:
            return (
                f"{name}: no plan keeps the latency limit of {problem.max_latency:g} s; "
                f"the smallest block takes at least {fastest:.4g} s, so raise --max-latency"
            )
    return f"{name}: the pinned variables contradict each other; drop one --fix"


def quickest(problem: Problem, options: Options) -> float | None:
    """Give the least latency that the program reaches without its limit. [s]"""
    free = replace(problem, max_latency=None)
    latencies = []
    for root in roots(free, options):
        outer, block = smallest_block(free, options, root)
        solution = Program(free, outer, block).solve()
        if solution is not None:
            every = root.stagger or problem.workload.passes
            latencies.append(solution.seconds * block * problem.workload.passes / every)
    return min(latencies, default=None)


def _shortage(problem: Problem, options: Options, root: Outer) -> _Shortage | None:
    """Find the least memory that makes the smallest block fit, on one tier if that is enough."""
    outer, block = smallest_block(problem, options, root)
    free = replace(problem, max_latency=None)
    if fits(free, options, outer, block):
        return None  # memory is not what is short
    program = Program(free, outer, block)
    missing = {tier: found[tier] for tier in TIERS if (found := shortfall(program, (tier,))) is not None}
    enough = {tier: _enough(free, options, outer, block, tier, size) for tier, size in missing.items()}
    enough = {tier: size for tier, size in enough.items() if size < math.inf}
    even = f"even for {_smallest(outer, block)}"
    if enough:
        remedies = " or ".join(
            f"{size / GIB:g} GiB more {_label(problem, outer, tier)}"
            for tier, size in sorted(enough.items(), key=lambda item: item[1])
        )
        tier = [name for name in TIERS if name in enough][-1]  # the slowest that would do
        short = missing[tier] if missing[tier] > 1.0 else enough[tier]
        text = f"{_label(problem, outer, tier)} is short by {short / GIB:.3g} GiB {even}"
        return _Shortage(short, f"{text}; it would fit with {remedies}")
    several = shortfall(program, TIERS)
    if several is None:
        return None
    parts = [
        f"{_label(problem, outer, tier)} by {size / GIB:.3g} GiB"
        for tier, size in several.items()
        if size > 1.0
    ]
    return _Shortage(
        sum(several.values()), f"short are {' and '.join(parts)}, {even}; add a little more than that"
    )


def fits(problem: Problem, options: Options, outer: Outer, block: int) -> bool:
    """Tell whether a block fits once whole tensors are laid out."""
    solution = Program(problem, outer, block).solve()
    if solution is None:
        return False
    candidate = candidate_of(problem, outer, block, solution)
    return fit(problem, candidate, dict(options.pins.values)) is not None


def _enough(
    problem: Problem, options: Options, outer: Outer, block: int, tier: TierName, missing: float
) -> float:
    """Give memory on a tier with which a block fits, to three digits; infinite if none does. [B]"""
    layer = total_weight_bytes(problem.model, outer.shape, problem.runtime) / (problem.model.num_layers + 1)
    for share in _LAYERS:
        amount = _rounded_up((missing * _MARGIN + share * layer) / GIB) * GIB
        if amount and fits(_with_more(problem, tier, amount), options, outer, block):
            return amount
    return math.inf


def _rounded_up(value: float) -> float:
    """Round up to three digits, so that what is printed is enough."""
    if value <= 0.0:
        return 0.0
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / digit) * digit:.6g}")


def _with_more(problem: Problem, tier: TierName, amount: float) -> Problem:
    memory = problem.hardware.tiers[tier]
    pinnable = memory.pinnable + amount if memory.pinnable is not None else None
    larger = memory.model_copy(update={"capacity": memory.capacity + amount, "pinnable": pinnable})
    tiers = problem.hardware.tiers | {tier: larger}
    return replace(problem, hardware=problem.hardware.model_copy(update={"tiers": tiers}))


def _label(problem: Problem, outer: Outer, tier: TierName) -> str:
    return memory_limit(problem.hardware, tier, pinned=outer.pinned)[0]


def shortfall(program: Program, tiers: tuple[TierName, ...]) -> dict[TierName, float] | None:
    """Find the least extra memory [B] on the given tiers that makes a fixed block fit; None if none does."""
    assert program.block is not None
    extra: dict[str, TierName] = {f"extra_{tier}": tier for tier in tiers}
    rows = []
    for row in program.rows:
        # In GB and over the block, as the rows of memory are.
        more = {
            name: -1.0 / program.block
            for name, tier in extra.items()
            if row.name.startswith(f"{tier} memory")
        }
        rows.append(Row(row.name, row.terms | more, row.constant, row.equal))
    found = minimise(dict.fromkeys(extra, 1.0), rows, program.sizes | dict.fromkeys(extra, 1.0))
    return {tier: GB * found.values[name] for name, tier in extra.items()} if found is not None else None


def _smallest(outer: Outer, block: int) -> str:
    groups = block // outer.gpu_batch
    one = "one group" if groups == 1 else f"{groups} groups"
    return f"{one} of {outer.gpu_batch} sequence{'s' if outer.gpu_batch > 1 else ''}"
