"""The charts of a study, drawn up from its table as its definition says, or as its axes suggest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from planner.charts import Chart, Series
from planner.study import ChartChoice, Study
from planner.table import Column, Entry, Row, Table
from simulator.errors import InputError
from simulator.units import one_line

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
        if column.key not in _asked_keys() and "." in column.key:
            yield ChartChoice(title=f"Throughput over {column.key}", x=column.key)
    machines = {row["machine"] for row in table.rows}
    if len(machines) > 1 and any(row.get("usd_per_million_tokens") for row in table.rows):
        yield ChartChoice(title="Cost by machine", kind="bars", x="machine", y="usd_per_million_tokens")


def _asked_keys() -> set[str]:
    return set(_TELLING)


def chart_of(choice: ChartChoice, table: Table) -> Chart:
    """Draw up one chart.

    Raises:
        InputError: it names a column that is not there, or values that cannot be drawn so.
    """
    x, y = table.column(choice.x), table.column(choice.y)
    rows = _selected(choice, table)
    told = _series_keys(choice, table, rows)
    try:
        if choice.kind == "heatmap":
            return _heatmap(choice, rows, x, y, table.column(choice.z))
        return Chart(
            key=slug(choice.title),
            title=choice.title,
            kind=choice.kind,
            x_label=x.heading,
            y_label=y.heading,
            x_log=choice.x_log,
            y_log=choice.y_log,
            series=tuple(_series(*group, x, y, choice.kind) for group in _grouped(rows, told, table)),
            note=choice.note,
        )
    except ValueError as error:
        raise InputError(one_line(f"charts: {choice.title}: {error}")) from None


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
    return ", ".join(_said(*pair) for pair in zip(values, columns, strict=True)) or "all"


_PLAIN = ("machine", "variant", "model", "workload", "runtime")


def _said(value: Entry, column: Column) -> str:
    if column.key == "max_latency_s":
        return "no limit" if value is None else f"at most {value:g} s"
    if column.key == "quantize":
        return {"none": "16 bits", "both": "4 bits"}.get(str(value), f"4 bits for {value}")
    said = f"{value:g}" if isinstance(value, float) else str(value)
    return said if column.key in _PLAIN else f"{column.title} {said} {column.unit}".rstrip()


def _series(name: str, rows: Sequence[Row], x: Column, y: Column, kind: str) -> Series:
    """Take the points of a series in the order of x; bars and points keep the table's."""
    points = [row for row in rows if row.get(x.key) is not None]
    if kind != "bars":
        points = [row for row in points if row.get(y.key) is not None]
    if kind == "line":
        points.sort(key=lambda row: (isinstance(row[x.key], str), row[x.key]))
    low, high = (f"{y.key}_{end}" for end in ("low", "high"))
    ranged = any(row.get(low) is not None for row in points)
    return Series(
        name=name,
        x=tuple(_place(row[x.key], kind) for row in points),
        y=tuple(_number(row.get(y.key)) for row in points),
        cells=tuple(_cell(row) for row in points),
        low=tuple(_number(row.get(low)) for row in points) if ranged else (),
        high=tuple(_number(row.get(high)) for row in points) if ranged else (),
    )


def _heatmap(choice: ChartChoice, rows: Sequence[Row], x: Column, y: Column, z: Column) -> Chart:
    """Lay the values of z out over two columns; where there are several, the best counts."""
    rows = [row for row in rows if row.get(x.key) is not None and row.get(y.key) is not None]
    across = list(dict.fromkeys(_place(row[x.key], "heatmap") for row in rows))
    down = list(dict.fromkeys(_place(row[y.key], "heatmap") for row in rows))
    found: dict[tuple[object, object], Row] = {}
    for row in rows:
        place = (_place(row[x.key], "heatmap"), _place(row[y.key], "heatmap"))
        if _better(row, found.get(place), z.key):
            found[place] = row
    series = []
    for name in down:
        line = [found.get((each, name), {}) for each in across]
        series.append(
            Series(
                name=f"{name:g}" if isinstance(name, float) else str(name),
                x=tuple(across),
                y=tuple(_number(row.get(z.key)) for row in line),
                cells=tuple(_cell(row) for row in line),
            )
        )
    return Chart(
        key=slug(choice.title),
        title=choice.title,
        kind="heatmap",
        x_label=x.heading,
        y_label=y.heading,
        z_label=z.heading,
        series=tuple(series),
        note=choice.note,
    )


def _better(row: Row, other: Row | None, key: str) -> bool:
    value, known = _number(row.get(key)), _number(other.get(key)) if other else None
    return other is None or known is None or (value is not None and value > known)


def _place(value: Entry, kind: str) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool) and kind != "bars":
        return float(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Entry) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _cell(row: Row) -> int | None:
    number = row.get("cell")
    return int(number) if isinstance(number, int | float) else None
