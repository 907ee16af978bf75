"""The event loop: when every task starts and ends.

Two ways. Where nothing is shared, issue order makes the start of a task a maximum over earlier ends: one
pass over the tasks (``recurrence``). Where lanes share capacities, running tasks slow each other down, and
the loop goes from completion to completion (``event_loop``). Without sharing both give the same times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from simulator.operations import BoolArray, IntArray
from simulator.policy import FloatArray
from simulator.schedule import Int8Array, Int32Array

Function = TypeVar("Function", bound=Callable[..., Any])

_STUCK = 1e-12  # relative; a flow this close to its full speed has reached it
_FULL = 1e-9  # relative; a capacity with less than this left is full


def compiled(function: Function) -> Function:
    """Compile a function; its machine code is kept on disk for the next process."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


@compiled
def recurrence(
    lane: Int8Array, waits_for: Int32Array, seconds: FloatArray, num_lanes: int
) -> tuple[FloatArray, FloatArray]:
    """Start each task when its lane is free and all that it waits for has ended: ``start = max(ends)``. [s]

    Args:
        lane: lane of each task. [N]
        waits_for: earlier tasks, -1 for none. [N, W]
        seconds: time of each task. [N]
        num_lanes: how many lanes there are.
    """
    total, width = waits_for.shape
    start, end = np.empty(total), np.empty(total)
    lane_free = np.zeros(num_lanes)
    for task in range(total):
        begin = lane_free[lane[task]]
        for column in range(width):
            other = waits_for[task, column]
            if other >= 0 and end[other] > begin:
                begin = end[other]
        start[task] = begin
        end[task] = begin + seconds[task]
        lane_free[lane[task]] = end[task]
    return start, end


@compiled
def fair_speeds(  # noqa: C901 - compiled, so plain loops
    pace: FloatArray, draws: FloatArray, limits: FloatArray, active: BoolArray
) -> FloatArray:
    """Share capacities max-min fairly among running tasks by raising all flows together until one is stuck.

    A task at full speed (1) draws ``draws[task, capacity]`` per second; ``pace`` is the largest share of a
    capacity that this is, the unit in which flows are equal, whatever capacities count (bytes or cores). A
    flow is stuck when it runs at full speed or a capacity that it uses is full.

    Args:
        pace: the largest share of a capacity that each task draws at full speed. [L]
        draws: draw of each task on each capacity at full speed. [L, C]
        limits: rate of each capacity. [C]
        active: which tasks run. [L]

    Returns:
        The speed of each task, between 0 and 1. [L]
    """
    if _all_fit(draws, limits, active):
        return active.astype(np.float64)
    lanes = len(pace)
    speed = np.zeros(lanes)
    moving = active.copy()
    for index in range(lanes):
        if active[index] and pace[index] <= 0.0:
            speed[index], moving[index] = 1.0, False
    left = limits.copy()
    level = 0.0
    while True:
        rise = _next_rise(pace, draws, left, moving, level)
        if rise == np.inf:
            return speed
        level += rise
        for index in range(lanes):
            if moving[index]:
                speed[index] = min(1.0, level / pace[index])
                for capacity in range(len(limits)):
                    left[capacity] -= draws[index, capacity] / pace[index] * rise
        for index in range(lanes):
            if moving[index] and _is_stuck(index, pace, draws, limits, left, level):
                moving[index] = False


@compiled
def _all_fit(draws: FloatArray, limits: FloatArray, active: BoolArray) -> bool:
    """Say whether all running tasks can go at full speed, as they mostly do."""
    for capacity in range(len(limits)):
        drawn = 0.0
        for index in range(len(active)):
            if active[index]:
                drawn += draws[index, capacity]
        if drawn > limits[capacity]:
            return False
    return True


@compiled
def _next_rise(
    pace: FloatArray, draws: FloatArray, left: FloatArray, moving: BoolArray, level: float
) -> float:
    """Find by how much the level can rise until something gets stuck; infinite if nothing moves."""
    best = np.inf
    for index in range(len(pace)):
        if moving[index]:
            best = min(best, pace[index] - level)
    for capacity in range(len(left)):
        slope = 0.0
        for index in range(len(pace)):
            if moving[index]:
                slope += draws[index, capacity] / pace[index]
        if slope > 0.0:
            best = min(best, max(left[capacity], 0.0) / slope)
    return best


