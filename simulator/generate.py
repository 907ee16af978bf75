"""From cells to tasks: the one generator of schedules, for every traversal and every runtime.

Each operation of each cell has a row (when it is issued) and a column (its place within the row, the order
of ``OPERATIONS``). Reading the occupied places row by row gives the issue order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator.cells import Grid, make_grid
from simulator.cost import LANE_OF_OPERATION
from simulator.hardware import LANES
from simulator.layout import Placed
from simulator.memory import BUFFERS, BufferName, buffer_slots
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS, CellKind, IntArray, cell_work
from simulator.passes import Window, window
from simulator.policy import FloatArray
from simulator.schedule import Int8Array, Int32Array, Schedule

_LOADS = ("read_activations", "load_activations", "read_cache", "load_cache", "read_embeddings", "load_embeddings")
_STORES = ("store_activations", "write_activations", "store_cache", "write_cache")


def generate(placed: Placed, max_passes: int | None = 40) -> Schedule:
    """Make the schedule of a layout; ``max_passes`` of None plays every pass.

    Raises:
        InputError: the groups do not divide into the cohorts that the stagger needs.
    """
    played = window(placed.policy, placed.workload, max_passes)
    grid = make_grid(placed, played)
    draft = _Draft.of(placed, grid)
    _add_waits(draft)
    _add_slots(draft)
    if placed.runtime.synchronization == "barrier":
        _add_barriers(draft)
    return draft.finish(played)


@dataclass
class _Draft:
    """A schedule in the making: where every operation of every cell stands."""

    placed: Placed
    grid: Grid
    flops: FloatArray  # [operations, V]
    bytes: FloatArray
    kernels: FloatArray
    ids: Int32Array  # [operations, V + 1], -1 where absent; the last column answers for cell -1
    cell: IntArray  # [N]
    operation: Int8Array  # [N]
    row: IntArray  # [N]
    slots: dict[BufferName, int]
    waits: list[tuple[Int32Array, Int32Array]] = field(default_factory=list)
    takes: Int8Array = field(default_factory=lambda: np.empty(0, np.int8))
    frees: Int8Array = field(default_factory=lambda: np.empty(0, np.int8))

    @classmethod
    def of(cls, placed: Placed, grid: Grid) -> _Draft:
        """Find out which operations exist and put them in order."""
        flops, bytes_, kernels = _work(placed, grid)
        present = (flops + bytes_) > 0
        present[OP["embed"]] = grid.kind == CellKind.EMBED
        shift = _row_shift(placed, grid)
        lowest = int(shift.min())
        rows = len(grid) + int(shift.max()) - lowest
        occupied = np.zeros((rows, len(OPERATIONS)), dtype=bool)
        for code in range(len(OPERATIONS)):
            start = int(shift[code]) - lowest
            occupied[start : start + len(grid), code] = present[code]
        if placed.runtime.synchronization == "barrier":
            occupied[:, OP["sync"]] = occupied.any(axis=1)
        row, operation = np.nonzero(occupied)
        numbers = (np.cumsum(occupied.ravel()) - 1).reshape(occupied.shape)
        ids = np.full((len(OPERATIONS), len(grid) + 1), -1, dtype=np.int32)
        for code in range(len(OPERATIONS)):
            start = int(shift[code]) - lowest
            numbered = numbers[start : start + len(grid), code]
            ids[code, :-1] = np.where(present[code], numbered, -1)
        cell = np.minimum(row - (shift[operation] - lowest), len(grid) - 1)
        slots = buffer_slots(placed.runtime, placed.policy.prefetch, placed.ahead)
        draft = cls(placed, grid, flops, bytes_, kernels, ids, cell, operation.astype(np.int8), row, slots)
        draft.takes = np.full(len(row), -1, np.int8)
        draft.frees = np.zeros(len(row), np.int8)
        return draft

    def has(self, name: str) -> npt.NDArray[np.bool_]:
        """Mark the cells that have an operation. [V]"""
        return np.asarray(self.ids[OP[name], :-1] >= 0)

    def wait(self, name: str, other: str, cells: IntArray | None = None) -> None:
        """Let an operation wait for another one, of its own cell or of ``cells``. [V]"""
        tasks = self.ids[OP[name], :-1]
        others = self.ids[OP[other]]
        targets = others[:-1] if cells is None else others[cells]
        both = (tasks >= 0) & (targets >= 0)
        self.waits.append((tasks[both], targets[both]))

    def take(self, buffer: BufferName, name: str, at: npt.NDArray[np.bool_] | None = None) -> None:
        """Note that an operation takes a slot when it starts."""
        tasks = self.ids[OP[name], :-1]
        self.takes[tasks[(tasks >= 0) if at is None else (tasks >= 0) & at]] = BUFFERS.index(buffer)

    def free(self, buffer: BufferName, name: str, at: npt.NDArray[np.bool_] | None = None) -> None:
        """Note that an operation gives a slot back when it ends."""
        tasks = self.ids[OP[name], :-1]
        self.frees[tasks[(tasks >= 0) if at is None else (tasks >= 0) & at]] |= np.int8(
            1 << BUFFERS.index(buffer)
        )

    def finish(self, played: Window) -> Schedule:
        """Gather the columns."""
        code, cell, grid = self.operation.astype(np.int64), self.cell, self.grid
        layer, group = grid.layer[cell], grid.group[cell]
        pass_index = grid.pass_index[cell]
        of_layer = np.isin(code, [OP[name] for name in LAYER_OPERATIONS])
        target = np.where(of_layer, _target(self.placed, grid)[cell], 0)
        layers = self.placed.model.num_layers + 1
        sync = code == OP["sync"]
        return Schedule(
            operation=self.operation,
            lane=LANE_OF_OPERATION[self.operation],
            pass_index=np.where(of_layer, target // layers, pass_index).astype(np.int32),
            layer=np.where(of_layer, target % layers + 1, layer).astype(np.int32),
            group=np.where(of_layer & (group < 0), 0, group).astype(np.int32),
            flops=np.where(sync, 0.0, self.flops[code, cell]),
            bytes=np.where(sync, 0.0, self.bytes[code, cell]),
            kernels=np.where(sync, 0.0, self.kernels[code, cell]),
            waits_for=_matrix(self.waits, len(self.operation)),
            takes=self.takes,
            frees=self.frees,
            slots=self.slots,
            window=played,
        )


def _work(placed: Placed, grid: Grid) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Evaluate the work of every operation in every cell at the layout. [operations, V] each."""
    at, runtime = placed.placement, placed.runtime
    real = grid.kind < CellKind.START
    flops, bytes_, kernels = (np.zeros((len(OPERATIONS), len(grid))) for _ in range(3))
    for name, work in cell_work(placed.model, placed.shape, runtime, grid.kinds).items():
        code = OP[name]
        flops[code] = np.where(real, (work.flops @ at)[grid.work], 0.0)
        bytes_[code] = np.where(real, (work.bytes @ at)[grid.work], 0.0)
        kernels[code] = np.where(real, work.kernels[grid.work], 0.0)
    if runtime.dequantize == "per_pass":
        bytes_[OP["dequantize_weights"]] *= grid.column == 0
    target = _target(placed, grid)
    layer = np.where(target >= 0, target % (placed.model.num_layers + 1) + 1, 0)
    whole = (grid.kind == CellKind.START) | (runtime.weight_loads == "burst")
    first = _first_column(placed, grid)
    opens, chunk = grid.column == first, (grid.column >= first) / np.maximum(1, grid.width - first)
    share = np.where(whole, opens, chunk) * (target >= 0)
    streamed = placed.layer_bytes[:, 1:].sum(axis=1)
    for name, size in (("read_weights", placed.layer_bytes[:, 2]), ("load_weights", streamed)):
        bytes_[OP[name]] = size[layer] * share
        kernels[OP[name]] = share > 0
    _embedding_rows(placed, grid, bytes_)
    return flops, bytes_, kernels


