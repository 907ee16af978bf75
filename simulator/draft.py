"""A schedule in the making: which operations every cell has, what they do, and where they stand.

Each operation of each cell has a row (when it is issued) and a column (its place within the row, the order
of ``OPERATIONS``). Reading the occupied places row by row gives the issue order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from simulator.cells import Grid
from simulator.cost import LANE_OF_OPERATION
from simulator.hardware import TIERS
from simulator.issue import add_waits, count_waits, evaluated, issued
from simulator.layers import CellKind, first_loaded
from simulator.layout import Placed
from simulator.memory import BUFFERS, BufferName, buffer_slots
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS, IntArray
from simulator.passes import Window
from simulator.policy import PLACEMENT, FloatArray
from simulator.schedule import Int8Array, Int32Array, Schedule
from simulator.work import Work, cell_work, layer_work

_LOADS = (
    "read_activations",
    "load_activations",
    "read_cache",
    "stage_cache",
    "expand_cache",
    "load_cache",
    "read_embeddings",
    "load_embeddings",
)
_WEIGHTS = [PLACEMENT.index(f"weights_{tier}") for tier in TIERS]
_OF_LAYER = np.array([operation.name in LAYER_OPERATIONS for operation in OPERATIONS])
_LOOKED_UP = ("read_embeddings", "load_embeddings")  # where the table lies is not known from the placement
_STORES = ("store_activations", "write_activations", "store_cache", "write_cache")


@dataclass
class Draft:
    """A schedule in the making: where every operation of every cell stands."""

    placed: Placed
    grid: Grid
    work: dict[str, FloatArray]  # columns of ``Work``, evaluated at the layout. [operations, V]
    ids: Int32Array  # [operations, V + 1], -1 where absent; the last column answers for cell -1
    cell: IntArray  # [N]
    operation: Int8Array  # [N]
    row: IntArray  # [N]
    slots: dict[BufferName, int]
    waits: list[tuple[Int32Array, Int32Array]] = field(default_factory=list)
    takes: Int8Array = field(default_factory=lambda: np.empty(0, np.int8))
    frees: Int8Array = field(default_factory=lambda: np.empty(0, np.int8))

    @classmethod
    def of(cls, placed: Placed, grid: Grid) -> Draft:
        """Find out which operations exist and put them in order."""
        work = _work(placed, grid)
        present = np.zeros((len(OPERATIONS), len(grid)), dtype=bool)
        for code, (flops, bytes_) in enumerate(zip(work["flops"], work["bytes"], strict=True)):
            present[code] = (flops > 0) | (bytes_ > 0)
        present[OP["embed"]] = grid.embeds
        shift = _row_shift(placed, grid)
        shift -= shift.min()
        barriers = placed.runtime.synchronization == "barrier" and not placed.serial
        if placed.runtime.disk_io == "mapped" and not placed.serial:
            work["kernels"] *= present
            _count_streams(work["kernels"], shift, len(grid) + int(shift.max()))
        order = _issue_order(placed)
        sync = OP["sync"] if barriers else -1
        order = order[[code == sync or bool(present[code].any()) for code in order]]
        ids, operation, cell, row = issued(present, order, shift, sync)
        cell = np.clip(cell, 0, len(grid) - 1)  # a barrier may stand before all cells, or after them
        slots = buffer_slots(placed.runtime, placed.policy.prefetch, placed.ahead)
        draft = cls(placed, grid, work, ids, cell, operation, row, slots)
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
        grid, cells = self.grid, len(self.grid)
        target = _target(self.placed, grid)
        first = first_loaded(self.placed.runtime)
        layers = len(self.placed.layer_bytes) - first
        # What belongs to a layer stands in a second row, at the cell that issues it.
        at = _OF_LAYER[self.operation] * cells + self.cell
        pairs = (
            (grid.pass_index, target // layers),
            (grid.layer, target % layers + first),
            (grid.group, np.maximum(grid.group, 0)),
        )
        pass_index, layer, group = (np.concatenate(pair).astype(np.int32)[at] for pair in pairs)
        return Schedule(
            operation=self.operation,
            lane=LANE_OF_OPERATION[self.operation],
            pass_index=pass_index,
            layer=layer,
            group=group,
            **{name: evaluated(each, self.operation, self.cell) for name, each in self.work.items()},
            waits_for=_matrix(self.waits, len(self.operation)),
            takes=self.takes,
            frees=self.frees,
            slots=self.slots,
            window=played,
        )


def _work(placed: Placed, grid: Grid) -> dict[str, FloatArray]:
    """Evaluate the work of every operation in every cell at the layout. [operations, V] each."""
    at, runtime = placed.placement, placed.runtime
    kinds = len(grid.kinds.kind)
    row = np.where(grid.works, grid.work, kinds)  # cells without work have the last
    found = {one.name: np.zeros((len(OPERATIONS), len(grid))) for one in fields(Work)}
    for name, work in cell_work(placed.model, placed.shape, runtime, grid.kinds).items():
        columns = {one: getattr(work, one) for one in found}
        of_kinds = {one: values @ at if values.ndim > 1 else values for one, values in columns.items()}
        if not (of_kinds["flops"].any() or of_kinds["bytes"].any() or name in _LOOKED_UP):
            continue  # there are no such tasks in this layout
        for one, column in found.items():
            of_kind = of_kinds[one]
            if of_kind.any():
                np.append(of_kind, 0.0).take(row, out=column[OP[name]], mode="clip")
    bytes_, kernels = found["bytes"], found["kernels"]
    if runtime.dequantize == "per_pass":
        bytes_[OP["dequantize_weights"]] *= grid.column == 0
    _loads(placed, grid, bytes_, kernels)
    _embedding_rows(placed, grid, bytes_, found["blocks"])
    return found


def _loads(placed: Placed, grid: Grid, bytes_: FloatArray, kernels: FloatArray) -> None:
    """Fill in the loads of the layers' weights: a piece a cell, or tensor by tensor in one burst."""
    runtime, first = placed.runtime, first_loaded(placed.runtime)
    target = _target(placed, grid)
    layer = np.where(target >= 0, target % (len(placed.layer_bytes) - first) + first, 0)
    burst = runtime.weight_loads == "burst"
    whole = grid.starts | burst
    column = first_column(placed, grid)
    opens, chunk = grid.column == column, (grid.column >= column) / np.maximum(1, grid.width - column)
    share = np.where(whole, opens, chunk) * (target >= 0)
    for name, work in layer_work(placed.model, placed.shape, runtime, CellKind.BLOCK).items():
        tiers = np.sign(work.bytes[0, _WEIGHTS])  # whose share it moves: of GPU, CPU, disk
        size, tensors = (table @ tiers for table in (placed.layer_bytes, placed.layer_tensors))
        bytes_[OP[name]] = size[layer] * share
        kernels[OP[name]] = (share > 0) * (tensors[layer] if burst else 1)


