"""Diagonal against zig-zag for OPT-175B on an A100 with 512 GiB of DRAM.

``python tools/study_diagonal.py`` makes the tables of docs/study-diagonal.md again, in their places; numbers
in the text stay as they are. All come from ``planner plan``, run as a command, but for those of the program
with the block left open and those of single passes, which it does not print.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.plan import Plan
from planner.problem import Outer, Problem
from planner.program import Program
from simulator.hardware import LANES
from simulator.layout import lay_out
from simulator.model_config import load_model
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.schema import decode
from simulator.simulate import busy_seconds, pass_edges, simulate
from simulator.workload import Workload

PAGE = Path(__file__).resolve().parent.parent / "docs" / "study-diagonal.md"
MACHINE, MODEL = "a100-80", "opt-175b"
WORKLOADS = ((128, 512), (32, 1024))
DRAM = ("tiers.cpu.capacity=512 GiB",)
NO_DISK = (*DRAM, "tiers.disk.capacity=0 GB")
AMPLE = "capacities.dram.bandwidth=400 GB/s"
FAST_CPU = "engines.cpu.peak.memory_bandwidth=400 GB/s"
CPU_ATTENTION = "engines.cpu.attention.decode.bandwidth"
#: The factors that a model of perfect overlap on two memory levels predicts.
PREDICTED = {(128, 512): 1.64, (32, 1024): 2.00}
COHORTS = (1, 2, 4, 8, 16, 32, 64)
#: Enough memory for zig-zag to hold the block that the diagonal holds in 512 GiB. The last workload is for
#: contrast: long prompts, few tokens.
ENOUGH = {(128, 512): "660 GiB", (32, 1024): "800 GiB", (512, 32): "600 GiB"}
#: Zig-zag blocks (groups x group) to try beside the one that the planner finds.
BY_HAND = {
    (128, 512): ((29, 3), (43, 2), (21, 4), (14, 6), (2, 43)),
    (32, 1024): ((13, 4), (26, 2), (17, 3), (2, 26)),
}


@dataclass(frozen=True)
class Case:
    """One question to the command."""

    name: str
    overrides: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    def options(self, workload: tuple[int, int], schedule: str) -> list[str]:
        """Write the options of ``planner plan``."""
        options = ["--hw", MACHINE, "--model", MODEL, "--schedule", schedule, "--format", "json"]
        options += ["--prompt-len", str(workload[0]), "--gen-len", str(workload[1])]
        options += [text for override in self.overrides for text in ("--set", override)]
        return options + [text for pin in self.fixed for text in ("--fix", pin)]


HEADLINE = (Case("512 GiB DRAM, with the disk", DRAM), Case("512 GiB DRAM, no disk", NO_DISK))
CHANGES = (
    Case("as it is (no disk)", NO_DISK),
    Case("DRAM bandwidth 400 GB/s", (*NO_DISK, AMPLE)),
    *(
        Case(
            f"DRAM 400 GB/s, CPU attention at {rate} GB/s",
            (*NO_DISK, AMPLE, FAST_CPU, f"{CPU_ATTENTION}={rate} GB/s"),
        )
        for rate in (10, 20, 150)
    ),
    Case("all attention on the CPU", NO_DISK, ("cpu_attention=1",)),
    Case("no attention on the CPU", NO_DISK, ("cpu_attention=0",)),
    Case("PCIe at half rate (12.5 GB/s)", (*NO_DISK, "links.h2d.pinned.bandwidth=12.5 GB/s")),
    Case("PCIe at 31 GB/s", (*NO_DISK, "links.h2d.pinned.bandwidth=31 GB/s")),
)


def run(case: Case, workload: tuple[int, int], schedule: str) -> dict[str, Any] | None:
    """Ask the command for a plan; None if nothing fits."""
    command = [sys.executable, "-m", "planner.cli", "plan", *case.options(workload, schedule)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout) if done.returncode == 0 else None


def run_both(cases: Sequence[Case], workload: tuple[int, int]) -> Iterator[tuple[Case, Any, Any]]:
    """Run zig-zag and diagonal for every case."""
    with ThreadPoolExecutor(2) as pool:
        zigzag = [pool.submit(run, case, workload, "zigzag") for case in cases]
        diagonal = [pool.submit(run, case, workload, "diagonal") for case in cases]
        for case, first, second in zip(cases, zigzag, diagonal, strict=True):
            yield case, first.result(), second.result()


def speed(plan: dict[str, Any] | None, program: bool = False) -> float:
    """Give the simulated throughput, or the program's answer; not a number if nothing fits. [tok/s]"""
    if plan is None:
        return math.nan
    return float(plan["bounds"]["lp_tok_s"] if program else plan["predictions"]["throughput_tok_s"])


