"""Layouts: fractions become whole tensors, rows, heads and sequences, and never overfill the GPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.hardware import TIERS
from simulator.layers import layer_kinds, layer_tensors, layer_weight_bytes, total_weight_bytes
from simulator.layout import Placed, lay_out
from simulator.memory import BUFFERS
from simulator.model_config import parse_config
from simulator.policy import PLACEMENT, CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.workload import Workload
from tests.strategies import layouts, models, splits

TABLE = "lm_head.weight"
LETTERS = dict(zip("gcd", TIERS, strict=True))
EPS = 1e-6
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "intermediate_size": 32,
    "dtype": "float16",
}


def placed(model, split, grain="tensor", **changes):
    """Lay out one policy with a weight split."""
    policy = Policy(gpu_batch=2, num_groups=3, weights=split, cache=split, activations=split)
    runtime = load_runtime("reference").model_copy(update={"grain": grain})
    workload = Workload(prompt_len=8, gen_len=4)
    return lay_out(model, runtime, workload, policy.model_copy(update=changes))


def tensors(laid_out: Placed) -> list[tuple[str, float]]:
    """List (tier, bytes) of every tensor in the order of the traversal, from the letters alone.

    An engine that loads a tied embedding has two copies of its table, one at the input and one at the output.
    """
    model, runtime, letters = laid_out.model, laid_out.runtime, laid_out.layout.tensors
    quantised = (laid_out.shape.weight_bits, laid_out.shape.quant_group)
    of_ends = quantised if runtime.quantizes_ends else (16, 64)
    twice = runtime.loads_embeddings and model.tied_embeddings
    listed = [(weight, 0, of_ends) for weight in model.head_weights() if weight.name == TABLE and twice]
    listed += [(weight, 0, of_ends) for weight in model.embed_weights()]
    for layer in range(model.num_layers):
        listed += [(weight, layer, quantised) for weight in model.layer_weights()]
    listed += [(weight, int(weight.name == TABLE and twice), of_ends) for weight in model.head_weights()]
    return [
        (LETTERS[letters[weight.name][layer]], model.weight_bytes((weight,), *bits))
        for weight, layer, bits in listed
    ]


@given(layouts(grain="tensor", placement="even"))
def test_at_every_point_tiers_hold_their_share_to_one_tensor(laid_out):
    """Spread evenly: in any prefix the GPU holds at most its share, every tier its own within one tensor."""
    dealt, held = 0.0, dict.fromkeys(TIERS, 0.0)
    sizes = tensors(laid_out)
    largest = max(size for _, size in sizes)
    for tier, size in sizes:
        dealt += size
        held[tier] += size
        assert held["gpu"] <= laid_out.policy.weights.gpu * dealt * (1 + EPS)
        for name in TIERS:
            asked = getattr(laid_out.policy.weights, name) * dealt
            assert abs(held[name] - asked) <= largest * (1 + EPS)


@given(layouts(grain="tensor", placement="midpoint"))
def test_by_midpoint_every_layer_holds_its_shares_to_half_a_tensor(laid_out):
    """In the order disk, CPU, GPU, norms of a block last: each border is met within half a tensor."""
    sizes = iter(tensors(laid_out))
    split, runtime = laid_out.policy.weights, laid_out.runtime
    for kind in layer_kinds(laid_out.model, runtime):
        weights = layer_tensors(laid_out.model, runtime, kind)
        tiers = [next(sizes)[0] for _ in weights]
        if not weights:  # an embedding whose table is the head's
            continue
        listed = list(zip(weights, tiers, strict=True))
        listed.sort(key=lambda each: each[0].stage != "head" and "norm" in each[0].name)
        in_order = [tier for _, tier in listed]
        assert in_order == sorted(in_order, key=("disk", "cpu", "gpu").index)
        total, largest = (each(weight.numel for weight in weights) for each in (sum, max))
        for border, before in ((split.disk, ("disk",)), (split.disk + split.cpu, ("disk", "cpu"))):
            held = sum(weight.numel for weight, tier in zip(weights, tiers, strict=True) if tier in before)
            assert abs(held - border * total) <= largest / 2 * (1 + EPS)


@given(layouts(grain="tensor", placement="in_order"))
def test_in_order_tiers_fill_up_one_after_the_other(laid_out):
    """Whole layers, never back to a faster tier; up to any tier no more than asked, but less than a layer."""
    held, split = laid_out.layer_bytes, laid_out.policy.weights
    held = held[held.sum(axis=1) > 0]  # an embedding whose table is the head's may have nothing of its own
    assert ((held > 0).sum(axis=1) == 1).all()
    tier = np.argmax(held, axis=1)
    assert (np.diff(tier) >= 0).all()
    total, so_far = held.sum(), 0.0
    for index, share in enumerate((split.gpu, split.gpu + split.cpu)):
        so_far += held[:, index].sum()
        assert so_far <= share * total * (1 + EPS)
        later = held[tier > index]
        assert not len(later) or so_far + later[0].sum() > share * total * (1 - EPS)


@given(layouts())
def test_the_gpu_never_holds_more_than_asked(laid_out):
    """Rounding goes to slower tiers, for every class of tensor, but for weights by midpoint."""
    by_midpoint = laid_out.runtime.placement == "midpoint" and laid_out.runtime.grain == "tensor"
    for name in ("cache", "activations") if by_midpoint else ("weights", "cache", "activations"):
        asked, got = getattr(laid_out.policy, name), getattr(laid_out.layout, name)
        if asked.cpu + asked.disk > EPS:
            assert got.gpu <= asked.gpu + EPS


@given(layouts())
def test_cache_and_activations_differ_by_less_than_one_unit(laid_out):
    """In every group the cache is of whole (sequence, KV head) units, and activations of whole sequences."""
    group, heads = laid_out.policy.gpu_batch, laid_out.model.num_kv_heads
    for name, units in (("cache", group * heads), ("activations", group)):
        asked, got = getattr(laid_out.policy, name), getattr(laid_out.layout, name)
        for tier in TIERS:
            assert abs(getattr(asked, tier) - getattr(got, tier)) * units < 1 + EPS
            assert getattr(got, tier) * units == pytest.approx(round(getattr(got, tier) * units), abs=EPS)


@given(layouts())
def test_cpu_attention_is_of_whole_units(laid_out):
    """Of a group the CPU attends to whole (sequence, KV head) units, within half a unit of what was asked."""
    units = laid_out.policy.gpu_batch * laid_out.model.num_kv_heads
    for tier in ("cpu", "disk"):
        there = getattr(laid_out.layout.cache, tier) * units
        attended = getattr(laid_out.layout.cpu_attention, tier) * there
        assert attended == pytest.approx(round(attended), abs=1e-4)
        if there > 0.5:
            assert abs(attended - getattr(laid_out.policy.cpu_attention, tier) * there) <= 0.5 + 1e-4


@given(layouts(), st.integers(1, 5))
def test_every_group_is_laid_out_alike(laid_out, groups):
    """The layout of a group does not depend on how many there are."""
    policy = laid_out.policy.model_copy(update={"num_groups": groups})
    again = lay_out(laid_out.model, laid_out.runtime, laid_out.workload, policy)
    assert again.layout == laid_out.layout


def test_one_sequence_a_group_lies_in_one_place():
    """Groups of one sequence: activations lie in one place, the cache is cut by its heads only."""
    model = parse_config(CONFIG | {"num_key_value_heads": 2}, "by hand")
    split, on_cpu = Split(gpu=0.75, cpu=0.25, disk=0), CpuAttention(cpu=0.4, disk=0)
    laid_out = placed(model, split, gpu_batch=1, num_groups=4, cpu_attention=on_cpu)
    assert laid_out.layout.activations == Split(gpu=0, cpu=1, disk=0)
    assert laid_out.layout.cache == Split(gpu=0.5, cpu=0.5, disk=0)
    assert laid_out.layout.cpu_attention == CpuAttention(cpu=0, disk=0)
    assert placed(model, split, gpu_batch=4).layout.activations == split


@pytest.mark.parametrize("grain", ["tensor", "row"])
@pytest.mark.parametrize("tier", TIERS)
@given(models())
def test_all_on_one_tier_is_exact(grain, tier, model):
    """A split of 1 on one tier leaves nothing elsewhere."""
    split = Split(**{name: float(name == tier) for name in TIERS})
    laid_out = placed(model, split, grain)
    assert laid_out.layout.weights == laid_out.layout.cache == laid_out.layout.activations == split
    assert laid_out.layout.difference(laid_out.policy) == {"weights": 0, "cache": 0, "activations": 0}
    assert laid_out.layer_bytes.sum() == laid_out.layer_bytes[:, TIERS.index(tier)].sum()


@given(layouts())
def test_layers_add_up(laid_out):
    """Whatever the placement, every layer has all its bytes, and the model all of its."""
    model, shape, runtime = laid_out.model, laid_out.shape, laid_out.runtime
    expected = [layer_weight_bytes(model, shape, runtime, kind) for kind in layer_kinds(model, runtime)]
    np.testing.assert_allclose(laid_out.layer_bytes.sum(axis=1), expected, rtol=1e-12)
    total = total_weight_bytes(model, shape, runtime)
    assert laid_out.layer_bytes.sum() == pytest.approx(total)
    fractions = [getattr(laid_out.layout.weights, tier) for tier in TIERS]
    np.testing.assert_allclose(laid_out.layer_bytes.sum(axis=0) / total, fractions, atol=1e-9)


@given(layouts(grain="tensor"))
def test_every_tensor_has_a_letter_a_layer(laid_out):
    """Tensors of blocks have as many letters as there are layers, the others one; the bytes follow them.

    A tied table that is stored for input and output has two.
    """
    model, letters = laid_out.model, laid_out.layout.tensors
    twice = {TABLE} if laid_out.runtime.loads_embeddings and model.tied_embeddings else set()
    blocks = {weight.name for weight in model.layer_weights()}
    ends = {weight.name for weight in (*model.embed_weights(), *model.head_weights())}
    assert letters.keys() == blocks | ends
    for name, each in letters.items():
        assert len(each) == (model.num_layers if name in blocks else 2 if name in twice else 1)
    assert set("".join(letters.values())) <= set("gcd")
    sums = dict.fromkeys(TIERS, 0.0)
    for tier, size in tensors(laid_out):
        sums[tier] += size
    assert list(sums.values()) == pytest.approx(laid_out.layer_bytes.sum(axis=0).tolist())


@given(models(), splits(), st.sampled_from([16, 4]))
def test_rows_are_whole_and_differ_by_less_than_one(model, split, bits):
    """With rows, every tensor is cut at whole rows, the GPU's share rounded down."""
    laid_out = placed(model, split, "row", weight_bits=bits)
    shapes = {
        w.name: w.shape for w in (*model.embed_weights(), *model.layer_weights(), *model.head_weights())
    }
    assert laid_out.layout.tensors == {}
    assert laid_out.layout.rows.keys() == shapes.keys()
    for name, parts in laid_out.layout.rows.items():
        rows = np.array(parts) * shapes[name][0]
        np.testing.assert_allclose(rows, rows.round(), atol=1e-6)
        asked = np.array([split.gpu, split.cpu, split.disk]) * shapes[name][0]
        assert (np.abs(rows - asked) < 1 + 1e-4).all()


