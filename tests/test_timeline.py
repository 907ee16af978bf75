"""Timelines: few spans, in order, that hide no work and no long idle time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.make_plan import Request, make_plan
from planner.timeline import SHOWN, Columns, Timeline, merged, timeline
from simulator.hardware import LANES
from tests.problems import problem_of


@st.composite
def spans(draw: st.DrawFn) -> Columns:
    """Draw tasks of up to three lanes, with and without idle time between them."""
    rows: list[tuple[float, ...]] = []
    for lane in range(draw(st.integers(1, 3))):
        time = 0.0
        for _ in range(draw(st.integers(1, 30))):
            start = time + draw(st.sampled_from([0.0, 0.0, 1e-6, 0.1, 5.0]))
            time = start + draw(st.sampled_from([1e-6, 0.01, 1.0]))
            rows.append((lane, draw(st.integers(0, 3)), start, time))
    lane, operation, start, end = np.array(rows).T
    length = end - start
    ones = np.ones(len(rows), dtype=np.int64)
    return Columns(lane.astype(int), operation.astype(int), start, end, length, length, ones)


@given(spans(), st.integers(3, 60))
def test_merging_conserves(drawn: Columns, most: int) -> None:
    """Few enough spans, in order and apart; ends, work and tasks of each lane as before."""
    found = merged(drawn, most)
    assert len(found) <= max(most, 3)
    assert len(found) == len(drawn) or len(found) == most
    for lane in np.unique(drawn.lane):
        before, after = drawn.lane == lane, found.lane == lane
        assert (found.end[after] > found.start[after]).all()
        assert (found.start[after][1:] >= found.end[after][:-1]).all()
        assert found.start[after][0] == drawn.start[before][0]
        assert found.end[after][-1] == drawn.end[before][-1]
        assert found.busy[after].sum() == pytest.approx(drawn.busy[before].sum())
        assert found.tasks[after].sum() == before.sum()
        gaps = (found.end - found.start)[after].sum() - found.busy[after].sum()
        idle = (drawn.start[before][1:] - drawn.end[before][:-1]).sum()
        assert -1e-9 <= gaps <= idle + 1e-9


def test_long_idle_time_and_long_operations_stay() -> None:
    """A long pause and a long operation are seen when there is room for few spans."""
    starts = np.concatenate([np.arange(100.0), 200 + np.arange(100.0), [300.0]])
    ends = np.append(starts[:-1] + 0.999, 400.0)
    operation = np.append(np.zeros(200, dtype=int), 1)
    lane, ones = np.zeros(201, dtype=int), np.ones(201, dtype=int)
    found = merged(Columns(lane, operation, starts, ends, ends - starts, ends - starts, ones), 3)
    assert found.start.tolist() == [0.0, 200.0, 300.0]
    assert found.operation.tolist() == [0, 0, 1]
    assert found.busy.tolist() == pytest.approx([99.9, 99.9, 100.0])


def test_every_lane_needs_a_span() -> None:
    """Fewer spans than lanes are refused."""
    numbers, seconds = np.arange(2), np.ones(2)
    two = Columns(numbers, numbers, 0 * seconds, seconds, seconds, seconds, numbers)
    with pytest.raises(ValueError, match="1 spans cannot show 2 lanes"):
        merged(two, 1)


@pytest.mark.parametrize(
    ("hardware", "model"), [("t4-16", "opt-30b"), ("rtx-4090", "opt-30b"), ("rtx-4090", "opt-6.7b")]
)
def test_a_plans_timeline(hardware: str, model: str) -> None:
    """Whatever the schedule, some passes are shown, with prompts first, in order and within the bound."""
    plan = make_plan(Request(problem_of(hardware, model, prompt_len=512, gen_len=32)))
    shown = timeline(plan, 400)
    assert shown.lanes == LANES
    assert 0 < len(shown.spans) <= 400
    assert 1 <= len(shown.passes) <= SHOWN
    assert shown.passes[0].prompts
    assert shown.passes[0].start == 0.0
    assert min(span.start for span in shown.spans) == 0.0
    for first, second in itertools.pairwise(shown.spans):
        assert (first.lane, first.end) <= (second.lane, second.start) or first.lane < second.lane
    for span in shown.spans:
        assert span.busy is not None
        assert 0 < span.busy <= (span.end - span.start) * (1 + 1e-6) + 1e-8
    assert Timeline.model_validate_json(shown.model_dump_json()) == shown