def _embedding_rows(placed: Placed, grid: Grid, bytes_: FloatArray) -> None:
    """Scale the look-up of embedding rows to where this layout has the table."""
    table = placed.layer_bytes[-1 if placed.model.tied_embeddings else 0]
    on_disk, off_gpu = table[2] / table.sum(), (table[1] + table[2]) / table.sum()
    size = placed.model.hidden_bytes * (grid.kinds.sequences * grid.kinds.new)[grid.work]
    here = (grid.kind == CellKind.EMBED) * size
    bytes_[OP["read_embeddings"]] = here * on_disk
    bytes_[OP["load_embeddings"]] = here * off_gpu


def _first_column(placed: Placed, grid: Grid) -> IntArray:
    """Give the place in its layer from which a cell may load weights. [V]

    With lookahead the previous layer ends that much later, and only then is its slot free.
    """
    return np.where(grid.kind == CellKind.START, 0, max(0, placed.ahead - 1))


def _target(placed: Placed, grid: Grid) -> IntArray:
    """Give the layer whose weights a cell loads, counted through all passes; -1 for none. [V]"""
    total = _layers_played(grid)
    target = np.where(grid.kind == CellKind.START, grid.weights, grid.weights + placed.policy.prefetch)
    return np.where((grid.weights >= 0) & (target < total), target, -1)


