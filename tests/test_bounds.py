"""The bounds against exact optima, against every kind of schedule, and against the claims they correct."""

from __future__ import annotations

import doctest
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import bounds
from tests.bounds_oracle import (
    Instance,
    Square,
    best_diagonal,
    best_steady_diagonal,
    brute_force_loads,
    diagonal_loads,
    diagonal_order,
    furthest_use_reads,
    live_peak,
    optimal_loads,
    optimal_rate,
    optimal_reads,
    squares_in,
    streamed,
)

RULES = pytest.mark.parametrize("lean", [True, False], ids=["lean", "paper"])


def seeded(seed: int) -> random.Random:
    """Return a reproducible stream of random numbers."""
    return random.Random(seed)  # noqa: S311 - not for secrets


def draw(rng: random.Random, lean: bool, rows: int, steps: int, prompt: int = 16) -> tuple[Instance, int]:
    """Draw equal rows and a capacity between one row's peak and all rows' peaks."""
    num_rows, layers = rng.randint(2, rows), rng.randint(2, 3)
    tight = Instance(layers, rng.randint(1, prompt), rng.randint(2, steps), 0, lean)
    capacity = rng.randint(tight.peak, num_rows * tight.peak)
    return Instance(layers, tight.prompt_len, tight.gen_len, capacity, lean), num_rows


def counterexample(block: int, layers: int) -> Instance:
    """Build the instance in which zig-zag with blocks of this size costs 2 + 1/B times the optimum."""
    gen_len = 2 * block + 1
    return Instance(layers, 1, gen_len, layers * gen_len * (gen_len - 1) // 2, lean=True)


# --- the optimum itself -------------------------------------------------------------------------------------


@RULES
def test_two_searches_agree(lean):
    """The search over loads equals the search over single squares, written independently."""
    rng = seeded(1)
    for _ in range(200):
        instance, num_rows = draw(rng, lean, rows=3, steps=3)
        assert optimal_loads(instance, num_rows) == brute_force_loads(instance, num_rows)


@RULES
def test_the_steady_rate_is_the_slope_of_the_finite_optimum(lean):
    """The cheapest cycle costs what further rows cost once there are many."""
    rng = seeded(2)
    for _ in range(12):
        instance, _ = draw(rng, lean, rows=2, steps=3, prompt=2)
        rate = optimal_rate(instance)
        more = 2 * rate.denominator
        assert optimal_loads(instance, 8 + more) - optimal_loads(instance, 8) == more * rate


# --- weight loads: lower bounds, zig-zag, diagonal ----------------------------------------------------------


@RULES
def test_no_schedule_beats_the_bounds_and_zigzag_keeps_its_factor(lean):
    """On random instances: bounds <= optimum <= diagonal <= zig-zag <= corrected factor times the optimum."""
    rng = seeded(3)
    for _ in range(1500):
        instance, num_rows = draw(rng, lean, rows=5, steps=4)
        layers, steps, capacity = instance.layers, instance.gen_len, instance.capacity
        best = optimal_loads(instance, num_rows)
        zigzag = bounds.zigzag_loads(num_rows, instance.block, steps, layers)
        reads = num_rows * instance.k_row
        assert best >= instance.per_load_bound(num_rows)
        assert best >= bounds.layer_loads_bound(reads, capacity, steps, layers)
        assert best >= bounds.weight_window_bound(reads, layers, 1, capacity, steps)
        assert best <= best_diagonal(instance, num_rows) <= zigzag
        assert zigzag <= best * bounds.zigzag_factor(instance.block, num_rows)


@RULES
def test_zigzag_keeps_its_factor_in_steady_state(lean):
    """With rows always waiting: bound <= optimum <= diagonal <= zig-zag <= 2 (1 + 1/B) times the optimum."""
    rng = seeded(4)
    for _ in range(200):
        instance, _ = draw(rng, lean, rows=2, steps=4, prompt=4)
        rate = optimal_rate(instance)
        zigzag = Fraction(instance.end, instance.block)
        assert rate >= Fraction(instance.layers * instance.k_row, instance.capacity)
        assert rate <= best_steady_diagonal(instance) <= zigzag
        assert zigzag <= rate * (2 + Fraction(2, instance.block))


@RULES
def test_zigzag_loads_are_those_of_the_schedule(lean):
    """The closed form equals the passes of blocks admitted one after the other, and blocks are largest."""
    rng = seeded(5)
    for _ in range(200):
        instance, num_rows = draw(rng, lean, rows=9, steps=6)
        block, steps = min(instance.block, num_rows), instance.gen_len
        loads = bounds.zigzag_loads(num_rows, block, steps, instance.layers)
        assert diagonal_loads(instance, num_rows, block, steps) == loads
        if block < num_rows:
            assert diagonal_loads(instance, num_rows, block + 1, steps) is None
        if lean:
            assert instance.peak == instance.layers * bounds.zigzag_peak_tokens(instance.prompt_len, steps)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 20])
