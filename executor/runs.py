"""Runs: tensors that lie one behind the other in a file, and are read from it in one go, piece by piece.

A run is read as whole pages into staging memory and copied from there, without the rest of its first and last
page, to where it is used::

    file       |.page.|.page.|.page.|      staging: the same pages
                  [a ][b    ][c ]          slot:    [a ][b    ][c ]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from executor.aligned import PAGE, padded
from executor.arena import rounded
from executor.stored import Stored


@dataclass(frozen=True)
class Run:
    """Neighbours in a file: their bytes there, and the tensors with their names."""

    file: Path
    offset: int
    nbytes: int
    tensors: tuple[tuple[str, Stored], ...]

    @property
    def end(self) -> int:
        """The byte of the file behind it. [B]"""
        return self.offset + self.nbytes

    @property
    def pages(self) -> int:
        """Whole pages around the run."""
        return padded(self.offset, self.nbytes) // PAGE


def find_runs(tensors: Iterable[tuple[str, Stored]]) -> list[Run]:
    """Join tensors that lie one behind the other; tied ones (the same place) are one."""
    runs: list[Run] = []
    order = sorted(tensors, key=lambda item: (str(item[1].file), item[1].offset))
    for name, stored in order:
        last = runs[-1] if runs else None
        end = stored.offset + stored.nbytes
        if last is not None and last.file == stored.file and last.end in {stored.offset, end}:
            runs[-1] = Run(last.file, last.offset, end - last.offset, (*last.tensors, (name, stored)))
        else:
            runs.append(Run(stored.file, stored.offset, stored.nbytes, ((name, stored),)))
    return runs


@dataclass(frozen=True)
class Piece:
    """A part of a run: bytes of the file, where its first page lies in staging, where it goes in a slot."""

    file: Path
    offset: int
    nbytes: int
    staging: int
    slot: int


@dataclass(frozen=True)
class Placement:
    """Where runs lie in staging memory (at pages) and in a slot (aligned). [B]"""

    runs: tuple[Run, ...]
    staging: tuple[int, ...]
    slot: tuple[int, ...]
    staging_bytes: int
    slot_bytes: int

    @staticmethod
    def of(runs: Iterable[Run], slot_start: int = 0) -> Placement:
        """Put runs one behind the other; in the slot, tensors are as aligned as the file allows."""
        found = tuple(runs)
        staging, slot = [], []
        page, at = 0, slot_start
        for run in found:
            staging.append(page)
            slot.append(at)
            page += run.pages * PAGE
            at = rounded(at + run.nbytes)
        return Placement(found, tuple(staging), tuple(slot), page, at)

    def tensors(self) -> Iterator[tuple[str, Stored, int]]:
        """List all tensors with their places in the slot. [B]"""
        for run, at in zip(self.runs, self.slot, strict=True):
            for name, stored in run.tensors:
                yield name, stored, at + stored.offset - run.offset

    def staged(self) -> Iterator[tuple[str, Stored, int]]:
        """List all tensors with their places in staging memory. [B]"""
        for run, at in zip(self.runs, self.staging, strict=True):
            for name, stored in run.tensors:
                yield name, stored, at + run.offset % PAGE + stored.offset - run.offset

    def pieces(self, part: int, parts: int) -> Iterator[Piece]:
        """List what belongs to one of ``parts`` equal parts of all pages."""
        total = self.staging_bytes // PAGE
        first, stop = total * part // parts, total * (part + 1) // parts
        for run, staging, slot in zip(self.runs, self.staging, self.slot, strict=True):
            base = staging // PAGE
            low, high = max(first, base) - base, min(stop, base + run.pages) - base
            if low >= high:
                continue
            origin = run.offset - run.offset % PAGE
            begin = max(run.offset, origin + low * PAGE)
            end = min(run.offset + run.nbytes, origin + high * PAGE)
            yield Piece(run.file, begin, end - begin, staging + low * PAGE, slot + begin - run.offset)
