"""What is stored quantised, expanded to what kernels use: a layer's matrices, and a group's cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from executor.arena import Arena, rounded
from executor.cache import Home
from executor.layers import Weights
from executor.quantize import Quantized, dequantize
from executor.records import Pair
from executor.stored import Stored
from executor.weights import WeightStore
from simulator.hardware import TierName


class ExpandedWeights:
    """A layer's tensors as kernels use them.

    Args:
        store: where they are.
        blocks: the tensors of quantised blocks, by number; none where nothing is quantised.
        arena: memory of the GPU.
        slots: layers that are in use at once: two while projections run ahead.
    """

    def __init__(
        self, store: WeightStore, blocks: Mapping[int, Mapping[str, Stored]], arena: Arena, slots: int
    ) -> None:
        self._store, self._blocks = store, blocks
        sizes = (sum(rounded(_nbytes(each)) for each in block.values()) for block in blocks.values())
        largest = max(sizes, default=0)
        self._slots = [arena.take("expanded weights", largest) for _ in range(slots if largest else 0)]

    def of(self, layer: int, slot: int, number: int) -> Weights:
        """Give the tensors of a layer in a slot; ``number`` counts layers through all passes."""
        found = self._store.views(layer, slot)
        expanded = self._expanded(layer, number)
        return {**{name: _usable(held) for name, held in found.items() if name not in expanded}, **expanded}

    def expand(self, layer: int, slot: int, number: int) -> None:
        """Expand a layer's quantised matrices."""
        found = self._store.views(layer, slot)
        for name, out in self._expanded(layer, number).items():
            held = found[name]
            assert isinstance(held, Quantized)
            dequantize(held, out)

    def _expanded(self, layer: int, number: int) -> dict[str, torch.Tensor]:
        """Look at the memory into which a layer's matrices are expanded."""
        found: dict[str, torch.Tensor] = {}
        at = 0
        for name, stored in self._blocks.get(layer - 1, {}).items():
            if stored.form is not None:
                memory = self._slots[number % len(self._slots)][at : at + _nbytes(stored)]
                found[name] = memory.view(stored.dtype).view(stored.shape)
                at += rounded(_nbytes(stored))
        return found


class ExpandedCache:
    """A group's cache as kernels use it.

    Args:
        homes: the shares of the cache, if these are quantised.
        rows: tokens of a sequence at most.
        arenas: memory of the engines that attend.
    """

    def __init__(self, homes: Sequence[Home], rows: int, arenas: Mapping[TierName, Arena]) -> None:
        self._pairs: dict[Home, Pair] = {}
        for home in homes:
            form, arena = home.form, arenas[home.share.engine]
            shape = (rows, form.units, form.head_dim)
            nbytes = rows * form.units * form.head_dim * form.dtype.itemsize
            keys, values = (
                arena.take("expanded cache", nbytes).view(form.dtype).view(shape) for _ in range(2)
            )
            self._pairs[home] = (keys, values)

    def expand(self, home: Home, records: Iterable[torch.Tensor]) -> None:
        """Expand a home's records uint8 [S_i,R]."""
        keys, values = self._pairs[home]
        at = 0
        for each in records:
            rows = slice(at, at + len(each))
            home.form.expand(each, keys[rows], values[rows])
            at += len(each)

    def pairs(self, home: Home, records: Sequence[torch.Tensor]) -> list[Pair]:
        """Look at records as keys and values [S,U,D]: quantised ones where they were expanded."""
        if home not in self._pairs:
            return [home.form.pair(each) for each in records]
        rows = sum(map(len, records))
        keys, values = self._pairs[home]
        return [(keys[:rows], values[:rows])]


def _usable(held: object) -> torch.Tensor:
    """Give a tensor as kernels take it: of parts of rows, vectors are joined."""
    if isinstance(held, tuple) and held[0].dim() == 1:
        return torch.cat(held)
    return held  # type: ignore[return-value] # matrices in parts are multiplied part by part


def _nbytes(stored: Stored) -> int:
    """Give the bytes of a matrix once it is expanded; 0 for what is not quantised. [B]"""
    return 0 if stored.form is None else stored.dtype.itemsize * torch.Size(stored.shape).numel()
