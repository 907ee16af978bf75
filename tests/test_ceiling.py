"""The certified ceiling lies above everything that the planner can find, on every machine."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.bounds import kv_bytes_read
from planner.ceiling import Ceiling, ceiling
from planner.choices import Options, allowed_shapes
from planner.evaluate import evaluate
from planner.pins import parse_pins
from planner.problem import Outer, Problem
from planner.program import Program
from planner.search import search
from simulator.layers import Shape, total_weight_bytes
from simulator.layout import lay_out
from simulator.operations import BLOCK_STAGES
from simulator.policy import cohorts_in_flight
from simulator.profiles import shipped_profiles
from simulator.runtime import load_runtime
from simulator.simulate import simulate
from tests.problems import cases, problem_of, problems, unit, with_memory
from tests.strategies import layouts, machines

SLACK = 1 + 1e-6
MODELS = ("opt-6.7b", "opt-30b", "opt-175b", "llama-3-70b")


@cache
def question(hardware: str, model: str) -> Problem:
    """Ask about a shipped machine, once."""
    return problem_of(hardware, model)


@given(cases(), st.integers(1, 6), st.sampled_from([None, 1, 2, 5]))
def test_the_program_is_below_the_ceiling(case: tuple[Problem, Outer], groups: int, runs: int | None) -> None:
    """For any form of the tensors, schedule, block and queue of whole blocks: program <= ceiling."""
    problem, outer = case
    block = groups * unit(problem, outer)
    if runs is not None:
        work = problem.workload.model_copy(update={"num_prompts": runs * block})
        problem = replace(problem, workload=work)
    solution = Program(problem, outer, block).solve()
    assume(solution is not None)
    assert solution is not None
    assert solution.throughput <= ceiling(problem, [outer.shape]).throughput_tok_s * SLACK


@given(cases())
def test_the_relaxation_is_below_the_ceiling(case: tuple[Problem, Outer]) -> None:
    """Even with the block open the program stays below the ceiling of an endless queue."""
    problem, outer = case
    solution = Program(problem, outer).solve()
    assume(solution is not None)
    assert solution is not None
    # With the block open, cache buffers count for nothing: the ceiling does not know them either.
    assert solution.throughput <= ceiling(problem, [outer.shape]).throughput_tok_s * SLACK


@settings(max_examples=25)
@given(problems(finite=None), st.sampled_from(["none", "both", "auto"]))
def test_candidates_are_below_the_ceiling(problem: Problem, quantize: str) -> None:
    """Nothing that a search finds is above the ceiling of the forms that it may choose from."""
    options = Options(quantize=quantize)  # type: ignore[arg-type]
    top = ceiling(problem, allowed_shapes(options)).throughput_tok_s
    for candidate in search(problem, options).candidates:
        if problem.workload.num_prompts is None or candidate.outer.stagger is None:
            assert candidate.lp_tok_s <= top * SLACK
        assert candidate.effective_tok_s <= top * SLACK


@settings(max_examples=60)
@given(layouts(), machines())
def test_simulations_are_below_the_ceiling(placed: object, hardware: object) -> None:
    """Any layout whatever, simulated in whole, is below the ceiling of a machine that just holds it."""
    used = {tier: sum(uses.values()) for tier, uses in placed.peak_memory().items()}  # type: ignore[attr-defined]
    snug = with_memory(hardware, **used)  # type: ignore[arg-type]
    problem = Problem(snug, placed.model, placed.workload, placed.runtime)  # type: ignore[attr-defined]
    prediction, _ = simulate(placed, snug, None)  # type: ignore[arg-type]
    top = ceiling(problem, [placed.shape])  # type: ignore[attr-defined]
    assert prediction.throughput_tok_s <= top.throughput_tok_s * SLACK


@settings(max_examples=20)
@given(problems(finite=None))
def test_simulated_is_below_the_program(problem: Problem) -> None:
    """What is simulated of a candidate never beats the program's answer for the same block."""
    result = search(problem, Options())
    for candidate in result.candidates[:3]:
        one = evaluate(problem, candidate)
        if one is None:
            continue
        policy = one.placed.policy
        again = candidate
        if policy.block != candidate.policy.block:
            continue
        assert one.prediction.throughput_tok_s <= again.lp_tok_s * SLACK


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("hardware", shipped_profiles())
def test_shipped_machines_keep_the_order(hardware: str, model: str) -> None:
    """On every shipped machine the program's best is below the ceiling, and not absurdly far."""
    problem = question(hardware, model)
    best = 0.0
    for stagger in (None, 1, 4):
        for size in (4, 32, 256):
            solution = Program(problem, Outer(gpu_batch=size, stagger=stagger)).solve()
            best = max(best, solution.throughput if solution is not None else 0.0)
    top = ceiling(problem, [Shape()]).throughput_tok_s
    assert 0 < best <= top * SLACK
    assert top < 5 * best


