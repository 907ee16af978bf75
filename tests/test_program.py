"""Law 3: the placement program finds what it says, and nothing better exists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from planner.blocks import Solver, best_block
from planner.choices import Options
from planner.linear import Row, minimise
from planner.problem import Outer, Problem, Solution, prompt_batch
from planner.program import MAX_GROUPS, Program
from simulator.cost import Rates
from simulator.hardware import HardwareProfile
from simulator.operations import OP, OPERATIONS
from simulator.policy import PLACEMENT
from simulator.units import GIB
from tests.problems import (
    cases,
    grid,
    memory_used,
    problem_of,
    seconds_per_sequence,
    unit,
    with_memory,
)

COARSE = grid(weights=4, cache=2, activations=1)
TIMES = ("admission", "others")


def solved(problem: Problem, outer: Outer, block: int | None = None) -> tuple[Program, Solution]:
    """Solve a program that hypothesis may have drawn infeasible."""
    program = Program(problem, outer, block)
    solution = program.solve()
    assume(solution is not None)
    assert solution is not None
    return program, solution


def slack(program: Program, solution: Solution) -> dict[str, float]:
    """Give ``constant - terms`` of every row at a solution, over the row's largest term or constant."""
    found = {}
    for row in program.rows:
        terms = [value * solution.values[name] for name, value in row.terms.items()]
        largest = max(abs(row.constant), *(abs(term) for term in terms), 1e-300)
        found[row.name] = (row.constant - sum(terms)) / largest
    return found


@given(cases(), st.integers(1, 4))
def test_value_is_the_largest_demand_at_the_solution(case: tuple[Problem, Outer], groups: int) -> None:
    """The program's time is what the schedule's forms give at its placement, which fits every memory."""
    problem, outer = case
    block = groups * unit(problem, outer)
    _, solution = solved(problem, outer, block)
    placement = solution.placement[None]
    own = seconds_per_sequence(problem, outer, block, placement)
    assert solution.seconds == pytest.approx(own[0], rel=1e-5)
    assert memory_used(problem, outer, block, placement).max() <= 1 + 1e-6
    assert (placement >= 0).all()
    assert solution.placement[1:4].sum() == pytest.approx(1)
    assert solution.placement[4:9].sum() == pytest.approx(1)
    assert solution.placement[9:].sum() == pytest.approx(1)


@given(cases(), st.integers(1, 4))
def test_no_placement_on_a_grid_is_better(case: tuple[Problem, Outer], groups: int) -> None:
    """Of hundreds of placements none that fits is faster, and if none fits by the program none does."""
    problem, outer = case
    block = groups * unit(problem, outer)
    fits = memory_used(problem, outer, block, COARSE).max(axis=1) <= 1 - 1e-9
    solution = Program(problem, outer, block).solve()
    if solution is None:
        assert not fits.any()
    elif fits.any():
        best = seconds_per_sequence(problem, outer, block, COARSE[fits]).min()
        assert best >= solution.seconds * (1 - 1e-6)


