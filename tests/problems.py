"""Small questions for the planner: drawn machines that are too small for drawn models, and their arithmetic.

``evaluate`` recomputes what a placement takes from the schedule's forms, without the placement program.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

from planner.problem import Outer, Problem, memory_limit
from simulator.cost import Rates
from simulator.demand import Demand, period_demand, resource_limits
from simulator.hardware import LANES, TIERS, HardwareProfile
from simulator.layers import CellKind, Shape, layer_weight_bytes, total_weight_bytes
from simulator.memory import Batch, lookahead, memory_items, moments
from simulator.model_config import load_model
from simulator.policy import PLACEMENT, FloatArray, cohorts_in_flight
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.workload import Workload
from tests.strategies import machines, models, runtimes, workloads


def problem_of(
    hardware: str, model: str, *, runtime: str = "reference", sets: tuple[str, ...] = (), **work: int
) -> Problem:
    """Ask about a shipped machine and a model of the catalogue."""
    return Problem(load_profile(hardware, sets), load_model(model), Workload(**work), load_runtime(runtime))


def with_memory(hardware: HardwareProfile, **sizes: float) -> HardwareProfile:
    """Give a machine with other usable sizes of its tiers. [B]"""
    tiers = {
        name: tier.model_copy(
            update={"capacity": sizes.get(name, tier.capacity), "reserve": 0.0, "pinnable": None}
        )
        for name, tier in hardware.tiers.items()
    }
    return hardware.model_copy(update={"tiers": tiers})


@st.composite
def problems(draw: st.DrawFn, *, finite: bool | None = False) -> Problem:
    """Draw a problem whose memories are of the order of what the model and some sequences need."""
    model, runtime = draw(models()), draw(runtimes())
    workload = draw(workloads(finite=finite, runtime=runtime))
    weights = total_weight_bytes(model, Shape(), load_runtime("reference"))
    one = model.num_layers * workload.context_len * model.kv_bytes_per_token
    size = draw(st.sampled_from([1, 4])) * one
    share = st.sampled_from([0.05, 0.3, 0.7, 1.5])
    layer = weights / model.num_layers
    hardware = with_memory(
        draw(machines()),
        gpu=2 * layer + draw(share) * weights + (8 + draw(st.sampled_from([0, 8]))) * size,
        cpu=2 * layer + draw(share) * weights + draw(st.sampled_from([2, 10, 40])) * size + runtime.relay,
        disk=draw(st.sampled_from([0.2, 2.0])) * weights + 20 * size,
    )
    return Problem(hardware, model, workload, runtime)


@st.composite
def outers(draw: st.DrawFn, problem: Problem) -> Outer:
    """Draw the choices outside the program that the problem's engine can run."""
    stagger = None
    if "diagonal" in problem.runtime.schedules and problem.workload.passes > 1:
        stagger = draw(st.one_of(st.none(), st.integers(1, problem.workload.passes - 1)))
    return Outer(
        gpu_batch=draw(st.sampled_from([1, 2, 4])),
        stagger=stagger,
        shape=Shape(draw(st.sampled_from([16, 16, 4])), draw(st.sampled_from([16, 16, 4])), 16),
        pinned=draw(st.booleans()),
        prefetch=draw(st.integers(1, 2)),
    )


@st.composite
def cases(draw: st.DrawFn, *, finite: bool | None = False) -> tuple[Problem, Outer]:
    """Draw a problem with choices for it."""
    problem = draw(problems(finite=finite))
    return problem, draw(outers(problem))


def unit(problem: Problem, outer: Outer) -> int:
    """Give the smallest step of the block."""
    return outer.gpu_batch * cohorts_in_flight(outer.stagger, problem.workload.passes)


def seconds_per_sequence(problem: Problem, outer: Outer, block: int, placements: FloatArray) -> FloatArray:
    """Give the period's time over the block under perfect overlap: [P, len(PLACEMENT)] becomes [P]. [s]"""
    rates = Rates(problem.hardware, problem.runtime, problem.model.dtype, outer.pinned)
    limits = resource_limits(rates)
    phases = period_demand(
        problem.model,
        outer.shape,
        problem.runtime,
        problem.workload,
        rates,
        gpu_batch=outer.gpu_batch,
        prompt_batch=outer.prompts_together(problem),
        stagger=outer.stagger,
        prefetch=outer.prefetch,
    )
    whole, apart = 0.0, np.zeros(len(placements))
    for phase in phases:
        scaling = block * (placements @ phase.per_sequence.T)
        demand = (scaling + _recurring(problem, outer, placements, phase.per_pass)) / limits
        early = (scaling + _recurring(problem, outer, placements, phase.per_pass - phase.carry)) / limits
        turns, period = _turns(problem, outer, block, placements, phase)
        apart += np.maximum(0.0, np.column_stack([early, turns]).max(axis=1))
        whole = whole + np.column_stack([demand, period])
    return np.asarray(np.maximum(apart, np.asarray(whole).max(axis=1)) / block)


