"""Running studies: nothing is computed twice or lost, whatever stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from planner.costs import Economics
from planner.study_answer import Answer, Found, families
from planner.study_cells import Cell, cell_key, program_hash
from planner.study_rows import study_table
from planner.study_run import Backend, Store, run_cells
from planner.table import Table
from simulator.errors import InputError, PlannerError
from tests.study_cases import cell, complaint, planned, run

#: Processes of this machine, as the command starts them.
ONE, TWO = Backend(jobs=1), Backend(jobs=2)
pytestmark = pytest.mark.filterwarnings(
    # joblib says so of workers that were killed, which is what some of these tests do.
    "ignore:A worker stopped while some jobs were given to the executor:UserWarning",
    "ignore:resource_tracker:UserWarning",
)


def fake(cells: Mapping[str, Cell]) -> Found:
    """Answer without planning; the reason says for which cell."""
    found = ((key, Answer(status="infeasible", reason=key).to_json(), True) for key in cells)
    return Found(program_hash(), tuple(found))


def numbered(count: int) -> list[Cell]:
    """Make cells of families of their own."""
    return [cell(fixed=(f"gpu_batch={number + 1}",)) for number in range(count)]


def computing(how: Callable[[Mapping[str, Cell]], Found]) -> Any:
    """Have one process compute in this way."""
    return mock.patch("planner.study_run.answer_family", how)


def kept(folder: Path) -> dict[str, int]:
    """List the answers in a folder, with when each was written. [ns]"""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("answers/*.json")}


def table(cells: list[Cell], store: Store, passing: Mapping[str, Answer]) -> Table:
    """Write the table of what was answered."""
    return study_table(cells, store.answers(cells, passing), Economics())


# Nothing twice.


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    """What was answered before an interruption stays as it is, and only the others are computed."""
    cells, store, computed = numbered(5), Store(tmp_path), []

    def count(job: Mapping[str, Cell]) -> Found:
        computed.extend(job)
        return fake(job)

    def interrupt(done: int, total: int) -> None:
        assert total == 5
        if done == 3:
            raise KeyboardInterrupt

    with computing(count):
        with pytest.raises(KeyboardInterrupt):
            run_cells(cells, store, ONE, interrupt)
        before = kept(tmp_path)
        assert len(before) == 3
        seen: list[tuple[int, int]] = []
        assert run_cells(cells, store, ONE, lambda *state: seen.append(state)) == {}
    after = kept(tmp_path)
    assert set(after) == {cell_key(one) for one in cells}
    assert {key: after[key] for key in before} == before
    assert sorted(computed) == sorted(after)
    assert seen == [(3, 5), (4, 5), (5, 5)]
    assert not list(tmp_path.glob("answers/*.part"))


def test_a_known_study_computes_nothing(tmp_path: Path) -> None:
    """When all is known nothing is computed; when the study grows, only what is new."""
    with computing(fake):
        run_cells(numbered(2), Store(tmp_path), ONE)
    with computing(mock.Mock(side_effect=AssertionError("computed"))):
        run_cells(numbered(2), Store(tmp_path), ONE)
    jobs = mock.Mock(side_effect=fake)
    with computing(jobs):
        run_cells(numbered(3), Store(tmp_path), ONE)
    assert [list(call.args[0]) for call in jobs.call_args_list] == [[cell_key(numbered(3)[2])]]


@pytest.mark.parametrize("content", [b"", b"{", b'{"status": "odd"}', b"\xff", b"[]"])
def test_a_broken_answer_is_computed_again(content: bytes, tmp_path: Path) -> None:
    """An answer that is cut short or no answer counts as none."""
    cells, store = numbered(3), Store(tmp_path)
    with computing(fake):
        run_cells(cells, store, ONE)
        before = kept(tmp_path)
        broken = store.path(cell_key(cells[1]))
        broken.write_bytes(content)
        run_cells(cells, store, ONE)
    after = kept(tmp_path)
    assert store.read(broken.stem).reason == broken.stem
    assert {key for key in after if after[key] != before[key]} == {broken.stem}


def test_equal_cells_are_answered_once(tmp_path: Path) -> None:
    """Cells of one content under several names are one question, and a row each."""
    one, store = cell(), Store(tmp_path)
    cells = [one, one.model_copy(update={"machine": "twin"}), one]
    jobs = mock.Mock(side_effect=fake)
    with computing(jobs):
        passing = run_cells(cells, store, ONE)
    assert jobs.call_count == 1
    assert [row["machine"] for row in table(cells, store, passing).rows] == ["rtx-4090", "twin", "rtx-4090"]


def test_limits_are_one_family() -> None:
    """Cells that differ in their limit only are computed together, others apart."""
    cells = [*numbered(2), *(one.model_copy(update={"max_latency": 5.0}) for one in numbered(2))]
    found = families({cell_key(one): one for one in cells})
    assert [list(each) for each in found] == [
        [cell_key(cells[0]), cell_key(cells[2])],
        [cell_key(cells[1]), cell_key(cells[3])],
    ]


def test_families_about_the_same_work_follow_each_other() -> None:
    """However cells are ordered: models come one after the other, and none is lost."""
    cells = [cell(machine, model) for machine in ("rtx-4090", "t4-16") for model in ("opt-1.3b", "opt-125m")]
    found = [one for each in families({cell_key(one): one for one in cells}) for one in each.values()]
    assert [one.model.name for one in found] == ["opt-1.3b", "opt-1.3b", "opt-125m", "opt-125m"]
    assert [one.hardware.name for one in found] == ["rtx-4090", "t4-16"] * 2


def test_a_fault_is_tried_again(tmp_path: Path) -> None:
    """An answer that failed for a fault has its row and no file; the next run computes it again."""
    cells, store = [cell()], Store(tmp_path)
    with mock.patch("planner.study_answer.make_plan", side_effect=ZeroDivisionError("x")):
        passing = run_cells(cells, store, ONE)
        (row,) = table(cells, store, passing).rows
    assert (row["status"], row["reason"]) == ("failed", "internal error: ZeroDivisionError('x')")
    assert kept(tmp_path) == {}
    assert run_cells(cells, store, ONE) == {}
    (row,) = table(cells, store, {}).rows
    assert row["status"] == "planned"
    assert store.read(cell_key(cells[0])) == planned()


def test_another_version_is_refused(tmp_path: Path) -> None:
    """Answers of workers that run another version of the program are not taken."""
    with (
        computing(lambda job: Found("another", fake(job).answers)),
        pytest.raises(PlannerError, match="another version"),
    ):
        run_cells(numbered(1), Store(tmp_path), ONE)
    assert kept(tmp_path) == {}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Where answers cannot be kept the study ends in one line, at once."""
    (tmp_path / "answers").write_text("a file")
    jobs = mock.Mock(side_effect=fake)
    with computing(jobs), pytest.raises(InputError, match="cannot be written"):
        run_cells(numbered(3), Store(tmp_path), ONE)
    assert jobs.call_count == 1


