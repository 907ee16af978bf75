"""Weights: homes on the GPU and the CPU, and the way of every layer through staging memory and slots.

A layer's streamed part passes through a slot: first what lies on the CPU, behind it what comes from the disk,
which has passed through staging memory before. Loads come in parts, so that a layer can be brought in between
the work of the groups of the layer before.

Where both tiers are the same memory, on a machine without a GPU, nothing is copied: the last part of a load
hands the staging buffer over and takes the slot's old one for it, and what lies on the CPU is used there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from executor.aligned import PAGE, aligned, wanted
from executor.arena import Arena
from executor.direct_io import DirectFile
from executor.quantize import Quantized
from executor.read_pool import ReadPool
from executor.runs import Placement, Run, find_runs
from executor.stored import Stored
from simulator.errors import InputError
from simulator.hardware import TIERS, TierName
from simulator.layout import Layout

#: A tensor as kernels use it: whole, quantised, or in parts of its rows.
Held = torch.Tensor | Quantized | tuple[torch.Tensor, ...]

_BOUNCE = 16 << 20  # bytes that are read at a time when homes are filled


@dataclass(frozen=True)
class Tensors:
    """A layer's tensors by name, and where the layout puts them."""

    stored: Mapping[str, Stored]
    block: int | None  # None for the ends of the model

    def on(self, layout: Layout, tier: TierName) -> list[tuple[str, Stored]]:
        """List what lies on a tier: whole tensors, or the rows of each, whose name then says the first."""
        if layout.grain == "tensor":
            letter = tier[0]
            return [
                (name, stored)
                for name, stored in self.stored.items()
                if layout.tensors[name][self.block or 0] == letter
            ]
        parts = ((name, _rows(name, stored, layout.rows[name], tier)) for name, stored in self.stored.items())
        return [(f"{name}@{first}", part) for name, (first, part) in parts if part is not None]


def _rows(
    name: str, stored: Stored, shares: tuple[float, float, float], tier: TierName
) -> tuple[int, Stored | None]:
    """Cut the rows of a tensor that lie on a tier: the GPU has the first, the disk the last."""
    if stored.form is not None:
        raise InputError(
            f"tensor {name}: rows of quantised tensors cannot be split; plan with whole tensors or 16 bits"
        )
    index, rows = TIERS.index(tier), stored.shape[0]
    first = round(sum(shares[:index]) * rows)
    stop = rows if index == len(TIERS) - 1 else round(sum(shares[: index + 1]) * rows)
    if stop <= first:
        return first, None
    size = stored.nbytes // rows
    return first, replace(
        stored,
        offset=stored.offset + first * size,
        nbytes=(stop - first) * size,
        shape=(stop - first, *stored.shape[1:]),
    )


