"""A policy made real: which tensor, or which share of its rows, lies on which tier.

Fractions become whole tensors spread evenly over the layers (or rows of every tensor), whole (sequence,
KV head) units of cache, whole sequences of activations. The GPU never gets more than was asked for; what is
left over goes to the next slower tier, which may then hold up to one tensor (or unit) more than was asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from simulator.hardware import TIERS, TierName
from simulator.memory import Batch, MemoryItem, lookahead, memory_items
from simulator.model import ModelSpec, Weight
from simulator.operations import CellKind, Shape
from simulator.policy import PLACEMENT, CpuAttention, FloatArray, Policy, Split
from simulator.runtime import Runtime
from simulator.schema import Record
from simulator.workload import Workload

_LETTERS: dict[TierName, str] = {"gpu": "g", "cpu": "c", "disk": "d"}
_SLACK = 1e-9


class Layout(Record):
    """Where everything lies.

    Attributes:
        grain: ``tensor`` or ``row``.
        tensors: for each tensor, one letter per layer (``g``, ``c`` or ``d``); of one letter for the
            tensors outside the blocks. Empty when the grain is ``row``.
        rows: for each tensor, the fractions of its rows on GPU, CPU and disk. Empty for ``tensor``.
        weights: what share of the weight bytes really lies where.
        cache: the same for the KV cache, in whole (sequence, KV head) units of the block.
        cpu_attention: the share of those units whose attention the CPU computes.
        activations: the same for activations, in whole sequences of the block.
    """

    grain: Literal["tensor", "row"]
    tensors: dict[str, str]
    rows: dict[str, tuple[float, float, float]]
    weights: Split
    cache: Split
    cpu_attention: CpuAttention
    activations: Split

    def difference(self, policy: Policy) -> dict[str, float]:
        """Give the largest difference between a fraction asked for and the one laid out, by class."""
        classes = {
            "weights": (policy.weights, self.weights),
            "cache": (policy.cache, self.cache),
            "activations": (policy.activations, self.activations),
        }
        return {
            name: max(abs(getattr(asked, tier) - getattr(got, tier)) for tier in TIERS)
            for name, (asked, got) in classes.items()
        }


@dataclass(frozen=True)
class Placed:
    """A layout with the numbers that the schedule needs.

    ``layer_bytes`` are bytes of each layer (embedding, blocks, head) on each tier. [layers + 2, 3]
    """

    model: ModelSpec
    runtime: Runtime
    workload: Workload
    policy: Policy
    layout: Layout
    layer_bytes: FloatArray

    @property
    def shape(self) -> Shape:
        """What of the policy decides the form of the work."""
        return shape_of(self.policy)

    @property
    def batch(self) -> Batch:
        """What of the policy decides buffer sizes."""
        return batch_of(self.policy)

    @property
    def ahead(self) -> int:
        """Cells that projections run ahead; without CPU attention there is nothing to wait for."""
        share = self.placement[[PLACEMENT.index("cache_cpu_on_cpu"), PLACEMENT.index("cache_disk_on_cpu")]]
        return lookahead(self.runtime, self.policy.num_groups) if share.any() else 0

    @cached_property
    def placement(self) -> FloatArray:
        """Value of every placement variable as laid out."""
        laid_out = self.layout
        return self.policy.model_copy(
            update={
                "weights": laid_out.weights,
                "cache": laid_out.cache,
                "activations": laid_out.activations,
                "cpu_attention": laid_out.cpu_attention,
            }
        ).placement()

    def items(self) -> list[MemoryItem]:
        """List the uses of memory, with weight buffers as large as this layout's largest layer needs."""
        items = memory_items(self.model, self.shape, self.runtime, self.workload, self.batch, self.ahead)
        largest = {
            "weights": float(self.layer_bytes[1:, 1:].sum(axis=1).max()),
            "weight_staging": float(self.layer_bytes[1:, 2].max()),
        }
        one = np.eye(len(PLACEMENT))[0]
        return [
            MemoryItem(item.name, item.tier, largest[item.name] * one, item.slots)
            if item.name in largest
            else item
            for item in items
        ]

    def peak_memory(self) -> dict[TierName, dict[str, float]]:
        """Bytes of every use of memory on every tier: the static bound on the peak. [B]"""
        peaks: dict[TierName, dict[str, float]] = {tier: {} for tier in TIERS}
        for item in self.items():
            scale = self.policy.block if item.scales else 1
            size = item.slots * scale * float(item.form @ self.placement)
            if size:
                peaks[item.tier][item.name] = peaks[item.tier].get(item.name, 0.0) + size
        return peaks


def shape_of(policy: Policy) -> Shape:
    """Extract what decides the form of the work."""
    return Shape(policy.weight_bits, policy.cache_bits, policy.quant_group)


