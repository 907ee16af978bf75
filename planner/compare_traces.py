"""The command ``planner compare-traces``: a predicted trace beside a measured one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.compare_report import times
from planner.listings import FORMATS, console, echo_json
from planner.words import size
from simulator.errors import InputError
from simulator.hardware import TierName
from simulator.trace import Trace, read_trace, write_pair
from simulator.trace_figures import (
    Both,
    LaneFigures,
    OperationFigures,
    Unmatched,
    high_water,
    lane_figures,
    makespan,
    operation_figures,
    unmatched,
)
from simulator.trace_pair import TracePair, pair_traces
from simulator.units import GB, TFLOP

_SIDES = ("predicted", "measured")
_LEFT = ("lane", "operation", "tier")
_LEGEND = (
    "Matched tasks of one block, a mean over blocks; a ratio is measured over predicted. A task: the median. "
    "More: measured less predicted; part: how much that is of the difference in makespan (lanes overlap, so "
    "parts need not sum to 100 %). Busy: share of the trace's own time."
)


@dataclass(frozen=True)
class TraceComparison:
    """All that two traces say of each other.

    Attributes:
        metadata: of the predicted trace, and of the measured one.
        blocks: how many blocks each holds.
        tasks: how many are matched.
        unmatched: what only the prediction has, and what only the measurement has.
        makespan: first start to last end of matched tasks, of one block. [s]
        whole: the same of all tasks. [s]
        lanes: in the order of lanes.
        operations: those first whose totals differ most.
        memory: high water of each tier. [B]
    """

    metadata: tuple[dict[str, str], dict[str, str]]
    blocks: tuple[int, int]
    tasks: int
    unmatched: tuple[Unmatched, Unmatched]
    makespan: Both
    whole: Both
    lanes: tuple[LaneFigures, ...]
    operations: tuple[OperationFigures, ...]
    memory: dict[TierName, Both]

    def to_json(self) -> dict[str, Any]:
        """Give the outcome for programs: seconds, bytes, FLOPs and their rates, shares as fractions."""
        blocks = zip(_SIDES, self.metadata, self.blocks, self.unmatched, strict=True)
        return {
            "traces": {
                name: {"metadata": about, "blocks": count, "unmatched": _plain(alone)}
                for name, about, count, alone in blocks
            },
            "matched_tasks": self.tasks,
            "makespan": _plain(self.makespan),
            "whole_makespan": _plain(self.whole),
            "lanes": [_plain(row) for row in self.lanes],
            "operations": [_plain(row) for row in self.operations],
            "memory_high_water": {tier: _plain(both) for tier, both in self.memory.items()},
        }


def compare_pair(pair: TracePair) -> TraceComparison:
    """Work out all figures of two traces."""
    predicted, measured = pair.sides
    return TraceComparison(
        metadata=(predicted.trace.metadata, measured.trace.metadata),
        blocks=(len(predicted.blocks), len(measured.blocks)),
        tasks=len(pair.first),
        unmatched=unmatched(pair),
        makespan=makespan(pair),
        whole=makespan(pair, matched=False),
        lanes=tuple(lane_figures(pair)),
        operations=tuple(operation_figures(pair)),
        memory=high_water(pair),
    )


def _plain(figures: Both | LaneFigures | OperationFigures | Unmatched) -> dict[str, Any]:
    """Turn figures into plain data; two of a kind get their ratio."""
    values = {one.name: getattr(figures, one.name) for one in fields(figures)}
    data = {name: _plain(value) if isinstance(value, Both) else value for name, value in values.items()}
    return data | {"ratio": figures.ratio} if isinstance(figures, Both) else data


def report(found: TraceComparison) -> Group:
    """Write the outcome for people."""
    parts: list[RenderableType] = [*_heading(found), Text(), _operations(found.operations), Text()]
    parts += [_lanes(found.lanes), Text(), _memory(found.memory), Text(), *_order(found.lanes)]
    return Group(*parts, Text(), Text(_LEGEND, style="dim"))


def _heading(found: TraceComparison) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text.assemble((f"{name:<12}", "bold"), _about(name, metadata), _count(blocks))
        for name, metadata, blocks in zip(_SIDES, found.metadata, found.blocks, strict=True)
    ]
    span = found.makespan
    lines.append(
        Text.assemble(
            (f"{'makespan':<12}", "bold"),
            f"{_time(span.predicted)} predicted, {_time(span.measured)} measured: ",
            (times(span.ratio), "bold green"),
            f"; {found.tasks} tasks matched",
        )
    )
    for name, alone, whole in zip(
        _SIDES, found.unmatched, (found.whole.predicted, found.whole.measured), strict=True
    ):
        lines += [Text(f"{name}: {words}", style="yellow") for words in _missing(alone, whole)]
    return lines


def _about(name: str, metadata: dict[str, str]) -> str:
    """Say what was run; a trace that stands in the other one's place is told by its kind."""
    words = [metadata[key] for key in ("model", "hardware", "runtime", "schedule") if key in metadata]
    if metadata.get("kind", name) != name:
        words.append(f"a {metadata['kind']} trace")
    return ", ".join(words) or "no metadata"


