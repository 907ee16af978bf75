"""Prices: what the duals say one more unit is worth is what solving again finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.prices import Figure, figures, limits, prices
from planner.problem import Outer, Problem, Solution
from planner.program import Program
from simulator.units import GIB
from tests.calibrated import CALIBRATED
from tests.problems import cases, problem_of

REAL = [
    ("t4-16", "opt-175b", Outer(gpu_batch=16)),
    ("t4-16", "opt-175b", Outer(gpu_batch=4, stagger=1)),
    ("t4-16", "opt-30b", Outer(gpu_batch=24)),
    ("t4-16", "opt-30b", Outer(gpu_batch=24, stagger=4)),
    ("a100-80", "opt-175b", Outer(gpu_batch=12, stagger=1)),
]


def throughput(problem: Problem, outer: Outer, figure: Figure, change: float) -> float | None:
    """Solve again on a machine with one figure changed by an amount in SI units."""
    hardware = figure.raised(problem.hardware, change)
    solution = Program(replace(problem, hardware=hardware), outer).solve()
    return solution.throughput if solution is not None else None


def slopes(problem: Problem, outer: Outer, figure: Figure, share: float) -> tuple[float, float] | None:
    """Give the differences per unit of a figure, upwards and downwards, by solving again."""
    step = share * (figure.value(problem.hardware) or figure.size)
    values = [throughput(problem, outer, figure, change) for change in (-step, 0.0, step)]
    if None in values:
        return None
    before, here, after = values
    per_unit = figure.size / step
    return (after - here) * per_unit, (here - before) * per_unit


def check(problem: Problem, outer: Outer, solution: Solution, share: float, rel: float) -> int:
    """Compare all prices with differences where the optimum is smooth; count those compared that matter."""
    compared = 0
    for figure, price in zip(figures(problem, outer), prices(problem, outer, solution), strict=True):
        assert price.resource == figure.name
        found = slopes(problem, outer, figure, share)
        if found is None:
            continue
        right, left = found
        worth = solution.throughput * figure.size / (figure.value(problem.hardware) or figure.size)
        noise = 1e-4 * worth
        if abs(right - left) > rel * max(abs(right), abs(left)) + noise:
            # The basis changes here: the price is one of the two slopes, or between them.
            low, high = sorted((right, left))
            assert low - noise <= price.tok_s_per_unit <= high + noise, figure.name
            continue
        assert price.tok_s_per_unit == pytest.approx((right + left) / 2, rel=rel, abs=noise), figure.name
        compared += abs(price.tok_s_per_unit) > 10 * noise
    return compared


@pytest.mark.parametrize(("hardware", "model", "outer"), REAL)
def test_prices_are_differences_on_real_machines(hardware: str, model: str, outer: Outer) -> None:
    """Each price is the slope of the program's throughput, to one part in a thousand."""
    problem = problem_of(hardware, model)
    solution = Program(problem, outer).solve()
    assert solution is not None
    assert check(problem, outer, solution, share=1e-4, rel=1e-3) >= 1


@settings(max_examples=25)
@given(cases())
def test_prices_are_differences(case: tuple[Problem, Outer]) -> None:
    """Each price is the slope of the program's throughput on drawn machines too."""
    problem, outer = case
    solution = Program(problem, outer).solve()
    assume(solution is not None)
    assert solution is not None
    check(problem, outer, solution, share=1e-3, rel=2e-2)


@given(cases(), st.one_of(st.none(), st.integers(1, 3)))
def test_limits_sum_to_one(case: tuple[Problem, Outer], groups: int | None) -> None:
    """What limits a phase is given in shares of the whole, the largest first, all of them positive."""
    problem, outer = case
    solution = Program(problem, outer, groups and groups * outer.gpu_batch * 6).solve()
    assume(solution is not None)
    assert solution is not None
    for shares in limits(solution).values():
        if shares:
            assert sum(shares.values()) == pytest.approx(1)
            assert list(shares.values()) == sorted(shares.values(), reverse=True)
            assert min(shares.values()) > 0


def test_the_disk_limits_a_t4() -> None:
    """OPT-175B on a T4 waits for the disk, whose price is worth more than any memory's."""
    problem = problem_of("t4-16", "opt-175b")
    outer = Outer(gpu_batch=16)
    solution = Program(problem, outer).solve()
    assert solution is not None
    worth = {price.resource: price for price in prices(problem, outer, solution)}
    assert next(iter(limits(solution)["decode"])) == "disk_read"
    assert worth["disk_read"].unit == "GB/s"
    assert worth["disk_read"].tok_s_per_unit > 0.1 * solution.throughput
    # One more GiB is worth something, but less than a hundredth of what one more GB/s is.
    assert 0 < worth["gpu memory"].tok_s_per_unit < 0.01 * worth["disk_read"].tok_s_per_unit


def test_prices_are_per_unit_of_the_thing_itself() -> None:
    """A price times a small change in units is the change of throughput."""
    problem = problem_of("t4-16", "opt-30b")
    outer = Outer(gpu_batch=24)
    solution = Program(problem, outer).solve()
    assert solution is not None
    price = {each.resource: each.tok_s_per_unit for each in prices(problem, outer, solution)}["gpu memory"]
    figure = figures(problem, outer)[0]
    assert figure.unit == "GiB"
    more = throughput(problem, outer, figure, 0.01 * GIB)
    assert more is not None
    assert more - solution.throughput == pytest.approx(0.01 * price, rel=0.05)


def test_pinnable_memory_has_the_price_where_it_is_limited() -> None:
    """On a machine that can pin only a part of its memory, that part has the price."""
    problem = problem_of("t4-16", "opt-175b", sets=("tiers.cpu.pinnable=100 GiB",))
    outer = Outer(gpu_batch=16)
    solution = Program(problem, outer).solve()
    assert solution is not None
    worth = {price.resource: price.tok_s_per_unit for price in prices(problem, outer, solution)}
    assert worth["cpu memory (pinned)"] > 0
    assert "cpu memory" not in worth
    check(problem, outer, solution, share=1e-4, rel=1e-3)


def test_unused_links_are_worth_nothing() -> None:
    """Faster disks do not help a model that needs none."""
    problem = problem_of("a100-80", "opt-6.7b")
    outer = Outer(gpu_batch=32)
    solution = Program(problem, outer).solve()
    assert solution is not None
    worth = {price.resource: price.tok_s_per_unit for price in prices(problem, outer, solution)}
    assert worth["disk_read"] == pytest.approx(0, abs=1e-9)
    assert worth["disk memory"] == pytest.approx(0, abs=1e-9)
    assert worth["gpu matrix products"] > 0


def test_measured_operations_have_prices() -> None:
    """Where operations were measured, a figure moves their rates too, and its price is what that gives."""
    problem = problem_of(str(CALIBRATED), "opt-1.3b", prompt_len=64, gen_len=16)
    outer = Outer(gpu_batch=32)
    solution = Program(problem, outer).solve()
    assert solution is not None
    assert check(problem, outer, solution, 1e-5, 0.02) >= 2
    products = next(each for each in figures(problem, outer) if each.name == "gpu matrix products")
    raised = products.raised(problem.hardware, 0.5 * products.value(problem.hardware))
    before, after = problem.hardware.operations, raised.operations
    assert before is not None
    assert after is not None
    for name in ("qkv", "mlp"):
        kernels = [next(iter(each.kernels.values()))[name] for each in (before, after)]
        assert kernels[1].flops == pytest.approx(1.5 * kernels[0].flops)
    worth = {price.resource: price.tok_s_per_unit for price in prices(problem, outer, solution)}
    assert worth["gpu matrix products"] > 0.0
