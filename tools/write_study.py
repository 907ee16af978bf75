"""Write the pages about studies: the example study with its pictures, and the table of presets.

    python -m tools.write_study [--plan]

With ``--plan`` the example study is planned anew (a few minutes). Else only the pages are written again, from
the study's own table, which is part of the repository.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from planner.study_files import read_findings
from planner.table import Row
from simulator.mix import find_mix, preset_names

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "study.md"
EXAMPLE = ROOT / "docs" / "studies" / "three-questions.md"
FOLDER = EXAMPLE.with_suffix("")
_KEPT = ("study.yaml", "cells.csv", "findings.json")
_BITS = {"none": "16 bits", "weights": "4-bit weights", "both": "4-bit weights and cache"}


def filled(text: str, mark: str, body: str) -> str:
    """Put a body between a mark and the end that follows it."""
    pattern = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{body.rstrip()}\n{match[2]}", text)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; the first column is text."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


class Rows:
    """The planned rows of the example study, found by what was asked."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def value(self, column: str = "tok_s", **asked: object) -> float | None:
        """Give an entry of the one row that was asked so; None if it has no plan."""
        found = [row for row in self.rows if all(row.get(key) == value for key, value in asked.items())]
        assert len(found) == 1, (asked, len(found))
        value = found[0].get(column)
        return float(value) if isinstance(value, int | float) else None

    def values(self, column: str) -> list[object]:
        """List what a column has, in the order of the table."""
        return list(dict.fromkeys(row.get(column) for row in self.rows))

    def where(self, **asked: object) -> Rows:
        """Take some of the rows."""
        return Rows(row for row in self.rows if all(row.get(key) == value for key, value in asked.items()))


