"""The table of a study: one row a cell, with what was asked, what came of it, and its figures.

Figures of a mix are of all its parts together; what only a single plan has (policy, prices, what binds) is
that of the part that takes most of the time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from planner.costs import Economics, running_cost
from planner.study_answer import Answer
from planner.study_cells import Cell, cell_key
from planner.study_figures import Planned, figures
from planner.table import Column, Row, Table

#: The column that names the file of a cell's answer.
KEY = "answer"

_QUANTITY = re.compile(
    r"\s*(x?)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z/$][\w/$]*)?\s*", re.ASCII
)


def study_columns(cells: Sequence[Cell]) -> tuple[Column, ...]:
    """List the columns that the table of these cells may have."""
    return (*_asked_columns(_swept(cells).values()), *_answer_columns())


def study_table(
    cells: Sequence[Cell], answers: Iterable[Answer], economics: Economics, named: Collection[str] = ()
) -> Table:
    """Write one row for every cell, numbered from 0; answers are read one by one.

    Columns without any entry are left out, unless they are among those ``named``.
    """
    swept = _swept(cells)
    rows = tuple(
        _asked(number, cell, swept) | _answered(cell, reply, economics)
        for number, (cell, reply) in enumerate(zip(cells, answers, strict=True))
    )
    kept = {"cell", "machine", "model", "workload", "status", "tok_s", "latency_s", *named}
    columns = study_columns(cells)
    return Table(tuple(each for each in columns if each.key in kept or _is_used(each.key, rows)), rows)


def _is_used(key: str, rows: Sequence[Row]) -> bool:
    return any(row.get(key) is not None for row in rows)


def _answer_columns() -> Iterator[Column]:
    yield Column(key="status", title="status")
    yield Column(key="reason", title="reason")
    for figure in figures():
        yield figure.column
    yield Column(key=KEY, title="answer")


def _asked_columns(swept: Iterable[Column]) -> Iterator[Column]:
    yield Column(key="cell", title="cell", kind="number")
    yield Column(key="machine", title="machine")
    yield Column(key="variant", title="variant")
    yield from swept
    yield Column(key="model", title="model")
    yield Column(key="workload", title="workload")
    yield Column(key="prompt_len", title="prompt", unit="tokens", kind="number")
    yield Column(key="gen_len", title="output", unit="tokens", kind="number")
    yield Column(key="runtime", title="engine")
    yield Column(key="quantize", title="4 bits for")
    yield Column(key="schedule", title="schedules")
    yield Column(key="fixed", title="pinned")
    yield Column(key="max_latency_s", title="latency limit", unit="s", kind="number")


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
        row[path] = text if value is None or swept[path].kind == "text" else value
    return row


def _swept(cells: Sequence[Cell]) -> dict[str, Column]:
    """Give every swept figure a column: of numbers where all its values have one unit, else of text."""
    units: dict[str, set[str | None]] = {}
    for cell in cells:
        for path, text in cell.swept.items():
            units.setdefault(path, set()).add(_quantity(text)[1])
    return {
        path: Column(key=path, title=path, unit=found.pop() or "", kind="number")
        if len(found) == 1 and None not in found
        else Column(key=path, title=path)
        for path, found in units.items()
    }


def _quantity(text: str) -> tuple[float | None, str | None]:
    """Split a quantity into its number and its unit; a factor is counted in times.

    >>> _quantity("512 GiB"), _quantity("x2"), _quantity("0.5"), _quantity("fast")
    ((512.0, 'GiB'), (2.0, 'times'), (0.5, ''), (None, None))
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or not math.isfinite(float(match[2])):
        return None, None
    return float(match[2]), "times" if match[1] else match[3] or ""


def _answered(cell: Cell, reply: Answer, economics: Economics) -> Row:
    row: Row = {"status": reply.status, "reason": reply.reason, KEY: cell_key(cell)}
    if reply.plans:
        running = running_cost(cell.hardware.cost, economics)
        planned = Planned(reply.plans, running, cell.mix.serial)
        row |= {figure.key: figure.read(planned) for figure in figures()}
    return row
