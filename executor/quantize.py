"""Group-wise quantisation: 4 or 8 bits an element, a 16-bit scale and a 16-bit minimum a group.

An element ``x`` of a group becomes ``code = round((x - minimum) / scale)`` and comes back as ``minimum +
scale x code``. A group is ``group`` neighbours of the last dimension (the input dimension of a linear layer's
weight, the features of a cached token), so that every row stands alone: a token is quantised when it comes,
and a group's elements lie side by side in memory. A last dimension that is no multiple of the group is filled
up with copies of its last element.

Laws, with ``step`` for the stored scale and apart from rounding to the tensor's own type:

- no element moves by more than ``step / 2``, and a group of equal elements does not move;
- in 16-bit tensors the smallest element of a group does not move, and in float16 the largest by at most
  ``levels x 2^-11`` steps, which is what rounding the scale to 16 bits costs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from executor.quantized import Quantized, QuantizedForm
from simulator.errors import InputError

__all__ = ["Quantized", "QuantizedForm", "dequantize", "quantize"]

_TILE = {"cpu": 1 << 19, "cuda": 1 << 24}  # elements worked on at a time: a core's cache, spare GPU memory
_WIDE = torch.float32  # what is computed in; less would round twice


def quantize(tensor: torch.Tensor, bits: int, group: int = 64, out: torch.Tensor | None = None) -> Quantized:
    """Quantise a tensor where it lies, on the CPU or the GPU.

    Args:
        tensor: float16, bfloat16 or float32; any shape with at least one dimension.
        bits: 4 or 8.
        group: Elements of a group; even.
        out: Memory for the flat form, as for `Quantized.to_bytes`; None allocates.

    Raises:
        InputError: not finite, or too wide for a 16-bit scale; nothing that can be quantised at all.
    """
    form = QuantizedForm(tuple(tensor.shape), tensor.dtype, bits, group)
    if out is None:
        out = torch.empty(form.nbytes, dtype=torch.uint8, device=tensor.device)
    result = Quantized.from_buffer(out, form)
    table = tensor.detach().reshape(form.rows, form.columns)
    floor, step = _choose_steps(table, result)
    for tile, grouped in _tiles(form, tensor.device):
        _load(grouped, table[tile])
        grouped.sub_(floor[tile])
        grouped.div_(step[tile])
        _pack(grouped.round_(), result.data[tile])
    return result


def dequantize(quantized: Quantized, out: torch.Tensor | None = None) -> torch.Tensor:
    """Bring a tensor back, on the device where the codes lie.

    Args:
        quantized: The codes.
        out: Where to, with the tensor's shape, of any floating type; None allocates the original type.

    Returns:
        The tensor, ``minimum + scale x code``, rounded once to the type of ``out``.
    """
    form = quantized.form
    if out is None:
        out = torch.empty(form.shape, dtype=form.dtype, device=quantized.data.device)
    if tuple(out.shape) != form.shape:
        raise ValueError(f"out has shape {list(out.shape)}, the quantised tensor {list(form.shape)}")
    if not out.is_contiguous():
        return out.copy_(dequantize(quantized, torch.empty(form.shape, dtype=out.dtype, device=out.device)))
    table = out.view(form.rows, form.columns)
    floor = quantized.minimum.to(_WIDE).unsqueeze(-1)
    step = quantized.scale.to(_WIDE).unsqueeze(-1)
    for tile, grouped in _tiles(form, out.device):
        _unpack(quantized.data[tile], grouped)
        grouped.mul_(step[tile])
        grouped.add_(floor[tile])
        table[tile].copy_(grouped.view(len(grouped), -1)[:, : form.columns])
    return out


def _choose_steps(table: torch.Tensor, result: Quantized) -> tuple[torch.Tensor, torch.Tensor]:
    """Store the minima and scales of all groups; give both in float32, ``[rows, groups, 1]``.

    In what is given, a scale of 0 is 1: it is to divide by.

    Args:
        table: The tensor, shape ``[rows, columns]``.
        result: Its ``scale`` and ``minimum`` are filled.
    """
    form = result.form
    lowest = torch.empty(form.rows, form.groups, dtype=_WIDE, device=table.device)
    highest = torch.empty_like(lowest)
    for tile, grouped in _tiles(form, table.device):
        _load(grouped, table[tile])
        torch.amin(grouped, -1, out=lowest[tile])  # both at once (aminmax) would take ten times as long
        torch.amax(grouped, -1, out=highest[tile])
    result.minimum.copy_(_rounded_down(lowest, form.store_dtype))
    floor = result.minimum.to(_WIDE)
    result.scale.copy_(_rounded_scale(highest.sub_(floor), form.levels, form.store_dtype))
    step = result.scale.to(_WIDE)
    if not torch.isfinite((floor + step * form.levels).to(form.dtype)).all():
        raise InputError(
            f"a tensor of shape {list(form.shape)} holds NaN, infinity or a range beyond {form.store_dtype}: "
            "keep it at 16 bits, or repair the checkpoint"
        )
    # All elements of a group without a step are at its minimum: 0 divided by anything.
    return floor.unsqueeze(-1), step.masked_fill_(step == 0, 1).unsqueeze(-1)


def _tiles(form: QuantizedForm, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of rows with room to work on them, float32 ``[rows, groups, group]``, always the same."""
    width = form.groups * form.group
    most = _TILE[device.type] // max(width, 1)
    rows = max(1, min(most, form.rows))
    wide = torch.empty(rows, form.groups, form.group, dtype=_WIDE, device=device)
    for start in range(0, form.rows, rows):
        stop = min(start + rows, form.rows)
        yield slice(start, stop), wide[: stop - start]


