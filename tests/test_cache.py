"""The cache of a run on paged homes: what was put in is found, in one piece if there are stripes enough."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.cache import CacheStore, Home, Rows
from executor.homes import Share
from executor.pages import PagePool
from executor.records import RecordForm

UNITS, WIDTH, LAYERS = 3, 4, 2

Key = tuple[int, int]  # a group and a layer
few = settings(max_examples=30)


def a_store(pages: int, page_rows: int, rows: int) -> CacheStore:
    """Make a cache with one home on the GPU; its memory is plain."""
    form = RecordForm(UNITS, WIDTH, torch.float32)
    memory = torch.zeros(pages * page_rows, form.nbytes, dtype=torch.uint8)
    home = Home(Share("gpu", "gpu", 0, UNITS), form, PagePool("gpu", pages, page_rows), memory)
    return CacheStore([home], [], [], rows)


def add(store: CacheStore, key: Key, first: int, stop: int) -> None:
    """Put rows into the cache as a task does: every element of a row tells whose it is and which."""
    store.grow(*key, stop)
    rows = torch.arange(first, stop, dtype=torch.float32)[None, :, None, None]
    keys = (100 * rows + 10 * key[0] + key[1]).expand(1, -1, UNITS, WIDTH)
    store.pack(Rows(*key, first, stop, range(UNITS)), keys, -keys, 0)


def pieces_of(store: CacheStore, key: Key, stop: int) -> int:
    """Count the pieces that the rows of a group lie in, after a look at every element."""
    home = store.homes[0]
    records = home.records(Rows(*key, 0, stop, range(UNITS)))
    keys, values = (torch.cat(part) for part in zip(*map(home.form.pair, records), strict=True))
    expected = (100 * torch.arange(stop) + 10 * key[0] + key[1])[:, None, None].expand(-1, UNITS, WIDTH)
    assert keys.tolist() == expected.tolist()
    assert values.tolist() == (-expected).tolist()
    return len(records)


@few
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 6), st.integers(1, 2))
def test_zig_zag_finds_one_piece(groups: int, page_rows: int, prompt: int, more: int, blocks: int) -> None:
    """Every group and layer of a block, pass by pass, with exactly the pages that all need at the end."""
    rows = prompt + more
    tables = [(group, layer) for layer in range(LAYERS) for group in range(groups)]
    store = a_store(len(tables) * -(-rows // page_rows), page_rows, rows)
    for _ in range(blocks):
        for done in range(prompt, rows + 1):
            for key in tables:
                add(store, key, 0 if done == prompt else done - 1, done)
            assert [pieces_of(store, key, done) for key in tables] == [1] * len(tables)
        store.forget()


@few
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3))
def test_diagonals_find_their_rows(groups: int, page_rows: int, prompt: int, every: int) -> None:
    """Groups begin one by one, with pages for what they hold together at most; all rows are found."""
    rows = prompt + groups * every - 1
    ages = range(every - 1, groups * every, every)  # just before the oldest group ends
    pages = LAYERS * sum(-(-(prompt + age) // page_rows) for age in ages)
    store = a_store(pages, page_rows, rows)
    for number in range(3 * groups * every):
        ages_now = {begun // every: number - begun for begun in range(0, number + 1, every)}
        for group, age in ages_now.items():
            for layer in range(LAYERS):
                if age == groups * every:
                    store.release(group, layer)
        for group, age in ages_now.items():
            for layer in range(LAYERS):
                if age < groups * every:
                    done = prompt + age
                    add(store, (group, layer), done - 1 if age else 0, done)
                    assert 1 <= pieces_of(store, (group, layer), done) <= -(-done // page_rows)


def test_by_hand() -> None:
    """Two groups of one layer in pages of two rows: the second leaves the first room to grow."""
    store = a_store(6, 2, 5)
    add(store, (0, 0), 0, 2)
    add(store, (1, 0), 0, 2)
    add(store, (0, 0), 2, 5)
    home = store.homes[0]
    assert [home.tables[group, 0].pages for group in (0, 1)] == [[0, 1, 2], [3]]
    assert pieces_of(store, (0, 0), 5) == 1
    (found,) = home.records(Rows(0, 0, 1, 4, range(UNITS)))
    assert found.shape == (3, home.form.nbytes)
    assert home.memory is not None
    assert found.data_ptr() == home.memory[1].data_ptr()  # a view, no copy
