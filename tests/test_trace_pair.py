"""Traces side by side: which task is which, and what the figures say of both."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.compare_traces import compare_pair
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.operations import OP, OPERATIONS
from simulator.simulate import play, rates_of
from simulator.trace import Trace, from_simulation
from simulator.trace_figures import Both
from simulator.trace_memory import MemoryUse
from simulator.trace_pair import pair_traces
from tests.strategies import layouts, machines

PLACE = ("operation", "lane", "start", "end", "pass_number", "layer", "group")
COLUMNS = (*PLACE, "bytes", "flops", "kernels", "steps", "blocks")


def spans(*rows, memory=(), **metadata):
    """Make a trace of rows (operation, start, end, pass, layer, group, bytes, FLOPs); rows may be shorter."""
    full = [(OP[name], *rest, *[0] * (7 - len(rest))) for name, *rest in rows]
    code, start, end, number, layer, group, bytes_, flops = np.array(full, dtype=float).reshape(-1, 8).T
    code = code.astype(np.int8)
    lane = np.array([LANES.index(OPERATIONS[each].lane) for each in code], dtype=np.int8)
    places = (each.astype(np.int32) for each in (number, layer, group))
    rest = (np.ones(len(code)), np.zeros(len(code)), np.zeros(len(code)))  # kernels, steps, blocks
    return Trace(code, lane, start, end, *places, bytes_, flops, *rest, tuple(memory), metadata)


def compared(predicted, measured):
    """Compare two traces."""
    return compare_pair(pair_traces(predicted, measured))


def scaled(trace, factor):
    """Let everything take longer by a whole factor."""
    return replace(trace, start=trace.start * factor, end=trace.end * factor)


def part(trace, chosen):
    """Keep some spans."""
    return replace(trace, **{name: getattr(trace, name)[chosen] for name in COLUMNS})


def in_a_row(*blocks):
    """Put traces one after the other, with where each starts."""
    parts = {name: [getattr(block, name) for block in blocks] for name in COLUMNS}
    offsets = np.cumsum([0.0] + [float(block.end.max()) + 1.0 for block in blocks])
    for name in ("start", "end"):
        parts[name] = [each + offset for each, offset in zip(parts[name], offsets, strict=False)]
    starts = np.cumsum([0] + [len(block) for block in blocks[:-1]])
    metadata = blocks[0].metadata | {"block_starts": ",".join(map(str, starts))}
    return replace(
        blocks[0], metadata=metadata, **{name: np.concatenate(each) for name, each in parts.items()}
    )


@st.composite
def traces(draw):
    """Draw what a small run is predicted to be."""
    placed, hardware = draw(layouts()), draw(machines())
    return from_simulation(play(generate(placed, 4), rates_of(placed, hardware)), placed)


def figures(found):
    """List all pairs of figures that scale with time."""
    operations = sorted(found.operations, key=lambda row: (row.lane, row.operation))
    rows = [row.seconds for row in (*found.lanes, *operations)]
    return [found.makespan, found.whole, *rows, *(row.median for row in operations)]


# --- laws ---------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(traces())
def test_a_trace_beside_itself(trace):
    """All ratios are 1, all tasks matched, all lanes in order, and all figures are those of the trace."""
    found = compared(trace, trace)
    assert found.tasks == len(trace)
    assert all(each.tasks == each.passes_between == each.incomplete == 0 for each in found.unmatched)
    assert all(both.ratio == 1 or both == Both(0.0, 0.0) for both in figures(found))
    rates = [rate for row in found.operations for rate in (row.byte_rate, row.flop_rate)]
    assert all(both.ratio == 1 or both == Both(None, None) for both in rates)
    assert [row.out_of_order for row in found.lanes] == [None] * len(found.lanes)
    assert [row.part for row in found.lanes] == [None] * len(found.lanes)
    assert sum(row.tasks for row in found.operations) == len(trace)
    worked = sum(row.share.predicted for row in found.lanes) * found.whole.predicted
    assert worked == pytest.approx((trace.end - trace.start).sum())
    assert {tier: both.predicted for tier, both in found.memory.items()} == trace.high_water()


@settings(max_examples=30)
@given(traces(), st.integers(2, 9))
def test_scaled_times_give_the_scale(trace, factor):
    """Times that are all longer by a factor give it as every ratio, its inverse for rates; shares stay."""
    found = compared(trace, scaled(trace, factor))
    assert all(both.ratio == pytest.approx(factor) for both in figures(found) if both.predicted)
    for row in found.operations:
        for rate in (row.byte_rate, row.flop_rate):
            assert rate.ratio is None or rate.ratio == pytest.approx(1 / factor)
    for row in found.lanes:
        assert row.share.measured == pytest.approx(row.share.predicted)
        assert row.part == pytest.approx(row.share.predicted)
        assert row.out_of_order is None
    gaps = [round(abs(row.seconds.difference), 9) for row in found.operations]
    assert gaps == sorted(gaps, reverse=True)


@settings(max_examples=30)
@given(traces(), st.data())
def test_a_swapped_pair_is_found(trace, data):
    """Two neighbours of a lane that ran the other way round are named; the other lanes are in order."""
    by_start = np.argsort(trace.start, kind="stable")
    lanes = {lane: by_start[trace.lane[by_start] == lane] for lane in np.unique(trace.lane)}
    pairs = [
        (lane, one, other)
        for lane, order in lanes.items()
        for one, other in itertools.pairwise(order)
        if trace.start[one] < trace.start[other]
    ]
    assume(pairs)
    lane, one, other = data.draw(st.sampled_from(pairs))
    start, end = trace.start.copy(), trace.end.copy()
    for times in (start, end):
        times[[one, other]] = times[[other, one]]
    swapped = replace(trace, start=start, end=end)
    broken = {row.lane: row.out_of_order for row in compared(trace, swapped).lanes if row.out_of_order}
    assert list(broken) == [LANES[lane]]
    late, early = broken[LANES[lane]].split(" started before ")
    assert late.startswith(f"{trace.names[other]} of pass {trace.pass_number[other]}")
    assert early.startswith(f"{trace.names[one]} of pass {trace.pass_number[one]}")


@settings(max_examples=30)
@given(traces())
def test_two_blocks_average_to_one(trace):
    """A block and one of three times its length, in one trace, say what a block of twice the length says."""
    blocks = compared(trace, in_a_row(trace, scaled(trace, 3)))
    twice = compared(trace, scaled(trace, 2))
    assert blocks.blocks == (1, 2)
    assert blocks.tasks == len(trace)
    assert all(each.tasks == each.incomplete == 0 for each in blocks.unmatched)
    for one, other in zip(figures(blocks), figures(twice), strict=True):
        assert one.measured == pytest.approx(other.measured)
    for one, other in zip(blocks.lanes, twice.lanes, strict=True):
        assert one.out_of_order is None
        assert one.share.measured == pytest.approx(other.share.measured)


@settings(max_examples=30)
@given(traces(), st.data())
def test_an_early_end_is_counted(trace, data):
    """Of a run that stopped early all that ran is matched, the rest is counted; makespans are of the same."""
    kept = data.draw(st.integers(1, len(trace)))
    found = compared(trace, part(trace, slice(kept)))
    alone, nothing = found.unmatched
    assert (found.tasks, alone.tasks, nothing.tasks) == (kept, len(trace) - kept, 0)
    assert sum(alone.operations.values()) == alone.tasks
    assert set(alone.passes) == set(trace.pass_number[kept:].tolist())
    assert all(
        both.ratio == 1 or both == Both(0.0, 0.0) for both in figures(found) if both is not found.whole
    )


# --- by hand ------------------------------------------------------------------------------------------------

PREDICTED = spans(
    ("load_weights", 0, 2, 0, 1, 0, 8e9),
    ("mlp", 2, 3, 0, 1, 0, 1e9, 2e12),
    ("load_weights", 2, 4, 0, 2, 0, 8e9),
    ("mlp", 4, 5, 0, 2, 0, 1e9, 2e12),
    ("store_activations", 5, 6, 0, 2, 0, 1e6),
    memory=[MemoryUse("gpu", "weights", np.zeros(1), np.array([100.0]))],
)
MEASURED = spans(
    ("load_weights", 0, 3, 0, 1, 0, 8e9),
    ("mlp", 3, 5, 0, 1, 0, 1e9, 2e12),
    ("load_weights", 3, 7, 0, 2, 0, 8e9),
    ("mlp", 7, 8, 0, 2, 0, 1e9, 2e12),
    ("sync", 8, 8.5, 1, 2, 0),
    memory=[MemoryUse("gpu", "weights", np.zeros(1), np.array([150.0]))],
)


def test_an_example_by_hand():
    """Two layers whose loads take 7 s instead of 4 s, with a task on each side that the other lacks."""
    found = compared(PREDICTED, MEASURED)
    assert found.tasks == 4
    assert (found.makespan, found.whole) == (Both(5.0, 8.0), Both(6.0, 8.5))
    loads, products = found.operations
    assert (loads.lane, loads.operation, loads.tasks) == ("h2d", "load_weights", 2)
    assert (loads.seconds, loads.median) == (Both(4.0, 7.0), Both(2.0, 3.5))
    assert (loads.byte_rate, loads.flop_rate) == (Both(4e9, 16e9 / 7), Both(None, None))
    assert (products.seconds, products.median) == (Both(2.0, 3.0), Both(1.0, 1.5))
    assert (products.byte_rate, products.flop_rate) == (Both(1e9, 2e9 / 3), Both(2e12, 4e12 / 3))
    lanes = {row.lane: row for row in found.lanes}
    assert list(lanes) == ["gpu", "h2d", "d2h"]
    assert [row.seconds for row in found.lanes] == [Both(2.0, 3.0), Both(4.0, 7.0), Both(0.0, 0.0)]
    assert [row.share for row in found.lanes] == [
        Both(2 / 6, 3.5 / 8.5),
        Both(4 / 6, 7 / 8.5),
        Both(1 / 6, 0),
    ]
    assert [row.part for row in found.lanes] == [1 / 3, 1.0, 0.0]
    one, other = found.unmatched
    assert (one.tasks, one.operations, one.passes) == (1, {"store_activations": 1}, (0,))
    assert (other.tasks, other.operations, other.passes) == (1, {"sync": 1}, (1,))
    assert found.memory["gpu"] == Both(100.0, 150.0)
    assert found.memory["gpu"].ratio == 1.5


def test_equal_tasks_are_told_apart_by_rank():
    """Tasks of the same place match in order of issue, whatever their times; a third one has no partner."""
    one = spans(("qkv", 0, 1), ("qkv", 1, 3))
    other = spans(("qkv", 2, 4), ("qkv", 0, 1), ("qkv", 4, 5))
    pair = pair_traces(one, other)
    assert pair.predicted.seconds.tolist() == [1, 2]
    assert pair.measured.seconds.tolist() == [2, 1]
    found = compare_pair(pair)
    assert found.unmatched[1].tasks == 1
    (row,) = found.lanes
    words = "qkv of pass 0, layer 0, group 0, number 2 started before qkv of pass 0, layer 0, group 0"
    assert row.out_of_order == words


def test_a_task_on_another_lane_is_another_task():
    """What ran on another lane than predicted has no partner."""
    one = spans(("qkv", 0, 1), ("mlp", 1, 2))
    found = compared(one, replace(one, lane=np.array([0, 1], dtype=np.int8)))
    assert found.tasks == 1
    assert [each.operations for each in found.unmatched] == [{"mlp": 1}] * 2


def test_a_task_that_one_block_lacks():
    """It counts with its mean over the blocks that have it, and is counted; the block at fault is named."""
    one = spans(("qkv", 0, 1), ("mlp", 1, 2), ("head", 2, 3))
    short = spans(("mlp", 0, 5), ("qkv", 5, 6))
    found = compared(one, in_a_row(one, short))
    assert [row.seconds.measured for row in sorted(found.operations, key=lambda row: row.operation)] == [
        1,
        3,
        1,
    ]
    assert found.unmatched[1].incomplete == 1
    assert found.makespan == Both(3.0, 4.5)
    expected = "mlp of pass 0, layer 0, group 0 started before qkv of pass 0, layer 0, group 0 in block 2"
    assert found.lanes[0].out_of_order == expected


def test_passes_that_the_prediction_does_not_play():
    """Where passes were sampled makespans cannot be compared, nor the order around the end of a pass."""
    one = spans(("mlp", 0, 1, 0), ("embed", 1, 2, 2), ("head", 2, 3, 0))
    other = spans(("mlp", 0, 1, 0), ("embed", 1, 2, 1), ("head", 2, 3, 0), ("embed", 3, 4, 2))
    found = compared(one, other)
    assert found.unmatched[1].passes == (1,)
    assert [each.passes_between for each in found.unmatched] == [0, 1]
    assert [(row.part, row.out_of_order) for row in found.lanes] == [(None, None)]
    shown = compared(one, part(other, [0, 2, 3])).lanes[0].out_of_order
    assert shown is not None
    assert shown.startswith("head of pass 0")


@pytest.mark.parametrize(
    "starts", ["", "0,", "a", "1", "0,0", "0,2,1", "0,5", "0,99", "-1,0", "0;1", "9" * 5000]
)
def test_wrong_block_starts_are_refused(starts):
    """Starts that are no growing numbers of spans raise in one line that names the trace."""
    with pytest.raises(InputError, match=r"m\.json: otherData\.block_starts: expected") as caught:
        pair_traces(PREDICTED, replace(MEASURED, metadata={"block_starts": starts}), ("p.json", "m.json"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("other", [spans(("head", 0, 1)), spans()])
def test_traces_without_a_common_task_are_refused(other):
    """Nothing in common, or nothing at all, is no comparison."""
    for pair in ((PREDICTED, other), (other, PREDICTED)):
        with pytest.raises(InputError, match="measured: no task in common with predicted; give two traces"):
            pair_traces(*pair)