def _count(blocks: int) -> str:
    return f", {blocks} blocks" if blocks > 1 else ""


def _missing(alone: Unmatched, whole: float | None) -> Iterable[str]:
    if alone.tasks:
        names = ", ".join(f"{count} {name}" for name, count in alone.operations.items())
        first, last = alone.passes[0], alone.passes[-1]
        passes = f"pass {first}" if first == last else f"passes {first} to {last}"
        tasks = "1 task" if alone.tasks == 1 else f"{alone.tasks} tasks"
        yield f"{tasks} unmatched, in {passes}: {names}; makespan with these {_time(whole)}"
    if alone.passes_between:
        yield (
            f"its makespan includes {alone.passes_between} passes that the other trace lacks; "
            "compare seconds of lanes, not makespans"
        )
    if alone.incomplete:
        yield f"{alone.incomplete} matched tasks are not in every block; means are over those that have them"


def _operations(rows: Iterable[OperationFigures]) -> Table:
    columns = ("lane", "operation", "tasks", *_two("total"), "ratio", *_two("a task"))
    table = _table(*columns, *_two("GB/s"), *_two("TFLOP/s"))
    for row in rows:
        table.add_row(
            row.lane,
            row.operation,
            str(row.tasks),
            *map(_time, _values(row.seconds)),
            times(row.seconds.ratio),
            *map(_time, _values(row.median)),
            *(_rate(value, GB) for value in _values(row.byte_rate)),
            *(_rate(value, TFLOP) for value in _values(row.flop_rate)),
        )
    return table


def _lanes(rows: Iterable[LaneFigures]) -> Table:
    table = _table("lane", "tasks", *_two("total"), "ratio", "more", "part", *_two("busy"), "order")
    for row in rows:
        table.add_row(
            row.lane,
            str(row.tasks),
            *map(_time, _values(row.seconds)),
            times(row.seconds.ratio),
            _time(row.seconds.difference),
            _percent(row.part),
            *map(_percent, _values(row.share)),
            "broken" if row.out_of_order else "kept",
        )
    return table


def _memory(rows: dict[TierName, Both]) -> Table:
    table = _table("tier", *_two("most in use"), "ratio")
    for tier, both in rows.items():
        table.add_row(tier, *(size(value or 0.0) for value in _values(both)), times(both.ratio))
    return table


def _order(rows: Iterable[LaneFigures]) -> list[RenderableType]:
    broken: list[RenderableType] = [
        Text(f"{row.lane}: {row.out_of_order}", style="red") for row in rows if row.out_of_order
    ]
    return broken or [Text("Every lane ran its tasks in the predicted order.")]


def _two(of: str) -> tuple[str, str]:
    return f"{of}\npred.", f"{of}\nmeas."


def _values(both: Both) -> tuple[float | None, float | None]:
    return both.predicted, both.measured


def _time(seconds: float | None) -> str:
    """Write a time in the unit that suits it; not in minutes, so that a column is narrow.

    >>> _time(0.0000123), _time(-0.5), _time(75.04), _time(8000.0), _time(0.0)
    ('12.3 us', '-500 ms', '75 s', '8,000 s', '0 s')
    """
    value = round(seconds or 0.0, 10) + 0.0  # times are in whole nanoseconds; less is rounding
    if abs(value) >= 999.5:
        return f"{value:,.0f} s"
    if abs(value) >= 0.9995 or not value:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if abs(value) >= 0.9995e-3 else f"{1e6 * value:.3g} us"


def _rate(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{round(100 * share, 1) + 0.0:.1f} %"  # -0.0 is 0


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    return table


@click.command("compare-traces")
@click.argument("predicted", type=click.Path(path_type=Path))
@click.argument("measured", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write both as one Chrome/Perfetto trace."
)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def compare_traces(predicted: Path, measured: Path, out: Path | None, output: str) -> None:
    """Lay a measured trace beside a predicted one, task by task.

    Operations come first whose total times differ most. Tasks that only one trace has are counted; a trace
    of several blocks is averaged.

    \b
    planner simulate plan.json --trace predicted.json
    planner compare-traces predicted.json measured.json --out both.json
    """  # noqa: D301 - click reads the escape
    traces = (read_trace(predicted), read_trace(measured))
    found = compare_pair(pair_traces(*traces, (str(predicted), str(measured))))
    if out is not None:
        _write(traces, out, (predicted, measured))
    if output == "json":
        echo_json(found.to_json() | {"written": str(out) if out else None})
        return
    console().print(report(found))
    if out is not None:
        click.echo(f"written: {out} (open it at https://ui.perfetto.dev)")


def _write(traces: tuple[Trace, Trace], out: Path, read: tuple[Path, Path]) -> None:
    if out.resolve() in (path.resolve() for path in read):
        raise InputError(f"--out {out}: one of the traces that are compared; name another file")
    try:
        write_pair(*traces, out)
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be written ({(error.strerror or 'unknown').lower()})"
        ) from None
