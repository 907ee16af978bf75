"""How long planning takes: the whole command, the search alone, and how many linear programs it solves.

    python benchmarks/bench_planner.py [--repeat 5]

OPT-175B on the T4 machine and on the A100 machine, with default options and with every outer choice open
(``--quantize auto``). Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from planner.choices import Options
from planner.problem import Problem
from planner.search import search
from simulator.model_config import load_model
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.workload import Workload

MACHINES = ("t4-16", "a100-80")
MODEL = "opt-175b"


def machine() -> dict[str, object]:
    """Describe what the benchmark runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    packages = {name: version(name) for name in ("numpy", "numba", "pulp", "highspy")}
    cpu = names[0] if names else platform.processor() or "unknown"
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def whole_process(hardware: str, extra: tuple[str, ...], repeat: int) -> tuple[float, float]:
    """Time ``planner plan`` from the shell: median wall and processor seconds, after a warm-up."""
    command = [sys.executable, "-m", "planner.cli", "plan", "--hw", hardware, "--model", MODEL, *extra]
    walls, processors = [], []
    for run in range(repeat + 1):
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if run:  # the first run may compile the event loop
            walls.append(wall)
            processors.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
    return statistics.median(walls), statistics.median(processors)


def search_alone(hardware: str, quantize: str, repeat: int) -> tuple[float, int]:
    """Time the search inside a running process: median seconds, and the programs that it solves."""
    problem = Problem(load_profile(hardware), load_model(MODEL), Workload(), load_runtime("reference"))
    options = Options(quantize=quantize)  # type: ignore[arg-type]
    seconds, programs = [], 0
    for run in range(repeat + 1):
        start = time.perf_counter()
        programs = search(problem, options).solver.programs
        if run:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), programs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="counted runs of each measurement")
    repeat = parser.parse_args().repeat
    described = machine()
    print("  ".join(f"{name} {value}" for name, value in described.items()))
    print(f"{'machine':10} {'choices':8} {'wall s':>8} {'cpu s':>8} {'search s':>9} {'programs':>9}")
    rows = []
    for hardware in MACHINES:
        for quantize in ("none", "auto"):
            wall, processor = whole_process(hardware, ("--quantize", quantize), repeat)
            seconds, programs = search_alone(hardware, quantize, repeat)
            print(f"{hardware:10} {quantize:8} {wall:8.2f} {processor:8.2f} {seconds:9.3f} {programs:9d}")
            rows.append(
                {
                    "hardware": hardware,
                    "quantize": quantize,
                    "wall_s": wall,
                    "cpu_s": processor,
                    "search_s": seconds,
                    "programs": programs,
                }
            )
    print(json.dumps({"benchmark": "planner", **described, "model": MODEL, "rows": rows}))


if __name__ == "__main__":
    main()
