"""What a model costs: the only place where bytes and FLOPs are derived from its shapes.

Lengths are in tokens, sizes in elements, results in bytes [B] and floating-point operations [FLOP].
Never counted: norms, biases, rotary positions, activation functions and softmax. Their work is small, and
the achieved rates of the kernels contain the memory traffic they cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from simulator.model_shape import ModelDType, ModelShape, Stage, Weight

__all__ = ["ModelDType", "ModelShape", "ModelSpec", "Stage", "Weight", "stored_bits"]

Array = npt.NDArray[np.float64]

_SCALE_AND_MIN = 32  # bits that a quantised group adds: a 16-bit scale and a 16-bit minimum


class ModelSpec(ModelShape):
    """A model with its formulas: sizes of tensors, work of operations, bytes that go with one token.

    What is not quantised is stored and computed in the checkpoint's own type: 16 bits, or 32 in float32. So
    ``bits`` of 16 stands for "as in the checkpoint".
    """

    @property
    def element_bytes(self) -> int:
        """Bytes [B] of an element that is not quantised: 2, or 4 in float32."""
        return 4 if self.dtype == "float32" else 2

    def stored_bytes(self, bits: int = 16, group: int = 64) -> float:
        """Give the bytes [B] of an element, as in the checkpoint (16) or quantised: ``stored_bits / 8``."""
        quantised = stored_bits(bits, group) / 8
        return float(self.element_bytes) if bits == 16 else quantised

    def weight_bytes(self, weights: Iterable[Weight], bits: int = 16, group: int = 64) -> float:
        """Give the bytes [B] of tensors, with the matrices quantised to ``bits`` in groups of ``group``.

        ``sum of numel x stored_bytes(bits, group)`` for matrices outside the embed stage and as in the
        checkpoint for the rest: one-dimensional tensors are small, and tables are read by single rows. A tied
        table is a matrix of the head. Not counted: an incomplete last group, alignment.
        """
        quantised, plain = self.stored_bytes(bits, group), self.stored_bytes()
        total = 0.0
        for weight in weights:
            small = not weight.is_matrix or weight.stage == "embed"
            total += weight.numel * (plain if small else quantised)
        return total

    def linear_flops(self, stage: Literal["qkv", "project", "mlp", "head"]) -> float:
        """Give the work [FLOP] of the matrix products of one stage, for one token.

        ``2 x (elements of the stage's matrices)``: a multiplication and an addition per element; of one block
        for qkv, project and mlp, per token whose logits are computed for head. Not counted: biases, norms,
        activation functions, and in the embed stage the projection of OPT-350m.
        """
        weights = self.head_weights() if stage == "head" else self.layer_weights()
        return 2.0 * sum(weight.numel for weight in weights if weight.stage == stage and weight.is_matrix)

    @overload
    def attention_flops(self, new_tokens: float, cached_tokens: float) -> float: ...
    @overload
    def attention_flops(
        self, new_tokens: npt.NDArray[Any], cached_tokens: npt.NDArray[Any] | float
    ) -> Array: ...
    @overload
    def attention_flops(self, new_tokens: float, cached_tokens: npt.NDArray[Any]) -> Array: ...

    def attention_flops(self, new_tokens: Any, cached_tokens: Any) -> Any:
        """Give the work [FLOP] of attention in one block for one sequence, elementwise for arrays.

        ``4 x heads x head_dim x pairs`` with ``pairs = n c + n (n + 1) / 2``: n new tokens see the c cached
        ones and, causally, each other and themselves; a pair costs ``2 head_dim`` for its score and as much
        for its share of the output, per query head. Not counted: softmax, and pairs that a kernel computes
        and then masks.
        """
        pairs = new_tokens * (cached_tokens + (new_tokens + 1) / 2)
        return 4.0 * self.num_heads * self.head_dim * pairs

    def prefix_flops(self, new_tokens: Array, prefix_tokens: Array) -> Array:
        """Give the work [FLOP] of attention to a prefix alone in one block for one sequence, elementwise.

        ``4 x heads x head_dim x n p``: what `attention_flops` has more with p cached tokens than with none.
        """
        return 4.0 * self.num_heads * self.head_dim * new_tokens * prefix_tokens

    # Bytes per token

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes [B] of one token's keys and values in one block: ``2 x kv_heads x head_dim`` elements."""
        return 2 * self.num_kv_heads * self.head_dim * self.element_bytes

    def kv_bytes(self, bits: int = 16, group: int = 64) -> float:
        """Give the bytes [B] of one token's cache in one block: ``2 kv_heads x head_dim x stored_bytes``.

        Not counted: an incomplete last group, unused places in a page.
        """
        return 2 * self.num_kv_heads * self.head_dim * self.stored_bytes(bits, group)

    @property
    def hidden_bytes(self) -> int:
        """Bytes [B] of one token's hidden state: ``hidden`` elements."""
        return self.element_bytes * self.hidden_size

    @property
    def query_bytes(self) -> int:
        """Bytes [B] of a token's queries, or attention output, in a block: ``heads x head_dim`` elements."""
        return self.element_bytes * self.num_heads * self.head_dim

    @property
    def qkv_bytes(self) -> int:
        """Bytes [B] of one token's queries, keys and values: ``(heads + 2 kv_heads) x head_dim`` elements."""
        return self.query_bytes + self.kv_bytes_per_token

    @property
    def ffn_bytes(self) -> int:
        """Bytes [B] of one token's widest state in the MLP: ``ffn`` elements; gated (gate and up), twice."""
        return self.element_bytes * self.ffn_size * (2 if self.architecture == "llama" else 1)

    @property
    def logits_bytes(self) -> int:
        """Bytes [B] of one position's float32 logits: ``4 x vocabulary``."""
        return 4 * self.vocab_size


def stored_bits(bits: int, group: int) -> float:
    """Give the bits that an element takes: 16, or ``bits + 32 / group`` when quantised group by group.

    Every group of ``group`` elements carries a 16-bit scale and a 16-bit minimum.

    >>> stored_bits(4, 64)
    4.5

    Raises:
        ValueError: ``bits`` is not 16, 8 or 4, or ``group`` is below 1.
    """
    if bits not in (16, 8, 4) or group < 1:
        raise ValueError(f"expected 16, 8 or 4 bits in groups of at least 1; got {bits} and {group}")
    return 16.0 if bits == 16 else bits + _SCALE_AND_MIN / group
