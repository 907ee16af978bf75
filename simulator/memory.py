"""How much memory a policy needs, as affine forms: what stays, and the buffers through which work passes.

An engine either keeps all of it for the whole run, or frees what the work at hand has no use for; then a tier
has to hold what is there at the fullest of some *moments*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

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


class Moment(NamedTuple):
    """Work during which memory does not change: passes of one kind, and in them halves of one kind.

    Empty names mean all of them. The ends of a model count with its MLP halves.
    """

    phase: Literal["", "prompt", "decode"] = ""
    part: Literal["", "attention", "MLP"] = ""

    @property
    def label(self) -> str:
        """Name the moment in words; the whole run has none."""
        return " ".join(filter(None, self))


#: All uses at their largest: what is held by an engine that frees nothing.
WHOLE_RUN = Moment()


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


def moments(runtime: Runtime, workload: Workload) -> tuple[Moment, ...]:
    """List the moments between which an engine frees memory: none but the whole run if it keeps all."""
    if not runtime.frees_buffers:
        return (WHOLE_RUN,)
    found = [Moment("prompt"), Moment("decode")][: workload.passes]
    if runtime.layers == "half":
        found = [each._replace(part=part) for each in found for part in ("attention", "MLP")]
    return tuple(found)


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


def _new_tokens(workload: Workload, batch: Batch, moment: Moment) -> int:
    """Give the most new tokens that a cell has at a moment."""
    tokens = {"prompt": batch.prompt_batch * workload.own_len, "decode": batch.gpu_batch}
    return tokens.get(moment.phase) or max(tokens.values())


def _cached_tokens(workload: Workload, batch: Batch, moment: Moment) -> int:
    """Give the most cached tokens that a cell attends to at a moment."""
    return 0 if moment.phase == "prompt" else batch.gpu_batch * workload.context_len


def buffers(
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    workload: Workload,
    batch: Batch,
    ahead: int,
    moment: Moment = WHOLE_RUN,
) -> list[MemoryItem]:
    """Slots that tasks take and free, named as in ``BUFFERS``; their bytes are the largest use of each.

    Halves are not told apart, since what is loaded for one or stored after it passes during the other. Of
    quantised new cache an engine that frees memory keeps only that; in 16 bits it is in the workspace.
    """
    loaded = [kind for kind, count in count_layers(model, runtime).items() if count]
    if not runtime.loads_embeddings:
        loaded.remove(CellKind.EMBED)
    layer = max(layer_weight_bytes(model, shape, runtime, kind) for kind in loaded)
    context, new = _cached_tokens(workload, batch, moment), _new_tokens(workload, batch, moment)
    kept = 0 if workload.scores else new
    stored = model.kv_bytes(shape.cache_bits, shape.quant_group)
    made = stored if runtime.frees_buffers else model.kv_bytes_per_token
    forms: dict[BufferName, tuple[TierName, FloatArray]] = {
        "weights": ("gpu", layer * STREAMED_WEIGHTS),
        "weight_staging": ("cpu", layer * DISK_WEIGHTS),
        "cache": ("gpu", context * stored * CACHE_STREAMED),
        "cache_staging": ("cpu", context * stored * CACHE_ON_DISK),
        "new_cache": ("gpu", kept * made * CACHE_OFF_GPU),
        "cache_writing": ("cpu", kept * stored * CACHE_ON_DISK),
        "activations": ("gpu", new * model.hidden_bytes * ACTIVATIONS_OFF_GPU),
    }
    slots = buffer_slots(runtime, batch.prefetch, ahead)
    return [MemoryItem(name, tier, form, slots[name]) for name, (tier, form) in forms.items()]


def _compute_bytes(
    model: ModelSpec, runtime: Runtime, workload: Workload, batch: Batch, ahead: int, moment: Moment
) -> float:
    """Bytes of what kernels of the GPU make for each other: intermediates, scores, logits. [B]"""
    new = _new_tokens(workload, batch, moment)
    judged = batch.prompt_batch * workload.own_len if workload.scores else batch.gpu_batch
    projected = model.qkv_bytes + model.query_bytes
    widest = {"attention": (1 + ahead) * projected, "MLP": ahead * projected + model.ffn_bytes}
    total: float = new * (2 * model.hidden_bytes + widest.get(moment.part, max(widest.values())))
    if moment.part != "attention":
        total += judged * model.logits_bytes
    if workload.shared_prefix and moment.part != "MLP":
        total += new * model.query_bytes  # what the prefix gives, until it is joined with the rest
    if not runtime.fused_attention and moment.phase != "decode" and moment.part != "MLP":
        total += batch.prompt_batch * model.num_heads * 4.0 * workload.own_len * workload.prompt_len
    return total


def _largest_expanded(model: ModelSpec, runtime: Runtime, moment: Moment) -> float:
    """Bytes of the largest layer of those that a moment computes, with quantised matrices expanded. [B]"""
    kinds = {kind for kind, count in count_layers(model, runtime).items() if count}
    if moment.part:
        attention = {CellKind.ATTENTION}
        kinds = attention if moment.part == "attention" else kinds - attention
    return max(expanded_bytes(model, runtime, kind) for kind in kinds)


def workspaces(
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    workload: Workload,
    batch: Batch,
    ahead: int,
    moment: Moment = WHOLE_RUN,
) -> list[MemoryItem]:
    """Scratch memory of the kernels themselves: intermediates, scores, logits, expanded weights and cache.

    Only the GPU's comes and goes; what CPU attention and copy threads work in is there for the whole run.
    """
    projected = model.qkv_bytes + model.query_bytes
    context = _cached_tokens(workload, batch, WHOLE_RUN) * model.kv_bytes_per_token
    wide = 4.0 / model.element_bytes  # times as many bytes in float32
    compute = _compute_bytes(model, runtime, workload, batch, ahead, moment)
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
        expanded = _largest_expanded(model, runtime, moment)
        # With lookahead a layer is expanded while the last groups still use the one before.
        per_pass = 2.0 if ahead else 1.0
        share = per_pass if runtime.dequantize == "per_pass" else 1.0
        items.append(MemoryItem("expanded weights", "gpu", share * expanded * ALWAYS))
    if shape.cache_bits < 16:
        cached = 0 if moment.part == "MLP" else _cached_tokens(workload, batch, moment)
        expanded = cached * model.kv_bytes_per_token
        items.append(MemoryItem("expanded cache", "gpu", expanded * CACHE_ON_GPU_ENGINE))
        items.append(MemoryItem("expanded cache", "cpu", context * CACHE_ON_CPU_ENGINE))
    return items


def memory_items(
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    workload: Workload,
    batch: Batch,
    ahead: int,
    moment: Moment = WHOLE_RUN,
) -> list[MemoryItem]:
    """List everything that takes memory at a moment; at all moments the same uses, of different sizes."""
    arguments = (model, shape, runtime, workload, batch)
    return [
        *residents(*arguments),
        *buffers(*arguments, ahead, moment),
        *workspaces(*arguments, ahead, moment),
    ]
