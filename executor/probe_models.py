"""Checkpoints to measure with: a few layers of real shapes, random numbers that repeat, made in seconds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from executor.checkpoint import Checkpoint
from executor.memory import DTYPES
from simulator.errors import InputError
from simulator.model_config import parse_config
from simulator.units import one_line

_PATTERN = 1 << 20  # random numbers that are repeated; a prime is added, so that rows differ
_PRIME = 7


class LlamaShape(NamedTuple):
    """Dimensions of a model of the Llama family."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int = 4096


#: As wide as models of 7, 1 and half a billion parameters; with as few layers as a cache does not hold.
SHAPES = {
    "wide": LlamaShape(4096, 11008, 3, 32, 32, 16000),
    "middle": LlamaShape(2048, 5632, 8, 32, 4, 32000),
    "narrow": LlamaShape(1024, 2816, 8, 16, 8, 8000),
}


def llama_config(shape: LlamaShape, dtype: str) -> dict[str, Any]:
    """Give the configuration that transformers reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def make_checkpoint(folder: Path, shape: LlamaShape, dtype: str) -> Checkpoint:
    """Write a checkpoint, past what the page cache holds of it, and open it.

    Raises:
        InputError: the disk is full or cannot be written to.
    """
    config = llama_config(shape, dtype)
    model = parse_config(config, folder.name)
    named = [(weight.name, weight.shape) for weight in (*model.embed_weights(), *model.head_weights())]
    for layer in range(model.num_layers):
        named += [(f"model.layers.{layer}.{each.name}", each.shape) for each in model.layer_weights()]
    pattern = torch.randn(_PATTERN + _PRIME, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    file = folder / "model.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: _tensor(pattern, size) for name, size in named}, file, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        _forget(file)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(
            one_line(f"{folder}: a probe cannot be written ({reason}); give --disk another folder")
        ) from None
    return Checkpoint.open(folder)


def _tensor(pattern: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Repeat a pattern; ones for a norm, numbers with a variance of 1 / fan-in for a matrix."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=pattern.dtype)
    count = torch.Size(shape).numel()
    repeated = pattern.repeat(-(-count // len(pattern)))[:count].view(shape)
    return repeated.mul_(shape[-1] ** -0.5)


def _forget(file: Path) -> None:
    """Bring a file to the disk and drop it from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
