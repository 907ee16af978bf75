"""The arithmetic of a transformer, one function for each operation of the schedule.

Letters of shapes: B sequences, T new tokens of each, S tokens cached, the new ones included, H query heads,
K key and value heads, D elements of a head, E hidden size, V vocabulary.

    embed            tokens [B,T]                        -> hidden [B,T,E]
    project_qkv      hidden [B,T,E]                      -> q [B,T,H,D], k [B,T,K,D], v [B,T,K,D]
    attend           q, k [B,S,K,D], v [B,S,K,D]         -> attention [B,T,H,D]
    project_out      attention, residual [B,T,E]         -> hidden [B,T,E]
    mlp              hidden [B,T,E]                      -> hidden [B,T,E]
    head             hidden of the last tokens [B,E]     -> logits [B,V]

All functions are pure. Each sequence has positions of its own, so that a call may hold sequences at different
ones; where lengths differ, what is computed for the padding means nothing, and is finite. Results have the
type of the weights, float32, bfloat16 or float16; norms, angles and softmax are computed in float32.

Weights come as a table from names to tensors: of a block the names inside it, otherwise those of the loaded
model (`Checkpoint.block`, ``embed`` and ``head`` have the same keys).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as nn

from executor.facts import Facts
from executor.rotary import rotation, turn

Weights = Mapping[str, torch.Tensor]

_FIRST_POSITION = 2  # the row of the first position in OPT's table


def embed(facts: Facts, tokens: torch.Tensor, positions: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Look up tokens, and positions where these are learned: [B,T] and [B,T] -> [B,T,E]."""
    if facts.rotary is not None:
        return nn.embedding(tokens, weights["model.embed_tokens.weight"])
    hidden = nn.embedding(tokens, weights["model.decoder.embed_tokens.weight"])
    if "model.decoder.project_in.weight" in weights:
        hidden = _linear(hidden, weights, "model.decoder.project_in")
    table = weights["model.decoder.embed_positions.weight"]
    return hidden + nn.embedding(positions + _FIRST_POSITION, table)


def project_qkv(
    facts: Facts, hidden: torch.Tensor, positions: torch.Tensor, weights: Weights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute queries, keys and values, with everything that precedes attention.

    Args:
        facts: the model.
        hidden: [B,T,E].
        positions: of the tokens in their sequences, from 0 [B,T].
        weights: of the block.

    Returns:
        q [B,T,H,D], k [B,T,K,D] and v [B,T,K,D]; q is not scaled.
    """
    if not facts.model.post_norm:
        name = "self_attn_layer_norm" if facts.rotary is None else "input_layernorm"
        hidden = _norm(facts, hidden, weights, name)
    heads = (*hidden.shape[:-1], -1, facts.model.head_dim)
    q, k, v = (_linear(hidden, weights, f"self_attn.{name}_proj").view(heads) for name in ("q", "k", "v"))
    if facts.model.qk_norm:
        q = _norm(facts, q, weights, "self_attn.q_norm")
        k = _norm(facts, k, weights, "self_attn.k_norm")
    if facts.rotary is None:
        return q, k, v
    cosine, sine = rotation(facts.rotary, positions, hidden.dtype)
    return turn(q, cosine, sine), turn(k, cosine, sine), v


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend to each sequence's own past: every new token to the tokens up to itself.

    Slot s of k and v holds token s of a sequence. Slots after a token's position are not attended to, so
    that shorter sequences may have anything finite there.

    Args:
        q: [B,T,H,D].
        k: [B,S,K,D], any strides as long as D is contiguous; it is not copied.
        v: [B,S,K,D], likewise.
        positions: of the new tokens [B,T]. None: the new tokens are the last T of the S slots in every
            sequence. This takes faster kernels, and serves prompts that are padded on the right too.

    Returns:
        [B,T,H,D].
    """
    batch, new, heads, width = q.shape
    stored, groups = k.shape[1], heads // k.shape[2]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    if positions is None and new == stored:
        found = nn.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, is_causal=True, enable_gqa=groups > 1
        )
        return found.transpose(1, 2)
    # The queries that share a key head are stacked as if they were tokens: no kernel has to repeat keys.
    stacked = q.reshape(batch, new, -1, groups, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = _visible(positions, new, stored, groups, q.device)
    found = nn.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask)
    return found.view(batch, -1, groups, new, width).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _visible(
    positions: torch.Tensor | None, new: int, stored: int, groups: int, device: torch.device
) -> torch.Tensor | None:
    """Say which slots each stacked query sees [B or 1, 1, groups x T, S]; None: all."""
    if positions is None:
        if new == 1:
            return None
        positions = torch.arange(stored - new, stored, device=device)[None]
    mask = torch.arange(stored, device=device) <= positions[..., None]
    return mask.repeat(1, groups, 1)[:, None]