# Any number of processes.


def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    """One process and two write the same table, byte by byte, a row for each cell in order."""
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: small\ngrids:\n- {machine: [rtx-4090, t4-16], model: [opt-125m, opt-1.3b],"
        " workload: {prompt_len: 16, gen_len: 4, num_prompts: 8}, max_latency: [none, 1 us]}\n"
    )
    texts = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        shown = run("study", str(study), "--out", str(folder), "--jobs", jobs)
        assert shown.exit_code == 0, shown.output
        texts.append([(folder / name).read_bytes() for name in ("cells.csv", "findings.json")])
    assert texts[0] == texts[1]
    rows = texts[0][0].decode().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(number) for number in range(8)]


# Workers that die.


class Dying:
    """Answers cells after the process that does so was killed, as often as there are flags in a folder."""

    def __init__(self, flags: Path, inner: Callable[[Mapping[str, Cell]], Found]) -> None:
        self.flags, self.inner = flags, inner

    def __call__(self, job: Mapping[str, Cell]) -> Found:
        """Take a flag and die, or answer."""
        for flag in self.flags.glob("die*"):
            try:
                flag.unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return self.inner(job)


def test_a_killed_worker_loses_no_cell(tmp_path: Path) -> None:
    """Twice a worker is killed: all cells are answered, each row is there once, as without."""
    cells, store = numbered(6), Store(tmp_path / "store")
    for number in range(2):
        (tmp_path / f"die{number}").touch()
    seen: list[int] = []
    with computing(Dying(tmp_path, Sleeper())):
        passing = run_cells(cells, store, TWO, lambda done, _: seen.append(done))
    assert passing == {}
    assert not list(tmp_path.glob("die*"))
    assert set(kept(store.folder)) == {cell_key(one) for one in cells}
    rows = table(cells, store, passing).rows
    assert [row["reason"] for row in rows] == [cell_key(one) for one in cells]
    assert seen == sorted(seen)
    assert seen[-1] == 6


