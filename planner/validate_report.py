"""The report of ``planner validate`` for people: rows, what has no prediction, summary, orders, breakdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.score import ComponentScore, OrderScore, Score, Summary

Cells = tuple[str, ...]

ROW_COLUMNS = ("id", "engine", "model", "groups, tokens", "fitted", "predicted", "measured", "error")
SUMMARY_COLUMNS = (
    "suite",
    "fitted",
    "rows",
    "no prediction",
    "median |error|",
    "mean",
    "worst",
    "within 10 %",
)
ORDER_COLUMNS = ("what the order means", "predicted", "measured", "as measured")
BREAKDOWN_COLUMNS = ("stage", "component", "predicted s", "measured s", "error")

_LEFT = ("id", "engine", "model", "groups, tokens", "suite", "stage", "component", "what the order means")


def percent(value: float | None, *, signed: bool = True) -> str:
    """Write a fraction as a percentage; a dash for none.

    >>> percent(0.0712), percent(-0.5), percent(0.25, signed=False), percent(None)
    ('+7.1 %', '-50.0 %', '25.0 %', '-')
    """
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """Write a number with four digits; a dash for none.

    >>> number(25.264), number(0.69), number(11315.0), number(None)
    ('25.26', '0.69', '11,315', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def yes_no(value: bool | None) -> str:
    """Write a truth; a dash for none."""
    return "-" if value is None else "yes" if value else "no"


def row_cells(each: Score) -> Cells:
    """Write a row of the table of rows."""
    return (
        each.id,
        each.system or "",
        each.model or "",
        each.shape or "",
        yes_no(each.fitted),
        number(each.predicted),
        number(each.measured),
        percent(each.error),
    )


def summary_cells(each: Summary) -> Cells:
    """Write a row of the summary."""
    worst = (each.worst_id or "").replace(f"{each.suite}:", "row ")  # the rows of kernel tables are numbered
    near = "-" if each.near is None else percent(each.near, signed=False).replace(".0 %", " %")
    return (
        each.suite,
        yes_no(each.fitted),
        str(each.rows),
        str(each.unpredicted),
        percent(each.median_abs_error, signed=False),
        percent(each.mean_error),
        f"{percent(each.worst_error)} {worst}".rstrip(),
        near,
    )


def order_cells(each: OrderScore) -> Cells:
    """Write a row of the table of orders: how many times as fast the faster one is."""
    predicted = "-" if each.predicted_ratio is None else f"{each.predicted_ratio:.2f}x"
    return each.meaning, predicted, f"{each.measured_ratio:.2f}x", yes_no(each.as_measured)


def breakdown_cells(each: ComponentScore) -> Cells:
    """Write a row of the breakdown."""
    error = None
    if each.predicted is not None and each.measured > 0:
        error = each.predicted / each.measured - 1
    name = each.component.replace("_", " ")
    return each.stage, name, number(each.predicted), number(each.measured), percent(error)


def reasons(scores: Iterable[Score | ComponentScore]) -> list[str]:
    """Say which rows have no prediction and why, one line for each reason."""
    found: dict[str, list[str]] = {}
    for each in scores:
        if each.reason is not None:
            name = each.id if isinstance(each, Score) else each.row
            names = found.setdefault(each.reason, [])
            if name not in names:
                names.append(name)
    return [f"no prediction for {', '.join(names)}: {reason}" for reason, names in found.items()]


def report(
    scores: Sequence[Score],
    summaries: Sequence[Summary],
    orders: Sequence[OrderScore],
    breakdown: Sequence[ComponentScore],
) -> Group:
    """Make the whole report."""
    parts: list[RenderableType] = []
    for suite, members in groupby(scores, key=lambda each: each.suite):
        rows = list(members)
        if rows[0].unit == "tok/s":  # kernel tables have too many rows to print
            parts += _section(f"{suite} (tok/s)", ROW_COLUMNS, map(row_cells, rows), reasons(rows))
    parts += _section("Summary", SUMMARY_COLUMNS, map(summary_cells, summaries), ())
    if orders:
        right = sum(each.as_measured is True for each in orders)
        title = f"Orders that matter: {right} of {len(orders)} as measured (how many times as fast)"
        parts += _section(title, ORDER_COLUMNS, map(order_cells, orders), ())
    if breakdown:
        title = f"Breakdown of {breakdown[0].row}, seconds that each component is busy"
        parts += _section(title, BREAKDOWN_COLUMNS, map(breakdown_cells, breakdown), reasons(breakdown))
    return Group(*parts)


def _section(title: str, columns: Cells, rows: Iterable[Cells], notes: Iterable[str]) -> list[RenderableType]:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    below: list[RenderableType] = [Padding(Text(note, style="yellow"), (0, 0, 0, 3)) for note in notes]
    return [Text(title, style="bold"), Padding(table, (0, 0, 0, 2), expand=False), *below, Text()]
