"""Which tensor lies on which tier: the rules by which engines turn fractions into places.

Fractions become whole tensors spread evenly over the layers (or rows of every tensor). The GPU never gets
more than was asked for; what is left over goes to the next slower tier, which may then hold up to one tensor
more than was asked. Other engines round in ways of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from simulator.hardware import TIERS, TierName
from simulator.layers import Shape, layer_kinds, layer_tensors, tensor_bytes
from simulator.model import ModelSpec, Weight
from simulator.operations import IntArray
from simulator.policy import FloatArray, Policy, Split
from simulator.runtime import Runtime

_LETTERS: dict[TierName, str] = {"gpu": "g", "cpu": "c", "disk": "d"}
SLACK = 1e-9
_KEPT = 16  # lists of tensors: every layout of a search is made from the same one


@dataclass(frozen=True)
class Tensor:
    """One tensor in the order of the traversal, with its layer and its bytes."""

    layer: int
    weight: Weight
    size: float


class Tensors(tuple[Tensor, ...]):
    """The tensors of all layers in the order of the traversal, and what sums over them need."""

    @cached_property
    def layers(self) -> IntArray:
        """The layer of each. [N]"""
        return np.array([tensor.layer for tensor in self])

    @cached_property
    def sizes(self) -> FloatArray:
        """The bytes of each. [N]"""
        return np.array([tensor.size for tensor in self])

    @cached_property
    def matrices(self) -> FloatArray:
        """1 for each that has two dimensions, else 0. [N]"""
        return np.array([float(tensor.weight.is_matrix) for tensor in self])

    @cached_property
    def by_name(self) -> dict[str, IntArray]:
        """The places of the tensors of each name."""
        places: dict[str, list[int]] = {}
        for place, tensor in enumerate(self):
            places.setdefault(tensor.weight.name, []).append(place)
        return {name: np.array(each) for name, each in places.items()}


@lru_cache(_KEPT)
def tensors_of(model: ModelSpec, runtime: Runtime, shape: Shape) -> Tensors:
    """List the tensors of all layers in the order of the traversal; layer 0 is the embedding."""
    of_kind = {
        kind: [
            (weight, tensor_bytes(model, shape, runtime, kind, weight))
            for weight in layer_tensors(model, runtime, kind)
        ]
        for kind in set(layer_kinds(model, runtime))
    }
    return Tensors(
        Tensor(layer, weight, size)
        for layer, kind in enumerate(layer_kinds(model, runtime))
        for weight, size in of_kind[kind]
    )


def _evenly(tensors: Tensors, policy: Policy) -> Iterator[TierName]:
    """Deal whole tensors: each to the fastest tier with room for it in its share of what was dealt so far."""
    gpu_share, host_share = policy.weights.gpu, policy.weights.gpu + policy.weights.cpu
    dealt = on_gpu = on_host = 0.0
    for tensor in tensors:
        dealt += tensor.size
        tier: TierName = "disk"
        if on_gpu + tensor.size <= gpu_share * dealt + SLACK * dealt:
            tier = "gpu"
        elif on_host + tensor.size <= host_share * dealt + SLACK * dealt:
            tier = "cpu"
        on_gpu += tensor.size * (tier == "gpu")
        on_host += tensor.size * (tier != "disk")
        yield tier


def _is_norm_of_block(tensor: Tensor) -> bool:
    return tensor.weight.stage != "head" and "norm" in tensor.weight.name


def _by_midpoint(tensors: Tensors, policy: Policy) -> Iterator[TierName]:
    """Within each layer, put a tensor where the middle of its elements falls: disk, then CPU, then GPU.

    This is FlexGen's rule; within a block it lists norms last. It rounds coarsely: of a block with two large
    matrices in its MLP, a fifth on the GPU becomes a twelfth.
    """
    on_disk, on_host = policy.weights.disk, policy.weights.disk + policy.weights.cpu
    for _, group in itertools.groupby(tensors, key=lambda tensor: tensor.layer):
        layer = list(group)
        total = sum(tensor.weight.numel for tensor in layer)
        tiers: dict[str, TierName] = {}
        before = 0
        for tensor in sorted(layer, key=_is_norm_of_block):
            middle = (before + tensor.weight.numel / 2) / total
            before += tensor.weight.numel
            tiers[tensor.weight.name] = "disk" if middle < on_disk else "cpu" if middle < on_host else "gpu"
        yield from (tiers[tensor.weight.name] for tensor in layer)


def _in_order(tensors: Tensors, policy: Policy) -> Iterator[TierName]:
    """Fill the GPU with whole layers from the first on, then the CPU, then the disk.

    This is Accelerate's rule; a share is met by the layers that fit into it.
    """
    total = sum(tensor.size for tensor in tensors)
    ends = np.cumsum([policy.weights.gpu, policy.weights.cpu]) * total * (1 + SLACK)
    held = 0.0
    tier = 0
    for _, group in itertools.groupby(tensors, key=lambda tensor: tensor.layer):
        layer = list(group)
        held += sum(tensor.size for tensor in layer)
        while tier < len(ends) and held > ends[tier]:
            tier += 1
        yield from [TIERS[tier]] * len(layer)


PLACING: dict[str, Callable[[Tensors, Policy], Iterator[TierName]]] = {
    "even": _evenly,
    "midpoint": _by_midpoint,
    "in_order": _in_order,
}


def by_tensors(
    tensors: Tensors, tiers: Iterator[TierName]
) -> tuple[dict[str, str], tuple[FloatArray, FloatArray]]:
    """Note where whole tensors lie, and what that makes of each layer."""
    held, counted = (np.zeros((tensors[-1].layer + 1, 3)) for _ in range(2))
    columns = np.array([TIERS.index(tier) for tier in tiers])
    np.add.at(held, (tensors.layers, columns), tensors.sizes)
    np.add.at(counted, (tensors.layers, columns), tensors.matrices)
    letters = np.array([_LETTERS[tier] for tier in TIERS])[columns]
    return {name: "".join(letters[places]) for name, places in tensors.by_name.items()}, (held, counted)


def by_rows(
    tensors: Tensors, policy: Policy
) -> tuple[dict[str, tuple[float, float, float]], tuple[FloatArray, FloatArray]]:
    """Cut every tensor along its rows, those of one dimension too."""
    held, counted = (np.zeros((tensors[-1].layer + 1, 3)) for _ in range(2))
    rows: dict[str, tuple[float, float, float]] = {}
    for tensor in tensors:
        split = whole(policy.weights, tensor.weight.shape[0])
        rows[tensor.weight.name] = (split.gpu, split.cpu, split.disk)
        share = np.array(rows[tensor.weight.name])
        held[tensor.layer] += tensor.size * share
        counted[tensor.layer] += tensor.weight.is_matrix * (share > 0)
    return rows, (held, counted)


def whole(split: Split, units: int) -> Split:
    """Round a split to whole units: faster tiers down, the rest to the slowest tier that is used."""
    gpu = math.floor(split.gpu * units + SLACK * units)
    host = math.floor((split.gpu + split.cpu) * units + SLACK * units)
    if split.disk < SLACK:
        host = units
    if split.disk < SLACK and split.cpu < SLACK:
        gpu = units
    return split_of(np.array([gpu, host - gpu, units - host], dtype=float))


def split_of(amounts: FloatArray) -> Split:
    """Turn bytes (or units) on GPU, CPU and disk into fractions. [3]"""
    total = float(amounts.sum())
    gpu, cpu = float(amounts[0]) / total, float(amounts[1]) / total
    return Split(gpu=gpu, cpu=cpu, disk=max(0.0, 1.0 - gpu - cpu) if amounts[2] else 0.0)
