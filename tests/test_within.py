"""Limits of latency: plans keep them in the simulation, and a looser limit is no slower."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choices import Options
from planner.make_plan import Request, make_plan
from planner.pins import parse_pins
from planner.plan import Plan
from planner.problem import Problem
from simulator.errors import InfeasibleError
from tests.problems import problem_of
from tests.study_cases import LIMITED_WORK

#: What the search by simulation may miss.
TOLERANCE = 0.01


@cache
def plan(limit: float | None, fixed: tuple[str, ...] = ()) -> Plan | None:
    """Plan under a limit, once in a process; None if nothing keeps it."""
    asked = problem_of("t4-16", "opt-6.7b", **LIMITED_WORK)
    problem = Problem(asked.hardware, asked.model, asked.workload, asked.runtime, limit)
    try:
        return make_plan(Request(problem, Options(pins=parse_pins(fixed))))
    except InfeasibleError:
        return None


#: From what the quickest plan takes to what the fastest does, in 30 steps on a logarithmic scale. [s]
LIMITS = st.integers(0, 30).map(lambda step: float(f"{0.7 * 800 ** (step / 30):.4g}"))


@settings(max_examples=5)
@given(limits=st.tuples(LIMITS, LIMITS).map(sorted))
def test_plans_keep_their_limit(limits: list[float]) -> None:
    """A plan under a limit takes no longer, and is at least as fast as that under any tighter limit."""
    tight, loose = plan(limits[0]), plan(limits[1])
    for limit, found in zip(limits, (tight, loose), strict=True):
        if found is not None:
            assert found.predictions.latency_s <= limit * (1 + 1e-9)
    if tight is not None:
        assert loose is not None
        faster = loose.predictions.throughput_tok_s / tight.predictions.throughput_tok_s
        assert faster >= 1 - TOLERANCE


def test_a_limit_that_does_not_bind() -> None:
    """A limit above what the fastest plan takes gives that plan."""
    fastest = plan(None)
    assert fastest is not None
    loose = plan(fastest.predictions.latency_s * 1.2)
    assert loose is not None
    assert loose.policy == fastest.policy
    assert plan(1e-3) is None


@pytest.mark.parametrize("fixed", [("num_groups=2",), ("gpu_batch=32",), ("weights=0/100/0", "num_groups=1")])
def test_pins_hold_under_a_limit(fixed: tuple[str, ...]) -> None:
    """What is pinned stays pinned when blocks are fitted to a limit."""
    found = plan(20.0, fixed)
    assert found is not None
    assert found.predictions.latency_s <= 20.0 * (1 + 1e-9)
    for name in fixed:
        variable, _, value = name.partition("=")
        chosen = getattr(found.policy, variable)
        assert str(chosen) == value


def test_the_limit_is_used() -> None:
    """A tenth of the time still allows a plan that uses most of it, since larger blocks are faster."""
    fastest = plan(None)
    assert fastest is not None
    limit = fastest.predictions.latency_s / 10
    found = plan(limit)
    assert found is not None
    assert found.predictions.latency_s >= 0.8 * limit
    assert found.predictions.throughput_tok_s >= 0.5 * fastest.predictions.throughput_tok_s


def test_a_limit_that_is_nearly_too_tight() -> None:
    """Slower candidates are kept for the case that the faster ones, played in full, miss the limit."""
    halved = ("links.disk_read.bandwidth=x0.5", "links.h2d.pinned.bandwidth=x0.5")
    problem = problem_of("t4-16", "opt-175b", sets=halved, prompt_len=512, gen_len=32)
    found = make_plan(Request(replace(problem, max_latency=3600.0)))
    assert found.predictions.latency_s <= 3600.0 * (1 + 1e-9)


@settings(max_examples=8)
@given(LIMITS.map(lambda limit: limit / 4))
def test_the_quickest_plan_that_is_named_is_too_slow(limit: float) -> None:
    """Where nothing keeps a limit, the time that is said to be the least is longer than it."""
    problem = replace(problem_of("t4-16", "opt-6.7b", **LIMITED_WORK), max_latency=limit)
    try:
        make_plan(Request(problem))
    except InfeasibleError as error:
        named = re.search(r"quickest found takes (\S+) s", str(error))
        assert named is None or float(named[1]) > limit * (1 - 1e-3)  # it has four digits
