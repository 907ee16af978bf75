"""The best whole block for one group size, and what a solution of the program means as a policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.choices import Options, fits_queue, known_groups, unit_of
from planner.problem import Outer, Problem, Solution
from planner.program import Program
from simulator.hardware import TIERS
from simulator.policy import CACHE_ON_CPU_ENGINE, CpuAttention, Policy, Split, cohorts_in_flight

_GAIN = 1e-4  # relative; a smaller block must be faster by more than this
_NOISE = 1e-6  # fractions that the solver leaves where zero is meant


@dataclass(frozen=True, eq=False)
class Candidate:
    """A policy with the program's answer for its block.

    Attributes:
        lp_tok_s: throughput under perfect overlap; where the queue leaves sequences of a block without a
            prompt, they do not count.
        effective_tok_s: the same, with an estimate of what entering and leaving a diagonal costs.
        why: what it is among the candidates.
    """

    outer: Outer
    solution: Solution
    policy: Policy
    lp_tok_s: float
    effective_tok_s: float
    why: str = ""


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


def real_share(problem: Problem, outer: Outer, block: float) -> float:
    """Give the share of the sequences computed that have a prompt of a finite queue.

    ``N / (ceil(N / a) a)``, as sequences are admitted a at a time: whole blocks, or one cohort of the
    diagonal.
    """
    prompts = problem.workload.num_prompts
    if prompts is None:
        return 1.0
    cohort = block / cohorts_in_flight(outer.stagger, problem.workload.passes)
    return prompts / (math.ceil(prompts / cohort - 1e-9) * cohort)


def queue_factor(problem: Problem, outer: Outer, block: float) -> float:
    """Give about the share of the steady throughput that a finite queue can have.

    The diagonal also enters and leaves: ``ceil(N / a)`` admissions, d passes apart, take
    ``(ceil(N / a) - 1) d + n`` passes.
    """
    share, passes = real_share(problem, outer, block), problem.workload.passes
    cohorts = cohorts_in_flight(outer.stagger, passes)
    if problem.workload.num_prompts is None or cohorts == 1 or outer.stagger is None:
        return share
    admissions = math.ceil(problem.workload.num_prompts * cohorts / block - 1e-9)
    return share * admissions * outer.stagger / ((admissions - 1) * outer.stagger + passes)


def best_queue_factor(problem: Problem, outer: Outer) -> float:
    """Give the most that :func:`queue_factor` can be at any block of at least a group size."""
    unit = unit_of(problem, outer)
    prompts, passes = problem.workload.num_prompts, problem.workload.passes
    if prompts is None or unit == outer.gpu_batch or outer.stagger is None:
        return 1.0
    admissions = prompts / outer.gpu_batch
    return min(1.0, admissions * outer.stagger / ((admissions - 1) * outer.stagger + passes))


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
        best = _walk_down(unit, best, value)
    solution = tried.get(best)
    if solution is None:
        return None
    return candidate_of(solver.problem, outer, best, solution)


def candidate_of(problem: Problem, outer: Outer, block: int, solution: Solution, why: str = "") -> Candidate:
    """Write a solution for a whole block as a candidate."""
    policy = policy_of(problem, outer, block, solution)
    lp, effective = (
        solution.throughput * factor(problem, outer, block) for factor in (real_share, queue_factor)
    )
    return Candidate(outer, solution, policy, lp, effective, why)


def _blocks(solver: Solver, outer: Outer, relaxed_block: float | None) -> list[int]:
    """List the whole blocks to try for one group size."""
    unit = unit_of(solver.problem, outer)
    groups = known_groups(solver.problem, solver.options)
    if groups is not None:
        return [groups * outer.gpu_batch]
    if relaxed_block is None:
        return []
    low = max(1, math.floor(relaxed_block / unit + 1e-9)) * unit
    blocks = {low} if abs(low - relaxed_block) < 1e-6 * low else {low, low + unit}
    prompts = solver.problem.workload.num_prompts
    if prompts is not None and unit == outer.gpu_batch:  # zig-zag: no larger than so many blocks must be
        counts = [math.ceil(prompts / block) for block in blocks]
        blocks = {math.ceil(prompts / count / unit) * unit for count in counts}
    blocks = {block for block in blocks if fits_queue(solver.problem, outer, block)} or {unit}
    return sorted(blocks)


def _walk_down(unit: int, block: int, value: Callable[[int], float]) -> int:
    """Make a block smaller, in steps that grow, for as long as that gains something."""
    step = unit
    while True:
        if block > step and value(block - step) > value(block) * (1 + _GAIN):
            block, step = block - step, 2 * step
        elif step > unit:
            step = unit
        else:
            return block


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


def one_sided(solver: Solver, best: Candidate) -> list[Candidate]:
    """Compute all attention on the CPU, or all on the GPU, where the program shares it between them.

    Sharing often gains next to nothing under perfect overlap, and costs more than that in contention.
    """
    on_cpu = float(CACHE_ON_CPU_ENGINE @ best.policy.placement())
    if solver.options.pins.get("cpu_attention") is not None or not 0.02 < on_cpu < 0.98:
        return []
    sides = []
    for share, side in ((1.0, "CPU"), (0.0, "GPU")):
        outer = replace(best.outer, smallest_batch=None, pins=(*best.outer.pins, ("cpu_attention", share)))
        solution = solver.solve(outer, best.policy.block)
        if solution is not None:
            why = f"attention all on the {side}"
            sides.append(candidate_of(solver.problem, outer, best.policy.block, solution, why))
    return sides


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
    """Write a solution as a policy; what is pinned is as pinned, to the last digit."""
    _, wg, wc, wd, cg, cpu_c, cpu_g, disk_c, disk_g, hg, hc, hd = (
        round(float(value), 9) if value > _NOISE else 0.0 for value in solution.placement
    )
    pins = dict(outer.pins)

    def split(name: str, *found: float) -> Split:
        pinned = [pins.get(f"{name}_{tier}") for tier in TIERS]
        return normal_split(
            *(value if value is not None else share for value, share in zip(pinned, found, strict=True))
        )

    def on_cpu(cpu: float, gpu: float) -> float:
        return pins.get("cpu_attention", cpu / (cpu + gpu) if cpu else 0.0)

    return Policy(
        gpu_batch=outer.gpu_batch,
        num_groups=block // outer.gpu_batch,
        weights=split("weights", wg, wc, wd),
        cache=split("cache", cg, cpu_c + cpu_g, disk_c + disk_g),
        activations=split("activations", hg, hc, hd),
        cpu_attention=CpuAttention(cpu=on_cpu(cpu_c, cpu_g), disk=on_cpu(disk_c, disk_g)),
        weight_bits=outer.shape.weight_bits,
        cache_bits=outer.shape.cache_bits,
        quant_group=outer.shape.quant_group,
        attention_top=outer.shape.attention_top,
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
