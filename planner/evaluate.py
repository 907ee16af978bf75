"""From a candidate to a simulated plan: lay it out, make sure that it fits, play it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from planner.blocks import Candidate, Solver, candidate_of, policy_of, polished
from planner.problem import Outer, Problem, memory_limit
from planner.program import Program
from simulator.hardware import TIERS, TierName
from simulator.layout import Placed, lay_out
from simulator.policy import Policy
from simulator.simulate import Prediction, Simulation, simulate

#: Tasks that ranking may spend on one candidate, and that the chosen plan's simulation may take.
RANKING_TASKS = 120_000
FINAL_TASKS = 600_000
_TASKS_PER_CELL = 10
_FIT_ATTEMPTS = 6
_MARGIN = 1.1  # what rounding overfills moves when everything is placed anew


@dataclass(frozen=True)
class Evaluated:
    """A candidate as laid out and simulated; ``found_as`` is what the search gave.

    The simulation itself, which is large, is kept of the plan that is chosen in the end only.
    """

    candidate: Candidate
    placed: Placed
    prediction: Prediction
    found_as: Candidate
    simulation: Simulation | None = None


def fit(problem: Problem, candidate: Candidate, fixed: Collection[str] = ()) -> Placed | None:
    """Lay a policy out; while a tier is overfull by rounding, place again with less memory, or drop groups.

    Every attempt holds back a tensor more, since less than one need not change how tensors fall. Returns None
    if it cannot be made to fit. ``fixed`` names variables that the user pinned.
    """
    policy: Policy | None = candidate.policy
    held_back = dict.fromkeys(TIERS, 0.0)
    while policy is not None:
        for attempt in range(_FIT_ATTEMPTS):
            placed = lay_out(problem.model, problem.runtime, problem.workload, policy)
            spare = spare_memory(problem, placed)
            if min(spare.values()) >= -1.0:
                return placed
            for tier, room in spare.items():
                if room < -1.0:
                    held_back[tier] += _MARGIN * -room + attempt * _smallest_matrix(placed)
            again = _placed_again(problem, candidate.outer, policy.block, held_back)
            if again is None:
                break
            policy = again
        held_back = dict.fromkeys(TIERS, 0.0)
        policy = _groups_dropped(placed, spare) if "num_groups" not in fixed else None
    return None


def _placed_again(
    problem: Problem, outer: Outer, block: int, held_back: dict[TierName, float]
) -> Policy | None:
    """Solve for a block on a machine with less memory; None if that is too little."""
    tiers = {}
    for tier, memory in problem.hardware.tiers.items():
        less = {"capacity": memory.capacity - held_back[tier]}
        if memory.pinnable is not None:
            less["pinnable"] = memory.pinnable - held_back[tier]
        tiers[tier] = memory.model_copy(update=less)
    smaller = replace(problem, hardware=problem.hardware.model_copy(update={"tiers": tiers}))
    program = Program(smaller, outer, block)
    solution = program.solve()
    if solution is None:
        return None
    return policy_of(problem, outer, block, program.solve(traffic=solution.seconds * (1 + 1e-7)) or solution)


def _smallest_matrix(placed: Placed) -> float:
    """Give the bytes of the smallest matrix of a block: the grain of a layout."""
    shape, model = placed.shape, placed.model
    matrices = [weight for weight in model.layer_weights() if weight.is_matrix]
    return min(model.weight_bytes((each,), shape.weight_bits, shape.quant_group) for each in matrices)


def spare_memory(problem: Problem, placed: Placed) -> dict[TierName, float]:
    """Give the bytes that are free on each tier; below zero where it is overfull. [B]"""
    pinned = placed.policy.pinned
    return {
        tier: memory_limit(problem.hardware, tier, pinned=pinned)[1] - sum(uses.values())
        for tier, uses in placed.peak_memory().items()
    }


def _groups_dropped(placed: Placed, spare: dict[TierName, float]) -> Policy | None:
    """Drop as many groups as make up for what is overfull, an equal number in every cohort."""
    policy, peaks = placed.policy, placed.peak_memory()
    growing = {item.name for item in placed.items() if item.scales}
    by_tier = (sum(size for name, size in uses.items() if name in growing) for uses in peaks.values())
    a_group = max(by_tier) / policy.num_groups
    short = -sum(room for room in spare.values() if room < 0.0)
    needed = max(1, math.ceil(short / a_group)) if a_group > 0.0 else policy.num_groups
    cohorts = policy.cohorts(placed.workload.passes)
    fewer = (policy.num_groups - needed) // cohorts * cohorts
    return policy.model_copy(update={"num_groups": fewer}) if fewer >= cohorts else None


def passes_within(num_layers: int, lives: int, policy: Policy, tasks: int) -> int:
    """Give how many passes a simulation may play of sequences that live some, to stay within some tasks."""
    a_pass = policy.num_groups * (num_layers + 2) * _TASKS_PER_CELL
    return max(5, min(lives + 1, tasks // a_pass))


def evaluate(problem: Problem, candidate: Candidate, fixed: Collection[str] = ()) -> Evaluated | None:
    """Lay out and simulate a candidate; None if its layout does not fit."""
    placed = fit(problem, candidate, fixed)
    if placed is None:
        return None
    passes = passes_within(problem.model.num_layers, problem.workload.passes, placed.policy, RANKING_TASKS)
    prediction, _ = simulate(placed, problem.hardware, passes)
    return Evaluated(candidate, placed, prediction, candidate)


def evaluate_candidate(solver: Solver, candidate: Candidate) -> Evaluated | None:
    """Lay out and simulate the placement with the least traffic; None if its layout does not fit."""
    return evaluate(solver.problem, polished(solver, candidate), dict(solver.options.pins.values))


def evaluate_block(
    solver: Solver, outer: Outer, block: int, why: str, above: float = 0.0
) -> Evaluated | None:
    """Solve for a block and simulate that; None if nothing fits.

    None too if the program promises no more than ``above``. [tok/s]
    """
    solution = solver.solve(outer, block)
    if solution is None:
        return None
    candidate = candidate_of(solver.problem, outer, block, solution, why)
    if candidate.effective_tok_s <= above:
        return None
    return evaluate_candidate(solver, candidate)
