"""The certificate of a plan: its throughput against the ceiling, its bytes against the window bound."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from planner.blocks import real_share
from planner.bounds import kv_bytes_read, window_bound, zigzag_factor
from planner.ceiling import ceiling
from planner.choices import Options, allowed_shapes
from planner.evaluate import Evaluated
from planner.plan import Bounds
from planner.problem import Problem
from planner.program import Program
from planner.search import SearchResult
from simulator.layers import first_loaded
from simulator.operations import OP
from simulator.policy import CACHE_ON_CPU_ENGINE
from simulator.simulate import Simulation


def certificate(problem: Problem, options: Options, result: SearchResult, best: Evaluated) -> Bounds:
    """Hold an evaluated plan against everything that bounds it."""
    policy = best.placed.policy
    top = ceiling(problem, allowed_shapes(options))
    moved, least = io_bytes(problem, best)
    outer = replace(best.candidate.outer, smallest_batch=None, pins=options.pins.placement())
    program = Program(problem, outer, policy.block).solve()
    lp = best.candidate.lp_tok_s
    if program is not None:
        lp = program.throughput * real_share(problem, outer, policy.block)
    if problem.workload.num_prompts is not None:
        # The program is about the steady state, in which a queue of less than a block never is.
        lp = min(lp, top.throughput_tok_s)
    prompts = problem.workload.num_prompts
    rows = math.inf if prompts is None else max(1.0, prompts / policy.gpu_batch)
    return Bounds(
        lp_tok_s=lp,
        search_tok_s=max(result.bound_tok_s, lp),
        ceiling_tok_s=top.throughput_tok_s,
        ceiling_bound_by=top.bound_by,
        io_bytes=moved,
        io_lower_bound_bytes=least,
        zigzag_factor=zigzag_factor(policy.num_groups, rows),
    )


def io_bytes(problem: Problem, best: Evaluated) -> tuple[float, float]:
    """Give the bytes read into GPU memory per sequence, and the least that any schedule reads.

    Counted are weights and KV cache, as in the window bound (docs/bounds.md, section 4). The cache that the
    CPU attends to does not cross; what fits on the GPU may be there before the run; activations and rows of
    the embedding table are left out.
    """
    placed, policy = best.placed, best.placed.policy
    model, workload, tiers = problem.model, problem.workload, problem.hardware.tiers
    simulation = best.simulation
    assert simulation is not None
    loads = ("load_weights", "relay_weights", "load_cache")
    moved = sum(_counted_bytes(simulation, name) for name in loads)
    stored = model.kv_bytes(policy.cache_bits, policy.quant_group)
    read = kv_bytes_read(model.num_layers * stored, workload.own_len, workload.passes)
    weights = float(placed.layer_bytes[first_loaded(placed.runtime) :].sum())
    gpu, room = tiers["gpu"].usable, sum(tier.usable for tier in tiers.values()) - weights
    crossing = 1.0 - float(CACHE_ON_CPU_ENGINE @ placed.placement)
    per_sequence = moved / simulation.schedule.window.sequences
    if workload.num_prompts is not None:
        total = window_bound(
            read * workload.num_prompts,
            weights,
            gpu,
            room,
            workload.passes,
            crossing=min(1.0, max(0.0, crossing)),
            preloaded_bytes=gpu,
        )
        return per_sequence, total / workload.num_prompts
    if weights < gpu:
        return per_sequence, 0.0
    # A queue without end: k / C sweeps over the weights per sequence.
    return per_sequence, max(0.0, crossing) * read + read / room * (weights - gpu)


def _counted_bytes(simulation: Simulation, operation: str) -> float:
    """Sum the bytes of an operation over the passes played, as often as each counts. [B]"""
    schedule = simulation.schedule
    tasks = schedule.operation == OP[operation]
    weights = np.array([one.weight for one in schedule.window.passes])
    return float(schedule.bytes[tasks] @ weights[schedule.pass_index[tasks]])