def batch_of(policy: Policy) -> Batch:
    """Extract what decides buffer sizes."""
    return Batch(policy.gpu_batch, policy.prompts_together, policy.prefetch, policy.stagger)


def lay_out(model: ModelSpec, runtime: Runtime, workload: Workload, policy: Policy) -> Placed:
    """Turn a policy into a layout."""
    if runtime.grain == "row":
        tensors, rows, layer_bytes = _by_rows(model, policy)
    else:
        rows = {}
        tensors, layer_bytes = _by_tensors(model, policy)
    units = policy.block * model.num_kv_heads
    cache = _whole(policy.cache, units)
    layout = Layout(
        grain=runtime.grain,
        tensors=tensors,
        rows=rows,
        weights=_split(layer_bytes.sum(axis=0)),
        cache=cache,
        cpu_attention=CpuAttention(
            cpu=_whole_share(policy.cpu_attention.cpu, cache.cpu * units),
            disk=_whole_share(policy.cpu_attention.disk, cache.disk * units),
        ),
        activations=_whole(policy.activations, policy.block),
    )
    return Placed(model, runtime, workload, policy, layout, layer_bytes)


def _tensors(model: ModelSpec, policy: Policy) -> Iterator[tuple[int, Weight, float]]:
    """List (layer, tensor, bytes) in the order of the traversal; layer 0 is the embedding."""
    block = model.layer_weights()
    shape = shape_of(policy)
    sizes = [model.weight_bytes((weight,), shape.weight_bits, shape.quant_group) for weight in block]
    for weight in model.embed_weights():
        yield 0, weight, model.weight_bytes((weight,))
    for layer in range(1, model.num_layers + 1):
        for weight, size in zip(block, sizes, strict=True):
            yield layer, weight, size
    for weight in model.head_weights():
        yield model.num_layers + 1, weight, model.weight_bytes((weight,))


def _by_tensors(model: ModelSpec, policy: Policy) -> tuple[dict[str, str], FloatArray]:
    """Deal whole tensors: each to the fastest tier with room for it in its share of what was dealt so far."""
    held = np.zeros((model.num_layers + 2, 3))
    letters: dict[str, list[str]] = {}
    gpu_share, host_share = policy.weights.gpu, policy.weights.gpu + policy.weights.cpu
    dealt = on_gpu = on_host = 0.0
    for layer, weight, size in _tensors(model, policy):
        dealt += size
        tier: TierName = "disk"
        if on_gpu + size <= gpu_share * dealt + _SLACK * dealt:
            tier = "gpu"
        elif on_host + size <= host_share * dealt + _SLACK * dealt:
            tier = "cpu"
        on_gpu += size * (tier == "gpu")
        on_host += size * (tier != "disk")
        held[layer, TIERS.index(tier)] += size
        letters.setdefault(weight.name, []).append(_LETTERS[tier])
    return {name: "".join(each) for name, each in letters.items()}, held


def _by_rows(
    model: ModelSpec, policy: Policy
) -> tuple[dict[str, str], dict[str, tuple[float, float, float]], FloatArray]:
    """Cut every tensor along its rows, those of one dimension too."""
    held = np.zeros((model.num_layers + 2, 3))
    rows: dict[str, tuple[float, float, float]] = {}
    for layer, weight, size in _tensors(model, policy):
        count = weight.shape[0]
        split = _whole(policy.weights, count)
        rows[weight.name] = (split.gpu, split.cpu, split.disk)
        held[layer] += size * np.array(rows[weight.name])
    return {}, rows, held


def _whole(split: Split, units: int) -> Split:
    """Round a split to whole units: faster tiers down, the rest to the slowest tier that is used."""
    gpu = math.floor(split.gpu * units + _SLACK * units)
    host = math.floor((split.gpu + split.cpu) * units + _SLACK * units)
    if split.disk < _SLACK:
        host = units
    if split.disk < _SLACK and split.cpu < _SLACK:
        gpu = units
    return _split(np.array([gpu, host - gpu, units - host], dtype=float))


def _whole_share(share: float, units: float) -> float:
    whole = round(units)
    return round(share * whole) / whole if whole else 0.0


def _split(amounts: FloatArray) -> Split:
    total = float(amounts.sum())
    gpu, cpu = float(amounts[0]) / total, float(amounts[1]) / total
    return Split(gpu=gpu, cpu=cpu, disk=max(0.0, 1.0 - gpu - cpu) if amounts[2] else 0.0)


def layer_kinds(model: ModelSpec) -> list[CellKind]:
    """List the layers of one pass: embedding, blocks, head."""
    return [CellKind.EMBED, *[CellKind.BLOCK] * model.num_layers, CellKind.HEAD]