def _row_shift(placed: Placed, grid: Grid) -> IntArray:
    """Rows by which each operation is issued after its cell's own: lookahead, or a barrier's look-ahead."""
    if placed.runtime.synchronization == "dependency":
        return np.array([placed.ahead * (operation.stage == "after") for operation in OPERATIONS])
    shift = np.zeros(len(OPERATIONS), dtype=np.int64)
    on_cpu = bool(placed.policy.cpu_attention.cpu or placed.policy.cpu_attention.disk)
    enough = int(grid.width[grid.kind < CellKind.START].min()) > 2
    for name in _LOADS:
        shift[OP[name]] = -1 if enough or "cache" in name else 0
    for name in _STORES:
        shift[OP[name]] = 1 if (enough and "activations" in name) or ("cache" in name and not on_cpu) else 0
    return shift


def _add_waits(draft: _Draft) -> None:
    """Let tasks wait for the data they use."""
    grid = draft.grid
    above, before = grid.above, grid.before
    draft.wait("embed", "load_embeddings")
    draft.wait("load_embeddings", "read_embeddings")
    for first_of_step in ("embed", "load_embeddings", "read_embeddings"):
        draft.wait(first_of_step, "head", _last_cell_of_group_above(grid))
    draft.wait("read_activations", "write_activations", above)
    draft.wait("load_activations", "store_activations", above)
    draft.wait("load_activations", "read_activations")
    draft.wait("read_cache", "write_cache", before)
    draft.wait("load_cache", "store_cache", before)
    draft.wait("load_cache", "read_cache")
    draft.wait("qkv", "load_activations")
    draft.wait("store_cache", "quantize_cache")
    for store in ("store_query", "store_cache"):
        draft.wait(store, "qkv")
    draft.wait("write_cache", "store_cache")
    first_on_cpu = "dequantize_cache_cpu" if draft.has("dequantize_cache_cpu").any() else "attend_cpu"
    for need in ("store_query", "store_cache", "read_cache"):
        draft.wait(first_on_cpu, need)
    draft.wait(first_on_cpu, "store_cache", before)
    draft.wait("load_output", "attend_cpu")
    first_on_gpu = "dequantize_cache" if draft.has("dequantize_cache").any() else "attend"
    draft.wait(first_on_gpu, "load_cache")
    draft.wait("mlp", "load_output")
    draft.wait("head", "load_activations")
    draft.wait("store_activations", "mlp")
    draft.wait("store_activations", "embed")
    draft.wait("write_activations", "store_activations")
    draft.wait("load_weights", "read_weights")
    loaded = _last_load(draft)
    first_use = "dequantize_weights" if draft.has("dequantize_weights").any() else "qkv"
    for user in (first_use, "qkv", "head"):
        draft.wait(user, "load_weights", np.where(grid.column == 0, loaded, -1))