def test_the_literal_factor_two_fails_for_every_block_size(block):
    """In the family n = 2B + 1, s = 1 the diagonal meets the bound; zig-zag costs 2 + 1/B times that."""
    instance = counterexample(block, layers=2)
    rows = 50 * block
    per_row = Fraction(bounds.zigzag_loads(rows, block, instance.gen_len, 2), rows)
    diagonal = diagonal_loads(instance, rows, group=1, stagger=1)
    assert instance.block == block
    assert instance.k_row == instance.capacity
    assert diagonal == 2 * (rows + instance.gen_len - 1)  # one pass per row, and the warm-up
    assert per_row / 2 == 2 + Fraction(1, block)  # zig-zag's passes per row, where the optimum is 1
    assert per_row / 2 <= bounds.zigzag_factor(block)


@pytest.mark.parametrize(("block", "layers"), [(1, 2), (1, 3), (2, 2)])
def test_the_diagonal_is_the_optimum_of_the_counterexamples(block, layers):
    """The exact steady-state optimum of the family is one pass per row."""
    assert optimal_rate(counterexample(block, layers)) == layers


def test_the_example_to_check_by_hand():
    """Two layers, three tokens, room for nine: zig-zag costs 3.0 times the optimum by the paper's rule."""
    instance = Instance(layers=2, prompt_len=1, gen_len=3, capacity=9, lean=False)
    assert (instance.peak, instance.block) == (5, 1)
    assert optimal_rate(instance) == 2
    assert Fraction(instance.end, instance.block) == 3 * optimal_rate(instance)
    assert optimal_loads(instance, 7) == 18
    assert bounds.zigzag_loads(7, 1, 3, 2) == 42
    assert 18 * bounds.zigzag_factor(1, 7) >= 42


def test_the_papers_lower_bound_exceeds_the_optimum():
    """Charging every prefill square for all layers gives a "bound" of 16 loads where 12 are enough."""
    instance = Instance(layers=2, prompt_len=1, gen_len=2, capacity=4, lean=False)
    assert optimal_loads(instance, 5) == brute_force_loads(instance, 5) == 12
    assert instance.paper_bound(5) == 16
    assert instance.per_load_bound(5) <= 12


def test_live_kv_of_the_full_diagonal_is_constant():
    """With one row admitted per pass, live KV after every layer is constant: what one row ever reads."""
    for gen_len in range(2, 12):
        for layers in range(1, 6):
            for prompt_len in (1, 2, 7):
                instance = Instance(layers, prompt_len, gen_len, 0, lean=True)
                for layer in range(1, layers + 1):
                    assert sum(instance.held[layer :: instance.layers]) == instance.k_row
                at_start = sum(instance.held[0 : instance.end : layers])
                assert at_start == instance.k_row == bounds.kv_bytes_read(layers, prompt_len, gen_len)


