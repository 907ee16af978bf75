"""The shares of the KV cache on the disk: records are read into staging memory, and written from slots.

A page of the pool begins at a page of the disk. Where a pool's page is whole pages of the disk, records lie
there as in memory, and a run of pages is one transfer; otherwise every page goes through a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from executor.aligned import PAGE, aligned, padded
from executor.cache import Home, NewRecords, Rows
from executor.direct_io import ScratchFile
from executor.pages import Segment
from executor.read_pool import ReadPool


def _pages(nbytes: int) -> int:
    return padded(0, nbytes)


@dataclass(frozen=True)
class _Place:
    """Where a home lies in the file, and between two of its pages. [B]"""

    base: int
    stride: int
    whole: bool


class CacheDisk:
    """The homes on the disk.

    Args:
        homes: the shares on the disk.
        folder: where the file is made.
        staging: on the CPU, all rows of the homes, uint8, one tensor a slot; see `staging_bytes`.
        writing: on the CPU, new records on their way to the disk; see `writing_bytes`.
        newest: on the CPU, the newest records of homes that the CPU attends to; one a cell in flight.
        rows: tokens of a sequence at most.
        pool: the threads that read and write.
    """

    def __init__(
        self,
        homes: list[Home],
        folder: Path,
        staging: list[torch.Tensor],
        writing: list[torch.Tensor],
        newest: list[torch.Tensor],
        rows: int,
        pool: ReadPool,
    ) -> None:
        self.homes = homes
        self._staging, self._writing, self._newest, self._pool = staging, writing, newest, pool
        self._place: dict[Home, _Place] = {}
        self._area: dict[Home, int] = {}
        base = area = 0
        for home in homes:
            nbytes = home.pool.page_rows * home.form.nbytes
            place = _Place(base, _pages(nbytes), nbytes % PAGE == 0)
            self._place[home], self._area[home] = place, area
            base += home.pool.pages * place.stride
            area += _pages(rows * home.form.nbytes)
        self.file = ScratchFile(folder, base)

    def close(self) -> None:
        """Close the file, which has no name, so it is gone."""
        self.file.close()

    def read(self, rows: Rows, slot: int) -> int:
        """Read rows of all homes into staging memory; give their bytes. [B]"""
        futures, moved = [], 0
        for home in self.homes:
            for offset, segment in self._pieces(home, rows):
                nbytes = segment.rows * home.form.nbytes
                target = self._staging[slot][self._area[home] + segment.row * home.form.nbytes :]
                moved += nbytes
                if self._place[home].whole:
                    futures.append(self._pool.submit(self.file, target, offset, nbytes))
                else:
                    buffer = aligned(_pages(nbytes))
                    target[:nbytes].copy_(self._pool.submit(self.file, buffer, offset, nbytes).result())
        for future in futures:
            future.result()
        return moved

    def staged(self, home: Home, rows: int, slot: int) -> torch.Tensor:
        """Look at the first rows of a home in staging memory: uint8 [S,R]."""
        start = self._area[home]
        return self._staging[slot][start : start + rows * home.form.nbytes].view(rows, home.form.nbytes)

    def put(self, rows: Rows, new: list[NewRecords], slot: int) -> int:
        """Copy new records from the GPU to where they are written from; give their bytes. [B]"""
        for one, records in zip(new, self._areas(rows, [each.home for each in new], slot), strict=True):
            one.home.form.move(records, one.records, len(one.units), one.first)
        return sum(one.records.numel() for one in new)

    def keep(self, new: list[NewRecords], cell: int) -> None:
        """Keep the newest records where the CPU finds them, for it may be late. uint8 [1,r] each"""
        for one in new:
            if one.home.share.engine == "cpu":
                one.home.form.move(self._kept(one.home, cell), one.records, len(one.units), one.first)

    def complete(self, rows: Rows, slot: int, cell: int) -> None:
        """Put the newest records behind those that were read."""
        for home in self.homes:
            if home.share.engine == "cpu":
                self.staged(home, rows.stop, slot)[rows.first :].copy_(self._kept(home, cell))

    def write(self, rows: Rows, slot: int) -> int:
        """Write new records from a slot; give their bytes. [B]"""
        homes = [home for home in self.homes if home.share.within(rows.units.start, rows.units.stop)]
        futures, moved = [], 0
        for home, records in zip(homes, self._areas(rows, homes, slot), strict=True):
            for offset, segment in self._pieces(home, rows):
                part = records[segment.row - rows.first :][: segment.rows]
                moved += part.numel()
                if self._place[home].whole:
                    buffer = self._around(part, offset, slot)
                else:
                    buffer = aligned(padded(offset, part.numel()))
                    buffer[offset % PAGE :][: part.numel()].copy_(part.flatten())
                futures.append(self._pool.write(self.file, buffer, offset, part.numel()))
        for future in futures:
            future.result()
        return moved

    def _kept(self, home: Home, cell: int) -> torch.Tensor:
        """Look at the newest record of a home: uint8 [1,R]."""
        at = 0
        for other in self.homes:
            if other is home:
                break
            at += other.form.nbytes * (other.share.engine == "cpu")
        return self._newest[cell][at : at + home.form.nbytes].view(1, -1)

    def _pieces(self, home: Home, rows: Rows) -> Iterator[tuple[int, Segment]]:
        """List what can be transferred in one go, with its place in the file. [B]"""
        place, page_rows, size = self._place[home], home.pool.page_rows, home.form.nbytes
        for segment in home.segments(rows):
            row, at, left = segment.row, segment.at, segment.rows
            while left:
                count = left if place.whole else min(left, page_rows - at % page_rows)
                yield (
                    place.base + at // page_rows * place.stride + at % page_rows * size,
                    Segment(at, row, count),
                )
                row, at, left = row + count, at + count, left - count

    def _areas(self, rows: Rows, homes: list[Home], slot: int) -> Iterator[torch.Tensor]:
        """Cut a slot into records of homes, placed in their pages as in the file: uint8 [T,R] each."""
        at = 0
        for home in homes:
            offset, _ = next(self._pieces(home, rows))
            start, nbytes = at + offset % PAGE, rows.count * home.form.nbytes
            yield self._writing[slot][start : start + nbytes].view(rows.count, home.form.nbytes)
            at += _pages(offset % PAGE + nbytes)

    def _around(self, part: torch.Tensor, offset: int, slot: int) -> torch.Tensor:
        """Give the pages of a slot around a part of it that is to be written at ``offset``. [B]"""
        memory = self._writing[slot]
        start = part.data_ptr() - memory.data_ptr() - offset % PAGE
        return memory[start : start + padded(offset, part.numel())]


def staging_bytes(homes: list[Home], rows: int) -> int:
    """Give the size of staging memory for all rows of homes on the disk. [B]"""
    return sum(_pages(rows * home.form.nbytes) for home in homes)


def writing_bytes(homes: list[Home], rows: int, units: int) -> int:
    """Give the size of a slot for new records of ``units`` units (of all homes) and ``rows`` tokens. [B]"""
    some = [home for home in homes if home.share.first < units]
    return sum(_pages(rows * home.form.nbytes) + PAGE for home in some)


def newest_bytes(homes: list[Home]) -> int:
    """Give the size of the newest records that are kept for the CPU. [B]"""
    return sum(home.form.nbytes for home in homes if home.share.engine == "cpu")
