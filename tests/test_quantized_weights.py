"""Quantised weights on the disk: what is in them, when they are made again, and faults told in one line."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import fcntl
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

REASON = "torch, transformers and safetensors are needed to make checkpoints"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)
safetensors = pytest.importorskip("safetensors.torch", reason=REASON)

from safetensors import SafetensorError, safe_open

from executor import quantized_weights
from executor.checkpoint import Checkpoint
from executor.quantize import quantize
from executor.quantized_weights import prepare
from executor.stored import Stored, plain
from executor.tensor_file import read
from simulator.errors import InputError
from tests.checkpoints import VARIANTS, build, change_json, one_thread, save

UP_PROJ = "mlp.up_proj.weight"
SHARD = "20KB"  # so small that blocks lie in several files
FORMS = [(4, 64, torch.float16), (8, 32, torch.bfloat16), (4, 6, torch.float32), (4, 2, torch.bfloat16)]
Prepared = dict[int, dict[str, Stored]]


def three_blocks(seed: int = 0) -> Any:
    """Build a model."""
    return build(VARIANTS["llama"] | {"num_hidden_layers": 3}, seed).half()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Write a checkpoint of three blocks, in several files."""
    return save(three_blocks(), tmp_path / "small", max_shard_size=SHARD)


def refuses(checkpoint: Checkpoint, message: str, bits: int = 4, group: int = 16) -> None:
    """Ask for what cannot be prepared."""
    with pytest.raises(InputError, match=message) as caught:
        prepare(checkpoint, bits, group)
    assert "\n" not in str(caught.value)


def raw(stored: Stored) -> Any:
    """Read the bytes of a tensor as the file has them, uint8."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.offset)
        return torch.frombuffer(bytearray(stream.read(stored.nbytes)), dtype=torch.uint8)


def flat(tensor: Any) -> Any:
    """Look at the bytes of a tensor."""
    return tensor.flatten().view(torch.uint8)


def check(checkpoint: Checkpoint, prepared: Prepared, bits: int, group: int) -> None:
    """Compare all blocks with what quantising their tensors gives."""
    assert list(prepared) == list(range(checkpoint.model.num_layers))
    for index, block in prepared.items():
        places = checkpoint.block(index)
        assert list(block) == list(places)
        for name, stored in block.items():
            tensor = read(places[name])
            assert (stored.shape, stored.dtype) == (tuple(tensor.shape), tensor.dtype)
            assert stored.offset % 2 == 0
            quantized = quantize(tensor, bits, group) if tensor.dim() == 2 else None
            assert stored.form == (quantized and quantized.form)
            assert torch.equal(raw(stored), quantized.to_bytes() if quantized else flat(tensor))
            assert torch.equal(raw(plain(places[name])), flat(tensor))


def times(folder: Path) -> dict[str, tuple[int, int]]:
    """Tell for each file below a folder which one it is, and when it was written."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {path.name: (status.st_ino, status.st_mtime_ns) for path, status in found.items()}