def block(plan: dict[str, Any] | None) -> str:
    """Write the groups of a plan."""
    if plan is None:
        return "does not fit"
    policy = plan["policy"]
    groups, size = policy["num_groups"], policy["gpu_batch"]
    every = f", every {policy['stagger']} passes" if plan["schedule"] == "diagonal" else ""
    return f"{groups * size} ({groups} x {size}{every})"


def open_block(workload: tuple[int, int], cohorts: int, overrides: tuple[str, ...]) -> tuple[float, float]:
    """Solve the program with block and groups left open: (tok/s, sequences in flight)."""
    problem = Problem(
        hardware=load_profile(MACHINE, overrides),
        model=load_model(MODEL),
        workload=Workload(prompt_len=workload[0], gen_len=workload[1]),
        runtime=load_runtime("reference"),
    )
    stagger = None if cohorts == 1 else math.ceil(workload[1] / cohorts)
    solution = Program(problem, Outer(16, stagger=stagger, smallest_batch=1)).solve()
    return (solution.throughput, solution.block) if solution else (math.nan, math.nan)


def shown(cell: object) -> str:
    """Write a cell of a table: numbers with four digits, a dash where there is none."""
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.4g}"
    return "-" if cell == "nan" else str(cell)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *([shown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fractional(workload: tuple[int, int]) -> str:
    """The program with the block open, by the number of cohorts."""
    rows = []
    for overrides, words in (((*NO_DISK, AMPLE), "400 GB/s"), (NO_DISK, "43 GB/s")):
        first = open_block(workload, 1, overrides)[0]
        for cohorts in COHORTS:
            rate, sequences = open_block(workload, cohorts, overrides)
            rows.append((words, cohorts, f"{sequences:.1f}", rate, f"{rate / first:.3f}"))
    return table(("DRAM bandwidth", "cohorts", "sequences in flight", "tok/s", "to one cohort"), rows)


def headline() -> str:
    """Both schedules, planned and simulated."""
    rows = []
    for workload in WORKLOADS:
        for case, zigzag, diagonal in run_both(HEADLINE, workload):
            for name, plan in (("zig-zag", zigzag), ("diagonal", diagonal)):
                is_first = name == "zig-zag"
                rows.append(
                    (
                        f"{workload[0]}, {workload[1]}" if is_first else "",
                        case.name.partition(", ")[2] if is_first else "",
                        name,
                        block(plan),
                        speed(plan),
                        speed(plan, program=True),
                        float(plan["bounds"]["ceiling_tok_s"]) if plan else math.nan,
                        "" if is_first else f"{speed(plan) / speed(zigzag):.3f}",
                        "" if is_first else f"{speed(plan, True) / speed(zigzag, True):.3f}",
                        "" if is_first else f"{PREDICTED[workload]:.2f}",
                    )
                )
    heads = ("in, out", "machine", "schedule", "block", "simulated", "program", "ceiling")
    return table((*heads, "ratio simulated", "ratio program", "predicted"), rows)


def changes(workload: tuple[int, int]) -> str:
    """One thing at a time."""
    rows = [
        (
            case.name,
            block(zigzag),
            block(diagonal),
            speed(zigzag),
            speed(diagonal),
            f"{speed(diagonal) / speed(zigzag):.3f}",
            f"{speed(diagonal, True) / speed(zigzag, True):.3f}",
        )
        for case, zigzag, diagonal in run_both(CHANGES, workload)
    ]
    heads = ("change", "block, zig-zag", "block, diagonal", "zig-zag", "diagonal")
    return table((*heads, "ratio simulated", "ratio program"), rows)


def fed_zigzag(overrides: tuple[str, ...], policy: Any, workload: tuple[int, int]) -> dict[str, Any] | None:
    """Run zig-zag with a diagonal's block and groups, or with half groups where those do not fit the GPU."""
    groups, size = policy["num_groups"], policy["gpu_batch"]
    for parts in (1, 2):
        fixed = (f"gpu_batch={size // parts}", f"num_groups={groups * parts}")
        plan = run(Case("", overrides, fixed), workload, "zigzag")
        if plan is not None:
            return plan
    return None


def enough_memory() -> str:
    """Zig-zag with the diagonal's block, in a machine with the memory for it."""
    rows = []
    for workload, memory in ENOUGH.items():
        for words, extra in (("43 GB/s", ()), ("400 GB/s", (AMPLE,))):
            diagonal = run(Case("", (*NO_DISK, *extra)), workload, "diagonal")
            zigzag = run(Case("", (*NO_DISK, *extra)), workload, "zigzag")
            if diagonal is None or zigzag is None:
                continue
            larger = (*NO_DISK, f"tiers.cpu.capacity={memory}", *extra)
            fed = fed_zigzag(larger, diagonal["policy"], workload)
            rows.append(
                (
                    f"{workload[0]}, {workload[1]}",
                    words,
                    speed(zigzag),
                    speed(fed),
                    speed(diagonal),
                    f"{speed(fed) / speed(zigzag):.3f}",
                    f"{speed(diagonal) / speed(fed):.3f}",
                )
            )
    heads = ("in, out", "DRAM bandwidth", "zig-zag", "zig-zag, diagonal's block", "diagonal")
    return table((*heads, "memory effect", "all else"), rows)


def by_hand() -> str:
    """Zig-zag blocks pinned by hand."""
    rows = []
    for workload, blocks in BY_HAND.items():
        for groups, size in blocks:
            fixed = (f"gpu_batch={size}", f"num_groups={groups}")
            plans = [
                run(Case("", overrides, fixed), workload, "zigzag")
                for overrides in (NO_DISK, (*NO_DISK, AMPLE))
            ]
            speeds = [speed(plan, program) for plan in plans for program in (False, True)]
            rows.append((f"{workload[0]}, {workload[1]}", block(plans[0]), *speeds))
    heads = ("in, out", "block", "simulated", "program", "simulated, 400 GB/s", "program, 400 GB/s")
    return table(heads, rows)


def steps() -> str:
    """From the prediction to the simulation, a step at a time; zig-zag with the first block by hand."""
    rows: list[tuple[object, ...]] = []

    def add(words: str, first: float, second: float) -> None:
        rows.append((words, first, second, f"{second / first:.3f}"))

    for workload, blocks in BY_HAND.items():
        rows.append((f"{workload[0]} in, {workload[1]} out: predicted", "", "", f"{PREDICTED[workload]:.2f}"))
        rates = [open_block(workload, cohorts, (*NO_DISK, AMPLE))[0] for cohorts in COHORTS]
        add("program, block open, DRAM 400 GB/s", rates[0], max(rates))
        fixed = (f"gpu_batch={blocks[0][1]}", f"num_groups={blocks[0][0]}")
        for words, overrides in (("DRAM 400 GB/s", (*NO_DISK, AMPLE)), ("DRAM 43 GB/s", NO_DISK)):
            zigzag = run(Case("", overrides, fixed), workload, "zigzag")
            diagonal = run(Case("", overrides), workload, "diagonal")
            add(f"program, whole blocks, {words}", speed(zigzag, program=True), speed(diagonal, program=True))
            add(f"simulated, {words}", speed(zigzag), speed(diagonal))
    return table(("step", "zig-zag", "diagonal", "factor"), rows)


def pass_times() -> str:
    """Seconds of passes that generate, early and late, and how busy the lanes are in them."""
    rows = []
    for case, schedule in ((HEADLINE[0], "zigzag"), (HEADLINE[1], "zigzag"), (HEADLINE[1], "diagonal")):
        data = run(case, WORKLOADS[0], schedule)
        if data is None:
            continue
        plan = decode(Plan, data, "plan")
        placed = lay_out(plan.model, plan.runtime, plan.workload, plan.policy)
        _, played = simulate(placed, plan.hardware.profile, max_passes=60)
        edges = pass_edges(played)
        seconds, busy = np.diff(edges), busy_seconds(played, edges)
        counted = [i for i, one in enumerate(played.schedule.window.passes) if one.weight]
        for words, index in (("early", counted[1]), ("late", counted[-1])):
            shares = (
                100 * busy[LANES.index(lane), index] / seconds[index] for lane in ("h2d", "cpu", "disk_read")
            )
            lanes = [f"{share:.0f} %" for share in shares]
            rows.append((f"{schedule}, {case.name.partition(', ')[2]}", words, float(seconds[index]), *lanes))
    return table(("schedule", "pass", "seconds", "h2d busy", "CPU busy", "disk reads busy"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "open 128": lambda: fractional(WORKLOADS[0]),
    "open 32": lambda: fractional(WORKLOADS[1]),
    "memory": enough_memory,
    "changes 128": lambda: changes(WORKLOADS[0]),
    "changes 32": lambda: changes(WORKLOADS[1]),
    "hand": by_hand,
    "passes": pass_times,
    "steps": steps,
}


def main() -> None:
    """Put every table where the page marks its place."""
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        before, marks, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{marks}\n{make()}\n\n{end}{after}"
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
