"""How much memory a policy needs, as affine forms: what stays, and the buffers through which work passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.hardware import TierName
from simulator.layers import (
    CellKind,
    Shape,
    count_layers,
    expanded_bytes,
    layer_weight_bytes,
    total_weight_bytes,
)
from simulator.model import ModelSpec
from simulator.passes import peak_tokens
from simulator.policy import (
    ACTIVATIONS_OFF_GPU,
    ALWAYS,
    CACHE_IN_CPU,
    CACHE_OFF_GPU,
    CACHE_ON_CPU_ENGINE,
    CACHE_ON_DISK,
    CACHE_ON_GPU_ENGINE,
    CACHE_STREAMED,
    DISK_WEIGHTS,
    STREAMED_WEIGHTS,
    FloatArray,
    placed,
)
from simulator.runtime import Runtime
from simulator.workload import Workload

BufferName = Literal[
    "weights", "weight_staging", "cache", "cache_staging", "new_cache", "cache_writing", "activations"
]
_FLOAT32_BUFFERS = 2  # one is filled while the other is attended to
BUFFERS: tuple[BufferName, ...] = (
    "weights",
    "weight_staging",
    "cache",
    "cache_staging",
    "new_cache",
    "cache_writing",
    "activations",
)


@dataclass(frozen=True)
class Batch:
    """What of a policy decides buffer sizes: sequences computed together, layers ahead, stagger."""

    gpu_batch: int
    prompt_batch: int
    prefetch: int = 1
    stagger: int | None = None


@dataclass(frozen=True)
class MemoryItem:
    """A use of memory on one tier: ``slots`` times an affine form in bytes.

    ``scales`` items are per sequence in flight and grow with the block; the others do not.
    """

    name: str
    tier: TierName
    form: FloatArray
    slots: int = 1
    scales: bool = False


def lookahead(runtime: Runtime, num_groups: int) -> int:
    """Give the cells that projections run ahead: none with a single group, whose next cell waits for it."""
    return min(runtime.attention_lookahead, num_groups - 1)


def buffer_slots(runtime: Runtime, prefetch: int, ahead: int) -> dict[BufferName, int]:
    """Count the slots of every buffer."""
    slots = runtime.slots
    return {
        "weights": prefetch + 1,
        "weight_staging": slots.weight_staging,
        "cache": slots.cache + ahead,
        "cache_staging": slots.cache_staging + ahead,
        "new_cache": slots.new_cache + ahead,
        "cache_writing": slots.cache_writing,
        "activations": slots.activations + ahead,
    }


def residents(
    model: ModelSpec, shape: Shape, runtime: Runtime, workload: Workload, batch: Batch
) -> list[MemoryItem]:
    """Weights, cache and activations at their homes."""
    weights = total_weight_bytes(model, shape, runtime)
    cached, at_home = peak_tokens(workload, batch.stagger, runtime.page_tokens)
    cache = (
        runtime.cache_copies * model.num_layers * cached * model.kv_bytes(shape.cache_bits, shape.quant_group)
    )
    activations = model.hidden_bytes * at_home
    by_tier: dict[TierName, tuple[FloatArray, FloatArray, FloatArray]] = {
        "gpu": (placed(weights_gpu=1), placed(cache_gpu=1), placed(activations_gpu=1)),
        "cpu": (placed(weights_cpu=1), CACHE_IN_CPU, placed(activations_cpu=1)),
        "disk": (DISK_WEIGHTS, CACHE_ON_DISK, placed(activations_disk=1)),
    }
    items = []
    for tier, (of_weights, of_cache, of_activations) in by_tier.items():
        items += [
            MemoryItem("model weights", tier, weights * of_weights),
            MemoryItem("KV cache", tier, cache * of_cache, scales=True),
            MemoryItem("activations", tier, activations * of_activations, scales=True),
        ]
    return items


def buffers(
    model: ModelSpec, shape: Shape, runtime: Runtime, workload: Workload, batch: Batch, ahead: int
) -> list[MemoryItem]:
    """Slots that tasks take and free, named as in ``BUFFERS``; their bytes are the largest use of each."""
    loaded = [kind for kind, count in count_layers(model, runtime).items() if count]
    if not runtime.loads_embeddings:
        loaded.remove(CellKind.EMBED)
    layer = max(layer_weight_bytes(model, shape, runtime, kind) for kind in loaded)
    context = batch.gpu_batch * workload.context_len
    new = max(batch.prompt_batch * workload.own_len, batch.gpu_batch)
    kept = 0 if workload.scores else new
    stored = model.kv_bytes(shape.cache_bits, shape.quant_group)
    forms: dict[BufferName, tuple[TierName, FloatArray]] = {
        "weights": ("gpu", layer * STREAMED_WEIGHTS),
        "weight_staging": ("cpu", layer * DISK_WEIGHTS),
        "cache": ("gpu", context * stored * CACHE_STREAMED),
        "cache_staging": ("cpu", context * stored * CACHE_ON_DISK),
        "new_cache": ("gpu", kept * model.kv_bytes_per_token * CACHE_OFF_GPU),
        "cache_writing": ("cpu", kept * stored * CACHE_ON_DISK),
        "activations": ("gpu", new * model.hidden_bytes * ACTIVATIONS_OFF_GPU),
    }
    slots = buffer_slots(runtime, batch.prefetch, ahead)
    return [MemoryItem(name, tier, form, slots[name]) for name, (tier, form) in forms.items()]


def workspaces(
    model: ModelSpec, shape: Shape, runtime: Runtime, workload: Workload, batch: Batch, ahead: int
) -> list[MemoryItem]:
    """Scratch memory of the kernels themselves: intermediates, scores, logits, expanded weights and cache."""
    new = max(batch.prompt_batch * workload.own_len, batch.gpu_batch)
    judged = batch.prompt_batch * workload.own_len if workload.scores else batch.gpu_batch
    projected = model.qkv_bytes + model.query_bytes
    widest = max((1 + ahead) * projected, ahead * projected + model.ffn_bytes)
    compute: float = new * (2 * model.hidden_bytes + widest) + judged * model.logits_bytes
    if workload.shared_prefix:
        compute += new * model.query_bytes  # what the prefix gives, until it is joined with the rest
    if not runtime.fused_attention:
        compute += batch.prompt_batch * model.num_heads * 4.0 * workload.own_len * workload.prompt_len
    context = batch.gpu_batch * workload.context_len * model.kv_bytes_per_token
    wide = 4.0 / model.element_bytes  # times as many bytes in float32
    items = [
        MemoryItem("workspace", "gpu", compute * ALWAYS),
        MemoryItem(
            "attention inputs", "cpu", (1 + ahead) * wide * batch.gpu_batch * projected * CACHE_ON_CPU_ENGINE
        ),
    ]
    if runtime.relay:
        items.append(MemoryItem("copy buffers", "cpu", runtime.relay * ALWAYS))
    if runtime.cpu_attention_dtype == "float32":
        items.append(
            MemoryItem("float32 cache", "cpu", wide * context * CACHE_ON_CPU_ENGINE, _FLOAT32_BUFFERS)
        )
    if shape.weight_bits < 16:
        expanded = max(expanded_bytes(model, runtime, kind) for kind in count_layers(model, runtime))
        # With lookahead a layer is expanded while the last groups still use the one before.
        per_pass = 2.0 if ahead else 1.0
        share = per_pass if runtime.dequantize == "per_pass" else 1.0
        items.append(MemoryItem("expanded weights", "gpu", share * expanded * ALWAYS))
    if shape.cache_bits < 16:
        items.append(MemoryItem("expanded cache", "gpu", context * CACHE_ON_GPU_ENGINE))
        items.append(MemoryItem("expanded cache", "cpu", context * CACHE_ON_CPU_ENGINE))
    return items


def memory_items(
    model: ModelSpec, shape: Shape, runtime: Runtime, workload: Workload, batch: Batch, ahead: int
) -> list[MemoryItem]:
    """Everything that takes memory."""
    arguments = (model, shape, runtime, workload, batch)
    return [*residents(*arguments), *buffers(*arguments, ahead), *workspaces(*arguments, ahead)]
