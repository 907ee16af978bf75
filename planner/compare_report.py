"""The report of ``planner compare`` for people: the table of engines, and published throughputs below."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.compare_published import Published
from planner.compare_rows import Best, Failed, Row, faster
from planner.words import duration, split

_LEFT = ("engine", "schedule", "policy as\npublished", "busiest")
_LANES = {"disk_read": "reads", "disk_write": "writes"}
_LEGEND = (
    "tok/s simulated; shares are % on GPU/CPU/disk (act.: activations), 4b is in 4 bits; block: groups "
    "x sequences; busiest lane: h2d and d2h are copies to and from the GPU, reads and writes the disk's"
)
_POLICIES = (
    "The policies of published runs are what others chose, not the planner's. Same run: that policy, "
    "simulated; best plan: the table above. Petals per GPU."
)


def times(value: float | None) -> str:
    """Write a ratio; a dash for none.

    >>> times(1.984), times(131.2), times(None)
    ('1.98 x', '131 x', '-')
    """
    return "-" if value is None else f"{value:.3g} x"


def report(
    rows: Sequence[Row], published: Sequence[Published], heading: tuple[str, str], reference: str
) -> Group:
    """Make the whole report; the heading is its bold and its plain part."""
    parts: list[RenderableType] = [Text.assemble((heading[0], "bold"), f"   {heading[1]}"), Text()]
    parts += _engines(rows, reference)
    if published:
        parts += [Text(), *_published(published, rows)]
    return Group(*parts)


def _engines(rows: Sequence[Row], reference: str) -> list[RenderableType]:
    best = [row for row in rows if isinstance(row, Best)]
    speeds = {row.engine: row.tok_s for row in best}
    width = max(len(row.engine) for row in rows)
    columns = ("engine", "tok/s", _hyphenated(reference) + " is", "schedule", "block", "weights", "KV cache")
    table = _table(*columns, "act.", "latency", "busiest")
    for row in best:
        table.add_row(
            row.engine.ljust(width),
            f"{row.tok_s:.3g}{' *' * (row.gpus > 1)}",
            times(faster(speeds, reference, row.engine)),
            row.schedule,
            f"{row.groups} x {row.group_size}",
            split(row.weights, row.weight_bits),
            split(row.cache, row.cache_bits),
            split(row.activations, 16),
            duration(row.latency_s),
            f"{_LANES.get(row.busiest, row.busiest)} {100 * row.busy:.0f}%",
        )
    parts: list[RenderableType] = [table]
    failed = [row for row in rows if isinstance(row, Failed)]
    if failed:  # a reason takes the width of a whole row
        parts.append(_notes([(row.engine, row.reason) for row in failed], width, style="yellow"))
    parts += [Text(), Text(_LEGEND, style="dim")]
    notes = [(row.engine + " *" * (row.gpus > 1), note) for row in best for note in row.notes]
    if notes:
        parts.append(_notes(notes, width + 2, style="dim"))
    return parts


def _published(published: Sequence[Published], rows: Sequence[Row]) -> list[RenderableType]:
    base = published[0].engine
    speeds: tuple[dict[str, float], ...] = (
        {run.engine: run.tok_s for run in published},
        {run.engine: run.simulated_tok_s for run in published if run.simulated_tok_s is not None},
        {row.engine: row.tok_s for row in rows if isinstance(row, Best)},
    )
    table = _table("engine", "policy as\npublished", *_measures("tok/s"), *_measures(f"{base} is"))
    for run in published:
        values = [each.get(run.engine) for each in speeds]
        ratios = [faster(each, base, run.engine) for each in speeds]
        table.add_row(run.engine, run.policy, *map(_speed, values), *map(times, ratios))
    return [
        Text("Published for this machine, model and lengths", style="bold"),
        table,
        Text(),
        Text(_POLICIES, style="dim"),
    ]


def _hyphenated(name: str) -> str:
    """Break a long name in the middle, so that its column is no wider than ratios need."""
    half = (len(name) + 1) // 2
    return f"{name[:half]}-\n{name[half:]}" if len(name) > 7 else f"{name}\n"


def _measures(of: str) -> tuple[str, ...]:
    return tuple(f"{of}\n{name}" for name in ("published", "same run", "best plan"))


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name == "engine")
    return table


def _notes(notes: Sequence[tuple[str, str]], width: int, style: str) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(min_width=width, no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in notes:
        table.add_row(Text(name, style=style), Text(words, style=style))
    return table
