"""The command ``planner report``: a study as one page, and its charts as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from planner.chart_page import PageData, page
from planner.chart_picture import draw
from planner.report import print_plan
from planner.study_files import Findings, read_findings
from planner.study_rows import KEY
from planner.study_run import Store
from planner.table import Row
from planner.timeline import Timeline, timeline
from simulator.errors import InputError
from simulator.units import one_line

#: Rows whose timelines are on the page unless the user says otherwise: they are the larger part of it.
_TIMELINES = 200
_SPANS = 800  # of a timeline: some 25 kB
_WIDTH = 110
#: The page numbers rows itself.
_HIDDEN = ("cell", KEY)


@click.command("report")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page  [default: report.html in the folder]",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Draw the charts into this folder too.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["png", "svg", "pdf"]),
    multiple=True,
    default=("png", "svg"),
    show_default=True,
    help="Kinds of pictures.",
)
@click.option(
    "--timelines",
    type=click.IntRange(min=0),
    default=_TIMELINES,
    show_default=True,
    metavar="COUNT",
    help="Rows with a simulated timeline: those in charts first, the fastest first.",
)
def report(
    folder: Path, out: Path | None, pictures: Path | None, kinds: Sequence[str], timelines: int
) -> None:
    """Write a study as one page: charts, a table that sorts, and the plan behind every point.

    The page needs no server and no network. FOLDER is what planner study wrote, or planner frontier,
    sensitivity or size with --out.

    \b
    planner report study
    planner report study --out page.html --pictures figures --kind svg
    """  # noqa: D301 - click reads the escape
    findings, rows = read_findings(folder)
    plans, lines = _details(findings, rows, Store(folder), timelines)
    same = _same(findings, rows)
    shown = PageData(
        title=findings.title,
        description=findings.description,
        charts=findings.charts,
        columns=tuple(each for each in findings.columns if each.key not in (*_HIDDEN, *same)),
        rows=tuple({key: value for key, value in row.items() if key not in _HIDDEN} for row in rows),
        plans=plans,
        timelines=lines,
        notes=tuple(_notes(same, len(lines), len(plans))),
    )
    path = out or folder / "report.html"
    _write(path, page(shown))
    click.echo(one_line(f"written: {path}"))
    if pictures is not None:
        for picture in _draw(findings, pictures, kinds):
            click.echo(one_line(f"written: {picture}"))


def _notes(same: dict[str, str], lines: int, plans: int) -> Iterator[str]:
    """Say what is alike in all rows, and which have no timeline."""
    if same:
        yield f"In all rows: {', '.join(same.values())}."
    if lines < plans:
        yield f"{lines} of {plans} plans have a timeline here; --timelines COUNT gives more."


def _same(findings: Findings, rows: Sequence[Row]) -> dict[str, str]:
    """Say what was asked alike of all rows, by column: such columns tell nothing apart."""
    asked = itertools.takewhile(lambda column: column.key != "status", findings.columns)
    values = {column: {row.get(column.key) for row in rows} for column in asked}
    return {
        column.key: f"{column.title} {found.pop()} {column.unit}".rstrip()
        for column, found in values.items()
        if len(found) == 1 and len(rows) > 1
    }


def _details(
    findings: Findings, rows: Sequence[Row], store: Store, most: int
) -> tuple[dict[int, str], dict[int, Timeline]]:
    """Write the report of every plan, and the timelines of the rows that are looked at first."""
    chosen = set(_first(findings, rows)[:most])
    plans, lines = {}, {}
    planned = [(number, row) for number, row in enumerate(rows) if row.get("status") == "planned"]
    for number, row in track(planned, "reading plans", console=Console(stderr=True), transient=True):
        answer = store.read(str(row[KEY]))
        texts = []
        for one in answer.plans:
            heading = f"{one.part.name}\n\n" if len(answer.plans) > 1 else ""
            texts.append(heading + _text(one.plan))
        plans[number] = "\n\n".join(texts)
        if number in chosen:
            longest = max(answer.plans, key=lambda one: one.plan.predictions.latency_s)
            lines[number] = timeline(longest.plan, _SPANS)
    return plans, lines


def _first(findings: Findings, rows: Sequence[Row]) -> list[int]:
    """Order rows that have plans: those behind points of charts, then the fastest."""
    pointed = {cell for chart in findings.charts for one in chart.series for cell in one.cells}
    planned = [number for number, row in enumerate(rows) if row.get("status") == "planned"]
    return sorted(planned, key=lambda number: (number not in pointed, -_speed(rows[number])))


def _speed(row: Row) -> float:
    value = row.get("tok_s")
    return float(value) if isinstance(value, int | float) else 0.0


def _text(plan: Any) -> str:
    text = StringIO()
    print_plan(plan, Console(file=text, width=_WIDTH, color_system=None, markup=False, emoji=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _draw(findings: Findings, folder: Path, kinds: Sequence[str]) -> Iterator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"--pictures {folder}: cannot be made ({reason})")) from None
    for chart in findings.charts:
        for kind in kinds:
            path = folder / f"{chart.key}.{kind}"
            draw(chart, path)
            yield path


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"{path}: cannot be written ({reason})")) from None
