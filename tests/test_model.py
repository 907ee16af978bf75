"""The model: parameter counts against published ones, formulas by hand, laws, and configs that are wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.model import ModelSpec, Weight, stored_bits
from simulator.model_config import catalogue_names, load_model, parse_config, read_config
from simulator.operations import BLOCK_STAGES

# Totals of the models on the Hugging Face hub; all were recounted with transformers 5.23 on the meta device.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
# Options and defaults: (hidden, layers, heads, vocabulary, positions), other keys, and the number of
# parameters of the model that transformers 5.23 builds from them.
VARIANTS: list[tuple[str, tuple[int, int, int, int, int], dict[str, Any], int]] = [
    ("opt", (8, 1, 4, 90, 3), {"tie_word_embeddings": False, "ffn_dim": 44, "enable_bias": False}, 2488),
    ("opt", (8, 2, 4, 48, 32), {"ffn_dim": 13, "_remove_final_layer_norm": True}, 1754),
    ("opt", (6, 3, 1, 30, 18), {"ffn_dim": 77, "do_layer_norm_before": False}, 3897),
    ("opt", (28, 1, 2, 36, 21), {"ffn_dim": 34}, 7034),
    (
        "llama",
        (8, 1, 4, 72, 59),
        {"intermediate_size": 30, "num_key_value_heads": None, "head_dim": 12},
        3432,
    ),
    ("llama", (24, 3, 4, 59, 38), {"intermediate_size": 19, "attention_bias": True}, 14304),
    ("llama", (8, 3, 1, 88, 22), {"intermediate_size": 39, "mlp_bias": True}, 5298),
    ("mistral", (8, 1, 4, 55, 8), {"intermediate_size": 6, "num_key_value_heads": 1, "mlp_bias": True}, 1208),
    ("qwen2", (6, 3, 1, 14, 26), {"intermediate_size": 36, "num_key_value_heads": None}, 2640),
    ("qwen2", (2, 2, 1, 84, 9), {"intermediate_size": 25, "num_key_value_heads": None, "head_dim": 14}, 954),
    (
        "qwen3",
        (28, 1, 2, 37, 44),
        {"intermediate_size": 71, "num_key_value_heads": None, "attention_bias": True},
        37844,
    ),
]
SHAPES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 16,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": float("nan")},  # one of the many keys that do not matter
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 8,
    "word_embed_proj_dim": 6,
    "ffn_dim": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 5,
    "torch_dtype": "float16",
}
DROP = object()


def _config(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Change some keys of a config; `DROP` removes one."""
    return {key: value for key, value in {**base, **changes}.items() if value is not DROP}


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Draw a small model of either architecture, with any of its options."""
    kv_heads, flag = draw(st.integers(1, 4)), st.booleans()
    llama = draw(flag)
    heads = kv_heads * (draw(st.integers(1, 4)) if llama else 1)
    head_dim = 2 * draw(st.integers(1, 16))
    hidden = draw(st.integers(1, 64)) if llama else heads * head_dim
    return ModelSpec(
        name="drawn",
        architecture="llama" if llama else "opt",
        hidden_size=hidden,
        ffn_size=draw(st.integers(1, 99)),
        num_layers=draw(st.integers(1, 9)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=draw(st.integers(1, 99)),
        max_positions=draw(st.integers(1, 99)),
        tied_embeddings=draw(flag),
        dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        embed_size=hidden if llama else draw(st.integers(1, 64)),
        attention_bias=draw(flag),
        output_bias=draw(flag),
        mlp_bias=draw(flag),
        qk_norm=llama and draw(flag),
        post_norm=not llama and draw(flag),
        final_norm=llama or draw(flag),
    )


def _all_weights(model: ModelSpec) -> tuple[Weight, ...]:
    return (*model.embed_weights(), *(model.layer_weights() * model.num_layers), *model.head_weights())


# What is published


def test_catalogue_is_complete() -> None:
    """The catalogue holds exactly the models whose totals are published here."""
    assert catalogue_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_totals(name: str) -> None:
    """A model of the catalogue has the published number of parameters."""
    assert load_model(name).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize(("family", "shape", "keys", "total"), VARIANTS)
def test_options_and_defaults(family: str, shape: tuple[int, ...], keys: dict[str, Any], total: int) -> None:
    """Options, and keys left out, mean what transformers takes them to mean."""
    data = {"model_type": family, **dict(zip(SHAPES, shape, strict=True)), **keys}
    assert parse_config(data, "variant").num_parameters == total


def test_opt_175b_is_made_up_of() -> None:
    """OPT-175B is 96 blocks of 12 h^2 + 13 h, two tables, and a norm: 174.6 billion parameters."""
    model, hidden = load_model("opt-175b"), 12288
    block = 12 * hidden**2 + 13 * hidden  # 4 h^2 attention, 8 h^2 MLP; biases 4 h + 5 h, two norms 4 h
    assert sum(weight.numel for weight in model.layer_weights()) == block == 1_812_099_072
    assert [weight.numel for weight in model.embed_weights()] == [2050 * hidden]
    assert [weight.numel for weight in model.head_weights()] == [hidden, hidden, 50272 * hidden]
    assert model.num_parameters == 96 * block + (50272 + 2050 + 2) * hidden == 174_604_468_224
    assert model.weight_bytes(_all_weights(model)) == 349_208_936_448  # 325 GiB


def test_no_opt_66b_total_but_a_multiple_of_its_width() -> None:
    """Every tensor of OPT-66B has a dimension that 9216 divides, so its total is a multiple of 9216."""
    assert load_model("opt-66b").num_parameters % 9216 == 0


def test_opt_350m_projects_and_has_no_final_norm() -> None:
    """OPT-350m has a 512 wide table, projections without bias, and norms after its operations."""
    model = load_model("opt-350m")
    assert [(w.name, w.shape, w.stage) for w in (*model.embed_weights(), *model.head_weights())] == [
        ("model.decoder.embed_positions.weight", (2050, 1024), "embed"),
        ("model.decoder.project_in.weight", (1024, 512), "embed"),
        ("model.decoder.project_out.weight", (512, 1024), "head"),
        ("lm_head.weight", (50272, 512), "head"),
    ]
    stages = {weight.name: weight.stage for weight in model.layer_weights()}
    assert stages["self_attn_layer_norm.weight"] == "project"
    assert list(stages)[-1] == "final_layer_norm.bias"


def test_opt_layer_weights() -> None:
    """A block of OPT-125m lists its sixteen tensors in the order of use."""
    assert [(w.name, w.shape, w.stage) for w in load_model("opt-125m").layer_weights()] == [
        ("self_attn_layer_norm.weight", (768,), "qkv"),
        ("self_attn_layer_norm.bias", (768,), "qkv"),
        ("self_attn.q_proj.weight", (768, 768), "qkv"),
        ("self_attn.q_proj.bias", (768,), "qkv"),
        ("self_attn.k_proj.weight", (768, 768), "qkv"),
        ("self_attn.k_proj.bias", (768,), "qkv"),
        ("self_attn.v_proj.weight", (768, 768), "qkv"),
        ("self_attn.v_proj.bias", (768,), "qkv"),
        ("self_attn.out_proj.weight", (768, 768), "project"),
        ("self_attn.out_proj.bias", (768,), "project"),
        ("final_layer_norm.weight", (768,), "mlp"),
        ("final_layer_norm.bias", (768,), "mlp"),
        ("fc1.weight", (3072, 768), "mlp"),
        ("fc1.bias", (3072,), "mlp"),
        ("fc2.weight", (768, 3072), "mlp"),
        ("fc2.bias", (768,), "mlp"),
    ]


def test_qwen3_layer_weights() -> None:
    """A block of Qwen3-0.6B has query heads wider than its hidden state, and norms of queries and keys."""
    assert [(w.name, w.shape, w.stage) for w in load_model("qwen3-0.6b").layer_weights()] == [
        ("input_layernorm.weight", (1024,), "qkv"),
        ("self_attn.q_proj.weight", (2048, 1024), "qkv"),
        ("self_attn.k_proj.weight", (1024, 1024), "qkv"),
        ("self_attn.v_proj.weight", (1024, 1024), "qkv"),
        ("self_attn.q_norm.weight", (128,), "qkv"),
        ("self_attn.k_norm.weight", (128,), "qkv"),
        ("self_attn.o_proj.weight", (1024, 2048), "project"),
        ("post_attention_layernorm.weight", (1024,), "mlp"),
        ("mlp.gate_proj.weight", (3072, 1024), "mlp"),
        ("mlp.up_proj.weight", (3072, 1024), "mlp"),
        ("mlp.down_proj.weight", (1024, 3072), "mlp"),
    ]


def test_qwen2_has_biases_for_queries_keys_and_values_only() -> None:
    """Qwen2.5 has three biases in a block, whatever its file says."""
    biases = [w.name for w in load_model("qwen2.5-7b").layer_weights() if w.name.endswith("bias")]
    assert biases == [f"self_attn.{name}_proj.bias" for name in "qkv"]


# By hand


def test_work_of_a_tiny_model() -> None:
    """FLOPs of a tiny model agree with a count by hand."""
    model = parse_config(LLAMA, "tiny")
    assert model.linear_flops("qkv") == 2 * (8 * 8 + 4 * 8 + 4 * 8)
    assert model.linear_flops("project") == 2 * 8 * 8
    assert model.linear_flops("mlp") == 2 * 3 * 8 * 12
    assert model.linear_flops("head") == 2 * 8 * 10
    # three new tokens over two cached ones see 3, 4 and 5 tokens; 4 heads of 2 elements, 4 FLOPs each
    assert model.attention_flops(3, 2) == 4 * 4 * 2 * (3 + 4 + 5)
    assert model.attention_flops(1, 0) == 4 * 4 * 2


def test_bytes_of_a_tiny_model() -> None:
    """Bytes per token of a tiny model agree with a count by hand."""
    model = parse_config(LLAMA, "tiny")
    assert model.kv_bytes_per_token == model.kv_bytes() == 2 * (2 * 2) * 2
    assert model.kv_bytes(4, 64) == 8 * 4.5 / 8
    assert (model.hidden_bytes, model.query_bytes, model.qkv_bytes) == (16, 16, 32)
    assert (model.ffn_bytes, model.logits_bytes) == (2 * 2 * 12, 4 * 10)
    assert parse_config(OPT, "tiny").ffn_bytes == 2 * 16


def test_weight_bytes_of_a_tiny_model() -> None:
    """Matrices of a block shrink to 5 bits per element in groups of 32; norms and tables stay at 16."""
    model = parse_config(LLAMA, "tiny")
    matrices = 128 + 64 + 288
    assert model.weight_bytes(model.layer_weights()) == 2 * (matrices + 16)
    assert model.weight_bytes(model.layer_weights(), 4, 32) == matrices * 5 / 8 + 2 * 16
    assert model.weight_bytes(model.embed_weights(), 4, 32) == 2 * 80
    assert model.weight_bytes(model.head_weights(), 8, 32) == 80 * 9 / 8 + 2 * 8


def test_a_float32_checkpoint_takes_four_bytes_an_element() -> None:
    """In float32 everything is twice as large but what is quantised, and the logits."""
    half, wide = (parse_config(LLAMA | {"torch_dtype": dtype}, "tiny") for dtype in ("float16", "float32"))
    assert (half.element_bytes, wide.element_bytes) == (2, 4)
    names = ("kv_bytes_per_token", "hidden_bytes", "query_bytes", "qkv_bytes", "ffn_bytes")
    assert [getattr(wide, name) for name in names] == [2 * getattr(half, name) for name in names]
    assert wide.kv_bytes() == wide.kv_bytes_per_token
    assert wide.kv_bytes(4, 64) == half.kv_bytes(4, 64)
    assert wide.logits_bytes == half.logits_bytes
    matrices, vectors = 128 + 64 + 288, 16
    assert wide.weight_bytes(wide.layer_weights()) == 4 * (matrices + vectors)
    assert wide.weight_bytes(wide.layer_weights(), 4, 32) == matrices * 5 / 8 + 4 * vectors


def test_flexgen_sizes_of_opt_175b() -> None:
    """OPT-175B has the cache of FlexGen's formula, 4 h bytes per token and block."""
    model = load_model("opt-175b")
    assert model.kv_bytes_per_token == 4 * 12288
    assert sum(model.linear_flops(stage) for stage in BLOCK_STAGES) == 24 * 12288**2


