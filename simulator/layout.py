"""A policy made real: which tensor, or which share of its rows, lies on which tier.

Fractions become whole tensors (``simulator.placing``), whole (sequence, KV head) units of cache and whole
sequences of activations of a *group*: every group is laid out like every other, so that one group's tasks are
any group's. The GPU never gets more units than was asked for; what is left over goes to the next slower tier,
which may then hold up to one more of each group than was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from simulator.hardware import TIERS, TierName
from simulator.layers import Shape, first_loaded
from simulator.memory import WHOLE_RUN, Batch, MemoryItem, Moment, lookahead, memory_items, moments
from simulator.model import ModelSpec
from simulator.placing import PLACING, by_rows, by_tensors, split_of, tensors_of, whole
from simulator.policy import PLACEMENT, CpuAttention, FloatArray, Policy, Split
from simulator.prefix import with_prefix
from simulator.runtime import Runtime
from simulator.schema import Record
from simulator.workload import Workload


class Layout(Record):
    """Where everything lies.

    Attributes:
        grain: ``tensor`` or ``row``.
        tensors: for each tensor, one letter per layer (``g``, ``c`` or ``d``); of one letter for the
            tensors outside the blocks. Empty when the grain is ``row``.
        rows: for each tensor, the fractions of its rows on GPU, CPU and disk. Empty for ``tensor``.
        weights: what share of the weight bytes really lies where.
        cache: the same for the KV cache, in whole (sequence, KV head) units of a group.
        cpu_attention: the share of those units whose attention the CPU computes.
        activations: the same for activations, in whole sequences of a group.
    """

    grain: Literal["tensor", "row"]
    tensors: dict[str, str]
    rows: dict[str, tuple[float, float, float]]
    weights: Split
    cache: Split
    cpu_attention: CpuAttention
    activations: Split

    def home_of(self, name: str) -> Split:
        """Give the shares of one tensor on the tiers, over all layers that have it."""
        if self.grain == "row":
            return Split(**dict(zip(TIERS, self.rows[name], strict=True)))
        letters = self.tensors[name]
        return Split(**{tier: letters.count(tier[0]) / len(letters) for tier in TIERS})

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

    ``layer_bytes`` are bytes of each layer of the pass on each tier, ``layer_tensors`` how many matrices have
    any there; what has one dimension is small and travels with them. [layers, 3]
    """

    model: ModelSpec
    runtime: Runtime
    workload: Workload
    policy: Policy
    layout: Layout
    layer_bytes: FloatArray
    layer_tensors: FloatArray

    @property
    def serial(self) -> bool:
        """Whether one task runs after the other."""
        return self.runtime.synchronization == "serial" or not self.policy.overlap

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
        return lookahead(self.runtime, self.policy.num_groups) if share.any() and not self.serial else 0

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

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The moments between which the engine frees memory."""
        return moments(self.runtime, self.workload)

    def items(self, moment: Moment = WHOLE_RUN) -> list[MemoryItem]:
        """List the uses of memory at a moment; weight buffers are as large as this layout's largest layer."""
        items = memory_items(
            self.model, self.shape, self.runtime, self.workload, self.batch, self.ahead, moment
        )
        first = first_loaded(self.runtime)
        largest = {
            "weights": float(self.layer_bytes[first:, 1:].sum(axis=1).max()),
            "weight_staging": float(self.layer_bytes[first:, 2].max()),
        }
        one = np.eye(len(PLACEMENT))[0]
        return [
            MemoryItem(item.name, item.tier, largest[item.name] * one, item.slots)
            if item.name in largest
            else item
            for item in items
        ]

    def peak_memory(self) -> dict[TierName, dict[str, float]]:
        """Bytes of every use of memory on every tier when it is fullest: the static bound on the peak. [B]"""
        held = [self.memory_at(moment) for moment in self.moments]
        return {tier: max((uses[tier] for uses in held), key=_total) for tier in TIERS}

    def memory_at(self, moment: Moment) -> dict[TierName, dict[str, float]]:
        """Bytes of every use of memory on every tier at a moment. [B]"""
        peaks: dict[TierName, dict[str, float]] = {tier: {} for tier in TIERS}
        for item in self.items(moment):
            scale = self.policy.block if item.scales else 1
            size = item.slots * scale * float(item.form @ self.placement)
            if size:
                peaks[item.tier][item.name] = peaks[item.tier].get(item.name, 0.0) + size
        return peaks


def _total(uses: dict[str, float]) -> float:
    return sum(uses.values())


def shape_of(policy: Policy) -> Shape:
    """Extract what decides the form of the work."""
    return Shape(
        policy.weight_bits, policy.cache_bits, policy.quant_group, policy.pinned, policy.attention_top
    )


def batch_of(policy: Policy) -> Batch:
    """Extract what decides buffer sizes."""
    return Batch(policy.gpu_batch, policy.prompts_together, policy.prefetch, policy.stagger)


def lay_out(model: ModelSpec, runtime: Runtime, workload: Workload, policy: Policy) -> Placed:
    """Turn a policy into a layout; a prefix that the prompts share is laid out with the model."""
    model = with_prefix(model, workload)
    tensors = tensors_of(model, runtime, shape_of(policy))
    rows: dict[str, tuple[float, float, float]] = {}
    letters: dict[str, str] = {}
    if runtime.grain == "row":
        rows, held = by_rows(tensors, policy)
    else:
        letters, held = by_tensors(tensors, PLACING[runtime.placement](tensors, policy))
    layer_bytes, layer_tensors = held
    units = policy.gpu_batch * model.num_kv_heads
    cache = whole(policy.cache, units)
    layout = Layout(
        grain=runtime.grain,
        tensors=letters,
        rows=rows,
        weights=split_of(layer_bytes.sum(axis=0)),
        cache=cache,
        cpu_attention=CpuAttention(
            cpu=_whole_share(policy.cpu_attention.cpu, cache.cpu * units),
            disk=_whole_share(policy.cpu_attention.disk, cache.disk * units),
        ),
        activations=whole(policy.activations, policy.gpu_batch),
    )
    return Placed(model, runtime, workload, policy, layout, layer_bytes, layer_tensors)


def _whole_share(share: float, units: float) -> float:
    whole = round(units)
    return round(share * whole) / whole if whole else 0.0
