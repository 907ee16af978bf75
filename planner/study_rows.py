"""The table of a study: one row a cell, with what was asked, what came of it, and its figures.

Figures of a mix are of all its parts together; what only a single plan has (policy, prices, what binds) is
that of the part that takes most of the time.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from planner.costs import Economics, running_cost
from planner.study_answer import Answer
from planner.study_cells import Cell, cell_key
from planner.study_figures import Entry, Planned, figures
from simulator.errors import InputError
from simulator.schema import Record
from simulator.units import one_line, shortened

Row = dict[str, Entry]
#: The column that names the file of a cell's answer.
KEY = "answer"

_QUANTITY = re.compile(r"\s*(x?)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z/$][\w/$]*)?\s*", re.ASCII)


class Column(Record):
    """A column: its key in files and charts, the words above it, its unit (None: not a number)."""

    key: str
    words: str
    unit: str | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows; an entry that a row does not have is None."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def column(self, key: str) -> Column:
        """Find a column by its key.

        Raises:
            InputError: there is none; the message names those that are there.
        """
        known = {column.key: column for column in self.columns}
        if key in known:
            return known[key]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"columns: {', '.join(known)}"
        raise InputError(one_line(f"charts: the table has no column {shortened(key)}; {hint}"))


def study_table(cells: Sequence[Cell], answers: Iterable[Answer], economics: Economics) -> Table:
    """Write one row for every cell, numbered from 0; answers are read one by one."""
    swept = _swept(cells)
    rows = tuple(
        _asked(number, cell, swept) | _answered(cell, reply, economics)
        for number, (cell, reply) in enumerate(zip(cells, answers, strict=True))
    )
    columns = [*_asked_columns(swept.values()), *_answer_columns()]
    kept = ("cell", "machine", "model", "workload", "status", "tok_s", "latency_s")
    return Table(
        tuple(each for each in columns if each.key in kept or _is_used(each.key, rows)),
        rows,
    )


def _is_used(key: str, rows: Sequence[Row]) -> bool:
    return any(row.get(key) is not None for row in rows)


def _answer_columns() -> Iterator[Column]:
    yield Column(key="status", words="status")
    yield Column(key="reason", words="reason")
    for figure in figures():
        yield Column(key=figure.key, words=figure.words, unit=figure.unit)
    yield Column(key=KEY, words="answer")


def _asked_columns(swept: Iterable[Column]) -> Iterator[Column]:
    yield Column(key="cell", words="cell", unit="")
    yield Column(key="machine", words="machine")
    yield Column(key="variant", words="variant")
    yield from swept
    yield Column(key="model", words="model")
    yield Column(key="workload", words="workload")
    yield Column(key="prompt_len", words="prompt", unit="tokens")
    yield Column(key="gen_len", words="output", unit="tokens")
    yield Column(key="runtime", words="engine")
    yield Column(key="quantize", words="4 bits for")
    yield Column(key="schedule", words="schedules")
    yield Column(key="fixed", words="pinned")
    yield Column(key="max_latency_s", words="latency limit", unit="s")


def _asked(number: int, cell: Cell, swept: dict[str, Column]) -> Row:
    work = cell.mix.single
    row: Row = {
        "cell": number,
        "machine": cell.machine,
        "variant": cell.variant,
        "model": cell.model.name,
        "workload": cell.mix.name,
        "prompt_len": work.prompt_len if work else None,
        "gen_len": work.gen_len if work else None,
        "runtime": cell.runtime.name,
        "quantize": cell.quantize,
        "schedule": cell.schedule,
        "fixed": " ".join(cell.fixed) or None,
        "max_latency_s": cell.max_latency,
    }
    for path, text in cell.swept.items():
        value, _ = _quantity(text)
        row[path] = text if value is None or swept[path].unit is None else value
    return row


def _swept(cells: Sequence[Cell]) -> dict[str, Column]:
    """Give every swept figure a column: of numbers where all its values have one unit, else of text."""
    units: dict[str, set[str | None]] = {}
    for cell in cells:
        for path, text in cell.swept.items():
            units.setdefault(path, set()).add(_quantity(text)[1])
    return {
        path: Column(key=path, words=path, unit=found.pop() if len(found) == 1 else None)
        for path, found in units.items()
    }


def _quantity(text: str) -> tuple[float | None, str | None]:
    """Split a quantity into its number and its unit; a factor is counted in times.

    >>> _quantity("512 GiB"), _quantity("x2"), _quantity("0.5"), _quantity("fast")
    ((512.0, 'GiB'), (2.0, 'times'), (0.5, ''), (None, None))
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None, None
    return float(match[2]), "times" if match[1] else match[3] or ""


def _answered(cell: Cell, reply: Answer, economics: Economics) -> Row:
    row: Row = {"status": reply.status, "reason": reply.reason, KEY: cell_key(cell)}
    if reply.plans:
        running = running_cost(cell.hardware.cost, economics)
        planned = Planned(reply.plans, running, cell.mix.serial)
        row |= {figure.key: figure.read(planned) for figure in figures()}
    return row