def _turns(
    problem: Problem, outer: Outer, block: int, placements: FloatArray, phase: Demand
) -> tuple[FloatArray, FloatArray]:
    """Give what runs in turn takes in a phase, and in its share of the period: one column, or none. [s]

    One group waits for its own attention. After a barrier every group does. A serial engine does one thing
    after the other, and of the loads of a layer, which run side by side, the copy over the link counts.
    """
    cells, loads, beside, carry = ("gpu", "cpu"), ("gpu", "cpu"), phase.beside_cpu, 1.0
    kind = problem.runtime.synchronization
    if kind == "serial":
        cells, loads, beside = LANES, ("gpu", "h2d"), 0.0 * phase.beside_cpu
    elif kind == "dependency":
        if block != outer.gpu_batch:
            return np.zeros((len(placements), 0)), np.zeros((len(placements), 0))
        carry = 0.0
    of_cells, of_loads = ([LANES.index(lane) for lane in lanes] for lanes in (cells, loads))
    once = phase.per_pass[of_loads].sum(axis=0)[None]
    ahead = carry * phase.carry[of_cells].sum(axis=0)[None]
    each = block * (placements @ (phase.per_sequence[of_cells].sum(axis=0) - beside))[:, None]
    turns = each + _recurring(problem, outer, placements, once - ahead)
    return turns, each + _recurring(problem, outer, placements, once)


def _recurring(problem: Problem, outer: Outer, placements: FloatArray, forms: FloatArray) -> FloatArray:
    """Evaluate what recurs once a pass: [P, 12] and [R, 12] become [P, R].

    Of weights, only layers move, and the embedding table is off the GPU first. What is saved stays with the
    weights as they are placed.
    """
    whole = total_weight_bytes(problem.model, outer.shape, problem.runtime)
    table = layer_weight_bytes(problem.model, outer.shape, problem.runtime, CellKind.EMBED)
    table *= problem.runtime.grain == "tensor" and not problem.runtime.loads_embeddings
    wc, wd = PLACEMENT.index("weights_cpu"), PLACEMENT.index("weights_disk")
    others = forms.copy()
    others[:, [wc, wd]] = 0.0
    total = placements @ others.T
    away = placements[:, wc] + placements[:, wd]
    for share, form in ((away, forms[:, wc]), (placements[:, wd], forms[:, wd] - forms[:, wc])):
        moved = np.maximum(0.0, (whole * share - table) / (whole - table))
        total += np.where(form > 0.0, np.outer(moved, form), np.outer(share, form))
    return total


def memory_used(problem: Problem, outer: Outer, block: int, placements: FloatArray) -> FloatArray:
    """Give the share of every tier's memory that placements fill: [P, len(PLACEMENT)] becomes [P, 3]."""
    batch = Batch(outer.gpu_batch, outer.prompts_together(problem), outer.prefetch, outer.stagger)
    ahead = lookahead(problem.runtime, block // outer.gpu_batch)
    at_moments = moments(problem.runtime, problem.workload)
    used = np.zeros((len(at_moments), len(placements), len(TIERS)))
    for at, moment in zip(used, at_moments, strict=True):
        for item in memory_items(
            problem.model, outer.shape, problem.runtime, problem.workload, batch, ahead, moment
        ):
            scale = item.slots * (block if item.scales else 1)
            at[:, TIERS.index(item.tier)] += scale * (placements @ item.form)
    most = [memory_limit(problem.hardware, tier, pinned=outer.pinned)[1] for tier in TIERS]
    return np.asarray(used.max(axis=0) / np.maximum(most, 1e-9))


def simplex(parts: int, steps: int) -> FloatArray:
    """List all splits into some parts in multiples of 1 / steps."""
    rows = [
        np.diff([-1, *cut, steps + parts - 1]) - 1
        for cut in itertools.combinations(range(steps + parts - 1), parts - 1)
    ]
    return np.array(rows) / steps


def grid(weights: int, cache: int, activations: int) -> FloatArray:
    """List placements on a grid: all combinations of splits in so many steps. [P, len(PLACEMENT)]"""
    parts = [simplex(3, weights), simplex(5, cache), simplex(3, activations)]
    counts = [len(part) for part in parts]
    index = np.indices(counts).reshape(3, -1)
    columns = [np.ones((math.prod(counts), 1)), *(part[i] for part, i in zip(parts, index, strict=True))]
    rows = np.concatenate(columns, axis=1)
    assert rows.shape[1] == len(PLACEMENT)
    return rows
