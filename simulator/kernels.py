"""How long kernels take: a roofline with the few further constants that measured kernels ask for.

Three things keep kernels above the plain roofline. Each is a constant of a kind of kernel, and left out of a
profile it has no effect:

* *tail*: a block of a kernel goes through its inner dimension step by step, and the last blocks to finish
  run beside idle processors. The time grows with the depth, until deep kernels are *split* among blocks.
* *grain*: a block of attention (one sequence and one head) never costs less than so many bytes read.
* *cached*: a benchmark that repeats a kernel finds small operands in the second-level cache. A run that
  streams its weights has no such luck, so only the reader of kernel tables uses this constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from simulator.schema import Record
from simulator.units import ByteRate, Bytes, FlopRate, Seconds

Floats = NDArray[np.float64]
Steps = Annotated[float, Field(ge=1.0, le=1e9, strict=True)]

PROMPT_TILE = 128.0  # prompt tokens that one attention block takes
GEMM_WEIGHTS = 6.0  # sets of weights through which the published GEMM benchmark cycles
_GRAIN_EDGE = 4.0  # how sharply the grain ends; kernels of mixed lengths blur it


class Roofline(Record):
    """How long kernels take: ``kernels * latency + ((FLOP/flops)^q + (bytes/bandwidth)^q)^(1/q)``.

    q is the sharpness: a large one is the classical roofline (the larger of the two), 1 is their sum.
    With ``tail`` [s], a kernel of depth d (the inner dimension of a GEMM, the tokens of attention) takes
    ``tail * d * split / (d + split)`` longer, without ``split`` just ``tail * d``. With ``grain`` [B], at
    least about so many bytes count for each attention block. ``cached`` [B/s] is for repeated kernels only.
    """

    flops: FlopRate
    bandwidth: ByteRate
    latency: Seconds = Field(default=0.0, validate_default=False)
    sharpness: Annotated[float, Field(ge=1.0, le=64.0, strict=True)] = 4.0
    tail: Seconds | None = None
    split: Steps | None = None
    grain: Bytes | None = None
    cached: ByteRate | None = None
    source: str

    @model_validator(mode="after")
    def _constants_fit(self) -> Self:
        if self.split is not None and self.tail is None:
            raise ValueError("split limits a tail and there is none; add tail or take split away")
        if self.cached is not None and self.cached < self.bandwidth:
            raise ValueError("cached is below bandwidth; a cache is no slower than the memory, so raise it")
        return self

    def seconds(
        self,
        flops: ArrayLike,
        bytes_: ArrayLike,
        kernels: ArrayLike = 1.0,
        depth: ArrayLike = 0.0,
        blocks: ArrayLike = 0.0,
    ) -> Floats:
        """Give the time of work done in a number of kernels, elementwise [s].

        Never below FLOP/flops or bytes/bandwidth. Without kernels proportional to FLOPs, bytes and blocks
        taken together.

        Args:
            flops: FLOPs of all kernels together.
            bytes_: Bytes that all kernels together move in their engine's memory.
            kernels: How many kernels there are.
            depth: Steps of the longest chain in one kernel: k of a GEMM [m, k] x [k, n], the tokens that
                attention attends to; the mean over kernels that differ.
            blocks: Attention blocks of all kernels together: sequences times key-value heads for cached
                tokens; sequences times heads times prompt tokens over ``PROMPT_TILE`` for a prompt.

        >>> line = Roofline(flops="10 TFLOP/s", bandwidth="1 TB/s", latency="5 us", sharpness=1, source="s")
        >>> round(float(line.seconds(flops=1e9, bytes_=2e8, kernels=2)), 6)
        0.00031
        """
        charged = _join(bytes_, np.multiply(blocks, self.grain or 0.0), _GRAIN_EDGE)
        busy = _join(np.divide(flops, self.flops), np.divide(charged, self.bandwidth), self.sharpness)
        return np.asarray(np.multiply(kernels, self.latency + self._tail(depth)) + busy)

    def _tail(self, depth: ArrayLike) -> Floats:
        chain = np.asarray(depth, float)
        if self.split is not None:
            chain = chain * (self.split / (chain + self.split))
        return chain * (self.tail or 0.0)


def _join(first: ArrayLike, second: ArrayLike, sharpness: float) -> Floats:
    """Join two amounts to one between the larger of them and their sum."""
    longer, shorter = np.maximum(first, second, dtype=float), np.minimum(first, second, dtype=float)
    ratio = np.divide(shorter, longer, out=np.zeros_like(longer), where=longer > 0.0)
    return np.asarray(longer * (1.0 + ratio**sharpness) ** (1.0 / sharpness))


@dataclass(frozen=True)
class KernelWork:
    """What single kernels do, one entry a kernel.

    ``operands`` are pairs: bytes moved, and bytes that must fit a cache for those to stay in it while a
    benchmark repeats the kernel.
    """

    flops: Floats
    operands: tuple[tuple[Floats, Floats], ...]
    depth: Floats
    blocks: Floats = field(default_factory=lambda: np.zeros(1))

    @property
    def bytes(self) -> Floats:
        """Bytes moved by each kernel [B]."""
        return np.asarray(sum(moved for moved, _ in self.operands))


def gemm_work(rows: Mapping[str, Floats], element: ArrayLike = 2.0) -> KernelWork:
    """Count the work of ``[m, k] x [k, n]``: 2mnk FLOP, operands and result moved once.

    Args:
        rows: Columns m, n and k.
        element: Bytes of a number.
    """
    m, n, k = rows["m"], rows["n"], rows["k"]
    weights, rest = np.multiply(element, k * n), np.multiply(element, m * k + m * n)
    operands = ((weights, GEMM_WEIGHTS * weights + rest), (rest, weights + rest))
    return KernelWork(2.0 * m * n * k, operands, k)


def prefill_work(rows: Mapping[str, Floats]) -> KernelWork:
    """Count causal attention over prompts in 16 bits: ``isl`` tokens after ``step`` cached ones.

    Each token with itself and all before; queries and outputs of the new tokens and keys and values of all
    tokens moved once.
    """
    batch, heads, kv_heads, head_dim, cached = _attention(rows)
    tokens = rows["isl"]
    flops = 4.0 * heads * head_dim * batch * tokens * (cached + (tokens + 1.0) / 2.0)
    moved = 4.0 * batch * head_dim * (tokens * heads + (cached + tokens) * kv_heads)
    blocks = batch * heads * np.ceil(tokens / PROMPT_TILE)
    return KernelWork(flops, ((moved, moved),), cached + tokens, blocks)


def decode_work(rows: Mapping[str, Floats]) -> KernelWork:
    """Count attention of one new token in 16 bits: keys and values of it and of ``step`` cached ones read."""
    batch, heads, kv_heads, head_dim, cached = _attention(rows)
    tokens = cached + 1.0
    moved = 4.0 * batch * head_dim * (kv_heads * tokens + heads)
    return KernelWork(4.0 * heads * head_dim * batch * tokens, ((moved, moved),), tokens, batch * kv_heads)


def _attention(rows: Mapping[str, Floats]) -> list[Floats]:
    return [rows[name] for name in ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "step")]
