"""Measurements that others published: the rows that simulations are scored against, read from CSV files.

Files of rows lie in ``planner/published``, one suite each; beside them the pairs of rows whose order matters
(``orders.csv``), runs whose time is broken down by component (``*_breakdown.csv``) and runs of pipelines of
servers, which no policy describes (``petals_*.csv``).
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from simulator.errors import InputError
from simulator.policy import Bits, Count
from simulator.runtime import runtime_names
from simulator.schema import Record, RecordT, decode, read_text
from simulator.units import one_line, shortened

_ORDERS = "orders.csv"
_BREAKDOWN = "_breakdown.csv"
_PIPELINES = "petals_"


def _whole(value: object) -> object:
    """Read a cell as a whole number if it is one: choices of numbers do not take text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


Percent = Annotated[float, Field(ge=0.0, le=100.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e12)]
Seconds = Annotated[float, Field(ge=0.0, le=1e12)]
Name = Annotated[str, Field(min_length=1, max_length=80)]
CellBits = Annotated[Bits, BeforeValidator(_whole)]


class Measurement(Record):
    """One measured run.

    ``wg wc`` (weights), ``cg cc`` (KV cache) and ``hg hc`` (activations) are the percentages that were
    *requested* of the engine for GPU and CPU; the rest is on disk. ``fitted`` tells whether the row was used
    to fit constants of the simulator; ``hardware`` is the machine, unless the caller names one. With
    ``first_step`` the time of decoding is that of its first step, multiplied, as FlexGen's benchmark has it.
    """

    id: Name
    system: Name
    model: Name
    prompt_len: Annotated[int, Field(ge=1, le=10_000_000)]
    gen_len: Annotated[int, Field(ge=1, le=1_000_000)]
    gpu_batch: Count
    num_gpu_batches: Count
    wg: Percent
    wc: Percent
    cg: Percent
    cc: Percent
    hg: Percent
    hc: Percent
    cpu_attention: bool
    weight_bits: CellBits
    cache_bits: CellBits
    overlap: bool
    pinned_weights: bool
    throughput_tok_s: Positive
    fitted: bool = False
    first_step: bool = False
    hardware: str | None = None
    source: str = ""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for gpu, cpu in (("wg", "wc"), ("cg", "cc"), ("hg", "hc")):
            total = getattr(self, gpu) + getattr(self, cpu)
            if total > 100.0 + 1e-6:
                raise ValueError(f"columns {gpu} and {cpu} sum to {total:g}; lower one: at most 100 together")
        known = runtime_names()
        if self.system not in known:
            near = difflib.get_close_matches(self.system, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known engines: {', '.join(known)}"
            raise ValueError(f"column system: the engine {shortened(self.system)} is unknown; {hint}")
        return self

    @property
    def shape(self) -> str:
        """Write group size, number of groups, prompt and generated length: ``48 x 3, 512/32``."""
        return f"{self.gpu_batch} x {self.num_gpu_batches}, {self.prompt_len}/{self.gen_len}"


class Order(Record):
    """Two measured rows of which one is faster, and what that means."""

    faster_id: Name
    slower_id: Name
    meaning: Name


class MeasuredBreakdown(Record):
    """Seconds by component of one stage of the run that ``row`` names."""

    row: Name
    stage: Literal["prefill", "decode"]
    total_s: Seconds
    compute_s: Seconds
    weight_read_s: Seconds
    cache_read_s: Seconds
    cache_write_s: Seconds
    source: Annotated[str, Field(min_length=1)]


class PipelineMeasurement(Record):
    """One measured run of a pipeline of servers, of throughput per GPU; servers decide as the policy does."""

    id: Name
    model: Name
    prompt_len: Annotated[int, Field(ge=1, le=10_000_000)]
    gen_len: Annotated[int, Field(ge=1, le=1_000_000)]
    servers: Count
    clients: Count
    batch: Count
    tok_s_per_gpu: Positive
    fitted: bool
    hardware: Name
    source: Annotated[str, Field(min_length=1)]


def shipped_suites() -> dict[str, list[Measurement]]:
    """Read the suites of rows that come with the package, by name."""
    others = (_ORDERS, _PIPELINES)
    files = sorted(path for path in _folder().glob("*.csv") if not path.name.startswith(others))
    return {path.stem: read_rows(path) for path in files if not path.name.endswith(_BREAKDOWN)}


def recognised(rows: Iterable[Measurement]) -> list[Measurement]:
    """Add what is known of rows that ship: the same run with the same result under any name.

    Whether it was fitted, and how decoding was measured, unless the row says so itself.
    """
    known = {_run(row): row for suite in shipped_suites().values() for row in suite}
    found = []
    for row in rows:
        same = known.get(_run(row))
        unsaid = {"fitted", "first_step"} - row.model_fields_set
        update = {name: getattr(same, name) for name in unsaid} if same else {}
        found.append(row.model_copy(update=update))
    return found


def _run(row: Measurement) -> str:
    """Write what identifies a run and its result."""
    return row.model_dump_json(exclude={"id", "fitted", "first_step", "hardware", "source"})


def shipped_orders() -> list[Order]:
    """Read the pairs of shipped rows whose order matters."""
    return read_table(_folder() / _ORDERS, Order)


def shipped_breakdowns() -> list[MeasuredBreakdown]:
    """Read the runs that come with the package whose time is broken down."""
    files = sorted(_folder().glob(f"*{_BREAKDOWN}"))
    return [stage for path in files for stage in read_table(path, MeasuredBreakdown)]


def shipped_pipelines() -> list[PipelineMeasurement]:
    """Read the runs of Petals that come with the package."""
    files = sorted(_folder().glob(f"{_PIPELINES}*.csv"))
    return [row for path in files for row in read_table(path, PipelineMeasurement)]


def _folder() -> Path:
    return Path(str(resources.files("planner").joinpath("published")))


def read_rows(path: Path) -> list[Measurement]:
    """Read measured rows.

    Raises:
        InputError: the file is no such table, a value is wrong, or two rows share their id.
    """
    rows = read_table(path, Measurement)
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.id in seen:
            where = one_line(f"{path}: row {number}, column id")
            raise InputError(f"{where}: {row.id!r} is the id of row {seen[row.id]} too; rename one")
        seen[row.id] = number
    return rows


def read_table(path: Path, record: type[RecordT]) -> list[RecordT]:
    """Read a CSV file with a header as records; lines that start with ``#`` are comments.

    Raises:
        InputError: one line with path, row, column, value and remedy.
    """
    lines = _lines(path)
    if not lines:
        raise InputError(one_line(f"{path}: the file is empty; its first line must name the columns"))
    (_, header), *body = lines
    _check_header(path, header, record)
    if not body:
        raise InputError(one_line(f"{path}: there is a header but no row below it; add rows"))
    rows = []
    for number, (line, cells) in enumerate(body, start=1):
        where = one_line(f"{path}: row {number} (line {line})")
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} values for {len(header)} columns; quote commas in text")
        rows.append(_decode(record, dict(zip(header, cells, strict=True)), where))
    return rows


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Split a file into cells, each line with its number; cells are on one line and without outer spaces."""
    text = read_text(path).removeprefix("\ufeff")  # spreadsheets put it there
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        lines = [(reader.line_num, [one_line(cell) for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise InputError(one_line(f"{path}: line {reader.line_num}: not CSV ({error}); correct it")) from None
    return [(number, cells) for number, cells in lines if any(cells) and not cells[0].startswith("#")]


def _check_header(path: Path, header: list[str], record: type[Record]) -> None:
    fields = record.model_fields
    missing = [name for name, field in fields.items() if field.is_required() and name not in header]
    if missing:
        raise InputError(
            one_line(f"{path}: the header lacks the column {', '.join(missing)}; add it to every row")
        )
    for name in header:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known columns: {', '.join(fields)}"
            raise InputError(one_line(f"{path}: unknown column {shortened(name)}; {hint}"))
        if header.count(name) > 1:
            raise InputError(one_line(f"{path}: the column {name} stands twice in the header; keep one"))


def _decode(record: type[RecordT], cells: dict[str, str], where: str) -> RecordT:
    try:
        # An empty cell of a column that may be left out is as if it were.
        required = {name for name, field in record.model_fields.items() if field.is_required()}
        return decode(record, {name: v for name, v in cells.items() if v or name in required}, where)
    except InputError as error:
        raise InputError(str(error).replace(f"{where}.", f"{where}, column ", 1)) from None