def test_tied_table_is_counted_once() -> None:
    """A tied table is the head's matrix and not an embedding; an untied one is both."""
    tied, untied = load_model("llama-3.2-1b"), load_model("llama-3-8b")
    assert tied.embed_weights() == ()
    assert [w.name for w in untied.embed_weights()] == ["model.embed_tokens.weight"]
    for model in (tied, untied):
        assert model.head_weights()[-1].shape == (128256, model.hidden_size)


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (5, 64), (32, 64), (0, 64), (4, 0), (16, -1)])
def test_bits_that_do_not_exist(bits: int, group: int) -> None:
    """Only 16, 8 and 4 bits, in groups of at least one element, are stored."""
    with pytest.raises(ValueError, match="expected 16, 8 or 4 bits"):
        stored_bits(bits, group)


# Laws


@given(models())
def test_parameters_are_the_sum_of_the_weights(model: ModelSpec) -> None:
    """The number of parameters is the sum over all tensors, each named once, and decides the bytes."""
    assert model.num_parameters == sum(weight.numel for weight in _all_weights(model))
    assert model.weight_bytes(_all_weights(model)) == model.element_bytes * model.num_parameters
    for names in (model.layer_weights(), (*model.embed_weights(), *model.head_weights())):
        assert len({weight.name for weight in names}) == len(names)


