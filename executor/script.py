"""What the tasks of a schedule mean to the executor: parts of loads, slots, and the cells they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.memory import BUFFERS, BufferName
from simulator.operations import LAYER_OPERATIONS, OP
from simulator.schedule import Schedule

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Script:
    """Columns beside those of a schedule. [N]

    Attributes:
        part: which piece of a layer's load a task is, or which part of the group's prompts it works on.
        parts: how many there are.
        slot: the slot that a task takes, -1 for none.
        weights: the slot of the weights of the task's layer.
        staging: the slot through which the layer comes from the disk.
        order: counts the cells with attention on the CPU.
    """

    part: _Ints
    parts: _Ints
    slot: _Ints
    weights: _Ints
    staging: _Ints
    order: _Ints

    @staticmethod
    def of(schedule: Schedule, layers: int) -> Script:
        """Read a schedule; ``layers`` are those of a pass that are loaded."""
        operation = schedule.operation.astype(np.int64)
        loads = np.isin(operation, [OP[name] for name in LAYER_OPERATIONS])
        group = np.where(loads, -1, schedule.group)
        keys = np.stack([operation, schedule.pass_index, schedule.layer, group])
        part, parts = _ranks(keys)
        number = schedule.pass_index.astype(np.int64) * layers + schedule.layer - 1
        slot = np.full(len(schedule), -1)
        for index, name in enumerate(BUFFERS):
            takers = np.nonzero(schedule.takes == index)[0]
            slot[takers] = np.arange(len(takers)) % schedule.slots[name]
        return Script(
            part,
            parts,
            slot,
            number % schedule.slots["weights"],
            _staging(schedule, slot, number),
            _ranks(operation[None])[0],
        )


def _ranks(keys: npt.NDArray[np.int64]) -> tuple[_Ints, _Ints]:
    """Give each column's rank among equal ones, and how many these are. [K, N] -> [N], [N]"""
    _, inverse = np.unique(keys, axis=1, return_inverse=True)
    inverse = inverse.ravel()
    order = np.argsort(inverse, kind="stable")
    counts = np.bincount(inverse)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(inverse), dtype=np.int64)
    rank[order] = np.arange(len(inverse)) - np.repeat(starts, counts)
    return rank, counts[inverse]


def _staging(schedule: Schedule, slot: _Ints, number: _Ints) -> _Ints:
    """Give every load of a layer the staging slot that its first read took."""
    name: BufferName = "weight_staging"
    takers = schedule.takes == BUFFERS.index(name)
    of_layer = np.full(int(number.max()) + 1, 0)
    of_layer[number[takers]] = slot[takers]
    return of_layer[np.maximum(number, 0)]
