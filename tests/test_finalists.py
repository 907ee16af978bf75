"""Which candidates are simulated: who is left out could not win, and no neighbour of a plan is faster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choices import Options, Quantize
from planner.evaluate import evaluate_candidate
from planner.finalists import choose, simulated
from planner.make_plan import Request, make_plan
from planner.pins import Pins
from planner.plan import Plan
from planner.problem import Problem
from planner.search import search
from simulator.errors import InfeasibleError
from tests.problems import problem_of, problems

DRIVES = ("capacity=x2", "read.peak=x2", "read.bandwidth=x2", "write.peak=x2", "write.bandwidth=x2")
TWO_SETS = tuple(f"{'tiers.disk.' if 'capacity' in each else 'links.disk_'}{each}" for each in DRIVES)
#: What a neighbour must promise, to be simulated, and gain, to be taken; pinned plans may also choose again.
TOLERANCE = 0.01


def speed(problem: Problem, quantize: Quantize, pins: Pins | None = None) -> tuple[Plan, float]:
    """Plan, with some variables pinned."""
    plan = make_plan(Request(problem, Options(quantize, pins=pins or Pins())))
    return plan, plan.predictions.throughput_tok_s


@settings(max_examples=10)
@given(problems(finite=None))
def test_who_is_left_out_could_not_win(problem: Problem) -> None:
    """The winner among the candidates that are simulated is that among all of them."""
    result = search(problem, Options())
    candidates = result.candidates[:8]
    tried = simulated(result.solver, candidates)
    every = [evaluate_candidate(result.solver, each) for each in candidates]
    fitting = [each for each in every if each is not None]
    assert bool(tried) == bool(fitting)
    if tried:
        assert choose(tried).placed.policy == choose(fitting).placed.policy
        assert len(tried) <= len(fitting)


def test_losers_are_left_out() -> None:
    """Where the first nearly reaches the program's answer, only candidates as good as that are simulated."""
    problem = problem_of("t4-16", "opt-175b", prompt_len=512, gen_len=32)
    result = search(problem, Options())
    tried = simulated(result.solver, result.candidates)
    reached = tried[0].prediction.throughput_tok_s
    assert reached > 0.99 * result.candidates[0].lp_tok_s
    assert 1 <= len(tried) <= sum(each.lp_tok_s > 0.999 * reached for each in result.candidates)
    assert len(tried) < len(result.candidates)


CASES = {
    "disk": ("t4-16", "opt-6.7b", TWO_SETS, 512, 32, "both"),
    "contention": ("rtx-4090", "opt-175b", (), 512, 32, "both"),
    "no disk": ("a100-80", "opt-6.7b", (), 512, 32, "none"),
}


@pytest.mark.parametrize(("machine", "model", "sets", "prompt", "out", "quantize"), CASES.values(), ids=CASES)
def test_no_neighbour_is_faster(
    machine: str, model: str, sets: tuple[str, ...], prompt: int, out: int, quantize: Quantize
) -> None:
    """Half or twice as large a group, with the same block: a plan with these pinned is no faster."""
    problem = problem_of(machine, model, sets=sets, prompt_len=prompt, gen_len=out)
    plan, best = speed(problem, quantize)
    policy = plan.policy
    for size, groups in (
        (policy.gpu_batch // 2, policy.num_groups * 2),
        (policy.gpu_batch * 2, policy.num_groups // 2),
        (policy.gpu_batch, policy.num_groups // 2),
    ):
        pins = {"gpu_batch": size, "num_groups": groups}
        if policy.stagger is not None:
            pins["stagger"] = policy.stagger
        if size and groups and groups % policy.cohorts(out) == 0:
            try:
                _, neighbour = speed(problem, quantize, Pins(tuple(pins.items())))
            except InfeasibleError:
                continue
            assert neighbour <= best * (1 + TOLERANCE), pins


@settings(max_examples=6)
@given(
    st.sampled_from(["opt-6.7b", "opt-30b"]),
    st.sampled_from([(512, 32), (128, 512)]),
    st.sampled_from(["none", "both"]),
)
def test_more_drives_are_no_loss(model: str, work: tuple[int, int], quantize: Quantize) -> None:
    """With twice the rates and the room of the disks no plan is slower."""
    one = problem_of("t4-16", model, prompt_len=work[0], gen_len=work[1])
    two = replace(one, hardware=problem_of("t4-16", model, sets=TWO_SETS, prompt_len=1, gen_len=1).hardware)
    assert speed(two, quantize)[1] >= speed(one, quantize)[1] * (1 - TOLERANCE)
