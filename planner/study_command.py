"""The command ``planner study``: plan every cell of a study, and write its table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table as TextTable
from rich.text import Text

from planner.asking import ADDRESS, BACKEND, JOBS, backend_of
from planner.listings import FORMATS, console, echo_json
from planner.study import read_study
from planner.study_cells import expand
from planner.study_charts import named_columns, said, study_charts
from planner.study_files import Findings, check_format, make_folder, write_findings
from planner.study_progress import answered
from planner.study_rows import study_columns, study_table
from planner.study_run import Store
from planner.table import Row, Table
from simulator.schema import read_text
from simulator.units import one_line

_SHOWN = 12


@click.command()
@click.argument("study_file", metavar="STUDY", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where table and answers go  [default: the study's name beside its file]",
)
@click.option(
    "--table",
    "kind",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Format of the table.",
)
@JOBS
@BACKEND
@ADDRESS
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def study(
    study_file: Path,
    out: Path | None,
    kind: Any,
    jobs: int | None,
    backend: Any,
    address: str | None,
    output: str,
) -> None:
    """Plan every cell of a study: a grid of machines, models, workloads and limits.

    Answers are kept in the folder by their content: run the same command again after an interruption, or
    after changing the study, and only what is new is planned.

    \b
    planner study study.yaml
    planner study study.yaml --table parquet --backend dask --address tcp://head:8786
    """  # noqa: D301 - click reads the escape
    where = backend_of({"backend": backend, "address": address, "jobs": jobs})
    asked = read_study(study_file)
    cells = expand(asked, study_file.parent)
    named = named_columns(asked)
    for key in sorted(named):
        Table(study_columns(cells), ()).column(key)  # what is misspelt is found out before the work
    check_format(kind)
    folder = out or study_file.with_suffix("")
    make_folder(folder, read_text(study_file))
    answers = answered(cells, Store(folder), where, quiet=output == "json")
    table = study_table(cells, answers, asked.economics, named)
    findings = Findings(title=asked.name, description=asked.description, columns=table.columns)
    path = write_findings(findings, table.rows, folder, kind)  # now, as a chart may turn out impossible
    findings = findings.model_copy(update={"charts": study_charts(asked, table)})
    write_findings(findings, table.rows, folder, kind)
    if output == "json":
        echo_json({"table": str(path), "rows": list(table.rows)})
        return
    console().print(summary(asked.name, table))
    click.echo(one_line(f"written: {path}"))
    click.echo(one_line(f"a page with charts, table and plans: planner report {folder}"))


#: Columns that stand elsewhere: the number of the row, and lengths, which the name of the work implies.
_IMPLIED = ("cell", "prompt_len", "gen_len")
#: Columns of the text table, if they vary or say something.
_ALWAYS = ("tok_s", "latency_s", "usd_per_million_tokens", "bound_by")


def summary(name: str, table: Table) -> Group:
    """Show the fastest cells by what tells them apart, and how many have no plan and why."""
    planned = sorted(
        (row for row in table.rows if row["status"] == "planned"), key=lambda row: -float(row["tok_s"] or 0)
    )
    others = [row for row in table.rows if row["status"] != "planned"]
    heading = f"{name}: {len(table.rows)} cells, {len(planned)} planned"
    shown = _rows(table, planned[:_SHOWN])
    lines = [f"and {len(planned) - _SHOWN} more, slower"] if len(planned) > _SHOWN else []
    if others:
        lines.append(f"{len(others)} without a plan, such as cell {others[0]['cell']}: {others[0]['reason']}")
    return Group(Text(heading, style="bold"), "", shown, "", *lines)


def _rows(table: Table, rows: Sequence[Row]) -> TextTable:
    asked = itertools.takewhile(lambda column: column.key != "status", table.columns)
    varied = [
        column
        for column in asked
        if column.key not in _IMPLIED and len({row.get(column.key) for row in table.rows}) > 1
    ]
    told = [column for column in table.columns if column.key in _ALWAYS]
    shown = TextTable(box=None, padding=(0, 2, 0, 0))
    shown.add_column("cell", justify="right")
    shown.add_column("asked")
    for column in told:
        unit = f"\n{column.unit}" if column.unit else ""
        shown.add_column(
            f"{column.title}{unit}", justify="left" if column.kind == "text" else "right", no_wrap=True
        )
    for row in rows:
        words = ", ".join(
            said(row[column.key], column)
            for column in varied
            if row.get(column.key) is not None or column.key == "max_latency_s"
        )
        shown.add_row(str(row["cell"]), words, *(_number(row.get(column.key)) for column in told))
    return shown


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
