"""A checkpoint of a Llama shape with random weights, to measure with where the real one cannot be had.

    python -m benchmarks.make_checkpoint DIR --shape llama-7b [--layers N] [--dtype bfloat16] [--seed 0]

Writes config.json and safetensors files as transformers would. Matrices are normal with a variance of
1 / fan-in and norms are ones, so that hidden states stay finite through any number of layers. The tokens mean
nothing, and none ends a text. A tensor's numbers depend on the seed and its name alone.

Holds one file in memory, 2 GB unless told otherwise. A run that was interrupted goes on at the first file
that is missing. Nothing is left in the page cache: whoever reads the files first finds the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from executor.probe_models import LlamaShape, llama_config
from simulator.errors import InputError, PlannerError
from simulator.model import ModelSpec
from simulator.model_config import parse_config
from simulator.units import BYTES, one_line

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHARD = 2e9  # bytes
INDEX = "model.safetensors.index.json"

SHAPES = {
    "llama-7b": LlamaShape(4096, 11008, 32, 32, 32, 32000),
    "llama-1b": LlamaShape(2048, 5632, 22, 32, 4, 32000, 2048),
    "llama-tiny": LlamaShape(64, 176, 2, 4, 2, 256, 256),
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A file of the checkpoint: its name, and the shapes of its tensors by their names."""

    name: str
    tensors: dict[str, Shape]


def config(shape: str, layers: int | None, dtype: str, seed: int = 0) -> dict[str, Any]:
    """Give the configuration that transformers reads; it ignores the seed."""
    found = SHAPES[shape] if layers is None else SHAPES[shape]._replace(layers=layers)
    return llama_config(found, dtype) | {"random_weights_seed": seed}


def tensors(model: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """List all tensors of a model, in the order in which they are used."""
    for weight in model.embed_weights():
        yield weight.name, weight.shape
    for layer in range(model.num_layers):
        for weight in model.layer_weights():
            yield f"model.layers.{layer}.{weight.name}", weight.shape
    for weight in model.head_weights():
        yield weight.name, weight.shape


def nbytes(shape: Shape, dtype: str) -> int:
    """Give the size of a tensor. [B]"""
    return torch.Size(shape).numel() * DTYPES[dtype].itemsize


def shards(named: Iterable[tuple[str, Shape]], dtype: str, limit: float = SHARD) -> list[Shard]:
    """Cut the list of tensors into files of at most ``limit`` [B], or of one tensor that is larger."""
    groups: list[dict[str, Shape]] = [{}]
    used = 0
    for name, shape in named:
        size = nbytes(shape, dtype)
        if groups[-1] and used + size > limit:
            groups.append({})
            used = 0
        groups[-1][name] = shape
        used += size
    count = len(groups)
    return [Shard(f"model-{i:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def random_tensor(name: str, shape: Shape, dtype: str, seed: int) -> torch.Tensor:
    """Make a tensor: ones for a norm, normal numbers with a variance of 1 / fan-in for a matrix."""
    tensor = torch.ones(shape, dtype=DTYPES[dtype])
    if len(shape) == 1:
        return tensor
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return tensor.normal_(std=shape[-1] ** -0.5, generator=generator)


def is_there(file: Path, shard: Shard) -> bool:
    """Say whether a file was written before.

    Raises:
        InputError: it is another one.
    """
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as stored:
            same = set(stored.keys()) == set(shard.tensors)
    except SafetensorError:
        same = False
    if not same:
        raise InputError(one_line(f"{file}: this is not what would be written here; choose another folder"))
    return True


def write_shard(file: Path, shard: Shard, dtype: str, seed: int) -> None:
    """Write a file under another name, wait for the disk, drop it from the page cache and rename it."""
    made = {name: random_tensor(name, shape, dtype, seed) for name, shape in shard.tensors.items()}
    part = file.with_suffix(".part")
    save_file(made, part, metadata={"format": "pt"})
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    part.rename(file)


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write a small file.

    Raises:
        InputError: there is one that says something else.
    """
    text = json.dumps(data, indent=2) + "\n"
    if file.exists() and file.read_text() != text:
        raise InputError(one_line(f"{file}: another checkpoint is here; choose another folder"))
    file.write_text(text)


def make(
    folder: Path,
    shape: str,
    layers: int | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    limit: float = SHARD,
) -> Iterator[Path]:
    """Write a checkpoint, or the rest of one, and give the files as they become complete.

    Args:
        folder: where.
        shape: one of ``SHAPES``.
        layers: instead of those of the shape.
        dtype: one of ``DTYPES``.
        seed: of the weights.
        limit: size of a file [B].

    Raises:
        InputError: the folder holds another checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = config(shape, layers, dtype, seed)
    model = parse_config(data, shape)
    write_json(folder / "config.json", data)
    files = shards(tensors(model), dtype, limit)
    for shard in files:
        file = folder / shard.name
        if not is_there(file, shard):
            write_shard(file, shard, dtype, seed)
        yield file
    index = {
        "metadata": {"total_size": sum(nbytes(shape, dtype) for _, shape in tensors(model))},
        "weight_map": {name: shard.name for shard in files for name in shard.tensors},
    }
    write_json(folder / INDEX, index)


def main() -> int:
    """Write a checkpoint and print the names of its files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="instead of those of the shape")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=BYTES.parse, default=SHARD, help="of a file, such as '2 GB'")
    given = parser.parse_args()
    try:
        for file in make(given.folder, given.shape, given.layers, given.dtype, given.seed, given.shard_size):
            print(file, flush=True)
    except PlannerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