def said(value: float | None) -> str:
    """Write a number with three digits, or that there is none."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def four_bits_or_dram(rows: Rows) -> dict[str, str]:
    """Write the tables and the answer of the first question."""
    rows = rows.where(machine="a100-80", model="opt-175b")
    sizes, bits = rows.values("tiers.cpu.capacity"), list(_BITS)
    parts = {}
    for workload in ("flexgen", "128/512"):
        lines = [
            [f"{size:g} GiB", *(said(_asked(rows, size, workload, each)) for each in bits)] for size in sizes
        ]
        parts[f"q1 {workload}"] = markdown(["DRAM", *(f"{_BITS[each]}, tok/s" for each in bits)], lines)
    answers = []
    for workload, words in (("flexgen", "512 tokens in and 32 out"), ("128/512", "128 in and 512 out")):
        base, more = (_asked(rows, size, workload, "none") for size in (238.0, 476.0))
        fewer = _asked(rows, 238.0, workload, "both")
        assert base is not None
        assert more is not None
        assert fewer is not None
        answers.append(
            f"- {words}: with twice the 238 GiB of DRAM {more / base:.1f} times the throughput, with 4 bits "
            f"for weights and cache {fewer / base:.1f} times"
        )
    parts["a1"] = "\n".join(answers)
    return parts


def _asked(rows: Rows, size: object, workload: str, bits: str) -> float | None:
    return rows.value(**{"tiers.cpu.capacity": size, "workload": workload, "quantize": bits})


def second_drives(rows: Rows) -> dict[str, str]:
    """Write the table and the answer of the second question."""
    rows = Rows(row for row in rows.rows if row["variant"] is not None)
    one, two = "one set of drives", "two sets of drives"
    lines, pays = [], []
    for model in rows.values("model"):
        for workload in rows.values("workload"):
            for bits in ("none", "both"):
                some = rows.where(model=model, workload=workload, quantize=bits)
                speeds = [some.value(variant=name) for name in (one, two)]
                costs = [some.value("usd_per_million_tokens", variant=name) for name in (one, two)]
                if not all((*speeds, *costs)):
                    continue
                saved = 100 * (1 - costs[1] / costs[0])
                case = f"{model}, {_lengths(workload)}, {_BITS[bits].replace(' and cache', '/cache')}"
                pays += [case] * (saved > 0.5)
                gain = f"{100 * (speeds[1] / speeds[0] - 1):+.1f} %"
                lines.append([case, *map(said, speeds), gain, *map(said, costs), f"{-saved:+.1f} %"])
    heads = ["", "one set, tok/s", "two sets, tok/s", "gain", "one set, USD/Mtok", "two sets", "cost"]
    listed = "\n".join(f"- {case}" for case in pays)
    answer = f"It pays in {len(pays)} of these {len(lines)} cases:\n\n{listed}"
    return {"q2": markdown(heads, lines), "a2": answer}


def _lengths(workload: object) -> str:
    return "512/32" if workload == "flexgen" else str(workload)


def cheapest(rows: Rows) -> dict[str, str]:
    """Write the tables and the answer of the third question."""
    rows = rows.where(model="llama-3-70b")
    limits = rows.values("max_latency_s")
    parts, answers = {}, []
    for bits in ("none", "both"):
        lines = []
        for machine in rows.values("machine"):
            costs = [
                rows.value("usd_per_million_tokens", machine=machine, max_latency_s=limit, quantize=bits)
                for limit in limits
            ]
            lines.append((costs[0] or float("inf"), [str(machine), *map(said, costs)]))
        heads = ["machine", *("no limit" if limit is None else f"at most {limit:g} s" for limit in limits)]
        parts[f"q3 {bits}"] = markdown(heads, [line for _, line in sorted(lines)])
        for limit in limits:
            ranked = sorted(
                (float(row["usd_per_million_tokens"]), str(row["machine"]))  # type: ignore[arg-type]
                for row in rows.where(max_latency_s=limit, quantize=bits).rows
                if row.get("usd_per_million_tokens") is not None
            )
            words = "no limit" if limit is None else f"{limit:g} s"
            first, second = ([f"`{name}`, {said(cost)} USD" for cost, name in ranked] + ["-", "-"])[:2]
            answers.append([f"{_BITS[bits]}, {words}", first, second, str(len(ranked))])
    heads = ["", "cheapest", "runner-up", "machines that can"]
    parts["a3"] = markdown(heads, answers)
    return parts


def example(text: str) -> str:
    """Fill the page of the example study from its table."""
    _, rows = read_findings(FOLDER)
    questions: tuple[Callable[[Rows], dict[str, str]], ...] = (four_bits_or_dram, second_drives, cheapest)
    for question in questions:
        for mark, body in question(Rows(rows)).items():
            text = filled(text, mark, body)
    return text


def workloads() -> str:
    """Write the table of presets, each with its source."""
    lines = []
    for name in preset_names():
        mix = find_mix(name)
        assert mix.source is not None
        shapes = "; ".join(
            f"{part.workload.prompt_len}/{part.workload.gen_len}"
            + (f", {part.workload.shared_prefix} shared" if part.workload.shared_prefix else "")
            + (f", {part.workload.num_prompts} at a time" if part.workload.num_prompts else "")
            for part in mix.parts
        )
        source = f"[{mix.source.title}]({mix.source.url})"
        lines.append([f"`{name}`", mix.description, shapes, source])
    head = "| name | work | tokens in/out | source |\n|---|---|---|---|\n"
    return head + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plan() -> None:
    """Plan the example study, and keep its definition, its table and its pictures."""
    with tempfile.TemporaryDirectory() as place:
        cli = [sys.executable, "-m", "planner.cli"]
        subprocess.run([*cli, "study", str(EXAMPLE.with_suffix(".yaml")), "--out", place], check=True)
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir()
        subprocess.run([*cli, "report", place, "--pictures", str(FOLDER), "--kind", "png"], check=True)
        for name in _KEPT:
            shutil.copy(Path(place) / name, FOLDER / name)


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="plan the study anew")
    if parser.parse_args().plan:
        plan()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "workloads", workloads()), encoding="utf-8")
    EXAMPLE.write_text(example(EXAMPLE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
