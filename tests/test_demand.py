"""Law 2: demand with placement left open equals the sum over the tasks of a period.

Equality needs three things. No latencies, since the open form cannot know which copies a placement avoids,
nor which files are read at the same time. Splits that fall on whole rows of every tensor, since the open form
has one fraction for all layers. And a whole period with every pass played. With whole tensors the layers
differ: there the work of weights is compared in bytes with the layout, and all other work with the open form.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost import Rates, limit
from simulator.demand import period_demand, resource_limits
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.layers import first_loaded
from simulator.layout import Placed
from simulator.operations import LAYER_OPERATIONS, OP
from simulator.policy import PLACEMENT, FloatArray
from simulator.policy import placed as form
from simulator.runtime import load_runtime
from simulator.schedule import Schedule
from simulator.simulate import capacity_draws, rates_of, task_seconds
from simulator.work import staged
from tests.strategies import layouts, machines

OF_WEIGHTS = (*LAYER_OPERATIONS, "read_embeddings", "load_embeddings")


def open_demand(placed: Placed, rates: Rates, placement: FloatArray) -> FloatArray:
    """Evaluate the demand of passes with and without an admission. [2, R]"""
    phases = period_demand(
        placed.model,
        placed.shape,
        placed.runtime,
        placed.workload,
        rates,
        gpu_batch=placed.policy.gpu_batch,
        prompt_batch=placed.policy.prompts_together,
        stagger=placed.policy.stagger,
        prefetch=placed.policy.prefetch,
    )
    return np.array([phase.at(placement, placed.policy.block) for phase in phases])


def summed_demand(schedule: Schedule, placed: Placed, rates: Rates, tasks: FloatArray) -> FloatArray:
    """Sum the seconds and draws of tasks in passes with and without an admission, per period. [2, R]"""
    seconds = task_seconds(schedule, rates)
    draws, _ = capacity_draws(schedule, rates, seconds)
    lanes = np.eye(len(LANES))[schedule.lane] * seconds[:, None]
    uses = np.concatenate([lanes, draws], axis=1)
    played = schedule.window.passes
    weight = np.array([one.weight for one in played])[schedule.pass_index]
    admits = np.array([any(position == 0 for _, position in one.cohorts) for one in played])
    of_phase = np.stack([admits, ~admits])[:, schedule.pass_index] * weight * tasks
    cohort = placed.policy.block / placed.policy.cohorts(placed.workload.passes)
    periods = schedule.window.sequences / cohort
    return of_phase @ uses / periods


@given(layouts(finite=False, grain="row", overheads=False, eighths=True), machines(latency=False))
def test_open_demand_equals_the_sum_over_tasks(placed, hardware):
    """On every lane and capacity, in passes with and without an admission, when nothing is rounded."""
    rates, schedule = rates_of(placed, hardware), generate(placed, None)
    summed = summed_demand(schedule, placed, rates, np.ones(len(schedule)))
    np.testing.assert_allclose(open_demand(placed, rates, placed.placement), summed, rtol=1e-9, atol=1e-18)


@given(layouts(finite=False, grain="tensor", overheads=False), machines(latency=False))
def test_with_whole_tensors_all_but_weights_is_equal(placed, hardware):
    """Work other than loading weights and looking up embeddings depends on fractions alone."""
    rates, schedule = rates_of(placed, hardware), generate(placed, None)
    others = ~np.isin(schedule.operation, [OP[name] for name in OF_WEIGHTS])
    placement = placed.placement.copy()
    placement[[PLACEMENT.index(f"weights_{tier}") for tier in ("gpu", "cpu", "disk")]] = [1, 0, 0]
    summed = summed_demand(schedule, placed, rates, others)
    np.testing.assert_allclose(open_demand(placed, rates, placement), summed, rtol=1e-9, atol=1e-18)


@given(layouts(finite=False))
def test_weights_are_loaded_as_laid_out(placed):
    """In every pass the bytes moved are those of all layers off the GPU; some engines load the embedding too.

    A mapped file goes to the GPU by a relay of its own; what the host stages lies on the CPU.
    """
    schedule = generate(placed, None)
    _, on_cpu, on_disk = placed.layer_bytes[first_loaded(placed.runtime) :].sum(axis=0)
    mapped = placed.runtime.disk_io == "mapped"
    due = {
        "read_weights": on_disk,
        "load_weights": on_cpu if mapped else on_cpu + on_disk,
        "relay_weights": on_disk if mapped else 0.0,
        "stage_weights": on_cpu if staged(placed.runtime, placed.shape, "weights") else 0.0,
    }
    for name, expected in due.items():
        of_pass = np.bincount(
            schedule.pass_index[schedule.where(name)],
            schedule.bytes[schedule.where(name)],
            minlength=len(schedule.window.passes),
        )
        np.testing.assert_allclose(of_pass, np.full(len(of_pass), expected), rtol=1e-12)


@given(layouts(finite=False, grain="row", eighths=True), machines(latency=True))
def test_latencies_only_add(placed, hardware):
    """With latencies the tasks need at least the open demand: it leaves out those that a placement avoids."""
    rates, schedule = rates_of(placed, hardware), generate(placed, None)
    summed = summed_demand(schedule, placed, rates, np.ones(len(schedule)))
    assert (open_demand(placed, rates, placed.placement) <= summed * (1 + 1e-9) + 1e-18).all()


@given(layouts(finite=False), machines(), st.floats(0.1, 3.0))
def test_demand_is_affine(placed, hardware, scale):
    """Demand of a sum of placements is the sum of demands, the part of the constant counted once."""
    rates = rates_of(placed, hardware)
    constant = form(one=1)
    one = placed.placement
    two = (one - constant) * scale + constant
    nothing = open_demand(placed, rates, constant)
    grown = open_demand(placed, rates, two) - nothing
    np.testing.assert_allclose(
        grown, scale * (open_demand(placed, rates, one) - nothing), atol=1e-9, rtol=1e-6
    )


@given(layouts(finite=False), machines())
def test_demand_grows_with_the_block(placed, hardware):
    """A larger block needs more in all, and less per sequence; nothing is negative."""
    rates = rates_of(placed, hardware)
    small = open_demand(placed, rates, placed.placement)
    policy = placed.policy.model_copy(update={"num_groups": 2 * placed.policy.num_groups})
    large = open_demand(replace(placed, policy=policy), rates, placed.placement)
    assert (small >= -1e-18).all()
    assert (large >= small * (1 - 1e-12)).all()
    assert (large <= 2 * small * (1 + 1e-12) + 1e-18).all()


@given(machines())
def test_resources_are_lanes_and_capacities(hardware):
    """A lane offers one second per second; a capacity its rate."""
    limits = resource_limits(Rates(hardware, load_runtime("reference")))
    assert limits[: len(LANES)].tolist() == [1.0] * len(LANES)
    assert limits[len(LANES) :].tolist() == [limit(one) for one in hardware.capacities.values()]
