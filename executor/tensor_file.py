"""Safetensors files: where each tensor lies, from the header alone, and a plain read of one tensor.

A file is 8 bytes with the length N of its header (little-endian), N bytes of JSON, and the data. The header
gives each tensor a type, a shape, and where it begins and ends, counted from the first byte of the data.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from simulator.errors import InputError
from simulator.units import one_line, shortened

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LENGTH = 8  # bytes that say how long the header is
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the format
_DAMAGED = "the file is damaged or not a safetensors file; download or save it again"


def fault(where: object, text: str) -> InputError:
    """Make the error of a file, on one line."""
    return InputError(one_line(f"{where}: {text}"))


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: ``nbytes`` bytes in row-major order from byte ``offset`` of ``file`` on.

    ``name`` is the one it has in the file, which may differ from the one the loaded model gives it.
    """

    file: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Header:
    """What a file says about its tensors, the byte at which its data begins, and its size [B]."""

    file: Path
    entries: dict[str, Any]
    start: int
    size: int


def read_header(file: Path) -> Header:
    """Read the header of a file, and nothing else.

    Raises:
        InputError: the file cannot be read, or its header is not one.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            text = _header_text(stream, file, size)
        entries = json.loads(text)
    except OSError as error:
        raise fault(file, f"cannot be read ({_reason(error)})") from None
    except (ValueError, RecursionError):
        raise fault(file, f"the header is not JSON; {_DAMAGED}") from None
    if not isinstance(entries, dict):
        raise fault(file, f"the header is not a table of tensors; {_DAMAGED}")
    entries.pop("__metadata__", None)
    return Header(file, entries, _LENGTH + len(text), size)


def _header_text(stream: BinaryIO, file: Path, size: int) -> bytes:
    length = int.from_bytes(stream.read(_LENGTH), "little")
    if not 2 <= length <= min(_LONGEST_HEADER, size - _LENGTH):
        raise fault(
            file, f"{size} bytes cannot hold the header of {length} bytes that they promise; {_DAMAGED}"
        )
    return stream.read(length)


def place_of(header: Header, name: str) -> TensorPlace:
    """Say where a tensor of a file lies.

    Raises:
        InputError: its entry is not one, its type is not supported, or the file ends before the tensor does.
    """
    where = f"{header.file}: tensor {name}"
    dtype, shape, begin, end = _entry(header.entries[name], where)
    if dtype not in DTYPES:
        raise fault(where, f"type {shortened(dtype)} is not supported; save it as {', '.join(DTYPES)}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        said = f"{end - begin} bytes for {dtype} {list(shape)}, which takes {nbytes}"
        raise fault(where, f"the header says {said}; {_DAMAGED}")
    offset = header.start + begin
    if offset + nbytes > header.size:
        raise fault(
            where,
            f"it ends at byte {offset + nbytes} but the file at {header.size}; the file is cut "
            "short, download or save it again",
        )
    return TensorPlace(header.file, offset, nbytes, DTYPES[dtype], shape, name)


def _entry(entry: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """Take an entry apart: type, shape, begin and end."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (
        fields.get("dtype"),
        _sizes(fields.get("shape")),
        _sizes(fields.get("data_offsets")),
    )
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise fault(where, f"the entry {shortened(entry)} is not one of a tensor; {_DAMAGED}")
    return dtype, shape, *offsets


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        return None
    return tuple(value)


def read(place: TensorPlace, out: torch.Tensor | None = None) -> torch.Tensor:
    """Read a tensor into memory of the host, in the type of the file.

    Args:
        place: where it lies.
        out: memory to fill: on the CPU, contiguous, of the tensor's type and shape. A new tensor if None.

    Raises:
        InputError: the file has changed: it is gone or shorter.
        ValueError: ``out`` does not fit.
    """
    if out is None:
        out = torch.empty(place.shape, dtype=place.dtype)
    if out.dtype != place.dtype or tuple(out.shape) != place.shape:
        raise ValueError(f"{place.name} is {place.dtype} {place.shape}; got {out.dtype} {tuple(out.shape)}")
    if out.device.type != "cpu" or not out.is_contiguous():
        raise ValueError(f"{place.name} is read into contiguous memory of the host only")
    room = out.reshape(-1).view(torch.uint8).numpy().data
    try:
        with place.file.open("rb", buffering=0) as stream:
            stream.seek(place.offset)
            _fill(stream, room, place)
    except OSError as error:
        raise fault(place.file, f"tensor {place.name}: cannot be read ({_reason(error)})") from None
    return out


def _fill(stream: Any, room: memoryview, place: TensorPlace) -> None:
    done = 0
    while done < place.nbytes:  # one call may give less than asked for: Linux stops at 2 GiB
        count = stream.readinto(room[done:])
        if not count:
            raise fault(
                place.file,
                f"tensor {place.name}: the file ends {place.nbytes - done} bytes early; "
                "it has changed since it was opened, download or save it again",
            )
        done += count
