"""The outer search: bits, schedule, pinning and group size around the placement program.

Best first over relaxations. A node stands for a range of group sizes with everything else chosen; its program
has the kernel efficiency of the largest and the buffers of the smallest of them, so no group size in the
range does better. The node with the best relaxation is split, or solved for whole blocks if it is down to
one size. The search ends when no open node is better than the best found by more than ``TOLERANCE``.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from planner.pins import Pins
from planner.program import Outer, Problem, Program, Solution
from simulator.errors import InputError
from simulator.operations import Shape
from simulator.policy import Bits, CpuAttention, Policy, ScheduleName, Split, cohorts_in_flight

Quantize = Literal["none", "weights", "cache", "both", "auto"]

GROUP_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
COHORTS = (4, 8, 16, 32, 64, 128)
TOLERANCE = 0.005
_BITS: dict[Quantize, tuple[tuple[Bits, Bits], ...]] = {
    "none": ((16, 16),),
    "weights": ((4, 16),),
    "cache": ((16, 4),),
    "both": ((4, 4),),
    "auto": ((16, 16), (4, 16), (16, 4), (4, 4)),
}


@dataclass(frozen=True)
class Options:
    """What the search may choose."""

    quantize: Quantize = "none"
    schedule: Literal["zigzag", "diagonal", "row", "auto"] = "auto"
    pins: Pins = Pins()


@dataclass(frozen=True)
class Candidate:
    """A policy with the program's answer for its block. ``why`` says what it is among the candidates."""

    outer: Outer
    solution: Solution
    policy: Policy
    why: str = ""

    @property
    def lp_tok_s(self) -> float:
        """Throughput under perfect overlap. [tok/s]"""
        return self.solution.throughput


@dataclass
class SearchResult:
    """Candidates, best by the program first; the bound on every policy searched; how many programs it took."""

    candidates: list[Candidate]
    bound_tok_s: float
    programs: int


@dataclass
class _Search:
    problem: Problem
    options: Options
    programs: int = 0
    found: dict[Outer, Candidate] = field(default_factory=dict)

    def solve(self, outer: Outer, block: int | None = None, **aim: float) -> Solution | None:
        """Solve one program and count it."""
        self.programs += 1
        return Program(self.problem, outer, block).solve(**aim)


def search(problem: Problem, options: Options) -> SearchResult:
    """Find the best policies. An empty list of candidates means that nothing fits.

    Raises:
        InputError: pinned variables contradict each other or the engine.
    """
    state = _Search(problem, options)
    serial = itertools.count()
    heap: list[tuple[float, int, Outer, tuple[int, ...]]] = []
    for root in roots(problem, options):
        _push(state, heap, serial, root, _sizes(problem, options, root))
    best = 0.0
    while heap and -heap[0][0] > best * (1 + TOLERANCE):
        _, _, outer, sizes = heapq.heappop(heap)
        if len(sizes) > 1:
            half = len(sizes) // 2
            for part in (sizes[half:], sizes[:half]):
                _push(state, heap, serial, outer, part)
            continue
        candidate = _best_block(state, _leaf(outer, sizes))
        if candidate is not None:
            best = max(best, candidate.lp_tok_s)
    open_bound = max((-node[0] for node in heap), default=0.0)
    _widen(state, heap)
    ranked = sorted(state.found.values(), key=_preference)
    return SearchResult(ranked, max(open_bound, best), state.programs)


def _preference(candidate: Candidate) -> tuple[float, int, int]:
    return (-candidate.lp_tok_s, candidate.policy.block, candidate.policy.gpu_batch)


def _push(
    state: _Search,
    heap: list[tuple[float, int, Outer, tuple[int, ...]]],
    serial: Iterator[int],
    root: Outer,
    sizes: tuple[int, ...],
) -> None:
    """Bound a range of group sizes by its relaxation and queue it."""
    if not sizes:
        return
    solution = state.solve(_range(root, sizes), state.options.pins.get("num_groups") and _fixed(state, root, sizes))
    if solution is not None:
        heapq.heappush(heap, (-solution.throughput, next(serial), root, sizes))


def _fixed(state: _Search, root: Outer, sizes: tuple[int, ...]) -> int | None:
    """Give the block if both its factors are known."""
    return state.options.pins.get("num_groups") * sizes[0] if len(sizes) == 1 else None


def _range(root: Outer, sizes: tuple[int, ...]) -> Outer:
    return replace(root, gpu_batch=sizes[-1], smallest_batch=sizes[0])


def _leaf(root: Outer, sizes: tuple[int, ...]) -> Outer:
    return replace(root, gpu_batch=sizes[0], smallest_batch=None)


def allowed_shapes(options: Options) -> list[Shape]:
    """List the forms in which weights and cache may be stored."""
    pins = options.pins
    bits = dict.fromkeys(
        (pins.get("weight_bits", weight), pins.get("cache_bits", cache))
        for weight, cache in _BITS[options.quantize]
    )
    return [Shape(weight, cache, pins.get("quant_group", 64)) for weight, cache in bits]


