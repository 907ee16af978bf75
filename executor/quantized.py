"""What a quantised tensor looks like: its parts, their sizes, and how they lie in flat memory.

The flat form is ``[scale | minimum | codes]``, each ``[rows, ...]``. With 4 bits, a byte has an element of
the row's first half in its low four bits and the one half a row later in its high four, so that both halves
unpack without a shuffle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from simulator.errors import InputError

__all__ = ["Quantized", "QuantizedForm"]


@dataclass(frozen=True)
class QuantizedForm:
    """What a quantised tensor looks like, without its values.

    Attributes:
        shape: Shape of the tensor, at least one dimension.
        dtype: Type of the tensor: float16, bfloat16 or float32.
        bits: 4 or 8.
        group: Elements of a group; even.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bits: int
    group: int

    def __post_init__(self) -> None:
        if self.bits not in {4, 8}:
            raise InputError(
                f"bits: {self.bits} cannot be quantised to; use 4 or 8, or 16 to leave it as it is"
            )
        if self.group < 2 or self.group % 2:
            raise InputError(f"group: {self.group} is no size of a group; use an even number, such as 64")
        if self.dtype not in {torch.float16, torch.bfloat16, torch.float32} or not self.shape:
            raise InputError(
                f"a {self.dtype} tensor of shape {list(self.shape)} cannot be quantised; leave it as it is"
            )

    @property
    def levels(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def store_dtype(self) -> torch.dtype:
        """Type of scales and minima: that of the tensor; float16 for a float32 tensor."""
        return torch.float16 if self.dtype == torch.float32 else self.dtype

    @property
    def rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """The last dimension."""
        return self.shape[-1]

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def row_bytes(self) -> int:
        """Bytes [B] of a row's codes: ``groups x group x bits / 8``."""
        return self.groups * self.group * self.bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes [B] in all: ``rows x groups x (group x bits / 8 + 4)``, incomplete groups being filled up."""
        return self.rows * (self.row_bytes + 4 * self.groups)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised tensor.

    Attributes:
        form: Shape, type, bits and group.
        data: Codes, uint8, shape ``[rows, row_bytes]``.
        scale: 16-bit steps, at least 0, shape ``[rows, groups]``.
        minimum: 16-bit minima, shape ``[rows, groups]``.
    """

    form: QuantizedForm
    data: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that was quantised."""
        return self.form.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tensor that was quantised."""
        return self.form.dtype

    @property
    def nbytes(self) -> int:
        """Bytes [B] of codes, scales and minima."""
        return self.form.nbytes

    def to_bytes(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Write the flat form.

        Args:
            out: Where to, uint8, at least ``[nbytes]``, at an even address; None allocates.

        Returns:
            uint8, shape ``[nbytes]``.
        """
        if out is None:
            out = torch.empty(self.nbytes, dtype=torch.uint8, device=self.data.device)
        flat = Quantized.from_buffer(out, self.form)
        flat.data.copy_(self.data)
        flat.scale.copy_(self.scale)
        flat.minimum.copy_(self.minimum)
        return out[: self.nbytes]

    @classmethod
    def from_buffer(cls, buffer: torch.Tensor, form: QuantizedForm) -> Quantized:
        """Look at a flat form, without a copy.

        Args:
            buffer: uint8, at least ``[form.nbytes]``, at an even address; the result shares its memory.
            form: What was written there.
        """
        flat = buffer.dtype == torch.uint8 and buffer.dim() == 1 and buffer.is_contiguous()
        if not flat or buffer.numel() < form.nbytes or buffer.storage_offset() % 2:
            raise ValueError(
                f"{form} needs a flat uint8 buffer of {form.nbytes} B at an even address, "
                f"not {buffer.dtype} {list(buffer.shape)} at {buffer.storage_offset()}"
            )
        side = form.rows * form.groups * 2
        pair = (form.rows, form.groups)
        return cls(
            form,
            buffer[2 * side : form.nbytes].view(form.rows, form.row_bytes),
            buffer[:side].view(form.store_dtype).view(pair),
            buffer[side : 2 * side].view(form.store_dtype).view(pair),
        )
