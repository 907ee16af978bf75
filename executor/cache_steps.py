"""What the operations of the cache do: new records go home, old ones to where they are attended to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from executor import layers
from executor.attention import attend_rows
from executor.cache import Home, Rows
from executor.cells import Cell, hidden_rows
from executor.memory import Memory
from executor.records import Pair


@dataclass(frozen=True)
class Step:
    """A task as a handler sees it; see `executor.script.Script` for the slots."""

    cell: Cell
    layer: int
    part: int
    parts: int
    weights: int
    staging: int
    number: int


class CacheSteps:
    """The handlers of operations between projections and the output of attention.

    Args:
        memory: everything that was allocated.
        top: share of the cached tokens whose values attention uses.
    """

    def __init__(self, memory: Memory, top: float) -> None:
        self._memory, self._top = memory, top
        self._facts, self._device = memory.facts, memory.device

    def quantize_cache(self, step: Step) -> None:
        """Quantise the new records."""
        cell = step.cell
        assert cell.keys is not None
        assert cell.values is not None
        self._memory.cache.pack(self._new(step), cell.keys, cell.values, cell.slots.get("new_cache", 0))

    def store_query(self, step: Step) -> int:
        """GPU to CPU memory: queries of the units that the CPU attends to."""
        cell, moved = step.cell, 0
        assert cell.queries is not None
        queries = self._by_unit(cell.queries)
        for home in self._memory.on_cpu_engine:
            units = self._units(home, cell)
            self._memory.queries[cell.order][units].copy_(queries[units], non_blocking=True)
            moved += queries[units].numel() * queries.element_size()
        return moved

    def store_cache(self, step: Step) -> int:
        """GPU to CPU memory: new records."""
        memory, cell, rows = self._memory, step.cell, self._new(step)
        slot = cell.slots["new_cache"]
        moved = memory.cache.store(rows, slot)
        if memory.disk is not None:
            new = [one for one in memory.cache.new_records(rows, slot) if one.home.share.tier == "disk"]
            if new:
                moved += memory.disk.put(rows, new, cell.slots["cache_writing"])
            if cell.position:
                memory.disk.keep(new, cell.order)
        return moved

    def write_cache(self, step: Step) -> int:
        """CPU memory to the disk: new records."""
        assert self._memory.disk is not None
        return self._memory.disk.write(self._new(step), step.cell.slots["cache_writing"])

    def read_cache(self, step: Step) -> int:
        """Disk to staging memory: all rows of a group."""
        assert self._memory.disk is not None
        return self._memory.disk.read(self._old(step), step.cell.slots["cache_staging"])

    def load_cache(self, step: Step) -> int:
        """CPU memory to a slot of the GPU: all rows of the units whose attention the GPU computes."""
        memory, cell, rows = self._memory, step.cell, self._old(step)
        slot = cell.slots["cache"]
        moved = memory.cache.load(rows, slot)
        if memory.disk is not None:
            for home in memory.disk.homes:
                if home.share.engine == "gpu":
                    records = memory.disk.staged(home, rows.stop, cell.slots["cache_staging"])
                    moved += memory.cache.load_from(home, records, slot)
        return moved

    def dequantize_cache(self, step: Step) -> None:
        """Expand the records that the GPU attends to."""
        for home, records in self._gpu_records(step):
            self._memory.expanded.expand(home, records)

    def attend(self, step: Step) -> None:
        """Attend to the cache on the GPU."""
        cell = step.cell
        assert cell.queries is not None
        assert cell.attention is not None
        queries, out = self._by_unit(cell.queries), self._by_unit(cell.attention)
        for home, records in self._gpu_records(step):
            units = self._units(home, cell)
            out[units] = self._attend(cell, home, records, queries[units], units)

    def dequantize_cache_cpu(self, step: Step) -> None:
        """Expand the records that the CPU attends to."""
        for home, records in self._cpu_records(step):
            self._memory.expanded.expand(home, records)

    def attend_cpu(self, step: Step) -> None:
        """Attend to the cache on the CPU."""
        cell, memory = step.cell, self._memory
        for home, records in self._cpu_records(step):
            units = self._units(home, cell)
            queries = memory.queries[cell.order][units]
            found = self._attend(cell, home, records, queries, units)
            memory.outputs[cell.order][units] = found

    def load_output(self, step: Step) -> int:
        """CPU memory to the GPU: the outputs of attention on the CPU."""
        cell, moved = step.cell, 0
        assert cell.attention is not None
        out = self._by_unit(cell.attention)
        for home in self._memory.on_cpu_engine:
            units = self._units(home, cell)
            out[units].copy_(self._memory.outputs[cell.order][units], non_blocking=True)
            moved += out[units].numel() * out.element_size()
        return moved

    def attend_prompt(self, step: Step) -> None:
        """Attend to the prompt itself."""
        cell = step.cell
        assert cell.queries is not None
        assert cell.keys is not None
        assert cell.values is not None
        cell.attention = layers.attend(cell.queries, cell.keys, cell.values)

    def _new(self, step: Step) -> Rows:
        """Name the rows that a cell adds."""
        cell = step.cell
        assert cell.group is not None
        first = cell.row
        return Rows(cell.group.number, step.layer, first, first + cell.tokens, self._all_units(cell))

    def _old(self, step: Step) -> Rows:
        """Name the rows that a cell finds."""
        new = self._new(step)
        return Rows(new.group, new.layer, 0, new.first, new.units)

    def _all_units(self, cell: Cell) -> range:
        heads = self._facts.model.num_kv_heads
        return range(cell.sequences.start * heads, cell.sequences.stop * heads)

    def _units(self, home: Home, cell: Cell) -> slice:
        units = home.share.within(0, self._all_units(cell).stop)
        return slice(units.start, units.stop)

    def _by_unit(self, tensor: torch.Tensor) -> torch.Tensor:
        """Look at single tokens [B,1,H,D] as units [U,G,D]."""
        model = self._facts.model
        return tensor.view(-1, model.num_heads // model.num_kv_heads, model.head_dim)

    def _gpu_records(self, step: Step) -> list[tuple[Home, list[torch.Tensor]]]:
        """List the homes that the GPU attends to with their rows, the new one included."""
        memory, cell, new = self._memory, step.cell, self._new(step)
        slot = cell.slots.get("cache", 0)
        if "cache" in cell.slots:
            memory.cache.complete(new, cell.slots["new_cache"], slot)
        return [
            each for each in memory.cache.on_gpu(_up_to(new), slot) if each[0].share.within(0, new.units.stop)
        ]

    def _cpu_records(self, step: Step) -> list[tuple[Home, list[torch.Tensor]]]:
        """List the homes that the CPU attends to with their rows, the new one included."""
        memory, cell, new = self._memory, step.cell, self._new(step)
        rows = _up_to(new)
        if "cache_staging" in cell.slots and memory.disk is not None:
            memory.disk.complete(new, cell.slots["cache_staging"], cell.order)
        found = []
        for home in memory.on_cpu_engine:
            if not home.share.within(0, new.units.stop):
                continue
            if home.share.tier == "cpu":
                found.append((home, home.records(rows)))
            elif memory.disk is not None:
                found.append((home, [memory.disk.staged(home, rows.stop, cell.slots["cache_staging"])]))
        return found

    def _attend(
        self,
        cell: Cell,
        home: Home,
        records: list[torch.Tensor],
        queries: torch.Tensor,
        units: slice,
    ) -> torch.Tensor:
        """Attend from some units [U,G,D] to the rows of their home: -> [U,G,D]."""
        pieces = self._memory.expanded.pairs(home, records)
        count = units.stop - units.start
        used: list[Pair] = [(keys[:, :count], values[:, :count]) for keys, values in pieces]
        assert cell.group is not None
        key = ("hidden", cell.position, units.start, units.stop, queries.device)
        mask = cell.group.once(key, lambda: self._hidden(cell, units, queries.device))
        return attend_rows(queries, used, mask, self._top)

    def _hidden(self, cell: Cell, units: slice, device: torch.device) -> torch.Tensor | None:
        """Mark rows that are not tokens of a unit's sequence [U,S]; None where all are."""
        rows = hidden_rows(cell)
        if rows is None:
            return None
        heads = self._facts.model.num_kv_heads
        of_unit = torch.arange(units.start, units.stop) // heads - cell.sequences.start
        return rows[of_unit].to(device)


def _up_to(new: Rows) -> Rows:
    """Name all rows up to the new ones, these included."""
    return replace(new, first=0)
