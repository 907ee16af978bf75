"""The KV cache in memory: every share of a group's units with its pages, and its way between the tiers.

Row r of a group's cache holds the r-th token of all its sequences: prompts fill the first rows, shorter ones
with rows behind them that are never attended to, and every pass after that adds one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from executor.arena import rounded
from executor.homes import Share
from executor.pages import PagePool, Segment, Table
from executor.records import RecordForm


@dataclass(frozen=True)
class Rows:
    """A piece of the cache: of a group and layer, rows ``first`` to ``stop``, units in a range."""

    group: int
    layer: int
    first: int
    stop: int
    units: range

    @property
    def count(self) -> int:
        """Tokens."""
        return self.stop - self.first


@dataclass(eq=False)
class Home:
    """A share of the cache, its pool of pages, and the tables of groups and layers.

    ``memory`` holds the records of all pages, uint8 [rows, R]; of a share on the disk it is None.
    """

    share: Share
    form: RecordForm
    pool: PagePool
    memory: torch.Tensor | None = None
    tables: dict[tuple[int, int], Table] = field(default_factory=dict)

    def segments(self, rows: Rows) -> Iterator[Segment]:
        """List where rows lie."""
        return self.tables[rows.group, rows.layer].segments(rows.first, rows.stop, self.pool.page_rows)

    def records(self, rows: Rows) -> list[torch.Tensor]:
        """Look at rows in memory: uint8 [S,R], in as many pieces as there are runs of pages: mostly one."""
        assert self.memory is not None
        return [self.memory[one.at : one.at + one.rows] for one in self.segments(rows)]


@dataclass(frozen=True)
class NewRecords:
    """Records in a slot of new ones: of some units of a home, with what they hold. uint8 [T,r]"""

    home: Home
    units: range
    records: torch.Tensor

    @property
    def first(self) -> int:
        """The first of the units within the home."""
        return self.units.start - self.home.share.first


class CacheStore:
    """The cache of a run.

    Args:
        homes: the shares of a group.
        slots: on the GPU, all rows of the streamed shares of a group; uint8, one tensor a slot.
        new: on the GPU, new records that leave it; uint8, one tensor a slot.
        rows: tokens of a sequence at most.
    """

    def __init__(
        self, homes: list[Home], slots: list[torch.Tensor], new: list[torch.Tensor], rows: int
    ) -> None:
        self.homes = homes
        for home in homes:
            home.pool.divide(rows)
        self._new = new
        streamed = [home for home in homes if home.share.tier != "gpu" and home.share.engine == "gpu"]
        self._slots = [dict(zip(streamed, _tables(slot, streamed, rows), strict=True)) for slot in slots]

    def grow(self, group: int, layer: int, rows: int) -> None:
        """Take pages for the first ``rows`` tokens of a group."""
        for home in self.homes:
            home.pool.grow(home.tables.setdefault((group, layer), Table()), rows)

    def release(self, group: int, layer: int) -> None:
        """Give the pages of a group back."""
        for home in self.homes:
            table = home.tables.get((group, layer))
            if table is not None:
                home.pool.release(table)

    def forget(self) -> None:
        """Give all pages back, when no task is under way."""
        for home in self.homes:
            for table in home.tables.values():
                home.pool.release(table)
            home.tables.clear()

    def new_records(self, rows: Rows, slot: int) -> Iterator[NewRecords]:
        """Go through the records that leave the GPU: those of the homes' units that ``rows`` names."""
        at = 0
        for home in self.homes:
            units = home.share.within(rows.units.start, rows.units.stop)
            if home.share.tier == "gpu" or not units:
                continue
            size = replace(home.form, units=len(units)).nbytes
            nbytes = rows.count * size
            yield NewRecords(home, units, self._new[slot][at : at + nbytes].view(rows.count, size))
            at = rounded(at + nbytes)

    def pack(self, rows: Rows, keys: torch.Tensor, values: torch.Tensor, slot: int) -> None:
        """Put new keys and values home on the GPU, or as records into a slot.

        Args:
            rows: their place; the units are those of the B sequences.
            keys: [B,T,K,D].
            values: likewise.
            slot: of new records.
        """
        keys, values = _by_tokens(keys), _by_tokens(values)
        for home in self.homes:
            units = home.share.within(rows.units.start, rows.units.stop)
            if home.share.tier == "gpu" and units:
                local = slice(units.start - rows.units.start, units.stop - rows.units.start)
                done = 0
                for records in home.records(rows):
                    part = slice(done, done + len(records))
                    first = units.start - home.share.first
                    home.form.fill(records, keys[part, local], values[part, local], first)
                    done = part.stop
        for new in self.new_records(rows, slot):
            local = slice(new.units.start - rows.units.start, new.units.stop - rows.units.start)
            replace(new.home.form, units=len(new.units)).fill(new.records, keys[:, local], values[:, local])

    def store(self, rows: Rows, slot: int) -> int:
        """Bring new records home to the CPU; give their bytes. [B]"""
        moved = 0
        for new in self.new_records(rows, slot):
            if new.home.share.tier == "cpu":
                done = 0
                for target in new.home.records(rows):
                    source = new.records[done : done + len(target)]
                    new.home.form.move(target, source, len(new.units), new.first)
                    done += len(target)
                moved += new.records.numel()
        return moved

    def load(self, rows: Rows, slot: int) -> int:
        """Copy records from the CPU into a slot; give their bytes. [B]"""
        moved = 0
        for home, table in self._slots[slot].items():
            if home.share.tier == "cpu":
                for segment, records in zip(home.segments(rows), home.records(rows), strict=True):
                    table[segment.row : segment.row + segment.rows].copy_(records, non_blocking=True)
                    moved += records.numel()
        return moved

    def load_from(self, home: Home, records: torch.Tensor, slot: int) -> int:
        """Copy a home's records uint8 [S,R] from staging memory into a slot; give their bytes. [B]"""
        self._slots[slot][home][: len(records)].copy_(records, non_blocking=True)
        return records.numel()

    def complete(self, rows: Rows, new_slot: int, slot: int) -> None:
        """Put the newest records behind those that were loaded."""
        for new in self.new_records(rows, new_slot):
            if new.home.share.engine == "gpu":
                target = self._slots[slot][new.home][rows.first : rows.stop]
                new.home.form.move(target, new.records, len(new.units), new.first)

    def on_gpu(self, rows: Rows, slot: int) -> Iterator[tuple[Home, list[torch.Tensor]]]:
        """Go through the homes that the GPU attends to, with their records on it."""
        for home in self.homes:
            if home.share.tier == "gpu":
                yield home, home.records(rows)
            elif home.share.engine == "gpu":
                yield home, [self._slots[slot][home][rows.first : rows.stop]]


def _by_tokens(tensor: torch.Tensor) -> torch.Tensor:
    """Put tokens first: [B,T,K,D] -> [T,BK,D]; for single tokens without a copy."""
    tokens = tensor.transpose(0, 1)
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[3])


def _tables(slot: torch.Tensor, homes: list[Home], rows: int) -> Iterator[torch.Tensor]:
    """Cut a slot into the tables of its homes: uint8 [S,R] each."""
    at = 0
    for home in homes:
        nbytes = rows * home.form.nbytes
        yield slot[at : at + nbytes].view(rows, home.form.nbytes)
        at = rounded(at + nbytes)


def slot_bytes(homes: list[Home], rows: int) -> int:
    """Give the size of a slot for all rows of some homes. [B]"""
    return sum(rounded(rows * home.form.nbytes) for home in homes)
