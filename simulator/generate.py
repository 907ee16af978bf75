"""From cells to tasks: the one generator of schedules, for every traversal and every runtime.

A draft puts the operations of all cells in order; here they get what they wait for: data, free slots, and
barriers where the runtime has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.cells import Grid, make_grid
from simulator.cost import LANE_OF_OPERATION
from simulator.draft import Draft, first_column
from simulator.hardware import LANES
from simulator.layout import Placed
from simulator.operations import OP, CellKind, IntArray
from simulator.passes import window
from simulator.schedule import Schedule


def generate(placed: Placed, max_passes: int | None = 40) -> Schedule:
    """Make the schedule of a layout; ``max_passes`` of None plays every pass.

    Raises:
        InputError: the groups do not divide into the cohorts that the stagger needs.
    """
    played = window(placed.policy, placed.workload, max_passes)
    grid = make_grid(placed, played)
    draft = Draft.of(placed, grid)
    _add_waits(draft)
    _add_slots(draft)
    if placed.runtime.synchronization == "barrier":
        _add_barriers(draft)
    return draft.finish(played)


def _add_waits(draft: Draft) -> None:
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


@dataclass(frozen=True)
class _Layers:
    """Cells of every layer with weights, counted through all passes. [M] each

    ``computes_last`` is the last cell with work; ``opens`` and ``closes`` are the cells that issue the first
    and the last load of the layer's weights.
    """

    computes_last: IntArray
    opens: IntArray
    closes: IntArray


def _layers(draft: Draft) -> _Layers:
    grid, prefetch = draft.grid, draft.placed.policy.prefetch
    total = int(grid.weights.max()) + 1
    inside = (grid.weights >= 0) & (grid.kind != CellKind.START)

    def at(chosen: npt.NDArray[np.bool_]) -> IntArray:
        cells = np.nonzero(inside & chosen)[0]
        found = np.full(total, -1)
        found[grid.weights[cells]] = cells  # of several, the last
        return found

    opens = at(grid.column == first_column(draft.placed, grid))
    burst = draft.placed.runtime.weight_loads == "burst"
    closes = opens if burst else at(grid.column == grid.width - 1)
    start = np.arange(prefetch)
    return _Layers(
        computes_last=at(grid.kind < CellKind.START),
        opens=np.concatenate([start, opens])[:total],
        closes=np.concatenate([start, closes])[:total],
    )


def _last_load(draft: Draft) -> IntArray:
    """For each cell with work: the cell that issues the last load of its layer's weights. [V]"""
    grid = draft.grid
    own = np.where(grid.kind < CellKind.START, grid.weights, -1)
    return np.where(own >= 0, _layers(draft).closes[own], -1)


def _earlier_use(used: npt.NDArray[np.bool_], slots: int) -> IntArray:
    """For each cell that uses a buffer: the one that used its slot before, ``slots`` uses ago. [V]"""
    cells = np.nonzero(used)[0]
    result = np.full(len(used), -1)
    result[cells[slots:]] = cells[:-slots] if slots < len(cells) else cells[:0]
    return result


def _add_slots(draft: Draft) -> None:
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


def _add_activation_slots(draft: Draft) -> None:
    """Hidden states pass through slots: taken by load (or embedding), freed by store (or head)."""
    free_at = _earlier_use(draft.grid.kind < CellKind.START, draft.slots["activations"])
    for taker in ("load_activations", "embed"):
        draft.wait(taker, "store_activations", free_at)
        draft.wait(taker, "head", free_at)
        draft.take("activations", taker)
    draft.free("activations", "store_activations")
    draft.free("activations", "head")


def _add_weight_slots(draft: Draft) -> None:
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


def _add_staging_slots(draft: Draft, layers: _Layers) -> None:
    """Disk weights pass through CPU memory, ``weight_staging`` layers at a time."""
    reading = np.nonzero(draft.has("read_weights")[layers.opens])[0]  # layers that have a disk share
    held, total = draft.slots["weight_staging"], len(draft.grid)
    freed = np.full(total, -1)
    if held < len(reading):
        freed[layers.opens[reading[held:]]] = layers.closes[reading[:-held]]
    draft.wait("read_weights", "load_weights", freed)
    draft.take("weight_staging", "read_weights", _marks(layers.opens[reading], total))
    draft.free("weight_staging", "load_weights", _marks(layers.closes[reading], total))


def _add_barriers(draft: Draft) -> None:
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
