"""What the outer search may choose: bits, spreads of admissions, pinning and group sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from planner.pins import Pins
from planner.problem import Outer, Problem
from simulator.errors import InputError
from simulator.hardware import TIERS
from simulator.layers import Shape
from simulator.policy import Bits, ScheduleName, cohorts_in_flight
from simulator.runtime import Runtime

Quantize = Literal["none", "weights", "cache", "both", "auto"]
ScheduleChoice = Literal["zigzag", "diagonal", "row", "auto"]

GROUP_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_COHORTS = (4, 8, 16, 32, 64, 128)
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
    schedule: ScheduleChoice = "auto"
    pins: Pins = Pins()


def allowed_shapes(options: Options) -> list[Shape]:
    """List the forms in which weights and cache may be stored."""
    pins = options.pins
    bits = dict.fromkeys(
        (pins.get("weight_bits", weight), pins.get("cache_bits", cache))
        for weight, cache in _BITS[options.quantize]
    )
    group, top = pins.get("quant_group", 64), pins.get("attention_top", 1.0)
    return [Shape(weight, cache, group, attention_top=top) for weight, cache in bits]


def roots(problem: Problem, options: Options) -> Iterator[Outer]:
    """Enumerate bits, schedules and pinning, with the group size left open.

    Raises:
        InputError: pinned variables contradict each other or the engine.
    """
    pins = options.pins
    base = Outer(gpu_batch=1, prefetch=pins.get("prefetch", 1), prompt_batch=pins.get("prompt_batch"))
    if pins.get("attention_top", 1.0) < 1.0 and not problem.runtime.sparse_attention:
        raise InputError(
            f"--fix attention_top: {problem.runtime.name} has no sparse attention; drop it, or take "
            "--runtime reference"
        )
    if one_group(problem, options) and pins.get("num_groups", 1) > 1:
        raise InputError(f"--fix num_groups={pins.get('num_groups')}: row by row there is one group; drop it")
    for shape, stagger, pinned in itertools.product(
        allowed_shapes(options), _staggers(problem, options), _pinning(problem, options)
    ):
        for homes in _homes(problem.runtime, pins, shape):
            fixed = (*pins.placement(), *homes.placement())
            yield replace(base, shape=shape, stagger=stagger, pinned=pinned, pins=fixed)


def one_group(problem: Problem, options: Options) -> bool:
    """Tell whether all sequences in flight must be one group."""
    return options.schedule == "row" or set(problem.runtime.schedules) == {"row"}


def known_groups(problem: Problem, options: Options) -> int | None:
    """Give the number of groups where the search has no choice."""
    return 1 if one_group(problem, options) else options.pins.get("num_groups")


def _homes(runtime: Runtime, pins: Pins, shape: Shape) -> list[Pins]:
    """List where the engine may keep what it keeps on one tier, and whether the CPU attends, to all or none.

    Raises:
        InputError: the user pinned such a class elsewhere.
    """
    free: list[list[tuple[str, Any]]] = []
    for name, tiers in runtime.homes.items():
        whole = {tier: tuple(float(tier == other) for other in TIERS) for tier in tiers}
        asked = pins.get(name)
        if asked is None:
            free.append([(name, split) for split in whole.values()])
        elif asked not in whole.values():
            raise InputError(
                f"--fix {name}: runtime {runtime.name} keeps it whole, on {' or '.join(tiers)}; drop it"
            )
    if runtime.cpu_attention != "share" and pins.get("cpu_attention") is None:
        shares = (0.0, 1.0) if shape.cache_bits == 16 else (0.0,)
        shares = (1.0,) if runtime.cpu_attention == "always" else shares
        free.append([("cpu_attention", share) for share in shares])
    homes = map(Pins, itertools.product(*free))
    return [each for each in homes if runtime.cpu_attention == "always" or not _idle(each, pins)]


def _idle(homes: Pins, pins: Pins) -> bool:
    """Tell whether the CPU is to attend to a cache that lies on the GPU: the same as not."""
    cache = homes.get("cache", pins.get("cache"))
    return bool(homes.get("cpu_attention")) and cache is not None and cache[0] == 1.0


def unit_of(problem: Problem, outer: Outer) -> int:
    """Give the smallest step of the block: one group in every cohort."""
    return outer.gpu_batch * cohorts_in_flight(outer.stagger, problem.workload.passes)


def smallest_block(problem: Problem, options: Options, root: Outer) -> tuple[Outer, int]:
    """Give the least demanding group size and block of a root."""
    size = options.pins.get("gpu_batch") or options.pins.get("prompt_batch") or 1
    outer = replace(root, gpu_batch=size)
    groups = options.pins.get("num_groups")
    return outer, size * groups if groups else unit_of(problem, outer)


def group_sizes(problem: Problem, options: Options, root: Outer) -> tuple[int, ...]:
    """List the group sizes to try: as pinned, else up to the queue's length.

    Raises:
        InputError: a pinned sub-batch does not divide a pinned group.
    """
    pins = options.pins
    cohorts = cohorts_in_flight(root.stagger, problem.workload.passes)
    groups, parts, fixed = pins.get("num_groups"), pins.get("prompt_batch"), pins.get("gpu_batch")
    if groups is not None and groups % cohorts:
        return ()
    if fixed is not None and parts is not None and fixed % parts:
        raise InputError(f"--fix prompt_batch={parts}: it must divide gpu_batch={fixed}")
    sizes = (fixed,) if fixed is not None else tuple((parts or 1) * size for size in GROUP_SIZES)
    prompts = problem.workload.num_prompts
    if prompts is None:
        return sizes
    if parts is None and fixed is None:  # groups that divide a short queue evenly
        even = (math.ceil(prompts / count / cohorts) for count in range(1, 5))
        sizes = tuple(sorted({*sizes, *(size for size in even if size <= sizes[-1])}))
    fitting = tuple(
        size for size in sizes if fits_queue(problem, replace(root, gpu_batch=size), size * cohorts)
    )
    spread = options.schedule == "diagonal" or pins.get("stagger") is not None
    return fitting or (sizes[:1] if spread or cohorts == 1 else ())


def nearest_size(sizes: tuple[int, ...], aim: float) -> int:
    """Give the group size that is nearest to an aim, as a ratio."""
    return min(sizes, key=lambda size: abs(math.log(size / aim)))


def fits_queue(problem: Problem, outer: Outer, block: int) -> bool:
    """Tell whether a block is no larger than a finite queue needs; zig-zag's last group may have gaps."""
    prompts, size = problem.workload.num_prompts, outer.gpu_batch
    zigzag = unit_of(problem, outer) == size
    return prompts is None or block <= prompts or (zigzag and size <= prompts and block < prompts + size)


