"""The main job: search, simulate the best few, and put the winner's plan together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata

from planner.bounds import kv_bytes_read, window_bound, zigzag_factor
from planner.ceiling import ceiling
from planner.evaluate import FINAL_TASKS, Evaluated, evaluate
from planner.infeasible import explain
from planner.plan import Alternative, Bounds, Machine, Plan, SearchStatistics, TierMemory
from planner.prices import limits, prices
from planner.program import Problem, Program, memory_limit
from planner.search import Candidate, Options, SearchResult, allowed_shapes, search
from simulator.errors import InfeasibleError, PlannerError
from simulator.operations import OP, total_weight_bytes
from simulator.simulate import Simulation

_SIMULATED = 6
_TIE = 1e-3


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
        InputError: the options contradict each other.
        PlannerError: the prediction broke a law of physics.
    """
    problem = request.problem
    result = search(problem, request.options)
    if not result.candidates:
        raise InfeasibleError(explain(problem, request.options))
    tried = _simulate_best(request, result)
    if not tried:
        raise InfeasibleError(explain(problem, request.options))
    best = _choose(problem, tried)
    final = evaluate(problem, best.candidate, FINAL_TASKS) or best
    return _assemble(request, result, tried, final)


def _simulate_best(request: Request, result: SearchResult) -> list[Evaluated]:
    """Simulate the candidates that promise most, at least one of each schedule."""
    evaluated = []
    for candidate in _promising(request.problem, result.candidates):
        one = evaluate(request.problem, candidate)
        if one is not None:
            evaluated.append(one)
    return evaluated


def _promising(problem: Problem, candidates: list[Candidate]) -> list[Candidate]:
    """Choose candidates: the best of each schedule, then by the program's answer."""
    gen_len = problem.workload.gen_len
    best_of_each = {candidate.policy.schedule(gen_len): candidate for candidate in reversed(candidates)}
    chosen = list(best_of_each.values())
    # Few large groups have the smaller overheads, which the program does not see.
    ranked = sorted(
        candidates, key=lambda each: (-round(each.lp_tok_s / candidates[0].lp_tok_s, 2), each.policy.num_groups)
    )
    for candidate in ranked:
        if candidate not in chosen:
            chosen.append(candidate)
    return chosen[: max(_SIMULATED, len(best_of_each))]


def _choose(problem: Problem, tried: list[Evaluated]) -> Evaluated:
    """Take the fastest that keeps the latency limit; of ties, the smallest block."""
    within = [
        one
        for one in tried
        if problem.max_latency is None or one.prediction.latency_s <= problem.max_latency * (1 + 1e-9)
    ]
    if not within:
        fastest = min(tried, key=lambda one: one.prediction.latency_s)
        raise InfeasibleError(
            f"no plan keeps the latency limit of {problem.max_latency:g} s; the quickest found takes "
            f"{fastest.prediction.latency_s:.4g} s from admission to last token"
        )
    top = max(one.prediction.throughput_tok_s for one in within)
    ties = [one for one in within if one.prediction.throughput_tok_s >= top * (1 - _TIE)]
    return min(ties, key=lambda one: (one.placed.policy.block, -one.prediction.throughput_tok_s))


