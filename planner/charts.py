"""Charts as data: one description that both the page and the pictures for papers draw.

A chart says what is shown, not how: ``planner.chart_picture`` draws it with matplotlib, and
``planner.chart_figure`` writes it for plotly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field, model_validator

from simulator.schema import Record

ChartKind = Literal["line", "points", "bars", "heatmap", "tornado"]

#: Kinds whose x are names; numbers among them stand as text.
CATEGORIES: tuple[ChartKind, ...] = ("bars", "heatmap", "tornado")

_FEW, _APART = 8, 1.4  # so many values, so far apart (as a factor), can each have a number on the axis
_MOST_TICKS = 9
_MANTISSAS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(m / 10 for m in range(10, 100, 2)))


class Series(Record):
    """Points that belong together.

    Attributes:
        name: in the legend; of a heatmap the value of the row.
        x: numbers, or names of categories.
        y: values; None where there is none.
        cells: number of the table row behind each point, if the chart stands beside a table.
        labels: what to say of each point when it is pointed at.
        low: lower end of each point's range, if it has one.
        high: upper end.
        joined: whether a line joins the points, in a chart of lines.
    """

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    cells: tuple[int | None, ...] = ()
    labels: tuple[str, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    joined: bool = True

    @model_validator(mode="after")
    def _check_lengths(self) -> Series:
        """Refuse columns of different lengths; optional ones may be empty."""
        if len(self.y) != len(self.x):
            raise ValueError(
                f"series {self.name!r}: {len(self.x)} x but {len(self.y)} y; give one y for each x"
            )
        for name in ("cells", "labels", "low", "high"):
            count = len(getattr(self, name))
            if count not in (0, len(self.x)):
                raise ValueError(
                    f"series {self.name!r}: {len(self.x)} x but {count} {name}; give one for each x, or none"
                )
        if bool(self.low) != bool(self.high):
            raise ValueError(f"series {self.name!r}: low and high belong together; give both, or none")
        return self

    @property
    def categories(self) -> tuple[str, ...]:
        """Give x as names."""
        return tuple(each if isinstance(each, str) else number(each) for each in self.x)

    def errors(self) -> tuple[list[float], list[float]]:
        """Give how far each point's range reaches below and above it; 0 where it has none."""
        below, above = [], []
        for value, low, high in zip(self.y, self.low, self.high, strict=True):
            below.append(0.0 if value is None or low is None else max(0.0, value - low))
            above.append(0.0 if value is None or high is None else max(0.0, high - value))
        return below, above


