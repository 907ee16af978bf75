"""The event loop: when every task starts and ends.

Two ways. Where nothing is shared, issue order makes the start of a task a maximum over earlier ends: one
pass over the tasks (``recurrence``). Where lanes share capacities, running tasks slow each other down, and
the loop goes from completion to completion (``event_loop``). Without sharing both give the same times.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from simulator.policy import FloatArray
from simulator.schedule import Int8Array, Int32Array

_jit: Any = numba.njit(cache=True, nogil=True)


@_jit
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


@_jit
def fair_speeds(pace: FloatArray, draws: FloatArray, limits: FloatArray, active: npt.NDArray[np.bool_]) -> FloatArray:
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
    lanes, capacities = draws.shape
    speed = np.zeros(lanes)
    moving = active.copy()
    for index in range(lanes):
        if active[index] and pace[index] <= 0.0:
            speed[index] = 1.0
            moving[index] = False
    left = limits.copy()
    level = 0.0
    while True:
        # The next level at which something gets stuck.
        best = np.inf
        for index in range(lanes):
            if moving[index]:
                best = min(best, pace[index] - level)
        for capacity in range(capacities):
            slope = 0.0
            for index in range(lanes):
                if moving[index]:
                    slope += draws[index, capacity] / pace[index]
            if slope > 0.0:
                best = min(best, max(left[capacity], 0.0) / slope)
        if best == np.inf:
            return speed
        level += best
        for index in range(lanes):
            if moving[index]:
                speed[index] = min(1.0, level / pace[index])
                for capacity in range(capacities):
                    left[capacity] -= draws[index, capacity] / pace[index] * best
        for index in range(lanes):
            if moving[index]:
                stuck = level >= pace[index] * (1.0 - 1e-12)
                for capacity in range(capacities):
                    if draws[index, capacity] > 0.0 and left[capacity] <= 1e-9 * limits[capacity]:
                        stuck = True
                if stuck:
                    moving[index] = False


@_jit
def event_loop(
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
    total, width = waits_for.shape
    capacities = limits.shape[0]
    start, end = np.full(total, -1.0), np.full(total, np.inf)
    # Tasks of each lane in order: the next one after each task, and each lane's first.
    following, head = np.full(total, -1, np.int64), np.full(num_lanes, -1, np.int64)
    last = np.full(num_lanes, -1, np.int64)
    for task in range(total):
        if last[lane[task]] >= 0:
            following[last[lane[task]]] = task
        else:
            head[lane[task]] = task
        last[lane[task]] = task
    running = np.zeros(num_lanes, np.bool_)
    left = np.zeros(num_lanes)
    rate, pace = np.zeros((num_lanes, capacities)), np.zeros(num_lanes)
    now, done = 0.0, 0
    while done < total:
        moved = True
        while moved:  # start what can start; tasks without work end at once and may let others start
            moved = False
            for index in range(num_lanes):
                task = head[index]
                if task < 0 or running[index]:
                    continue
                ready = True
                for column in range(width):
                    other = waits_for[task, column]
                    if other >= 0 and end[other] > now:
                        ready = False
                        break
                if not ready:
                    continue
                start[task] = now
                moved = True
                if seconds[task] <= 0.0:
                    end[task] = now
                    head[index] = following[task]
                    done += 1
                    continue
                running[index] = True
                left[index] = seconds[task]
                pace[index] = 0.0
                for capacity in range(capacities):
                    rate[index, capacity] = draws[task, capacity] / seconds[task]
                    pace[index] = max(pace[index], rate[index, capacity] / limits[capacity])
        if done >= total:
            break
        speed = fair_speeds(pace, rate, limits, running)
        step = np.inf
        for index in range(num_lanes):
            if running[index]:
                step = min(step, left[index] / speed[index])
        if step == np.inf:
            raise ValueError("deadlock: no task can start")
        now += step
        for index in range(num_lanes):
            if running[index]:
                left[index] -= step * speed[index]
                if left[index] <= 1e-12 * seconds[head[index]]:
                    task = head[index]
                    end[task] = now
                    running[index] = False
                    head[index] = following[task]
                    done += 1
    return start, end
