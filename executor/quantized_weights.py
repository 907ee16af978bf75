"""Weights that are quantised ahead of a run, and kept in files beside the checkpoint.

Quantising takes longer than reading, so it is done once. Every transformer block has a file of its own, a
safetensors file that holds nothing else: its matrices quantised, each as the flat bytes of `QuantizedForm`,
its norms and biases as they are. A block is thus read in one go::

    <checkpoint>/quantized/w4-g64/block-00000.safetensors      4 bits, groups of 64
                                  block-00001.safetensors
                                  ...

A file says what it was made from; one that is damaged, or was made from something else, is made again. Files
get their names when they are complete, so an interrupted preparation goes on where it stopped. Embeddings and
head stay in the checkpoint.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from executor.checkpoint import Checkpoint
from executor.quantize import quantize
from executor.quantized import QuantizedForm
from executor.stored import Stored
from executor.tensor_file import DTYPES, TensorPlace, fault, read, read_header
from simulator.errors import InputError

__all__ = ["prepare"]

_VERSION = "1"  # of what the files hold; another one makes them again
_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_REMEDY = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "raise ulimit -f",
    errno.EACCES: "change the permissions",
    errno.EPERM: "change the permissions",
}


@dataclass(frozen=True)
class _Part:
    """A tensor of a block: its name inside the block, where it comes from, what it becomes."""

    name: str
    place: TensorPlace
    form: QuantizedForm | None

    @property
    def nbytes(self) -> int:
        """Bytes [B] that count."""
        return self.place.nbytes if self.form is None else self.form.nbytes

    @property
    def room(self) -> int:
        """Bytes [B] in the file: an even number, so that what follows starts at an even one."""
        return self.nbytes + self.nbytes % 2

    @property
    def entry(self) -> tuple[str, list[int]]:
        """Type and shape that the header gives it."""
        if self.form is None:
            return _TYPE_NAMES[self.place.dtype], list(self.place.shape)
        return "U8", [self.room]


@dataclass(frozen=True)
class _Block:
    """What the file of one block has to be; ``identity`` is what it says about itself."""

    file: Path
    parts: tuple[_Part, ...]
    identity: dict[str, str]


def prepare(
    checkpoint: Checkpoint,
    bits: int,
    group: int,
    on_block: Callable[[int, int], None] | None = None,
    *,
    folder: Path | None = None,
) -> dict[int, dict[str, Stored]]:
    """Quantise the matrices of all transformer blocks, or find that this has been done.

    Memory holds the largest tensor of a block, and one quantised block. Where all is there, only headers are
    read. Processes that prepare the same weights wait for each other.

    Args:
        checkpoint: The model.
        bits: 4 or 8.
        group: Elements of a group; even.
        on_block: Called after each block that was missing, with the blocks that are there and those in all.
        folder: Where ``w<bits>-g<group>`` is or is to be; no other checkpoint may have it. None:
            ``quantized`` in the checkpoint.

    Returns:
        For each block, by its number, where the tensors lie, by their names inside the block. Those of a
        block lie one behind the other in one file.

    Raises:
        InputError: the checkpoint cannot be read or quantised, or the folder cannot be written.
    """
    home = (checkpoint.path / "quantized" if folder is None else folder) / f"w{bits}-g{group}"
    blocks = _blocks(checkpoint, bits, group, home)
    found = [_find(block) for block in blocks]
    missing = [index for index, stored in enumerate(found) if stored is None]
    if missing:
        with _held(home, blocks):
            for done, index in enumerate(missing, len(blocks) - len(missing) + 1):
                found[index] = _find(blocks[index]) or _make(blocks, index)
                if on_block is not None:
                    on_block(done, len(blocks))
    return {index: stored for index, stored in enumerate(found) if stored is not None}


def _blocks(checkpoint: Checkpoint, bits: int, group: int, home: Path) -> list[_Block]:
    """Say what each block's file has to be."""
    config = hashlib.sha256(_config(checkpoint)).hexdigest()
    made = {"version": _VERSION, "bits": bits, "group": group, "config": config}
    blocks = []
    for index in range(checkpoint.model.num_layers):
        places = checkpoint.block(index)
        parts = tuple(_Part(name, place, _form(place, bits, group)) for name, place in places.items())
        identity = json.dumps(made | {"block": index} | _origin(list(places.values())))
        # One entry: the library writes several in an order that differs from time to time.
        blocks.append(_Block(home / f"block-{index:05}.safetensors", parts, {"made_from": identity}))
    return blocks


