"""Records: the keys and values of one token, for the units of a group that lie on one tier together.

A *unit* is one key and value head of one sequence. Records of successive tokens lie one behind the other, so
that a new token is one piece of memory (or of the disk), and so is a run of tokens:

    plain       keys [U,D] | values [U,D]
    quantised   for keys, then for values: scales [U,G] | minima [U,G] | codes [U, D x bits / 8]

Letters as in `executor.layers`; U units, G groups of a head's elements, S tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from executor.quantize import Quantized, QuantizedForm, dequantize, quantize

_TILE = 4 << 20  # bytes that are brought together before they are expanded

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class RecordForm:
    """What a record holds.

    Attributes:
        units: U.
        head_dim: D.
        dtype: of keys and values.
        bits: 16 for keys and values as they are, 8 or 4.
        group: elements that share a scale.
    """

    units: int
    head_dim: int
    dtype: torch.dtype
    bits: int = 16
    group: int = 64

    @property
    def quantized(self) -> bool:
        """Whether records hold codes."""
        return self.bits < 16

    @property
    def nbytes(self) -> int:
        """Size of a record. [B]"""
        return 2 * self.units * self.unit_bytes

    @property
    def unit_bytes(self) -> int:
        """Size of a unit's keys, or values. [B]"""
        return sum(self._planes()) if self.quantized else self.head_dim * self.dtype.itemsize

    def _planes(self) -> tuple[int, int, int]:
        """Bytes of a unit's scales, minima and codes."""
        groups = self.head_dim // self.group
        return 2 * groups, 2 * groups, self.head_dim * self.bits // 8

    def pair(self, records: torch.Tensor) -> Pair:
        """Look at plain records uint8 [S,R] as keys and values [S,U,D]."""
        half = self.units * self.unit_bytes
        keys, values = records[:, :half], records[:, half:]
        shape = (len(records), self.units, self.head_dim)
        return keys.view(self.dtype).view(shape), values.view(self.dtype).view(shape)

    def planes(self, records: torch.Tensor) -> list[torch.Tensor]:
        """Look at records uint8 [S,R] as what every unit has in them: uint8 [S,U,.], keys before values."""
        sizes = self._planes() if self.quantized else (self.unit_bytes,)
        found, at = [], 0
        for size in (*sizes, *sizes):
            plane = records[:, at : at + self.units * size]
            found.append(plane.view(len(records), self.units, size))
            at += self.units * size
        return found

    def fill(self, records: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first: int = 0) -> None:
        """Put keys and values [S,u,D] into records uint8 [S,R], from unit ``first`` on."""
        units = slice(first, first + keys.shape[1])
        if not self.quantized:
            for target, source in zip(self.pair(records), (keys, values), strict=True):
                target[:, units].copy_(source)
            return
        flat = [plane for each in (keys, values) for plane in _three(self._packed(each))]
        for target, codes in zip(self.planes(records), flat, strict=True):
            target[:, units].copy_(codes.view(len(records), keys.shape[1], -1))

    def move(self, records: torch.Tensor, part: torch.Tensor, units: int, first: int) -> None:
        """Copy records of ``units`` units alone [S,r] into whole records [S,R], from unit ``first`` on."""
        if units == self.units:
            records.copy_(part, non_blocking=True)
            return
        alone = replace(self, units=units)
        for target, source in zip(self.planes(records), alone.planes(part), strict=True):
            target[:, first : first + units].copy_(source, non_blocking=True)

    def expand(self, records: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Bring quantised records uint8 [S,R] back: into keys and values [S,U,D]."""
        rows = max(1, _TILE // self.nbytes)
        for start in range(0, len(records), rows):
            planes = self.planes(records[start : start + rows])
            for part, target in ((planes[:3], keys), (planes[3:], values)):
                shape = (len(part[0]), self.units, self.head_dim)
                form = QuantizedForm(shape, self.dtype, self.bits, self.group)
                flat = torch.empty(form.nbytes, dtype=torch.uint8, device=records.device)
                packed = Quantized.from_buffer(flat, form)
                for codes, plane in zip(_three(packed), part, strict=True):
                    codes.view(plane.shape).copy_(plane)
                dequantize(packed, target[start : start + rows])

    def _packed(self, tensor: torch.Tensor) -> Quantized:
        return quantize(tensor.contiguous(), self.bits, self.group)


def _three(packed: Quantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Look at scales, minima and codes as bytes, in the order of a record."""
    return packed.scale.view(torch.uint8), packed.minimum.view(torch.uint8), packed.data


def cache_group(head_dim: int, group: int) -> int:
    """Give the elements that share a scale: ``group``, or the largest even part of a head below it.

    >>> cache_group(128, 64), cache_group(80, 64), cache_group(32, 64)
    (64, 40, 32)
    """
    return max(size for size in range(2, min(head_dim, group) + 1, 2) if math.gcd(size, head_dim) == size)
