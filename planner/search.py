"""The outer search: bits, schedule, pinning and group size around the placement program.

Best first over relaxations. A node stands for a range of group sizes with everything else chosen; its program
has the kernel efficiency of the largest and the buffers of the smallest of them, so no group size in the
range does better. The node with the best relaxation is split, or solved for whole blocks if it is down to
one size; among those that are as good, the smallest range, so that there soon is an answer to prune with.
Every family (bits, kind of schedule, homes of what lies on one tier) keeps its own best, since simulation
decides in the end; a family whose relaxation is far behind is not pursued.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from planner.blocks import Candidate, Solver, best_block, best_queue_factor, small_block
from planner.choices import Options, group_sizes, known_groups, nearest_size, roots, unit_of
from planner.problem import Outer, Problem

#: A node is pursued only if its relaxation beats its family's best by more than this; by more, far behind.
TOLERANCE = 0.005
#: A family is pursued only if its relaxation comes this near to the best of all.
FAMILY_RANGE = 0.8


@dataclass(frozen=True)
class SearchResult:
    """Candidates, best first; the bound on every policy searched; the solver, which counts programs."""

    candidates: list[Candidate]
    bound_tok_s: float
    solver: Solver


@dataclass(order=True)
class _Node:
    """A range of group sizes, with the answer of its relaxation."""

    priority: tuple[int, int, int]
    root: Outer = field(compare=False)
    sizes: tuple[int, ...] = field(compare=False)
    throughput: float = field(compare=False)
    block: float = field(compare=False)


_Family = tuple[object, bool, object]


def _family(outer: Outer) -> _Family:
    return outer.shape, outer.stagger is None, outer.pins


def search(problem: Problem, options: Options) -> SearchResult:
    """Find the best policies. An empty list of candidates means that nothing fits.

    Raises:
        InputError: pinned variables contradict each other or the engine.
    """
    solver = Solver(problem, options)
    nodes: list[_Node] = []
    for root in roots(problem, options):
        _push(nodes, solver, root, group_sizes(problem, options, root))
    found: dict[Outer, Candidate] = {}
    best: dict[_Family, float] = {}
    bound = 0.0
    while nodes:
        node = heapq.heappop(nodes)
        family = _family(node.root)
        if not _promises(node.throughput, best.get(family, 0.0), max(best.values(), default=0.0)):
            bound = max(bound, node.throughput)
        elif len(node.sizes) > 1:
            half = len(node.sizes) // 2
            _push(nodes, solver, node.root, node.sizes[:half])
            _push(nodes, solver, node.root, node.sizes[half:])
        else:
            outer = replace(node.root, gpu_batch=node.sizes[0])
            candidate = best_block(solver, outer, node.block)
            if candidate is not None:
                found[outer] = candidate
                best[family] = max(best.get(family, 0.0), candidate.effective_tok_s)
    candidates = [*found.values(), *_beside(solver, found)]
    highest = max((each.lp_tok_s for each in candidates), default=0.0)
    return SearchResult(sorted(candidates, key=preference), max(bound, highest), solver)


def _push(nodes: list[_Node], solver: Solver, root: Outer, sizes: tuple[int, ...]) -> None:
    """Solve the relaxation of a range of group sizes and keep it if it is feasible."""
    if not sizes:
        return
    outer = replace(root, gpu_batch=sizes[-1], smallest_batch=sizes[0])
    solution = solver.solve(outer, _known_block(solver, sizes))
    if solution is not None:
        smallest = replace(root, gpu_batch=sizes[0])
        throughput = solution.throughput * best_queue_factor(solver.problem, smallest)
        priority = (-math.floor(math.log(throughput) / TOLERANCE), len(sizes), sizes[0])
        heapq.heappush(nodes, _Node(priority, root, sizes, throughput, solution.block))


def _promises(throughput: float, best: float, top: float) -> bool:
    """Tell whether a relaxation may beat its family's best by enough: more is asked far behind the top."""
    behind = max(0.0, 1.0 - throughput / top) if top else 0.0
    return throughput > max(best * (1 + TOLERANCE + behind / 4), top * FAMILY_RANGE)


def preference(candidate: Candidate) -> tuple[float, int, int]:
    """Order candidates: fastest by the program, then the smallest block, then the smallest group."""
    return (-candidate.effective_tok_s, candidate.policy.block, candidate.policy.gpu_batch)


def _known_block(solver: Solver, sizes: tuple[int, ...]) -> int | None:
    """Give the block if both its factors are known."""
    groups = known_groups(solver.problem, solver.options)
    return groups * sizes[0] if groups is not None and len(sizes) == 1 else None


def _beside(solver: Solver, found: dict[Outer, Candidate]) -> list[Candidate]:
    """Add what simulation may prefer to the best of each family: other group sizes, a smaller block."""
    options = solver.options
    if not found:
        return []
    leaders: dict[_Family, Candidate] = {}
    for candidate in sorted(found.values(), key=preference):
        leaders.setdefault(_family(candidate.outer), candidate)
    top = max(leaders.values(), key=lambda each: each.effective_tok_s)
    beside = []
    for leader in leaders.values():
        for outer, block in _neighbours(solver, leader, (0.5, 2, 4) if leader is top else (2,)):
            if outer not in found:
                beside.append(best_block(solver, outer, float(block)))
    if known_groups(solver.problem, options) is None:
        beside.append(small_block(solver, top))
    return [candidate for candidate in beside if candidate is not None]


def _neighbours(solver: Solver, leader: Candidate, factors: tuple[float, ...]) -> Iterator[tuple[Outer, int]]:
    """List the group sizes nearest to multiples of a candidate's, each with about the same block."""
    policy, prompts = leader.policy, solver.problem.workload.num_prompts
    sizes = group_sizes(solver.problem, solver.options, leader.outer)
    if prompts is not None and len(factors) > 1:
        factors = (*factors, policy.num_groups)  # a short queue may be one group
    for size in dict.fromkeys(nearest_size(sizes, policy.gpu_batch * factor) for factor in factors):
        outer = replace(leader.outer, gpu_batch=size)
        unit = unit_of(solver.problem, outer)
        block = policy.block if prompts is not None else policy.block // unit * unit
        if block:
            yield outer, block