def test_a_layout_by_hand():
    """Half on the GPU, a quarter on the CPU: a tensor goes where the share of all so far has room for it.

    The table (8192 B) has no room in half of itself, nor in three quarters. After it, all goes to the GPU
    until it holds 7.3 of 15.5 kB; then the larger matrices alternate. The head fits into three quarters.
    """
    laid_out = placed(parse_config(CONFIG, "by hand"), Split(gpu=0.5, cpu=0.25, disk=0.25))
    assert laid_out.layout.tensors == {
        "model.embed_tokens.weight": "d",
        "input_layernorm.weight": "gg",
        "self_attn.q_proj.weight": "gg",
        "self_attn.k_proj.weight": "gg",
        "self_attn.v_proj.weight": "gg",
        "self_attn.o_proj.weight": "gg",
        "post_attention_layernorm.weight": "gg",
        "mlp.gate_proj.weight": "gc",
        "mlp.up_proj.weight": "gg",
        "mlp.down_proj.weight": "gc",
        "model.norm.weight": "g",
        "lm_head.weight": "c",
    }
    assert laid_out.layer_bytes.sum(axis=0).tolist() == [8352, 10240, 8192]


@given(layouts())
def test_placement_is_a_partition(laid_out):
    """The placement variables of each class are non-negative and sum to 1."""
    values = dict(zip(PLACEMENT, laid_out.placement.tolist(), strict=True))
    assert values["one"] == 1
    for prefix in ("weights", "cache", "activations"):
        parts = [value for name, value in values.items() if name.startswith(prefix)]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(1)


@given(layouts())
def test_memory_items_are_complete(laid_out):
    """Every buffer has an item, with a slot at least; a tier's peak is its items at the fullest moment."""
    names = {item.name: item for item in laid_out.items()}
    assert set(BUFFERS) <= names.keys()
    assert all(item.slots >= 1 for item in names.values())
    peaks = laid_out.peak_memory()
    for tier, uses in peaks.items():
        totals = [
            sum(
                item.slots
                * (laid_out.policy.block if item.scales else 1)
                * float(item.form @ laid_out.placement)
                for item in laid_out.items(moment)
                if item.tier == tier
            )
            for moment in laid_out.moments
        ]
        assert sum(uses.values()) == pytest.approx(max(totals))
    assert all(size > 0 for uses in peaks.values() for size in uses.values())
