"""Bounds on the bytes any schedule must move, and what the block schedules move.

Every function here is arithmetic on a handful of numbers; the proofs, and what the bounds do not cover,
are in ``docs/bounds.md``. Letters used throughout:

    W   weight_bytes    weights that every pass of every sequence uses [B]
    M   fast_bytes      the memory that is read into: the GPU's, or GPU and CPU together [B]
    C   kv_capacity     room for live KV: all memory together, minus one copy of the weights [B]
    K   kv_bytes_read   KV bytes that attention reads, summed over the run [B]
    n   passes          steps of the longest sequence: one for the prompt, one per further token

A KV byte is live from when it is produced until the last time it is read.
"""

from __future__ import annotations

import math
from collections import Counter

_ROUNDING = 1e-12  # relative; a quotient of floats this close above an integer is taken to be that integer


def kv_bytes_read(kappa_layers: float, prompt_len: int, gen_len: int) -> float:
    """Return the KV bytes that one sequence's attention reads while it decodes.

    k = kappa l (n - 1) (s + (n - 2) / 2) = kappa l sum_{t=1}^{n-1} (s + t - 1)

    kappa l is the KV bytes of one token over all layers [B], s the prompt length, n the generated length.
    Exact when ``kappa_layers`` is an integer.

    Source: docs/bounds.md, section 1. Conditions: full attention, one token per step, nothing recomputed.
    """
    _require(prompt_len >= 1, "prompt_len", prompt_len, "at least 1")
    _require(gen_len >= 1, "gen_len", gen_len, "at least 1")
    return kappa_layers * ((gen_len - 1) * (2 * prompt_len + gen_len - 2) // 2)


def min_sweeps(kv_bytes_read: float, kv_capacity: float, passes: int) -> int:
    """Return how often any schedule must go through all the weights.

    S = max(n, ceil(K / C))

    Source: docs/bounds.md, section 4, step 3. Conditions: as :func:`window_bound`. For a mixture of
    sequences ``passes`` is that of the longest one and ``kv_bytes_read`` the sum over all of them.

    Raises:
        ValueError: there is KV to read and no room to keep any.
    """
    _require(passes >= 0, "passes", passes, "0 or more")
    _require(kv_bytes_read >= 0, "kv_bytes_read", kv_bytes_read, "0 or more")
    if kv_bytes_read == 0:
        return passes
    _require(kv_capacity > 0, "kv_capacity", kv_capacity, "more than 0, as there is KV to keep")
    if isinstance(kv_bytes_read, int) and isinstance(kv_capacity, int):
        return max(passes, -(-kv_bytes_read // kv_capacity))
    return max(passes, math.ceil(kv_bytes_read / kv_capacity * (1 - _ROUNDING)))


def weight_window_bound(
    kv_bytes_read: float,
    weight_bytes: float,
    fast_bytes: float,
    kv_capacity: float,
    passes: int,
    *,
    preloaded_bytes: float = 0,
) -> float:
    """Return the least weight bytes read into fast memory by any schedule, wherever attention runs.

    reads >= S (W - M)^+ + min(W, M) - P,    S = max(n, ceil(K / C))

    P is the weights that fast memory already holds when counting begins [B]; 0 counts their first load too.
    This is the form for attention on the CPU, where the KV cache is read but does not cross to the GPU.

    Source: docs/bounds.md, section 4. Conditions: as :func:`window_bound`.
    """
    sweeps = min_sweeps(kv_bytes_read, kv_capacity, passes)
    if sweeps == 0:
        return 0
    resident = min(weight_bytes, fast_bytes)
    return sweeps * (weight_bytes - resident) + resident - min(preloaded_bytes, resident)


def window_bound(
    kv_bytes_read: float,
    weight_bytes: float,
    fast_bytes: float,
    kv_capacity: float,
    passes: int,
    *,
    crossing: float = 1,
    preloaded_bytes: float = 0,
) -> float:
    """Return the least bytes (weights and KV) read into fast memory by any schedule.

    reads >= x K + S (W - M)    if W >= M, whatever is preloaded;    S = max(n, ceil(K / C))
    reads >= the weights-only form of :func:`weight_window_bound`, always

    x is the share of the KV reads that must happen in fast memory, the rest being attended to elsewhere.
    With M > W the KV itself may stay in fast memory, so only the second form is left.

    Source: docs/bounds.md, section 4. Conditions: every pass of every sequence uses all W (dense layers and
    output head; not the input embedding, not a choice of experts) in fast memory; one token per sequence
    and pass; KV is never recomputed, dropped or shared. Only reads count.
    """
    weights = weight_window_bound(
        kv_bytes_read, weight_bytes, fast_bytes, kv_capacity, passes, preloaded_bytes=preloaded_bytes
    )
    _require(0 <= crossing <= 1, "crossing", crossing, "a share between 0 and 1")
    if weight_bytes < fast_bytes:
        return weights
    sweeps = min_sweeps(kv_bytes_read, kv_capacity, passes)
    return max(weights, crossing * kv_bytes_read + sweeps * (weight_bytes - fast_bytes))


def sweep_rate_range(
    kv_bytes_read: float, kv_capacity: float, passes: int, num_sequences: float = math.inf
) -> tuple[float, float]:
    """Return the least and the most sweeps over the weights per sequence, for equal sequences.

    max(n / N, k / C) <= rho <= n

    k is ``kv_bytes_read`` of one sequence [B], N the number of sequences of the run (infinite: steady state).
    An inequality ``rho W ...`` of a time bound may let rho vary in this range and nowhere else.

    Source: docs/bounds.md, section 7.
    """
    if kv_bytes_read == 0:
        return passes / num_sequences, passes
    _require(kv_capacity > 0, "kv_capacity", kv_capacity, "more than 0, as there is KV to keep")
    return max(passes / num_sequences, kv_bytes_read / kv_capacity), passes


def layer_loads_bound(kv_bytes_read: int, kv_capacity: int, passes: int, layers: int) -> int:
    """Return the least number of layer loads when fast memory holds the weights of one layer.

    loads >= l max(n, ceil(K / C))

    l is the number of layers; the KV is freed layer by layer during the last pass.

    Source: docs/bounds.md, section 3. Conditions: equal sequences, l >= 2, all reads and all capacity in
    one unit, of which they are multiples.
    """
    _require(layers >= 2, "layers", layers, "at least 2")
    return layers * min_sweeps(kv_bytes_read, kv_capacity, passes)


def zigzag_peak_tokens(prompt_len: int, gen_len: int) -> int:
    """Return the most KV tokens one sequence of a zig-zag block holds.

    peak = s + n - 2 (0 if n = 1)

    Source: docs/bounds.md, section 2. Conditions: the last token's K and V are not stored.
    """
    return prompt_len + gen_len - 2 if gen_len > 1 else 0


def diagonal_peak_tokens(prompt_len: int, gen_len: int, num_groups: int) -> float:
    """Return the most KV tokens per sequence in flight of a diagonal schedule in steady state.

    peak = s + n (q + 1) / (2 q) - 2         for q groups, q a divisor of n, q < n
    peak = (n - 1) (2 s + n - 2) / (2 n)     for q = n

    Group i of a round is admitted at pass floor(i n / q); any q >= 1 is allowed, q = 1 is zig-zag.

    Source: docs/bounds.md, section 5. Conditions: the last token's K and V are not stored, a layer's KV is
    freed in the last pass, and within a layer the sequences that end go first.
    """
    _require(num_groups >= 1, "num_groups", num_groups, "at least 1")
    admitted = Counter(group * gen_len // num_groups for group in range(num_groups))
    steps = sum(-at % gen_len * count for at, count in admitted.items())  # over all groups, before pass 0
    peak = 0
    for now in range(gen_len):
        peak = max(peak, (num_groups - admitted[now]) * (prompt_len - 1) + steps)
        steps += num_groups - gen_len * admitted[now + 1]
    return peak / num_groups


def zigzag_loads(num_rows: int, block: int, gen_len: int, layers: int) -> int:
    """Return the layer loads of the zig-zag block schedule.

    loads = ceil(N / B) n l

    N rows in blocks of B; a row is the unit in which a block is counted: a sequence or a GPU batch.

    Source: docs/bounds.md, section 2.
    """
    _require(block >= 1, "block", block, "at least 1")
    return -(-num_rows // block) * gen_len * layers


def zigzag_factor(block: float, num_rows: float = math.inf) -> float:
    """Return the proven factor between zig-zag's weight loads and the best schedule's.

    zig-zag / optimum <= 2 (1 + 1/B) (1 + B/N)    and = 1 if N <= B

    B is the largest number of rows whose KV fits at its peak, N the number of rows (infinite: steady state).

    Source: docs/bounds.md, section 3. Conditions: n >= 2 generated tokens, l >= 2 layers, equal rows.
    """
    _require(block >= 1, "block", block, "at least 1")
    _require(num_rows >= 1, "num_rows", num_rows, "at least 1")
    return 1.0 if num_rows <= block else 2 * (1 + 1 / block) * (1 + block / num_rows)


def zigzag_ratio_limit(prompt_len: int, gen_len: int) -> float:
    """Return zig-zag's weight loads over the optimum's, for many rows in large blocks.

    ratio = n (s + n - 2) / ((n - 1) (s + (n - 2) / 2)),    between 1 and 2

    Source: docs/bounds.md, section 3. With n = 1 there is no KV to keep, and the ratio is 1.
    """
    if gen_len == 1:
        return 1.0
    return gen_len * zigzag_peak_tokens(prompt_len, gen_len) / kv_bytes_read(1, prompt_len, gen_len)


def _require(holds: bool, name: str, value: float, expected: str) -> None:
    """Raise a ValueError that names the argument, unless the condition holds."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}; got {value}")
