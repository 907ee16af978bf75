"""The charts of a study, drawn up from its table as its definition says, or as its axes suggest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from planner.charts import Chart
from planner.study import ChartChoice, Study
from planner.table import Column, Entry, Row, Table
from simulator.schema import decode

#: Columns that tell cells apart; those that a study varies and a chart does not have on its axes make series.
_TELLING = ("machine", "variant", "model", "workload", "runtime", "quantize", "schedule", "max_latency_s")


def study_charts(study: Study, table: Table) -> tuple[Chart, ...]:
    """Make the charts of a study; without a definition, those that its axes suggest.

    Raises:
        InputError: a chart names a column that is not there, or values that cannot be drawn so.
    """
    choices = study.charts or tuple(suggested(table))
    return tuple(chart_of(choice, table) for choice in choices)


def named_columns(study: Study) -> set[str]:
    """List the columns that a study's charts name."""
    named = set()
    for choice in study.charts:
        named |= {choice.x, choice.y, *(choice.series or ()), *choice.where}
        named |= {choice.z} if choice.kind == "heatmap" else set()
    return named


def suggested(table: Table) -> Iterable[ChartChoice]:
    """Suggest throughput over latency, over every swept figure, and cost by machine."""
    yield ChartChoice(title="Throughput and latency", kind="points", x="latency_s", x_log=True, y_log=True)
    for column in table.columns:
        if "." in column.key:
            yield ChartChoice(title=f"Throughput over {column.key}", x=column.key)
    machines = {row["machine"] for row in table.rows}
    if len(machines) > 1 and any(row.get("usd_per_million_tokens") for row in table.rows):
        yield ChartChoice(title="Cost by machine", kind="bars", x="machine", y="usd_per_million_tokens")


def chart_of(choice: ChartChoice, table: Table) -> Chart:
    """Draw up one chart.

    Raises:
        InputError: it names a column that is not there, or values that cannot be drawn so.
    """
    x, y = table.column(choice.x), table.column(choice.y)
    rows = _selected(choice, table)
    if choice.kind == "heatmap":
        drawn = {"z_label": table.column(choice.z).heading, "series": _rows_of_map(choice, rows)}
    else:
        groups = _grouped(rows, _series_keys(choice, table, rows), table)
        drawn = {"series": [_series(*group, x, y, choice.kind) for group in groups]}
    labels = {"x_label": x.heading, "y_label": y.heading, "x_log": choice.x_log, "y_log": choice.y_log}
    named = {"key": slug(choice.title), "title": choice.title, "kind": choice.kind, "note": choice.note}
    return decode(Chart, named | labels | drawn, f"charts: {choice.title}")


def slug(title: str) -> str:
    """Name a file after a title.

    >>> slug("Does 4-bit pay, on an A100?")
    'does-4-bit-pay-on-an-a100'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "chart"


def _selected(choice: ChartChoice, table: Table) -> list[Row]:
    for key in choice.where:
        table.column(key)
    wanted = {key: value if isinstance(value, list) else [value] for key, value in choice.where.items()}
    return [row for row in table.rows if all(row.get(key) in values for key, values in wanted.items())]


def _series_keys(choice: ChartChoice, table: Table, rows: Sequence[Row]) -> tuple[str, ...]:
    """Choose the columns that tell series apart: as asked, or all that vary and are on no axis."""
    if choice.series is not None:
        return tuple(table.column(key).key for key in choice.series)
    swept = [column.key for column in table.columns if "." in column.key]
    axes = {choice.x, choice.y}
    varied = (key for key in (*_TELLING, *swept) if len({row.get(key) for row in rows}) > 1)
    return tuple(key for key in varied if key not in axes)


def _grouped(rows: Iterable[Row], keys: Sequence[str], table: Table) -> list[tuple[str, list[Row]]]:
    groups: dict[tuple[Entry, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    columns = [table.column(key) for key in keys]
    return [(_name(values, columns), some) for values, some in groups.items()]


def _name(values: Sequence[Entry], columns: Sequence[Column]) -> str:
    """Name a series by the values that it has in common."""
    return ", ".join(said(*pair) for pair in zip(values, columns, strict=True)) or "all"


_PLAIN = ("machine", "variant", "model", "workload", "runtime")


def said(value: Entry, column: Column) -> str:
    """Write what was asked in a column, so that it stands for itself.

    >>> said(None, Column(key="max_latency_s", title="latency limit", unit="s"))
    'no limit'
    """
    if column.key == "max_latency_s":
        return "no limit" if value is None else f"at most {value:g} s"
    if column.key == "quantize":
        return {"none": "16 bits", "both": "4 bits"}.get(str(value), f"4 bits for {value}")
    text = _name_of(value)
    return text if column.key in _PLAIN else f"{column.title} {text} {column.unit}".rstrip()


def _series(name: str, rows: Sequence[Row], x: Column, y: Column, kind: str) -> dict[str, Any]:
    """Take the points of a series in the order of x; bars keep the table's, and have gaps."""
    points = [row for row in rows if row.get(x.key) is not None]
    if kind != "bars":
        points = [row for row in points if row.get(y.key) is not None]
    if kind == "line":
        points.sort(key=lambda row: (isinstance(row[x.key], str), row[x.key]))
    low, high = (f"{y.key}_{end}" for end in ("low", "high"))
    series = {
        "name": name,
        "x": [_place(row[x.key], kind) for row in points],
        "y": [_number(row.get(y.key)) for row in points],
        "cells": [_cell(row) for row in points],
    }
    if any(row.get(low) is not None for row in points):
        series |= {
            end: [_number(row.get(key)) for row in points] for end, key in (("low", low), ("high", high))
        }
    return series


def _rows_of_map(choice: ChartChoice, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lay the values of z out over two columns; where a place has several, the largest counts."""
    rows = [row for row in rows if row.get(choice.x) is not None and row.get(choice.y) is not None]
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = (_name_of(row[choice.x]), _name_of(row[choice.y]))
        if _better(row, found.get(place), choice.z):
            found[place] = row
    across = dict.fromkeys(x for x, _ in found)
    series = []
    for name in dict.fromkeys(y for _, y in found):
        line = [found.get((each, name), {}) for each in across]
        values = {"y": [_number(row.get(choice.z)) for row in line], "cells": [_cell(row) for row in line]}
        series.append({"name": name, "x": list(across)} | values)
    return series


def _better(row: Row, other: Row | None, key: str) -> bool:
    value, known = _number(row.get(key)), _number(other.get(key)) if other else None
    return other is None or known is None or (value is not None and value > known)


def _place(value: Entry, kind: str) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool) and kind != "bars":
        return float(value)
    return _name_of(value)


def _name_of(value: Entry) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Entry) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _cell(row: Row) -> int | None:
    number = row.get("cell")
    return int(number) if isinstance(number, int | float) else None
