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
    """The free pages of a pool, given out so that a table's pages are neighbours where there is room.

    The pool is divided into stripes, each long enough for the longest table. A new table begins a stripe of
    which no page is taken, if there is one, and grows within it. Nothing is reserved: a pool may have fewer
    pages than stripes for all tables would need, and a table without one takes what is free elsewhere.

    Args:
        name: for messages.
        pages: how many there are; one stripe, unless `divide` says otherwise.
        page_rows: tokens of a page.
    """

    def __init__(self, name: str, pages: int, page_rows: int) -> None:
        self.name, self.pages, self.page_rows = name, pages, page_rows
        self._free = bytearray(b"\1" * pages)  # 1 for every page that is free
        self.divide(pages * page_rows)

    def divide(self, rows: int) -> None:
        """Make stripes for tables of ``rows`` tokens at most; pages left over are a shorter one."""
        self._stripe = max(1, -(-rows // self.page_rows))
        starts = range(0, self.pages, self._stripe)
        self._left = [self._free.count(1, start, start + self._stripe) for start in starts]

    def grow(self, table: Table, rows: int) -> None:
        """Give a table pages enough for ``rows`` tokens.

        Raises:
            PlannerError: no page is free; the plan promised that there would be.
        """
        for missing in range(-(-rows // self.page_rows) - len(table.pages), 0, -1):
            page = self._choose(table.pages, missing)
            self._free[page] = 0
            self._left[page // self._stripe] -= 1
            table.pages.append(page)

    def release(self, table: Table) -> None:
        """Take all pages of a table back, once.

        The table keeps their numbers: its last stores may still be under way. They come before those of the
        pages' next owner, since lanes work in order.
        """
        if table.released:
            return
        table.released = True
        for page in table.pages:
            self._free[page] = 1
            self._left[page // self._stripe] += 1

    def _choose(self, pages: list[int], missing: int) -> int:
        """Find a free page for a table: the next one of its stripe, or one of the stripe with most left.

        Of that stripe's longest run a new table takes the first page, to have room behind it; one that grows
        begins as near the end as its missing pages allow, which whoever grows into the run reaches last.
        """
        if pages:
            after = pages[-1] + 1
            if after % self._stripe and self._free.startswith(b"\1", after):
                return after
        most = max(self._left, default=0)
        if not most:
            raise PlannerError(
                f"internal error: no page of the {self.name} cache is free ({self.pages} in all)"
            )
        start = self._left.index(most) * self._stripe
        run = max(self._free[start : start + self._stripe].split(b"\0"), key=len)
        first = self._free.index(run, start)
        return first + max(0, len(run) - missing) if pages else first
