"""Lanes: every task once, in its lane's order, after what it waits for; failures and interrupts end all."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.lanes import Lanes, Played, split_threads
from simulator.errors import InputError, PlannerError
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.schedule import Schedule
from tests.strategies import layouts
from tests.test_schedule import tiny_layout

CPU = torch.device("cpu")
few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
fractions = st.floats(0, 1, exclude_max=True)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Draw schedules of the executor's runtime that use several lanes."""
    return generate(draw(layouts(names=("reference",), finite=True)))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Check after every test that all lanes have ended."""
    threads = threading.active_count()
    yield
    assert threading.active_count() == threads


class Recorder:
    """Performs tasks by noting when they start and end, and lingers in some of them.

    Args:
        seed: which tasks take a little longer.
        at: a task that does something else.
        what: this.
    """

    def __init__(self, seed: int = 0, at: int = -1, what: Callable[[], None] = lambda: None) -> None:
        self._random, self._at, self._what = random.Random(seed), at, what  # noqa: S311
        self.events: list[tuple[str, int]] = []

    def __call__(self, number: int) -> None:
        """Do one task."""
        self.events.append(("start", number))
        if number == self._at:
            self._what()
        if self._random.random() < 0.05:
            time.sleep(2e-4)
        self.events.append(("end", number))

    def when(self, kind: str) -> dict[int, int]:
        """Give the place of each task's start or end among all events."""
        return {number: at for at, (each, number) in enumerate(self.events) if each == kind}


def play(schedule: Schedule, perform: Callable[[int], None]) -> Played:
    """Play a schedule without a GPU."""
    played = Played(schedule, {}, time.perf_counter())
    Lanes(CPU, {}).play(played, perform)
    return played


def check_order(schedule: Schedule, recorder: Recorder) -> list[int]:
    """Check what was done, all or a part: in order, each after what it waits for. Give the tasks."""
    starts, ends = recorder.when("start"), recorder.when("end")
    assert sum(kind == "start" for kind, _ in recorder.events) == len(starts)  # none twice
    done = [number for kind, number in recorder.events if kind == "start"]
    for lane in range(len(LANES)):
        mine = [number for number in done if schedule.lane[number] == lane]
        assert mine == np.nonzero(schedule.lane == lane)[0].tolist()[: len(mine)]
    for number in done:
        for other in schedule.task(number).waits_for:
            assert ends[other] < starts[number]
    return done


@few
@given(schedules(), st.integers(0, 999))
def test_every_task_is_done_once_in_order(schedule: Schedule, seed: int) -> None:
    """All tasks of all lanes are done, whatever they take, and have times that respect the order."""
    recorder = Recorder(seed)
    played = play(schedule, recorder)
    assert sorted(check_order(schedule, recorder)) == list(range(len(schedule)))
    assert (played.start >= 0).all()
    assert (played.start <= played.end).all()
    for column in schedule.waits_for.T:
        waits = column >= 0
        assert (played.end[column[waits]] <= played.start[waits]).all()
    for tasks in played.tasks.values():
        assert (played.end[tasks[:-1]] <= played.start[tasks[1:]]).all()


def wrong() -> None:
    """Fail as a defect of the program does."""
    raise ValueError("no such slot")


@few
@given(schedules(), st.integers(0, 999), fractions)
def test_a_failure_stops_all_lanes(schedule: Schedule, seed: int, where: float) -> None:
    """The error names its task and shows the schedule around it; nothing that waits for the task is done."""
    at = int(where * len(schedule))
    recorder = Recorder(seed, at, wrong)
    with pytest.raises(PlannerError, match="ValueError: no such slot") as caught:
        play(schedule, recorder)
    task = schedule.task(at)
    assert f"lane {task.lane} ({task.operation} of pass {task.pass_index}, layer {task.layer}, " in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, ValueError)
    (note,) = caught.value.__notes__
    shown = range(max(0, at - 3), min(len(schedule), at + 4))
    assert note.splitlines() == [f"{'>' if one == at else ' '} {schedule.task(one)}" for one in shown]
    starts = recorder.when("start")
    assert not any(
        number in starts for number in np.nonzero((schedule.waits_for == at).any(axis=1))[0].tolist()
    )
    check_order(schedule, recorder)


