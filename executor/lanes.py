"""Lanes: workers that each do their tasks in the schedule's order, and wait for those of others.

A lane of the host (and all lanes of a machine without a GPU) is a thread that does a task at a time. A lane
of the GPU is a thread that issues tasks to a stream: the stream waits for events of other streams, the thread
for work of the host. Nothing ever waits for the device as a whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from simulator.errors import InputError, PlannerError
from simulator.hardware import LANES, LaneName
from simulator.policy import FloatArray
from simulator.schedule import Schedule
from simulator.units import one_line

ON_DEVICE: frozenset[LaneName] = frozenset({"gpu", "h2d", "d2h"})
_CHECK = 0.2  # seconds after which the one who waits for the lanes looks whether the user has interrupted
_AROUND = 3  # tasks shown before and after one that failed


class _Stopped(Exception):  # noqa: N818 - not an error: another lane has failed, or all is done
    pass


class _Worker(threading.Thread):
    """A thread to wait for, over and over if need be.

    Before Python 3.13 a ``join`` that the user interrupts takes the thread for ended, though it works on.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work, self._over = work, threading.Event()

    def run(self) -> None:
        """Work, which raises nothing."""
        try:
            self._work()
        finally:
            self._over.set()

    def wait(self) -> None:
        """Wait until it has ended."""
        while not self._over.wait(_CHECK):
            pass
        self.join()


class Lanes:
    """The lanes of a run.

    Args:
        device: where the GPU's lanes work.
        threads: of the processor, for the arithmetic of each lane; lanes that are absent use one.
    """

    def __init__(self, device: torch.device, threads: Mapping[LaneName, int]) -> None:
        self._threads = threads
        cuda = device.type == "cuda"
        self.streams: dict[LaneName, torch.cuda.Stream] = {}
        if cuda:
            self.streams = {lane: torch.cuda.Stream(device) for lane in ON_DEVICE}  # type: ignore[no-untyped-call]

    def play(self, played: Played, perform: Callable[[int], None]) -> None:
        """Do all tasks.

        Args:
            played: the tasks, and what becomes of them.
            perform: does one, by its number; on the GPU, issues it to the current stream.

        Raises:
            PlannerError: a task failed; notes show the schedule around it.
            KeyboardInterrupt: the user interrupted; all lanes have stopped.
        """
        lanes = [lane for lane in LANES if len(played.tasks[lane])]
        workers = [_Worker(lane, partial(self._work, lane, played, perform)) for lane in lanes]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.wait()
        except BaseException:
            played.stop()
            for worker in filter(threading.Thread.is_alive, workers):  # one that has not begun never will
                worker.wait()
            raise
        played.finish()

    def _work(self, lane: LaneName, played: Played, perform: Callable[[int], None]) -> None:
        """Do the tasks of one lane."""
        # A new thread takes over the number of whoever set one last, unless it has been asked for its own.
        torch.get_num_threads()
        torch.set_num_threads(self._threads.get(lane, 1))
        stream = self.streams.get(lane)
        context: AbstractContextManager[object] = (
            nullcontext() if stream is None else torch.cuda.stream(stream)
        )
        number = -1
        try:
            with torch.inference_mode(), context:
                for place, number in enumerate(played.tasks[lane]):
                    played.wait(number, stream)
                    played.note_start(number, stream)
                    perform(number)
                    played.note_end(number, lane, place, stream)
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, it belongs to the one who waits for the lanes
            played.fail(_explained(error, played.schedule, number))


