"""Checkpoints with random weights: whoever reads checkpoints reads them, and interrupted runs go on."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

REASON = "torch, transformers and safetensors are needed to make checkpoints"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("safetensors.torch", reason=REASON)

from benchmarks.make_checkpoint import INDEX, config, make, shards, tensors
from executor.checkpoint import Checkpoint
from executor.reference import generate
from executor.sampling import Request
from executor.tensor_file import read
from simulator.errors import InputError
from simulator.model_config import load_model, parse_config
from tests.checkpoints import greedy, one_thread

TINY = "llama-tiny"
SMALL = 50_000  # bytes of a file


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformers_and_the_executor_load_the_same(dtype: str, tmp_path: Path) -> None:
    """Both find every tensor, of the type asked for, and generate the same tokens, which no token ends."""
    files = list(make(tmp_path, TINY, dtype=dtype, limit=SMALL))
    assert len(files) > 2
    checkpoint = Checkpoint.open(tmp_path)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    for name, tensor in model.named_parameters():
        stored = read(checkpoint.tensors[name])
        assert stored.dtype == getattr(torch, dtype)
        assert torch.equal(stored.float(), tensor)
    prompt = tuple(range(5, 17))
    with one_thread():
        (found,) = generate(checkpoint, [Request(prompt, 20)])
        assert found.tokens == greedy(model.eval(), prompt, 20)
    assert len(found.tokens) == 20


def test_hidden_states_stay_finite(tmp_path: Path) -> None:
    """Through many layers in bfloat16 logits remain moderate and differ from token to token."""
    list(make(tmp_path, TINY, layers=40))
    with one_thread():
        (found,) = generate(Checkpoint.open(tmp_path), [Request((1, 2, 3), 4)], torch.bfloat16, logits=True)
    assert found.logits is not None
    assert 0.1 < found.logits.std() < 10
    assert found.logits.abs().max() < 30


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """What is there is kept, what is missing is written, and the result is that of one run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(make(whole, TINY, limit=SMALL))
    first = next(make(parts, TINY, limit=SMALL))
    (parts / first.name.replace("00001", "00002", 1)).with_suffix(".part").write_bytes(
        b"what an interrupted write leaves"
    )
    assert not (parts / INDEX).exists()
    written = first.stat().st_mtime_ns
    list(make(parts, TINY, limit=SMALL))
    assert first.stat().st_mtime_ns == written
    assert contents(parts) == contents(whole)


def test_a_tensor_depends_on_seed_and_name_only(tmp_path: Path) -> None:
    """Sizes of files do not change the weights, seeds do."""
    folders = [tmp_path / name for name in ("many", "one", "other")]
    for folder, seed, limit in zip(folders, (0, 0, 1), (SMALL, 1e9, 1e9), strict=True):
        list(make(folder, TINY, seed=seed, limit=limit))
    many, one, other = (read(Checkpoint.open(folder).tensors["lm_head.weight"]) for folder in folders)
    assert torch.equal(many, one)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("changes", [{"layers": 3}, {"seed": 1}, {"limit": 1e9, "dtype": "float32"}])
def test_another_checkpoint_is_not_mixed_with_this_one(changes: Any, tmp_path: Path) -> None:
    """A folder with something else is refused, and left as it is."""
    list(make(tmp_path, TINY))
    before = contents(tmp_path)
    with pytest.raises(InputError, match="choose another folder"):
        list(make(tmp_path, TINY, **changes))
    assert contents(tmp_path) == before


def test_the_shape_of_7b_is_the_published_one() -> None:
    """The large shape is that of the model which the simulator knows, in files of at most 2 GB."""
    mine = parse_config(config("llama-7b", None, "float16"), "llama-2-7b")
    known = load_model("llama-2-7b")
    assert mine == known.model_copy(update={"name": mine.name})
    files = shards(tensors(mine), "bfloat16")
    sizes = [sum(2 * torch.Size(shape).numel() for shape in shard.tensors.values()) for shard in files]
    assert max(sizes) <= 2e9
    assert sum(sizes) == 2 * mine.num_parameters