class Sleeper:
    """Answers without planning, in a way that workers can import."""

    def __call__(self, job: Mapping[str, Cell]) -> Found:
        """Answer."""
        found = ((key, Answer(status="infeasible", reason=key).to_json(), True) for key in job)
        return Found(program_hash(), tuple(found))


def test_workers_that_always_die(tmp_path: Path) -> None:
    """Workers that die again and again end the study in one line; what was answered before is kept."""
    cells, store = numbered(4), Store(tmp_path / "store")
    with computing(fake):
        run_cells(cells[:1], store, ONE)
    for number in range(64):
        (tmp_path / f"die{number}").touch()
    with computing(Dying(tmp_path, Sleeper())), pytest.raises(PlannerError, match="workers died") as caught:
        run_cells(cells, store, TWO)
    assert len(str(caught.value).splitlines()) == 1
    assert "3 cells are left" in str(caught.value)
    assert set(kept(store.folder)) == {cell_key(cells[0])}


# The command line.

STUDY = "name: s\ngrids:\n- {machine: rtx-4090, model: opt-1.3b, workload: alpaca}\n"


@pytest.mark.parametrize("command", ["study", "frontier", "size", "sensitivity"])
def test_an_address_needs_a_cluster(command: str, tmp_path: Path) -> None:
    """``--address`` without a backend that has one is refused, by every command, before any work."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    options = {
        "study": (str(path),),
        "size": ("--model", "opt-1.3b", "--tokens-per-day", "1M"),
    }.get(command, ("--hw", "rtx-4090", "--model", "opt-1.3b"))
    assert "--address" in complaint(run(command, *options, "--address", "tcp://127.0.0.1:1"))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("library", ["ray", "dask"])
def test_a_library_that_is_missing(library: str, tmp_path: Path) -> None:
    """Without its library a backend is refused in one line that says what to install."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    missing = dict.fromkeys(("ray", "ray.util.joblib", "dask", "dask.distributed"))
    with mock.patch.dict("sys.modules", missing):
        said = complaint(run("study", str(path), "--backend", library))
    assert f"pip install 'offload-planner[{library}]'" in said


def test_an_interruption_is_one_line(tmp_path: Path) -> None:
    """The user who stops a study sees one line, and what was answered is kept."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("opt-1.3b", "[opt-125m, opt-1.3b]"))
    answered: list[object] = []

    def once(job: Mapping[str, Cell]) -> Found:
        if answered:
            raise KeyboardInterrupt
        answered.append(job)
        return fake(job)

    with computing(once):
        result = run("study", str(path), "--jobs", "1")
    complaint(result, 130)
    assert len(kept(tmp_path / "study")) == 1
    json.loads(next((tmp_path / "study" / "answers").iterdir()).read_text())


def test_an_interrupt_ends_at_once(tmp_path: Path) -> None:
    """A study whose process alone is told to stop ends with one line, and keeps its answers."""
    sizes = ", ".join(f"{size} GiB" for size in range(100, 400, 5))
    grid = f"{{machine: t4-16, model: opt-30b, sweep: {{tiers.cpu.capacity: [{sizes}]}}}}"
    (tmp_path / "study.yaml").write_text(f"name: long\ngrids: [{grid}]\n", encoding="utf-8")
    command = [sys.executable, "-m", "planner.cli", "study", "study.yaml", "--jobs", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        answers = tmp_path / "study" / "answers"
        for _ in range(600):
            if answers.is_dir() and any(answers.glob("*.json")):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted"
    assert any(answers.glob("*.json"))
