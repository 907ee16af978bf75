"""Putting tasks in order: compiled loops over the operations of all cells, and over what tasks wait for."""

from __future__ import annotations

import numpy as np

from simulator.kernel import compiled
from simulator.operations import BoolArray, IntArray
from simulator.policy import FloatArray
from simulator.schedule import Int8Array, Int32Array


@compiled
def issued(
    present: BoolArray, order: IntArray, shift: IntArray, sync: int
) -> tuple[Int32Array, Int8Array, IntArray, IntArray]:
    """Number the operations of all cells row by row.

    Args:
        present: which operations each cell has. [operations, V]
        order: the operations in the order in which a row issues them, without those that no cell has.
        shift: rows by which an operation is issued after its cell's own, at least 0. [operations]
        sync: the operation that ends every row in which there is any; -1 for none.

    Returns:
        The number of each operation of each cell, -1 where it is absent and in a last column
        [operations, V + 1]; operation, cell and row of each task. [N] each
    """
    operations, cells = present.shape
    rows = cells + shift.max()
    most = np.sum(present) + (rows if sync >= 0 else 0)
    ids = np.full((operations, cells + 1), -1, np.int32)
    operation, cell, in_row = np.empty(most, np.int8), np.empty(most, np.int64), np.empty(most, np.int64)
    number = 0
    for row in range(rows):
        first = number
        for code in order:
            at = row - shift[code]
            if code == sync:
                if number == first:
                    continue
            elif at < 0 or at >= cells or not present[code, at]:
                continue
            else:
                ids[code, at] = number
            operation[number], cell[number], in_row[number] = code, at, row
            number += 1
    return ids, operation[:number], cell[:number], in_row[:number]


@compiled
def count_waits(counts: Int32Array, tasks: Int32Array) -> None:
    """Count another task that some tasks wait for. [N]"""
    for task in tasks:
        counts[task] += 1


@compiled
def add_waits(waits_for: Int32Array, counts: Int32Array, tasks: Int32Array, others: Int32Array) -> None:
    """Note what tasks wait for, behind what each waits for already. [N, W], [N]"""
    for index in range(len(tasks)):
        task = tasks[index]
        waits_for[task, counts[task]] = others[index]
        counts[task] += 1


@compiled
def evaluated(work: FloatArray, operation: Int8Array, cell: IntArray) -> FloatArray:
    """Look up the work of tasks, which is that of their operation in their cell. [operations, V] to [N]"""
    found = np.empty(len(operation))
    for task in range(len(operation)):
        found[task] = work[operation[task], cell[task]]
    return found
