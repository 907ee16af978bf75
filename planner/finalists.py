"""The search's best candidates, laid out and simulated, and which of them wins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from planner.blocks import Candidate, Solver, candidate_of, one_sided
from planner.choices import roots, smallest_block
from planner.evaluate import Evaluated, evaluate_candidate
from planner.problem import Problem
from planner.search import SearchResult, preference

#: Candidates that are simulated, if there is one of each kind among them.
SIMULATED = 5
#: Plans that are as fast to within this share of it are as good.
TIE = 1e-3
_NEAR = 0.9  # of the best answer by the program, to be worth a simulation


def simulate_best(result: SearchResult) -> list[Evaluated]:
    """Simulate the candidates that promise most, of every kind the best, as far as they may win."""
    solver = result.solver
    promising = _promising(solver.problem, result.candidates)
    # The others count only where the layouts of these leave no room.
    for candidates in (promising, result.candidates, _smallest_blocks(solver)):
        tried = simulated(solver, candidates)
        if tried:
            best = choose(tried)
            least = _NEAR * result.candidates[0].effective_tok_s
            near = [one for one in one_sided(solver, best.candidate) if one.effective_tok_s >= least]
            return tried + simulated(solver, near, best.prediction.throughput_tok_s)
    return []


def simulated(solver: Solver, candidates: Iterable[Candidate], reached: float = 0.0) -> list[Evaluated]:
    """Lay out and simulate candidates, but for those that do not fit or cannot win.

    The program bounds the simulation; so who is slower by it than a simulated plan, ``reached`` [tok/s] or
    one of these, does not even tie. Under a limit of latency the slower ones may be all that keeps it.
    """
    limited = solver.problem.max_latency is not None
    tried = []
    for candidate in candidates:
        if limited or candidate.lp_tok_s > reached * (1 - TIE):
            one = evaluate_candidate(solver, candidate)
            if one is not None:
                tried.append(replace(one, found_as=candidate))
                reached = max(reached, one.prediction.throughput_tok_s)
    return tried


def keeping(limit: float | None, tried: list[Evaluated]) -> list[Evaluated]:
    """List the plans that keep a limit of latency. [s]"""
    return [one for one in tried if limit is None or one.prediction.latency_s <= limit]


def choose(tried: list[Evaluated]) -> Evaluated:
    """Take the fastest; of ties, the smallest block."""
    top = max(one.prediction.throughput_tok_s for one in tried)
    ties = [one for one in tried if one.prediction.throughput_tok_s >= top * (1 - TIE)]
    return min(ties, key=lambda one: (one.placed.policy.block, -one.prediction.throughput_tok_s))


def _promising(problem: Problem, candidates: list[Candidate]) -> list[Candidate]:
    """Choose candidates: the best of each kind, then those with few large groups among the best.

    Few groups have the smaller overheads, which the program does not see.
    """
    lives = problem.workload.passes
    kinds: dict[object, Candidate] = {}
    for candidate in candidates:
        kind = (candidate.outer.shape, candidate.policy.schedule(lives), candidate.outer.pins)
        kinds.setdefault(kind, candidate)
    chosen = sorted(kinds.values(), key=preference)[:SIMULATED]
    top = candidates[0].effective_tok_s if candidates else 0.0
    near = [each for each in candidates if each.effective_tok_s >= _NEAR * top and each not in chosen]
    near.sort(key=lambda each: (-round(each.effective_tok_s / top, 2), each.policy.num_groups))
    return [*chosen, *near][: max(SIMULATED, len(chosen))]


def _smallest_blocks(solver: Solver) -> Iterator[Candidate]:
    """Solve for the least demanding block of every kind."""
    for root in roots(solver.problem, solver.options):
        outer, block = smallest_block(solver.problem, solver.options, root)
        solution = solver.solve(outer, block)
        if solution is not None:
            yield candidate_of(solver.problem, outer, block, solution)