@pytest.mark.parametrize("gen_len", [2, 3, 4, 6, 7, 12])
def test_diagonal_peak_is_that_of_the_schedule(gen_len):
    """The peak by formula equals the largest live KV after any square, with the rows that end going first."""
    for groups in range(1, gen_len + 3):
        instance = Instance(3, 5, gen_len, 0, lean=True)
        at = [group * gen_len // groups for group in range(groups)]
        peak = 0
        for now in range(gen_len):
            progress = sorted(((now - start) % gen_len * 3 for start in at), reverse=True)
            for _ in range(3):
                for row in range(groups):
                    progress[row] += 1
                    peak = max(peak, sum(instance.held[done] for done in progress))
        assert bounds.diagonal_peak_tokens(5, gen_len, groups) == pytest.approx(peak / groups / 3)


def test_diagonal_peak_closed_forms():
    """One group is zig-zag, a divisor of n has the printed form, and n groups have the lemma's."""
    assert bounds.diagonal_peak_tokens(512, 32, 1) == bounds.zigzag_peak_tokens(512, 32)
    assert bounds.diagonal_peak_tokens(128, 512, 8) == 128 + 512 * 9 / 16 - 2
    assert bounds.diagonal_peak_tokens(32, 1024, 1024) == 1023 * (64 + 1022) / 2048
    assert bounds.diagonal_peak_tokens(7, 1, 4) == bounds.zigzag_peak_tokens(7, 1) == 0


def test_one_block_is_optimal():
    """When all rows fit into one block every schedule needs as many passes, and the factor is 1."""
    assert bounds.zigzag_factor(48, 48) == bounds.zigzag_factor(48, 5) == 1
    assert bounds.zigzag_factor(48, 96) == 2 * (1 + 1 / 48) * 1.5
    assert bounds.zigzag_factor(1) == 4
    assert bounds.zigzag_loads(48, 48, 32, 96) == bounds.layer_loads_bound(0, 1, 32, 96)


def test_zigzag_ratio_limit():
    """The closed form lies between 1 and 2, is 2 at s = 1 and at n = 2, and has the published values."""
    published = {(512, 32): 1.062, (512, 128): 1.118, (128, 512): 1.669, (32, 1024): 1.943}
    for (prompt_len, gen_len), ratio in published.items():
        assert bounds.zigzag_ratio_limit(prompt_len, gen_len) == pytest.approx(ratio, abs=5e-4)
    assert bounds.zigzag_ratio_limit(1, 9) == bounds.zigzag_ratio_limit(9, 2) == 2
    assert bounds.zigzag_ratio_limit(9, 1) == 1
    every = [bounds.zigzag_ratio_limit(s, n) for s in range(1, 40) for n in range(2, 40)]
    assert min(every) > 1
    assert max(every) == 2


# --- bytes: Theorem 1 ---------------------------------------------------------------------------------------


def test_window_bound_against_exact_optima():
    """The least units any schedule can read, weights and KV competing for fast memory, respect the bound."""
    rng = seeded(6)
    for _ in range(150):
        layers, steps, prompt = rng.choice([(2, 2, 1), (2, 2, 2), (2, 3, 1), (3, 2, 1)])
        num_rows = 3 if layers * steps == 4 else 2
        width = rng.randint(2, 4)
        peak = Instance(layers, prompt, steps, 0, lean=True).peak
        instance = Instance(layers, prompt, steps, rng.randint(peak, num_rows * peak), lean=True)
        fast = rng.randint(width + prompt + steps - 2, width + prompt + steps)
        best = optimal_reads(instance, num_rows, width, fast)
        order = diagonal_order(num_rows, layers, steps, instance.block, steps)
        zigzag = furthest_use_reads(squares_in(order, [(prompt, steps)] * num_rows, [width] * layers), fast)
        reads = num_rows * instance.k_row
        assert bounds.window_bound(reads, layers * width, fast, instance.capacity, steps) <= best <= zigzag


@st.composite
def schedules(draw):
    """Draw unequal rows, unequal layers, and an order: any at all, or a diagonal one."""
    rows = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5))
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    if draw(st.booleans()):
        rows = [rows[0]] * len(rows)
        group, stagger = draw(st.integers(1, len(rows))), draw(st.integers(1, rows[0][1]))
        order = diagonal_order(len(rows), len(widths), rows[0][1], group, stagger)
    else:
        left = [row for row, (_, gen) in enumerate(rows) for _ in range(gen * len(widths))]
        order = draw(st.permutations(left))
    return rows, widths, squares_in(order, rows, widths)


