"""Tables of many plans: columns with words and units, rows of plain values."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from simulator.errors import InputError
from simulator.schema import Record
from simulator.units import one_line, shortened

Entry = str | bool | int | float | None
Row = dict[str, Entry]


class Column(Record):
    """A column of a table.

    Attributes:
        key: of its values in the rows.
        title: above it.
        unit: of its values.
        kind: how to sort it.
        brief: whether a row's summary has it; the others repeat what the plan's report says.
    """

    key: str
    title: str
    unit: str = ""
    kind: Literal["text", "number"] = "text"
    brief: bool = True

    @property
    def heading(self) -> str:
        """Give the title with the unit."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title


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
