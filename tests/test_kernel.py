"""Law 5: the event loop against the recurrence, against theory, and against SimPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import simpy
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.kernel import event_loop, fair_speeds, recurrence


@dataclass(frozen=True)
class World:
    """Tasks on lanes with waits, and what they draw from capacities in all."""

    lane: list[int]
    waits: list[list[int]]
    seconds: list[float]
    draws: list[list[float]]
    limits: list[float]
    num_lanes: int

    def arrays(self):
        """Give the columns that the kernel reads: lane, waits, seconds; draws and limits."""
        width = max([1, *map(len, self.waits)])
        waits = np.full((len(self.lane), width), -1, dtype=np.int32)
        for task, others in enumerate(self.waits):
            waits[task, : len(others)] = others
        graph = (np.array(self.lane, dtype=np.int8), waits, np.array(self.seconds, dtype=float))
        draws = np.array(self.draws, dtype=float).reshape(len(self.lane), len(self.limits))
        return graph, draws, np.array(self.limits, dtype=float)

    def alone(self):
        """Play without sharing."""
        return recurrence(*self.arrays()[0], self.num_lanes)

    def play(self):
        """Play with sharing."""
        graph, draws, limits = self.arrays()
        return event_loop(*graph, draws, limits, self.num_lanes)


@st.composite
def worlds(draw, *, capacities=0, longest=12.0):
    """Draw up to 30 tasks on up to 4 lanes; times are quarters of seconds so that many ends coincide."""
    count, num_lanes = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    lane = draw(st.lists(st.integers(0, num_lanes - 1), min_size=count, max_size=count))
    waits = [draw(st.lists(st.integers(0, task - 1), max_size=3)) if task else [] for task in range(count)]
    quarter = st.integers(0, int(4 * longest)).map(lambda number: number / 4)
    time = st.one_of(quarter, st.floats(1e-3, longest))
    seconds = draw(st.lists(time, min_size=count, max_size=count))
    share = st.one_of(st.just(0.0), st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.floats(0.01, 3.0))
    draws = [[draw(share) * time for _ in range(capacities)] for time in seconds]
    limits = [draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in range(capacities)]
    return World(lane, waits, seconds, draws, limits, num_lanes)


def close(one, other):
    """Compare start and end times to 1e-9 of the longest."""
    scale = max(1.0, float(np.max(one[1])))
    np.testing.assert_allclose(one[0], other[0], atol=1e-9 * scale, rtol=0)
    np.testing.assert_allclose(one[1], other[1], atol=1e-9 * scale, rtol=0)


# --- nothing shared -----------------------------------------------------------------------------------------


def test_the_recurrence_by_hand():
    """Four tasks on two lanes: each starts when its lane is free and its waits have ended."""
    world = World([0, 1, 1, 0], [[], [0], [], [2]], [2.0, 3.0, 1.0, 1.0], [[]] * 4, [], 2)
    start, end = world.alone()
    assert start.tolist() == [0.0, 2.0, 5.0, 6.0]
    assert end.tolist() == [2.0, 5.0, 6.0, 7.0]


@given(worlds())
def test_the_event_loop_equals_the_recurrence(world):
    """Law 5: without capacities both give the same times."""
    close(world.alone(), world.play())


@given(worlds(capacities=2))
def test_ample_capacities_change_nothing(world):
    """Law 5: capacities that all lanes together cannot fill do not slow anything."""
    ample = World(world.lane, world.waits, world.seconds, world.draws, [1e9, 1e9], world.num_lanes)
    close(world.alone(), ample.play())


@given(worlds())
def test_simpy_agrees(world):
    """One SimPy process a lane, an event a task, no code in common: the same times."""
    close(world.alone(), SimpyModel(world).run())


# --- sharing ------------------------------------------------------------------------------------------------


def together(*flows, limit=1.0):
    """Start flows of (seconds, draw in all) at once, each on its own lane; give their ends."""
    count = len(flows)
    seconds, draws = zip(*flows, strict=True)
    world = World(list(range(count)), [[]] * count, list(seconds), [[d] for d in draws], [limit], count)
    return world.play()[1].tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_equal_flows_share_equally(count):
    """Law 5: n equal flows that each need the whole capacity take n times as long."""
    assert together(*[(2.0, 2.0)] * count) == pytest.approx([2.0 * count] * count)


def test_a_flow_that_needs_no_capacity_is_not_slowed():
    """Only those who draw on a full capacity wait for it."""
    assert together((1.0, 1.0), (1.0, 1.0), (1.5, 0.0)) == pytest.approx([2.0, 2.0, 1.5])


def test_a_slow_flow_limits_only_itself():
    """Max-min: a flow that needs a fifth runs at full speed, the other two share the rest."""
    assert together((4.0, 0.8), (1.6, 1.6), (1.6, 1.6)) == pytest.approx([4.0, 4.0, 4.0])


def test_what_becomes_free_is_used():
    """When a flow ends, those left speed up: 3 s of work shared to 2 s, then the rest alone."""
    assert together((1.0, 1.0), (2.0, 2.0)) == pytest.approx([2.0, 3.0])


def test_a_flow_above_the_capacity_is_slowed_alone():
    """A task that needs twice the capacity takes twice its time, also without company."""
    assert together((1.0, 2.0)) == pytest.approx([2.0])


def test_capacities_count_in_their_own_units():
    """Flows are equal in shares: bytes of one capacity do not outweigh cores of another."""
    seconds, draws = [1.0, 1.0], [[1e6, 1.0], [4e10, 1.0]]  # bytes, core-seconds
    world = World([0, 1], [[], []], seconds, draws, [8e10, 1.0], 2)
    assert world.play()[1].tolist() == pytest.approx([2.0, 2.0])


def test_two_capacities_limit_as_the_tighter_one():
    """A flow through both capacities goes at the pace of the fuller one, and leaves the rest of the other."""
    world = World([0, 1, 2], [[]] * 3, [1.0] * 3, [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [1.0, 2.0], 3)
    assert world.play()[1].tolist() == pytest.approx([2.0, 2.0, 1.0])


@given(worlds(capacities=2))
def test_sharing_never_speeds_up_the_first_tasks(world):
    """A task never takes less than its time at full speed."""
    start, end = world.play()
    assert (end - start >= np.array(world.seconds) * (1 - 1e-9) - 1e-12).all()


@given(worlds(capacities=1))
def test_never_faster_than_unshared(world):
    """Every task starts and ends at or after its time without sharing: speeds are at most 1."""
    alone, shared = world.alone(), world.play()
    slack = 1e-9 * max(1.0, shared[1].max())
    assert (shared[0] >= alone[0] - slack).all()
    assert (shared[1] >= alone[1] - slack).all()


@given(worlds(capacities=2))
def test_capacities_are_never_exceeded(world):
    """Law 5: in any interval between events, what ran cannot have drawn more than was there in all."""
    start, end = world.play()
    draws = np.array(world.draws)
    edges = np.unique(np.concatenate([start, end]))
    for left, right in itertools.combinations(edges[:: max(1, len(edges) // 12)], 2):
        inside = (start >= left) & (end <= right)
        most = np.array(world.limits) * (right - left)
        assert (draws[inside].sum(axis=0) <= most * (1 + 1e-9) + 1e-9).all()


@given(worlds(capacities=1), st.sampled_from([1.0, 1.5, 4.0]))
def test_work_is_conserved(world, need):
    """Law 5: where every task needs a whole capacity, it is always full: time is all draws over its rate."""
    limit = world.limits[0]
    draws = [[need * limit * seconds] for seconds in world.seconds]
    greedy = World(world.lane, world.waits, world.seconds, draws, [limit], world.num_lanes)
    assert greedy.play()[1].max() == pytest.approx(np.sum(draws) / limit, rel=1e-9)


@given(
    st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=1, max_size=6),
    st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)),
)
@example([(1.0, 0.0), (1.0, 0.0)], (1.0, 1.0))
def test_fair_speeds_are_max_min(flows, limits):
    """No flow can be faster without slowing one that is no faster: each is full speed or at a full capacity.

    At that capacity its share is the largest of all.
    """
    draws, most = np.array(flows), np.array(limits)
    pace = (draws / most).max(axis=1)
    speed = fair_speeds(pace, draws, most, np.ones(len(flows), dtype=bool))
    assert (speed >= 0).all()
    assert (speed <= 1).all()
    used = speed @ draws
    assert (used <= most * (1 + 1e-6)).all()
    full = used >= most * (1 - 1e-6)
    for flow in range(len(flows)):
        if speed[flow] < 1 - 1e-6:
            at = [c for c in range(2) if full[c] and draws[flow, c] > 0]
            share = speed * pace
            assert any(share[flow] >= share[draws[:, c] > 0].max() - 1e-6 for c in at)


@given(worlds(capacities=1))
def test_simpy_agrees_with_one_shared_capacity(world):
    """A fluid model of one capacity in SimPy gives the same times."""
    shared = world.play()
    scale = max(1.0, float(shared[1].max()))
    start, end = SimpyModel(world).run()
    np.testing.assert_allclose(end, shared[1], atol=1e-6 * scale)
    np.testing.assert_allclose(start, shared[0], atol=1e-6 * scale)


# --- the independent model ----------------------------------------------------------------------------------


@dataclass
class Flow:
    """A running task: seconds of work left at full speed, and its draw per second."""

    left: float
    rate: float
    since: float
    done: simpy.Event
    speed: float = 1.0


@dataclass
class SimpyModel:
    """The same world in SimPy: a process a lane; one process that shares the capacity, if there is one."""

    world: World
    env: simpy.Environment = field(default_factory=simpy.Environment)
    flows: list[Flow] = field(default_factory=list)

    def run(self):
        """Play; give start and end times."""
        count = len(self.world.lane)
        self.start, self.end = np.zeros(count), np.zeros(count)
        self.ended = [self.env.event() for _ in range(count)]
        self.changed = self.env.event()
        for lane in range(self.world.num_lanes):
            self.env.process(self._lane([t for t in range(count) if self.world.lane[t] == lane]))
        self.env.process(self._share())
        self.env.run(until=simpy.AllOf(self.env, self.ended))
        return self.start, self.end

    def _lane(self, tasks: list[int]) -> Iterator[simpy.Event]:
        for task in tasks:
            yield self.env.all_of([self.ended[other] for other in self.world.waits[task]])
            self.start[task] = self.env.now
            seconds = self.world.seconds[task]
            rate = self.world.draws[task][0] / seconds if self.world.limits and seconds else 0.0
            if rate:
                flow = Flow(seconds, rate, self.env.now, self.env.event())
                self.flows.append(flow)
                self._wake()
                yield flow.done
            elif seconds:
                yield self.env.timeout(seconds)
            self.end[task] = self.env.now
            self.ended[task].succeed()

    def _wake(self) -> None:
        if not self.changed.triggered:
            self.changed.succeed()

    def _share(self) -> Iterator[simpy.Event]:
        """Recompute speeds whenever a flow comes or goes: fill the capacity from the smallest flow up."""
        while True:
            room = self.world.limits[0] if self.world.limits else 0.0
            ordered = sorted(self.flows, key=lambda flow: flow.rate)
            for index, flow in enumerate(ordered):
                share = min(flow.rate, room / (len(ordered) - index))
                flow.speed = share / flow.rate
                room -= share
            self.changed, before = self.env.event(), self.env.now
            soonest = min((flow.left / flow.speed for flow in self.flows), default=np.inf)
            events = [self.changed]
            if soonest < np.inf:
                events.append(self.env.timeout(soonest))
            yield self.env.any_of(events)
            for flow in list(self.flows):
                flow.left -= (self.env.now - max(before, flow.since)) * flow.speed
                if flow.left <= 1e-12 + 1e-12 * self.env.now:
                    self.flows.remove(flow)
                    flow.done.succeed()