def made_again(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Prepare, check what is there then, and give the calls of ``on_block``."""
    calls: list[tuple[int, int]] = []
    prepared = prepare(checkpoint, 4, 16, lambda done, count: calls.append((done, count)))
    check(checkpoint, prepared, 4, 16)
    return calls


@pytest.mark.parametrize(("name", "form"), [*zip(VARIANTS, cycle(FORMS), strict=False)])
def test_every_block_is_its_tensors_quantised(name: str, form: tuple[int, int, Any], tmp_path: Path) -> None:
    """Whatever the model, type and grouping, matrices are as `quantize` makes them, the rest as it was."""
    bits, group, dtype = form
    checkpoint = save(build(VARIANTS[name]).to(dtype), tmp_path, max_shard_size=SHARD)
    check(checkpoint, prepare(checkpoint, bits, group), bits, group)


@pytest.mark.parametrize("group", [64, 6])
def test_a_block_is_one_run_of_a_file(group: int, checkpoint: Checkpoint) -> None:
    """The tensors of a block fill a safetensors file from the end of its header on, but for single bytes."""
    for place in checkpoint.tensors.values():
        place.file.chmod(0o640)
    for index, block in prepare(checkpoint, 4, group).items():
        (file,) = {stored.file for stored in block.values()}
        assert file == checkpoint.path / "quantized" / f"w4-g{group}" / f"block-{index:05}.safetensors"
        assert stat.S_IMODE(file.stat().st_mode) == 0o640  # who may read the weights may read these
        header = int.from_bytes(file.read_bytes()[:8], "little")
        spans = sorted((stored.offset, stored.offset + stored.nbytes) for stored in block.values())
        spans = [(0, 8 + header), *spans, (file.stat().st_size, 0)]
        assert all(0 <= after[0] - before[1] <= 1 for before, after in pairwise(spans))
        for name, tensor in safetensors.load_file(file).items():
            assert (tensor.dtype == torch.uint8) == (block[name].form is not None)
            assert torch.equal(flat(tensor)[: block[name].nbytes], raw(block[name]))


def test_a_second_call_reads_headers_only(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is found as it was made; no tensor is read, nothing is written."""
    first = prepare(checkpoint, 4, 64)
    before = times(checkpoint.path / "quantized")
    monkeypatch.delattr(quantized_weights, "read")
    monkeypatch.delattr(quantized_weights, "save_file")
    assert prepare(Checkpoint.open(checkpoint.path), 4, 64, pytest.fail) == first
    assert times(checkpoint.path / "quantized") == before


def test_an_interrupted_preparation_goes_on(checkpoint: Checkpoint) -> None:
    """Blocks that are complete stay; the first missing one comes next."""
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(checkpoint, 4, 16, Mock(side_effect=KeyboardInterrupt))
    home = checkpoint.path / "quantized" / "w4-g16"
    before = times(home)
    assert list(before) == ["block-00000.safetensors", "block-00001.safetensors"]
    (home / "block-00002.part").write_bytes(b"x" * 10**6)  # as a killed process leaves it
    assert made_again(checkpoint) == [(3, 3)]
    assert len(times(home)) == 3
    assert times(home).items() >= before.items()


CHANGES: dict[str, Callable[[Path], Any]] = {
    "time of a file": lambda path: os.utime(path / "model-00002-of-00004.safetensors"),
    "weights": lambda path: save(three_blocks(seed=1), path, max_shard_size=SHARD),
    "places": lambda path: save(three_blocks(), path),  # all in one file
    "config": lambda path: change_json(path / "config.json", rms_norm_eps=0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_checkpoint_is_noticed(name: str, checkpoint: Checkpoint) -> None:
    """Blocks whose files changed are made again, and what is given then is that of the new tensors."""
    prepare(checkpoint, 4, 16)
    CHANGES[name](checkpoint.path)
    assert made_again(Checkpoint.open(checkpoint.path))
    assert made_again(Checkpoint.open(checkpoint.path)) == []


def test_a_checkpoint_that_changed_once_it_was_opened_does_no_lasting_harm(checkpoint: Checkpoint) -> None:
    """What is made with old offsets from new files is not taken for the new files' weights."""
    new = checkpoint.block(0)[UP_PROJ].file
    tensors = {name: -tensor for name, tensor in safetensors.load_file(new).items()}
    safetensors.save_file(tensors, new, metadata={"a longer header": "x" * 64})
    prepare(checkpoint, 4, 16)  # of what lies where the tensors were
    assert made_again(Checkpoint.open(checkpoint.path))


def rewritten(change: Callable[[dict[str, Any], dict[str, str]], Any]) -> Callable[[Path], None]:
    """Change the tensors or the metadata of a file."""

    def damage(file: Path) -> None:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = safetensors.load_file(file)
        change(tensors, metadata)
        safetensors.save_file(tensors, file, metadata=metadata)

    return damage


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: os.truncate(file, 0),
    "header cut": lambda file: os.truncate(file, 100),
    "last byte missing": lambda file: os.truncate(file, file.stat().st_size - 1),
    "a byte too much": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "no header": lambda file: file.write_bytes(file.read_bytes()[:8] + b"x" * (file.stat().st_size - 8)),
    "gone": Path.unlink,
    "another program's": rewritten(lambda tensors, metadata: metadata.clear()),
    "an older version's": rewritten(
        lambda tensors, metadata: metadata.update(made_from=metadata["made_from"].replace('"1"', '"0"'))
    ),
    "a tensor is shorter": rewritten(
        lambda tensors, metadata: tensors.update({UP_PROJ: tensors[UP_PROJ][:-2].clone()})
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_made_again(name: str, checkpoint: Checkpoint) -> None:
    """Files that are cut short, damaged, other ones or gone are noticed by header and size."""
    file = prepare(checkpoint, 4, 16)[1][UP_PROJ].file
    good = file.read_bytes()
    DAMAGES[name](file)
    assert made_again(checkpoint) == [(3, 3)]
    assert file.read_bytes() == good


def test_another_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The files may be elsewhere, also where nothing can be written beside the checkpoint."""
    (checkpoint.path / "quantized").write_text("a file where the folder should be")
    refuses(checkpoint, r"quantized/w4-g16: cannot be written \(.+\): .* choose another folder")
    check(checkpoint, prepare(checkpoint, 4, 16, folder=tmp_path / "else" / "where"), 4, 16)
    assert len(times(tmp_path / "else" / "where" / "w4-g16")) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(checkpoint: Checkpoint) -> None:
    """One line names the folder and what to do; what is there already is used all the same."""
    home = checkpoint.path / "quantized"
    home.mkdir(mode=0o555)
    refuses(checkpoint, "permission denied.*change the permissions or choose another folder")
    home.chmod(0o755)
    prepare(checkpoint, 4, 16)
    (home / "w4-g16").chmod(0o555)
    assert made_again(checkpoint) == []


def test_a_file_that_cannot_grow(checkpoint: Checkpoint) -> None:
    """An error while writing is told in one line, leaves nothing behind, and loses nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        refuses(checkpoint, r"block-00000.safetensors: cannot be written \(file too large\): .* ulimit -f or")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert times(checkpoint.path / "quantized") == {}
    assert len(made_again(checkpoint)) == 3


def test_a_full_disk(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do, and how many bytes are needed in all."""
    prepared = prepare(checkpoint, 4, 16)
    needed = sum(stored.nbytes for block in prepared.values() for stored in block.values())
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(quantized_weights, "save_file", Mock(side_effect=error))
    next(iter(prepared[1].values())).file.unlink()
    refuses(checkpoint, rf"block-00001.*no space left.*take {needed} B; free space there or choose another")


def test_wrong_questions(checkpoint: Checkpoint) -> None:
    """Other bits and groups name what is wrong, before anything is written."""
    refuses(checkpoint, "bits: 16", bits=16)
    refuses(checkpoint, "group: 7", group=7)
    assert not (checkpoint.path / "quantized").exists()


def test_a_tensor_that_cannot_be_quantised(tmp_path: Path) -> None:
    """The message names file and tensor."""
    model = build(VARIANTS["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    where = r"model\.safetensors: tensor model\.layers\.1\.mlp\.down_proj\.weight: .*NaN"
    refuses(save(model, tmp_path), where)


def test_a_checkpoint_that_is_gone(checkpoint: Checkpoint) -> None:
    """A file that has been removed since the checkpoint was opened is named."""
    for name in ("model-00001-of-00004.safetensors", "config.json"):
        (checkpoint.path / name).unlink()
        refuses(checkpoint, rf"{name}: cannot be read \(no such file.*download or save it again")


def test_others_wait(checkpoint: Checkpoint) -> None:
    """Where another process prepares the same weights, nothing is done twice."""
    home = checkpoint.path / "quantized" / "w4-g16"
    home.mkdir(parents=True)
    descriptor = os.open(home, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    other = threading.Thread(target=prepare, args=(checkpoint, 4, 16), daemon=True)
    other.start()
    other.join(0.3)
    assert other.is_alive()
    os.close(descriptor)
    other.join(30)
    assert made_again(checkpoint) == []