def _pinning(problem: Problem, options: Options) -> tuple[bool, ...]:
    """Pageable memory is worth a try only where pinned memory is limited."""
    fixed = options.pins.get("pinned")
    if fixed is not None:
        return (fixed,)
    host = problem.hardware.tiers["cpu"]
    limited = host.pinnable is not None and host.pinnable < host.usable
    return (True, False) if limited else (True,)


def _staggers(problem: Problem, options: Options) -> list[int | None]:
    """List the spreads of admissions to try: None is zig-zag (and row-by-row)."""
    passes, runtime = problem.workload.passes, problem.runtime
    able = set(runtime.schedules)
    fixed, groups = options.pins.get("stagger"), options.pins.get("num_groups")
    wanted: set[ScheduleName] = able if options.schedule == "auto" else {options.schedule} & able
    if not wanted:
        known = ", ".join(runtime.schedules)
        raise InputError(f"--schedule {options.schedule}: runtime {runtime.name} runs {known}")
    if fixed is not None:
        return [_fixed_stagger(problem, fixed, groups, wanted)]
    staggers: list[int | None] = [None] if wanted & {"zigzag", "row"} else []
    if "diagonal" in wanted and passes > 1:
        spread = {math.ceil(passes / cohorts) for cohorts in _COHORTS if cohorts <= passes} | {1}
        staggers += sorted(every for every in spread if cohorts_in_flight(every, passes) > 1)
    if not staggers:
        scored = problem.workload.scores
        what = "prompts that are scored" if scored else "sequences of one generated token"
        raise InputError(f"--schedule {options.schedule}: {what} cannot be staggered")
    return staggers


def _fixed_stagger(problem: Problem, fixed: int, groups: int | None, wanted: set[ScheduleName]) -> int | None:
    cohorts = cohorts_in_flight(fixed, problem.workload.passes)
    if cohorts > 1 and "diagonal" not in wanted:
        raise InputError(f"--fix stagger={fixed}: a diagonal schedule, which is not among those allowed here")
    if groups is not None and groups % cohorts:
        raise InputError(
            f"--fix num_groups={groups}: cannot be admitted in the {cohorts} equal cohorts of "
            f"stagger={fixed}; take a multiple of {cohorts}"
        )
    return fixed if cohorts > 1 else None
