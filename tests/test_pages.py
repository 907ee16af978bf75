"""Pages of cache: none has two owners, none is lost, neighbours stay together where there is room."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from executor.pages import PagePool, Segment, Table
from simulator.errors import PlannerError

page_rows_of = st.integers(1, 5)


def pages_for(rows: int, page_rows: int) -> int:
    """Count the pages that so many rows take."""
    return -(-rows // page_rows)


def longest(pages: set[int]) -> list[list[int]]:
    """Give the longest runs of neighbours among pages, in order."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and runs[-1][-1] + 1 == page:
            runs[-1].append(page)
        else:
            runs.append([page])
    return [run for run in runs if len(run) == max(map(len, runs))]


def neighbours(table: Table) -> bool:
    """Whether all pages of a table lie one behind the other."""
    return all(two == one + 1 for one, two in pairwise(table.pages))


class Pool(RuleBasedStateMachine):
    """Groups that grow, one row or many at a time, and end, in any order; the pool has room for all of it."""

    tables = Bundle("tables")
    ended = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.size, self.page_rows, self.stripe = 24, 3, 24
        self.pool = PagePool("gpu", self.size, self.page_rows)
        self.live: list[Table] = []

    @initialize(stripe=st.integers(1, 30))
    def divide(self, stripe: int) -> None:
        """Make stripes; the pool need not be a whole number of them, nor have one."""
        self.stripe = stripe
        self.pool.divide(stripe * self.page_rows)

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
        self._in_their_places(before, table.pages[len(before) :], set(free))

    def _in_their_places(self, before: list[int], new: list[int], free: set[int]) -> None:
        """Check one page after the other: the neighbour in the stripe, else one where most is left."""
        last = before[-1] if before else None
        for number, page in enumerate(new):
            assert page in free
            if last is not None and last + 1 in free and (last + 1) % self.stripe:
                assert page == last + 1
            else:
                starts = range(0, self.size, self.stripe)
                stripes = [free.intersection(range(start, start + self.stripe)) for start in starts]
                chosen = stripes[page // self.stripe]
                assert len(chosen) == max(map(len, stripes))
                missing = 0 if last is None else len(new) - number
                assert page in [(run[-missing:] if missing else run)[0] for run in longest(chosen)]
            last = page
            free.remove(page)

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
        """Find every page again: stripes are whole, and one table after the other is a piece."""
        for table in self.live:
            self.pool.release(table)
        again = [Table() for _ in range(0, self.size, self.stripe)]
        for number, table in enumerate(again):
            self.pool.grow(table, min(self.stripe, self.size - number * self.stripe) * self.page_rows)
        assert [page for table in again for page in table.pages] == list(range(self.size))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 5), page_rows_of, st.data())
def test_as_many_tables_as_stripes_are_pieces(
    tables: int, stripe: int, over: int, page_rows: int, data: st.DataObject
) -> None:
    """Whoever finds a stripe stays in one piece, in any order of growing, ending and beginning again."""
    pool = PagePool("cpu", tables * stripe + min(over, stripe - 1), page_rows)
    pool.divide(stripe * page_rows)
    live = [Table() for _ in range(tables)]
    for number, pages in data.draw(
        st.lists(st.tuples(st.integers(0, tables - 1), st.integers(0, stripe)), max_size=40)
    ):
        if pages <= len(live[number].pages):
            pool.release(live[number])
            live[number] = Table()
        pool.grow(live[number], pages * page_rows)
        assert neighbours(live[number])
        assert not live[number].pages or live[number].pages[0] % stripe == 0


@given(st.integers(1, 6), st.integers(1, 5), page_rows_of, st.data())
def test_zig_zag_is_one_piece_a_table(tables: int, stripe: int, page_rows: int, data: st.DataObject) -> None:
    """All tables grow to their full length, pass by pass, in a pool that they fill; block after block."""
    pool, rows = PagePool("cpu", tables * stripe, page_rows), stripe * page_rows
    pool.divide(data.draw(st.integers(rows - page_rows + 1, rows)))  # a last page need not be full
    prompt = data.draw(st.integers(1, rows))
    for _ in range(2):
        block = [Table() for _ in range(tables)]
        for done in range(prompt, rows + 1):
            for table in data.draw(st.permutations(block)):
                pool.grow(table, done)
                assert [one.row for one in table.segments(0, done, page_rows)] == [0]
        assert sorted(page for table in block for page in table.pages) == list(range(tables * stripe))
        for table in data.draw(st.permutations(block)):
            pool.release(table)


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
    """Pages of four rows, stripes of three and one of two: two groups at home, and two guests."""
    pool = PagePool("gpu", 8, 4)
    pool.divide(12)
    one, two, guest, last = (Table() for _ in range(4))
    pool.grow(one, 5)  # two pages
    pool.grow(two, 4)
    pool.grow(one, 9)
    assert (one.pages, two.pages) == ([0, 1, 2], [3])
    pool.grow(guest, 4)  # no stripe is whole: of the two pages left in two's and in the last one, the first
    assert guest.pages == [4]
    pool.grow(guest, 8)
    pool.grow(two, 8)  # its neighbour is taken: the last page of the short stripe
    assert (two.pages, guest.pages) == ([3, 7], [4, 5])
    assert list(two.segments(0, 8, 4)) == [Segment(12, 0, 4), Segment(28, 4, 4)]
    assert list(guest.segments(2, 7, 4)) == [Segment(18, 2, 5)]
    pool.release(one)
    pool.grow(guest, 16)  # two pages, of the whole stripe's end
    assert guest.pages == [4, 5, 1, 2]
    pool.release(guest)
    pool.grow(last, 12)  # the stripe has all its pages again
    assert last.pages == [0, 1, 2]


def test_a_pool_without_pages() -> None:
    """Of nothing nothing can be taken, and nothing is no page."""
    pool, table = PagePool("disk", 0, 8), Table()
    pool.grow(table, 0)
    pool.release(table)
    with pytest.raises(PlannerError, match="no page of the disk cache is free"):
        pool.grow(Table(), 1)
