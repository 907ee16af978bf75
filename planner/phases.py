"""Demand of a period for some choices, summed once for all programs that share it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from planner.problem import Outer, Problem
from simulator.cost import Rates
from simulator.demand import Demand, period_demand

_KEPT = 1024  # demands: some kilobytes each


def rates_of(problem: Problem, outer: Outer) -> Rates:
    """Look at a machine as a run with some choices does."""
    return Rates(problem.hardware, problem.runtime, problem.model.dtype, outer.pinned)


def phases_of(problem: Problem, outer: Outer) -> tuple[Demand, Demand]:
    """Give demand in a period, in the pass with an admission and in the others.

    How much memory there is does not matter for it, nor do limits, pins and the range of group sizes.
    """
    machine = problem.hardware.model_copy(update={"tiers": {}})
    prompts = outer.prompts_together(problem)
    alike = replace(outer, prompt_batch=prompts, smallest_batch=None, pins=())
    return _phases(replace(problem, hardware=machine, max_latency=None), alike)


@lru_cache(_KEPT)
def _phases(problem: Problem, outer: Outer) -> tuple[Demand, Demand]:
    return period_demand(
        problem.model,
        outer.shape,
        problem.runtime,
        problem.workload,
        rates_of(problem, outer),
        gpu_batch=outer.gpu_batch,
        prompt_batch=outer.prompts_together(problem),
        stagger=outer.stagger,
        prefetch=outer.prefetch,
    )
