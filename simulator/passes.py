"""Passes: which groups are in flight, at which position, and which passes a simulation plays.

In one pass every sequence in flight advances by one step: position 0 is its whole prompt, position t > 0 one
token over ``own_len + t - 1`` cached ones. A cohort is admitted every ``stagger`` passes and lives
``Workload.passes`` passes; admitting a whole block at once is zig-zag.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.policy import FloatArray, Policy, cohorts_in_flight
from simulator.workload import Workload

#: Runs of more passes than this are sampled unless the caller asks for all.
MAX_PASSES = 40


@dataclass(frozen=True)
class Pass:
    """One pass: its number, the cohorts in flight as (cohort, position), and how many like it it stands for.

    A weight of 0 marks a pass that is played (to fill or close the window) but not counted.
    """

    number: int
    cohorts: tuple[tuple[int, int], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Window:
    """The passes that a simulation plays, and what the counted ones stand for.

    ``sequences`` are completed in the counted time; a sequence lives ``latency_windows`` windows.
    """

    passes: tuple[Pass, ...]
    sequences: float
    latency_windows: float


def pass_at(number: int, stagger: int, lives: int, cohorts: range | None = None) -> Pass:
    """List the cohorts in flight in a pass; ``cohorts`` limits which are ever admitted (None: all)."""
    newest = number // stagger
    oldest = (number - lives) // stagger + 1
    alive = range(newest, oldest - 1, -1)
    if cohorts is not None:
        alive = range(min(newest, cohorts.stop - 1), max(oldest, cohorts.start) - 1, -1)
    return Pass(number, tuple((cohort, number - cohort * stagger) for cohort in alive))


def sample(first: int, last: int, count: int) -> dict[int, float]:
    """Choose at most ``count`` of the integers first..last with weights that sum to their number.

    The weights integrate a piecewise linear interpolation, so a sum of a convex function is never
    underestimated. Nodes are spaced evenly.

    >>> sample(1, 5, 3)
    {1: 1.5, 3: 2.0, 5: 1.5}
    """
    total = last - first + 1
    if total <= 0:
        return {}
    if total <= count:
        return dict.fromkeys(range(first, last + 1), 1.0)
    nodes = np.unique(np.linspace(first, last, count).round().astype(int))
    weights = dict.fromkeys(nodes.tolist(), 0.0)
    for left, right in itertools.pairwise(nodes.tolist()):
        # Sum of the linear interpolant over the integers left..right-1: the right node's share is
        # sum(i / width) over 0 <= i < width.
        width = right - left
        weights[right] += (width - 1) / 2
        weights[left] += (width + 1) / 2
    weights[int(nodes[-1])] += 1.0
    return weights


def window(policy: Policy, workload: Workload, max_passes: int | None = MAX_PASSES) -> Window:
    """Choose the passes to play; ``max_passes`` of None plays all of them.

    Zig-zag and row-by-row play one block from a cold start. The diagonal plays one period of the steady
    state after a warm-up. A finite number of prompts plays the whole run, admissions and drain included.
    """
    stagger = policy.stagger or workload.passes
    if policy.cohorts(workload.passes) == 1:
        stagger = workload.passes
        if workload.num_prompts is None or workload.num_prompts <= policy.block:
            return _block(workload, min(policy.block, workload.num_prompts or policy.block), max_passes)
        blocks = math.ceil(workload.num_prompts / policy.block)
        one = _block(workload, workload.num_prompts / blocks, max_passes)
        return Window(one.passes, one.sequences, 1.0)
    if workload.num_prompts is None:
        return _steady(policy, workload, stagger, max_passes)
    return _finite(policy, workload, workload.num_prompts, stagger, max_passes)


def first_step(workload: Workload, sequences: float) -> Window:
    """Play the prompts of a block and its first token after them, which stands for all later ones.

    So FlexGen's benchmark measures large models; the cache is still short then.
    """
    later = (Pass(1, ((0, 1),), workload.passes - 1.0),) if workload.passes > 1 else ()
    return Window((Pass(0, ((0, 0),)), *later), sequences, 1.0)


def _block(workload: Workload, sequences: float, max_passes: int | None) -> Window:
    passes = _counted(range(workload.passes), workload.passes, workload.passes, range(1), max_passes)
    return Window(tuple(passes), sequences, 1.0)


def _counted(
    numbers: range, stagger: int, lives: int, cohorts: range | None, max_passes: int | None
) -> list[Pass]:
    """Make the passes of a range and sample them if they are many.

    Admissions are sampled apart from the others, and so are passes after the oldest cohort has ended and
    before the next is admitted; while a finite run fills, while it is full (or all are in) and while it
    drains, apart too. Within each of these, what a pass does changes evenly.
    """
    admissions = [p for p in numbers if p % stagger == 0 and (cohorts is None or p // stagger in cohorts)]
    if max_passes is None or len(numbers) <= max_passes:
        chosen = dict.fromkeys(numbers, 1.0)
    elif len(admissions) == 1:
        chosen = {admissions[0]: 1.0}
        for kind in _kinds(numbers, set(admissions), stagger, lives)[1:]:
            chosen |= _sample_of(kind, max(3, max_passes // 4))
    else:
        corners = (lives, admissions[-1] + 1) if cohorts is not None else ()
        chosen = {}
        edges = [numbers.start, *sorted(corners), numbers.stop]
        count = max(2 if corners else 3, max_passes // (2 * (len(edges) - 1)))
        for first, stop in itertools.pairwise(edges):
            for kind in _kinds(range(first, stop), set(admissions), stagger, lives):
                chosen |= _sample_of(kind, count)
    return [
        Pass(number, pass_at(number, stagger, lives, cohorts).cohorts, weight)
        for number, weight in sorted(chosen.items())
    ]


def _kinds(numbers: range, admissions: set[int], stagger: int, lives: int) -> tuple[list[int], ...]:
    """Divide passes: with an admission, with all cohorts in flight, and after the oldest has ended."""
    others = [number for number in numbers if number not in admissions]
    ended = [number for number in others if 0 < lives % stagger <= number % stagger]
    all_there = [number for number in others if number not in set(ended)]
    return [number for number in numbers if number in admissions], all_there, ended


def _sample_of(numbers: Sequence[int], count: int) -> dict[int, float]:
    return {numbers[index]: weight for index, weight in sample(0, len(numbers) - 1, count).items()}


def _steady(policy: Policy, workload: Workload, stagger: int, max_passes: int | None) -> Window:
    """One period of the steady state: warm-up passes, the period, and one pass that closes it."""
    periods = max(1, -(-3 // stagger))
    start = stagger * -(-(workload.passes + 2) // stagger)  # cohorts in flight are numbered from 0
    length = periods * stagger
    uncounted = dict.fromkeys([*range(start - 2, start), start + length], 0.0)
    counted = _counted(range(start, start + length), stagger, workload.passes, None, max_passes)
    edges = [Pass(p, pass_at(p, stagger, workload.passes).cohorts, 0.0) for p in uncounted]
    passes = tuple(sorted([*counted, *edges], key=lambda one: one.number))
    cohort = policy.block / policy.cohorts(workload.passes)
    return Window(passes, cohort * periods, workload.passes / length)


def _finite(
    policy: Policy, workload: Workload, num_prompts: int, stagger: int, max_passes: int | None
) -> Window:
    """Play a whole staggered run: cohorts enter one by one and the last ones drain."""
    cohort = policy.block / policy.cohorts(workload.passes)
    count = math.ceil(num_prompts / cohort)
    last = (count - 1) * stagger + workload.passes
    passes = _counted(range(last), stagger, workload.passes, range(count), max_passes)
    return Window(tuple(passes), num_prompts, workload.passes / last)


def peak_tokens(workload: Workload, stagger: int | None, page_tokens: int) -> tuple[float, float]:
    """Give the peak of cached tokens, and of tokens whose activations are at home, per sequence in flight.

    A sequence at position t holds s + t tokens of cache, rounded up to whole pages; the last token is never
    stored. Zig-zag peaks at s + n - 1. Contiguous caches (``page_tokens`` of 0) hold s + n - 1 from
    admission on.

    Activations at home: the prompts of the cohort that is admitted, and a token of every sequence in flight,
    since each cohort keeps a place for its tokens throughout. A single cohort has them in its prompts' place.
    """
    lives, every = workload.passes, stagger or workload.passes
    cohorts = cohorts_in_flight(stagger, lives)
    if cohorts == 1:
        every = lives

    def held(position: int) -> int:
        tokens = workload.cached_at(position if page_tokens else lives - 1)
        return -(-tokens // page_tokens) * page_tokens if page_tokens else tokens

    # Within a period the sum grows with the pass until the oldest cohort retires, so two passes suffice.
    retiring = lives - 1 - (cohorts - 1) * every
    full = sum(held(i * every + retiring) for i in range(cohorts))
    after = sum(held(i * every + every - 1) for i in range(cohorts - 1)) if retiring < every - 1 else 0
    at_home = workload.own_len + (cohorts if cohorts > 1 else 0)
    return max(full, after) / cohorts, at_home / cohorts


def period_positions(workload: Workload, stagger: int | None) -> tuple[FloatArray, FloatArray]:
    """Give the decode positions of one cohort's whole life, in admission passes and in the others. [P]

    In a period of ``stagger`` passes the cohorts in flight visit every position of a life once; position 0
    is the prompt, those at multiples of the stagger meet a prompt in the same pass.
    """
    every = stagger or workload.passes
    positions = np.arange(1, workload.passes)
    with_prompt = positions % every == 0
    return positions[with_prompt].astype(float), positions[~with_prompt].astype(float)
