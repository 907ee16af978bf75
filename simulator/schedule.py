"""The schedule: the ordered tasks of a run, as data. It knows no seconds.

A task names its operation, its lane, its place (pass, layer, group), its work, the earlier tasks that it
waits for, and the buffer slots that it takes and frees. Tasks stand in issue order; each lane works through
its own in that order, so a schedule whose tasks only wait for earlier ones cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simulator.hardware import LANES, LaneName
from simulator.memory import BUFFERS, BufferName
from simulator.operations import OP, OPERATIONS
from simulator.passes import Window
from simulator.policy import FloatArray

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Task:
    """One task, for reading and printing; the schedule itself holds columns."""

    number: int
    operation: str
    lane: LaneName
    pass_index: int
    layer: int
    group: int
    flops: float
    bytes: float
    kernels: float
    steps: float
    blocks: float
    waits_for: tuple[int, ...]
    takes: BufferName | None
    frees: tuple[BufferName, ...]

    def __str__(self) -> str:
        """Write the task on one line: ``12 h2d load_cache p1 l3 g0 waits 4,9 takes cache``."""
        parts = [
            f"{self.number} {self.lane} {self.operation} p{self.pass_index} l{self.layer} g{self.group}",
            f"flops={self.flops:.6g} bytes={self.bytes:.6g}",
        ]
        if self.waits_for:
            parts.append("waits " + ",".join(map(str, self.waits_for)))
        if self.takes:
            parts.append(f"takes {self.takes}")
        if self.frees:
            parts.append("frees " + ",".join(self.frees))
        return " ".join(parts)


@dataclass(frozen=True)
class Schedule:
    """N tasks as columns, in issue order.

    Attributes:
        operation: index into ``OPERATIONS``. [N]
        lane: index into ``LANES``. [N]
        pass_index: index into ``window.passes``. [N]
        layer: 0 is the embedding, then the blocks, last the head. [N]
        group: the group's number; a cohort's groups are numbered on. [N]
        flops: work. [N] [FLOP]
        bytes: bytes moved over the link or in the engine's memory. [N] [B]
        kernels: launches or copies. [N]
        steps: inner dimensions of all kernels together. [N]
        blocks: attention blocks. [N]
        waits_for: numbers of earlier tasks, -1 for none. [N, W]
        takes: index into ``BUFFERS`` of the slot held from the start of the task, -1 for none. [N]
        frees: a bit for each buffer, in the order of ``BUFFERS``, of which a slot is given back at its
            end. [N]
        slots: how many slots each buffer has.
        window: the passes that are played.
    """

    operation: Int8Array
    lane: Int8Array
    pass_index: Int32Array
    layer: Int32Array
    group: Int32Array
    flops: FloatArray
    bytes: FloatArray
    kernels: FloatArray
    steps: FloatArray
    blocks: FloatArray
    waits_for: Int32Array
    takes: Int8Array
    frees: Int8Array
    slots: dict[BufferName, int]
    window: Window

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self.operation)

    def task(self, number: int) -> Task:
        """Give one task."""
        takes, frees = int(self.takes[number]), int(self.frees[number])
        return Task(
            number=number,
            operation=OPERATIONS[self.operation[number]].name,
            lane=LANES[self.lane[number]],
            pass_index=int(self.pass_index[number]),
            layer=int(self.layer[number]),
            group=int(self.group[number]),
            flops=float(self.flops[number]),
            bytes=float(self.bytes[number]),
            kernels=float(self.kernels[number]),
            steps=float(self.steps[number]),
            blocks=float(self.blocks[number]),
            waits_for=tuple(int(other) for other in self.waits_for[number] if other >= 0),
            takes=BUFFERS[takes] if takes >= 0 else None,
            frees=tuple(name for bit, name in enumerate(BUFFERS) if frees >> bit & 1),
        )

    def tasks(self) -> Iterator[Task]:
        """Go through the tasks in issue order."""
        return (self.task(number) for number in range(len(self)))

    @cached_property
    def by_operation(self) -> dict[int, npt.NDArray[np.int64]]:
        """The numbers of the tasks of every operation that there is, by its index. [N] in all"""
        order = np.argsort(self.operation, kind="stable")
        counts = np.bincount(self.operation, minlength=len(OPERATIONS))
        parts = np.split(order, np.cumsum(counts)[:-1])
        return {code: part for code, part in enumerate(parts) if len(part)}

    @property
    def work(self) -> tuple[FloatArray, ...]:
        """The columns that say how much there is to do: FLOPs, bytes, kernels, steps, blocks. [N] each"""
        return self.flops, self.bytes, self.kernels, self.steps, self.blocks

    def where(self, operation: str) -> npt.NDArray[np.bool_]:
        """Mark the tasks of one operation. [N]"""
        return np.asarray(self.operation == OP[operation])
