"""The layers of a pass, as an engine divides the model: their kinds, their tensors, their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from simulator.model import ModelSpec, Weight
from simulator.policy import Bits
from simulator.runtime import Runtime


class CellKind(IntEnum):
    """What a layer of the traversal is; ``START`` only loads weights, before the first; ``PAUSE`` waits.

    ``ATTENTION`` and ``MLP`` are the halves of a ``BLOCK``, for engines that take them one by one.
    """

    EMBED = 0
    BLOCK = 1
    HEAD = 2
    ATTENTION = 3
    MLP = 4
    START = 5
    PAUSE = 6


#: Kinds that do work, in the order of their numbers.
WORKING = (CellKind.EMBED, CellKind.BLOCK, CellKind.HEAD, CellKind.ATTENTION, CellKind.MLP)
_HALVES = (CellKind.ATTENTION, CellKind.MLP)
_KEPT = 1024  # sums over tensors that are kept: a search asks for the same few thousands of times


@dataclass(frozen=True)
class Shape:
    """What of a policy decides the form of the work, with placement left open."""

    weight_bits: Bits = 16
    cache_bits: Bits = 16
    quant_group: int = 64
    pinned: bool = True
    attention_top: float = 1.0

    @property
    def attended(self) -> float:
        """The share of cached keys and values that a new token's attention reads: of values only the top."""
        return (1.0 + self.attention_top) / 2.0


def layer_kinds(model: ModelSpec, runtime: Runtime) -> list[CellKind]:
    """List the layers of one pass: embedding, blocks (or their halves), head."""
    block = [CellKind.BLOCK] if runtime.layers == "block" else list(_HALVES)
    return [CellKind.EMBED, *block * model.num_layers, CellKind.HEAD]


def count_layers(model: ModelSpec, runtime: Runtime) -> dict[CellKind, int]:
    """Count the layers of each kind in one pass."""
    return dict(_layer_counts(model, runtime))


@lru_cache(_KEPT)
def _layer_counts(model: ModelSpec, runtime: Runtime) -> tuple[tuple[CellKind, int], ...]:
    kinds = layer_kinds(model, runtime)
    return tuple((kind, kinds.count(kind)) for kind in WORKING)


def first_loaded(runtime: Runtime) -> int:
    """Give the number of the first layer whose weights are loaded: the embedding, or the one after it."""
    return 0 if runtime.loads_embeddings else 1


@lru_cache(_KEPT)
def layer_tensors(model: ModelSpec, runtime: Runtime, kind: CellKind) -> tuple[Weight, ...]:
    """List the tensors of a layer, in the order in which they are used.

    An engine that loads embeddings stores a tied table twice, as a matrix of the input and of the output.
    """
    if kind == CellKind.HEAD:
        return model.head_weights()
    if kind == CellKind.EMBED:
        found = model.embed_weights()
        if runtime.loads_embeddings and model.tied_embeddings:
            found = (
                next(weight for weight in model.head_weights() if weight.name == "lm_head.weight"),
                *found,
            )
        return found
    block = model.layer_weights()
    if kind == CellKind.BLOCK:
        return block
    return tuple(weight for weight in block if (weight.stage == "mlp") == (kind == CellKind.MLP))


def tensor_bytes(model: ModelSpec, shape: Shape, runtime: Runtime, kind: CellKind, tensor: Weight) -> float:
    """Bytes of one tensor as it lies in its tier: quantised in blocks, at the ends if so described. [B]"""
    ends = kind in (CellKind.EMBED, CellKind.HEAD)
    if ends and not runtime.quantizes_ends:
        return model.weight_bytes((tensor,))
    return model.weight_bytes((tensor,), shape.weight_bits, shape.quant_group)


@lru_cache(_KEPT)
def layer_weight_bytes(model: ModelSpec, shape: Shape, runtime: Runtime, kind: CellKind) -> float:
    """Bytes of the weights of one layer as they lie in their tiers. [B]"""
    tensors = layer_tensors(model, runtime, kind)
    return sum(tensor_bytes(model, shape, runtime, kind, tensor) for tensor in tensors)


@lru_cache(_KEPT)
def total_weight_bytes(model: ModelSpec, shape: Shape, runtime: Runtime) -> float:
    """Bytes of all weights as they lie in their tiers. [B]"""
    return sum(
        count * layer_weight_bytes(model, shape, runtime, kind)
        for kind, count in count_layers(model, runtime).items()
    )


@lru_cache(_KEPT)
def expanded_bytes(model: ModelSpec, runtime: Runtime, kind: CellKind) -> float:
    """Bytes that dequantising a layer's matrices produces, in the model's own type. [B]"""
    if kind in (CellKind.EMBED, CellKind.HEAD) and not runtime.quantizes_ends:
        return 0.0
    tensors = layer_tensors(model, runtime, kind)
    matrices = [tensor for tensor in tensors if tensor.is_matrix and tensor.stage != "embed"]
    return float(model.element_bytes * sum(tensor.numel for tensor in matrices))