def _last_cell_of_group_above(grid: Grid) -> IntArray:
    """For cells of the embedding: the head's cell of the same group in the previous pass. [V]"""
    heads = grid.layer.max()
    before = grid.before
    here = (grid.kind == CellKind.EMBED) & (before >= 0)
    # The head's cell lies whole layers after the embedding's in the same pass.
    return np.where(here, before + heads * grid.width[before], -1)


def _layers_played(grid: Grid) -> int:
    """Count the layers with weights through all passes; there may be fewer than START cells."""
    return int(grid.weights[grid.kind < CellKind.START].max()) + 1


@dataclass(frozen=True)
class _Layers:
    """Cells of every layer with weights, counted through all passes. [M] each

    ``computes_last`` is the last cell with work; ``opens`` and ``closes`` are the cells that issue the first
    and the last load of the layer's weights.
    """

    computes_last: IntArray
    opens: IntArray
    closes: IntArray


def _layers(draft: _Draft) -> _Layers:
    grid, prefetch = draft.grid, draft.placed.policy.prefetch
    total = int(grid.weights.max()) + 1
    inside = (grid.weights >= 0) & (grid.kind != CellKind.START)

    def at(chosen: npt.NDArray[np.bool_]) -> IntArray:
        cells = np.nonzero(inside & chosen)[0]
        found = np.full(total, -1)
        found[grid.weights[cells]] = cells  # of several, the last
        return found

    opens = at(grid.column == _first_column(draft.placed, grid))
    burst = draft.placed.runtime.weight_loads == "burst"
    closes = opens if burst else at(grid.column == grid.width - 1)
    start = np.arange(prefetch)
    return _Layers(
        computes_last=at(grid.kind < CellKind.START),
        opens=np.concatenate([start, opens])[:total],
        closes=np.concatenate([start, closes])[:total],
    )


def _last_load(draft: _Draft) -> IntArray:
    """For each cell with work: the cell that issues the last load of its layer's weights. [V]"""
    grid = draft.grid
    own = np.where(grid.kind < CellKind.START, grid.weights, -1)
    return np.where(own >= 0, _layers(draft).closes[own], -1)


def _earlier_use(used: npt.NDArray[np.bool_], slots: int) -> IntArray:
    """For each cell that uses a buffer: the cell whose use of it must have ended, ``slots`` uses before. [V]"""
    cells = np.nonzero(used)[0]
    result = np.full(len(used), -1)
    result[cells[slots:]] = cells[:-slots] if slots < len(cells) else cells[:0]
    return result


def _add_slots(draft: _Draft) -> None:
    """Let tasks wait for free slots, and note who takes and frees them."""
    slots = draft.slots
    _add_weight_slots(draft)
    loaded = draft.has("load_cache")
    draft.wait("load_cache", "attend", _earlier_use(loaded, slots["cache"]))
    draft.take("cache", "load_cache")
    draft.free("cache", "attend", loaded)
    read, on_cpu = draft.has("read_cache"), draft.has("attend_cpu")
    for user in ("load_cache", "attend_cpu"):
        draft.wait("read_cache", user, _earlier_use(read, slots["cache_staging"]))
    draft.take("cache_staging", "read_cache")
    draft.free("cache_staging", "attend_cpu", read)
    draft.free("cache_staging", "load_cache", read & ~on_cpu)
    stored = draft.has("store_cache")
    draft.wait("qkv", "store_cache", _earlier_use(stored, slots["new_cache"]))
    draft.take("new_cache", "qkv", stored)
    draft.free("new_cache", "store_cache")
    written = draft.has("write_cache")
    draft.wait("store_cache", "write_cache", _earlier_use(written, slots["cache_writing"]))
    draft.take("cache_writing", "store_cache", written)
    draft.free("cache_writing", "write_cache")
    if draft.has("load_activations").any():
        _add_activation_slots(draft)


