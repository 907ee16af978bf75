"""How fast a study is planned: cells per second and the memory of all processes together.

    python benchmarks/bench_study.py [--jobs 2] [--cells 1000]

OPT-30B and OPT-175B over twenty changes of the T4 machine (DRAM, disk, PCIe), five workloads and five limits
of latency: 1000 cells, each a full plan that is simulated, or the reason why there is none. Prints a line for
people, then one of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from planner.study import Study
from planner.study_cells import expand
from planner.study_run import Backend, Store, run_cells
from simulator.schema import decode

_GRID = {
    "machine": "t4-16",
    "sweep": {
        "tiers.cpu.capacity": ["104 GiB", "156 GiB", "208 GiB", "312 GiB", "416 GiB"],
        "links.disk_read.bandwidth": ["x0.5", "x1"],
        "links.h2d.pinned.bandwidth": ["x0.5", "x1"],
    },
    "model": ["opt-30b", "opt-175b"],
    "workload": ["flexgen", "flexgen-1024", "sharegpt", "alpaca", "helm-scoring"],
    "max_latency": ["none", "14400 s", "3600 s", "1200 s", "300 s"],
}
_MIB = 2**20


def resident() -> int:
    """Sum the memory of this process and all that it started, pages that they share counted once each. [B]"""
    children = {os.getpid()}
    sizes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except (OSError, ValueError):
            continue
        sizes[int(folder.name)] = (parent, next(int(x.split()[1]) for x in lines if x.startswith("Pss:")))
    for _ in sizes:
        children |= {number for number, (parent, _) in sizes.items() if parent in children}
    return 1024 * sum(sizes[number][1] for number in children if number in sizes)


class Watch(threading.Thread):
    """Looks at the memory of all processes again and again, and keeps the most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.most = 0

    def run(self) -> None:
        """Look once a second until told to stop."""
        while not self.over.wait(1.0):
            self.most = max(self.most, resident())


def main() -> None:
    """Plan the study in an empty folder, and print how long it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--cells", type=int, default=1000, help="so many cells, taken evenly from all")
    options = parser.parse_args()
    cells = expand(decode(Study, {"name": "benchmark", "grids": [_GRID]}, "study"), Path())
    cells = cells[:: max(1, len(cells) // options.cells)]
    watch = Watch()
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        start = time.perf_counter()
        passing = run_cells(cells, store, Backend(jobs=options.jobs))
        seconds = time.perf_counter() - start
        statuses = Counter(reply.status for reply in store.answers(cells, passing))
    watch.over.set()
    watch.join()
    found = {
        "benchmark": "study",
        "cells": len(cells),
        "jobs": options.jobs,
        "seconds": round(seconds, 1),
        "cells_per_second": round(len(cells) / seconds, 2),
        "memory_mib": round(watch.most / _MIB),
        **statuses,
    }
    counted = ", ".join(f"{count} {name}" for name, count in statuses.items())
    rate, memory = len(cells) / seconds, watch.most / _MIB
    print(
        f"{len(cells)} cells in {seconds:.1f} s on {options.jobs} processes: {rate:.1f} cells/s, "
        f"{memory:.0f} MiB at most; {counted}"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