def _count_streams(kernels: FloatArray, shift: IntArray, rows: int) -> None:
    """Let every mapped read know how many tensors are read at the same time as its own."""
    reads = [code for code, operation in enumerate(OPERATIONS) if operation.lane == "disk_read"]
    width = kernels.shape[1]
    together = np.zeros(rows)
    for code in reads:
        together[shift[code] : shift[code] + width] += kernels[code]
    for code in reads:
        kernels[code] = np.where(kernels[code] > 0, together[shift[code] : shift[code] + width], 0.0)


def _embedding_rows(placed: Placed, grid: Grid, bytes_: FloatArray, pieces: FloatArray) -> None:
    """Scale the look-up of embedding rows to where this layout has the table."""
    if placed.runtime.loads_embeddings:
        return
    table = placed.layer_bytes[-1 if placed.model.tied_embeddings else 0]
    on_disk, off_gpu = table[2] / table.sum(), (table[1] + table[2]) / table.sum()
    rows = grid.embeds * (grid.kinds.sequences * grid.kinds.new)[grid.work]
    here = rows * placed.model.hidden_bytes
    pieces[OP["read_embeddings"]] = rows * on_disk
    bytes_[OP["read_embeddings"]] = here * on_disk
    bytes_[OP["load_embeddings"]] = here * off_gpu


def first_column(placed: Placed, grid: Grid) -> IntArray:
    """Give the place in its layer from which a cell may load weights. [V]

    With lookahead the previous layer ends that much later, and only then is its slot free. Without overlap
    the next layer is loaded when this one is done.
    """
    if placed.serial:
        return np.where(grid.starts, 0, grid.width - 1)
    return np.where(grid.starts, 0, max(0, placed.ahead - 1))


def _target(placed: Placed, grid: Grid) -> IntArray:
    """Give the layer whose weights a cell loads, counted through all passes; -1 for none. [V]"""
    total = _layers_played(grid)
    target = np.where(grid.starts, grid.weights, grid.weights + placed.policy.prefetch)
    return np.where((grid.weights >= 0) & (target < total), target, -1)


def _issue_order(placed: Placed) -> IntArray:
    """Give the operations in the order in which a row issues them.

    Where loads of weights may last as long as a row does, they do not wait for the row's attention.
    """
    codes = list(range(len(OPERATIONS)))
    if placed.serial:  # what loads the next layer comes last, together
        codes.sort(key=lambda code: OPERATIONS[code].name in LAYER_OPERATIONS)
    elif placed.runtime.synchronization == "barrier":
        loads = [OP[name] for name in LAYER_OPERATIONS[1:]]
        # The group before is stored first: of two groups it is also the one that is loaded.
        stores = [OP[name] for name in ("store_activations", "write_activations")]
        stores = stores if placed.policy.num_groups > 1 else []
        rest = [code for code in codes if code not in (*loads, *stores)]
        place = rest.index(OP["load_output"])
        codes = [*stores, *rest[:place], *loads, *rest[place:]]
    return np.array(codes)


def _row_shift(placed: Placed, grid: Grid) -> IntArray:
    """Rows by which each operation is issued after its cell's own: lookahead, or a barrier's look-ahead."""
    if placed.serial:
        return np.zeros(len(OPERATIONS), dtype=np.int64)
    if placed.runtime.synchronization == "dependency":
        return np.array([placed.ahead * (operation.stage == "after") for operation in OPERATIONS])
    shift = np.zeros(len(OPERATIONS), dtype=np.int64)
    on_cpu = bool(placed.policy.cpu_attention.cpu or placed.policy.cpu_attention.disk)
    enough = int(grid.width[grid.works].min()) > 1
    for name in _LOADS:
        shift[OP[name]] = -1 if enough or "cache" in name else 0
    for name in _STORES:
        shift[OP[name]] = 1 if (enough and "activations" in name) or ("cache" in name and not on_cpu) else 0
    return shift


def _layers_played(grid: Grid) -> int:
    """Count the layers with weights through all passes; there may be fewer than START cells."""
    return int(grid.weights[grid.works].max()) + 1


def _matrix(waits: list[tuple[Int32Array, Int32Array]], total: int) -> Int32Array:
    """Turn lists of (task, other) into rows of others, padded with -1. [N, W]"""
    counts = np.zeros(total, dtype=np.int32)
    for tasks, _ in waits:
        count_waits(counts, tasks)
    waits_for = np.full((total, max(1, int(counts.max(initial=0)))), -1, dtype=np.int32)
    counts[:] = 0
    for tasks, others in waits:
        add_waits(waits_for, counts, tasks, others)
    return waits_for
