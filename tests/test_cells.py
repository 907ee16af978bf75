"""Cells: nothing is embedded before what it needs, or what it displaces, has been issued."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.check import check
from simulator.generate import generate
from simulator.layout import Placed, lay_out
from simulator.policy import CpuAttention, Policy
from simulator.runtime import load_runtime
from simulator.schedule import Schedule
from simulator.workload import Workload
from tests.strategies import all_on, models, splits


@st.composite
def admitting_in_every_pass(draw: st.DrawFn) -> Placed:
    """Draw a diagonal of stagger 1 that runs ahead, some groups too few for its lookahead, with parts."""
    ahead, parts, per_cohort = draw(st.integers(1, 6)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    gen_len = draw(st.integers(2, 4))
    policy = Policy(
        gpu_batch=2 * parts,
        num_groups=gen_len * per_cohort,
        weights=draw(splits()),
        cache=all_on("cpu"),
        activations=draw(splits()),
        cpu_attention=CpuAttention(cpu=1),
        stagger=1,
        prompt_batch=2,
    )
    runtime = load_runtime("reference").model_copy(update={"attention_lookahead": ahead})
    queue = draw(st.sampled_from([None, 5 * policy.block]))
    workload = Workload(prompt_len=4, gen_len=gen_len, num_prompts=queue)
    return lay_out(draw(models(max_layers=1)), runtime, workload, policy)


def issued(schedule: Schedule, name: str, pass_index: int, group: int) -> list[int]:
    """List the tasks of an operation in a pass, for a group."""
    at = schedule.where(name) & (schedule.pass_index == pass_index) & (schedule.group == group)
    return np.nonzero(at)[0].tolist()


@given(admitting_in_every_pass())
def test_prompts_follow_the_heads_of_the_prompts_whose_place_they_take(placed):
    """A cohort's prompts are embedded after the heads of the same groups of the cohort before.

    Both use the same place for activations, whatever the parts.
    """
    schedule = generate(placed, None)
    check(schedule, placed)
    per_cohort = placed.policy.num_groups // placed.policy.cohorts(placed.workload.gen_len)
    admitted = [[c for c, t in one.cohorts if t == 0] for one in schedule.window.passes]
    compared = 0
    for index, (before, now) in enumerate(itertools.pairwise(admitted)):
        for old, new in zip(before, now, strict=False):
            for i in range(per_cohort):
                heads = issued(schedule, "head", index, old * per_cohort + i)
                embedded = issued(schedule, "embed", index + 1, new * per_cohort + i)
                assert max(heads) < min(embedded)
                compared += 1
    assert compared


@given(admitting_in_every_pass())
def test_a_token_is_embedded_after_it_was_chosen(placed):
    """A group is embedded after its head of the pass before has been issued."""
    schedule = generate(placed, None)
    for index in range(1, len(schedule.window.passes)):
        here = schedule.pass_index == index
        for group in np.unique(schedule.group[here & schedule.where("embed")]).tolist():
            heads = issued(schedule, "head", index - 1, group)
            assert max(heads, default=-1) < min(issued(schedule, "embed", index, group))
