"""The main job: search, simulate the best few, and put the winner's plan together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata

from planner.blocks import Candidate
from planner.certificate import certificate
from planner.choices import Options
from planner.climb import climb
from planner.evaluate import FINAL_TASKS, Evaluated, passes_within
from planner.finalists import TIE, choose, keeping, simulate_best
from planner.infeasible import explain
from planner.plan import Alternative, Machine, Plan, SearchStatistics, TierMemory
from planner.prices import limits, prices
from planner.problem import Problem, memory_limit
from planner.program import Program
from planner.search import SearchResult, search
from planner.uncertainty import throughput_range
from planner.within import fitted_to
from simulator.errors import InfeasibleError, InputError, PlannerError
from simulator.hardware import TierName
from simulator.prefix import without_prefix
from simulator.simulate import simulate


@dataclass(frozen=True)
class Request:
    """A question: the problem, what the search may choose, and how the machine was changed."""

    problem: Problem
    options: Options = Options()
    overrides: tuple[str, ...] = ()


def make_plan(request: Request) -> Plan:
    """Find the best plan.

    Raises:
        InfeasibleError: nothing fits; the message says what is short and what would fit.
        InputError: the options contradict each other, or the model cannot hold the workload's sequences.
        PlannerError: the prediction broke a law of physics.
    """
    problem, limit = request.problem, request.problem.max_latency
    _check_workload(problem)
    result = search(problem, request.options)
    tried = simulate_best(result)
    if limit is not None and tried:
        tried += fitted_to(limit, result, tried)
    within = keeping(limit, tried)
    if within:
        tried += climb(result.solver, tried, choose(within))
        within = keeping(limit, tried)
    while within:
        best = choose(within)
        longer = _played_longer(problem, best)
        if limit is None or longer.prediction.latency_s <= limit * (1 + 1e-9):
            return _assemble(request, result, tried, longer)
        within = [one for one in within if one is not best]
        tried = [replace(longer, simulation=None) if one is best else one for one in tried]
    if tried:
        quickest = min(one.prediction.latency_s for one in tried)
        raise InfeasibleError(
            f"{problem.model.name} on {problem.hardware.name}: no plan keeps the latency limit "
            f"of {limit:g} s; the quickest found takes {quickest:.4g} s from admission to last token, "
            "so raise --max-latency"
        )
    raise InfeasibleError(explain(request.problem, request.options))


def _check_workload(problem: Problem) -> None:
    """Refuse sequences longer than the model was made for, and work that the engine cannot do.

    Raises:
        InputError: prompt and generated tokens exceed the model's positions, or the engine only generates.
    """
    work, most, runtime = problem.workload, problem.model.max_positions, problem.runtime
    if work.scores and not runtime.scores_prompts:
        raise InputError(
            f"workload.gen_len: runtime {runtime.name} only generates; take --gen-len 1 or more, "
            "or --runtime reference"
        )
    if work.shared_prefix and not runtime.shares_prefix:
        raise InputError(
            f"workload.shared_prefix: runtime {runtime.name} computes and keeps every prompt whole; drop "
            "--shared-prefix, or take --runtime reference"
        )
    if work.positions > most:
        raise InputError(
            f"workload: {work.prompt_len} tokens in and {work.gen_len} out exceed the {most} positions of "
            f"{problem.model.name}; shorten --prompt-len or --gen-len"
        )


def _played_longer(problem: Problem, best: Evaluated) -> Evaluated:
    """Simulate the winner with more passes than ranking did, and keep that."""
    layers, lives = problem.model.num_layers, problem.workload.passes
    passes = passes_within(layers, lives, best.placed.policy, FINAL_TASKS)
    prediction, simulation = simulate(best.placed, problem.hardware, passes)
    return replace(best, prediction=prediction, simulation=simulation)


def _assemble(request: Request, result: SearchResult, tried: list[Evaluated], best: Evaluated) -> Plan:
    problem, placed = request.problem, best.placed
    policy = placed.policy
    outer = replace(best.candidate.outer, smallest_batch=None, pins=request.options.pins.placement())
    relaxed = Program(problem, outer).solve() or best.candidate.solution
    plan = Plan(
        planner_version=metadata.version("offload-planner"),
        hardware=_machine(request),
        model=without_prefix(problem.model),
        workload=problem.workload,
        runtime=problem.runtime,
        schedule=policy.schedule(problem.workload.passes),
        policy=policy,
        layout=placed.layout,
        layout_difference=placed.layout.difference(policy),
        predictions=best.prediction,
        throughput_range=throughput_range(placed, problem.hardware, best.prediction.throughput_tok_s),
        bounds=certificate(problem, request.options, result, best),
        limits=limits(best.candidate.solution),
        memory=_memory(problem, best),
        prices=tuple(prices(problem, outer, relaxed)),
        alternatives=tuple(_alternatives(problem, result, tried, best)),
        search=SearchStatistics(linear_programs=result.solver.programs, simulated=len(tried)),
    )
    _check(plan)
    return plan


def _machine(request: Request) -> Machine:
    profile = request.problem.hardware
    return Machine(
        name=profile.name,
        content_hash=profile.content_hash,
        rests_on=tuple(profile.source_kinds()),
        overrides=request.overrides,
        profile=profile,
    )


def _memory(problem: Problem, best: Evaluated) -> dict[TierName, TierMemory]:
    result: dict[TierName, TierMemory] = {}
    for tier, uses in best.placed.peak_memory().items():
        _, most = memory_limit(problem.hardware, tier, pinned=best.placed.policy.pinned)
        result[tier] = TierMemory(peak=sum(uses.values()), capacity=most, uses=uses)
    return result


def _alternatives(
    problem: Problem, result: SearchResult, tried: list[Evaluated], best: Evaluated
) -> list[Alternative]:
    """List what was considered beside the winner, best first, with the reason that it lost."""
    simulated = {id(one.found_as): one for one in tried}
    found = []
    known = {id(candidate) for candidate in result.candidates}
    beside = [one.found_as for one in tried if id(one.found_as) not in known]
    for candidate in [*result.candidates, *beside]:
        if candidate is best.found_as:
            continue
        one = simulated.get(id(candidate))
        speed = one.prediction.throughput_tok_s if one is not None else None
        found.append(
            Alternative(
                schedule=candidate.policy.schedule(problem.workload.passes),
                policy=one.placed.policy if one is not None else candidate.policy,
                lp_tok_s=candidate.lp_tok_s,
                simulated_tok_s=speed,
                reason=_reason(candidate, one, best),
            )
        )
    return sorted(found, key=lambda each: (-(each.simulated_tok_s or 0.0), -each.lp_tok_s))


def _reason(candidate: Candidate, one: Evaluated | None, best: Evaluated) -> str:
    prefix = f"{candidate.why}; " if candidate.why else ""
    if one is None:
        gap = 1 - candidate.effective_tok_s / best.candidate.effective_tok_s
        behind = f"{100 * gap:.1f} % slower by the program" if gap > 5e-4 else "equal by the program"
        return f"{prefix}{behind}; not among those simulated"
    ratio = one.prediction.throughput_tok_s / best.prediction.throughput_tok_s
    if ratio >= 1 - TIE:
        larger = one.placed.policy.block > best.placed.policy.block
        return f"{prefix}as fast, with a larger block" if larger else f"{prefix}as fast to within 0.1 %"
    busiest = max(one.prediction.busy, key=one.prediction.busy.__getitem__)
    share = one.prediction.busy[busiest]
    return f"{prefix}{100 * (1 - ratio):.1f} % slower in the simulation ({busiest} busy {100 * share:.0f} %)"


def _check(plan: Plan) -> None:
    """Hold the plan against its bounds.

    Raises:
        PlannerError: simulated above the program's answer, or that above the ceiling.
    """
    simulated, bounds = plan.predictions.throughput_tok_s, plan.bounds
    slack = 1 + 1e-6
    if simulated > bounds.lp_tok_s * slack or bounds.lp_tok_s > bounds.ceiling_tok_s * slack:
        raise PlannerError(
            f"internal error: simulated {simulated:.6g} tok/s, program {bounds.lp_tok_s:.6g}, ceiling "
            f"{bounds.ceiling_tok_s:.6g} are out of order; please report this plan"
        )