@given(models(), st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
def test_attention_is_additive(model: ModelSpec, first: int, second: int, cached: int) -> None:
    """A prompt in two pieces costs what it costs at once."""
    pieces = model.attention_flops(first, cached) + model.attention_flops(second, cached + first)
    assert model.attention_flops(first + second, cached) == pieces


@given(models(), st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 10**5)), min_size=1))
def test_attention_is_elementwise(model: ModelSpec, tokens: list[tuple[int, int]]) -> None:
    """Arrays of any integer type give what single numbers give."""
    new, cached = np.array(tokens, dtype=np.int32).T
    expected = [model.attention_flops(*pair) for pair in tokens]
    assert model.attention_flops(new, cached).tolist() == expected
    assert model.attention_flops(1, cached).tolist() == [model.attention_flops(1, c) for _, c in tokens]


@given(models(), st.sampled_from([8, 4]), st.integers(8, 1024))
def test_quantising_saves(model: ModelSpec, bits: int, group: int) -> None:
    """In groups of eight and more, quantised tensors and caches are smaller, and never below their bits."""
    weights = model.layer_weights()
    assert model.num_parameters * bits / 8 < model.weight_bytes(_all_weights(model), bits, group)
    assert model.weight_bytes(weights, bits, group) < model.weight_bytes(weights)
    least = model.kv_bytes_per_token / model.element_bytes * bits / 8
    assert least < model.kv_bytes(bits, group) < model.kv_bytes_per_token
    assert model.kv_bytes(16, group) == model.kv_bytes_per_token


