"""The picture of ``planner validate``: predicted against measured, and seconds by component.

matplotlib is loaded only when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planner.score import NEAR, ComponentScore, Score
from simulator.errors import InputError
from simulator.units import one_line

FORMATS = (".png", ".svg")

_LABELS = 8  # outliers that are named in the picture
_SPACE = 0.04  # between names, as a share of the axis
_FEW = 200  # more points than this are drawn small and without names
_FITTED, _OTHERS, _MEASURED = "#d95f02", "#1b6ca8", "#8a8a8a"
_KINDS = (
    (True, "used for fitting", _FITTED, "s"),
    (False, "not used for fitting", _OTHERS, "o"),
    (None, "measured", _OTHERS, "o"),
)
_SETTINGS: Any = {  # names of settings are checked when used
    "svg.hashsalt": "offload-planner",  # so that the same scores give the same file
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(path: Path, scores: Sequence[Score], breakdown: Sequence[ComponentScore]) -> None:
    """Draw a panel for each unit that was measured, and one for the breakdown.

    Raises:
        InputError: nothing was predicted, or the file cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to load, and only pictures need it
    from matplotlib.figure import Figure  # noqa: PLC0415

    drawn = [each for each in scores if each.predicted is not None and each.predicted > 0]
    units = sorted({each.unit for each in drawn}, reverse=True)
    seconds = [each for each in breakdown if each.predicted is not None]
    count = len(units) + bool(seconds)
    if not count:
        raise InputError(one_line(f"--picture {path}: no row has a prediction, so there is nothing to draw"))
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.4 * count, 6.0), layout="constrained")
        panels = list(np.ravel(figure.subplots(1, count)))
        for axes, unit in zip(panels, units, strict=False):
            _scatter(axes, [each for each in drawn if each.unit == unit], unit)
        if seconds:
            _bars(panels[-1], seconds)
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    try:
        figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"--picture {path}: cannot be written ({reason})")) from None


def _scatter(axes: Any, scores: Sequence[Score], unit: str) -> None:
    values = [value for each in scores for value in (each.measured, each.predicted or each.measured)]
    ends = np.array([min(values) / 1.6, max(values) * 1.6])
    axes.fill_between(ends, ends * (1 - NEAR), ends * (1 + NEAR), color="#d9d9d9", label="within 10 %")
    axes.plot(ends, ends, color="#404040", linewidth=1)
    size = 64 if len(scores) <= _FEW else 6
    for fitted, name, color, marker in _KINDS:
        chosen = [each for each in scores if each.fitted == fitted]
        if chosen:
            axes.scatter(
                [each.measured for each in chosen],
                [each.predicted for each in chosen],
                s=size,
                marker=marker,
                facecolors=color if fitted else "none",
                edgecolors=color,
                linewidths=1.6 if len(scores) <= _FEW else 0.5,
                label=f"{name} ({len(chosen)})",
                zorder=3,
            )
    if len(scores) <= _FEW:
        _name_outliers(axes, scores, float(np.log(ends[1] / ends[0])))
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel=f"measured [{unit}]", ylabel=f"predicted [{unit}]", title="Predicted against measured")
    axes.legend(frameon=False, loc="upper left")


def _name_outliers(axes: Any, scores: Sequence[Score], span: float) -> None:
    """Write the names of the worst rows beside their points, so far apart that all can be read."""
    outside = [each for each in scores if each.error is not None and abs(each.error) > NEAR]
    worst = sorted(outside, key=lambda each: -abs(each.error or 0.0))[:_LABELS]
    for side, align in ((1.0, "right"), (-1.0, "left")):  # above the diagonal, below it
        chosen = [each for each in worst if side * (each.error or 0.0) > 0]
        free = -np.inf
        for each in sorted(chosen, key=lambda one: side * (one.predicted or 0.0)):
            height = max(side * np.log(each.predicted or 1.0), free)
            free = height + _SPACE * span
            axes.annotate(
                each.id,
                (each.measured, each.predicted),
                xytext=(each.measured * np.exp(-side * 1.5 * _SPACE * span), np.exp(side * height)),
                ha=align,
                va="center",
                fontsize=9,
                arrowprops={"arrowstyle": "-", "color": "#8a8a8a", "linewidth": 0.6},
            )


def _bars(axes: Any, breakdown: Sequence[ComponentScore]) -> None:
    names = [f"{each.stage}: {each.component.replace('_', ' ')}" for each in breakdown]
    places = np.arange(len(names))
    for shift, color, label, values in (
        (-0.2, _MEASURED, "measured", [each.measured for each in breakdown]),
        (0.2, _OTHERS, "predicted", [each.predicted or 0.0 for each in breakdown]),
    ):
        axes.barh(places + shift, values, height=0.38, color=color, label=label)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlabel="time [s]", title=f"Time by component: {breakdown[0].row}")
    axes.legend(frameon=False, loc="upper right")
