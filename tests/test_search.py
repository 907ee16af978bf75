"""The outer search loses to nothing that it could have found, and finds it with few programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.blocks import Solver, best_block, candidate_of, queue_factor, real_share
from planner.choices import GROUP_SIZES, Options, fits_queue, group_sizes, roots, unit_of
from planner.pins import parse_pins
from planner.problem import Problem
from planner.program import MAX_GROUPS, Program
from planner.search import TOLERANCE, SearchResult, search
from simulator.errors import InputError
from simulator.policy import Policy
from tests.problems import problem_of, problems, with_memory

SEARCHES = 15  # of drawn problems per test: each takes some dozens of programs


def small_machine(problem: Problem) -> Problem:
    """Shrink a problem's machine so that only small blocks fit and brute force is cheap."""
    model, workload = problem.model, problem.workload
    weights = 2.0 * model.num_parameters
    one = model.num_layers * workload.context_len * model.kv_bytes_per_token
    hardware = with_memory(problem.hardware, gpu=0.6 * weights + 4 * one, cpu=0.5 * weights, disk=2 * one)
    return replace(problem, hardware=hardware)


def brute_force(problem: Problem, options: Options, most: int) -> float:
    """Solve every group size and every block up to a number of sequences; give the best throughput."""
    best = 0.0
    for root in roots(problem, options):
        for size in range(1, most + 1):
            outer = replace(root, gpu_batch=size)
            unit = unit_of(problem, outer)
            for block in range(unit, min(most, MAX_GROUPS * size) + 1, unit):
                solution = Program(problem, outer, block).solve()
                if solution is not None and fits_queue(problem, outer, block):
                    best = max(best, solution.throughput * queue_factor(problem, outer, block))
    return best


def kept(problem: Problem, result: SearchResult, most: int) -> float:
    """Give the search's best; all its blocks must lie in the range of the brute force."""
    assert all(each.policy.block <= most for each in result.candidates)
    return result.candidates[0].effective_tok_s if result.candidates else 0.0


@pytest.mark.parametrize("schedule", ["zigzag", "auto"])
@pytest.mark.parametrize("num_prompts", [None, 7])
def test_no_worse_than_brute_force(schedule: str, num_prompts: int | None) -> None:
    """On a machine for a few sequences the search comes within its tolerance of every size and block."""
    base = problem_of("t4-16", "opt-1.3b", prompt_len=64, gen_len=6)
    problem = small_machine(base)
    problem = replace(problem, workload=base.workload.model_copy(update={"num_prompts": num_prompts}))
    options = Options(schedule=schedule)  # type: ignore[arg-type]
    best = brute_force(problem, options, most=30)
    assert best > 0
    found = kept(problem, search(problem, options), most=30)
    # Group sizes between those tried can be better by what their kernels and rounding of blocks make.
    assert found >= best * (1 - TOLERANCE - 0.03)


@settings(max_examples=SEARCHES)
@given(problems(), st.sampled_from([1, 2, 4]))
def test_no_group_size_of_its_own_is_better(problem: Problem, size: int) -> None:
    """No group size of the list, solved on its own, beats the search by more than its tolerance."""
    result = search(problem, Options())
    best = result.candidates[0].effective_tok_s if result.candidates else 0.0
    solver = Solver(problem, Options())
    for root in roots(problem, Options()):
        outer = replace(root, gpu_batch=size)
        relaxed = solver.solve(outer)
        candidate = best_block(solver, outer, relaxed.block) if relaxed is not None else None
        if candidate is not None:
            assert candidate.effective_tok_s <= best * (1 + TOLERANCE) * (1 + 1e-6)
            assert candidate.lp_tok_s <= result.bound_tok_s * (1 + 1e-6)