def _assemble(request: Request, result: SearchResult, tried: list[Evaluated], best: Evaluated) -> Plan:
    problem, placed = request.problem, best.placed
    policy, gen_len = placed.policy, problem.workload.gen_len
    outer = replace(best.candidate.outer, smallest_batch=None)
    relaxed = Program(problem, outer).solve() or best.candidate.solution
    plan = Plan(
        planner_version=metadata.version("offload-planner"),
        hardware=_machine(request),
        model=problem.model,
        workload=problem.workload,
        runtime=problem.runtime,
        schedule=policy.schedule(gen_len),
        policy=policy,
        layout=placed.layout,
        layout_difference=placed.layout.difference(policy),
        predictions=best.prediction,
        bounds=_bounds(request, result, best),
        limits=limits(best.candidate.solution),
        memory=_memory(problem, best),
        prices=tuple(prices(problem, outer, relaxed)),
        alternatives=tuple(_alternatives(problem, result, tried, best)),
        search=SearchStatistics(linear_programs=result.programs, simulated=len(tried)),
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


def _bounds(request: Request, result: SearchResult, best: Evaluated) -> Bounds:
    problem, policy = request.problem, best.placed.policy
    top = ceiling(problem, allowed_shapes(request.options))
    moved, least = _io_bytes(problem, best)
    program = Program(problem, replace(best.candidate.outer, smallest_batch=None), policy.block).solve()
    lp = program.throughput if program is not None else best.candidate.lp_tok_s
    return Bounds(
        lp_tok_s=lp,
        search_tok_s=max(result.bound_tok_s, lp),
        ceiling_tok_s=top.throughput_tok_s,
        ceiling_bound_by=top.bound_by,
        io_bytes=moved,
        io_lower_bound_bytes=least,
        zigzag_factor=zigzag_factor(policy.num_groups, _rows(problem, policy.gpu_batch)),
    )


def _rows(problem: Problem, gpu_batch: int) -> float:
    """Count the groups that the queue makes; a long queue has no end."""
    prompts = problem.workload.num_prompts
    return float("inf") if prompts is None else max(1.0, prompts / gpu_batch)


def _io_bytes(problem: Problem, best: Evaluated) -> tuple[float, float]:
    """Give the bytes read into GPU memory per sequence, and the least that any schedule reads.

    Counted are weights and KV cache, as in the window bound (docs/bounds.md, section 4): the cache that the
    CPU attends to does not cross, activations are left out.
    """
    placed, policy = best.placed, best.placed.policy
    model, workload, tiers = problem.model, problem.workload, problem.hardware.tiers
    count = best.simulation.schedule.window.sequences
    moved = _counted_bytes(best.simulation, "load_weights") + _counted_bytes(best.simulation, "load_cache")
    stored = model.kv_bytes(policy.cache_bits, policy.quant_group)
    read = kv_bytes_read(model.num_layers * stored, workload.prompt_len, workload.gen_len)
    weights = total_weight_bytes(model, placed.shape) - float(placed.layer_bytes[0].sum())
    room = sum(tier.usable for tier in tiers.values()) - weights
    on_cpu = float(placed.placement[5] + placed.placement[7])
    gpu = tiers["gpu"].usable
    if workload.num_prompts is None:
        # A long queue: per sequence, with k / C sweeps over the weights.
        least = (1 - on_cpu) * read + read / room * (weights - gpu) if weights >= gpu else 0.0
        return moved / count, max(0.0, least)
    total = window_bound(
        read * workload.num_prompts, weights, gpu, room, workload.gen_len, crossing=1 - on_cpu
    )
    runs = workload.num_prompts / count
    return moved / count, max(0.0, total - min(weights, gpu)) / (count * runs)


def _counted_bytes(simulation: Simulation, operation: str) -> float:
    """Sum the bytes of an operation over the passes played, as often as each counts. [B]"""
    schedule = simulation.schedule
    tasks = schedule.operation == OP[operation]
    weights = [one.weight for one in schedule.window.passes]
    return float(sum(
        size * weights[index]
        for size, index in zip(
            schedule.bytes[tasks].tolist(), schedule.pass_index[tasks].tolist(), strict=True
        )
    ))


def _memory(problem: Problem, best: Evaluated) -> dict:  # type: ignore[type-arg]
    result = {}
    for tier, uses in best.placed.peak_memory().items():
        _, most = memory_limit(problem.hardware, tier, pinned=best.placed.policy.pinned)
        result[tier] = TierMemory(peak=sum(uses.values()), capacity=most, uses=uses)
    return result


def _alternatives(
    problem: Problem, result: SearchResult, tried: list[Evaluated], best: Evaluated
) -> list[Alternative]:
    """List what was considered beside the winner, best first, with the reason that it lost."""
    simulated = {id(one.candidate): one for one in tried}
    found = []
    for candidate in result.candidates:
        if candidate is best.candidate:
            continue
        one = simulated.get(id(candidate))
        speed = one.prediction.throughput_tok_s if one is not None else None
        found.append(
            Alternative(
                schedule=candidate.policy.schedule(problem.workload.gen_len),
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
        gap = 1 - candidate.lp_tok_s / best.candidate.lp_tok_s
        behind = f"{100 * gap:.1f} % slower by the program" if gap > 5e-4 else "equal by the program"
        return f"{prefix}{behind}; not among those simulated"
    ratio = one.prediction.throughput_tok_s / best.prediction.throughput_tok_s
    if ratio >= 1 - _TIE:
        return f"{prefix}as fast, with a larger block or a longer wait"
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
