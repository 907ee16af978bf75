"""Studies on clusters of dask and ray: the same table as here, also when a worker is killed meanwhile.

Clusters are processes of this machine, one cluster at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.study_cases import run

ROOT = Path(__file__).resolve().parent.parent
psutil: Any = pytest.importorskip("psutil", reason="psutil, which dask brings along, finds workers")

STUDY = """
name: clusters
grids:
- machine: [rtx-4090, t4-16]
  model: [opt-1.3b, opt-6.7b]
  workload: {prompt_len: 16, gen_len: 4, num_prompts: 8}
  sweep: {tiers.cpu.capacity: [x0.5, x1, x2]}
"""
#: What worker processes have in their command lines.
WORKERS = {"dask": "spawn_main", "ray": "PoolActor"}
#: A worker that has used so much more of a processor is at work. [s]
AT_WORK = 0.5


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start no two clusters at once, in whichever processes tests run."""
    with (tmp_path_factory.getbasetemp().parent / "clusters.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment() -> dict[str, str]:
    """Let workers find this code, and give ray's processes a password of their own."""
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, "PYTHONPATH": str(ROOT)} | secret


@contextlib.contextmanager
def cluster(name: str, variables: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Run a cluster of three workers; give its address, and the process that all of it is below."""
    script = [sys.executable, str(ROOT / "tests" / "cluster_head.py"), name, "3"]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    with subprocess.Popen(script, env=variables, text=True, **pipes) as head:
        assert head.stdout is not None
        assert head.stdin is not None
        address = head.stdout.readline().strip()
        assert address, "the cluster did not start"
        try:
            yield address, head.pid
        finally:
            head.stdin.close()
            head.wait(60)


def kill_one_at_work(name: str, head: int, study: subprocess.Popen[bytes]) -> None:
    """Kill one worker as soon as it is at work, while the study runs."""
    before: dict[int, float] = {}
    while study.poll() is None:
        for process in psutil.Process(head).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if WORKERS[name] in " ".join(process.cmdline()):
                    used = sum(process.cpu_times()[:2])
                    if used - before.setdefault(process.pid, used) > AT_WORK:
                        process.kill()
                        return
        time.sleep(0.02)
    pytest.fail("the study was over before a worker could be killed")


def study(path: Path, out: Path, *options: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the command."""
    script = [sys.executable, "-m", "planner.cli", "study", str(path), "--out", str(out), *options]
    return subprocess.Popen(script, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def errors_of(process: subprocess.Popen[bytes], code: int = 0) -> str:
    """Wait for the command, and give what it wrote to standard error."""
    try:
        _, errors = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, errors.decode()
    return errors.decode()


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_killed_worker_changes_nothing(name: str, tmp_path: Path) -> None:
    """While a cluster plans, one of its workers is killed: the table is that of one process here.

    So no cell is lost, and none is there twice. Where no cluster answers, the user is told so in one line.
    """
    if importlib.util.find_spec("distributed" if name == "dask" else name) is None:
        pytest.skip(f"{name} is not installed")
    path, variables = tmp_path / "study.yaml", environment()
    path.write_text(STUDY)
    with cluster(name, variables) as (address, head):
        options = ("--backend", name, "--address", address)
        with study(path, tmp_path / name, *options, variables=variables) as process:
            kill_one_at_work(name, head, process)
            errors_of(process)
    local = run("study", str(path), "--out", str(tmp_path / "here"), "--jobs", "1")
    assert local.exit_code == 0, local.output
    tables = [(tmp_path / folder / "cells.csv").read_text() for folder in (name, "here")]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 1 + 12
    nowhere = ("--backend", name, "--address", address)
    with study(path, tmp_path / "nowhere", *nowhere, variables=variables) as process:
        *_, last = errors_of(process, code=2).splitlines()
    assert last.startswith(f"error: --backend {name}: no cluster answers at {address} (")
    assert last.endswith("check --address")


def test_a_cluster_is_started_where_none_is_named(tmp_path: Path) -> None:
    """Without an address dask runs on this machine, with as many processes as asked for."""
    pytest.importorskip("distributed", reason="dask is not installed")
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("[x0.5, x1, x2]", "x1"))
    with study(
        path, tmp_path / "out", "--backend", "dask", "--jobs", "1", variables=environment()
    ) as process:
        errors = errors_of(process)
    assert "Traceback" not in errors
    assert len((tmp_path / "out" / "cells.csv").read_text().splitlines()) == 1 + 4
