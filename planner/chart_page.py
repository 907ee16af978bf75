"""A study as one page: charts, table, plans and timelines in a single HTML file that needs no network.

Everything that varies goes in as JSON and reaches the page as text, never as HTML. Plotly's JavaScript is
part of the file. The plans stand apart from the rest, each in a place of its own that is read when its row
is chosen, so that a page of a thousand rows opens quickly.
"""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from typing import Any

from pydantic import Field, model_validator

from planner.chart_figure import figure
from planner.chart_style import operation_colors
from planner.charts import Chart, Series, number
from planner.table import Column, Entry, Row
from planner.timeline import Span, Timeline
from simulator.schema import Record

#: Key of a row that says why it has no plan; such rows are shown muted, with the reason.
REASON = "reason"

_SCRIPTS = ("text.js", "charts.js", "table.js", "detail.js", "page.js")
_SAID = 12  # columns of a row that are named where a point is pointed at


class PageData(Record):
    """What the page shows. Rows are numbered from 0; charts, plans and timelines name rows by number.

    Attributes:
        description: plain text; an empty line begins a new paragraph.
        rows: values by the key of their column; ``reason`` says why a row has no plan.
        plans: a plan's report as text, by row.
        timelines: a plan's timeline, by row.
        notes: sentences at the foot of the page.
    """

    title: str
    description: str = ""
    charts: tuple[Chart, ...] = ()
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    plans: dict[int, str] = Field(default_factory=dict)
    timelines: dict[int, Timeline] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> PageData:
        """Refuse names that are taken and rows that do not exist."""
        for what, keys in (("charts", self.charts), ("columns", self.columns)):
            names = [each.key for each in keys]
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} have the same key; name each differently")
        for chart in self.charts:
            for one in chart.series:
                self._check_rows(f"chart {chart.key}", [each for each in one.cells if each is not None])
        self._check_rows("plans", list(self.plans))
        self._check_rows("timelines", list(self.timelines))
        return self

    def _check_rows(self, what: str, numbers: list[int]) -> None:
        for each in numbers:
            if not 0 <= each < len(self.rows):
                raise ValueError(f"{what}: there is no row {each} among {len(self.rows)}")


def page(study: PageData) -> str:
    """Write the page."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - large, and only pages need it

    parts = {
        "title": html.escape(study.title),
        "style": _asset("page.css"),
        "plotly": _within_script(get_plotlyjs()),
        "data": safe_json(_data(study)),
        "details": "\n".join(_detail(study, row) for row in sorted({*study.plans, *study.timelines})),
        "script": _within_script("\n".join(_asset(name) for name in _SCRIPTS)),
    }
    # In one go: what is filled in may itself contain the marks of other parts.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def safe_json(data: Any) -> str:
    r"""Write JSON that can stand inside a script element: nothing in it ends the element or a line.

    >>> safe_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _within_script(source: str) -> str:
    """Keep a text of JavaScript from ending its script element; inside its strings nothing changes."""
    return re.sub(r"</(?=script)", r"<\\/", source, flags=re.IGNORECASE)


def _asset(name: str) -> str:
    return resources.files("planner").joinpath("page", name).read_text(encoding="utf-8")


def _data(study: PageData) -> dict[str, Any]:
    return {
        "title": study.title,
        "description": [part.strip() for part in re.split(r"\n\s*\n", study.description) if part.strip()],
        "notes": list(study.notes),
        "charts": [
            {
                "key": chart.key,
                "title": chart.title,
                "note": chart.note,
                "figure": figure(_said(study, chart)),
            }
            for chart in study.charts
        ],
        "columns": [{**column.model_dump(), "heading": column.heading} for column in study.columns],
        "rows": [[row.get(column.key) for column in study.columns] for row in study.rows],
        "reasons": {number: str(row[REASON]) for number, row in enumerate(study.rows) if row.get(REASON)},
        "colors": operation_colors(),
    }


def _said(study: PageData, chart: Chart) -> Chart:
    """Let every point of a row say what is in the row, unless the chart says something itself."""
    return chart.model_copy(update={"series": tuple(_labelled(study, chart, one) for one in chart.series)})


def _labelled(study: PageData, chart: Chart, one: Series) -> Series:
    if one.labels or not one.cells:
        return one
    labels = []
    for index, cell in enumerate(one.cells):
        words = chart.words(one, index)
        labels.append(words if cell is None else f"{words}\n\n{row_words(study, cell)}")
    return one.model_copy(update={"labels": tuple(labels)})


def row_words(study: PageData, row: int) -> str:
    """Say what is in a row of the table, a line for each column."""
    values = study.rows[row]
    lines = [f"row {row}"]
    for column in study.columns[:_SAID]:
        value = values.get(column.key)
        if value not in (None, ""):
            unit = f" {column.unit}" if column.unit else ""
            lines.append(f"{column.title}: {_value(value)}{unit}")
    if values.get(REASON):
        lines.append(str(values[REASON]))
    return "\n".join(lines)


def _value(value: Entry) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return number(value) if isinstance(value, float) else str(value)


def _detail(study: PageData, row: int) -> str:
    """Write a row's plan and timeline; the spans as columns, which is a third of the bytes."""
    detail: dict[str, Any] = {"plan": study.plans.get(row)}
    line = study.timelines.get(row)
    if line is not None:
        operations = sorted({span.operation for span in line.spans})
        detail["timeline"] = {
            "lanes": list(line.lanes),
            "operations": operations,
            "lane": [span.lane for span in line.spans],
            "operation": [operations.index(span.operation) for span in line.spans],
            "start": [float(f"{span.start:.7g}") for span in line.spans],
            "end": [float(f"{span.end:.7g}") for span in line.spans],
            "tasks": [span.tasks for span in line.spans],
            "busy": [round(_share(span), 3) for span in line.spans],
            "passes": [list(mark) for mark in line.passes],
        }
    return f'<script type="application/json" id="detail-{row}">{safe_json(detail)}</script>'


def _share(span: Span) -> float:
    """Give the share of a span that its lane works."""
    if span.busy is None or span.end <= span.start:
        return 1.0
    return min(1.0, span.busy / (span.end - span.start))