def _load(grouped: torch.Tensor, table: torch.Tensor) -> None:
    """Copy rows into whole groups, the last of which is filled up with copies of the last element."""
    wide, columns = grouped.view(len(grouped), -1), table.shape[1]
    wide[:, :columns] = table
    if columns < wide.shape[1]:
        wide[:, columns:] = wide[:, columns - 1 : columns]


def _pack(codes: torch.Tensor, data: torch.Tensor) -> None:
    """Store whole numbers, float32 ``[rows, groups, group]``, as uint8 ``[rows, row_bytes]``."""
    wide, half = codes.view(len(codes), -1), data.shape[1]
    if half < wide.shape[1]:  # two in a byte: below 256 float32 computes as integers do, without a copy
        wide = wide[:, half:].mul_(16).add_(wide[:, :half])
    data.copy_(wide)


def _unpack(data: torch.Tensor, codes: torch.Tensor) -> None:
    """Undo `_pack`."""
    wide, half = codes.view(len(codes), -1), data.shape[1]
    if half == wide.shape[1]:
        wide.copy_(data)
        return
    wide[:, :half] = data & 15
    wide[:, half:] = data >> 4


def _rounded_down(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float32 to 16 bits, never up: a code must not be negative. Exact for 16-bit tensors."""
    near = value.to(dtype)
    # Of 16-bit floats the integer of the same bits counts magnitude; the sign is its sign.
    bits = near.view(torch.int16)
    below = (bits + torch.where(bits < 0, 1, -1).to(torch.int16)).view(dtype)
    return torch.where(near.to(_WIDE) > value, below, near)


def _rounded_scale(span: torch.Tensor, levels: int, dtype: torch.dtype) -> torch.Tensor:
    """Divide a group's span by its steps and round to 16 bits, so that the largest code is ``levels``.

    The nearest number does that nearly always. Where it is so much too small that the largest element would
    get the next code, which does not fit in the bits (eight bits of bfloat16, subnormal numbers), the next
    larger is taken.
    """
    near = (span / levels).to(dtype)
    above = (near.view(torch.int16) + 1).view(dtype)
    return torch.where(near.to(_WIDE) * (levels + 0.499) < span, above, near)