def roots(problem: Problem, options: Options) -> Iterator[Outer]:
    """Enumerate bits, schedules and pinning, with the group size left open.

    Raises:
        InputError: pinned variables contradict each other or the engine.
    """
    pins = options.pins
    base = Outer(
        gpu_batch=1,
        prefetch=pins.get("prefetch", 1),
        prompt_batch=pins.get("prompt_batch"),
        pins=pins.placement(),
    )
    for shape, stagger, pinned in itertools.product(
        allowed_shapes(options), _staggers(problem, options), _pinning(problem, options)
    ):
        yield replace(base, shape=shape, stagger=stagger, pinned=pinned)


def smallest_block(problem: Problem, options: Options, root: Outer) -> tuple[Outer, int]:
    """Give the least demanding group size and block of a root."""
    size = options.pins.get("gpu_batch") or options.pins.get("prompt_batch") or 1
    cohorts = cohorts_in_flight(root.stagger, problem.workload.gen_len)
    groups = options.pins.get("num_groups") or cohorts
    return replace(root, gpu_batch=size), size * groups


def _pinning(problem: Problem, options: Options) -> tuple[bool, ...]:
    fixed = options.pins.get("pinned")
    if fixed is not None:
        return (fixed,)
    host = problem.hardware.tiers["cpu"]
    limited = host.pinnable is not None and host.pinnable < host.usable
    return (True, False) if limited else (True,)


def _staggers(problem: Problem, options: Options) -> list[int | None]:
    """List the spreads of admissions to try: None is zig-zag (and row-by-row)."""
    gen_len = problem.workload.gen_len
    able = problem.runtime.schedules
    fixed = options.pins.get("stagger")
    wanted: set[ScheduleName] = set(able) if options.schedule == "auto" else {options.schedule}
    if not wanted & set(able):
        known = ", ".join(able)
        raise InputError(f"--schedule {options.schedule}: runtime {problem.runtime.name} runs {known}")
    if fixed is not None:
        if cohorts_in_flight(fixed, gen_len) > 1 and "diagonal" not in able:
            raise InputError(f"--fix stagger={fixed}: runtime {problem.runtime.name} admits whole blocks only")
        return [fixed]
    staggers: list[int | None] = [None] if wanted & {"zigzag", "row"} else []
    if "diagonal" in wanted and gen_len > 1:
        spread = {math.ceil(gen_len / cohorts) for cohorts in COHORTS if cohorts <= gen_len} | {1}
        staggers += sorted(every for every in spread if cohorts_in_flight(every, gen_len) > 1)
    return staggers


def _sizes(problem: Problem, options: Options, root: Outer) -> tuple[int, ...]:
    """List the group sizes to try: as pinned, else up to the queue's length."""
    pins = options.pins
    cohorts = cohorts_in_flight(root.stagger, problem.workload.gen_len)
    fixed = pins.get("gpu_batch")
    if fixed is not None:
        return (fixed,)
    most = problem.workload.num_prompts or GROUP_SIZES[-1]
    sizes = tuple(size for size in GROUP_SIZES if size * cohorts <= max(most, cohorts))
    groups = pins.get("num_groups")
    if groups is not None and groups % cohorts:
        return ()
    parts = pins.get("prompt_batch")
    return tuple(size for size in sizes if parts is None or size % parts == 0)


def _best_block(state: _Search, outer: Outer) -> Candidate | None:
    """Solve for whole blocks next to the relaxation's, walking on while it gets better."""
    blocks = _blocks(state, outer)
    tried: dict[int, Solution | None] = {}

    def value(block: int) -> float:
        if block not in tried:
            tried[block] = state.solve(outer, block)
        solution = tried[block]
        return solution.throughput if solution is not None else 0.0

    best = max(blocks, key=value, default=None)
    if best is None:
        return None
    unit = outer.gpu_batch * cohorts_in_flight(outer.stagger, state.problem.workload.gen_len)
    if value(best) == 0.0:
        best = _largest_feasible(unit, min(blocks), value)
    elif best == min(blocks) and len(blocks) > 1:
        while best > unit and value(best - unit) > value(best):
            best -= unit
    solution = tried.get(best) if best else None
    if solution is None or not best:
        return None
    polished = state.solve(outer, best, traffic=solution.seconds * (1 + 1e-7))
    if polished is not None:
        solution = replace(solution, placement=polished.placement)
    candidate = Candidate(outer, solution, _policy(state.problem, outer, best, solution))
    state.found[outer] = candidate
    return candidate


def _largest_feasible(unit: int, known_bad: int, value: Callable[[int], float]) -> int:
    """Bisect for the largest feasible multiple of ``unit`` below one that is not; 0 if there is none."""
    low, high = 0, known_bad // unit
    while high - low > 1:
        middle = (low + high) // 2
        if value(middle * unit) > 0.0:
            low = middle
        else:
            high = middle
    return low * unit


