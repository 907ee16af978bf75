"""Charts: what cannot be drawn is refused, everything else is drawn, and always to the same bytes."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.chart_figure import figure, shown
from planner.chart_picture import FORMATS, draw
from planner.chart_style import color, marker, operation_colors
from planner.charts import Chart, ChartKind, Series, log_ticks, number
from simulator.errors import InputError
from simulator.operations import OPERATIONS
from tests.chart_samples import KINDS, charts, sample


@given(charts())
def test_reads_back(chart: Chart) -> None:
    """A chart written as JSON reads back equal."""
    assert Chart.model_validate_json(chart.model_dump_json()) == chart


@given(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["y", "cells", "labels", "low"]))
def test_columns_of_other_lengths_are_refused(points: int, length: int, name: str) -> None:
    """Every column of a series is as long as x, or empty if optional; the message names both lengths."""
    columns = {"y": (1.0,) * points, name: ("a",) * length if name == "labels" else (1,) * length}
    if name == "low":
        columns["high"] = columns["low"]
    if length == points or (length == 0 and name != "y"):
        Series(name="s", x=(1.0,) * points, **columns)
        return
    with pytest.raises(ValidationError, match=f"series 's': {points} x but {length} {name}; give one"):
        Series(name="s", x=(1.0,) * points, **columns)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("line", {"series": (Series(name="s", x=("a",), y=(1,)),)}, "needs numbers as x"),
        ("points", {"series": (Series(name="s", x=("a", 1.0), y=(1, 2)),)}, "both numbers and names"),
        ("bars", {"series": (Series(name="s", x=("a", "a"), y=(1, 2)),)}, "a category twice"),
        ("tornado", {"base": None}, "needs a base"),
        ("line", {"series": (Series(name="s", x=(0.0,), y=(1,)),)}, "x of zero or less"),
        ("line", {"series": (Series(name="s", x=(1.0,), y=(-1,)),)}, "y of zero or less"),
        ("line", {"series": (Series(name="s", x=(1.0,), y=(1,), low=(0.0,), high=(2.0,)),)}, "y of zero"),
        (
            "heatmap",
            {"series": (Series(name="s", x=("a",), y=(1,)), Series(name="t", x=("b",), y=(1,)))},
            "same columns",
        ),
        ("line", {"key": "../up"}, "pattern"),
    ],
)
def test_what_cannot_be_drawn_is_refused(kind: ChartKind, change: dict[str, object], message: str) -> None:
    """Each rule of a kind is held, with a message that says which."""
    with pytest.raises(ValidationError, match=message):
        Chart.model_validate({**sample(kind).model_dump(), **change})


def test_low_without_high_is_refused() -> None:
    """A range has two ends."""
    with pytest.raises(ValidationError, match="low and high belong together"):
        Series(name="s", x=(1.0,), y=(1.0,), low=(0.5,))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_alike_twice(kind: ChartKind, suffix: str, tmp_path: Path) -> None:
    """Every kind of chart becomes a picture of every kind, and the same chart the same bytes."""
    files = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for path in files:
        draw(sample(kind), path)
    assert files[0].read_bytes() == files[1].read_bytes()
    if suffix == ".png":
        pixels = matplotlib.image.imread(files[0])[..., :3]
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@settings(max_examples=25)
@given(charts())
def test_any_chart_is_drawn(tmp_path_factory: pytest.TempPathFactory, chart: Chart) -> None:
    """Whatever the texts and values, the picture is drawn and is well-formed."""
    path = tmp_path_factory.mktemp("pictures") / "chart.svg"
    draw(chart, path)
    assert ET.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - our own file


def test_other_files_are_refused(tmp_path: Path) -> None:
    """The message says what the name may end in, and why a file cannot be written."""
    with pytest.raises(InputError, match=r"name a file that ends in \.png, \.svg or \.pdf"):
        draw(sample("line"), tmp_path / "chart.gif")
    with pytest.raises(InputError, match="cannot be written"):
        draw(sample("line"), tmp_path / "nowhere" / "chart.png")


@given(charts(rows=3))
def test_plotly_gets_every_point_once(chart: Chart) -> None:
    """Values, hover texts and rows of a figure are as many as the points of the chart."""
    data = figure(chart)["data"]
    if chart.kind == "heatmap":
        assert [len(row) for row in data[0]["hovertext"]] == [len(one.x) for one in chart.series]
        assert data[0]["z"] == [list(one.y) for one in chart.series]
        return
    assert len(data) == len(chart.series)
    for trace, one in zip(data, chart.series, strict=True):
        assert len(trace["hovertext"]) == len(trace["customdata"]) == len(one.x)
        if one.cells:
            assert trace["customdata"] == list(one.cells)


@given(st.text())
def test_texts_reach_plotly_as_they_stand(text: str) -> None:
    """No text makes an element; only line ends become breaks."""
    assert "<" not in shown(text).replace("<br>", "")


def test_a_tornado_stands_on_its_base() -> None:
    """The largest swing is on top, and the bars reach from the base to the values."""
    chart = sample("tornado")
    assert chart.categories() == ("three", "one", "two")
    trace = figure(chart)["data"][0]
    assert [trace["base"] + width for width in trace["x"]] == list(chart.series[0].y)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=12))
@example([640000001.0, 640000002.0])
def test_logarithmic_axes_have_few_numbers(values: list[float]) -> None:
    """There are one to ten numbers, in order, in the range of the values unless there is no round one."""
    ticks = log_ticks(values)
    assert 1 <= len(ticks) <= 10
    assert all(a <= b for a, b in itertools.pairwise(ticks))
    assert min(values) <= ticks[0]
    assert ticks[-1] <= max(values)


@given(st.floats(-1e11, 1e11))
def test_numbers_are_shown_to_four_digits(value: float) -> None:
    """What is shown differs from the number by less than 0.06 %, and has no exponent unless it is tiny."""
    text = number(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=6e-4)
    assert "e" not in text or abs(value) < 1e-4


def test_series_can_be_told_apart() -> None:
    """No two of many series share colour and marker; every operation has a colour."""
    looks = [(color(index), marker(index)) for index in range(28)]
    assert len(set(looks)) == len(looks)
    assert set(operation_colors()) == {operation.name for operation in OPERATIONS}


def test_a_point_says_what_it_is() -> None:
    """Without labels a point is put into words; with them they stand."""
    chart = sample("line")
    assert chart.words(chart.series[0], 1) == (
        "series 0\nwhat is varied: 10\nwhat comes out [s]: 3.5 (2.8 to 4.55)"
    )
    named = chart.series[0].model_copy(update={"labels": ("a", "b", "c")})
    assert chart.words(named, 1) == "b"
    heat = sample("heatmap")
    assert heat.words(heat.series[1], 1) == (
        "what is varied: two\nwhat comes out [s]: series 1\na colour [s]: nothing fits"
    )


def test_names_that_leave_no_room_are_drawn(tmp_path: Path) -> None:
    """A bar chart whose names are taller than the picture is drawn without a warning."""
    names = ("", "long " * 60, "00")
    chart = Chart(
        key="drawn",
        title="",
        kind="bars",
        x_label="",
        y_label="",
        series=(Series(name="s", x=names, y=(None, 1.0, 2.0)),),
    )
    draw(chart, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 0
