"""From a candidate to a simulated plan: lay it out, make sure that it fits, play it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

from planner.blocks import Candidate, normal_split
from planner.problem import Problem
from planner.program import memory_limit
from simulator.hardware import TIERS, TierName
from simulator.layout import Placed, lay_out
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
        spare = spare_memory(problem, placed)
        if min(spare.values()) >= -1.0:
            return placed
        changed = _weights_moved(placed, spare, attempt) if "weights" not in fixed else None
        if changed is None and "num_groups" not in fixed:
            changed = _groups_dropped(placed, spare)
        if changed is None:
            return None
        policy = changed
    return None


def spare_memory(problem: Problem, placed: Placed) -> dict[TierName, float]:
    """Give the bytes that are free on each tier; below zero where it is overfull. [B]"""
    pinned = placed.policy.pinned
    return {
        tier: memory_limit(problem.hardware, tier, pinned=pinned)[1] - sum(uses.values())
        for tier, uses in placed.peak_memory().items()
    }


def _weights_moved(placed: Placed, spare: dict[TierName, float], attempt: int) -> Policy | None:
    """Move weights from overfull tiers to slower ones that have room, a tensor more with every attempt."""
    policy, shape, model = placed.policy, placed.shape, placed.model
    weights = total_weight_bytes(model, shape)
    matrices = [weight for weight in model.layer_weights() if weight.is_matrix]
    step = min(model.weight_bytes((each,), shape.weight_bits, shape.quant_group) for each in matrices)
    split: dict[TierName, float] = {tier: getattr(policy.weights, tier) for tier in TIERS}
    room = dict(spare)
    for tier, slower in itertools.pairwise(TIERS):
        moved = min(split[tier] * weights, attempt * step - room[tier])
        if room[tier] < -1.0 and moved > 0.0:
            split[tier] -= moved / weights
            split[slower] += moved / weights
            room[tier], room[slower] = room[tier] + moved, room[slower] - moved
    if min(room.values()) < -1.0:
        return None  # what overflows the last tier has nowhere to go
    return policy.model_copy(update={"weights": normal_split(*split.values())})


def _groups_dropped(placed: Placed, spare: dict[TierName, float]) -> Policy | None:
    """Drop as many groups as make up for what is overfull, an equal number in every cohort.

    Where groups take their memory need not be where it is short: weights move into what they leave.
    """
    policy, peaks = placed.policy, placed.peak_memory()
    growing = {item.name for item in placed.items() if item.scales}
    by_tier = (sum(size for name, size in uses.items() if name in growing) for uses in peaks.values())
    a_group = max(by_tier) / policy.num_groups
    short = -sum(room for room in spare.values() if room < 0.0)
    needed = max(1, math.ceil(short / a_group)) if a_group > 0.0 else policy.num_groups
    cohorts = policy.cohorts(placed.workload.gen_len)
    fewer = (policy.num_groups - needed) // cohorts * cohorts
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