@compiled
def _is_stuck(
    index: int, pace: FloatArray, draws: FloatArray, limits: FloatArray, left: FloatArray, level: float
) -> bool:
    """Say whether a flow runs at full speed or uses a full capacity."""
    if level >= pace[index] * (1.0 - _STUCK):
        return True
    for capacity in range(len(limits)):
        if draws[index, capacity] > 0.0 and left[capacity] <= _FULL * limits[capacity]:
            return True
    return False


@compiled
def event_loop(  # noqa: C901, PLR0912, PLR0915 - compiled, so plain loops
    lane: Int8Array,
    waits_for: Int32Array,
    seconds: FloatArray,
    draws: FloatArray,
    limits: FloatArray,
    num_lanes: int,
) -> tuple[FloatArray, FloatArray]:
    """Play the tasks on lanes that share capacities.

    Args:
        lane: lane of each task. [N]
        waits_for: earlier tasks, -1 for none. [N, W]
        seconds: time of each task at full speed. [N]
        draws: what each task takes from each capacity in all. [N, C]
        limits: rate of each capacity. [C]
        num_lanes: how many lanes there are.

    Returns:
        Start and end of each task. [N] each [s]
    """
    total = len(lane)
    start, end = np.full(total, -1.0), np.full(total, np.inf)
    head, following = _queues(lane, num_lanes)
    running, left = np.zeros(num_lanes, np.bool_), np.zeros(num_lanes)
    rate, pace = np.zeros((num_lanes, len(limits))), np.zeros(num_lanes)
    speed, blocker = np.zeros(num_lanes), np.full(num_lanes, -1, np.int64)
    now, done = 0.0, 0
    while done < total:
        moved = True
        while moved:  # start what can start; tasks without work end at once and may let others start
            moved = False
            for index in range(num_lanes):
                task = head[index]
                if running[index] or task < 0 or (blocker[index] >= 0 and end[blocker[index]] > now):
                    continue
                blocker[index] = _blocker(task, waits_for, end, now)
                if blocker[index] >= 0:
                    continue
                moved = True
                start[task] = now
                if seconds[task] > 0.0:
                    running[index], left[index] = True, seconds[task]
                    pace[index] = _set_rates(rate, index, draws, task, seconds[task], limits)
                else:
                    end[task], head[index] = now, following[task]
                    done += 1
        if done == total:
            break
        if _all_fit(rate, limits, running):  # mostly; then no array is made
            for index in range(num_lanes):
                speed[index] = 1.0
        else:
            speed[:] = fair_speeds(pace, rate, limits, running)
        step = _first_end(left, speed, running)
        if step == np.inf:
            raise ValueError("deadlock: no task can start")
        now += step
        for index in range(num_lanes):
            if not running[index]:
                continue
            left[index] -= step * speed[index]
            task = head[index]
            if left[index] <= _STUCK * seconds[task]:
                end[task], head[index] = now, following[task]
                running[index] = False
                done += 1
    return start, end


@compiled
def _queues(lane: Int8Array, num_lanes: int) -> tuple[IntArray, IntArray]:
    """Give each lane's first task, and after each task the next of its lane, -1 for none. [L], [N]"""
    head, following = np.full(num_lanes, -1, np.int64), np.full(len(lane), -1, np.int64)
    for task in range(len(lane) - 1, -1, -1):
        following[task] = head[lane[task]]
        head[lane[task]] = task
    return head, following


@compiled
def _blocker(task: int, waits_for: Int32Array, end: FloatArray, now: float) -> int:
    """Find the first of what a task waits for that has not ended, -1 if all has."""
    for column in range(waits_for.shape[1]):
        other = waits_for[task, column]
        if other >= 0 and end[other] > now:
            return int(other)
    return -1


@compiled
def _set_rates(
    rate: FloatArray, index: int, draws: FloatArray, task: int, seconds: float, limits: FloatArray
) -> float:
    """Note what a task that starts on a lane draws per second; give its largest share of a capacity."""
    share = 0.0
    for capacity in range(len(limits)):
        rate[index, capacity] = draws[task, capacity] / seconds
        share = max(share, rate[index, capacity] / limits[capacity])
    return share


@compiled
def _first_end(left: FloatArray, speed: FloatArray, running: BoolArray) -> float:
    """Give the time until the first running task ends."""
    step = np.inf
    for index in range(len(left)):
        if running[index]:
            step = min(step, left[index] / speed[index])
    return step
