"""From a candidate to a simulated plan: lay it out, make sure that it fits, play it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from planner.blocks import Candidate, normal_split
from planner.problem import Problem
from planner.program import memory_limit
from simulator.hardware import TIERS, TierName
from simulator.layout import Placed, lay_out, shape_of
from simulator.operations import total_weight_bytes
from simulator.policy import Policy
from simulator.simulate import Prediction, Simulation, simulate

#: Tasks that ranking may spend on one candidate, and that the chosen plan's simulation may take.
RANKING_TASKS = 120_000
FINAL_TASKS = 600_000
_TASKS_PER_CELL = 10
_FIT_ATTEMPTS = 10


@dataclass(frozen=True)
class Evaluated:
    """A candidate as laid out and simulated; ``found_as`` is what the search gave."""

    candidate: Candidate
    placed: Placed
    prediction: Prediction
    simulation: Simulation
    found_as: Candidate


def fit(problem: Problem, policy: Policy, fixed: Collection[str] = ()) -> Placed | None:
    """Lay a policy out; while a tier is overfull by rounding, move weights down or drop groups.

    Returns None if it cannot be made to fit. ``fixed`` names variables that the user pinned.
    """
    for attempt in range(_FIT_ATTEMPTS):
        placed = lay_out(problem.model, problem.runtime, problem.workload, policy)
        over = overfull(problem, placed)
        if not over:
            return placed
        changed = _make_room(problem, policy, over, attempt, fixed)
        if changed is None:
            return None
        policy = changed
    return None


def overfull(problem: Problem, placed: Placed) -> dict[TierName, float]:
    """Give the bytes by which each tier is overfull. [B]"""
    over: dict[TierName, float] = {}
    for tier, uses in placed.peak_memory().items():
        _, most = memory_limit(problem.hardware, tier, pinned=placed.policy.pinned)
        excess = sum(uses.values()) - most
        if excess > 1.0:
            over[tier] = excess
    return over


def _make_room(
    problem: Problem, policy: Policy, over: dict[TierName, float], attempt: int, fixed: Collection[str]
) -> Policy | None:
    """Move weights from overfull tiers to slower ones, a tensor more with every attempt; else drop groups."""
    shape = shape_of(policy)
    weights = total_weight_bytes(problem.model, shape)
    matrices = [weight for weight in problem.model.layer_weights() if weight.is_matrix]
    step = min(problem.model.weight_bytes((each,), shape.weight_bits, shape.quant_group) for each in matrices)
    split: dict[TierName, float] = {tier: getattr(policy.weights, tier) for tier in TIERS}
    before = dict(split)
    for tier, slower in zip(TIERS, TIERS[1:], strict=False):
        if tier in over and "weights" not in fixed:
            moved = min(split[tier], (over[tier] + attempt * step) / weights)
            split[tier] -= moved
            split[slower] += moved
    if split != before:
        return policy.model_copy(update={"weights": normal_split(*split.values())})
    if "num_groups" in fixed:
        return None
    cohorts = policy.cohorts(problem.workload.gen_len)
    fewer = (math.floor(policy.num_groups * 0.97) // cohorts) * cohorts
    return policy.model_copy(update={"num_groups": fewer}) if fewer >= cohorts else None


def passes_within(num_layers: int, gen_len: int, policy: Policy, tasks: int) -> int:
    """Give how many passes a simulation may play so that it stays within a number of tasks."""
    a_pass = policy.num_groups * (num_layers + 2) * _TASKS_PER_CELL
    return max(5, min(gen_len + 1, tasks // a_pass))


def evaluate(
    problem: Problem, candidate: Candidate, fixed: Collection[str] = (), tasks: int = RANKING_TASKS
) -> Evaluated | None:
    """Lay out and simulate a candidate; None if its layout does not fit."""
    placed = fit(problem, candidate.policy, fixed)
    if placed is None:
        return None
    passes = passes_within(problem.model.num_layers, problem.workload.gen_len, placed.policy, tasks)
    prediction, simulation = simulate(placed, problem.hardware, passes)
    return Evaluated(candidate, placed, prediction, simulation, candidate)
