"""Pages of cache: none has two owners, none is lost, neighbours stay together where there is room."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from executor.pages import PagePool, Segment, Table
from simulator.errors import PlannerError

page_rows_of = st.integers(1, 5)


def pages_for(rows: int, page_rows: int) -> int:
    """Count the pages that so many rows take."""
    return -(-rows // page_rows)


def runs(pages: list[int]) -> list[tuple[int, int]]:
    """Give a sorted list of pages as runs of neighbours: first and count."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found


class Pool(RuleBasedStateMachine):
    """Groups that grow, one row or many at a time, and end, in any order; the pool has room for all of it."""

    tables = Bundle("tables")
    ended = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.size, self.page_rows = 24, 3
        self.pool = PagePool("gpu", self.size, self.page_rows)
        self.live: list[Table] = []

    @property
    def free(self) -> list[int]:
        """Pages that no table owns."""
        held = {page for table in self.live for page in table.pages}
        return [page for page in range(self.size) if page not in held]

    @rule(target=tables)
    def begin(self) -> Table:
        """Begin a group."""
        self.live.append(Table())
        return self.live[-1]

    @rule(table=tables, data=st.data())
    def grow(self, table: Table, data: st.DataObject) -> None:
        """Grow to any rows that there is room for; what the table has stays where it is."""
        before, free = list(table.pages), self.free
        room = (len(before) + len(free)) * self.page_rows
        rows = data.draw(st.integers(0, min(room, (len(before) + 6) * self.page_rows)))
        self.pool.grow(table, rows)
        assert table.pages[: len(before)] == before
        assert len(table.pages) == max(len(before), pages_for(rows, self.page_rows))
        new = table.pages[len(before) :]
        if new:
            self._together(before, new, free)

    def _together(self, before: list[int], new: list[int], free: list[int]) -> None:
        """Check that pages are the next ones, else of the shortest run that is enough, or the longest."""
        assert set(new) <= set(free)
        counts = dict(runs(free))
        if before and before[-1] + 1 in counts:
            assert new[0] == before[-1] + 1
        elif any(count >= len(new) for count in counts.values()):
            assert new == list(range(new[0], new[0] + len(new)))
            assert counts[new[0]] == min(count for count in counts.values() if count >= len(new))
        else:
            assert counts[new[0]] == max(counts.values())

    @precondition(lambda self: self.live)
    @rule(table=consumes(tables), target=ended)
    def end(self, table: Table) -> Table:
        """End a group; its last stores still find their places."""
        pages = list(table.pages)
        self.pool.release(table)
        assert table.pages == pages
        self.live = [one for one in self.live if one is not table]
        return table

    @rule(table=ended)
    def end_again(self, table: Table) -> None:
        """Nothing is given back twice, whoever owns the pages now: the invariants stay true."""
        self.pool.release(table)

    @rule(table=tables)
    def ask_too_much(self, table: Table) -> None:
        """One row more than there is room for is refused; the table owns what it got before it ends."""
        with pytest.raises(PlannerError, match=r"no page of the gpu cache is free \(24 in all\)"):
            self.pool.grow(table, (len(table.pages) + len(self.free)) * self.page_rows + 1)
        assert not self.free

    @invariant()
    def nothing_is_shared(self) -> None:
        """All pages of all tables are different, and are pages of the pool."""
        held = [page for table in self.live for page in table.pages]
        assert len(held) == len(set(held))
        assert all(0 <= page < self.size for page in held)

    def teardown(self) -> None:
        """Find every page again: one table can own all, in order."""
        for table in self.live:
            self.pool.release(table)
        everything = Table()
        self.pool.grow(everything, self.size * self.page_rows)
        assert everything.pages == list(range(self.size))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(
    st.lists(st.integers(0, 40), unique=True, min_size=1),
    page_rows_of,
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_segments_cover_what_is_asked_for(pages: list[int], page_rows: int, cuts: list[float]) -> None:
    """Every row once and in order, where its page says; pieces end only where the neighbour is another's."""
    first, stop = (round(cut * len(pages) * page_rows) for cut in cuts)
    segments = list(Table(pages).segments(first, stop, page_rows))
    assert [row for each in segments for row in range(each.row, each.row + each.rows)] == [
        *range(first, stop)
    ]
    for each in segments:
        places = [
            pages[row // page_rows] * page_rows + row % page_rows
            for row in range(each.row, each.row + each.rows)
        ]
        assert places == list(range(each.at, each.at + each.rows))
    assert all(one.at + one.rows != two.at for one, two in pairwise(segments))


@given(st.integers(1, 30), page_rows_of, st.integers(0, 200))
def test_an_empty_pool_gives_one_run(pages: int, page_rows: int, rows: int) -> None:
    """With all pages free, a table is one piece, whatever it grows to."""
    table, rows = Table(), min(rows, pages * page_rows)
    PagePool("cpu", pages, page_rows).grow(table, rows)
    assert len(list(table.segments(0, rows, page_rows))) == bool(rows)


@given(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6), page_rows_of)
def test_growing_alone_is_growing_at_once(pages: int, steps: list[int], page_rows: int) -> None:
    """A table whose neighbours are free takes the same pages row by row."""
    slowly, at_once, rows = Table(), Table(), sum(steps)
    size = pages_for(rows, page_rows) + pages
    pool, done = PagePool("gpu", size, page_rows), 0
    for step in steps:
        done += step
        pool.grow(slowly, done)
    PagePool("gpu", size, page_rows).grow(at_once, rows)
    assert slowly.pages == at_once.pages


def test_by_hand() -> None:
    """Pages of four rows: two groups side by side, a third that fills the gaps."""
    pool = PagePool("gpu", 6, 4)
    one, two, three = Table(), Table(), Table()
    pool.grow(one, 5)  # two pages
    pool.grow(two, 4)
    pool.grow(one, 9)  # its neighbour is taken: the next free page
    assert (one.pages, two.pages) == ([0, 1, 3], [2])
    assert list(one.segments(0, 9, 4)) == [Segment(0, 0, 8), Segment(12, 8, 1)]
    assert list(one.segments(6, 10, 4)) == [Segment(6, 6, 2), Segment(12, 8, 2)]
    pool.release(two)
    pool.grow(three, 4)  # the shortest run that is long enough
    assert three.pages == [2]
    pool.grow(three, 8)  # its neighbour is taken
    assert list(three.segments(2, 7, 4)) == [Segment(10, 2, 2), Segment(16, 4, 3)]
    pool.release(one)
    pool.grow(three, 16)  # page 5 behind it, then page 3 alone rather than one of 0 and 1
    assert three.pages == [2, 4, 5, 3]


def test_a_pool_without_pages() -> None:
    """Of nothing nothing can be taken, and nothing is no page."""
    pool, table = PagePool("disk", 0, 8), Table()
    pool.grow(table, 0)
    pool.release(table)
    with pytest.raises(PlannerError, match="no page of the disk cache is free"):
        pool.grow(Table(), 1)
