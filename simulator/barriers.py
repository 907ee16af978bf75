"""How an engine keeps its tasks apart: a barrier after every cell, or one task after the other."""

from __future__ import annotations

import numpy as np

from simulator.cost import LANE_OF_OPERATION
from simulator.draft import Draft
from simulator.hardware import LANES
from simulator.operations import LAYER_OPERATIONS, OP, IntArray
from simulator.schedule import Int8Array

#: What the thread that issues all work does itself, before it launches the kernels of the same row.
_OF_HOST = ("stage_weights", "stage_cache", "expand_cache")


def chain(draft: Draft) -> None:
    """Let every task wait for the one issued before it; what loads a layer runs together, as one step."""
    step = steps(draft.operation, draft.row)
    numbers = np.arange(len(step))
    for distance in range(1, 2 * len(LAYER_OPERATIONS)):
        before = numbers[:-distance]
        after = numbers[distance:]
        waits = step[before] == step[after] - 1
        draft.waits.append((after[waits].astype(np.int32), before[waits].astype(np.int32)))


def steps(operation: IntArray | Int8Array, row: IntArray) -> IntArray:
    """Number the steps of a run without overlap: one a task, but one for all loads of a layer. [N]"""
    loads = np.isin(operation, [OP[name] for name in LAYER_OPERATIONS])
    together = loads[1:] & loads[:-1] & (row[1:] == row[:-1])
    return np.concatenate([[0], np.cumsum(~together)])


def add_barriers(draft: Draft) -> None:
    """After every row all lanes wait for each other; within it kernels wait for what the host does first."""
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
        if LANES[index] == "gpu":
            _wait_for_host(draft, tasks[is_first])


def _wait_for_host(draft: Draft, kernels: IntArray) -> None:
    """Let the first kernel of each row wait for the last that the host does before it launches kernels."""
    host = np.nonzero(np.isin(draft.operation, [OP[name] for name in _OF_HOST]))[0]
    last = np.full(int(draft.row.max()) + 1, -1)
    last[draft.row[host]] = host  # of several in a row, the last
    waits = last[draft.row[kernels]]
    both = (waits >= 0) & (waits < kernels)
    draft.waits.append((kernels[both].astype(np.int32), waits[both].astype(np.int32)))
