"""The command ``planner validate``: hold the simulator against measurements that others published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from planner.chart_picture import check_picture
from planner.listings import FORMATS, console, echo_json
from planner.measurements import (
    Measurement,
    read_rows,
    recognised,
    shipped_breakdowns,
    shipped_orders,
    shipped_suites,
)
from planner.score import (
    ComponentScore,
    OrderScore,
    Score,
    Summary,
    score,
    score_orders,
    score_stage,
    summarise,
)
from planner.validate_picture import FORMATS as PICTURES
from planner.validate_picture import draw
from planner.validate_report import report
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.profiles import load_profile
from simulator.units import one_line


@dataclass(frozen=True)
class Validation:
    """What came out: rows, their summary, orders of pairs, and seconds by component."""

    scores: list[Score]
    summaries: list[Summary]
    orders: list[OrderScore]
    breakdown: list[ComponentScore]

    def to_json(self) -> dict[str, Any]:
        """Give the outcome for programs; errors are fractions of what was measured."""
        nothing = {"predicted": None, "error": None, "fitted": None}
        return {
            "rows": [nothing | each.model_dump(mode="json", exclude_none=True) for each in self.scores],
            "summary": [each.model_dump(mode="json") for each in self.summaries],
            "orders": [each.model_dump(mode="json") for each in self.orders],
            "breakdown": [each.model_dump(mode="json") for each in self.breakdown],
        }


def validate_shipped(hardware: str | None = None) -> Validation:
    """Score everything that comes with the package, each row on its machine or all on another one."""
    suites, machines = shipped_suites(), _Machines(hardware)
    scores = _scores(suites, machines)
    rows = {row.id: row for members in suites.values() for row in members}
    breakdown = [
        component
        for stage in shipped_breakdowns()
        for component in score_stage(stage, rows[stage.row], machines.of(rows[stage.row], "breakdown"))
    ]
    return Validation(scores, summarise(scores), score_orders(shipped_orders(), scores), breakdown)


def validate_files(files: Iterable[Path], kernels: Iterable[Path], hardware: str | None) -> Validation:
    """Score rows and kernel tables of the user's.

    Raises:
        InputError: a file is malformed, or no machine is named.
    """
    scores = _scores({path.stem: recognised(read_rows(path)) for path in files}, _Machines(hardware))
    for path in kernels:
        if hardware is None:
            raise InputError("--kernels: give the machine of the tables with --hw")
        scores += _kernel_scores(path, load_profile(hardware))
    return Validation(scores, summarise(scores), [], [])


class _Machines:
    """The machines of rows, each read once."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._read: dict[str, HardwareProfile] = {}

    def of(self, row: Measurement, where: str) -> HardwareProfile:
        """Give the machine that all rows are to be scored on, else the one that the row names."""
        name = self._name or row.hardware
        if name is None:
            raise InputError(f"{where}: row {row.id!r} names no machine; give --hw or add a column hardware")
        if name not in self._read:
            self._read[name] = load_profile(name)
        return self._read[name]


def _scores(suites: dict[str, list[Measurement]], machines: _Machines) -> list[Score]:
    return [score(row, suite, machines.of(row, suite)) for suite, rows in suites.items() for row in rows]


def _kernel_scores(path: Path, hardware: HardwareProfile) -> list[Score]:
    """Score a table of kernels, in milliseconds; rows are numbered from 1."""
    from planner.validate_kernels import predict_kernels, read_kernels  # noqa: PLC0415 - only where asked for

    name = path.name.removesuffix(".gz").removesuffix(".csv")
    predicted, measured = predict_kernels(read_kernels(path), hardware)
    return [
        _kernel_score(name, number, 1e3 * float(one), 1e3 * float(other))
        for number, (one, other) in enumerate(zip(predicted, measured, strict=True), start=1)
    ]


def _kernel_score(name: str, number: int, predicted: float, measured: float) -> Score:
    known: dict[str, Any] = {"id": f"{name}:{number}", "suite": name, "unit": "ms", "measured": measured}
    if not np.isfinite(predicted):
        return Score(**known, fitted=None, reason="the profile has no rates for this kernel")
    return Score(**known, fitted=None, predicted=predicted, error=predicted / measured - 1)


@click.command()
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Score the rows of this CSV file instead of those that ship.",
)
@click.option(
    "--kernels",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Score this table of kernel times (CSV, may be compressed).",
)
@click.option(
    "--hw", "hardware", metavar="NAME|PATH", help="The machine of all rows  [default: the one a row names]"
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Draw predicted against measured (.png or .svg).",
)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def validate(
    files: tuple[Path, ...],
    kernels: tuple[Path, ...],
    hardware: str | None,
    picture: Path | None,
    output: str,
) -> None:
    """Hold the simulator against published measurements.

    Every row that ships is simulated, with the policy that was measured. Rows that were used to fit constants
    are summed up apart from the others. Errors are predicted over measured, less 1.

    \b
    planner validate
    planner validate --file mine.csv --hw a100-80
    planner validate --kernels gemm.csv.gz --hw h100-80
    """  # noqa: D301 - click reads the escape
    if picture is not None:
        check_picture(picture, PICTURES)
    with Console(stderr=True).status("simulating"):
        outcome = validate_files(files, kernels, hardware) if files or kernels else validate_shipped(hardware)
    if picture is not None:
        draw(picture, outcome.scores, outcome.breakdown)
    if output == "json":
        echo_json(outcome.to_json())
        return
    console().print(report(outcome.scores, outcome.summaries, outcome.orders, outcome.breakdown))
    if picture is not None:
        click.echo(one_line(f"written: {picture}"))
