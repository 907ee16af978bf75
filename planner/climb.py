"""Better plans next to the one that the simulation likes best.

To the program, which overlaps everything perfectly, many blocks are about as good. Contention and the ends of
passes tell them apart. So group size and block are halved and doubled for as long as the simulation gains by
it; a neighbour that is no faster by the program, which bounds the simulation, is not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.blocks import Solver
from planner.choices import fits_queue, group_sizes, known_groups, nearest_size, unit_of
from planner.evaluate import Evaluated, evaluate_block
from planner.finalists import keeping
from planner.problem import Outer

#: Neighbours of a plan: how much of its group size and of its block they have.
_STEPS = ((0.5, 1.0), (2.0, 1.0), (1.0, 0.5), (1.0, 2.0), (0.5, 0.5))
_WHY = "next to the best in the simulation"
_GAIN = 0.002  # relative; a neighbour that promises or brings less is not worth another step
_PROMISE = 0.005  # relative, by the program, which is the more optimistic of the two


def climb(solver: Solver, tried: list[Evaluated], start: Evaluated) -> list[Evaluated]:
    """Go from neighbour to neighbour, to the best each time, while that gains.

    Args:
        solver: of the problem, whose limit of latency neighbours keep.
        tried: what has been simulated, which is not done again.
        start: the best of them.

    Returns:
        Everything that was simulated on the way.
    """
    known = {(one.candidate.outer, one.placed.policy.block) for one in tried}
    found: list[Evaluated] = []
    best: Evaluated | None = start
    while best is not None:
        reached = best.prediction.throughput_tok_s
        around = []
        for outer, block in _neighbours(solver, best):
            if (outer, block) not in known:
                known.add((outer, block))
                one = evaluate_block(solver, outer, block, _WHY, above=reached * (1 + _PROMISE))
                around += [one] if one is not None else []
        found += around
        kept = keeping(solver.problem.max_latency, around)
        better = [one for one in kept if one.prediction.throughput_tok_s > reached * (1 + _GAIN)]
        best = max(better, key=lambda one: one.prediction.throughput_tok_s, default=None)
    return found


def _neighbours(solver: Solver, one: Evaluated) -> Iterator[tuple[Outer, int]]:
    """List the group sizes and blocks next to a plan's."""
    problem, options, policy = solver.problem, solver.options, one.placed.policy
    sizes, groups = group_sizes(problem, options, one.candidate.outer), known_groups(problem, options)
    for of_size, of_block in _STEPS:
        size = nearest_size(sizes, policy.gpu_batch * of_size)
        outer = replace(one.candidate.outer, gpu_batch=size, smallest_batch=None)
        unit = unit_of(problem, outer)
        block = groups * size if groups is not None else max(1, round(policy.block * of_block / unit)) * unit
        if fits_queue(problem, outer, block):
            yield outer, block
