"""From cells to tasks: the one generator of schedules, for every traversal and every runtime.

A draft puts the operations of all cells in order; here they get what they wait for: data, free slots, and
barriers where the runtime has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.barriers import add_barriers, chain
from simulator.cells import Grid, make_grid
from simulator.cost import BEGINS
from simulator.draft import Draft, first_column
from simulator.layout import Placed
from simulator.operations import IntArray
from simulator.passes import Window, window
from simulator.schedule import Schedule

#: The kernels that may be the last of a cell.
_ENDS = ("embed", "project", "mlp", "head")


def generate(placed: Placed, max_passes: int | None = 40, played: Window | None = None) -> Schedule:
    """Make the schedule of a layout; ``max_passes`` of None plays every pass, ``played`` those it lists.

    Raises:
        InputError: the groups do not divide into the cohorts that the stagger needs.
    """
    played = played or window(placed.policy, placed.workload, max_passes)
    grid = make_grid(placed, played)
    draft = Draft.of(placed, grid)
    _add_waits(draft)
    _add_slots(draft)
    if placed.serial:
        chain(draft)
    elif placed.runtime.synchronization == "barrier":
        add_barriers(draft)
    return draft.finish(played)


#: What an operation waits for in its own cell.
_OWN = (
    ("embed", "load_embeddings"),
    ("load_embeddings", "read_embeddings"),
    ("load_activations", "read_activations"),
    ("load_cache", "read_cache"),
    ("load_cache", "stage_cache"),
    ("qkv", "load_activations"),
    ("store_cache", "quantize_cache"),
    ("store_query", "qkv"),
    ("store_cache", "qkv"),
    ("write_cache", "store_cache"),
    ("load_output", "attend_cpu"),
    ("project", "load_output"),
    ("mlp", "load_output"),
    ("mlp", "load_activations"),
    ("head", "load_activations"),
    ("store_activations", "embed"),
    ("store_activations", "project"),
    ("store_activations", "mlp"),
    ("write_activations", "store_activations"),
    ("load_weights", "stage_weights"),
)
#: What it waits for in the cell of the same sequences in the layer above.
_ABOVE = (("read_activations", "write_activations"), ("load_activations", "store_activations"))
#: What it waits for in the cell of the same group and layer in the pass before.
_BEFORE = (
    ("read_cache", "write_cache"),
    ("load_cache", "store_cache"),
    ("stage_cache", "store_cache"),
    ("expand_cache", "store_cache"),
)


def _add_waits(draft: Draft) -> None:
    """Let tasks wait for the data they use."""
    grid = draft.grid
    first_of_step = tuple((name, "head") for name in ("embed", "load_embeddings", "read_embeddings"))
    token = _last_cell_of_group_above(grid)
    for pairs, cells in ((_OWN, None), (_ABOVE, grid.above), (_BEFORE, grid.before), (first_of_step, token)):
        for name, other in pairs:
            draft.wait(name, other, cells)
    first_on_cpu = "dequantize_cache_cpu" if draft.has("dequantize_cache_cpu").any() else "attend_cpu"
    for need in ("store_query", "store_cache", "read_cache", "expand_cache"):
        draft.wait(first_on_cpu, need)
    draft.wait(first_on_cpu, "store_cache", grid.before)
    draft.wait("dequantize_cache" if draft.has("dequantize_cache").any() else "attend", "load_cache")
    _add_weight_waits(draft)


def _add_weight_waits(draft: Draft) -> None:
    """The first kernels of a layer wait for the last of its loads, and these for the disk."""
    draft.wait(_load_from_disk(draft), "read_weights")
    loaded = np.where(draft.grid.column == 0, _last_load(draft), -1)
    for user in ("dequantize_weights", *BEGINS[draft.placed.runtime.layers]):
        for load in ("load_weights", "relay_weights"):
            draft.wait(user, load, loaded)


def _last_cell_of_group_above(grid: Grid) -> IntArray:
    """For cells of the embedding: the head's cell of the same group in the previous pass. [V]"""
    heads = grid.layer.max()
    before = grid.before
    here = grid.embeds & (before >= 0)
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
    inside = (grid.weights >= 0) & ~grid.starts

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
        computes_last=at(grid.works),
        opens=np.concatenate([start, opens])[:total],
        closes=np.concatenate([start, closes])[:total],
    )


def _last_load(draft: Draft) -> IntArray:
    """For each cell with work: the cell that issues the last load of its layer's weights. [V]"""
    grid = draft.grid
    own = np.where(grid.works, grid.weights, -1)
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
    free_at = _earlier_use(draft.grid.works, draft.slots["activations"])
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
    loads, relays = draft.has("load_weights"), draft.has("relay_weights")
    for computed in _ENDS:
        for load in ("stage_weights", "load_weights", "relay_weights"):
            draft.wait(load, computed, freed)
    streamed = number[(loads | relays)[layers.opens]]
    opened = _marks(layers.opens[streamed], total)
    draft.take("weights", "load_weights", opened & loads)
    draft.take("weights", "relay_weights", opened & ~loads)
    for computed in _ENDS:
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
    load = _load_from_disk(draft)
    draft.wait("read_weights", load, freed)
    draft.take("weight_staging", "read_weights", _marks(layers.opens[reading], total))
    draft.free("weight_staging", load, _marks(layers.closes[reading], total))


def _load_from_disk(draft: Draft) -> str:
    """Name the operation that brings the disk's share of a layer to the GPU."""
    return "relay_weights" if draft.placed.runtime.disk_io == "mapped" else "load_weights"
