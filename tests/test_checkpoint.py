"""Opening checkpoints: places of tensors, names that files use, and faults told in one line."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REASON = "torch, transformers and safetensors are needed to make checkpoints"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)
safetensors = pytest.importorskip("safetensors.torch", reason=REASON)

from executor.checkpoint import Checkpoint, TensorPlace
from executor.reference import generate
from executor.sampling import Request
from executor.tensor_file import read
from simulator.errors import InputError
from simulator.model_config import load_model
from tests.checkpoints import VARIANTS, build, change_json, one_thread, save

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of one file."""
    return save(build(VARIANTS["llama"]), tmp_path_factory.mktemp("single") / "small").path


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same checkpoint in several files."""
    return save(
        build(VARIANTS["llama"]), tmp_path_factory.mktemp("sharded") / "small", max_shard_size="20KB"
    ).path


def copy(folder: Path, to: Path) -> Path:
    """Copy a checkpoint, to damage it."""
    return Path(shutil.copytree(folder, to / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a checkpoint of one file."""
    file = folder / WEIGHTS
    safetensors.save_file(change(safetensors.load_file(file)), file, metadata={"format": "pt"})


def change_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a file and nothing behind it."""
    file = folder / WEIGHTS
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_is_where_the_checkpoint_says(name: str, dtype: Any, tmp_path: Path) -> None:
    """What is read from the places is what safetensors reads, and the names are those of the loaded model."""
    model = build(VARIANTS[name]).to(dtype)
    checkpoint = save(model, tmp_path, max_shard_size="20KB")
    tensors = dict(model.named_parameters(remove_duplicate=False))
    assert set(checkpoint.tensors) == set(tensors)
    for key, place in checkpoint.tensors.items():
        assert (place.dtype, place.shape) == (dtype, tuple(tensors[key].shape))
        assert torch.equal(read(place), tensors[key])
    assert checkpoint.model == load_model(tmp_path)
    assert sum(place.nbytes for place in set(checkpoint.tensors.values())) == (
        checkpoint.model.num_parameters * dtype.itemsize
    )


def test_tied_tables_share_a_place(tmp_path: Path) -> None:
    """With tied embeddings the table and the output matrix are one place, whichever of them was saved."""
    folder = save(build(VARIANTS["llama3"]), tmp_path / "first").path
    first = Checkpoint.open(folder)
    assert first.embed["model.embed_tokens.weight"] is first.head["lm_head.weight"]
    rewrite(folder, lambda old: {name.replace("model.embed_tokens", "lm_head"): old[name] for name in old})
    second = Checkpoint.open(folder)
    assert second.embed["model.embed_tokens.weight"] is second.head["lm_head.weight"]
    assert second.head["lm_head.weight"].name == "lm_head.weight"


@pytest.mark.parametrize("name", ["opt-350m", "llama3"])
def test_bare_models_have_shorter_names(name: str, tmp_path: Path) -> None:
    """The same model saved without its head has names without the first part; nothing else changes."""
    model = build(VARIANTS[name])
    checkpoint, bare = save(model, tmp_path / "whole"), save(model.model, tmp_path / "bare")
    assert not any(place.name.startswith("model.") for place in bare.tensors.values())
    assert set(bare.tensors) == set(checkpoint.tensors)
    request = [Request((3, 1, 4, 1, 5), 6)]
    assert generate(bare, request) == generate(checkpoint, request)


def test_shards_hold_what_one_file_holds(single: Path, sharded: Path) -> None:
    """Only the files differ; tensors that the model does not need are ignored."""
    one, many = Checkpoint.open(single), Checkpoint.open(sharded)
    assert len({place.file for place in many.tensors.values()}) > 3
    assert {place.file for place in one.tensors.values()} == {single / WEIGHTS}
    assert all(torch.equal(read(place), read(many.tensors[name])) for name, place in one.tensors.items())


def test_blocks_have_the_names_of_the_simulator(single: Path) -> None:
    """A block, the embedding and the head list exactly the tensors that the simulator counts."""
    checkpoint = Checkpoint.open(single)
    spec = checkpoint.model
    assert list(checkpoint.block(1)) == [weight.name for weight in spec.layer_weights()]
    assert checkpoint.block(1)["self_attn.q_proj.weight"] == checkpoint.tensors[Q_PROJ]
    assert set(checkpoint.embed) == {weight.name for weight in spec.embed_weights()}
    assert set(checkpoint.head) == {weight.name for weight in spec.head_weights()}


def test_opening_reads_no_data(tmp_path: Path) -> None:
    """A file of 13 GB, all of it a hole, opens as it is: nothing but its header is looked at."""
    spec = load_model("opt-6.7b")
    weights = {
        f"decoder.layers.{i}.{w.name}": w for i in range(spec.num_layers) for w in spec.layer_weights()
    }
    ends = (*spec.embed_weights(), *spec.head_weights())
    weights |= {weight.name.removeprefix("model."): weight for weight in ends}
    header, end = {}, 0
    for name, weight in weights.items():
        offsets = [end, end + 2 * weight.numel]
        header[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    with (tmp_path / WEIGHTS).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    config = {
        "model_type": "opt",
        "hidden_size": spec.hidden_size,
        "ffn_dim": spec.ffn_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.open(tmp_path)
    assert sum(place.nbytes for place in set(checkpoint.tensors.values())) == 2 * spec.num_parameters > 13e9


def test_tokens_that_begin_and_end_texts(single: Path, tmp_path: Path) -> None:
    """They come from generation_config.json, or else from config.json; one number or several."""
    folder = copy(single, tmp_path)
    (folder / "generation_config.json").unlink(missing_ok=True)
    change_json(folder / "config.json", eos_token_id=2, bos_token_id=1)
    config = Checkpoint.open(folder).config
    assert (config.end_tokens, config.begin_token) == (frozenset({2}), 1)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    config = Checkpoint.open(folder).config
    assert (config.end_tokens, config.begin_token) == (frozenset({7, 9}), 1)
    assert Checkpoint.open(folder).tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    assert Checkpoint.open(folder).tokenizer == folder / "tokenizer.json"


def entry(**changes: object) -> Callable[[Path], None]:
    """Damage what the header says about one tensor."""
    return lambda folder: change_header(
        folder, lambda header: header | {Q_PROJ: {**header[Q_PROJ], **changes} if changes else 3}
    )


def cut(folder: Path) -> None:
    """Take the last byte off."""
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])


FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "cut short": (cut, (WEIGHTS, "tensor", "cut short", "download")),
    "no header": (lambda f: (f / WEIGHTS).write_bytes(b""), (WEIGHTS, "header", "download")),
    "long header": (
        lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64),
        (WEIGHTS, "64 bytes cannot hold", "download"),
    ),
    "header a byte too long": (
        lambda f: (f / WEIGHTS).write_bytes(b"\3" + b"\0" * 7 + b"{}"),
        (WEIGHTS, "10 bytes cannot hold the header of 3 bytes"),
    ),
    "header not JSON": (
        lambda f: (f / WEIGHTS).write_bytes(b"\4" + b"\0" * 7 + b"{{{{"),
        (WEIGHTS, "not JSON", "download"),
    ),
    "header nested without end": (
        lambda f: (f / WEIGHTS).write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000),
        (WEIGHTS, "not JSON", "download"),
    ),
    "header a list": (lambda f: change_header(f, list), (WEIGHTS, "not a table", "download")),
    "entry a number": (entry(), (WEIGHTS, Q_PROJ, "entry 3", "download")),
    "entry without shape": (entry(shape=None), (WEIGHTS, Q_PROJ, "entry", "download")),
    "shape negative": (entry(shape=[-32, -32]), (WEIGHTS, Q_PROJ, "entry", "download")),
    "offsets of three": (entry(data_offsets=[0, 1, 2]), (WEIGHTS, Q_PROJ, "entry", "download")),
    "offsets of another size": (entry(data_offsets=[0, 6]), (WEIGHTS, Q_PROJ, "6 bytes", "4096")),
    "offsets outside": (entry(data_offsets=[10**9, 10**9 + 4096]), (WEIGHTS, Q_PROJ, "ends at byte 1000")),
    "type unknown": (entry(dtype="F8_E4M3"), (WEIGHTS, Q_PROJ, "'F8_E4M3'", "save it as F32, F16, BF16")),
    "tensor missing": (
        lambda f: rewrite(f, lambda old: {name: old[name] for name in old if name != Q_PROJ}),
        (WEIGHTS, Q_PROJ, "missing", "config.json"),
    ),
    "head missing": (
        lambda f: rewrite(f, lambda old: {name: old[name] for name in old if name != "lm_head.weight"}),
        (WEIGHTS, "lm_head.weight is missing"),
    ),
    "shape wrong": (
        lambda f: rewrite(f, lambda old: old | {Q_PROJ: torch.zeros(32, 16)}),
        (WEIGHTS, Q_PROJ, "[32, 16]", "asks for [32, 32]", "same checkpoint"),
    ),
    "another model's configuration": (
        lambda f: change_json(f / "config.json", vocab_size=98),
        (WEIGHTS, "model.embed_tokens.weight", "[97, 32]", "[98, 32]"),
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ("copy: neither", WEIGHTS, INDEX, "download")),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        ("copy: neither", "save_pretrained"),
    ),
    "no configuration": (lambda f: (f / "config.json").unlink(), ("config.json: cannot be read",)),
    "positions unknown": (
        lambda f: change_json(f / "config.json", rope_scaling={"type": "longrope", "factor": 2}),
        ("model.rope_scaling.rope_type: 'longrope'", "supported: default, linear"),
    ),
    "positions incomplete": (
        lambda f: change_json(f / "config.json", rope_parameters={"rope_type": "llama3", "factor": 2}),
        ("model.rope_parameters.low_freq_factor", "missing"),
    ),
    "positions upside down": (
        lambda f: change_json(
            f / "config.json",
            rope_scaling={"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1},
        ),
        ("model.rope_scaling.high_freq_factor: 1 must be above low_freq_factor 4",),
    ),
    "positions by layer": (
        lambda f: change_json(f / "config.json", rope_parameters={"full_attention": {"rope_theta": 5e5}}),
        ("model.rope_parameters: positions that differ",),
    ),
    "positions in part": (
        lambda f: change_json(f / "config.json", partial_rotary_factor=0.5),
        ("model.partial_rotary_factor",),
    ),
    "activation unknown": (
        lambda f: change_json(f / "config.json", hidden_act="quick_gelu"),
        ("model.", "hidden_act", "quick_gelu"),
    ),
    "generation not JSON": (
        lambda f: (f / "generation_config.json").write_text("{"),
        ("generation_config.json: not valid JSON",),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_in_one_line(name: str, single: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a checkpoint, one line says where it is and what to do."""
    folder = copy(single, tmp_path)
    damage, words = FAULTS[name]
    damage(folder)
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def weight_map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """Damage an index."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / INDEX).read_text())["weight_map"]
        change_json(folder / INDEX, weight_map=change(found))

    return damage


INDEX_FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "file missing": (
        lambda f: next(f.glob("*-00003-*")).unlink(),
        ("model-00003-of", "missing though", INDEX, "download"),
    ),
    "file cut short": (
        lambda f: next(f.glob("*-00003-*")).write_bytes(b"123"),
        ("model-00003-of", "3 bytes cannot hold"),
    ),
    "not a table": (weight_map(list), (INDEX, "weight_map: expected")),
    "empty": (weight_map(lambda _: {}), (INDEX, "tensor", "is missing")),
    "tensor not listed": (
        weight_map(lambda found: {name: found[name] for name in found if name != Q_PROJ}),
        (INDEX, Q_PROJ, "is missing"),
    ),
    "tensor elsewhere": (
        weight_map(lambda found: found | {Q_PROJ: found["lm_head.weight"]}),
        (Q_PROJ, "is missing though", INDEX),
    ),
    "out of the folder": (
        weight_map(lambda found: found | {Q_PROJ: "../model.safetensors"}),
        (INDEX, Q_PROJ, "'../model.safetensors' is not the name of a file"),
    ),
}


@pytest.mark.parametrize("name", INDEX_FAULTS)
def test_faults_of_sharded_checkpoints(name: str, sharded: Path, tmp_path: Path) -> None:
    """An index that does not fit its files is told in one line."""
    folder = copy(sharded, tmp_path)
    damage, words = INDEX_FAULTS[name]
    damage(folder)
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def opened(folder: Path) -> tuple[str, list[TensorPlace]]:
    """Open a checkpoint: what is wrong with it, or its places."""
    try:
        return "", list(Checkpoint.open(folder).tensors.values())
    except InputError as error:
        return str(error), []


@settings(max_examples=60)
@given(st.data())
def test_any_damage_to_a_header_is_noticed_or_harmless(
    single: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With bytes of the header changed, every place lies inside the file, or one line says what is wrong."""
    folder = copy(single, tmp_path_factory.mktemp("damaged"))
    content = bytearray((folder / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (folder / WEIGHTS).write_bytes(content)
    message, places = opened(folder)
    assert "\n" not in message
    assert WEIGHTS in message or places
    assert all(place.offset + place.nbytes <= len(content) for place in places)
    shutil.rmtree(folder)


def test_reading_into_given_memory(single: Path, tmp_path: Path) -> None:
    """A tensor is read into memory that fits it, and a file that has shrunk since it was opened is told."""
    folder = copy(single, tmp_path)
    place = Checkpoint.open(folder).tensors[Q_PROJ]
    room = torch.empty(3, 32, 32)
    assert read(place, room[1]).data_ptr() == room[1].data_ptr()
    assert torch.equal(room[1], read(place))
    for other in (torch.empty(16, 32), torch.empty(32, 32, dtype=torch.float16), torch.empty(32, 32).T):
        with pytest.raises(ValueError, match=r"is read into contiguous|is torch.float32 \(32, 32\)"):
            read(place, other)
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate(place.offset + 100)
    with pytest.raises(InputError, match=f"tensor {Q_PROJ}: the file ends {place.nbytes - 100} bytes early"):
        read(place)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="no such file"):
        read(place)
