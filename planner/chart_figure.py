"""A chart as plotly reads it: traces and layout as plain data, without colours that depend on the page.

Nothing here needs plotly; the page hands the data to plotly's JavaScript. Plotly reads some marks of HTML in
texts, so texts are escaped; the numbers of table rows travel as ``customdata``.
"""

from __future__ import annotations

import textwrap
from typing import Any

from planner.chart_style import CELLS_WITH_NUMBERS, COLOR_SCALE, color, dash, marker
from planner.charts import Chart, Series, log_ticks, number

Dict = dict[str, Any]

_HOVER_WIDTH, _LINES_OF_HOVER = 60, 20


def shown(text: str) -> str:
    """Write a text so that plotly shows it as it stands.

    >>> shown("<b>5</b> & more")
    '&lt;b&gt;5&lt;/b&gt; &amp; more'
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("\n", "<br>")


def figure(chart: Chart) -> Dict:
    """Write a chart as plotly's data and layout."""
    build = {"heatmap": _heatmap, "bars": _bars, "tornado": _tornado}.get(chart.kind, _scatter)
    data, layout = build(chart)
    return {"data": data, "layout": {"hovermode": "closest", "showlegend": len(data) > 1, **layout}}


def _scatter(chart: Chart) -> tuple[list[Dict], Dict]:
    mode = "lines+markers" if chart.kind == "line" else "markers"
    data = [
        {
            "type": "scatter",
            "mode": mode if one.joined else "markers",
            "x": [shown(each) for each in one.categories] if chart.has_names else list(one.x),
            "y": list(one.y),
            "marker": {"color": color(i), "symbol": marker(i)[1], "size": 8},
            "line": {"color": color(i), "dash": dash(i)[1], "width": 2},
            **_ranges(one, color(i), "error_y"),
            **_common(chart, one),
        }
        for i, one in enumerate(chart.series)
    ]
    return data, {"xaxis": _x_axis(chart), "yaxis": _y_axis(chart)}


def _bars(chart: Chart) -> tuple[list[Dict], Dict]:
    data = [
        {
            "type": "bar",
            "x": [shown(each) for each in one.categories],
            "y": list(one.y),
            "marker": {"color": color(i)},
            **_ranges(one, color(i), "error_y"),
            **_common(chart, one),
        }
        for i, one in enumerate(chart.series)
    ]
    return data, {"barmode": "group", "bargap": 0.3, "xaxis": _x_axis(chart), "yaxis": _y_axis(chart)}


def _tornado(chart: Chart) -> tuple[list[Dict], Dict]:
    base = chart.base or 0.0
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "base": base,
            "y": [shown(each) for each in one.categories],
            "x": [None if each is None else each - base for each in one.y],
            "marker": {"color": color(i)},
            **_common(chart, one),
        }
        for i, one in enumerate(chart.series)
    ]
    names = {**_category_axis(chart), "autorange": "reversed", "title": {"text": shown(chart.x_label)}}
    line = {"type": "line", "x0": base, "x1": base, "yref": "paper", "y0": 0, "y1": 1}
    return data, {
        "barmode": "overlay",
        "bargap": 0.35,
        "xaxis": _y_axis(chart),
        "yaxis": names,
        "shapes": [line],
    }


def _heatmap(chart: Chart) -> tuple[list[Dict], Dict]:
    rows, columns = chart.series, chart.categories()
    trace: Dict = {
        "type": "heatmap",
        "x": [shown(each) for each in columns],
        "y": [shown(one.name) for one in rows],
        "z": [list(one.y) for one in rows],
        "hovertext": [[_hover(chart, one, i) for i in range(len(one.x))] for one in rows],
        "customdata": [list(one.cells) or [None] * len(one.x) for one in rows],
        "hoverinfo": "text",
        "colorscale": COLOR_SCALE[1],
        "colorbar": {
            "title": {"text": shown(chart.z_label), "side": "right", "font": {"size": 14}},
            "separatethousands": True,
            "outlinewidth": 0,
            "thickness": 14,
        },
        "xgap": 2,
        "ygap": 2,
    }
    if len(rows) * len(columns) <= CELLS_WITH_NUMBERS:
        trace["text"] = [[number(value) for value in one.y] for one in rows]
        trace["texttemplate"] = "%{text}"
    names = {"type": "category", "title": {"text": shown(chart.y_label)}}
    return [trace], {"xaxis": _category_axis(chart), "yaxis": names}


def _common(chart: Chart, one: Series) -> Dict:
    grown = {"size": 14} if chart.kind in ("line", "points") else {}
    return {
        "name": shown(one.name),
        "customdata": list(one.cells) or [None] * len(one.x),
        "hovertext": [_hover(chart, one, i) for i in range(len(one.x))],
        "hoverinfo": "text",
        # Where the row that the reader chose is.
        "selected": {"marker": {"opacity": 1, **grown}},
        "unselected": {"marker": {"opacity": 0.5}},
    }


def _hover(chart: Chart, one: Series, index: int) -> str:
    said = chart.words(one, index).splitlines()
    lines = [part for line in said for part in textwrap.wrap(line, _HOVER_WIDTH) or [""]]
    return "<br>".join(map(shown, lines[:_LINES_OF_HOVER] + ["..."] * (len(lines) > _LINES_OF_HOVER)))


def _ranges(one: Series, its_color: str, name: str) -> Dict:
    if not one.low:
        return {}
    below, above = one.errors()
    error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {name: {**error, "color": its_color, "thickness": 1.4, "width": 4}}


def _x_axis(chart: Chart) -> Dict:
    if chart.has_names:
        return _category_axis(chart)
    numbers = sorted({each for one in chart.series for each in one.x if not isinstance(each, str)})
    return _number_axis(chart.x_label, chart.x_log, numbers)


def _y_axis(chart: Chart) -> Dict:
    return _number_axis(chart.y_label, chart.y_log, list(chart.values()))


def _category_axis(chart: Chart) -> Dict:
    names = [shown(each) for each in chart.categories()]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
        "title": {"text": shown(chart.x_label)},
    }


def _number_axis(label: str, log: bool, values: list[float]) -> Dict:
    axis: Dict = {"title": {"text": shown(label)}, "type": "log" if log else "linear"}
    if log and values:
        ticks = log_ticks(values, 1.25)
        axis |= {"tickmode": "array", "tickvals": ticks, "ticktext": [number(each) for each in ticks]}
    else:
        axis |= {"separatethousands": True, "exponentformat": "power"}
    return axis
