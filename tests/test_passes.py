"""Passes: who is in flight at which position, what is sampled, and how much cache is held at most."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.passes import pass_at, peak_tokens, period_positions, sample, window
from simulator.policy import Policy, Split, cohorts_in_flight
from simulator.workload import Workload

GPU = Split(gpu=1, cpu=0, disk=0)


def policy(stagger, gen_len, per_cohort=1, gpu_batch=2):
    """Make a policy with a number of groups in every cohort."""
    groups = per_cohort * cohorts_in_flight(stagger, gen_len)
    return Policy(
        gpu_batch=gpu_batch, num_groups=groups, weights=GPU, cache=GPU, activations=GPU, stagger=stagger
    )


def numbers(window_):
    """List the numbers of the passes of a window."""
    return [one.number for one in window_.passes]


# --- by hand ------------------------------------------------------------------------------------------------


def test_a_stagger_that_does_not_divide():
    """Lives of 5 passes, an admission every 2: three cohorts in flight or two, each at its own position."""
    assert cohorts_in_flight(2, 5) == 3
    flights = [pass_at(number, 2, 5).cohorts for number in range(6, 10)]
    assert flights == [
        ((3, 0), (2, 2), (1, 4)),
        ((3, 1), (2, 3)),
        ((4, 0), (3, 2), (2, 4)),
        ((4, 1), (3, 3)),
    ]


def test_a_finite_run_by_hand():
    """Three cohorts, one every 2 passes, of 3 passes each: they enter one by one and drain."""
    played = window(policy(2, 3, gpu_batch=1), Workload(prompt_len=4, gen_len=3, num_prompts=3), None)
    assert [one.cohorts for one in played.passes] == [
        ((0, 0),),
        ((0, 1),),
        ((1, 0), (0, 2)),
        ((1, 1),),
        ((2, 0), (1, 2)),
        ((2, 1),),
        ((2, 2),),
    ]
    assert played.sequences == 3


def test_zigzag_plays_one_block():
    """One cohort from its prompt to its last token; all passes count once."""
    played = window(policy(None, 4, per_cohort=3), Workload(prompt_len=4, gen_len=4))
    assert [one.cohorts for one in played.passes] == [((0, position),) for position in range(4)]
    assert [one.weight for one in played.passes] == [1.0] * 4
    assert (played.sequences, played.latency_windows) == (6, 1.0)


def test_peaks_by_hand():
    """Zig-zag peaks at s + n - 1; two cohorts half a life apart at the mean of theirs, in pages of 1.

    Two cohorts keep 10 tokens of prompts and 1 of each at home.
    """
    workload = Workload(prompt_len=10, gen_len=4)
    assert peak_tokens(workload, None, 1) == (13, 10)
    assert peak_tokens(workload, 2, 1) == ((11 + 13) / 2, 12 / 2)
    assert peak_tokens(workload, 2, 0) == (13, 12 / 2)
    assert peak_tokens(workload, None, 16) == (16, 10)


# --- laws ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.one_of(st.none(), st.integers(1, 14)), st.integers(1, 40), st.integers(1, 3))
def test_finite_queues_complete_all_prompts(gen_len, stagger, prompts, per_cohort):
    """Every cohort visits its positions once, in successive passes; the cohorts hold all prompts."""
    rules = policy(stagger, gen_len, per_cohort)
    played = window(rules, Workload(prompt_len=4, gen_len=gen_len, num_prompts=prompts), None)
    visits: dict[int, list[tuple[int, int]]] = {}
    for one in played.passes:
        for cohort, position in one.cohorts:
            visits.setdefault(cohort, []).append((one.number, position))
    for visited in visits.values():
        first = visited[0][0]
        assert visited == [(first + position, position) for position in range(gen_len)]
    if rules.cohorts(gen_len) > 1:
        size = rules.block / rules.cohorts(gen_len)
        assert (len(visits) - 1) * size < prompts <= len(visits) * size
        assert played.sequences == prompts
        assert numbers(played) == list(range(numbers(played)[-1] + 1))
    else:
        assert played.sequences <= min(prompts, rules.block)


@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 60))
def test_a_cohort_is_in_flight_from_its_admission_on(gen_len, stagger, number):
    """In the steady state exactly those cohorts fly that were admitted less than a life ago."""
    expected = {
        (cohort, number - cohort * stagger)
        for cohort in range(-gen_len - 1, number + 1)
        if 0 <= number - cohort * stagger < gen_len
    }
    cohorts = pass_at(number, stagger, gen_len).cohorts
    assert set(cohorts) == expected
    assert len(cohorts) == len(expected)
    assert len(cohorts) <= cohorts_in_flight(stagger, gen_len)


@given(st.integers(2, 40), st.integers(1, 40), st.sampled_from([None, 5, 8, 40]))
def test_the_steady_window_counts_whole_periods(gen_len, stagger, max_passes):
    """Counted passes make up whole periods, in each of which every position is visited once."""
    rules, workload = policy(stagger, gen_len), Workload(prompt_len=4, gen_len=gen_len)
    if rules.cohorts(gen_len) == 1:
        return
    played = window(rules, workload, max_passes)
    counted = [one for one in played.passes if one.weight]
    periods = played.sequences / (rules.block / rules.cohorts(gen_len))
    assert sum(one.weight for one in counted) == pytest.approx(periods * stagger)
    assert played.latency_windows * periods * stagger == pytest.approx(gen_len)
    assert numbers(played) == sorted(set(numbers(played)))
    assert min(one.cohorts[-1][0] for one in played.passes) >= 0
    visits = np.zeros(gen_len)
    for one in counted:
        for _, position in one.cohorts:
            visits[position] += one.weight
    if max_passes is None:
        np.testing.assert_allclose(visits, periods)
    assert visits.sum() == pytest.approx(periods * gen_len, rel=0.5)
    assert visits[0] == pytest.approx(periods)


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(1, 60)), st.integers(3, 50))
def test_sampling_keeps_totals(gen_len, stagger, max_passes):
    """Sampled passes stand for as many passes and the same sequences as all of them."""
    rules, workload = policy(stagger, gen_len), Workload(prompt_len=4, gen_len=gen_len)
    full, sampled = window(rules, workload, None), window(rules, workload, max_passes)
    assert sampled.sequences == full.sequences
    assert sampled.latency_windows == full.latency_windows
    weights = [sum(one.weight for one in played.passes) for played in (full, sampled)]
    assert weights[0] == pytest.approx(weights[1])
    assert set(numbers(sampled)) <= set(numbers(full))
    every = rules.stagger or gen_len
    for one in sampled.passes:
        assert one.cohorts == pass_at(one.number, every, gen_len, None if stagger else range(1)).cohorts or (
            rules.cohorts(gen_len) == 1
        )


@given(st.integers(2, 90), st.integers(2, 90), st.integers(3, 50))
def test_sampling_keeps_what_cohorts_do(gen_len, stagger, max_passes):
    """The counted passes of the steady state hold as many cohorts, at positions as far on, as all passes do.

    Both are what a pass costs; a sample that runs across the end of the oldest cohort's life gets them wrong.
    """
    workload, chosen = Workload(prompt_len=8, gen_len=gen_len), policy(stagger, gen_len)

    def sums(most):
        flights = [(one.weight, one.cohorts) for one in window(chosen, workload, most).passes]
        cohorts = sum(weight * len(alive) for weight, alive in flights)
        return cohorts, sum(weight * position for weight, alive in flights for _, position in alive)

    assert sums(max_passes) == pytest.approx(sums(None), rel=1e-9)


@given(st.integers(-50, 50), st.integers(-5, 300), st.integers(2, 60))
def test_samples_add_up(first, length, count):
    """Weights sum to the number of integers, both ends are chosen, and no more nodes than allowed."""
    chosen = sample(first, first + length - 1, count)
    assert sum(chosen.values()) == pytest.approx(max(0, length))
    assert len(chosen) <= max(count, 0)
    if length > 0:
        assert {first, first + length - 1} <= chosen.keys()
        assert min(chosen.values()) > 0


@given(
    st.integers(0, 50),
    st.integers(1, 300),
    st.integers(2, 60),
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-100, 100)), min_size=1, max_size=6),
)
def test_samples_never_underestimate_convex_sums(first, length, count, lines):
    """The largest of some lines is convex: its sampled sum is at least the full one, exact for one line."""

    def convex(number):
        return max(slope * number + offset for slope, offset in lines)

    last = first + length - 1
    full = math.fsum(convex(number) for number in range(first, last + 1))
    sampled = math.fsum(weight * convex(number) for number, weight in sample(first, last, count).items())
    scale = 1e-9 * (1 + max(abs(convex(first)), abs(convex(last)))) * length
    assert sampled >= full - scale
    if len(lines) == 1:
        assert sampled == pytest.approx(full, abs=scale)


@given(
    st.integers(1, 40),
    st.integers(1, 24),
    st.one_of(st.none(), st.integers(1, 26)),
    st.sampled_from([0, 1, 5, 16]),
)
def test_peaks_against_brute_force(prompt_len, gen_len, stagger, page):
    """The peak of held tokens, pass by pass over many periods, is what the closed form says."""
    every = stagger or gen_len
    tokens, home = [], []
    for number in range(3 * gen_len, 3 * gen_len + 4 * every):
        positions = [number - c * every for c in range(number // every + 1) if number - c * every < gen_len]
        held = [prompt_len + (t if page else gen_len - 1) for t in positions]
        tokens.append(sum(math.ceil(one / page) * page if page else one for one in held))
        home.append(sum(1 if t else prompt_len for t in positions))
    cohorts = cohorts_in_flight(stagger, gen_len)
    peak, at_home = peak_tokens(Workload(prompt_len=prompt_len, gen_len=gen_len), stagger, page)
    if every <= gen_len:
        assert peak == pytest.approx(max(tokens) / cohorts)
    else:  # a block every gen_len passes: no pause between blocks
        assert peak == pytest.approx(max(tokens))
    if cohorts > 1:  # the admitted cohort has a place for its token beside the one for its prompts
        assert at_home * cohorts == pytest.approx(max(home) + 1)
    else:
        assert at_home == prompt_len == max(home)


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 44)))
def test_period_positions_are_one_life(gen_len, stagger):
    """Every decode position is in one list; those that meet a prompt are multiples of the stagger."""
    beside, others = period_positions(Workload(prompt_len=4, gen_len=gen_len), stagger)
    assert sorted([*beside, *others]) == list(range(1, gen_len))
    meeting = set()
    every = stagger or gen_len
    for number in range(gen_len * every, gen_len * every + every):
        positions = [position for _, position in pass_at(number, every, gen_len).cohorts]
        if 0 in positions:
            meeting |= set(positions) - {0}
    assert set(beside) == meeting


def test_many_passes_are_sampled_by_default():
    """A long run plays a few passes, the prompt always among them."""
    played = window(policy(None, 500), Workload(prompt_len=4, gen_len=500))
    assert len(played.passes) <= 40
    assert numbers(played)[0] == 0
    assert all(left < right for left, right in itertools.pairwise(numbers(played)))
