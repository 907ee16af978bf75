"""Rows of embedding tables, looked up where the tables lie.

A table outside the GPU is never loaded whole: the rows of the tokens at hand become a small table of their
own, with the tokens renumbered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from executor.aligned import aligned, padded
from executor.cells import Cell, inputs
from executor.checkpoint import table_name
from executor.facts import Facts
from executor.layers import embed
from executor.read_pool import ReadPool
from executor.stored import Stored
from executor.weights import Held, WeightStore

_FIRST_POSITION = 2  # the row of the first position in OPT's table


@dataclass(frozen=True)
class Table:
    """A table: where its rows lie, each part with its first row; ``kind`` says what numbers them."""

    name: str
    positions: bool
    whole: bool
    columns: int
    dtype: torch.dtype
    in_memory: tuple[tuple[int, torch.Tensor], ...]
    on_disk: tuple[tuple[int, Stored], ...]

    def on(self, device: torch.device) -> bool:
        """Say whether all of it lies on a device as one tensor."""
        only = self.in_memory[0][1] if len(self.in_memory) == 1 and not self.on_disk else None
        return only is not None and only.device == device


@dataclass
class _Found:
    """What was looked up for a cell: small tables, and tokens and positions renumbered for them."""

    tokens: torch.Tensor
    positions: torch.Tensor
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    read: bool = False
    loaded: bool = False


class Embeddings:
    """The look-up of a run.

    Args:
        facts: the model.
        tables: token table, positions, and what projects them.
        device: where embedding is computed.
        resident: names of the tables that are used where they are, since they lie on the GPU.
        weights: where files are opened.
        pool: the threads that read.
    """

    def __init__(
        self,
        facts: Facts,
        tables: list[Table],
        device: torch.device,
        resident: Mapping[str, torch.Tensor],
        weights: WeightStore,
        pool: ReadPool,
    ) -> None:
        self._facts, self._device, self._weights, self._pool = facts, device, weights, pool
        self._resident = dict(resident)
        self._tables = [table for table in tables if table.name not in resident]
        self._found: dict[Cell, _Found] = {}

    def read(self, cell: Cell) -> int:
        """Read the rows that lie on the disk; give their bytes. [B]"""
        found, moved = self._begin(cell), 0
        found.read = True
        for table in self._tables:
            rows = self._rows(table, found)
            for first, stored in table.on_disk:
                here = ((rows >= first) & (rows < first + stored.shape[0])).nonzero().flatten()
                target = self._target(table, found, len(rows))
                size = stored.nbytes // stored.shape[0]
                target[here] = self._read_rows(stored, (rows[here] - first).tolist(), size)
                moved += len(here) * size
        return moved

    def load(self, cell: Cell) -> int:
        """Bring the rows to the GPU; give their bytes. [B]"""
        found, moved = self._begin(cell), 0
        if not found.read:
            self.read(cell)
        found.loaded = True
        for table in self._tables:
            rows = self._rows(table, found)
            target = self._target(table, found, len(rows))
            for first, memory in table.in_memory:
                here = ((rows >= first) & (rows < first + len(memory))).nonzero().flatten()
                target[here] = memory[(rows[here] - first).to(memory.device)].to(target.device)
            found.tables[table.name] = target.to(self._device)
            moved += target.numel() * target.element_size()
        return moved

    def embed(self, cell: Cell) -> torch.Tensor:
        """Give the hidden states of a cell's tokens: [B,T,E]."""
        found = self._begin(cell)
        if not found.loaded:
            self.load(cell)
        del self._found[cell]
        if self._device.type == "cuda":  # they were made on the stream of copies, which may reuse them
            for rows_found in found.tables.values():
                rows_found.record_stream(torch.cuda.current_stream(self._device))
        tokens, positions = found.tokens, found.positions
        for table in self._tables:
            if table.whole:
                continue
            rows = self._rows(table, found)
            if table.positions:
                positions = torch.searchsorted(rows, positions + _FIRST_POSITION) - _FIRST_POSITION
            else:
                tokens = torch.searchsorted(rows, tokens)
        weights: dict[str, Held] = {**self._resident, **found.tables}
        return embed(self._facts, tokens.to(self._device), positions.to(self._device), weights)  # type: ignore[arg-type]

    def _begin(self, cell: Cell) -> _Found:
        if cell not in self._found:
            self._found[cell] = _Found(*inputs(cell, self._facts.context_limit))
        return self._found[cell]

    def _rows(self, table: Table, found: _Found) -> torch.Tensor:
        """List the rows of a table that are wanted, in order, each once."""
        if table.whole:
            return torch.arange(self._height(table))
        numbers = found.positions + _FIRST_POSITION if table.positions else found.tokens
        rows: torch.Tensor = torch.unique(numbers)
        return rows

    def _height(self, table: Table) -> int:
        ends = [first + len(part) for first, part in table.in_memory]
        return max([*ends, *(first + stored.shape[0] for first, stored in table.on_disk)])

    def _target(self, table: Table, found: _Found, rows: int) -> torch.Tensor:
        """Make room for the rows of a table, once for each cell."""
        if table.name not in found.tables:
            found.tables[table.name] = torch.empty((rows, table.columns), dtype=table.dtype)
        return found.tables[table.name]

    def _read_rows(self, stored: Stored, rows: list[int], size: int) -> torch.Tensor:
        """Read single rows: [rows, E]."""
        file, futures = self._weights.file(stored.file), []
        for row in rows:
            offset = stored.offset + row * size
            futures.append(self._pool.submit(file, aligned(padded(offset, size)), offset, size))
        found = [future.result() for future in futures]
        return (
            torch.stack(found).view(stored.dtype)
            if found
            else torch.empty((0, stored.shape[1]), dtype=stored.dtype)
        )


def tables_of(
    facts: Facts, weights: WeightStore, device: torch.device
) -> tuple[list[Table], dict[str, torch.Tensor]]:
    """Find the tables in the layers that hold them, and those that can be used where they lie.

    Tied tables are the output matrix, which is in the last layer.
    """
    model = facts.model
    names = {weight.name for weight in model.embed_weights()} | {table_name(model)}
    tables, resident = [], {}
    for name in sorted(names):
        tied = model.tied_embeddings and name == table_name(model)
        layer, held_as = (-1, "lm_head.weight") if tied else (0, name)
        in_memory = tuple(weights.in_memory(layer, held_as))
        on_disk = tuple(weights.stored_on_disk(layer, held_as))
        like = in_memory[0][1] if in_memory else on_disk[0][1]
        kinds = ("embed_positions" in name, "project_in" in name)
        table = Table(name, *kinds, like.shape[1], like.dtype, in_memory, on_disk)
        if table.on(device) and (device.type != "cpu" or weights.is_on_gpu(layer, held_as)):
            resident[name] = table.in_memory[0][1]
        tables.append(table)
    return tables, resident
