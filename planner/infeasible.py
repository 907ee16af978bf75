"""Why nothing fits: which memory is short, by how much, and the smallest change that would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.blocks import Candidate
from planner.choices import Options, roots, smallest_block
from planner.evaluate import overfull
from planner.linear import Row, minimise
from planner.problem import Outer, Problem
from planner.program import Program
from simulator.hardware import TIERS, TierName
from simulator.layout import lay_out
from simulator.units import GB, GIB

_MARGIN = 1.02  # rounding to whole tensors needs a little more than the program


def explain(problem: Problem, options: Options) -> str:
    """Say in one line why no plan exists for a problem."""
    best: tuple[float, str] | None = None
    for root in roots(problem, options):
        found = _least_change(problem, options, root)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    name = f"{problem.model.name} on {problem.hardware.name}"
    if best is None:
        if problem.max_latency is not None:
            without = explain_latency(problem, options)
            if without:
                return f"{name}: {without}"
        return f"{name}: the pinned variables contradict each other; drop one --fix"
    return f"{name} does not fit: {best[1]}"


def explain_latency(problem: Problem, options: Options) -> str | None:
    """Say what latency the program reaches if the limit is what makes the problem infeasible."""
    fastest: float | None = None
    for root in roots(replace(problem, max_latency=None), options):
        outer, block = smallest_block(problem, options, root)
        solution = Program(replace(problem, max_latency=None), outer, block).solve()
        if solution is not None:
            every = root.stagger or problem.workload.gen_len
            latency = solution.seconds * block * problem.workload.gen_len / every
            fastest = latency if fastest is None else min(fastest, latency)
    if fastest is None:
        return None
    return (
        f"no plan keeps the latency limit of {problem.max_latency:g} s; "
        f"the smallest block takes at least {fastest:.4g} s, so raise --max-latency"
    )


def explain_rounding(problem: Problem, candidates: Sequence[Candidate]) -> str:
    """Say what is missing when the program's placements fit and no layout of whole tensors does."""
    best: tuple[float, str] | None = None
    for candidate in candidates:
        policy = candidate.policy
        placed = lay_out(problem.model, problem.runtime, problem.workload, policy)
        for tier, excess in overfull(problem, placed).items():
            if best is None or excess < best[0]:
                changes = f"{tier} memory is short by {excess / GIB:.3g} GiB once whole tensors are laid out"
                best = (
                    excess,
                    f"{changes}; it would fit with {excess * _MARGIN / GIB:.3g} GiB more, or fewer --fix",
                )
    assert best is not None
    return f"{problem.model.name} on {problem.hardware.name} does not fit: {best[1]}"


def _least_change(problem: Problem, options: Options, root: Outer) -> tuple[float, str] | None:
    """Find the least memory that makes the smallest block fit: on one tier if that is enough, else on several."""
    outer, block = smallest_block(problem, options, root)
    unlimited = replace(problem, max_latency=None)
    program = Program(unlimited, outer, block)
    enough: dict[TierName, float] = {}
    for tier in TIERS:
        missing = shortfall(program, (tier,))
        if missing is not None:
            enough[tier] = missing[tier]
    if enough and min(enough.values()) <= 1.0:
        return None  # memory is not what is short
    if enough:
        changes = " or ".join(
            f"{size * _MARGIN / GIB:.3g} GiB more {tier} memory"
            for tier, size in sorted(enough.items(), key=lambda item: item[1])
        )
        tier = [name for name in TIERS if name in enough][-1]  # the slowest that would do
        return enough[tier], (
            f"{tier} memory is short by {enough[tier] / GIB:.3g} GiB even for {_smallest(outer, block)}; "
            f"it would fit with {changes}"
        )
    several = shortfall(program, TIERS)
    if several is None:
        return None
    short = {tier: size for tier, size in several.items() if size > 1.0}
    parts = " and ".join(f"{tier} memory by {size / GIB:.3g} GiB" for tier, size in short.items())
    return sum(short.values()), f"short are {parts}, even for {_smallest(outer, block)}; add that much"


def shortfall(program: Program, tiers: tuple[TierName, ...]) -> dict[TierName, float] | None:
    """Find the least extra memory [B] on the given tiers that makes a fixed block fit; None if none does."""
    assert program.block is not None
    extra: dict[str, TierName] = {f"extra_{tier}": tier for tier in tiers}
    rows = []
    for row in program.rows:
        tier = row.name.partition(" memory")[0]
        more = {f"extra_{tier}": -1.0 / program.block} if f"{tier} memory" in row.name else {}
        more = {
            name: value for name, value in more.items() if name in extra
        }  # in GB, over the block, as the row
        rows.append(Row(row.name, row.terms | more, row.constant, row.equal))
    found = minimise(dict.fromkeys(extra, 1.0), rows, program.sizes | dict.fromkeys(extra, 1.0))
    return {tier: GB * found.values[name] for name, tier in extra.items()} if found is not None else None


def _smallest(outer: Outer, block: int) -> str:
    groups = block // outer.gpu_batch
    one = "one group" if groups == 1 else f"{groups} groups"
    return f"{one} of {outer.gpu_batch} sequence{'s' if outer.gpu_batch > 1 else ''}"