def test_rooflines_by_hand() -> None:
    """With everything on a huge GPU only its kernels bound: FLOPs over rate, attention on the CPU free."""
    problem = problem_of("a100-80", "opt-6.7b", gen_len=1)
    top = ceiling(problem, [Shape()])
    # gen_len 1: a prompt of 512 tokens through 6.44 billion weights in blocks and one head.
    model = problem.model
    flops = 512 * model.num_layers * sum(model.linear_flops(stage) for stage in BLOCK_STAGES)
    flops += model.linear_flops("head")
    attention = model.num_layers * model.attention_flops(512.0, 0.0)
    assert top.bound_by == "gpu"
    assert 1 / top.throughput_tok_s == pytest.approx(flops / 269e12 + attention / 183e12)


def test_disk_by_hand() -> None:
    """Where the disk is all that counts, the ceiling is weights and cache over its rate."""
    problem = problem_of("t4-16", "opt-175b")
    top = ceiling(problem, [Shape()])
    assert top.bound_by == "disk_read"
    tiers, model, work = problem.hardware.tiers, problem.model, problem.workload
    weights = model.num_layers * model.weight_bytes(model.layer_weights())
    weights += model.weight_bytes(model.head_weights())
    cache = kv_bytes_read(model.num_layers * model.kv_bytes_per_token, work.prompt_len, work.gen_len)
    room = sum(tier.usable for tier in tiers.values()) - total_weight_bytes(
        model, Shape(), load_runtime("reference")
    )
    above = tiers["gpu"].usable + tiers["cpu"].usable
    seconds = (cache / room * (weights - above) + cache) / problem.hardware.links.disk_read.bandwidth
    assert top.throughput_tok_s == pytest.approx(work.gen_len / seconds)


def test_a_model_that_nothing_holds() -> None:
    """Where the weights do not fit there is no throughput, and memory is the reason."""
    problem = problem_of("t4-16", "opt-175b", sets=("tiers.disk.capacity=10 GiB",))
    assert ceiling(problem, [Shape()]) == Ceiling(0.0, "memory")


def test_more_forms_raise_the_ceiling() -> None:
    """The ceiling over several forms is that of the best of them."""
    problem = problem_of("a100-80", "opt-175b")
    shapes = [Shape(), Shape(4, 16), Shape(16, 4), Shape(4, 4)]
    each = [ceiling(problem, [shape]) for shape in shapes]
    assert ceiling(problem, shapes) == max(each, key=lambda one: one.throughput_tok_s)


@given(cases(), st.integers(1, 40))
def test_a_longer_queue_is_no_slower(case: tuple[Problem, Outer], prompts: int) -> None:
    """The ceiling grows with the queue, up to that of an endless one."""
    problem, outer = case
    values = []
    for count in (prompts, prompts + 1, 10 * prompts, None):
        work = problem.workload.model_copy(update={"num_prompts": count})
        values.append(ceiling(replace(problem, workload=work), [outer.shape]).throughput_tok_s)
    for earlier, later in itertools.pairwise(values):
        assert earlier <= later * SLACK


@given(cases(), st.sampled_from(["gpu", "cpu", "disk"]), st.floats(1.0, 3.0))
def test_more_memory_is_no_slower(case: tuple[Problem, Outer], tier: str, factor: float) -> None:
    """More memory on any tier never lowers the ceiling."""
    problem, outer = case
    sizes = {name: each.capacity for name, each in problem.hardware.tiers.items()}
    larger = with_memory(problem.hardware, **(sizes | {tier: factor * sizes[tier]}))
    before = ceiling(problem, [outer.shape]).throughput_tok_s
    assert ceiling(replace(problem, hardware=larger), [outer.shape]).throughput_tok_s >= before / SLACK


def test_published_policies_are_below_the_ceiling() -> None:
    """The policy published for OPT-30B on a T4, simulated, is below the ceiling for that machine."""
    problem = problem_of("t4-16", "opt-30b")
    texts = ("gpu_batch=48", "num_groups=3", "weights=20/80/0", "cache=0/100/0", "activations=0/100/0")
    result = search(problem, Options(schedule="zigzag", pins=parse_pins((*texts, "cpu_attention=1"))))
    placed = lay_out(problem.model, problem.runtime, problem.workload, result.candidates[0].policy)
    prediction, _ = simulate(placed, problem.hardware)
    assert cohorts_in_flight(placed.policy.stagger, 32) == 1
    assert prediction.throughput_tok_s <= ceiling(problem, [Shape()]).throughput_tok_s