@few
@given(schedules(), st.integers(0, 999), fractions)
def test_stopping_early_is_no_error(schedule: Schedule, seed: int, where: float) -> None:
    """Every lane ends before its next task; what was not reached has no times."""
    at, played = int(where * len(schedule)), Played(schedule, {}, time.perf_counter())
    recorder = Recorder(seed, at, played.stop)
    Lanes(CPU, {}).play(played, recorder)
    done = check_order(schedule, recorder)
    assert done.count(at) == 1
    assert np.nonzero(np.isfinite(played.end))[0].tolist() == sorted(done)
    assert (np.isfinite(played.start) == np.isfinite(played.end)).all()
    lane = schedule.lane[at]
    assert not any(number > at for number in done if schedule.lane[number] == lane)


def test_stopped_before_it_begins() -> None:
    """Nothing is done."""
    played, recorder = Played(generate(tiny_layout()), {}, time.perf_counter()), Recorder()
    played.stop()
    Lanes(CPU, {}).play(played, recorder)
    assert not recorder.events


class _Watched(Played):
    """Says when it has been stopped."""

    stopped: threading.Event

    def stop(self) -> None:
        super().stop()
        self.stopped.set()


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Handle the signal of an interrupt as Python does, whoever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("at", [0, 5, 17])
def test_an_interrupt_stops_all_lanes(at: int) -> None:
    """The user interrupts while a task runs: it ends, none begins behind it, and the interrupt goes on."""
    schedule = generate(tiny_layout())
    played = _Watched(schedule, {}, time.perf_counter())
    played.stopped = threading.Event()
    main, others = threading.main_thread().ident or 0, threading.active_count()

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        assert played.stopped.wait(10)

    recorder = Recorder(at=at, what=interrupt)

    def perform(number: int) -> None:
        begun = others + len(set(schedule.lane.tolist()))
        while number == 0 and sum(map(threading.Thread.is_alive, threading.enumerate())) < begun:
            time.sleep(1e-3)  # until all lanes have begun
        recorder(number)

    with pytest.raises(KeyboardInterrupt):
        Lanes(CPU, {}).play(played, perform)
    done = check_order(schedule, recorder)
    assert at in done
    assert not any(number > at for number in done if schedule.lane[number] == schedule.lane[at])
    assert len(recorder.when("end")) == len(done)  # what had begun came to its end


def test_errors_for_people_stay_as_they_are() -> None:
    """An error of this project is raised itself, with the schedule as a note."""
    error = InputError("disk: no space is left")

    def fail() -> None:
        raise error

    with pytest.raises(InputError) as caught:
        play(generate(tiny_layout()), Recorder(at=3, what=fail))
    assert caught.value is error
    assert "\n> 3 " in error.__notes__[0]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9")],
)
def test_memory_that_runs_out_is_the_users_to_solve(error: Exception) -> None:
    """The message says in which lane, and what may help."""

    def fail() -> None:
        raise error

    with pytest.raises(InputError, match=r"out of memory in lane \w+ \(.*smaller capacity.*--set"):
        play(generate(tiny_layout()), Recorder(at=3, what=fail))


def test_the_first_error_is_kept() -> None:
    """Of two failures the one that is noted first is raised."""
    played = Played(generate(tiny_layout()), {}, time.perf_counter())
    for name in ("first", "second"):
        played.fail(PlannerError(name))
    with pytest.raises(PlannerError, match="first"):
        Lanes(CPU, {}).play(played, Recorder())


def test_lanes_compute_with_their_threads() -> None:
    """Each lane has its number of threads and keeps no gradients; the caller's number stays."""
    schedule, before = generate(tiny_layout()), torch.get_num_threads()
    seen: dict[str, set[tuple[int, bool]]] = {lane: set() for lane in LANES}

    def perform(number: int) -> None:
        seen[LANES[schedule.lane[number]]].add((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    Lanes(CPU, {"gpu": 3, "cpu": 2}).play(Played(schedule, {}, time.perf_counter()), perform)
    expected = {"gpu": 3, "cpu": 2}
    assert seen == {lane: {(expected.get(lane, 1), True)} for lane in LANES}
    assert torch.get_num_threads() == before


def test_threads_of_lanes() -> None:
    """Without a GPU two lanes compute; beside one the processor's lane does."""
    assert split_threads(CPU, 8) == {"gpu": 8, "cpu": 8}
    assert split_threads(torch.device("cuda"), 8) == {"cpu": 8}
    assert split_threads(CPU, 0) == {"gpu": 1, "cpu": 1}
