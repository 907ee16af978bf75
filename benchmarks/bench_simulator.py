"""How fast the simulator is, on the paper's run of OPT-175B, and how fast SimPy plays the same tasks.

    python benchmarks/bench_simulator.py [--repeat 5] [--simpy-tasks 60000]

32 x 8 sequences, 512 tokens in, 32 out, on a T4 with 208 GiB and NVMe: half of the weights on the CPU and
half on the disk, the cache on the disk, attention on the CPU. Prints a table, then one line of JSON. Before
times are compared, all programs must give the same end of every task.

SimPy is interpreted and the kernel is compiled; the recurrence in plain Python stands between them, so that
one sees what of the ratio is the method and what the compiler. "Play" has the seconds of tasks as input and
leaves out compilation, which the warm-up does (some seconds, once a machine: the code is kept on disk).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from simulator.generate import generate
from simulator.hardware import LANES
from simulator.kernel import event_loop, recurrence
from simulator.layout import Placed, lay_out
from simulator.model_config import load_model
from simulator.policy import CpuAttention, Policy, Split
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.simulate import capacity_draws, rates_of, simulate, task_seconds
from simulator.workload import Workload


def machine() -> dict[str, Any]:
    """Describe what the benchmark runs on."""
    model = platform.processor() or "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    packages = {name: version(name) for name in ("numpy", "numba", "simpy")}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def paper_layout() -> Placed:
    """Lay out the FlexGen paper's policy for OPT-175B."""
    policy = Policy(
        gpu_batch=32,
        num_groups=8,
        weights=Split(gpu=0, cpu=0.5, disk=0.5),
        cache=Split(gpu=0, cpu=0, disk=1),
        activations=Split(gpu=0, cpu=1, disk=0),
        cpu_attention=CpuAttention(cpu=1, disk=1),
    )
    workload = Workload(prompt_len=512, gen_len=32)
    return lay_out(load_model("opt-175b"), load_runtime("reference"), workload, policy)


def median_seconds(repeat: int, action: Callable[[], object]) -> float:
    """Run once to warm up, then time; give the median. [s]"""
    action()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def simpy_ends(lane: list[int], waits: list[list[int]], seconds: list[float]) -> list[float]:
    """Play tasks in SimPy: a process a lane that goes through its tasks, an event for every task's end."""
    env = simpy.Environment()
    ended = [env.event() for _ in lane]
    ends = [0.0] * len(lane)

    def work(tasks: list[int]) -> Iterator[simpy.Event]:
        for task in tasks:
            for other in waits[task]:
                if not ended[other].processed:
                    yield ended[other]
            yield env.timeout(seconds[task])
            ends[task] = env.now
            ended[task].succeed()

    for index in range(len(LANES)):
        env.process(work([task for task, own in enumerate(lane) if own == index]))
    env.run()
    return ends


def python_ends(lane: list[int], waits: list[list[int]], seconds: list[float]) -> list[float]:
    """Play tasks by the recurrence in plain Python."""
    free, ends = [0.0] * len(LANES), [0.0] * len(lane)
    for task, index in enumerate(lane):
        begin = free[index]
        for other in waits[task]:
            begin = max(begin, ends[other])
        ends[task] = free[index] = begin + seconds[task]
    return ends


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median counts")
    parser.add_argument("--simpy-tasks", type=int, default=10**9, help="play only the first so many in SimPy")
    options = parser.parse_args()
    about = machine()
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    placed, hardware = paper_layout(), load_profile("t4-16")
    rates, schedule = rates_of(placed, hardware), generate(placed, None)
    seconds = task_seconds(schedule, rates)
    draws, limits = capacity_draws(schedule, rates, seconds)
    graph = (schedule.lane, schedule.waits_for, seconds)
    count, lanes = len(schedule), len(LANES)
    results: dict[str, float] = {
        "generate_s": median_seconds(options.repeat, lambda: generate(placed, None)),
        "play_s": median_seconds(options.repeat, lambda: recurrence(*graph, lanes)),
        "play_shared_s": median_seconds(options.repeat, lambda: event_loop(*graph, draws, limits, lanes)),
        "simulate_s": median_seconds(options.repeat, lambda: simulate(placed, hardware, None)),
    }
    part = min(count, options.simpy_tasks)
    lane, times = schedule.lane[:part].tolist(), seconds[:part].tolist()
    waits = [[other for other in others if other >= 0] for others in schedule.waits_for[:part].tolist()]
    same = recurrence(*(column[:part] for column in graph), lanes)[1]
    for play in (simpy_ends, python_ends):
        if not np.allclose(play(lane, waits, times), same, rtol=1e-9):
            sys.exit(f"{play.__name__} and the simulator disagree; times mean nothing")
    python_s = median_seconds(options.repeat, lambda: python_ends(lane, waits, times))
    simpy_s = median_seconds(options.repeat, lambda: simpy_ends(lane, waits, times))
    rows = [
        ("generate the schedule", results["generate_s"], count),
        ("play, nothing shared", results["play_s"], count),
        ("play, shared capacities", results["play_shared_s"], count),
        ("all of it, with checks", results["simulate_s"], count),
        (f"plain Python, nothing shared ({part})", python_s, part),
        (f"SimPy, nothing shared ({part})", simpy_s, part),
    ]
    print(f"{count} tasks; median of {options.repeat} after a warm-up")
    for name, took, tasks in rows:
        print(f"{name:40} {took:10.4f} s {tasks / took:14,.0f} tasks/s")
    ratio = (simpy_s / part) / (results["play_s"] / count)
    shared = (simpy_s / part) / (results["play_shared_s"] / count)
    method = simpy_s / python_s
    print(
        f"SimPy takes {ratio:.0f} x per task: {method:.1f} x the method, {ratio / method:.0f} x the compiler"
    )
    print(f"SimPy without sharing takes {shared:.0f} x the event loop with sharing")
    numbers = {"tasks": count, **results, "reference_tasks": part, "simpy_s": simpy_s, "python_s": python_s}
    ratios = {"ratio": ratio, "ratio_of_method": method, "ratio_shared": shared}
    print(json.dumps({"benchmark": "simulator", **about, **numbers, **ratios}))


if __name__ == "__main__":
    main()