def reads_of(rows: list[tuple[int, int]]) -> int:
    """KV units per layer that rows (prompt, generated) read."""
    return sum(int(bounds.kv_bytes_read(1, prompt, gen)) for prompt, gen in rows)


@settings(max_examples=1500, deadline=None)
@given(schedules(), st.integers(1, 24), st.booleans())
def test_any_schedule_with_the_best_eviction_respects_the_window_bound(drawn, fast, preload):
    """With hindsight about what to preload and keep, and squares that need one unit at a time, it holds."""
    rows, widths, squares = drawn
    total, capacity = reads_of(rows) * len(widths), live_peak(squares)
    assert sum(unit[0] == "kv" for square in squares for unit in square.needs) == total
    passes, preloaded = max(gen for _, gen in rows), min(fast, sum(widths)) * preload
    bound = bounds.window_bound(total, sum(widths), fast, capacity, passes, preloaded_bytes=preloaded)
    assert furthest_use_reads(streamed(squares), fast, preload) >= bound


@settings(max_examples=1500, deadline=None)
@given(schedules(), st.integers(1, 16), st.sets(st.integers(0, 4)))
def test_attention_elsewhere_respects_the_window_bound(drawn, fast, elsewhere):
    """When some rows' KV is read elsewhere, what does cross respects the bound with that share."""
    rows, widths, squares = drawn
    total, capacity = reads_of(rows) * len(widths), live_peak(squares)
    passes = max(gen for _, gen in rows)

    def here(units):
        return tuple(unit for unit in units if unit[0] == "w" or unit[1] not in elsewhere)

    kept = [Square(here(square.needs), here(square.appends)) for square in squares]
    crossed = sum(unit[0] == "kv" for square in kept for unit in square.needs)
    share = crossed / total if total else 1
    reads = furthest_use_reads(streamed(kept), fast)
    assert reads >= bounds.window_bound(total, sum(widths), fast, capacity, passes, crossing=share) - 1e-9
    assert reads >= bounds.weight_window_bound(total, sum(widths), fast, capacity, passes)


@settings(max_examples=1500, deadline=None)
@given(schedules(), st.integers(1, 24), st.integers(0, 24), st.randoms(use_true_random=False))
def test_any_schedule_with_random_partial_eviction_respects_the_window_bound(drawn, fast, preload, rng):
    """Units thrown out at random, weights preloaded at random: reads stay above the bound."""
    rows, widths, squares = drawn
    total, capacity = reads_of(rows) * len(widths), live_peak(squares)
    weights = [("w", layer, unit) for layer, width in enumerate(widths) for unit in range(width)]
    resident = rng.sample(weights, min(preload, fast, len(weights)))
    bound = bounds.window_bound(
        total, sum(widths), fast, capacity, max(gen for _, gen in rows), preloaded_bytes=len(resident)
    )
    reads = 0
    for square in streamed(squares):
        needed = square.needs[0]
        if needed in resident:
            continue
        reads += 1
        while len(resident) >= fast or (resident and rng.random() < 0.2):
            resident.pop(rng.randrange(len(resident)))
        resident.append(needed)
    assert reads >= bound


