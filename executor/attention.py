"""Attention of one new token of every sequence over its cache, wherever the rows of the cache lie.

All units of a share are computed at once: a unit is one key and value head of one sequence, and the query
heads that share it stand where other tokens of a prompt would. Letters as in `executor.layers`; U units,
G query heads of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nn

from executor.records import Pair

_GATHERED = {
    "cpu": 1 << 20,
    "cuda": 64 << 20,
}  # bytes brought together at a time: a cache, spare memory


def attend_rows(
    queries: torch.Tensor, pieces: Sequence[Pair], hidden: torch.Tensor | None, top: float = 1.0
) -> torch.Tensor:
    """Attend to all rows of a cache.

    Args:
        queries: of the new token [U,G,D].
        pieces: keys and values [S_i,U,D], that together are the S rows; the token's own is the last.
        hidden: true where a row is not a token of the unit's sequence [U,S]; None where all are.
        top: share of the rows whose values are used, those with the largest weights.

    Returns:
        [U,G,D].
    """
    if top < 1.0:
        return _sparse(queries, pieces, hidden, top)
    mask = None if hidden is None else ~hidden[:, None, None, :]
    if len(pieces) == 1:
        keys, values = pieces[0]
        return _attend(queries, keys, values, mask)
    rows = sum(len(keys) for keys, _ in pieces)
    size = 2 * rows * queries.shape[-1] * queries.element_size()
    step = max(1, _GATHERED[queries.device.type] // size)
    found = torch.empty_like(queries)
    for first in range(0, len(queries), step):
        units = slice(first, first + step)
        keys, values = (torch.cat([piece[part][:, units] for piece in pieces]) for part in (0, 1))
        found[units] = _attend(queries[units], keys, values, None if mask is None else mask[units])
    return found


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attend: [U,G,D] to [S,U,D] with a mask [U,1,1,S]."""
    keys, values = (each.transpose(0, 1)[:, None] for each in (keys, values))
    if mask is not None:
        mask = mask.expand(-1, -1, queries.shape[1], -1)
    return nn.scaled_dot_product_attention(queries[:, None], keys, values, attn_mask=mask)[:, 0]


def _sparse(
    queries: torch.Tensor, pieces: Sequence[Pair], hidden: torch.Tensor | None, top: float
) -> torch.Tensor:
    """Weigh all rows by their keys, and sum the values of the heaviest only, with the weights they have."""
    keys, values = pieces[0] if len(pieces) == 1 else map(torch.cat, zip(*pieces, strict=True))
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    scores = (queries @ keys.transpose(1, 2)).float() * queries.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
    count = max(1, round(top * scores.shape[-1]))
    weights, rows = scores.softmax(-1).topk(count, dim=-1)  # [U,G,k]
    heads = torch.arange(len(values), device=values.device)[:, None, None]
    chosen = values[heads, rows]  # [U,G,k,D]
    return torch.matmul(weights.to(values.dtype)[:, :, None], chosen)[:, :, 0]
