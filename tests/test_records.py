"""Records: what is put in comes out, in every type and form, and their bytes are those on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.quantize import dequantize, quantize
from executor.records import Pair, RecordForm, cache_group
from simulator.model import stored_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
HEADS = [8, 16, 32, 64, 80, 96, 128]
few = settings(max_examples=40)


@st.composite
def forms(draw: st.DrawFn, bits: tuple[int, ...] = (16, 8, 4)) -> RecordForm:
    """Draw forms of records of 1 to 6 units."""
    head_dim = draw(st.sampled_from(HEADS))
    group = cache_group(head_dim, draw(st.sampled_from([8, 16, 64, 4096])))
    units, dtype = draw(st.integers(1, 6)), draw(st.sampled_from(DTYPES))
    return RecordForm(units, head_dim, dtype, draw(st.sampled_from(bits)), group)


def noise(form: RecordForm, tokens: int, seed: int) -> Pair:
    """Make keys and values [S,U,D]."""
    random = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(tokens, form.units, form.head_dim, generator=random) for _ in range(2))
    return keys.to(form.dtype), (3 * values + 5).to(form.dtype)


def empty(form: RecordForm, tokens: int) -> torch.Tensor:
    """Give records whose bytes are nothing in particular: uint8 [S,R]."""
    return torch.full((tokens, form.nbytes), 0x5A, dtype=torch.uint8)


def content(form: RecordForm, records: torch.Tensor) -> Pair:
    """Get keys and values [S,U,D] out of records."""
    if not form.quantized:
        return form.pair(records)
    found = [torch.zeros(len(records), form.units, form.head_dim, dtype=form.dtype) for _ in range(2)]
    form.expand(records, found[0], found[1])
    return found[0], found[1]


def expected(form: RecordForm, pair: Pair) -> Pair:
    """Say what comes back: the tensors, or what quantisation makes of each of their elements."""
    if not form.quantized:
        return pair
    keys, values = (dequantize(quantize(each, form.bits, form.group)) for each in pair)
    return keys, values


def same(one: Pair, two: Pair) -> bool:
    """Compare keys and values, every bit."""
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, two, strict=True))


tokens_of = st.integers(1, 5)
seeds = st.integers(0, 999)


@few
@given(forms(), tokens_of, seeds)
def test_what_is_filled_in_comes_out(form: RecordForm, tokens: int, seed: int) -> None:
    """Keys and values are the tensors themselves, or those that quantising and dequantising gives."""
    records, pair = empty(form, tokens), noise(form, tokens, seed)
    form.fill(records, *pair)
    assert same(content(form, records), expected(form, pair))


@few
@given(forms(), tokens_of, seeds, st.data())
def test_tokens_and_units_stand_alone(form: RecordForm, tokens: int, seed: int, data: st.DataObject) -> None:
    """Tokens one after the other, and some units before the others, make the same records as all at once."""
    pair = noise(form, tokens, seed)
    whole, parts = empty(form, tokens), empty(form, tokens)
    form.fill(whole, *pair)
    cut = data.draw(st.integers(0, form.units))
    for token in range(tokens):
        for first, stop in ((cut, form.units), (0, cut)):
            if stop > first:
                one = slice(token, token + 1)
                form.fill(parts[one], pair[0][one, first:stop], pair[1][one, first:stop], first)
    assert torch.equal(whole, parts)


@few
@given(forms(), tokens_of, seeds, st.data())
def test_parts_move_into_whole_records(form: RecordForm, tokens: int, seed: int, data: st.DataObject) -> None:
    """Records of some units alone, moved to their place, are as if filled in there; no other is touched."""
    pair = noise(form, tokens, seed)
    first = data.draw(st.integers(0, form.units - 1))
    stop = data.draw(st.integers(first + 1, form.units))
    alone = replace(form, units=stop - first)
    part, moved, filled = empty(alone, tokens), empty(form, tokens), empty(form, tokens)
    some = (pair[0][:, first:stop], pair[1][:, first:stop])
    alone.fill(part, *some)
    form.move(moved, part, alone.units, first)
    form.fill(filled, *some, first)
    assert torch.equal(moved, filled)


@few
@given(forms(), tokens_of, seeds)
def test_records_may_lie_in_a_larger_memory(form: RecordForm, tokens: int, seed: int) -> None:
    """Rows of a pool are written and read in place; the rows beside them are left alone."""
    pool, pair = empty(form, tokens + 4), noise(form, tokens, seed)
    form.fill(pool[3 : 3 + tokens], *pair)
    assert same(content(form, pool[3 : 3 + tokens]), expected(form, pair))
    assert (pool[:3] == 0x5A).all()
    assert (pool[3 + tokens :] == 0x5A).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles_are_as_one(bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expanding some rows at a time changes nothing."""
    form = RecordForm(3, 16, dtype, bits, 8)
    records, pair = empty(form, 11), noise(form, 11, 1)
    form.fill(records, *pair)
    monkeypatch.setattr("executor.records._TILE", 4 * form.nbytes)
    assert same(content(form, records), expected(form, pair))


