"""What one cell of the traversal does: the single place where the work of a run is derived.

A *cell* is one (pass, layer, group). Its operations and their FLOPs, bytes and kernel launches are affine in
the placement variables (``simulator.policy.PLACEMENT``). The placement program sums these forms with the
variables left open; the schedule evaluates the same forms at a layout.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simulator.kernels import PROMPT_TILE
from simulator.layers import WORKING, CellKind, Shape, expanded_bytes, layer_tensors, layer_weight_bytes
from simulator.model import ModelSpec, Weight
from simulator.operations import BLOCK_STAGES, LinearStage
from simulator.policy import (
    ACTIVATIONS_OFF_GPU,
    ACTIVATIONS_ON_DISK,
    CACHE_OFF_GPU,
    CACHE_ON_CPU_ENGINE,
    CACHE_ON_DISK,
    CACHE_ON_GPU_ENGINE,
    CACHE_STREAMED,
    CPU_CACHE_ON_CPU_ENGINE,
    CPU_CACHE_ON_GPU_ENGINE,
    CPU_WEIGHTS,
    DISK_WEIGHTS,
    STREAMED_WEIGHTS,
    FloatArray,
)
from simulator.runtime import Runtime, TensorClass
from simulator.units import KIB
from simulator.work_forms import Cells as Cells  # noqa: PLC0414 - what this module gives
from simulator.work_forms import Work as Work  # noqa: PLC0414 - what this module gives
from simulator.work_forms import form, pieces


def layer_work(model: ModelSpec, shape: Shape, runtime: Runtime, kind: CellKind) -> dict[str, Work]:
    """Loads of one layer's weights in one pass: the disk share to the CPU, that and the CPU's to the GPU.

    With memory-mapped files the disk share has a relay of its own; where the host stages pageable memory, the
    CPU's share passes through its hands first. Unless an engine loads it, the embedding table stays where
    it lies and rows are looked up (``load_embeddings``).
    """
    if kind == CellKind.EMBED and not runtime.loads_embeddings:
        return {}
    size = layer_weight_bytes(model, shape, runtime, kind)
    tensors = float(len(layer_tensors(model, runtime, kind)))
    mapped = runtime.disk_io == "mapped"

    def of(share: FloatArray) -> Work:
        return form(bytes_=np.full(1, size), kernels=tensors, over=share)

    work = {"read_weights": of(DISK_WEIGHTS), "load_weights": of(CPU_WEIGHTS if mapped else STREAMED_WEIGHTS)}
    if mapped:
        work["relay_weights"] = of(DISK_WEIGHTS)
    if staged(runtime, shape, "weights"):
        work["stage_weights"] = of(CPU_WEIGHTS)
    return work


def staged(runtime: Runtime, shape: Shape, name: TensorClass) -> bool:
    """Say whether the host copies a class of tensors to pinned memory before they go to the GPU."""
    return runtime.staging == "host" and not runtime.pinned.of(name, shape.pinned)


def cell_work(model: ModelSpec, shape: Shape, runtime: Runtime, cells: Cells) -> dict[str, Work]:
    """Work of every operation that belongs to a cell, for each kind of cell. See docs/cost-model.md."""
    attends = _marks(cells, CellKind.BLOCK, CellKind.ATTENTION)
    decode = attends * (cells.cached > 0)
    prompt = attends - decode
    tokens = cells.sequences * cells.new
    cached = cells.sequences * cells.cached * decode
    work: dict[str, Work] = {}
    work |= _activation_work(model, runtime, cells, tokens)
    work |= _matmul_work(model, cells, tokens)
    work |= _cache_work(model, shape, runtime, cells.sequences * cells.kept * attends, cached, decode)
    work |= _host_work(model, shape, runtime, cached)
    work |= _attention_work(model, shape, runtime, cells, prompt, decode)
    work |= _prefix_work(model, cells, attends)
    if shape.weight_bits < 16:
        sizes = [expanded_bytes(model, runtime, kind) for kind in WORKING]
        expanded = sum(size * _marks(cells, kind) for kind, size in zip(WORKING, sizes, strict=True))
        work["dequantize_weights"] = form(bytes_=expanded, kernels=np.sign(expanded))
    return work


def _marks(cells: Cells, *kinds: CellKind) -> FloatArray:
    """Mark the cells of some kinds with 1. [C]"""
    return np.isin(cells.kind, kinds).astype(float)


def _activation_work(model: ModelSpec, runtime: Runtime, cells: Cells, tokens: FloatArray) -> dict[str, Work]:
    """Hidden states to and from their home, and the rows of the embedding table."""
    embed, head = _marks(cells, CellKind.EMBED), _marks(cells, CellKind.HEAD)
    size = model.hidden_bytes
    inward = size * (tokens * (1 - embed - head) + cells.sequences * cells.judged * head)
    outward = size * tokens * (1 - head)
    rows = size * tokens * embed * (not runtime.loads_embeddings)
    inner, outer = cells.sequences * (1 - embed), cells.sequences * (1 - head)
    on_disk = ACTIVATIONS_ON_DISK  # a page for each sequence there, copied one by one
    return {
        "read_activations": form(bytes_=inward, over=on_disk, blocks=inner),
        "load_activations": form(bytes_=inward, over=ACTIVATIONS_OFF_GPU) + pieces(inner, on_disk),
        "store_activations": form(bytes_=outward, over=ACTIVATIONS_OFF_GPU) + pieces(outer, on_disk),
        "write_activations": form(bytes_=outward, over=on_disk, blocks=outer),
        "read_embeddings": form(bytes_=rows, over=DISK_WEIGHTS, blocks=rows / model.hidden_bytes),
        "load_embeddings": form(bytes_=rows, over=STREAMED_WEIGHTS),
    }


def _matmul_work(model: ModelSpec, cells: Cells, tokens: FloatArray) -> dict[str, Work]:
    """Projections, the MLP and the head (for tokens that are judged), with the traffic they cause.

    In a whole block the output projection is part of ``mlp``; an attention half has it as ``project``.
    """
    embed, head = _marks(cells, CellKind.EMBED), _marks(cells, CellKind.HEAD)
    block = _marks(cells, CellKind.BLOCK)
    qkv, project, mlp = (_linear_work(model, tokens, stage) for stage in BLOCK_STAGES)
    head_weights = model.head_weights()
    head_bytes = model.weight_bytes(head_weights)
    judged = cells.sequences * cells.judged
    return {
        "qkv": qkv.times(block + _marks(cells, CellKind.ATTENTION)),
        "project": project.times(_marks(cells, CellKind.ATTENTION)),
        "mlp": (project + mlp).times(block) + mlp.times(_marks(cells, CellKind.MLP)),
        "head": form(
            flops=judged * head * model.linear_flops("head"),
            bytes_=head * (head_bytes + judged * (model.hidden_bytes + model.logits_bytes)),
            kernels=2 * head,
            steps=_depth(head_weights) * head,
            blocks=head * judged * model.logits_bytes / KIB,
        ),
        "embed": form(bytes_=2 * model.hidden_bytes * tokens * embed, kernels=2 * embed),
    }


def _linear_work(model: ModelSpec, tokens: FloatArray, stage: LinearStage) -> Work:
    """Matrix products of one stage: weights read, states read and written, one kernel a matrix."""
    hidden = model.hidden_bytes
    states = {
        "qkv": hidden + model.qkv_bytes,
        "project": model.query_bytes + hidden,
        "mlp": 2 * hidden + 2 * model.ffn_bytes,
    }
    traffic = tokens * states[stage]
    weights = [weight for weight in model.layer_weights() if weight.stage == stage]
    return form(
        flops=tokens * model.linear_flops(stage),
        bytes_=model.weight_bytes(weights) + traffic,
        kernels=float(sum(weight.is_matrix for weight in weights) + (stage != "project")),
        steps=_depth(weights),
        blocks=traffic / KIB,
    )


def _depth(weights: Iterable[Weight]) -> float:
    """Sum the inner dimensions of matrix products."""
    return float(sum(weight.shape[1] for weight in weights if weight.is_matrix))


def _cache_work(
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    new_tokens: FloatArray,
    cached_tokens: FloatArray,
    decode: FloatArray,
) -> dict[str, Work]:
    """Keys and values to and from home, queries and outputs of CPU attention, conversions."""
    stored = model.kv_bytes(shape.cache_bits, shape.quant_group)
    full = model.kv_bytes_per_token
    copies = 1.0 if runtime.page_tokens else 2.0  # contiguous keys and values are tensors of their own
    new, old = copies * np.sign(new_tokens), copies * np.sign(cached_tokens)
    query = model.query_bytes * new_tokens * decode
    work = {
        "store_cache": form(bytes_=stored * new_tokens, kernels=new, over=CACHE_OFF_GPU),
        "write_cache": form(bytes_=stored * new_tokens, kernels=new, over=CACHE_ON_DISK),
        "read_cache": form(bytes_=stored * cached_tokens, kernels=old, over=CACHE_ON_DISK),
        "load_cache": form(bytes_=stored * cached_tokens, kernels=old, over=CACHE_STREAMED),
        "store_query": form(bytes_=query, over=CACHE_ON_CPU_ENGINE),
        "load_output": form(bytes_=query, over=CACHE_ON_CPU_ENGINE),
    }
    if shape.cache_bits < 16:
        expanded = full * cached_tokens
        work["quantize_cache"] = form(bytes_=full * new_tokens)
        work["dequantize_cache"] = form(bytes_=expanded, over=CACHE_ON_GPU_ENGINE)
        work["dequantize_cache_cpu"] = form(bytes_=expanded, over=CACHE_ON_CPU_ENGINE)
    return work


def _host_work(
    model: ModelSpec, shape: Shape, runtime: Runtime, cached_tokens: FloatArray
) -> dict[str, Work]:
    """What the thread that issues all work does itself: staging of pageable cache, copies to float32."""
    stored = model.kv_bytes(shape.cache_bits, shape.quant_group)
    work = {}
    if staged(runtime, shape, "cache"):
        work["stage_cache"] = form(bytes_=stored * cached_tokens, over=CPU_CACHE_ON_GPU_ENGINE)
    if runtime.cpu_attention_dtype == "float32":
        work["expand_cache"] = form(
            bytes_=model.kv_bytes_per_token * cached_tokens, over=CPU_CACHE_ON_CPU_ENGINE
        )
    return work


def _attention_work(
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    cells: Cells,
    prompt: FloatArray,
    decode: FloatArray,
) -> dict[str, Work]:
    """Attention over the prompt on the GPU, and of one new token over the cache where the policy says."""
    flops = cells.sequences * model.attention_flops(cells.new, cells.cached)
    one_token = flops * shape.attended * decode
    own = cells.sequences * cells.new * (2 * model.query_bytes + model.kv_bytes_per_token)
    cached = cells.sequences * cells.cached * model.kv_bytes_per_token * shape.attended
    wide = 4.0 / model.element_bytes if runtime.cpu_attention_dtype == "float32" else 1.0
    scores = 0.0 if runtime.fused_attention else 8.0 * model.num_heads * cells.sequences * cells.new**2
    steps = cells.cached + cells.new
    tiles = cells.sequences * model.num_heads * np.ceil(cells.new / PROMPT_TILE)
    heads = cells.sequences * model.num_kv_heads
    on_gpu = form(
        one_token,
        (own + cached) * decode,
        decode,
        CACHE_ON_GPU_ENGINE,
        steps=steps * decode,
        blocks=heads * decode,
    )
    return {
        "attend_prompt": form(
            flops * prompt, (own + scores) * prompt, prompt, steps=steps * prompt, blocks=tiles * prompt
        ),
        "attend": on_gpu,
        "attend_cpu": form(
            one_token,
            wide * (own + cached) * decode,
            decode,
            CACHE_ON_CPU_ENGINE,
            steps=steps * decode,
            blocks=heads * decode,
        ),
    }


def _prefix_work(model: ModelSpec, cells: Cells, attends: FloatArray) -> dict[str, Work]:
    """Attention to the shared prefix, always on the GPU: its keys and values are read once for all sequences.

    The queries of all sequences together are like those of one prompt.
    """
    if not cells.prefix.any():
        return {}
    here, tokens = attends * (cells.prefix > 0), cells.sequences * cells.new
    moved = cells.prefix * model.kv_bytes_per_token + tokens * 2 * model.query_bytes
    return {
        "attend_prefix": form(
            cells.sequences * model.prefix_flops(cells.new, cells.prefix) * here,
            moved * here,
            here,
            steps=cells.prefix * here,
            blocks=model.num_heads * np.ceil(tokens / PROMPT_TILE) * here,
        )
    }
