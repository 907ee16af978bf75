"""What two machines differ in: every figure of their profiles, the largest ratio first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simulator.calibration import Interval
from simulator.hardware import HardwareProfile

_WORDS = ("schema_version", "name", "description", "sources", "calibration")
_LEGEND = "The largest ratio comes first, then what has none, by path. Changes are those from A to B."
_INTERVALS = (
    'Intervals: "within both" where those of the two values overlap, so that the difference may be one of '
    'measuring alone; "beyond" where they do not. A value without an interval is taken as exact.'
)


@dataclass(frozen=True)
class Difference:
    """A figure that two profiles do not share.

    Attributes:
        path: its keys, joined by dots.
        first: as the first profile writes it; None if that has no such figure.
        second: as the second one does.
        change: of its value, relative to the first one's; None where there is no ratio of the two.
        within: whether the intervals of the two values overlap; None where neither has one.
    """

    path: str
    first: str | None
    second: str | None
    change: float | None = None
    within: bool | None = None


@dataclass(frozen=True)
class HardwareDifference:
    """All that two profiles differ in.

    Attributes:
        profiles: the two.
        figures: that differ, the largest ratio first, then those without one, by path.
        words: what differs beside the figures: names, the description, sources, how it was measured.
    """

    profiles: tuple[HardwareProfile, HardwareProfile]
    figures: tuple[Difference, ...]
    words: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the outcome for programs: figures as in the profiles, changes as fractions."""
        return {
            "profiles": [
                {"name": profile.name, "content_hash": profile.content_hash} for profile in self.profiles
            ],
            "figures": [
                {
                    "path": each.path,
                    "values": [each.first, each.second],
                    "change": each.change,
                    "within_intervals": each.within,
                }
                for each in self.figures
            ],
            "words": list(self.words),
        }


def compare_profiles(first: HardwareProfile, second: HardwareProfile) -> HardwareDifference:
    """Find every figure that two profiles do not share."""
    both = (first, second)
    one, other = (dict(_leaves(each, each.model_dump(mode="json", exclude_none=True))) for each in both)
    figures: list[tuple[float, Difference]] = []
    words: set[str] = set()
    for path in one | other:
        if one.get(path) == other.get(path):
            continue
        word = _word(path)
        if word is not None:
            words.add(word)
            continue
        name = ".".join(path)
        intervals = [each.calibration.intervals.get(name) if each.calibration else None for each in both]
        difference = _difference(name, one.get(path), other.get(path), intervals)
        figures.append((_distance(one.get(path), other.get(path)), difference))
    figures.sort(key=lambda each: (-each[0], each[1].path))
    return HardwareDifference(both, tuple(difference for _, difference in figures), tuple(sorted(words)))


@dataclass(frozen=True)
class _Leaf:
    """A value of a profile: as it is written, and its number in SI units if it is one."""

    text: str
    number: float | None


def _leaves(value: Any, written: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Leaf]]:
    """Go through a record and what it is written as, side by side."""
    if not isinstance(written, dict):
        text = f"{written:.12g}" if isinstance(written, float) else str(written)
        yield path, _Leaf(text.lower() if isinstance(written, bool) else text, _number(value))
        return
    for key, below in written.items():
        inner = getattr(value, key) if isinstance(value, BaseModel) else value[key]
        yield from _leaves(inner, below, (*path, key))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _word(path: tuple[str, ...]) -> str | None:
    """Give what to call a value that is words, not a figure; None for figures."""
    if path[-1] == "source":
        return "sources"
    if path[0] in _WORDS:
        return path[0]
    return ".".join(path) if path[-1] == "name" else None


def _difference(
    path: str, one: _Leaf | None, other: _Leaf | None, intervals: list[Interval | None]
) -> Difference:
    first, second = one.text if one else None, other.text if other else None
    if one is None or other is None or one.number is None or other.number is None:
        return Difference(path, first, second)
    within = _overlap((one.number, other.number), intervals) if any(intervals) else None
    change = other.number / one.number - 1.0 if one.number else math.inf
    return Difference(path, first, second, change if math.isfinite(change) else None, within)


def _overlap(values: tuple[float, float], intervals: list[Interval | None]) -> bool:
    lows, highs = [], []
    for value, interval in zip(values, intervals, strict=True):
        lows.append(value * (1.0 + (interval.low if interval else 0.0)))
        highs.append(value * (1.0 + (interval.high if interval else 0.0)))
    return max(lows) <= min(highs)


def _distance(one: _Leaf | None, other: _Leaf | None) -> float:
    """Give how far apart two values are: the logarithm of their ratio; below 0 where they have none.

    Twice and half are as far, so either order of profiles lists the same. Rounded, because the last bits of a
    ratio and of its inverse differ.
    """
    first, second = one.number if one else None, other.number if other else None
    if first is None or second is None or first <= 0.0 or second <= 0.0:
        return -1.0
    return round(abs(math.log(second) - math.log(first)), 9)


def report(found: HardwareDifference) -> Group:
    """Write the outcome for people."""
    parts: list[RenderableType] = [
        _about(letter, profile) for letter, profile in zip("AB", found.profiles, strict=True)
    ]
    if found.words:
        parts.append(Text(f"Beside figures these differ: {', '.join(found.words)}."))
    if not found.figures:
        return Group(*parts, Text("No figure differs." if found.words else "The two profiles are equal."))
    parts += [Text(), _table(found.figures), Text(), Text(_LEGEND, style="dim")]
    if any(each.within is not None for each in found.figures):
        parts.append(Text(_INTERVALS, style="dim"))
    return Group(*parts)


def _about(letter: str, profile: HardwareProfile) -> Text:
    engines = "; ".join(engine.name for engine in profile.engines.values())
    line = Text.assemble((f"{letter}  {profile.name}", "bold"), f": {engines}")
    line.append(f" ({', '.join(profile.source_kinds())})")
    if (how := profile.calibration) is not None:
        doubt = f"noise {100 * how.noise:.2g} %, drift {100 * how.drift:+.2g} %"
        line.append(f"; measured {how.date}, {how.mode}, {doubt}")
    return line


def _table(figures: tuple[Difference, ...]) -> Table:
    marked = any(each.within is not None for each in figures)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("figure", overflow="fold")
    for name in ("A", "B", "change"):
        table.add_column(name, justify="right", overflow="fold")
    if marked:
        table.add_column("intervals", no_wrap=True)
    for each in figures:
        mark = "-" if each.within is None else "within both" if each.within else "beyond"
        values = (each.path, each.first or "-", each.second or "-", _percent(each.change))
        table.add_row(*map(Text, (*values, mark) if marked else values))
    return table


def _percent(change: float | None) -> str:
    """Write a relative change; a dash for none.

    >>> _percent(1.0), _percent(-0.5), _percent(0.01234), _percent(24.68), _percent(None)
    ('+100 %', '-50 %', '+1.23 %', '+2,468 %', '-')
    """
    if change is None:
        return "-"
    return f"{100 * change:+,.0f} %" if abs(change) >= 1.0 else f"{100 * change:+.3g} %"