@settings(max_examples=SEARCHES // 2)
@given(problems(), st.sampled_from(["none", "auto"]))
def test_two_searches_are_equal(problem: Problem, quantize: str) -> None:
    """The same question has the same candidates in the same order."""
    options = Options(quantize=quantize)  # type: ignore[arg-type]
    first, second = (search(problem, options) for _ in range(2))
    assert [each.policy for each in first.candidates] == [each.policy for each in second.candidates]
    assert first.bound_tok_s == second.bound_tok_s
    assert first.solver.programs == second.solver.programs


@pytest.mark.parametrize("quantize", ["none", "auto"])
@pytest.mark.parametrize(
    ("hardware", "model"), [("t4-16", "opt-175b"), ("a100-80", "opt-175b"), ("t4-16", "opt-6.7b")]
)
def test_few_programs_are_enough(hardware: str, model: str, quantize: str) -> None:
    """With every outer choice open a search takes fewer than 150 programs."""
    result = search(problem_of(hardware, model), Options(quantize=quantize))  # type: ignore[arg-type]
    assert result.solver.programs < 150
    assert result.candidates


def test_candidates_are_in_order_and_bounded() -> None:
    """Candidates come best first, and none is above the bound on every policy searched."""
    result = search(problem_of("t4-16", "opt-30b"), Options(quantize="auto"))
    speeds = [each.effective_tok_s for each in result.candidates]
    assert speeds == sorted(speeds, reverse=True)
    assert all(each.lp_tok_s <= result.bound_tok_s * (1 + 1e-9) for each in result.candidates)
    shapes = {each.outer.shape for each in result.candidates}
    assert len(shapes) > 1


PINS = [
    "gpu_batch=20",
    "num_groups=5",
    "weights=20/80/0",
    "cache=0/100/0",
    "cache=10/60/30",
    "activations=0/100/0",
    "cpu_attention=0.25",
    "cpu_attention=1",
    "weight_bits=4",
    "cache_bits=8",
    "quant_group=128",
    "stagger=8",
    "prompt_batch=4",
    "pinned=false",
    "prefetch=2",
]


def pinned_value(policy: Policy, name: str) -> object:
    """Read a pinned variable off a policy."""
    value = getattr(policy, name)
    if name in ("weights", "cache", "activations"):
        return (value.gpu, value.cpu, value.disk)
    if name == "cpu_attention":
        return {value.cpu, value.disk}
    return value


@pytest.mark.parametrize("text", PINS)
def test_pins_are_kept(text: str) -> None:
    """What is fixed comes out as it went in, in every candidate, and the rest is still searched."""
    problem, options = problem_of("t4-16", "opt-30b"), Options(pins=parse_pins((text,)))
    result = search(problem, options)
    assert result.candidates
    ((name, value),) = options.pins.values
    for candidate in result.candidates:
        found = pinned_value(candidate.policy, name)
        if name in ("weights", "cache", "activations"):
            assert found == pytest.approx(value, abs=1e-12)
        else:
            assert found == ({value} if name == "cpu_attention" else value)
    others = {(each.policy.gpu_batch, each.policy.num_groups) for each in result.candidates}
    assert len(others) > 1
    free = search(problem, Options()).candidates[0].effective_tok_s
    if not name.endswith("bits"):  # the default does not quantise
        # A pinned group size need not be of the list, and may fit a whole block better than those of it.
        assert result.candidates[0].effective_tok_s <= free * (1.02 if name == "gpu_batch" else 1 + TOLERANCE)


def test_everything_pinned_leaves_one_policy() -> None:
    """With every variable fixed, the one candidate is the policy that was asked for."""
    texts = ("gpu_batch=48", "num_groups=3", "weights=20/80/0", "cache=0/100/0", "activations=0/100/0")
    options = Options(
        schedule="zigzag", pins=parse_pins((*texts, "cpu_attention=1", "pinned=true", "prefetch=1"))
    )
    result = search(problem_of("t4-16", "opt-30b"), options)
    (only,) = result.candidates
    assert (only.policy.gpu_batch, only.policy.num_groups, only.policy.stagger) == (48, 3, None)
    assert result.solver.programs <= 3


@pytest.mark.parametrize(
    ("texts", "schedule", "runtime"),
    [
        (("gpu_batch=10", "prompt_batch=4"), "auto", "reference"),
        (("stagger=4", "num_groups=3"), "auto", "reference"),
        (("stagger=4",), "zigzag", "reference"),
        (("stagger=4",), "auto", "flexgen"),
        ((), "diagonal", "flexgen"),
    ],
)
def test_contradictions_are_refused(texts: tuple[str, ...], schedule: str, runtime: str) -> None:
    """Pins that cannot go together, with each other or with the engine, are an error that names one."""
    options = Options(schedule=schedule, pins=parse_pins(texts))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--"):
        search(problem_of("t4-16", "opt-30b", runtime=runtime), options)


@settings(max_examples=SEARCHES)
@given(problems(finite=True))
def test_blocks_are_no_larger_than_the_queue_needs(problem: Problem) -> None:
    """Only prompts count as throughput, and at most the last group of a block has places without one."""
    prompts = problem.workload.num_prompts
    assert prompts is not None
    for candidate in search(problem, Options()).candidates:
        policy = candidate.policy
        assert policy.gpu_batch <= prompts
        assert policy.block < prompts + policy.gpu_batch
        assert candidate.lp_tok_s <= candidate.solution.throughput * (1 + 1e-12)
        assert candidate.effective_tok_s <= candidate.lp_tok_s * (1 + 1e-12)
        if candidate.outer.stagger is None:
            blocks = -(-prompts // policy.block)
            real = prompts / (blocks * policy.block)
            assert candidate.effective_tok_s == pytest.approx(real * candidate.solution.throughput)


@settings(max_examples=SEARCHES)
@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 20), st.integers(1, 64))
def test_the_share_of_real_prompts(prompts: int, size: int, groups: int, gen_len: int) -> None:
    """A queue fills whole blocks but for the last: the share is prompts over places."""
    problem = problem_of("t4-16", "opt-125m", gen_len=gen_len, num_prompts=prompts)
    outer = replace(next(roots(problem, Options(schedule="zigzag"))), gpu_batch=size)
    block = size * groups
    assert real_share(problem, outer, block) == pytest.approx(prompts / (-(-prompts // block) * block))
    assert queue_factor(problem, outer, block) == real_share(problem, outer, block)
    spread = replace(outer, stagger=1)
    assert 0 < queue_factor(problem, spread, gen_len * size) <= real_share(problem, spread, gen_len * size)


def test_short_queues_are_divided_evenly() -> None:
    """37 prompts are computed as 37, 19, 13 or 10 at a time rather than as 32 and 5."""
    problem = problem_of("a100-80", "opt-30b", num_prompts=37)
    root = next(roots(problem, Options(schedule="zigzag")))
    sizes = group_sizes(problem, Options(), root)
    assert {37, 19, 13, 10} <= set(sizes)
    assert max(sizes) == 37
    best = search(problem, Options()).candidates[0]
    assert best.policy.block in (37, 38, 19, 39)


@settings(max_examples=SEARCHES)
@given(problems(), st.integers(1, 64))
def test_a_long_queue_is_like_one_without_end(problem: Problem, factor: int) -> None:
    """A queue of many thousand prompts makes the program's answer what it is for one that never ends."""
    options = Options(schedule="zigzag" if "zigzag" in problem.runtime.schedules else "row")
    endless = search(problem, options)
    workload = problem.workload.model_copy(update={"num_prompts": 100_000 * factor})
    finite = search(replace(problem, workload=workload), options)
    assert bool(finite.candidates) == bool(endless.candidates)
    if endless.candidates:
        best = endless.candidates[0].effective_tok_s
        assert finite.candidates[0].effective_tok_s == pytest.approx(best, rel=0.02)


def test_row_by_row_has_one_group() -> None:
    """Asked for row by row, every candidate has a single group in flight."""
    result = search(problem_of("t4-16", "opt-30b"), Options(schedule="row"))
    assert {each.policy.num_groups for each in result.candidates} == {1}
    assert {each.policy.gpu_batch for each in result.candidates} <= set(GROUP_SIZES)


def test_a_candidate_is_its_solution_in_words() -> None:
    """Policy and solution of a candidate have the same placement."""
    problem = problem_of("t4-16", "opt-175b")
    outer = replace(next(roots(problem, Options())), gpu_batch=16)
    solution = Program(problem, outer, 64).solve()
    assert solution is not None
    candidate = candidate_of(problem, outer, 64, solution)
    assert candidate.policy.placement() == pytest.approx(solution.placement, abs=1e-5)
    assert candidate.policy.block == 64
