"""What the commands that ask many questions share: their options, cells, answers and files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from planner.chart_picture import check_picture, draw
from planner.charts import Chart
from planner.plan_command import FORMAT, MODEL, OVERRIDES, QUANTIZE
from planner.study_answer import Answer
from planner.study_cells import Cell
from planner.study_files import Findings, make_folder, write_findings
from planner.study_progress import answered
from planner.study_run import Backend, Store
from planner.table import Table
from planner.work_options import read_mix, work_options
from simulator.errors import InputError
from simulator.mix import Mix
from simulator.model_config import load_model
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.units import one_line

Command = Callable[..., Any]

JOBS = click.option(
    "--jobs", type=click.IntRange(min=1), metavar="COUNT", help="Processes  [default: all cores]"
)
BACKEND = click.option(
    "--backend",
    type=click.Choice(["local", "ray", "dask"]),
    default="local",
    show_default=True,
    help="Where cells are planned: on this machine, or on a cluster.",
)
ADDRESS = click.option("--address", metavar="ADDRESS", help="Of the cluster  [default: one started here]")
RUNTIMES = click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("reference",),
    show_default=True,
    metavar="NAME",
    help="Engine; give several to compare.",
)
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep table and answers in this folder, for planner report.",
)
PICTURE = click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw it: .png, .svg or .pdf.",
)
_COMPUTING = (OUT, PICTURE, JOBS, BACKEND, ADDRESS, FORMAT)


def asking(*first: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Give a command its own options, then those of the work, then those about computing and files."""

    def decorate(command: Command) -> Command:
        for option in reversed((*first, MODEL, work_options, QUANTIZE, OVERRIDES, *_COMPUTING)):
            command = option(command)
        return command

    return decorate


def backend_of(options: dict[str, Any]) -> Backend:
    """Read where to compute.

    Raises:
        InputError: an address without a cluster.
    """
    if options["address"] and options["backend"] == "local":
        raise InputError("--address: only clusters have one; add --backend ray or --backend dask")
    return Backend(options["backend"], options["address"], options["jobs"])


def mix_of(options: dict[str, Any]) -> Mix:
    """Read the work from a command's options.

    Raises:
        InputError: see :func:`planner.work_options.read_mix`.
    """
    names = ("workload", "prompt_len", "gen_len", "shared_prefix", "num_prompts")
    return read_mix(**{name: options[name] for name in names})


def single_of(options: dict[str, Any], what: str) -> Mix:
    """Read work of one part, for a question about one plan.

    Raises:
        InputError: it has several, or see :func:`mix_of`.
    """
    mix = mix_of(options)
    if mix.single is None:
        raise InputError(
            f"--workload {mix.name}: {what} is of one plan, for work with one part; take one of its parts"
        )
    return mix


def cell_of(hardware: str, mix: Mix, runtime: str, options: dict[str, Any]) -> Cell:
    """Make a cell without a limit from a command's options.

    Raises:
        InputError: a name or a value is wrong.
    """
    profile = load_profile(hardware, options["overrides"])
    return Cell(
        machine=profile.name,
        hardware=profile,
        overrides=options["overrides"],
        model=load_model(options["model"]),
        mix=mix,
        runtime=load_runtime(runtime),
        quantize=options["quantize"],
    )


@dataclass
class Asking:
    """Answers cells for one command, and writes what came of them.

    Attributes:
        options: of the command line.
        pictures: that will be drawn beside ``--picture``.
        stack: left when the command is over; a temporary folder goes with it.
    """

    options: dict[str, Any]
    pictures: Sequence[Path | None] = ()
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        """Choose the folder; what cannot be written to is found out before the work."""
        self.backend = backend_of(self.options)
        self.out: Path | None = self.options["out"]
        for picture in (self.options["picture"], *self.pictures):
            if picture is not None:
                check_picture(picture)
        if self.out is not None:
            make_folder(self.out)
        folder = self.out or Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.store = Store(folder)

    def __enter__(self) -> Asking:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what nobody asked to keep."""
        self.stack.close()

    def ask(self, cells: Sequence[Cell]) -> list[Answer]:
        """Answer cells, in their order."""
        quiet = self.options["output"] == "json"
        return list(answered(cells, self.store, self.backend, quiet=quiet))

    def write(self, title: str, table: Table, charts: Sequence[Chart]) -> Iterator[str]:
        """Write the folder, and the first chart as a picture, as far as asked for; give a line about each."""
        if self.out is not None:
            findings = Findings(title=title, description="", charts=tuple(charts), columns=table.columns)
            yield one_line(f"written: {write_findings(findings, table.rows, self.out)}")
            yield one_line(f"a page with charts, table and plans: planner report {self.out}")
        if charts:
            yield from self.draw(charts[0], self.options["picture"])

    def draw(self, chart: Chart, picture: Path | None) -> Iterator[str]:
        """Draw a chart, if a picture is asked for, and say so."""
        if picture is not None:
            draw(chart, picture)
            yield one_line(f"written: {picture}")
