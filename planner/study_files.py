"""The folder of a study: its definition, the table, and the answers.

study.yaml                       the definition, as it was given
cells.csv (or cells.parquet)     one row a cell
findings.json                    words, charts, and the meaning of the table's columns
answers/KEY.json                 the plans of a cell; the column ``answer`` of its row has the key
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from planner.charts import Chart
from planner.table import Column, Row
from simulator.errors import InputError
from simulator.schema import Record, decode, read_json
from simulator.units import one_line

TableFormat = Literal["csv", "parquet"]
DEFINITION = "study.yaml"
_TABLES: dict[TableFormat, str] = {"csv": "cells.csv", "parquet": "cells.parquet"}
_FINDINGS = "findings.json"


class Findings(Record):
    """What stands beside a table: title and words of a study, its charts, and what its columns mean."""

    title: str
    description: str
    charts: tuple[Chart, ...] = ()
    columns: tuple[Column, ...]


def check_format(kind: TableFormat) -> None:
    """Find out whether tables of a kind can be written here.

    Raises:
        InputError: what writes it is not installed.
    """
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError("--table parquet: it needs pyarrow; pip install 'offload-planner[parquet]'")


def make_folder(folder: Path, definition: str | None = None) -> None:
    """Make the folder of a study, and put its definition there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if definition is not None:
            (folder / DEFINITION).write_text(definition, encoding="utf-8")
    except OSError as error:
        raise InputError(
            one_line(f"{folder}: cannot be written ({(error.strerror or 'unknown').lower()})")
        ) from None


def write_findings(findings: Findings, rows: Sequence[Row], folder: Path, kind: TableFormat = "csv") -> Path:
    """Write a table and what stands beside it; give the table's path.

    Raises:
        InputError: the folder cannot be written to.
    """
    import pandas  # noqa: PLC0415 - only tables need it

    frame = pandas.DataFrame(rows, columns=[column.key for column in findings.columns]).convert_dtypes()
    path = folder / _TABLES[kind]
    try:
        if kind == "parquet":
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False, lineterminator="\n")
        (folder / _FINDINGS).write_text(findings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for other in set(_TABLES.values()) - {path.name}:
            (folder / other).unlink(missing_ok=True)  # of a run with another format, and stale now
    except OSError as error:
        raise InputError(
            one_line(f"{path}: cannot be written ({(error.strerror or 'unknown').lower()})")
        ) from None
    return path


def read_findings(folder: Path) -> tuple[Findings, list[Row]]:
    """Read a table and what stands beside it.

    Raises:
        InputError: there is none, or both do not fit together.
    """
    import pandas  # noqa: PLC0415 - only tables need it

    path = next((folder / name for name in _TABLES.values() if (folder / name).is_file()), None)
    if path is None:
        raise InputError(one_line(f"{folder}: there is no table of a study; planner study writes one"))
    findings = decode(Findings, read_json(folder / _FINDINGS), "findings")
    try:
        if path.suffix == ".parquet":
            frame = pandas.read_parquet(path)
        else:
            frame = pandas.read_csv(path, dtype="string", keep_default_na=False, na_values=[""])
            for column in findings.columns:
                if column.kind == "number":
                    frame[column.key] = frame[column.key].map(_number, na_action="ignore").astype(object)
        frame = frame[[column.key for column in findings.columns]]
    except (ImportError, ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(one_line(f"{path}: not the table of a study ({error!r})")) from None
    return findings, [{key: _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _number(text: str) -> float:
    """Read a number to its last digit, a whole one as such."""
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _plain(value: Any) -> Any:
    """Take an entry of a data frame as a plain value; what is missing as None."""
    plain = value.item() if hasattr(value, "item") else value
    missing = plain is None or (isinstance(plain, float) and math.isnan(plain)) or str(plain) == "<NA>"
    return None if missing else plain
