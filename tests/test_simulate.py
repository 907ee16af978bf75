"""Laws 4 and 6: simulated times between their bounds, memory below its bound, nothing beats the roofline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import PlannerError
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.kernel import recurrence
from simulator.layout import lay_out
from simulator.model_config import load_model
from simulator.operations import OP
from simulator.policy import CpuAttention, Policy, Split
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.simulate import (
    capacity_draws,
    check_physics,
    pass_edges,
    play,
    predict,
    prefix_pass,
    rates_of,
    simulate,
    task_seconds,
)
from simulator.trace import from_simulation
from simulator.workload import Workload
from tests.strategies import layouts, machines

CPU = Split(gpu=0, cpu=1, disk=0)
ROUNDING = 1e-9


@given(layouts(), machines(), st.sampled_from([None, 4]))
def test_times_lie_between_their_bounds(placed, hardware, max_passes):
    """Law 4: the busiest lane, and the longest chain of waits, <= simulated time <= all tasks one by one."""
    rates, schedule = rates_of(placed, hardware), generate(placed, max_passes)
    seconds = task_seconds(schedule, rates)
    lane = np.bincount(schedule.lane, seconds).max()
    own_lane = np.arange(len(schedule), dtype=np.int32)  # a lane for every task: only waits count
    chain = recurrence(own_lane, schedule.waits_for, seconds, len(schedule))[1].max()
    alone = seconds
    if hardware.capacities:  # a task that needs more than there is takes longer even alone
        draws, limits = capacity_draws(schedule, rates, seconds)
        alone = np.maximum(seconds, (draws / limits).max(axis=1))
    for shared, serial in ((False, seconds.sum()), (True, alone.sum())):
        makespan = play(schedule, rates, shared=shared).makespan
        assert max(lane, chain) * (1 - ROUNDING) <= makespan <= serial * (1 + ROUNDING)


@given(layouts(), machines(), st.sampled_from([None, 4]), st.booleans())
def test_memory_stays_below_the_static_bound(placed, hardware, max_passes, shared):
    """Law 4: at no time is more memory in use than ``peak_memory`` says, on any tier."""
    simulation = play(generate(placed, max_passes), rates_of(placed, hardware), shared=shared)
    high_water = from_simulation(simulation, placed).high_water()
    for tier, uses in placed.peak_memory().items():
        assert high_water[tier] <= sum(uses.values()) * (1 + ROUNDING) + 1e-6


@given(layouts(finite=False), machines(shared=False))
def test_the_cache_fills_up_to_its_bound(placed, hardware):
    """Played in full, the cache of a single group reaches its static peak, wherever it lies.

    Of several groups the first is done, and its cache free, before the last has written its last token.
    """
    simulation = play(generate(placed, None), rates_of(placed, hardware))
    trace = from_simulation(simulation, placed)
    peaks = placed.peak_memory()
    for use in trace.memory:
        if use.name == "KV cache" and placed.policy.num_groups == 1:
            assert use.bytes.max() == pytest.approx(peaks[use.tier]["KV cache"])


@given(layouts(), machines(shared=False), st.sampled_from([None, 4]))
def test_the_cache_begins_and_ends_with_the_sequences_in_flight(placed, hardware, max_passes):
    """Before the first pass and after the last, the cache is exactly that of the sequences in flight."""
    trace = from_simulation(play(generate(placed, max_passes), rates_of(placed, hardware)), placed)
    workload, policy, page = placed.workload, placed.policy, placed.runtime.page_tokens
    passes = generate(placed, max_passes).window.passes

    def tokens(positions):
        held = [workload.own_len + (t if page else workload.gen_len - 1) for t in positions]
        held = held if workload.gen_len else []
        return sum(-(-one // page) * page if page else one for one in held)

    first = tokens(position - 1 for _, position in passes[0].cohorts if position)
    last = tokens(position for _, position in passes[-1].cohorts if position < workload.passes - 1)
    sequences = policy.block / policy.cohorts(workload.passes)
    token = placed.model.num_layers * placed.model.kv_bytes(policy.cache_bits, policy.quant_group)
    for use in trace.memory:
        if use.name == "KV cache":
            share = getattr(placed.layout.cache, use.tier) * sequences * token
            assert use.bytes[[0, -1]] == pytest.approx([share * first, share * last], rel=1e-9, abs=1e-3)


@given(layouts(), machines())
def test_nothing_beats_the_roofline(placed, hardware):
    """Law 6: all FLOPs over peak and all bytes over bandwidth, lane by lane, take no more than the run."""
    prediction, simulation = simulate(placed, hardware)
    schedule = simulation.schedule
    for index, lane in enumerate(LANES):
        tasks = (schedule.lane == index) & (schedule.operation != OP["sync"])
        if lane in ("gpu", "cpu"):
            engine = hardware.engines[lane]
            bandwidth, flops = engine.peak.memory_bandwidth, max(engine.peak.flops.values())
            assert simulation.makespan >= schedule.flops[tasks].sum() / flops * (1 - ROUNDING)
        else:
            bandwidth = getattr(hardware.links, lane).peak
        assert simulation.makespan >= schedule.bytes[tasks].sum() / bandwidth * (1 - ROUNDING)
    assert prediction.throughput_tok_s > 0
    for shares in (prediction.busy, prediction.prefill_busy, prediction.decode_busy):
        assert all(0 <= share <= 1 for share in shares.values())


@given(layouts(), machines(), st.data())
def test_a_time_below_the_limit_is_refused(placed, hardware, data):
    """Law 6 is checked on every run: a task faster than physics allows raises."""
    simulation = play(generate(placed), rates_of(placed, hardware))
    rates = rates_of(placed, hardware)
    check_physics(simulation, rates, placed)
    works = np.nonzero((simulation.schedule.operation != OP["sync"]) & (simulation.seconds > 0))[0]
    task = data.draw(st.sampled_from(works.tolist()))
    end = simulation.end.copy()
    end[task] = simulation.start[task]
    with pytest.raises(PlannerError, match="beats the physical limit"):
        check_physics(replace(simulation, end=end), rates, placed)


@given(layouts(), machines())
def test_sharing_only_slows_down(placed, hardware):
    """With shared capacities no task ends earlier than without."""
    schedule, rates = generate(placed), rates_of(placed, hardware)
    alone, shared = play(schedule, rates, shared=False), play(schedule, rates)
    assert (shared.end >= alone.end - ROUNDING * alone.makespan).all()


@given(layouts(finite=False), machines())
def test_passes_divide_the_time(placed, hardware):
    """The edges of passes rise, and the counted passes make up throughput and latency."""
    prediction, simulation = simulate(placed, hardware, None)
    edges = pass_edges(simulation)
    played = simulation.schedule.window
    assert len(edges) == len(played.passes) + 1
    assert (np.diff(edges) >= 0).all()
    weights = np.array([one.weight for one in played.passes])
    total = float(np.diff(edges) @ weights)
    tokens = played.sequences * placed.workload.counted_tokens
    assert prediction.throughput_tok_s == pytest.approx(tokens / total)
    assert prediction.latency_s == pytest.approx(total * played.latency_windows)
    assert prediction.prefill_s + prediction.decode_s == pytest.approx(prediction.latency_s) or (
        prediction.decode_s == 0
    )


def test_zigzag_by_hand():
    """A whole block from a cold start: latency is the makespan, throughput its tokens over it."""
    placed = mid_size(num_groups=2, gen_len=4)
    prediction, simulation = simulate(placed, load_profile("t4-16"), None)
    assert prediction.latency_s == pytest.approx(simulation.makespan)
    assert prediction.throughput_tok_s == pytest.approx(64 * 4 / simulation.makespan)


# --- sampling -----------------------------------------------------------------------------------------------


def mid_size(*, num_groups=4, gen_len=96, num_prompts=None, **changes):
    """Lay out OPT-6.7B with all weights and cache on the CPU, groups of 32."""
    policy = Policy(
        gpu_batch=32,
        num_groups=num_groups,
        weights=CPU,
        cache=CPU,
        activations=Split(gpu=1, cpu=0, disk=0),
        cpu_attention=CpuAttention(cpu=0.5),
    )
    workload = Workload(prompt_len=256, gen_len=gen_len, num_prompts=num_prompts)
    policy = policy.model_copy(update=changes)
    return lay_out(load_model("opt-6.7b"), load_runtime("reference"), workload, policy)


def agree(placed, max_passes, tolerance):
    """Compare predictions from sampled passes with those from all of them."""
    hardware = load_profile("t4-16")
    full, _ = simulate(placed, hardware, None)
    sampled, simulation = simulate(placed, hardware, max_passes)
    assert len(simulation.schedule.window.passes) < placed.workload.gen_len / 2
    for name in ("throughput_tok_s", "prefill_s", "decode_s", "latency_s"):
        assert getattr(sampled, name) == pytest.approx(getattr(full, name), rel=tolerance), name


@pytest.mark.parametrize("max_passes", [8, 16, 40])
def test_a_sampled_block_agrees_with_all_passes(max_passes):
    """Zig-zag: a few passes predict the block within 1 %."""
    agree(mid_size(), max_passes, 0.01)


@pytest.mark.parametrize("max_passes", [8, 16])
def test_a_sampled_period_agrees_with_all_passes(max_passes):
    """Diagonal: a few passes of a long period predict the steady state within 2 %."""
    agree(mid_size(stagger=48), max_passes, 0.02)


@pytest.mark.parametrize("stagger", [3, 4, 7])
def test_the_steady_state_is_that_of_long_runs(stagger):
    """Diagonal: what six more cohorts add to a long finite run is what the steady state predicts, to 2 %."""
    gen_len = 12
    groups = -(-gen_len // stagger)
    hardware = load_profile("t4-16")
    steady, _ = simulate(mid_size(stagger=stagger, num_groups=groups, gen_len=gen_len), hardware, None)
    makespans = []
    for cohorts in (8, 14):
        placed = mid_size(stagger=stagger, num_groups=groups, gen_len=gen_len, num_prompts=32 * cohorts)
        makespans.append(simulate(placed, hardware, None)[1].makespan)
    marginal = 6 * 32 * gen_len / (makespans[1] - makespans[0])
    assert steady.throughput_tok_s == pytest.approx(marginal, rel=0.02)


@settings(max_examples=20)
@given(layouts(finite=True), machines())
def test_a_finite_run_ends_when_all_prompts_have(placed, hardware):
    """Finite queues: counted time is the whole run's, drain included."""
    prediction, simulation = simulate(placed, hardware, None)
    prompts = placed.workload.num_prompts
    if placed.policy.cohorts(placed.workload.passes) > 1:
        seconds = simulation.makespan
        if placed.workload.shared_prefix:
            seconds += play(generate(prefix_pass(placed)), rates_of(placed, hardware)).makespan
        expected = prompts * placed.workload.counted_tokens / seconds
        assert prediction.throughput_tok_s == pytest.approx(expected)


def test_more_bandwidth_never_hurts_unshared_lanes():
    """Without sharing, a faster link ends every task no later."""
    placed = mid_size(num_groups=2, gen_len=4)
    schedule = generate(placed)
    ends = []
    for rate in ("4 GB/s", "8 GB/s", "12 GB/s"):
        hardware = load_profile("t4-16", (f"links.h2d.pinned.bandwidth={rate}",))
        ends.append(play(schedule, rates_of(placed, hardware), shared=False).end)
    assert (ends[0] >= ends[1]).all()
    assert (ends[1] >= ends[2]).all()


def test_predictions_of_row_by_row_are_those_of_one_group():
    """One group in flight is its own block: the same times as zig-zag with a single group."""
    one = mid_size(num_groups=1, gen_len=4)
    long_stagger = mid_size(num_groups=1, gen_len=4, stagger=4)
    hardware = load_profile("t4-16")
    assert simulate(one, hardware)[0] == simulate(long_stagger, hardware)[0]
    assert predict(simulate(one, hardware)[1], one).latency_s > 0