@given(forms())
def test_bytes_are_those_on_paper(form: RecordForm) -> None:
    """Keys and values of every unit: elements as they are, or codes with a scale and a minimum a group."""
    elements = 2 * form.units * form.head_dim
    if form.quantized:
        assert form.nbytes == elements * form.bits // 8 + elements // form.group * 4
        assert form.nbytes == pytest.approx(elements * stored_bits(form.bits, form.group) / 8)
    else:
        assert form.nbytes == elements * form.dtype.itemsize
    assert form.nbytes == sum(plane.shape[-1] for plane in form.planes(empty(form, 1))) * form.units
    assert form.unit_bytes * 2 * form.units == form.nbytes


@given(st.integers(1, 256).map(lambda half: 2 * half), st.integers(8, 4096))
def test_groups_of_a_head(head_dim: int, group: int) -> None:
    """A group is even, parts the head evenly, is not above what was asked for, and no larger one is."""
    found = cache_group(head_dim, group)
    assert found % 2 == head_dim % found == 0
    assert found <= group
    assert not any(
        head_dim % larger == larger % 2 == 0 for larger in range(found + 1, min(group, head_dim) + 1)
    )


def test_groups_by_hand() -> None:
    """Whole heads, halves and thirds of them; of twice a prime, pairs."""
    asked = [(8, 64), (64, 64), (80, 64), (96, 64), (128, 64), (128, 4096), (128, 100), (134, 64)]
    assert [cache_group(*each) for each in asked] == [8, 64, 40, 48, 64, 128, 64, 2]


def test_plain_by_hand() -> None:
    """Two units of two elements, two tokens: keys of all units, then values."""
    form = RecordForm(2, 2, torch.float16)
    keys = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.float16)
    records = empty(form, 2)
    form.fill(records, keys, 10 * keys)
    assert records.view(torch.float16).tolist() == [
        [1, 2, 3, 4, 10, 20, 30, 40],
        [5, 6, 7, 8, 50, 60, 70, 80],
    ]
    form.pair(records)[1][1, 0] = 0  # it is a view
    assert records.view(torch.float16)[1].tolist() == [5, 6, 7, 8, 0, 0, 70, 80]


def test_quantised_by_hand() -> None:
    """Two units of four elements in four bits, groups of two: scales, minima, codes; keys before values."""
    form = RecordForm(2, 4, torch.float16, bits=4, group=2)
    keys = torch.tensor([[[0, 15, 10, 40], [3, 3, 1, 8.5]]], dtype=torch.float16)
    values = torch.tensor([[[1, 16, 11, 41], [4, 4, 2, 9.5]]], dtype=torch.float16)
    records = empty(form, 1)
    form.fill(records, keys, values)
    assert form.nbytes == 2 * 2 * (4 + 4 + 2)
    sides = records[0].view(torch.float16)
    assert sides[:8].tolist() == [1, 2, 0, 0.5, 0, 10, 3, 1]
    assert records[0, 16:20].tolist() == [0, 255, 0, 240]
    assert sides[10:18].tolist() == [1, 2, 0, 0.5, 1, 11, 4, 2]
    assert records[0, 36:40].tolist() == [0, 255, 0, 240]
    assert same(content(form, records), (keys, values))