class Chart(Record):
    """One chart.

    Lines need numbers as x. Of a heatmap every series is a row over the same columns, and None means that
    nothing fits. A tornado has categories as x and the values that they lead to as y; it is drawn as
    horizontal bars from ``base`` to these, the largest swing on top, so its ``y_label`` stands below.

    Attributes:
        key: names the file of the picture.
        note: one sentence that stands under the chart.
        z_label: what the colours of a heatmap mean.
        base: where the bars of a tornado start.
    """

    key: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    kind: ChartKind
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    series: tuple[Series, ...]
    note: str = ""
    z_label: str = ""
    base: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Chart:
        """Refuse what cannot be drawn."""
        self._check_axes()
        self._check_logs()
        if self.kind == "tornado" and self.base is None:
            raise ValueError(
                f"chart {self.key}: a tornado needs a base, the value that nothing was changed for"
            )
        if self.kind == "heatmap" and len({one.categories for one in self.series}) > 1:
            raise ValueError(f"chart {self.key}: the rows of a heatmap need the same columns")
        return self

    def _check_axes(self) -> None:
        kinds = {isinstance(each, str) for one in self.series for each in one.x}
        if self.kind == "line" and True in kinds:
            raise ValueError(f"chart {self.key}: a line needs numbers as x; draw names as bars or points")
        if self.kind == "points" and len(kinds) > 1:
            raise ValueError(f"chart {self.key}: x are both numbers and names; use one kind")
        if self.kind in CATEGORIES:
            for one in self.series:
                if len(set(one.categories)) != len(one.x):
                    raise ValueError(f"chart {self.key}: series {one.name!r} has a category twice")

    def _check_logs(self) -> None:
        numbers = (each for one in self.series for each in one.x if not isinstance(each, str))
        if self.x_log and any(each <= 0 for each in numbers):
            raise ValueError(f"chart {self.key}: x of zero or less have no place on a logarithmic axis")
        if self.y_log and any(each <= 0 for each in self.values()):
            raise ValueError(f"chart {self.key}: y of zero or less have no place on a logarithmic axis")

    @property
    def has_names(self) -> bool:
        """Whether x are names of categories."""
        named = any(isinstance(each, str) for one in self.series for each in one.x)
        return named or self.kind in CATEGORIES

    def categories(self) -> tuple[str, ...]:
        """List the names on the x axis in the order of the data; a tornado's by swing, the largest first."""
        names = tuple(dict.fromkeys(each for one in self.series for each in one.categories))
        return tuple(sorted(names, key=self._swing, reverse=True)) if self.kind == "tornado" else names

    def _swing(self, name: str) -> float:
        base = self.base or 0.0
        found = [base]
        for one in self.series:
            found += [y for x, y in zip(one.categories, one.y, strict=True) if x == name and y is not None]
        return max(found) - min(found)

    def values(self) -> Iterator[float]:
        """Go through all values that the y axis (of a tornado: the horizontal one) has to hold."""
        if self.base is not None:
            yield self.base
        for one in self.series:
            for column in (one.y, one.low, one.high):
                yield from (each for each in column if each is not None)

    def words(self, series: Series, index: int) -> str:
        """Say what one point is, on a line for each of its parts."""
        if series.labels:
            return series.labels[index]
        value = series.y[index]
        said = "nothing fits" if value is None and self.kind == "heatmap" else number(value)
        if series.low and value is not None:
            said += f" ({number(series.low[index])} to {number(series.high[index])})"
        if self.kind == "heatmap":
            parts = (
                (self.x_label, series.categories[index]),
                (self.y_label, series.name),
                (self.z_label, said),
            )
        else:
            parts = ((series.name, ""), (self.x_label, series.categories[index]), (self.y_label, said))
        return "\n".join(": ".join(part for part in pair if part) for pair in parts if any(pair))


def number(value: float | None) -> str:
    """Write a number as people read it: four digits, no powers of ten where they can be avoided.

    >>> number(12345.6), number(0.25), number(3.0), number(1.23456e-7), number(None)
    ('12,346', '0.25', '3', '1.235e-07', '-')
    """
    if value is None:
        return "-"
    if 1000 <= abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def log_ticks(values: Sequence[float], beyond: float = 1.0) -> list[float]:
    """Choose where a logarithmic axis has numbers: at the values if they are few, else at round numbers.

    ``beyond`` is how much further than the values the axis reaches, as a factor. Of round numbers as few are
    chosen as still make three.

    >>> log_ticks([8, 16, 32]), log_ticks([1.1 * i for i in range(3, 400)])
    ([8, 16, 32], [5.0, 10.0, 20.0, 50.0, 100.0, 200.0])
    """
    few = sorted(set(values))
    if len(few) <= _FEW and all(b >= a * _APART for a, b in itertools.pairwise(few)):
        return few
    low, high = few[0] / beyond, few[-1] * beyond
    ticks: list[float] = []
    for mantissas in _MANTISSAS:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [
            each for power in powers for m in mantissas if low <= (each := float(f"{m}e{power}")) <= high
        ]
        if len(ticks) >= 3:
            break
    # Between values that are nearly alike there is no round number.
    return ticks[:: -(-len(ticks) // _MOST_TICKS)] if ticks else [few[0], few[-1]]