def _add_activation_slots(draft: _Draft) -> None:
    """Hidden states pass through slots: taken by the load (or the embedding), freed by the store (or head)."""
    free_at = _earlier_use(draft.grid.kind < CellKind.START, draft.slots["activations"])
    for taker in ("load_activations", "embed"):
        draft.wait(taker, "store_activations", free_at)
        draft.wait(taker, "head", free_at)
        draft.take("activations", taker)
    draft.free("activations", "store_activations")
    draft.free("activations", "head")


def _add_weight_slots(draft: _Draft) -> None:
    """A layer's slot is taken by its first load and freed by its last computation; staging likewise."""
    layers, total = _layers(draft), len(draft.grid)
    slots = draft.slots
    number = np.arange(len(layers.opens))
    # The first load of layer m waits for the last computation of layer m - slots.
    freed = np.full(total, -1)
    later = number[number >= slots["weights"]]
    freed[layers.opens[later]] = layers.computes_last[later - slots["weights"]]
    for computed in ("mlp", "head"):
        draft.wait("load_weights", computed, freed)
    loads = draft.has("load_weights")
    streamed = number[loads[layers.opens]]
    draft.take("weights", "load_weights", _marks(layers.opens[streamed], total))
    for computed in ("mlp", "head"):
        draft.free("weights", computed, _marks(layers.computes_last[streamed], total))
    _add_staging_slots(draft, layers)


def _marks(cells: IntArray, total: int) -> npt.NDArray[np.bool_]:
    marks = np.zeros(total, dtype=bool)
    marks[cells] = True
    return marks


def _add_staging_slots(draft: _Draft, layers: _Layers) -> None:
    """Disk weights pass through CPU memory, ``weight_staging`` layers at a time."""
    reading = np.nonzero(draft.has("read_weights")[layers.opens])[0]  # layers that have a disk share
    held, total = draft.slots["weight_staging"], len(draft.grid)
    freed = np.full(total, -1)
    if held < len(reading):
        freed[layers.opens[reading[held:]]] = layers.closes[reading[:-held]]
    draft.wait("read_weights", "load_weights", freed)
    draft.take("weight_staging", "read_weights", _marks(layers.opens[reading], total))
    draft.free("weight_staging", "load_weights", _marks(layers.closes[reading], total))


def _add_barriers(draft: _Draft) -> None:
    """After every row all lanes wait for each other."""
    lane = LANE_OF_OPERATION[draft.operation]
    sync = np.nonzero(draft.operation == OP["sync"])[0]
    row_of_sync = draft.row[sync]
    number = np.full(int(draft.row.max()) + 2, -1)
    number[row_of_sync] = sync
    number = np.maximum.accumulate(number)
    for index in range(len(LANES)):
        tasks = np.nonzero((lane == index) & (draft.operation != OP["sync"]))[0]
        if len(tasks) == 0:
            continue
        rows = draft.row[tasks]
        is_last = np.append(rows[1:] != rows[:-1], True)
        is_first = np.append(True, rows[1:] != rows[:-1])
        draft.waits.append((number[rows[is_last]].astype(np.int32), tasks[is_last].astype(np.int32)))
        before = np.where(rows > 0, number[rows - 1], -1)
        known = is_first & (before >= 0)
        draft.waits.append((tasks[known].astype(np.int32), before[known].astype(np.int32)))


def _matrix(waits: list[tuple[Int32Array, Int32Array]], total: int) -> Int32Array:
    """Turn lists of (task, other) into rows of others, padded with -1. [N, W]"""
    filled = np.zeros(total, dtype=np.int32)
    columns: list[Int32Array] = []
    for tasks, others in waits:
        place = filled[tasks]  # an operation waits at most once for each rule, so tasks are distinct
        for column in np.unique(place):
            while len(columns) <= column:
                columns.append(np.full(total, -1, dtype=np.int32))
            here = place == column
            columns[column][tasks[here]] = others[here]
        filled[tasks] += 1
    return np.ascontiguousarray(np.stack(columns, axis=1)) if columns else np.full((total, 1), -1, np.int32)