class Played:
    """What has been done of a schedule, and when.

    Args:
        schedule: the tasks.
        streams: of the GPU's lanes; none where all lanes are threads that do their work themselves.
        zero: the time from which times are counted, of `time.perf_counter`. [s]

    Attributes:
        schedule: the tasks.
        tasks: of each lane, in order.
        start: when each task started; NaN where it was not done. [N] [s]
        end: when it ended. [N] [s]
    """

    def __init__(
        self, schedule: Schedule, streams: Mapping[LaneName, torch.cuda.Stream], zero: float
    ) -> None:
        self.schedule, self._zero, self._streams = schedule, zero, streams
        self.start: FloatArray = np.full(len(schedule), np.nan)
        self.end: FloatArray = np.full(len(schedule), np.nan)
        numbers = [np.nonzero(schedule.lane == index)[0] for index in range(len(LANES))]
        self.tasks: dict[LaneName, list[int]] = {
            lane: each.tolist() for lane, each in zip(LANES, numbers, strict=True)
        }
        place = np.zeros(len(schedule), dtype=np.int64)
        for each in numbers:
            place[each] = np.arange(len(each))
        self._waits = _waits(schedule, place)
        self._numbers = numbers
        self._done = [0] * len(LANES)
        self._changed = [threading.Condition() for _ in LANES]
        self._error: BaseException | None = None
        self._stopped = False
        self._events: dict[int, tuple[torch.cuda.Event, torch.cuda.Event]] = {}
        self._zero_event = None
        if streams:
            self._zero_event = _event()
            self._zero_event.record()
            self._zero_event.synchronize()
            self._zero_at = time.perf_counter() - zero

    def wait(self, number: int, stream: torch.cuda.Stream | None) -> None:
        """Wait until the tasks that this one waits for are done; a stream waits for streams by itself."""
        for lane, place in self._waits[number]:
            if self._done[lane] <= place:
                with self._changed[lane]:
                    while self._done[lane] <= place and not self._stopped:
                        self._changed[lane].wait()
            if not self._stopped and self._events:
                event = self._events.get(int(self._numbers[lane][place]))
                if event is not None and stream is not None:
                    stream.wait_event(event[1])
                elif event is not None:
                    event[1].synchronize()
        if self._stopped:
            raise _Stopped

    def note_start(self, number: int, stream: torch.cuda.Stream | None) -> None:
        """Note that a task starts."""
        if stream is None:
            self.start[number] = time.perf_counter() - self._zero
        else:
            pair = (_event(), _event())
            pair[0].record(stream)
            self._events[number] = pair

    def note_end(self, number: int, lane: LaneName, place: int, stream: torch.cuda.Stream | None) -> None:
        """Note that a task has ended (or has been issued), and tell those who wait."""
        if stream is None:
            self.end[number] = time.perf_counter() - self._zero
        else:
            self._events[number][1].record(stream)
        index = LANES.index(lane)
        with self._changed[index]:
            self._done[index] = place + 1
            self._changed[index].notify_all()

    def stop(self) -> None:
        """Let all lanes stop before their next task."""
        self._stopped = True
        for condition in self._changed:
            with condition:
                condition.notify_all()

    def fail(self, error: BaseException) -> None:
        """Keep the first error, and stop."""
        if self._error is None:
            self._error = error
        self.stop()

    def finish(self) -> None:
        """Gather the times of streams, or raise the error of a lane."""
        if self._error is not None:
            raise self._error
        if self._zero_event is not None:
            for stream in self._streams.values():
                stream.synchronize()
            for number, pair in self._events.items():
                for column, event in zip((self.start, self.end), pair, strict=True):
                    column[number] = self._zero_at + self._zero_event.elapsed_time(event) / 1e3
            self._events.clear()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _waits(schedule: Schedule, place: npt.NDArray[np.int64]) -> list[list[tuple[int, int]]]:
    """List for every task the (lane, place in it) of others that it waits for; its own lane is in order."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(len(schedule))]
    lane = schedule.lane
    for column in schedule.waits_for.T:
        tasks = np.nonzero((column >= 0) & (lane != lane[column]))[0]
        others = column[tasks]
        for task, index, at in zip(
            tasks.tolist(), lane[others].tolist(), place[others].tolist(), strict=True
        ):
            found[task].append((index, at))
    return found


def _explained(error: BaseException, schedule: Schedule, number: int) -> BaseException:
    """Name the task that failed, and show the schedule around it."""
    if number < 0:
        return error
    task = schedule.task(number)
    around = range(max(0, number - _AROUND), min(len(schedule), number + _AROUND + 1))
    note = "\n".join(f"{'>' if one == number else ' '} {schedule.task(one)}" for one in around)
    where = f"{task.operation} of pass {task.pass_index}, layer {task.layer}, group {task.group}"
    if isinstance(error, PlannerError):
        raised: BaseException = error
    elif _out_of_memory(error):
        raised = InputError(
            f"out of memory in lane {task.lane} ({where}): other programs may use it too; stop them, or plan "
            "with a smaller capacity of this tier (--set)"
        )
    else:
        fault = one_line(f"{type(error).__name__}: {error}")  # torch explains itself in paragraphs
        raised = PlannerError(f"internal error in lane {task.lane} ({where}): {fault}")
    if raised is not error:
        raised.__cause__ = error
    raised.add_note(note)
    return raised


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and ("allocate memory" in told or "out of memory" in told)


def split_threads(device: torch.device, cores: int) -> Mapping[LaneName, int]:
    """Give every lane the threads for its arithmetic: all cores where it computes, one where it copies."""
    lanes: Sequence[LaneName] = ("gpu", "cpu") if device.type == "cpu" else ("cpu",)
    return dict.fromkeys(lanes, max(1, cores))