def test_a_fine_grid_comes_near() -> None:
    """Splits in steps of 1/36 with everything else at its best come within 2 % of the program."""
    problem = problem_of("t4-16", "opt-30b")
    outer, block = Outer(gpu_batch=24), 144
    solution = Program(problem, outer, block).solve()
    assert solution is not None
    steps = np.arange(37) / 36
    weights = [(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1 + 1e-9]
    rows = [[1, *split, 0, share, 1 - share, 0, 0, 1, 0, 0] for split in weights for share in steps]
    fine = np.array(rows)
    fits = memory_used(problem, outer, block, fine).max(axis=1) <= 1
    best = seconds_per_sequence(problem, outer, block, fine[fits]).min()
    assert solution.seconds <= best <= 1.02 * solution.seconds


@given(cases(), st.one_of(st.none(), st.integers(1, 4)))
def test_duals_certify_the_optimum(case: tuple[Problem, Outer], groups: int | None) -> None:
    """Rows hold, duals have the sign of prices, are zero where there is slack, and give the value."""
    problem, outer = case
    program, solution = solved(problem, outer, groups and groups * unit(problem, outer))
    left = slack(program, solution)
    value = 0.0
    for row in program.rows:
        dual = solution.duals[row.name]
        value += dual * row.constant
        if row.equal:
            assert abs(left[row.name]) < 1e-6
        else:
            assert left[row.name] > -1e-6
            assert dual <= 1e-9 * solution.seconds
            # A dual in the row's own scale is a share of the time per sequence.
            worth = abs(dual) * max(abs(row.constant), *(abs(v) for v in row.terms.values()))
            assert left[row.name] < 1e-5 or worth < 1e-5 * max(1.0, solution.seconds)
    assert value == pytest.approx(solution.seconds, rel=1e-5)  # strong duality: no variable has a bound but 0


@given(cases(), st.one_of(st.none(), st.integers(1, 4)))
def test_shares_of_what_limits_a_phase_sum_to_one(case: tuple[Problem, Outer], groups: int | None) -> None:
    """The duals of the rows that bound a phase's time sum to 1 unless the phase takes no time."""
    problem, outer = case
    _, solution = solved(problem, outer, groups and groups * unit(problem, outer))
    for phase in TIMES:
        if solution.values[phase] > 1e-9 * solution.seconds:
            total = sum(
                -dual for name, dual in solution.duals.items() if name.endswith((f", {phase}", ", period"))
            )
            assert total == pytest.approx(1, rel=1e-6)


@given(cases(), st.integers(1, 5))
def test_an_open_block_is_a_relaxation(case: tuple[Problem, Outer], groups: int) -> None:
    """With the block open the program is never slower than with any fixed block."""
    problem, outer = case
    _, fixed = solved(problem, outer, groups * unit(problem, outer))
    relaxed = Program(problem, outer).solve()
    assert relaxed is not None
    assert relaxed.seconds <= fixed.seconds * (1 + 1e-6)


@given(cases(), st.sampled_from([(1, 2), (1, 8), (2, 6), (4, 16), (3, 8)]), st.integers(1, 4), st.data())
def test_a_range_of_group_sizes_is_a_relaxation(
    case: tuple[Problem, Outer], sizes: tuple[int, int], groups: int, data: st.DataObject
) -> None:
    """The program over a range of group sizes is never slower than with a size in it."""
    problem, outer = case
    outer = replace(outer, gpu_batch=data.draw(st.integers(*sizes)))
    _, fixed = solved(problem, outer, groups * unit(problem, outer))
    relaxed = Program(problem, replace(outer, gpu_batch=sizes[1], smallest_batch=sizes[0])).solve()
    assert relaxed is not None
    assert relaxed.seconds <= fixed.seconds * (1 + 1e-6)


@pytest.mark.parametrize(
    ("hardware", "model", "gpu_batch", "stagger"),
    [
        ("t4-16", "opt-30b", 16, None),
        ("t4-16", "opt-30b", 4, 4),
        ("t4-16", "opt-175b", 16, None),
        ("a100-80", "opt-175b", 16, 8),
        ("t4-16", "opt-6.7b", 4, None),
    ],
)
def test_an_open_block_is_as_good_as_the_best_of_all(
    hardware: str, model: str, gpu_batch: int, stagger: int | None
) -> None:
    """One program with the block open finds what enumeration over blocks finds, but for whole groups."""
    problem = problem_of(hardware, model)
    outer = Outer(gpu_batch=gpu_batch, stagger=stagger)
    step = unit(problem, outer)
    relaxed = Program(problem, outer).solve()
    assert relaxed is not None
    blocks = range(step, min(MAX_GROUPS * gpu_batch, int(1.5 * relaxed.block) + 2 * step) + 1, step)
    times = {block: one.seconds for block in blocks if (one := Program(problem, outer, block).solve())}
    best = min(times, key=times.__getitem__)
    assert relaxed.seconds <= times[best] * (1 + 1e-9)
    assert times[best] <= relaxed.seconds * 1.05
    found = best_block(Solver(problem, Options()), outer, relaxed.block)
    assert found is not None
    assert times[found.policy.block] <= times[best] * 1.001


@given(cases(), st.integers(2, 12))
def test_time_is_quasi_convex_in_the_block(case: tuple[Problem, Outer], groups: int) -> None:
    """Without buffers that grow as the cache moves off the GPU, no block lies above both its neighbours."""
    problem, outer = case
    roomy = with_memory(problem.hardware, gpu=1e12)  # no trade of buffers against what they hold
    problem, step = replace(problem, hardware=roomy), unit(problem, outer)
    solutions = [Program(problem, outer, (groups + i) * step).solve() for i in range(3)]
    times = [one.seconds if one is not None else np.inf for one in solutions]
    assume(np.isfinite(times[1]))
    assert times[1] <= max(times[0], times[2]) * (1 + 1e-6)


def free_gpu(**sets: str) -> HardwareProfile:
    """Make a T4 without latencies, whose links and memories are as given."""
    silent = (
        "engines.gpu.matmul.float16.latency=0 s",
        "engines.gpu.attention.prefill.latency=0 s",
        "engines.gpu.attention.decode.latency=0 s",
        "engines.cpu.attention.decode.latency=0 s",
        "links.h2d.pinned.latency=0 s",
        "links.d2h.pinned.latency=0 s",
        "links.disk_read.latency=0 s",
        "links.disk_write.latency=0 s",
    )
    changes = tuple(f"{path.replace('__', '.')}={value}" for path, value in sets.items())
    return problem_of("t4-16", "opt-125m", sets=silent + changes).hardware


def test_everything_fits_on_the_gpu() -> None:
    """A model that fits leaves nothing to move, and its time is that of its kernels."""
    problem = replace(problem_of("t4-16", "opt-125m", gen_len=1), hardware=free_gpu())
    outer, block = Outer(gpu_batch=8), 16
    program = Program(problem, outer, block)
    fastest = program.solve()
    assert fastest is not None
    solution = program.solve(traffic=fastest.seconds * (1 + 1e-9))
    assert solution is not None
    there = [PLACEMENT.index(name) for name in ("weights_gpu", "cache_gpu", "activations_gpu")]
    assert solution.placement[there] == pytest.approx(1, abs=1e-6)
    gpu = sum(phase.per_pass[0] + block * phase.per_sequence[0] for phase in program.phases)
    assert solution.seconds == pytest.approx(gpu @ solution.placement / block)
    # 2 FLOP x 85 million weights in the blocks x 512 tokens, and once 38.6 million in the head: 87.1 GFLOP a
    # sequence, which takes 4.1 ms at 21 TFLOP/s; attention over the prompt and narrow kernels add some.
    assert 4.1e-3 < solution.seconds < 10e-3


def test_only_the_link_matters() -> None:
    """When nothing stays on the GPU and the link is slow, the time is bytes over bandwidth, by hand."""
    # Weights and activations on the CPU, cache there too with attention there: per block only these cross
    # the link from the CPU to the GPU at 0.5 GB/s: all layers' weights and the head's once a pass.
    hardware = free_gpu(links__h2d__pinned__bandwidth="0.5 GB/s", capacities__dram__bandwidth="1 TB/s")
    problem = replace(problem_of("t4-16", "opt-125m", gen_len=2), hardware=hardware)
    pins = (("weights_gpu", 0.0), ("weights_cpu", 1.0), ("weights_disk", 0.0), ("activations_gpu", 1.0))
    pins += (("activations_cpu", 0.0), ("activations_disk", 0.0), ("cache_gpu", 1.0), ("cache_cpu", 0.0))
    outer, block = Outer(gpu_batch=1, pins=(*pins, ("cache_disk", 0.0))), 2
    solution = Program(problem, outer, block).solve()
    assert solution is not None
    model = problem.model
    layers = 12 * 2 * (12 * 768**2 + 13 * 768)  # 16-bit numbers of twelve blocks
    head = 2 * (50272 * 768 + 2 * 768)  # the head and its normalisation
    rows = 2 * 768 * (512 + 1)  # embeddings of a prompt and of one token, position rows apart
    assert model.num_layers * model.weight_bytes(model.layer_weights()) == layers
    assert model.weight_bytes(model.head_weights()) == head
    # Two passes for two sequences. Buffers for two layers let loads run ahead of a pass, not of the period.
    by_hand = (2 * (layers + head) + block * rows) / 0.5e9 / block
    assert solution.seconds == pytest.approx(by_hand, rel=1e-3)
    assert solution.throughput == pytest.approx(2 / solution.seconds)


def test_attention_is_shared_between_cpu_and_link() -> None:
    """Where neither the CPU nor the link alone is best, the share of CPU attention balances the two."""
    problem = problem_of("t4-16", "opt-30b", sets=("engines.cpu.attention.decode.bandwidth=6 GB/s",))
    pins = (("weights_gpu", 0.0), ("weights_cpu", 1.0), ("weights_disk", 0.0))
    pins += (("cache_gpu", 0.0), ("cache_cpu", 1.0), ("cache_disk", 0.0))
    outer, block = Outer(gpu_batch=24, pins=pins), 96

    def at(share: float | None) -> Solution:
        fixed = outer if share is None else replace(outer, pins=(*pins, ("cpu_attention", share)))
        solution = Program(problem, fixed, block).solve()
        assert solution is not None
        return solution

    free, none, whole = at(None), at(0.0), at(1.0)
    share = free.placement[PLACEMENT.index("cache_cpu_on_cpu")]
    assert 0.05 < share < 0.95
    assert free.seconds < 0.999 * min(none.seconds, whole.seconds)
    assert at(share).seconds == pytest.approx(free.seconds, rel=1e-6)
    binding = {name for name, dual in free.duals.items() if name.endswith(", others") and dual < -1e-3}
    assert len(binding) >= 2, binding


@given(cases())
@example((problem_of("t4-16", "opt-30b"), Outer(gpu_batch=8)))
def test_the_latency_limit_is_a_row(case: tuple[Problem, Outer]) -> None:
    """A limit below the optimum's latency is kept, and costs; one above it changes nothing."""
    problem, outer = case
    _, free = solved(problem, outer)

    def latency(solution: Solution) -> float:
        every = outer.stagger or problem.workload.passes
        return solution.seconds * solution.block * problem.workload.passes / every

    assume(outer.stagger is None or unit(problem, outer) > outer.gpu_batch)
    same = Program(replace(problem, max_latency=1.01 * latency(free)), outer).solve()
    assert same is not None
    assert same.seconds == pytest.approx(free.seconds, rel=1e-5)
    tight = Program(replace(problem, max_latency=0.7 * latency(free)), outer).solve()
    if tight is not None:
        assert latency(tight) <= 0.7 * latency(free) * (1 + 1e-5)
        assert tight.seconds >= free.seconds * (1 - 1e-6)


@given(cases(), st.integers(1, 3))
def test_the_tie_break_keeps_the_time_and_moves_less(case: tuple[Problem, Outer], groups: int) -> None:
    """Among placements as fast as the best, the chosen one has no more traffic."""
    problem, outer = case
    block = groups * unit(problem, outer)
    program, solution = solved(problem, outer, block)
    lean = program.solve(traffic=solution.seconds * (1 + 1e-6))
    assert lean is not None
    assert lean.seconds <= solution.seconds * (1 + 3e-6)
    costs = program._traffic()
    before, after = (sum(costs[name] * one.values[name] for name in costs) for one in (solution, lean))
    assert after <= before + 1e-6 * abs(before)


@given(cases())
def test_the_smallest_block_keeps_the_time(case: tuple[Problem, Outer]) -> None:
    """Asked for the smallest block within 1 %, the program finds one no larger and no slower than that."""
    problem, outer = case
    program, solution = solved(problem, outer)
    small = program.solve(small=solution.seconds * 1.01)
    assert small is not None
    assert small.block <= solution.block * (1 + 1e-6)
    assert small.seconds <= solution.seconds * 1.01 * (1 + 1e-6)


def test_more_of_anything_is_never_worse() -> None:
    """More memory on any tier never makes the program slower."""
    base = problem_of("t4-16", "opt-175b")
    outer = Outer(gpu_batch=16)
    before = Program(base, outer).solve()
    assert before is not None
    for tier, usable in {name: tier.usable for name, tier in base.hardware.tiers.items()}.items():
        sizes = {name: each.usable for name, each in base.hardware.tiers.items()} | {tier: usable + GIB}
        more = Program(replace(base, hardware=with_memory(base.hardware, **sizes)), outer).solve()
        assert more is not None
        assert more.seconds <= before.seconds * (1 + 1e-9)


@given(st.integers(1, 200), st.integers(1, 10_000))
def test_prompt_batches_divide_the_group(gpu_batch: int, prompt_len: int) -> None:
    """A sub-batch of prompts divides the group and is no larger than efficiency asks for."""
    size = prompt_batch(gpu_batch, prompt_len)
    assert gpu_batch % size == 0
    smaller = [part for part in range(1, size) if gpu_batch % part == 0]
    assert all(part * prompt_len < 2048 for part in smaller)


@given(st.floats(-12, 12), st.floats(-12, 12))
def test_units_do_not_matter_to_the_solver(time: float, size: float) -> None:
    """A linear program and its duals scale with the units that it is written in."""
    second, byte = 10.0**time, 10.0**size
    rows = [
        Row("room", {"near": 3 * byte, "far": 1 * byte}, 2 * byte),
        Row("all", {"near": 1.0, "far": 1.0}, 1.0, equal=True),
        Row("time", {"far": 5 * second, "time": -1.0}, -1 * second),
    ]
    found = minimise({"time": 1.0}, rows, {"near": 1.0, "far": 1.0, "time": second})
    assert found is not None
    # 3 near + far <= 2 leaves half of it near; the other half takes 2.5, and one more for the start.
    assert found.values["near"] == pytest.approx(0.5)
    assert found.values["time"] == pytest.approx(3.5 * second)
    assert found.duals["room"] == pytest.approx(-2.5 * second / byte)
    assert minimise({"time": 1.0}, [Row("never", {"time": byte}, -byte)], {"time": 1.0}) is None


def test_rates_follow_the_memory_that_is_used() -> None:
    """Pageable host memory makes copies slower, and the program with them."""
    problem = problem_of("t4-16", "opt-30b")
    pinned, pageable = (
        Program(problem, Outer(gpu_batch=16, pinned=each), 48).solve() for each in (True, False)
    )
    assert pinned is not None
    assert pageable is not None
    load = OPERATIONS[OP["load_weights"]]
    rates = (Rates(problem.hardware, problem.runtime, "float16", each) for each in (True, False))
    fast, slow = (each.copy(load) for each in rates)
    assert fast.bandwidth > slow.bandwidth
    assert pageable.seconds > pinned.seconds
