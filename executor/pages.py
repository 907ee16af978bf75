"""Pages of cache: a pool of equal pages, and a table of pages for every group and layer.

A page holds the records (keys and values) of so many tokens of all sequences of a group that lie on a tier.
Sequences of a group advance together, so they share a table; a group takes pages as its sequences grow and
gives them back when the last of its sequences is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from simulator.errors import PlannerError


@dataclass(frozen=True)
class Segment:
    """Rows that lie one behind the other in a pool: where they begin there, and in the group's cache."""

    at: int
    row: int
    rows: int


@dataclass
class Table:
    """The pages of one group and layer, in the order of its tokens."""

    pages: list[int] = field(default_factory=list)
    released: bool = False

    def segments(self, first: int, stop: int, page_rows: int) -> Iterator[Segment]:
        """List rows ``first`` to ``stop`` as runs of neighbours in the pool."""
        row = first
        while row < stop:
            number = row // page_rows
            last = number
            while (last + 1) * page_rows < stop and self.pages[last + 1] == self.pages[last] + 1:
                last += 1
            rows = min(stop, (last + 1) * page_rows) - row
            yield Segment(self.pages[number] * page_rows + row % page_rows, row, rows)
            row += rows


class PagePool:
    """The free pages of a pool; neighbours are given out where there are any.

    Args:
        name: for messages.
        pages: how many there are.
        page_rows: tokens of a page.
    """

    def __init__(self, name: str, pages: int, page_rows: int) -> None:
        self.name, self.pages, self.page_rows = name, pages, page_rows
        self._free = [(0, pages)] if pages else []  # runs as (first, count), in order

    def grow(self, table: Table, rows: int) -> None:
        """Give a table pages enough for ``rows`` tokens.

        Raises:
            PlannerError: no page is free; the plan promised that there would be.
        """
        missing = -(-rows // self.page_rows) - len(table.pages)
        while missing > 0:
            first, count = self._run(missing, table.pages[-1] + 1 if table.pages else -1)
            table.pages += range(first, first + count)
            missing -= count

    def release(self, table: Table) -> None:
        """Take all pages of a table back, once.

        The table keeps their numbers: its last stores may still be under way. They come before those of the
        pages' next owner, since lanes work in order.
        """
        if table.released:
            return
        table.released = True
        runs = sorted([*self._free, *((page, 1) for page in table.pages)])
        merged: list[tuple[int, int]] = []
        for first, count in runs:
            if merged and sum(merged[-1]) == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + count)
            else:
                merged.append((first, count))
        self._free = merged

    def _run(self, wanted: int, after: int) -> tuple[int, int]:
        """Take the pages behind ``after``, or the shortest run that is long enough, or the longest."""
        if not self._free:
            raise PlannerError(
                f"internal error: no page of the {self.name} cache is free ({self.pages} in all)"
            )
        runs = self._free
        index = next((i for i, (first, _) in enumerate(runs) if first == after), None)
        if index is None:
            enough = [i for i, (_, count) in enumerate(runs) if count >= wanted]
            index = (
                min(enough, key=lambda i: runs[i][1])
                if enough
                else max(range(len(runs)), key=lambda i: runs[i][1])
            )
        first, count = runs[index]
        taken = min(wanted, count)
        runs[index : index + 1] = [(first + taken, count - taken)] if count > taken else []
        return first, taken
