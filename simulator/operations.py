"""What one cell of the traversal does: the single place where the work of a run is derived.

A *cell* is one (pass, layer, group). Its operations and their FLOPs, bytes and kernel launches are affine in
the placement variables (``simulator.policy.PLACEMENT``). The placement program sums these forms with the
variables left open; the schedule evaluates the same forms at a layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulator.hardware import LaneName
from simulator.model import ModelSpec
from simulator.policy import (
    ACTIVATIONS_OFF_GPU,
    ACTIVATIONS_ON_DISK,
    ALWAYS,
    CACHE_OFF_GPU,
    CACHE_ON_CPU_ENGINE,
    CACHE_ON_DISK,
    CACHE_ON_GPU_ENGINE,
    CACHE_STREAMED,
    DISK_WEIGHTS,
    PLACEMENT,
    STREAMED_WEIGHTS,
    Bits,
    FloatArray,
)
from simulator.runtime import Runtime

IntArray = npt.NDArray[np.int64]
CostKind = Literal["copy", "matmul", "prompt_attention", "attention", "dequantize", "quantize", "none"]
Stage = Literal["before", "after", "weights", "sync"]


class CellKind(IntEnum):
    """What a layer of the traversal is; ``START`` only loads weights, before the first; ``PAUSE`` waits."""

    EMBED = 0
    BLOCK = 1
    HEAD = 2
    START = 3
    PAUSE = 4


@dataclass(frozen=True)
class Operation:
    """A kind of task: its lane, how its time follows from its work, and when it is issued.

    ``before`` is issued up to and including the projections to query, key and value, ``after`` from the
    attention on; with lookahead the next cell's ``before`` is issued ahead of this cell's ``after``.
    """

    name: str
    lane: LaneName
    cost: CostKind
    stage: Stage


#: Every operation, in issue order within a cell.
OPERATIONS: tuple[Operation, ...] = (
    Operation("read_activations", "disk_read", "copy", "before"),
    Operation("load_activations", "h2d", "copy", "before"),
    Operation("read_cache", "disk_read", "copy", "before"),
    Operation("load_cache", "h2d", "copy", "before"),
    Operation("read_embeddings", "disk_read", "copy", "before"),
    Operation("load_embeddings", "h2d", "copy", "before"),
    Operation("embed", "gpu", "matmul", "before"),
    Operation("dequantize_weights", "gpu", "dequantize", "before"),
    Operation("qkv", "gpu", "matmul", "before"),
    Operation("quantize_cache", "gpu", "quantize", "before"),
    Operation("store_query", "d2h", "copy", "before"),
    Operation("store_cache", "d2h", "copy", "before"),
    Operation("write_cache", "disk_write", "copy", "before"),
    Operation("dequantize_cache_cpu", "cpu", "dequantize", "before"),
    Operation("attend_cpu", "cpu", "attention", "before"),
    Operation("load_output", "h2d", "copy", "after"),
    Operation("dequantize_cache", "gpu", "dequantize", "after"),
    Operation("attend_prompt", "gpu", "prompt_attention", "after"),
    Operation("attend", "gpu", "attention", "after"),
    Operation("mlp", "gpu", "matmul", "after"),
    Operation("head", "gpu", "matmul", "after"),
    Operation("store_activations", "d2h", "copy", "after"),
    Operation("write_activations", "disk_write", "copy", "after"),
    Operation("read_weights", "disk_read", "copy", "weights"),
    Operation("load_weights", "h2d", "copy", "weights"),
    Operation("sync", "gpu", "none", "sync"),
)
OP: dict[str, int] = {operation.name: code for code, operation in enumerate(OPERATIONS)}

#: Operations of a whole layer; all others belong to one cell.
LAYER_OPERATIONS = ("read_weights", "load_weights")


@dataclass(frozen=True)
class Work:
    """FLOPs, bytes and kernel launches (or copies) of one operation for C kinds of cells.

    ``flops`` and ``bytes`` are affine forms, [C, len(PLACEMENT)]; ``kernels`` is [C]. For a copy the bytes
    are those that cross the link; for a kernel, those that it moves in its engine's memory.
    """

    flops: FloatArray
    bytes: FloatArray
    kernels: FloatArray


@dataclass(frozen=True)
class Cells:
    """Kinds of cells, as columns: kind of layer, sequences, new tokens of each, cached tokens of each. [C]"""

    kind: IntArray
    sequences: FloatArray
    new: FloatArray
    cached: FloatArray


@dataclass(frozen=True)
class Shape:
    """What of a policy decides the form of the work, with placement left open."""

    weight_bits: Bits = 16
    cache_bits: Bits = 16
    quant_group: int = 64


def layer_weight_bytes(model: ModelSpec, shape: Shape, kind: CellKind) -> float:
    """Bytes of the weights of one layer as they lie in their tiers. [B]

    Blocks are quantised; embeddings and the head stay in 16 bits.
    """
    if kind == CellKind.BLOCK:
        return model.weight_bytes(model.layer_weights(), shape.weight_bits, shape.quant_group)
    weights = model.head_weights() if kind == CellKind.HEAD else model.embed_weights()
    return model.weight_bytes(weights)


def total_weight_bytes(model: ModelSpec, shape: Shape) -> float:
    """Bytes of all weights as they lie in their tiers. [B]"""
    ends = layer_weight_bytes(model, shape, CellKind.EMBED) + layer_weight_bytes(model, shape, CellKind.HEAD)
    return model.num_layers * layer_weight_bytes(model, shape, CellKind.BLOCK) + ends


def layer_work(model: ModelSpec, shape: Shape, kind: CellKind) -> dict[str, Work]:
    """Loads of one layer's weights in one pass: the disk share to the CPU, that and the CPU's to the GPU.

    The embedding table is not loaded; rows are looked up where it lies (``load_embeddings``).
    """
    if kind not in (CellKind.BLOCK, CellKind.HEAD):
        return {}
    size = layer_weight_bytes(model, shape, kind)
    nothing = np.zeros((1, len(PLACEMENT)))
    one = np.ones(1)
    return {
        "read_weights": Work(nothing, size * DISK_WEIGHTS[None], one),
        "load_weights": Work(nothing, size * STREAMED_WEIGHTS[None], one),
    }


def cell_work(model: ModelSpec, shape: Shape, runtime: Runtime, cells: Cells) -> dict[str, Work]:
    """Work of every operation that belongs to a cell, for each kind of cell. See docs/cost-model.md."""
    block = (cells.kind == CellKind.BLOCK).astype(float)
    decode = block * (cells.cached > 0)
    prompt = block - decode
    tokens = cells.sequences * cells.new
    work: dict[str, Work] = {}
    work |= _activation_work(model, cells, tokens)
    work |= _matmul_work(model, cells, tokens)
    work |= _cache_work(model, shape, tokens * block, cells.sequences * cells.cached * decode, decode)
    work |= _attention_work(model, runtime, cells, prompt, decode)
    if shape.weight_bits < 16:
        matrices = sum(2.0 * weight.numel for weight in model.layer_weights() if weight.is_matrix)
        work["dequantize_weights"] = _form(bytes_=block * matrices, kernels=block)
    return work


def _form(
    flops: FloatArray | float = 0.0,
    bytes_: FloatArray | float = 0.0,
    kernels: FloatArray | float = 1.0,
    over: FloatArray = ALWAYS,
) -> Work:
    """Spread work that is proportional to one indicator form: [C] becomes [C, len(PLACEMENT)]."""
    flops, bytes_, kernels = np.broadcast_arrays(
        np.asarray(flops, float), np.asarray(bytes_, float), np.asarray(kernels, float)
    )
    return Work(flops[:, None] * over, bytes_[:, None] * over, kernels)


def _activation_work(model: ModelSpec, cells: Cells, tokens: FloatArray) -> dict[str, Work]:
    """Hidden states to and from their home, and the rows of the embedding table."""
    embed = (cells.kind == CellKind.EMBED).astype(float)
    head = (cells.kind == CellKind.HEAD).astype(float)
    size = model.hidden_bytes
    inward = size * (tokens * (1 - embed - head) + cells.sequences * head)
    outward = size * tokens * (1 - head)
    rows = size * tokens * embed
    return {
        "read_activations": _form(bytes_=inward, over=ACTIVATIONS_ON_DISK),
        "load_activations": _form(bytes_=inward, over=ACTIVATIONS_OFF_GPU),
        "store_activations": _form(bytes_=outward, over=ACTIVATIONS_OFF_GPU),
        "write_activations": _form(bytes_=outward, over=ACTIVATIONS_ON_DISK),
        "read_embeddings": _form(bytes_=rows, over=DISK_WEIGHTS),
        "load_embeddings": _form(bytes_=rows, over=STREAMED_WEIGHTS),
    }


def _matmul_work(model: ModelSpec, cells: Cells, tokens: FloatArray) -> dict[str, Work]:
    """Projections, the MLP and the head (for each sequence's last token), with the traffic they cause."""
    hidden, query, inner = model.hidden_bytes, model.query_bytes, model.ffn_bytes
    block = (cells.kind == CellKind.BLOCK).astype(float)
    head = (cells.kind == CellKind.HEAD).astype(float)
    embed = (cells.kind == CellKind.EMBED).astype(float)
    names: tuple[Literal["qkv", "mlp"], ...] = ("qkv", "mlp")
    stages = {stage: [w for w in model.layer_weights() if w.stage == stage] for stage in names}
    traffic = {"qkv": hidden + model.qkv_bytes, "mlp": query + 3 * hidden + 2 * inner}
    work: dict[str, Work] = {
        stage: _form(
            flops=tokens * block * model.linear_flops(stage),
            bytes_=block * (model.weight_bytes(weights) + tokens * traffic[stage]),
            kernels=block * (1 + sum(weight.is_matrix for weight in weights)),
        )
        for stage, weights in stages.items()
    }
    head_bytes = model.weight_bytes(model.head_weights())
    work["head"] = _form(
        flops=cells.sequences * head * model.linear_flops("head"),
        bytes_=head * (head_bytes + cells.sequences * (hidden + model.logits_bytes)),
        kernels=2 * head,
    )
    work["embed"] = _form(bytes_=2 * hidden * tokens * embed, kernels=2 * embed)
    return work


def _cache_work(
    model: ModelSpec, shape: Shape, new_tokens: FloatArray, cached_tokens: FloatArray, decode: FloatArray
) -> dict[str, Work]:
    """Keys and values to and from their home, queries and outputs of CPU attention, conversions."""
    stored = model.kv_bytes(shape.cache_bits, shape.quant_group)
    full = model.kv_bytes_per_token
    query = model.query_bytes * new_tokens * decode
    work = {
        "store_cache": _form(bytes_=stored * new_tokens, over=CACHE_OFF_GPU),
        "write_cache": _form(bytes_=stored * new_tokens, over=CACHE_ON_DISK),
        "read_cache": _form(bytes_=stored * cached_tokens, over=CACHE_ON_DISK),
        "load_cache": _form(bytes_=stored * cached_tokens, over=CACHE_STREAMED),
        "store_query": _form(bytes_=query, over=CACHE_ON_CPU_ENGINE),
        "load_output": _form(bytes_=query, over=CACHE_ON_CPU_ENGINE),
    }
    if shape.cache_bits < 16:
        expanded = full * cached_tokens
        work["quantize_cache"] = _form(bytes_=full * new_tokens)
        work["dequantize_cache"] = _form(bytes_=expanded, over=CACHE_ON_GPU_ENGINE)
        work["dequantize_cache_cpu"] = _form(bytes_=expanded, over=CACHE_ON_CPU_ENGINE)
    return work


def _attention_work(
    model: ModelSpec, runtime: Runtime, cells: Cells, prompt: FloatArray, decode: FloatArray
) -> dict[str, Work]:
    """Attention over the prompt on the GPU, and of one new token over the cache where the policy says."""
    flops = cells.sequences * model.attention_flops(cells.new, cells.cached)
    own = cells.sequences * cells.new * (2 * model.query_bytes + model.kv_bytes_per_token)
    cached = cells.sequences * cells.cached * model.kv_bytes_per_token
    scores = 0.0 if runtime.fused_attention else 8.0 * model.num_heads * cells.sequences * cells.new**2
    return {
        "attend_prompt": _form(flops * prompt, (own + scores) * prompt, prompt),
        "attend": _form(flops * decode, (own + cached) * decode, decode, CACHE_ON_GPU_ENGINE),
        "attend_cpu": _form(flops * decode, (own + cached) * decode, decode, CACHE_ON_CPU_ENGINE),
    }
