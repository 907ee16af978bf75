"""The best whole block for one group size, and what a solution of the program means as a policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.choices import Options, unit_of
from planner.program import Outer, Problem, Program, Solution
from simulator.policy import CpuAttention, Policy, Split


@dataclass(frozen=True)
class Candidate:
    """A policy with the program's answer for its block. ``why`` says what it is among the candidates."""

    outer: Outer
    solution: Solution
    policy: Policy
    effective_tok_s: float
    why: str = ""

    @property
    def lp_tok_s(self) -> float:
        """Throughput under perfect overlap, in the steady state. [tok/s]"""
        return self.solution.throughput


@dataclass
class Solver:
    """Solves programs and counts them."""

    problem: Problem
    options: Options
    programs: int = 0

    def solve(self, outer: Outer, block: int | None = None, **aim: float) -> Solution | None:
        """Solve one program; None if nothing fits."""
        self.programs += 1
        return Program(self.problem, outer, block).solve(**aim)


def queue_factor(problem: Problem, outer: Outer, block: float) -> float:
    """Give the share of the steady throughput that a finite queue can have.

    Zig-zag computes whole blocks, the last one perhaps half empty: ``N / (ceil(N / D) D)``. The diagonal also
    enters and leaves: ``(N / a) d`` passes of work take ``(ceil(N / a) - 1) d + n``, a = sequences a cohort.
    """
    prompts, gen_len = problem.workload.num_prompts, problem.workload.gen_len
    if prompts is None:
        return 1.0
    cohorts = unit_of(problem, outer) // outer.gpu_batch
    every = outer.stagger if outer.stagger and cohorts > 1 else gen_len
    cohort = block / cohorts
    return (prompts / cohort) * every / ((math.ceil(prompts / cohort - 1e-9) - 1) * every + gen_len)


def best_block(solver: Solver, outer: Outer, relaxed_block: float | None) -> Candidate | None:
    """Solve for whole blocks next to the relaxation's, walking down while it gets better.

    Time per sequence is quasi-convex in the block, so the best multiple of the unit is one of the two
    neighbours of the relaxation's optimum; buffers that the relaxation leaves out can only push it down.
    """
    tried: dict[int, Solution | None] = {}

    def value(block: int) -> float:
        if block not in tried:
            tried[block] = solver.solve(outer, block)
        solution = tried[block]
        if solution is None:
            return 0.0
        return solution.throughput * queue_factor(solver.problem, outer, block)

    unit = unit_of(solver.problem, outer)
    blocks = _blocks(solver, outer, relaxed_block)
    best = max(blocks, key=value, default=0)
    if best and value(best) == 0.0 and solver.options.pins.get("num_groups") is None:
        best = _largest_feasible(unit, min(blocks), value)
    elif len(blocks) > 1 and best == min(blocks):
        while best > unit and value(best - unit) > value(best):
            best -= unit
    solution = tried.get(best)
    if solution is None:
        return None
    return candidate_of(solver.problem, outer, best, solution)


def candidate_of(
    problem: Problem, outer: Outer, block: int, solution: Solution, why: str = ""
) -> Candidate:
    """Write a solution for a whole block as a candidate."""
    effective = solution.throughput * queue_factor(problem, outer, block)
    return Candidate(outer, solution, policy_of(problem, outer, block, solution), effective, why)


def _blocks(solver: Solver, outer: Outer, relaxed_block: float | None) -> list[int]:
    """List the whole blocks to try for one group size."""
    unit = unit_of(solver.problem, outer)
    groups = solver.options.pins.get("num_groups")
    if groups is not None:
        return [groups * outer.gpu_batch]
    if solver.options.schedule == "row":
        return [outer.gpu_batch]
    if relaxed_block is None:
        return []
    low = max(1, math.floor(relaxed_block / unit + 1e-9)) * unit
    blocks = {low} if abs(low - relaxed_block) < 1e-6 * low else {low, low + unit}
    prompts = solver.problem.workload.num_prompts
    if prompts is not None:
        parts = max(1, math.floor(prompts / relaxed_block))
        blocks |= {math.ceil(math.ceil(prompts / count) / unit) * unit for count in (parts, parts + 1)}
        blocks = {block for block in blocks if block <= math.ceil(prompts / unit) * unit}
    return sorted(blocks)


def _largest_feasible(unit: int, known_bad: int, value: Callable[[int], float]) -> int:
    """Bisect for the largest feasible multiple of ``unit`` below one that is not; 0 if there is none."""
    low, high = 0, known_bad // unit
    while high - low > 1:
        middle = (low + high) // 2
        if value(middle * unit) > 0.0:
            low = middle
        else:
            high = middle
    return low * unit


def small_block(solver: Solver, best: Candidate) -> Candidate | None:
    """Find the smallest block whose time by the program is within 1 % of the best: the landscape is flat."""
    outer = replace(best.outer, smallest_batch=None)
    small = solver.solve(outer, small=best.solution.seconds * 1.01)
    if small is None:
        return None
    unit = unit_of(solver.problem, outer)
    block = math.ceil(small.block / unit - 1e-9) * unit
    if block >= best.policy.block:
        return None
    solution = solver.solve(outer, block)
    why = "smallest block within 1 % of the best"
    return candidate_of(solver.problem, outer, block, solution, why) if solution is not None else None


def polished(solver: Solver, candidate: Candidate) -> Candidate:
    """Of all placements that are as fast, take the one with the least traffic."""
    block = candidate.policy.block
    time = candidate.solution.seconds * (1 + 1e-7)
    solution = solver.solve(candidate.outer, block, traffic=time)
    if solution is None:
        return candidate
    policy = policy_of(solver.problem, candidate.outer, block, solution)
    return replace(candidate, policy=policy)


def policy_of(problem: Problem, outer: Outer, block: int, solution: Solution) -> Policy:
    """Write a solution as a policy."""
    _, wg, wc, wd, cg, cpu_c, cpu_g, disk_c, disk_g, hg, hc, hd = (
        round(max(0.0, float(value)), 9) for value in solution.placement
    )
    return Policy(
        gpu_batch=outer.gpu_batch,
        num_groups=block // outer.gpu_batch,
        weights=normal_split(wg, wc, wd),
        cache=normal_split(cg, cpu_c + cpu_g, disk_c + disk_g),
        activations=normal_split(hg, hc, hd),
        cpu_attention=CpuAttention(
            cpu=cpu_c / (cpu_c + cpu_g) if cpu_c else 0.0, disk=disk_c / (disk_c + disk_g) if disk_c else 0.0
        ),
        weight_bits=outer.shape.weight_bits,
        cache_bits=outer.shape.cache_bits,
        quant_group=outer.shape.quant_group,
        stagger=outer.stagger,
        prompt_batch=outer.prompts_together(problem),
        pinned=outer.pinned,
        prefetch=outer.prefetch,
    )


def normal_split(gpu: float, cpu: float, disk: float) -> Split:
    """Make a split of three numbers that sum to about 1."""
    total = gpu + cpu + disk
    rest = max(0.0, 1.0 - gpu / total - cpu / total) if disk else 0.0
    return Split(gpu=gpu / total, cpu=cpu / total, disk=rest)
