"""Charts as pictures for papers, drawn with matplotlib, which is loaded only when one is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from planner.chart_style import CELLS_WITH_NUMBERS, COLOR_SCALE, color, dash, marker
from planner.charts import Chart, log_ticks, number
from simulator.errors import InputError
from simulator.units import one_line

#: Kinds of files, and what to leave out of them so that a chart always gives the same bytes.
FORMATS: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}

_SETTINGS: Any = {  # names of settings are checked when used
    "svg.hashsalt": "offload-planner",
    "pdf.fonttype": 42,  # letters that editors and readers can find
    "text.parse_math": False,  # a dollar is a dollar
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
}
_WIDTH, _HEIGHT = 6.4, 4.2
_EMPTY = "#d4d4d4"


def check_picture(path: Path, known: Iterable[str] = tuple(FORMATS)) -> None:
    """Make sure that a picture can be drawn and what kind it is, before anything takes time.

    Raises:
        InputError: the name does not end in one of the known suffixes.
    """
    if path.suffix not in known:
        *some, last = known
        raise InputError(one_line(f"{path}: name a file that ends in {', '.join(some)} or {last}"))


def draw(chart: Chart, path: Path) -> None:
    """Draw a chart into a file, of the kind that its name says.

    Raises:
        InputError: the name does not end in .png, .svg or .pdf, or the file cannot be written.
    """
    check_picture(path)
    import matplotlib as mpl  # noqa: PLC0415 - slow to load, and only pictures need it
    from matplotlib.figure import Figure  # noqa: PLC0415

    kinds = {"bars": _bars, "heatmap": _heatmap, "tornado": _tornado}
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is a box
        # Names of columns that leave no room: the picture is drawn, with parts of them cut off.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        figure = Figure(figsize=(_WIDTH, _height(chart)), layout="constrained")
        axes = figure.subplots()
        axes.set_title(one_line(chart.title), loc="left", wrap=True)
        kinds.get(chart.kind, _points)(axes, chart)
        _legend(figure, axes, chart)
        _save(figure, path)


def _height(chart: Chart) -> float:
    """Give a height with room for a row for each category that is drawn as one, and for the legend. [inch]"""
    rows = {"heatmap": len(chart.series), "tornado": len(chart.categories())}.get(chart.kind, 0)
    return max(_HEIGHT, 1.4 + 0.32 * rows) + 0.2 * (chart.kind != "heatmap" and len(chart.series)) / 3


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=200, metadata=FORMATS[path.suffix])
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"{path}: cannot be written ({reason})")) from None


def _points(axes: Any, chart: Chart) -> None:
    """Draw markers, and for lines what joins them; a value that is missing is a gap."""
    places = {name: place for place, name in enumerate(chart.categories())}
    for i, one in enumerate(chart.series):
        x = [places[name] for name in one.categories] if chart.has_names else list(one.x)
        axes.errorbar(
            x,
            _values(one.y),
            yerr=one.errors() if one.low else None,
            color=color(i),
            marker=marker(i)[0],
            linestyle=dash(i)[0] if chart.kind == "line" and one.joined else "none",
            markersize=5,
            linewidth=1.6,
            elinewidth=1,
            capsize=2.5,
            label=str(i),
        )
    if chart.has_names:
        _names(axes, chart.categories())
    else:
        numbers = [each for one in chart.series for each in one.x if not isinstance(each, str)]
        _scale(axes, "x", chart.x_log, numbers)
    _scale(axes, "y", chart.y_log, list(chart.values()))
    axes.grid(visible=True)
    axes.set(xlabel=one_line(chart.x_label), ylabel=one_line(chart.y_label))


def _bars(axes: Any, chart: Chart) -> None:
    names = chart.categories()
    places = {name: place for place, name in enumerate(names)}
    width = 0.8 / max(1, len(chart.series))
    for i, one in enumerate(chart.series):
        shift = (i - (len(chart.series) - 1) / 2) * width
        axes.bar(
            [places[name] + shift for name in one.categories],
            _values(one.y),
            width=0.92 * width,
            yerr=one.errors() if one.low else None,
            error_kw={"elinewidth": 1, "capsize": 2},
            color=color(i),
            label=str(i),
        )
    _names(axes, names)
    _scale(axes, "y", chart.y_log, list(chart.values()))
    axes.grid(visible=True, axis="y")
    axes.set(xlabel=one_line(chart.x_label), ylabel=one_line(chart.y_label))


def _tornado(axes: Any, chart: Chart) -> None:
    names, base = chart.categories(), chart.base or 0.0
    places = {name: place for place, name in enumerate(names)}
    for i, one in enumerate(chart.series):
        width = _values(one.y) - base
        axes.barh([places[name] for name in one.categories], width, 0.66, base, color=color(i), label=str(i))
    axes.axvline(base, color="#404040", linewidth=1)
    axes.set_yticks(range(len(names)), [one_line(name) for name in names])
    axes.invert_yaxis()
    _scale(axes, "x", chart.y_log, list(chart.values()))
    axes.grid(visible=True, axis="x")
    axes.set(xlabel=one_line(chart.y_label), ylabel=one_line(chart.x_label))


def _heatmap(axes: Any, chart: Chart) -> None:
    """Draw cells from the bottom up, as plotly does; those where nothing fits stay grey."""
    names, rows = chart.categories(), [one_line(one.name) for one in chart.series]
    values = np.array([_values(one.y) for one in chart.series]).reshape(len(rows), len(names))
    axes.set_facecolor(_EMPTY)
    axes.set(xlabel=one_line(chart.x_label), ylabel=one_line(chart.y_label))
    axes.spines[:].set_visible(False)
    _names(axes, names)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, max(0.5, len(names) - 0.5)), ylim=(-0.5, max(0.5, len(rows) - 0.5)))
    if not np.isfinite(values).any():  # there is nothing to scale colours by
        return
    edges = (np.arange(count + 1) - 0.5 for count in (len(names), len(rows)))
    image = axes.pcolormesh(*edges, values, cmap=COLOR_SCALE[0], edgecolors="white", linewidth=1)
    bar = axes.figure.colorbar(image, ax=axes, label=one_line(chart.z_label), fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    if values.size <= CELLS_WITH_NUMBERS:
        _numbers(axes, values, image)


def _numbers(axes: Any, values: Any, image: Any) -> None:
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value)) if np.isfinite(value) else image.cmap(1.0)
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.55
        axes.text(
            column,
            row,
            number(None if np.isnan(value) else float(value)),
            ha="center",
            va="center",
            fontsize=8 if values.shape[1] <= 10 else 6.5,
            color="white" if dark else "#202020",
        )


def _values(column: tuple[float | None, ...]) -> Any:
    return np.array([np.nan if each is None else each for each in column], dtype=float)


def _names(axes: Any, names: tuple[str, ...]) -> None:
    """Write names below the axis, aslant where they would run into each other."""
    texts = [one_line(name) for name in names]
    if sum(len(text) + 2 for text in texts) > 80:
        axes.set_xticks(range(len(texts)), texts, rotation=35, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(texts)), texts)


def _scale(axes: Any, which: str, log: bool, values: list[float]) -> None:
    """Set an axis' scale and write plain numbers on it, with commas between thousands."""
    from matplotlib.ticker import FuncFormatter, NullLocator  # noqa: PLC0415

    axis = getattr(axes, f"{which}axis")
    if log and values:
        getattr(axes, f"set_{which}scale")("log")
        axis.set_ticks(log_ticks(values, 1.15 if which == "y" else 1.0))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _legend(figure: Any, axes: Any, chart: Chart) -> None:
    """Write the legend below the axes, where it hides no point."""
    if len(chart.series) < 2 or chart.kind == "heatmap":
        return
    handles, _ = axes.get_legend_handles_labels()
    texts = [one_line(one.name) for one in chart.series]
    longest = max(map(len, texts))
    columns = max(1, min(len(texts), 78 // (longest + 6)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, fontsize=9, columnspacing=1.4)