def test_the_weights_form_is_attained():
    """Keeping all but one slot of fast memory for the same weights reads what the form says, up to it."""
    block = squares_in(diagonal_order(6, 4, 5, group=6, stagger=5), [(3, 5)] * 6, [3] * 4)
    sweep = [Square((("w", layer, unit),), ()) for layer in range(4) for unit in range(3)]
    for fast in range(1, 12):
        reads = furthest_use_reads(sweep * 5, fast)  # each layer serves all six rows before the next comes
        bound = bounds.weight_window_bound(reads_of([(3, 5)] * 6) * 4, 12, fast, live_peak(block), 5)
        assert bound <= reads <= bound + 4  # the slot is filled again in each of the four decoding passes


# --- edges --------------------------------------------------------------------------------------------------


def test_kv_bytes_read_is_the_sum_over_steps():
    """The closed form equals the sum over decoding steps, and is an integer for integers."""
    for prompt_len in (1, 2, 5, 512):
        for gen_len in (1, 2, 3, 32):
            summed = 7 * sum(prompt_len + step - 1 for step in range(1, gen_len))
            assert bounds.kv_bytes_read(7, prompt_len, gen_len) == summed
            assert isinstance(bounds.kv_bytes_read(7, prompt_len, gen_len), int)


def test_bound_when_everything_fits():
    """With fast memory for all weights, each weight is read once and the KV need not cross at all."""
    assert bounds.window_bound(1000, 100, 150, 500, 9) == 100
    assert bounds.window_bound(1000, 100, 150, 500, 9, preloaded_bytes=150) == 0
    assert bounds.window_bound(1000, 100, 100, 500, 9) == 1000
    assert bounds.weight_window_bound(1000, 100, 100, 500, 9) == 100


def test_bound_without_kv():
    """One generated token leaves no KV to keep: the weights are read once, whatever room there is."""
    assert bounds.window_bound(0, 100, 30, 0, 1) == 100
    assert bounds.window_bound(0, 100, 30, 0, 0) == 0
    assert bounds.window_bound(60, 100, 30, math.inf, 4) == 60 + 4 * 70
    assert bounds.window_bound(60, 100, 30, math.inf, 4, preloaded_bytes=30) == 60 + 4 * 70
    assert bounds.window_bound(60, 100, 30, math.inf, 4, crossing=0) == 4 * 70 + 30


def test_sweeps_are_exact_and_forgive_rounding():
    """Integers are divided exactly; a float quotient a rounding error above an integer is that integer."""
    assert bounds.min_sweeps(10**30 + 1, 10**29, 3) == 11
    assert bounds.min_sweeps(0.1 * 3, 0.1, 1) == 3
    assert bounds.min_sweeps(7, 2.0, 3) == 4
    assert bounds.min_sweeps(7, 2, 9) == 9


def test_sweeps_per_sequence():
    """Per sequence, sweeps lie between the larger of n/N and k/C, and n."""
    assert bounds.sweep_rate_range(50, 1000, 8) == (0.05, 8)
    assert bounds.sweep_rate_range(50, 1000, 8, num_sequences=16) == (0.5, 8)
    assert bounds.sweep_rate_range(0, 0, 1, num_sequences=4) == (0.25, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.window_bound(10, 5, 1, 0, 2), "kv_capacity: expected more than 0"),
        (lambda: bounds.sweep_rate_range(10, -1, 2), "kv_capacity: expected more than 0"),
        (lambda: bounds.window_bound(10, 5, 1, 5, 2, crossing=1.5), "crossing: expected a share"),
        (lambda: bounds.kv_bytes_read(1, 0, 2), "prompt_len: expected at least 1; got 0"),
        (lambda: bounds.zigzag_loads(4, 0, 2, 2), "block: expected at least 1; got 0"),
        (lambda: bounds.layer_loads_bound(4, 4, 2, 1), "layers: expected at least 2; got 1"),
    ],
)
def test_what_cannot_be_bounded_is_refused(call, message):
    """The error names the argument, what was expected and what was given."""
    with pytest.raises(ValueError, match=message):
        call()


def test_the_document_runs():
    """Every example in docs/bounds.md prints what the page says."""
    page = Path(__file__).parent.parent / "docs" / "bounds.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0