def _config(checkpoint: Checkpoint) -> bytes:
    file = checkpoint.path / "config.json"
    try:
        return file.read_bytes()
    except OSError as error:
        raise _changed(file, error) from None


def _origin(places: list[TensorPlace]) -> dict[str, object]:
    """Tell the files of some tensors, and where these lie: a file may change once it has been opened."""
    layout = repr([(place.file.name, place.offset, str(place.dtype), place.name) for place in places])
    sources = [_source(file) for file in sorted({place.file for place in places})]
    return {"sources": sources, "layout": hashlib.sha256(layout.encode()).hexdigest()}


def _source(file: Path) -> tuple[str, int, int]:
    """Tell a version of a file: name, size [B], time of modification [ns]."""
    try:
        status = file.stat()
    except OSError as error:
        raise _changed(file, error) from None
    return file.name, status.st_size, status.st_mtime_ns


def _changed(file: Path, error: OSError) -> InputError:
    return fault(file, f"cannot be read ({_reason(error)}); it has changed, download or save it again")


def _form(place: TensorPlace, bits: int, group: int) -> QuantizedForm | None:
    """Say how a tensor is quantised; None: it is no matrix and stays as it is."""
    return QuantizedForm(place.shape, place.dtype, bits, group) if len(place.shape) == 2 else None


def _find(block: _Block) -> dict[str, Stored] | None:
    """Find a block's tensors in its file; None: there is none, or it is not what it has to be."""
    try:
        with safe_open(block.file, framework="pt") as opened:  # refuses a file of the wrong size
            if opened.metadata() != block.identity:
                return None
        header = read_header(block.file)
    except (SafetensorError, OSError, InputError):
        return None
    entries = {name: (entry["dtype"], entry["shape"]) for name, entry in header.entries.items()}
    if entries != {part.name: part.entry for part in block.parts}:
        return None
    starts = {name: header.start + entry["data_offsets"][0] for name, entry in header.entries.items()}
    return {part.name: _stored(block.file, part, starts[part.name]) for part in block.parts}


def _stored(file: Path, part: _Part, offset: int) -> Stored:
    # The library begins the data at a multiple of 8 bytes, and puts wide elements before narrow ones.
    assert not offset % (2 if part.form is not None else part.place.dtype.itemsize), f"{file}: {part.name}"
    return Stored(file, offset, part.nbytes, part.place.shape, part.place.dtype, part.form)


def _make(blocks: list[_Block], index: int) -> dict[str, Stored]:
    """Quantise a block and write its file."""
    block = blocks[index]
    tensors = {part.name: _converted(part) for part in block.parts}
    try:
        _write(block, tensors)
    except OSError as error:
        raise _unwritable(block.file, blocks, error) from None
    stored = _find(block)
    if stored is None:
        raise fault(block.file, "it is not what was written; look for another program that writes there")
    return stored


def _converted(part: _Part) -> torch.Tensor:
    """Read a tensor and bring it into the form that is stored."""
    tensor = read(part.place)
    if part.form is None:
        return tensor
    flat = torch.zeros(part.room, dtype=torch.uint8)
    try:
        quantize(tensor, part.form.bits, part.form.group, out=flat)
    except InputError as error:
        raise fault(part.place.file, f"tensor {part.place.name}: {error}") from None
    return flat


def _write(block: _Block, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file completely before it gets its name.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    unnamed = block.file.with_suffix(".part")
    try:
        save_file(tensors, unnamed, metadata=block.identity)
        shutil.copymode(block.parts[0].place.file, unnamed)  # the library lets nobody else read it
        with unnamed.open("rb") as stream:
            os.fsync(stream.fileno())  # the name must not reach the disk before the data
        unnamed.replace(block.file)
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            unnamed.unlink(missing_ok=True)
        raise _as_os_error(error) from None


def _as_os_error(error: Exception) -> OSError:
    """Give an error of the operating system, which the library tells in words alone."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


@contextmanager
def _held(home: Path, blocks: list[_Block]) -> Iterator[None]:
    """Make the folder, and keep other processes that prepare the same weights waiting."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(home, blocks, error) from None
    try:
        with suppress(OSError):  # without locks two processes do the same work, with the same result
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unwritable(where: Path, blocks: list[_Block], error: OSError) -> InputError:
    total = sum(part.room for block in blocks for part in block.parts)
    remedy = f"{_REMEDY.get(error.errno or 0, 'check the path')} or choose another folder"
    return fault(
        where, f"cannot be written ({_reason(error)}): the quantised weights take {total} B; {remedy}"
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
