"""What ``planner verify`` shows: a row for each run, where errors come from, and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.verify import OperationTime, Outcome, Verdict, summed
from simulator.errors import InputError
from simulator.units import GIB, one_line

_SHOWN = 10  # operations that explain most of the errors
_PREDICTED, _MEASURED = "#1b6ca8", "#d95f02"
_SETTINGS: Any = {  # names of settings are checked when used
    "svg.hashsalt": "offload-planner",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def report(outcomes: Sequence[Outcome], verdict: Verdict) -> Group:
    """Write the outcome for people."""
    parts: list[RenderableType] = [runs_table(outcomes), Text(), *_verdict(verdict), Text()]
    parts.append(_operations(summed(outcomes)))
    return Group(*parts)


def runs_table(outcomes: Sequence[Outcome]) -> Table:
    """List all runs."""
    table = _table(
        "what is loaded", "schedule", "groups", "in/out", "predicted", "range", "measured", "error"
    )
    table.add_column("memory, GiB", justify="right")
    for one in outcomes:
        low_high = f"{one.low:.3g} to {one.high:.3g}" if one.low and one.high else "-"
        outside = one.inside is False
        table.add_row(
            one.kind,
            one.schedule,
            f"{one.groups} x {one.batch}",
            f"{one.prompt_len}/{one.gen_len}",
            f"{one.predicted:.4g}",
            Text(low_high, style="yellow" if outside else ""),
            f"{one.measured:.4g}",
            f"{one.error:+.1%}",
            _memory(one),
        )
    return table


def _memory(one: Outcome) -> str:
    """Write planned bytes of GPU and CPU memory, and what the process took, else what was allocated."""
    allocated = sum(one.memory[tier][1] for tier in ("gpu", "cpu"))
    taken = allocated if one.resident is None else one.resident
    return f"{one.planned / GIB:.2f} planned, {taken / GIB:.2f}"


def _verdict(found: Verdict) -> list[Text]:
    inside = "no ranges" if found.inside is None else f"{found.inside:.0%} of the runs"
    over = "never above the plan" if found.memory_over <= 0 else f"{found.memory_over:.1%} above the plan"
    if found.resident_off is not None:
        over += "; processes took {:+.1%} of it in the median, at most {:+.1%}".format(*found.resident_off)
    best = "is the fastest" if found.best_loss <= 0 else f"is {found.best_loss:.1%} slower than the fastest"
    rows = (
        ("error", f"median {found.median:.1%}, nine in ten within {found.ninth:.1%}"),
        ("in the range", inside),
        ("memory", f"allocations {over}"),
        ("best", f"the policy predicted to be the fastest of {found.runs} {best}"),
    )
    return [Text.assemble((f"{name:<14}", "bold"), words) for name, words in rows]


def _operations(rows: Sequence[OperationTime]) -> Table:
    table = _table("lane", "operation", "predicted, s", "measured, s", "more, s", "ratio")
    for row in rows[:_SHOWN]:
        ratio = f"{row.measured / row.predicted:.2f} x" if row.predicted else "-"
        table.add_row(
            row.lane,
            row.operation,
            f"{row.predicted:.2f}",
            f"{row.measured:.2f}",
            f"{row.measured - row.predicted:+.2f}",
            ratio,
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        words = ("what is loaded", "schedule", "lane", "operation")
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    return table


def markdown(outcomes: Sequence[Outcome], verdict: Verdict) -> str:
    """Write the runs and the verdict as Markdown, for documents."""
    lines = [
        "| what is loaded | schedule | groups | in/out | predicted, tok/s | range | measured | error "
        "| memory, GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        low_high = f"{one.low:.3g} to {one.high:.3g}" if one.low and one.high else "-"
        lines.append(
            f"| {one.kind} | {one.schedule} | {one.groups} x {one.batch} | {one.prompt_len}/{one.gen_len} "
            f"| {one.predicted:.4g} | {low_high} | {one.measured:.4g} | {one.error:+.1%} "
            f"| {_memory(one)} |"
        )
    lines += ["", *(f"- {' '.join(line.plain.split())}" for line in _verdict(verdict)), ""]
    lines += ["| lane | operation | predicted, s | measured, s | ratio |", "|---|---|---|---|---|"]
    for row in summed(outcomes)[:_SHOWN]:
        ratio = f"{row.measured / row.predicted:.2f}" if row.predicted else "-"
        lines.append(f"| {row.lane} | {row.operation} | {row.predicted:.2f} | {row.measured:.2f} | {ratio} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draw predicted and measured throughput of each run, and the operations that explain the errors.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to load, and only pictures need it
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(11.0, 0.42 * len(outcomes) + 2.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_runs(left, outcomes)
        _draw_operations(right, summed(outcomes)[:_SHOWN])
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {}, dpi=140)
        except OSError as error:
            reason = (error.strerror or "unknown").lower()
            raise InputError(one_line(f"--picture {path}: cannot be written ({reason})")) from None


def _draw_runs(axes: Any, outcomes: Sequence[Outcome]) -> None:
    places = list(range(len(outcomes), 0, -1))
    for place, one in zip(places, outcomes, strict=True):
        if one.low and one.high:
            ends = (one.low / one.predicted, one.high / one.predicted)
            axes.plot(ends, (place, place), color=_PREDICTED, alpha=0.35, linewidth=7, solid_capstyle="butt")
    axes.plot([1.0] * len(places), places, "|", color=_PREDICTED, markersize=13, label="predicted, its range")
    ratios = [one.measured / one.predicted for one in outcomes]
    axes.plot(ratios, places, "o", color=_MEASURED, label="measured")
    labels = [f"{one.kind}, {one.groups} x {one.batch}, {one.prompt_len}/{one.gen_len}" for one in outcomes]
    axes.set_yticks(places, labels)
    axes.set_xlabel("throughput over the predicted one")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.grid(axis="x", alpha=0.3)


def _draw_operations(axes: Any, rows: Sequence[OperationTime]) -> None:
    places = [float(place) for place in range(len(rows), 0, -1)]
    for shift, color, label, values in (
        (0.2, _PREDICTED, "predicted", [row.predicted for row in rows]),
        (-0.2, _MEASURED, "measured", [row.measured for row in rows]),
    ):
        axes.barh([place + shift for place in places], values, height=0.38, color=color, label=label)
    axes.set_yticks(places, [row.operation for row in rows])
    axes.set_xlabel("seconds, all runs")
    axes.legend(loc="lower right", frameon=False)
