"""Where the bytes of a tensor lie on the disk, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from executor.quantized import QuantizedForm
from executor.tensor_file import TensorPlace

__all__ = ["Stored", "plain"]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: ``nbytes`` bytes from byte ``offset`` of ``file`` on.

    Attributes:
        file: Where it is.
        offset: Its first byte [B].
        nbytes: Its bytes in the file [B].
        shape: Of the tensor, quantised or not.
        dtype: Of the tensor, once it is dequantised.
        form: What the bytes are, in the flat form of `Quantized.from_buffer`, for which ``offset`` is even;
            None: the plain elements in row-major order.
    """

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    form: QuantizedForm | None


def plain(place: TensorPlace) -> Stored:
    """Describe a tensor as the checkpoint has it."""
    return Stored(place.file, place.offset, place.nbytes, place.shape, place.dtype, None)