def _blocks(state: _Search, outer: Outer) -> list[int]:
    """List the whole blocks to try for one group size."""
    pins, workload = state.options.pins, state.problem.workload
    unit = outer.gpu_batch * cohorts_in_flight(outer.stagger, workload.gen_len)
    groups = pins.get("num_groups")
    if groups is not None:
        return [groups * outer.gpu_batch]
    if state.options.schedule == "row":
        return [outer.gpu_batch]
    relaxation = state.solve(outer)
    if relaxation is None:
        return []
    low = max(1, math.floor(relaxation.block / unit + 1e-9)) * unit
    blocks = [low] if abs(low - relaxation.block) < 1e-6 * low else [low, low + unit]
    if workload.num_prompts is not None:
        blocks += _even_blocks(workload.num_prompts, relaxation.block, unit)
        longest = math.ceil(workload.num_prompts / unit) * unit
        blocks = [block for block in blocks if block <= longest]
    return sorted(set(blocks))


def _even_blocks(prompts: int, block: float, unit: int) -> list[int]:
    """List the blocks that divide a finite queue into equal parts, next to the best block for a long one."""
    parts = max(1, math.floor(prompts / block))
    return [math.ceil(math.ceil(prompts / count) / unit) * unit for count in (parts, parts + 1)]


def _widen(state: _Search, heap: list[tuple[float, int, Outer, tuple[int, ...]]]) -> None:
    """Add what simulation may prefer: other group sizes beside the best, the best of each other schedule."""
    if not state.found:
        return
    best = min(state.found.values(), key=_preference)
    if state.options.pins.get("gpu_batch") is None and state.options.schedule != "row":
        for size in _neighbours(best.outer.gpu_batch):
            other = replace(best.outer, gpu_batch=size)
            if size in _sizes(state.problem, state.options, best.outer) and other not in state.found:
                _best_block(state, other)
    for kind in (True, False):  # zig-zag, diagonal
        if not any((outer.stagger is None) == kind for outer in state.found):
            rest = [node for node in heap if (node[2].stagger is None) == kind]
            if rest:
                _, _, outer, sizes = min(rest)
                _best_block(state, _leaf(outer, (_middle(sizes, best.outer.gpu_batch),)))
    _add_small_block(state, best)


def _middle(sizes: tuple[int, ...], like: int) -> int:
    return min(sizes, key=lambda size: abs(math.log(size / like)))


def _neighbours(size: int) -> list[int]:
    """List group sizes about half, twice, four and eight times as large."""
    return [_middle(GROUP_SIZES, max(1, int(size * factor))) for factor in (0.5, 2, 4, 8)]


def _add_small_block(state: _Search, best: Candidate) -> None:
    """The landscape is flat: find the smallest block whose predicted time is within 1 % of the best."""
    if state.options.pins.get("num_groups") is not None or state.options.schedule == "row":
        return
    outer = best.outer
    small = state.solve(outer, small=best.solution.seconds * 1.01)
    if small is None:
        return
    unit = outer.gpu_batch * cohorts_in_flight(outer.stagger, state.problem.workload.gen_len)
    block = math.ceil(small.block / unit - 1e-9) * unit
    if block >= best.policy.block:
        return
    solution = state.solve(outer, block)
    if solution is not None:
        why = "smallest block within 1 % of the best"
        # Keyed apart from the best block of the same outer choices.
        state.found[replace(outer, smallest_batch=outer.gpu_batch)] = Candidate(
            outer, solution, _policy(state.problem, outer, block, solution), why
        )


def _policy(problem: Problem, outer: Outer, block: int, solution: Solution) -> Policy:
    """Write a solution as a policy."""
    _, wg, wc, wd, cg, cpu_c, cpu_g, disk_c, disk_g, hg, hc, hd = (
        round(max(0.0, float(value)), 9) for value in solution.placement
    )
    return Policy(
        gpu_batch=outer.gpu_batch,
        num_groups=block // outer.gpu_batch,
        weights=normal_split(wg, wc, wd),
        cache=normal_split(cg, cpu_c + cpu_g, disk_c + disk_g),
        activations=normal_split(hg, hc, hd),
        cpu_attention=CpuAttention(
            cpu=cpu_c / (cpu_c + cpu_g) if cpu_c else 0.0, disk=disk_c / (disk_c + disk_g) if disk_c else 0.0
        ),
        weight_bits=outer.shape.weight_bits,
        cache_bits=outer.shape.cache_bits,
        quant_group=outer.shape.quant_group,
        stagger=outer.stagger,
        prompt_batch=outer.prompts_together(problem),
        pinned=outer.pinned,
        prefetch=outer.prefetch,
    )


def normal_split(gpu: float, cpu: float, disk: float) -> Split:
    """Make a split of three numbers that sum to about 1."""
    total = gpu + cpu + disk
    return Split(gpu=gpu / total, cpu=cpu / total, disk=max(0.0, 1.0 - gpu / total - cpu / total) if disk else 0.0)