def project_out(
    facts: Facts, attention: torch.Tensor, residual: torch.Tensor, weights: Weights
) -> torch.Tensor:
    """Project attention [B,T,H,D] and add the block's input [B,T,E]: -> [B,T,E]."""
    name = "self_attn.out_proj" if facts.rotary is None else "self_attn.o_proj"
    hidden = residual + _linear(attention.flatten(-2), weights, name)
    return _norm(facts, hidden, weights, "self_attn_layer_norm") if facts.model.post_norm else hidden


def mlp(facts: Facts, hidden: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Run the rest of the block, its norm and its sum included: [B,T,E] -> [B,T,E]."""
    if facts.rotary is not None:
        inner = _norm(facts, hidden, weights, "post_attention_layernorm")
        gate = _activate(facts, _linear(inner, weights, "mlp.gate_proj"))
        gate *= _linear(inner, weights, "mlp.up_proj")  # in place: of a prompt it is the largest tensor
        return hidden + _linear(gate, weights, "mlp.down_proj")
    inner = hidden if facts.model.post_norm else _norm(facts, hidden, weights, "final_layer_norm")
    inner = _linear(_activate(facts, _linear(inner, weights, "fc1")), weights, "fc2")
    hidden = hidden + inner
    return _norm(facts, hidden, weights, "final_layer_norm") if facts.model.post_norm else hidden


def head(facts: Facts, hidden: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Turn hidden states [B,E] into logits [B,V], given in float32."""
    if facts.model.final_norm:
        name = "model.decoder.final_layer_norm" if facts.rotary is None else "model.norm"
        hidden = _norm(facts, hidden, weights, name)
    if "model.decoder.project_out.weight" in weights:
        hidden = _linear(hidden, weights, "model.decoder.project_out")
    return _linear(hidden, weights, "lm_head").float()


def _linear(hidden: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    matrix = weights[f"{name}.weight"]
    if isinstance(matrix, tuple):  # rows in several places
        product = torch.cat([nn.linear(hidden, part) for part in matrix], dim=-1)
        bias = weights.get(f"{name}.bias")
        return product if bias is None else product + bias
    return nn.linear(hidden, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _norm(facts: Facts, hidden: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """Normalise the last dimension: LayerNorm for OPT, RMSNorm for the rest."""
    weight = weights[f"{name}.weight"]
    if facts.rotary is None:  # torch computes this in float32 inside
        return nn.layer_norm(hidden, weight.shape, weight, weights[f"{name}.bias"], facts.norm_epsilon)
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + facts.norm_epsilon)
    return weight * wide.to(hidden.dtype)


def _activate(facts: Facts, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the activation, in place where torch has it so."""
    if facts.activation == "relu":
        return nn.relu(hidden, inplace=True)
    if facts.activation == "silu":
        return nn.silu(hidden, inplace=True)
    return nn.gelu(hidden, approximate="none" if facts.activation == "gelu" else "tanh")