@given(models())
def test_work_is_twice_the_matrices(model: ModelSpec) -> None:
    """A block's products take two FLOPs per element of its matrices."""
    matrices = sum(weight.numel for weight in model.layer_weights() if weight.is_matrix)
    assert sum(model.linear_flops(stage) for stage in BLOCK_STAGES) == 2 * matrices


@given(models())
def test_model_reads_back(model: ModelSpec) -> None:
    """A model written as JSON reads back into an equal one."""
    assert ModelSpec.model_validate_json(model.model_dump_json()) == model


# Files


def test_name_in_any_case() -> None:
    """A model of the catalogue is found in any case, under its own name."""
    assert load_model("OPT-30B") == load_model("opt-30b")
    assert load_model("OPT-30B").name == "opt-30b"


def test_file_and_folder(tmp_path: Path) -> None:
    """A config is read by its folder and by its file, and the model is named after either."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OPT))
    (folder / "other.json").write_text(json.dumps(OPT))
    assert load_model(str(folder)) == read_config(folder / "config.json")
    assert read_config(folder).name == "my-model"
    assert load_model(folder / "other.json").name == "other"


def test_family_by_architectures() -> None:
    """Without a model_type the class name says the family."""
    data = _config(LLAMA, model_type=DROP, architectures=["LlamaForCausalLM"])
    assert parse_config(data, "tiny") == parse_config(LLAMA, "tiny")


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": DROP, "dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": None}, "float32"),
        ({"torch_dtype": DROP}, "float32"),
    ],
)
def test_dtype(keys: dict[str, Any], dtype: str) -> None:
    """The dtype stands under its old or its new key, and is float32 without either."""
    assert parse_config(_config(LLAMA, **keys), "tiny").dtype == dtype


def test_near_names() -> None:
    """A name that is nearly right is answered with the closest ones."""
    with pytest.raises(InputError, match=r"'opt-31b' is neither .*; did you mean opt-"):
        load_model("opt-31b")


@pytest.mark.parametrize("name", ["", "nothing-like-it", "a\nb", "x" * 5000, "no/such/config.json"])
def test_unknown_names(name: str) -> None:
    """A name that is nothing lists the catalogue in one line."""
    with pytest.raises(InputError, match="neither a file nor a known model") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_files_that_are_not_objects(tmp_path: Path, text: str) -> None:
    """A file that holds no JSON object is refused in one line that names it."""
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"config\.json: ") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_folder_without_config(tmp_path: Path) -> None:
    """A folder without a config says so, and so does a file that is missing."""
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_config("x" * 5000)


@pytest.mark.parametrize(
    ("base", "key", "value", "says"),
    [
        (LLAMA, "model_type", DROP, "this key is missing"),
        (LLAMA, "model_type", "mixtral", "'mixtral' is not supported; supported: opt, llama"),
        (LLAMA, "model_type", "x\ny" * 99, "is not supported"),
        (LLAMA, "model_type", 7, "7 is not supported"),
        (LLAMA, "model_type", ["llama"], "is not supported"),
        (LLAMA, "quantization_config", {"bits": 4}, "already quantised"),
        (LLAMA, "num_local_experts", 8, "mixture-of-experts"),
        (LLAMA, "num_experts", 128, "mixture-of-experts"),
        (LLAMA, "n_routed_experts", 64, "mixture-of-experts"),
        (LLAMA, "hidden_size", DROP, "this key is missing; add it"),
        (LLAMA, "hidden_size", 0, "greater than or equal to 1; got 0"),
        (LLAMA, "hidden_size", -8, "greater than or equal to 1; got -8"),
        (LLAMA, "hidden_size", 10**30, "less than or equal to 1048576"),
        (LLAMA, "hidden_size", 8.0, "valid integer"),
        (LLAMA, "hidden_size", 8.5, "valid integer"),
        (LLAMA, "hidden_size", "8", "valid integer; got '8'"),
        (LLAMA, "hidden_size", True, "valid integer; got True"),
        (LLAMA, "hidden_size", None, "valid integer; got None"),
        (LLAMA, "hidden_size", float("nan"), "got nan"),
        (LLAMA, "hidden_size", float("inf"), "got inf"),
        (LLAMA, "hidden_size", [8], r"got \[8\]"),
        (LLAMA, "hidden_size", {"a\nb": 1}, "valid integer"),
        (LLAMA, "num_hidden_layers", 20000, "less than or equal to 16384"),
        (LLAMA, "num_attention_heads", 3, "3 does not divide hidden_size 8"),
        (LLAMA, "num_key_value_heads", 0, "greater than or equal to 1"),
        (LLAMA, "num_key_value_heads", False, "valid integer"),
        (LLAMA, "head_dim", "64", "valid integer"),
        (LLAMA, "intermediate_size", DROP, "missing"),
        (LLAMA, "vocab_size", 2**24 + 1, "less than or equal"),
        (LLAMA, "max_position_embeddings", -1, "greater than or equal"),
        (LLAMA, "tie_word_embeddings", "yes", "valid boolean"),
        (LLAMA, "tie_word_embeddings", 1, "valid boolean"),
        (LLAMA, "attention_bias", None, "valid boolean"),
        (LLAMA, "torch_dtype", "float8_e4m3fn", "'float16', 'bfloat16' or 'float32'; got 'float8_e4m3fn'"),
        (LLAMA, "torch_dtype", 16, "got 16"),
        (LLAMA, "dtype", "float16", "float16 differs from torch_dtype bfloat16"),
        (OPT, "ffn_dim", DROP, "missing"),
        (OPT, "num_attention_heads", 3, "3 does not divide hidden_size 8"),
        (OPT, "word_embed_proj_dim", 0, "greater than or equal to 1"),
        (OPT, "do_layer_norm_before", "false", "valid boolean"),
        (OPT, "_remove_final_layer_norm", 0, "valid boolean"),
        (OPT, "layer_norm_elementwise_affine", False, "not supported"),
    ],
)
def test_malformed_configs(base: dict[str, Any], key: str, value: Any, says: str) -> None:
    """A wrong value gives one line that names the key and says what is wrong."""
    with pytest.raises(InputError, match=rf"^model\.{key}: .*{says}") as caught:
        parse_config(_config(base, **{key: value}), "tiny")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads evenly"),
        ({"num_key_value_heads": 8}, "4 attention heads cannot share 8 key/value heads evenly"),
        ({"head_dim": 3}, "head_dim 3 must be even"),
    ],
)
def test_contradictions(keys: dict[str, Any], says: str) -> None:
    """Values that are fine alone and wrong together give one line that names them."""
    with pytest.raises(InputError, match=rf"^model: .*{says}") as caught:
        parse_config(_config(LLAMA, **keys), "tiny")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": "llama", "post_norm": True},
        {"architecture": "llama", "final_norm": False},
        {"architecture": "llama", "embed_size": 4},
        {"architecture": "opt"},
        {"architecture": "opt", "num_kv_heads": 4, "qk_norm": True},
    ],
)
def test_specs_that_do_not_exist(fields: dict[str, Any]) -> None:
    """A model whose options no family has cannot be made, by hand or from a file."""
    data = parse_config(LLAMA, "tiny").model_dump() | fields
    with pytest.raises(ValueError, match="model has"):
        ModelSpec.model_validate(data)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9) | st.integers(max_value=0),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_KEYS = [
    key for key in LLAMA if key not in ("model_type", "rope_scaling", "num_key_value_heads", "torch_dtype")
]


@given(st.sampled_from(_KEYS), _JUNK)
def test_junk_never_passes(key: str, junk: Any) -> None:
    """Nothing but a positive whole number passes for a size, and the error is one line naming the key."""
    with pytest.raises(InputError, match=rf"^model\.{key}: ") as caught:
        parse_config(_config(LLAMA, **{key: junk}), "tiny")
    assert len(str(caught.value).splitlines()) == 1


@given(st.dictionaries(st.sampled_from([*LLAMA, *OPT, "dtype", "architectures"]), _JUNK))
def test_any_config_is_read_or_refused(changes: dict[str, Any]) -> None:
    """Whatever a config holds, it is a model or an InputError of one line."""
    try:
        said = parse_config(_config(LLAMA, **changes), "tiny").name
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
