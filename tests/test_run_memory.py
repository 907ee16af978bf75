"""``planner run`` where there is only as much memory as the plan takes: the kernel enforces it."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REASON = "torch and safetensors are needed to run models"
pytest.importorskip("torch", reason=REASON)
pytest.importorskip("safetensors", reason=REASON)

from click.testing import CliRunner

from benchmarks.make_checkpoint import SHAPES, make
from benchmarks.memory_limit import CannotLimitError, Limited, forget, run_limited
from executor.probe_models import LlamaShape
from planner.cli import cli
from planner.plan import Plan, read_plan

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
ENOUGH = 8 << 30  # bytes
SLACK = 48 * MIB  # two buffers of 16 MiB through which homes are filled, and what libraries set aside
SHAPES_HERE = {
    "large": LlamaShape(1024, 1792, 20, 8, 4, 512, 256),  # 325 MiB in bfloat16
    "small": LlamaShape(64, 128, 2, 4, 2, 512, 256),
}
LENGTHS = ("--prompt-len", "8", "--gen-len", "4", "--num-prompts", "4")
FIXED = ("gpu_batch=2", "num_groups=2", "weights=2/5/93", "cache=0/50/50", "activations=50/50/0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with two checkpoints, which do not stay on the disk as other tests' files do."""
    for name, shape in SHAPES_HERE.items():
        monkeypatch.setitem(SHAPES, name, shape)
        list(make(tmp_path / name, name))
    yield tmp_path
    shutil.rmtree(tmp_path)


def plan_for(folder: Path, name: str) -> Plan:
    """Plan for a checkpoint, most of whose weights stay on the disk."""
    fixed = [word for each in FIXED for word in ("--fix", each)]
    out = folder / f"{name}.json"
    words = ["plan", "--hw", "cpu-only", "--model", str(folder / name), *LENGTHS, *fixed, "--out", str(out)]
    made = CliRunner().invoke(cli, words)
    assert made.exit_code == 0, made.output
    return read_plan(out)


def run(folder: Path, name: str, limit: int) -> Limited:
    """Run a plan with a limit [B], from files that are not in memory."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"tokens": [n + 1, 7, 5]}) + "\n" for n in range(4)))
    files = ("--checkpoint", folder / name, "--prompts", prompts, "--out", folder / f"{name}.jsonl")
    words = ["run", folder / f"{name}.json", *files, "--device", "cpu", "--format", "json"]
    command = [sys.executable, "-m", "planner.cli", *map(str, words)]
    forget([folder / name])
    return run_limited(command, limit, os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)


def test_a_run_keeps_to_the_memory_of_its_plan(folder: Path) -> None:
    """Beside what the same program takes for next to nothing, the plan's memory and a little are enough.

    Page cache counts too. The model would not fit: nearly all of it is read again in every pass.
    """
    plan = plan_for(folder, "large")
    plan_for(folder, "small")
    try:
        baseline = run(folder, "small", ENOUGH)
    except CannotLimitError as error:
        pytest.skip(str(error))
    assert baseline.returncode == 0, baseline.stderr
    planned = sum(plan.memory[tier].peak for tier in ("gpu", "cpu"))
    limit = int(baseline.peak_bytes + planned + SLACK)
    weights = sum(file.stat().st_size for file in (folder / "large").glob("*.safetensors"))
    assert weights > 2 * (planned + SLACK)
    found = run(folder, "large", limit)
    assert not found.out_of_memory
    assert (found.returncode, found.stderr) == (0, "")
    assert baseline.peak_bytes < found.peak_bytes < limit
    told = json.loads(found.stdout)
    assert (told["answers"], told["tokens"]) == (4, 16)
