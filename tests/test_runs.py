"""Runs: neighbours in a file become one read, and every byte comes once through staging to its slot."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.aligned import PAGE, wanted
from executor.arena import ALIGNMENT
from executor.runs import Piece, Placement, Run, find_runs
from executor.stored import Stored

Named = tuple[str, Stored]
FILES = (Path("a.safetensors"), Path("b.safetensors"))
#: What a tensor's bytes are: some of a vector, or of several pages.
sizes = st.one_of(st.integers(1, 300), st.integers(PAGE - 2, PAGE + 2), st.integers(1, 5 * PAGE))
gaps = st.one_of(st.just(0), st.just(0), st.integers(1, 100), st.integers(1, 3 * PAGE))


def stored(file: Path, offset: int, nbytes: int) -> Stored:
    """Describe bytes of a file."""
    return Stored(file, offset, nbytes, (nbytes,), torch.uint8, None)


@st.composite
def tensors(draw: st.DrawFn) -> list[Named]:
    """Draw tensors in two files with gaps between some of them, in any order; one may have two names."""
    found: list[Named] = []
    for file in FILES:
        at = 0
        for gap, nbytes in draw(st.lists(st.tuples(gaps, sizes), max_size=6)):
            found.append((f"{file.stem}{len(found)}", stored(file, at + gap, nbytes)))
            at += gap + nbytes
    twice = draw(st.booleans())
    if found and twice:
        found.append(("tied", draw(st.sampled_from(found))[1]))
    order: list[Named] = draw(st.permutations(found))
    return order


def content(each: Stored) -> torch.Tensor:
    """Give the bytes of a tensor: uint8."""
    return noise(each.file)[each.offset : each.offset + each.nbytes]


@cache
def noise(file: Path) -> torch.Tensor:
    """Give all bytes of a file, and what is behind its end."""
    random = torch.Generator().manual_seed(FILES.index(file))
    return torch.randint(0, 256, (60 * PAGE,), dtype=torch.uint8, generator=random)


@given(tensors())
def test_only_neighbours_are_joined(named: list[Named]) -> None:
    """Every tensor is in one run, that lies around it; runs have no gaps, and a gap between each other."""
    runs = find_runs(named)
    assert sorted(name for run in runs for name, _ in run.tensors) == sorted(name for name, _ in named)
    for run in runs:
        at = run.offset
        for _, each in run.tensors:
            assert each.file == run.file
            assert run.offset <= each.offset <= at  # behind what comes before, or tied to it
            at = max(at, each.offset + each.nbytes)
        assert at == run.offset + run.nbytes
    for one, two in pairwise(runs):
        assert one.file != two.file or one.offset + one.nbytes < two.offset


@given(tensors(), st.integers(0, 3).map(lambda lines: lines * ALIGNMENT))
def test_placement_has_room_for_all(named: list[Named], start: int) -> None:
    """Runs lie at pages in staging memory and aligned in a slot, one behind the other."""
    runs = find_runs(named)
    placement = Placement.of(runs, start)
    staging = [(at, at + run.pages * PAGE) for run, at in zip(runs, placement.staging, strict=True)]
    slot = [(at, at + run.nbytes) for run, at in zip(runs, placement.slot, strict=True)]
    for spans, unit, end in (
        (staging, PAGE, placement.staging_bytes),
        (slot, ALIGNMENT, placement.slot_bytes),
    ):
        assert all(first % unit == 0 for first, _ in spans)
        assert all(one[1] <= two[0] for one, two in pairwise(spans))
        assert not spans or spans[-1][1] <= end < spans[-1][1] + unit
    assert not slot or slot[0][0] == start
    assert placement.staging_bytes == sum(run.pages for run in runs) * PAGE


@given(tensors(), st.integers(1, 9))
def test_parts_cover_every_byte_once(named: list[Named], parts: int) -> None:
    """The pieces of all parts follow each other from the first byte of a run to its last, cut at pages."""
    placement = Placement.of(find_runs(named))
    pieces = [list(placement.pieces(part, parts)) for part in range(parts)]
    for run in placement.runs:
        mine = [each for part in pieces for each in part if _of(run, each)]
        assert mine[0].offset == run.offset
        assert all(one.offset + one.nbytes == two.offset for one, two in pairwise(mine))
        assert all(two.offset % PAGE == 0 for two in mine[1:])
        assert mine[-1].offset + mine[-1].nbytes == run.offset + run.nbytes
    assert sum(each.nbytes for part in pieces for each in part) == sum(run.nbytes for run in placement.runs)
    counts = [sum(-(-(each.offset % PAGE + each.nbytes) // PAGE) for each in part) for part in pieces]
    assert max(counts) - min(counts) <= 1  # pages


def _of(run: Run, piece: Piece) -> bool:
    return piece.file == run.file and run.offset <= piece.offset < run.offset + run.nbytes


@given(tensors(), st.integers(1, 9), st.integers(0, 2))
def test_bytes_come_to_their_tensors(named: list[Named], parts: int, lines: int) -> None:
    """Read as whole pages and copied as wanted, in any part's turn, every tensor has its bytes in both."""
    placement = Placement.of(find_runs(named), lines * ALIGNMENT)
    staging = torch.zeros(placement.staging_bytes, dtype=torch.uint8)
    slot = torch.full((placement.slot_bytes,), 0x5A, dtype=torch.uint8)
    for part in range(parts):
        for each in placement.pieces(part, parts):
            assert each.staging % PAGE == 0
            first = each.offset // PAGE * PAGE
            stop = -(-(each.offset + each.nbytes) // PAGE) * PAGE
            staging[each.staging : each.staging + stop - first] = noise(each.file)[first:stop]
            source = wanted(staging[each.staging :], each.offset, each.nbytes)
            slot[each.slot : each.slot + each.nbytes] = source
    assert (slot[: lines * ALIGNMENT] == 0x5A).all()  # what lies on the CPU comes there
    assert dict(_contents(placement.tensors(), slot)) == dict(named)
    assert dict(_contents(placement.staged(), staging)) == dict(named)


def _contents(places: Iterable[tuple[str, Stored, int]], memory: torch.Tensor) -> list[Named]:
    """Check the bytes of tensors in memory, and list them."""
    found = []
    for name, each, at in places:
        assert torch.equal(memory[at : at + each.nbytes], content(each))
        found.append((name, each))
    return found


def test_by_hand() -> None:
    """The picture of the module: three tensors in three pages, and one in a file of its own."""
    a, b, c = (
        stored(FILES[0], 3000, 2000),
        stored(FILES[0], 5000, 5000),
        stored(FILES[0], 10000, 100),
    )
    other = stored(FILES[1], 8192, 10)
    runs = find_runs([("c", c), ("other", other), ("b", b), ("a", a)])
    assert runs == [
        Run(FILES[0], 3000, 7100, (("a", a), ("b", b), ("c", c))),
        Run(FILES[1], 8192, 10, (("other", other),)),
    ]
    placement = Placement.of(runs, 64)
    assert placement.staging == (0, 3 * PAGE)
    assert placement.slot == (64, 64 + 7104)
    assert (placement.staging_bytes, placement.slot_bytes) == (4 * PAGE, 64 + 7104 + 64)
    assert [at for _, _, at in placement.tensors()] == [64, 2064, 7064, 7168]
    assert [at for _, _, at in placement.staged()] == [3000, 5000, 10000, 3 * PAGE]
    assert list(placement.pieces(0, 2)) == [Piece(FILES[0], 3000, 5192, 0, 64)]
    assert list(placement.pieces(1, 2)) == [
        Piece(FILES[0], 8192, 1908, 2 * PAGE, 64 + 5192),
        Piece(FILES[1], 8192, 10, 3 * PAGE, 7168),
    ]


def test_tied_tensors_are_one() -> None:
    """A tensor with two names is read once, and does not part its neighbours."""
    a, b = stored(FILES[0], 0, 100), stored(FILES[0], 100, 50)
    (run,) = find_runs([("a", a), ("tied", a), ("b", b)])
    assert (run.offset, run.nbytes, len(run.tensors)) == (0, 150, 3)
    assert [at for _, _, at in Placement.of([run]).tensors()] == [0, 0, 100]


def test_nothing_has_no_runs() -> None:
    """No tensors, no memory, no pieces."""
    placement = Placement.of(find_runs([]), 640)
    assert (placement.staging_bytes, placement.slot_bytes) == (0, 640)
    assert not list(placement.pieces(0, 1))
