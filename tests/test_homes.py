"""Homes: every unit of a group lies in one place, tiers get what the layout says, parts are split alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.homes import Share, activation_shares, cache_shares
from simulator.hardware import TIERS
from simulator.layout import Placed, lay_out
from simulator.model_config import parse_config
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.workload import Workload
from tests.strategies import models, splits

Splitter = Callable[[Placed], list[Share]]
both = pytest.mark.parametrize("shares_of", [cache_shares, activation_shares])


@st.composite
def groups(draw: st.DrawFn, most: int = 9) -> Placed:
    """Draw a group of 1 to ``most`` parts of 1 to 4 prompts each, split over the tiers at will."""
    parts, prompts = draw(st.integers(1, most)), draw(st.integers(1, 4))
    share = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    policy = Policy(
        gpu_batch=parts * prompts,
        num_groups=1,
        weights=draw(splits()),
        cache=draw(splits()),
        activations=draw(splits()),
        cpu_attention=CpuAttention(cpu=draw(share), disk=draw(share)),
        prompt_batch=prompts,
    )
    return lay_out(draw(models()), load_runtime("reference"), Workload(prompt_len=8, gen_len=2), policy)


def units_of(placed: Placed, shares_of: Splitter) -> int:
    """Count what is split: units of the cache, or sequences."""
    heads = placed.model.num_kv_heads if shares_of is cache_shares else 1
    return placed.policy.gpu_batch * heads


def total(shares: list[Share], first: int, stop: int) -> Counter[tuple[str, str]]:
    """Count units of a range by tier and engine."""
    found: Counter[tuple[str, str]] = Counter()
    for share in shares:
        found[share.tier, share.engine] += len(share.within(first, stop))
    return found


@both
@given(placed=groups())
def test_every_unit_lies_in_one_place(placed: Placed, shares_of: Splitter) -> None:
    """Shares are runs that follow each other from the first unit to the last."""
    shares, at = shares_of(placed), 0
    for share in shares:
        assert share.first == at
        assert share.count > 0
        at += share.count
    assert at == units_of(placed, shares_of)


@given(placed=groups())
def test_tiers_hold_what_the_layout_says(placed: Placed) -> None:
    """Units and sequences on every tier are the layout's; the CPU attends to its share, rounded."""
    units, layout = units_of(placed, cache_shares), placed.layout
    cached, states = cache_shares(placed), activation_shares(placed)
    for tier in TIERS:
        count = sum(share.count for share in cached if share.tier == tier)
        assert count == pytest.approx(getattr(layout.cache, tier) * units)
        count = sum(share.count for share in states if share.tier == tier)
        assert count == pytest.approx(getattr(layout.activations, tier) * placed.policy.gpu_batch)
    by_engine = total(cached, 0, units)
    assert by_engine["gpu", "cpu"] == 0
    for tier, share in (("cpu", layout.cpu_attention.cpu), ("disk", layout.cpu_attention.disk)):
        on_tier = by_engine[tier, "cpu"] + by_engine[tier, "gpu"]
        assert abs(by_engine[tier, "cpu"] - on_tier * share) <= 0.5 + 1e-9
    assert {share.engine for share in states} == {"gpu"}


@both
@given(placed=groups())
def test_parts_are_split_alike(placed: Placed, shares_of: Splitter) -> None:
    """Of every class, and of what is off the GPU in all, each part has an even share, rounded up or down."""
    shares, units = shares_of(placed), units_of(placed, shares_of)
    parts = placed.policy.gpu_batch // placed.policy.prompts_together
    size, whole = units // parts, total(shares, 0, units)
    off_gpu = sum(count for (tier, _), count in whole.items() if tier != "gpu")
    for part in range(parts):
        mine = total(shares, part * size, (part + 1) * size)
        assert all(count // parts <= mine[key] <= -(-count // parts) for key, count in whole.items())
        mine_off = sum(count for (tier, _), count in mine.items() if tier != "gpu")
        assert off_gpu // parts <= mine_off <= -(-off_gpu // parts)


@both
@given(placed=groups())
def test_one_class_stays_whole_in_memory(placed: Placed, shares_of: Splitter) -> None:
    """All units of one class in memory are one share; on the disk there is one for each part."""
    shares = shares_of(placed)
    kinds = {(share.tier, share.engine) for share in shares}
    parts = placed.policy.gpu_batch // placed.policy.prompts_together
    if len(kinds) == 1:
        assert len(shares) == (parts if shares[0].tier == "disk" else 1)
    else:  # no part has two shares of a class
        size = units_of(placed, shares_of) // parts
        places = [(share.tier, share.engine, share.first // size) for share in shares]
        assert len(places) == len(set(places))


@given(st.integers(0, 20), st.integers(1, 9), st.integers(0, 20), st.integers(0, 9))
def test_what_of_a_share_is_in_a_range(first: int, count: int, begin: int, size: int) -> None:
    """`within` is the intersection of two ranges."""
    found = Share("gpu", "gpu", first, count).within(begin, begin + size)
    assert set(found) == set(range(first, first + count)) & set(range(begin, begin + size))


def placed_by_hand(sequences: int, together: int, tiers: Split, on_cpu: CpuAttention) -> Placed:
    """Lay out a group of a model with one KV head, cache and activations alike."""
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64, "dtype": "float16"}
    policy = Policy(
        gpu_batch=sequences,
        num_groups=1,
        weights=tiers,
        cache=tiers,
        activations=tiers,
        cpu_attention=on_cpu,
        prompt_batch=together,
    )
    model = parse_config({**config, "max_position_embeddings": 64}, "small")
    return lay_out(model, load_runtime("reference"), Workload(prompt_len=8, gen_len=2), policy)


def listed(shares: list[Share]) -> list[tuple[str, str, int, int]]:
    """Write shares short."""
    return [(share.tier, share.engine, share.first, share.count) for share in shares]


def test_by_hand() -> None:
    """Two parts of four: of eight units 2 on the GPU, 4 on the CPU (half of them its own), 2 on the disk."""
    split = Split(gpu=0.25, cpu=0.5, disk=0.25)
    placed = placed_by_hand(8, 4, split, CpuAttention(cpu=0.5, disk=0))
    part = [("gpu", "gpu", 0, 1), ("cpu", "gpu", 1, 1), ("cpu", "cpu", 2, 1), ("disk", "gpu", 3, 1)]
    again = [(tier, engine, 4 + first, count) for tier, engine, first, count in part]
    assert listed(cache_shares(placed)) == part + again
    assert listed(activation_shares(placed))[:3] == [
        ("gpu", "gpu", 0, 1),
        ("cpu", "gpu", 1, 2),
        ("disk", "gpu", 3, 1),
    ]


def test_single_prompts_by_hand() -> None:
    """Five parts of one sequence cannot be alike: 2 on the GPU, 1 on the CPU, 2 on the disk."""
    placed = placed_by_hand(5, 1, Split(gpu=0.4, cpu=0.2, disk=0.4), CpuAttention())
    assert listed(activation_shares(placed)) == [
        ("gpu", "gpu", 0, 1),
        ("gpu", "gpu", 1, 1),
        ("cpu", "gpu", 2, 1),
        ("disk", "gpu", 3, 1),
        ("disk", "gpu", 4, 1),
    ]
    assert listed(cache_shares(placed)) == listed(activation_shares(placed))
