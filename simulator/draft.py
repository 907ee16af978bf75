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
        present = (work["flops"] + work["bytes"]) > 0
        present[OP["embed"]] = grid.kind == CellKind.EMBED
        shift = _row_shift(placed, grid)
        lowest = int(shift.min())
        rows = len(grid) + int(shift.max()) - lowest
        order = _issue_order(placed)
        column = np.argsort(order)
        occupied = np.zeros((rows, len(OPERATIONS)), dtype=bool)
        for code in range(len(OPERATIONS)):
            start = int(shift[code]) - lowest
            occupied[start : start + len(grid), column[code]] = present[code]
        if placed.runtime.synchronization == "barrier" and not placed.serial:
            occupied[:, column[OP["sync"]]] = occupied.any(axis=1)
        if placed.runtime.disk_io == "mapped" and not placed.serial:
            work["kernels"] *= present
            _count_streams(work["kernels"], shift - lowest, rows)
        row, place = np.nonzero(occupied)
        operation = order[place]
        numbers = (np.cumsum(occupied.ravel()) - 1).reshape(occupied.shape)
        ids = np.full((len(OPERATIONS), len(grid) + 1), -1, dtype=np.int32)
        for code in range(len(OPERATIONS)):
            start = int(shift[code]) - lowest
            numbered = numbers[start : start + len(grid), column[code]]
            ids[code, :-1] = np.where(present[code], numbered, -1)
        cell = np.minimum(row - (shift[operation] - lowest), len(grid) - 1)
        slots = buffer_slots(placed.runtime, placed.policy.prefetch, placed.ahead)
        draft = cls(placed, grid, work, ids, cell, operation.astype(np.int8), row, slots)
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
        first = first_loaded(self.placed.runtime)
        layers = len(self.placed.layer_bytes) - first
        sync = code == OP["sync"]
        return Schedule(
            operation=self.operation,
            lane=LANE_OF_OPERATION[self.operation],
            pass_index=np.where(of_layer, target // layers, pass_index).astype(np.int32),
            layer=np.where(of_layer, target % layers + first, layer).astype(np.int32),
            group=np.where(of_layer & (group < 0), 0, group).astype(np.int32),
            **{name: np.where(sync, 0.0, column[code, cell]) for name, column in self.work.items()},
            waits_for=_matrix(self.waits, len(self.operation)),
            takes=self.takes,
            frees=self.frees,
            slots=self.slots,
            window=played,
        )


def _work(placed: Placed, grid: Grid) -> dict[str, FloatArray]:
    """Evaluate the work of every operation in every cell at the layout. [operations, V] each."""
    at, runtime = placed.placement, placed.runtime
    real = grid.kind < CellKind.START
    found = {one.name: np.zeros((len(OPERATIONS), len(grid))) for one in fields(Work)}
    for name, work in cell_work(placed.model, placed.shape, runtime, grid.kinds).items():
        for one, column in found.items():
            values = getattr(work, one)
            of_kind = values @ at if values.ndim > 1 else values
            column[OP[name]] = np.where(real, of_kind[grid.work], 0.0)
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
    whole = (grid.kind == CellKind.START) | burst
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
    rows = (grid.kind == CellKind.EMBED) * (grid.kinds.sequences * grid.kinds.new)[grid.work]
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
        return np.where(grid.kind == CellKind.START, 0, grid.width - 1)
    return np.where(grid.kind == CellKind.START, 0, max(0, placed.ahead - 1))


def _target(placed: Placed, grid: Grid) -> IntArray:
    """Give the layer whose weights a cell loads, counted through all passes; -1 for none. [V]"""
    total = _layers_played(grid)
    target = np.where(grid.kind == CellKind.START, grid.weights, grid.weights + placed.policy.prefetch)
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
    enough = int(grid.width[grid.kind < CellKind.START].min()) > 1
    for name in _LOADS:
        shift[OP[name]] = -1 if enough or "cache" in name else 0
    for name in _STORES:
        shift[OP[name]] = 1 if (enough and "activations" in name) or ("cache" in name and not on_cpu) else 0
    return shift


def _layers_played(grid: Grid) -> int:
    """Count the layers with weights through all passes; there may be fewer than START cells."""
    return int(grid.weights[grid.kind < CellKind.START].max()) + 1


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