class WeightStore:
    """The weights of a run.

    Args:
        layers: the tensors of every layer of a pass; the first is the embedding, which is not loaded.
        layout: where they lie.
        arenas: memory of the GPU and the CPU.
        slots: how many layers the GPU holds of what is streamed, and how many staging memory.
        pool: the threads that read.
    """

    def __init__(
        self,
        layers: Sequence[Tensors],
        layout: Layout,
        arenas: Mapping[TierName, Arena],
        slots: tuple[int, int],
        pool: ReadPool,
    ) -> None:
        self._pool = pool
        self._files: dict[Path, DirectFile] = {}
        self.on_gpu = [Placement.of(find_runs(each.on(layout, "gpu"))) for each in layers]
        self.on_cpu = [Placement.of(find_runs(each.on(layout, "cpu"))) for each in layers]
        self.on_disk = [
            Placement.of(find_runs(each.on(layout, "disk")), cpu.slot_bytes)
            for each, cpu in zip(layers, self.on_cpu, strict=True)
        ]
        gpu, cpu = arenas["gpu"], arenas["cpu"]
        self.gpu_home = [gpu.take("model weights", each.slot_bytes) for each in self.on_gpu]
        self.cpu_home = [cpu.take("model weights", each.slot_bytes) for each in self.on_cpu]
        staging = max(each.staging_bytes for each in self.on_disk[1:])
        slot = max(each.slot_bytes for each in self.on_disk[1:])
        self._hands_over = gpu.device == cpu.device
        if self._hands_over:
            slot = staging
        self._slots = [gpu.take("weights", slot) for _ in range(slots[0] if slot else 0)]
        self._staging = [cpu.take("weight_staging", staging) for _ in range(slots[1] if staging else 0)]
        self._views: dict[tuple[int, int], dict[str, Held]] = {}

    def file(self, path: Path) -> DirectFile:
        """Open a file once."""
        if path not in self._files:
            self._files[path] = DirectFile(path)
        return self._files[path]

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def fill_homes(self, on_bytes: Callable[[int, int], None]) -> None:
        """Read what stays in memory; ``on_bytes`` hears how much is there, and of how much. [B]"""
        total, done = sum(run.nbytes for each in (*self.on_gpu, *self.on_cpu) for run in each.runs), 0
        bounce = [aligned(_BOUNCE + 2 * PAGE) for _ in range(2)]
        waiting: list[tuple[Future[torch.Tensor], torch.Tensor]] = []
        for number, (run, at, target) in enumerate(self._homes()):
            if len(waiting) == len(bounce):
                done += _finish(*waiting.pop(0))
                on_bytes(done, total)
            buffer = bounce[number % len(bounce)]
            future = self._pool.submit(self.file(run.file), buffer, run.offset + at, len(target))
            waiting.append((future, target))
        for each in waiting:
            done += _finish(*each)
            on_bytes(done, total)

    def _homes(self) -> Iterator[tuple[Run, int, torch.Tensor]]:
        """Go through the pieces of all homes: the run, the bytes of it that come before, and the memory."""
        for placements, homes in ((self.on_gpu, self.gpu_home), (self.on_cpu, self.cpu_home)):
            for placement, home in zip(placements, homes, strict=True):
                for run, slot in zip(placement.runs, placement.slot, strict=True):
                    for at in range(0, run.nbytes, _BOUNCE):
                        yield run, at, home[slot + at : slot + min(at + _BOUNCE, run.nbytes)]

    def read(self, layer: int, staging: int, part: int, parts: int) -> int:
        """Read a part of a layer's share of the disk to staging memory; give its bytes. [B]"""
        memory = self._staging[staging]
        futures = [
            self._pool.submit(self.file(each.file), memory[each.staging :], each.offset, each.nbytes)
            for each in self.on_disk[layer].pieces(part, parts)
        ]
        return sum(len(future.result()) for future in futures)

    def load(self, layer: int, slot: int, staging: int, part: int, parts: int) -> int:
        """Bring a part of a layer's streamed share to the GPU; give the bytes that were copied. [B]"""
        if self._hands_over:
            if part == parts - 1 and self.on_disk[layer].runs:
                self._slots[slot], self._staging[staging] = self._staging[staging], self._slots[slot]
            return 0
        target, moved = self._slots[slot], 0
        home = self.cpu_home[layer]
        first, stop = (len(home) * each // parts for each in (part, part + 1))
        if stop > first:
            target[first:stop].copy_(home[first:stop], non_blocking=True)
            moved += stop - first
        for each in self.on_disk[layer].pieces(part, parts):
            source = wanted(self._staging[staging][each.staging :], each.offset, each.nbytes)
            target[each.slot : each.slot + each.nbytes].copy_(source, non_blocking=True)
            moved += each.nbytes
        return moved

    def views(self, layer: int, slot: int) -> dict[str, Held]:
        """Give a layer's tensors where kernels find them, the streamed ones in a slot."""
        buffer = self._slots[slot] if self._slots else None
        key = (layer, buffer.data_ptr() if buffer is not None else 0)
        if key not in self._views:
            self._views[key] = _assembled(self._places(layer, buffer))
        return self._views[key]

    def _places(self, layer: int, slot: torch.Tensor | None) -> Iterator[tuple[str, Stored, torch.Tensor]]:
        """List a layer's tensors and their memory, the rows of each in order."""
        yield from _at(self.on_gpu[layer].tensors(), self.gpu_home[layer])
        on_cpu, on_disk = self.on_cpu[layer], self.on_disk[layer]
        if self._hands_over:
            yield from _at(on_cpu.tensors(), self.cpu_home[layer])
            if slot is not None:
                yield from _at(on_disk.staged(), slot)
        elif slot is not None:
            yield from _at((*on_cpu.tensors(), *on_disk.tensors()), slot)

    def in_memory(self, layer: int, name: str) -> list[tuple[int, torch.Tensor]]:
        """Give what of a tensor stays in memory, on the GPU or the CPU: the first row and the rows."""
        found = []
        for placement, home in (
            (self.on_gpu[layer], self.gpu_home[layer]),
            (self.on_cpu[layer], self.cpu_home[layer]),
        ):
            for held, stored, at in placement.tensors():
                if _name(held) == name:
                    found.append((_first_row(held), _plain_view(home[at : at + stored.nbytes], stored)))
        return found

    def stored_on_disk(self, layer: int, name: str) -> list[tuple[int, Stored]]:
        """Give what of a tensor stays on the disk: the first row and its place."""
        tensors = self.on_disk[layer].tensors()
        return [(_first_row(held), stored) for held, stored, _ in tensors if _name(held) == name]

    def is_on_gpu(self, layer: int, name: str) -> bool:
        """Say whether all of a tensor lies on the GPU."""
        return name in {held for held, _, _ in self.on_gpu[layer].tensors()}


def _finish(future: Future[torch.Tensor], target: torch.Tensor) -> int:
    target.copy_(future.result())
    return len(target)


def _name(held: str) -> str:
    return held.partition("@")[0]


def _first_row(held: str) -> int:
    return int(held.partition("@")[2] or 0)


def _at(
    tensors: Iterable[tuple[str, Stored, int]], memory: torch.Tensor
) -> Iterator[tuple[str, Stored, torch.Tensor]]:
    """Give tensors with their bytes in memory."""
    return ((held, stored, memory[at : at + stored.nbytes]) for held, stored, at in tensors)


def _assembled(places: Iterable[tuple[str, Stored, torch.Tensor]]) -> dict[str, Held]:
    """Look at memory as tensors; parts of rows, which come in order, are gathered under one name."""
    found: dict[str, Held] = {}
    for held, stored, memory in places:
        view = _view(memory, stored)
        if "@" not in held:
            found[held] = view
        elif isinstance(view, torch.Tensor):
            before = found.get(_name(held), ())
            found[_name(held)] = (*before, view) if isinstance(before, tuple) else (view,)
    return found


def _view(memory: torch.Tensor, stored: Stored) -> torch.Tensor | Quantized:
    if stored.form is not None:
        return Quantized.from_buffer(memory, stored.form)
    return _plain_view(memory, stored)


def _plain_view(memory: torch.Tensor, stored: Stored) -> torch.Tensor:
    return memory.view(stored.dtype).view(stored.shape)
