"""What can go wrong while ``planner run`` runs: one line, no hang, whole answers; ``--resume`` goes on."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from click.testing import Result as Output

REASON = "torch, transformers and safetensors are needed to run models"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("safetensors", reason=REASON)

from safetensors.torch import load_file, save_file

from executor.aligned import PAGE
from executor.cache_steps import CacheSteps
from executor.checkpoint import Checkpoint
from executor.steps import Steps
from planner.cli import cli
from planner.plan import read_plan
from simulator.hardware import LANES
from tests.checkpoints import VARIANTS, build, one_thread, save

ROOT = Path(__file__).resolve().parent.parent
LONG = 60.0  # seconds after which something hangs
GEN_LEN, LAYERS = 4, 3
BLOCK = 4  # sequences; with twice as many prompts, some answers are written in the middle of the run
PROMPTS = [{"tokens": [5 + n, 9, 11 * n % 90][: 1 + n % 3], "id": f"p{n}"} for n in range(2 * BLOCK)]
SHARD = "model-00002-of-00003.safetensors"
TORCH_SAYS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nError code 12"

#: Every lane has work: weights, cache and activations lie on all tiers, and the CPU attends to some.
FIXED = {
    "gpu_batch": "2",
    "num_groups": "2",
    "weights": "20/20/60",
    "cache": "20/40/40",
    "activations": "0/50/50",
    "cpu_attention": "0.5",
}

Answers = dict[str, dict[str, Any]]


def within(call: Callable[[], Any], seconds: float = LONG) -> Any:
    """Give the result of a call, which must not take for ever."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    assert found, "it failed"
    return found[0]


def cli_run(*arguments: object) -> Output:
    """Run the command line in this process."""
    words = [str(each) for each in arguments]
    result: Output = within(lambda: CliRunner().invoke(cli, words))
    return result


@dataclass(frozen=True)
class Job:
    """A run of all prompts, and what it answers if nothing goes wrong."""

    plan: Path
    checkpoint: Path
    folder: Path
    expected: Answers

    @property
    def out(self) -> Path:
        """The file of answers."""
        return self.folder / "answers.jsonl"

    def words(self, *more: object) -> list[str]:
        """Give what is typed after ``planner``."""
        prompts = self.folder / "prompts.jsonl"
        if not prompts.exists():
            prompts.write_text("".join(f"{json.dumps(line)}\n" for line in PROMPTS))
        files = ("--checkpoint", self.checkpoint, "--prompts", prompts, "--out", self.out)
        return [str(each) for each in ("run", self.plan, *files, "--device", "cpu", *more)]

    def fault(self, *more: object, code: int = 2) -> str:
        """Run what fails: give the one line that says why."""
        result = cli_run(*self.words(*more))
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        self.is_over()
        return str(line.removeprefix("error: "))

    def is_over(self) -> None:
        """See that nothing goes on, nothing is left behind, and every answer is a whole line."""
        names = {thread.name for thread in threading.enumerate()}
        assert not names & set(LANES)
        assert not any(name.startswith("disk-") for name in names)
        assert not list(self.folder.glob("scratch-*"))
        self.answers()

    def answers(self) -> Answers:
        """Read the answers, each of which is that of an undisturbed run."""
        text = self.out.read_text() if self.out.exists() else ""
        assert not text or text.endswith("\n")
        lines = [json.loads(line) for line in text.splitlines()]
        found = {line["id"]: line for line in lines}
        assert len(found) == len(lines)
        assert not self.expected or all(self.expected[name] == line for name, line in found.items())
        return found

    def resume(self, *more: object) -> None:
        """Answer the rest: nothing twice, nothing changed, and all as if nothing had happened."""
        before = self.out.read_bytes() if self.out.exists() else b""
        result = cli_run(*self.words("--resume", "--format", "json", *more))
        assert result.exit_code == 0, result.output
        report, done = json.loads(result.stdout), before.count(b"\n")
        left = len(PROMPTS) - done
        assert (report["answered_before"], report["answers"], report["tokens"]) == (
            done,
            left,
            left * GEN_LEN,
        )
        assert self.out.read_bytes().startswith(before)
        assert self.answers() == self.expected
        self.is_over()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Make a checkpoint of several files and a plan for it, and run it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model, plan = folder / "model", folder / "plan.json"
    with one_thread():
        save(build(VARIANTS["opt"] | {"num_hidden_layers": LAYERS}), model, max_shard_size="60KB")
        lengths = ("--prompt-len", 8, "--gen-len", GEN_LEN, "--num-prompts", len(PROMPTS))
        fixed = [word for name, value in FIXED.items() for word in ("--fix", f"{name}={value}")]
        how = ("--schedule", "zigzag", *fixed, "--out", plan)
        made = cli_run("plan", "--hw", "cpu-only", "--model", model, *lengths, *how)
        assert made.exit_code == 0, made.output
        job = Job(plan, model, folder, {})
        result = cli_run(*job.words())
        assert result.exit_code == 0, result.output
        yield replace(job, expected=job.answers())


@pytest.fixture
def job(undisturbed: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Give a run in a folder of its own."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):  # what the command sets is undone after the test
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return replace(undisturbed, folder=tmp_path)


@pytest.fixture
def own(job: Job) -> Job:
    """Give a run with a checkpoint that may be damaged."""
    folder = job.folder / "model"
    shutil.copytree(job.checkpoint, folder)
    return replace(job, checkpoint=folder)


def at_call(number: int, act: Callable[[], None], method: Callable[..., Any]) -> Callable[..., Any]:
    """Do something before one call of a method, counted from 0."""
    calls = itertools.count()

    def perform(*arguments: Any) -> Any:
        if next(calls) == number:
            act()
        return method(*arguments)

    return perform


def raising(error: BaseException) -> Callable[..., None]:
    """Give what raises an error, whatever it is asked."""

    def act(*_: object, **__: object) -> None:
        raise error

    return act


def test_nothing_goes_wrong(undisturbed: Job) -> None:
    """All prompts are answered; the plan has work for every lane and is played in two blocks."""
    assert set(undisturbed.expected) == {line["id"] for line in PROMPTS}
    plan = read_plan(undisturbed.plan)
    assert plan.policy.block == BLOCK
    assert min(plan.predictions.busy.values()) > 0


def cut(file: Path) -> None:
    """Cut a file short."""
    os.truncate(file, file.stat().st_size - 100)


def spoil_length(file: Path) -> None:
    """Let a header promise to be longer than the file."""
    file.write_bytes(b"\xff" * 7 + b"\0" + file.read_bytes()[8:])


def spoil_header(file: Path) -> None:
    """Write what is not JSON into a header."""
    data = bytearray(file.read_bytes())
    data[8:12] = b"\0\1\2\3"
    file.write_bytes(data)


def change_tensor(change: Callable[[dict[str, Any], str], None]) -> Callable[[Path], None]:
    """Make a change of the tensors of a file, told the name of one of them."""

    def damage(file: Path) -> None:
        tensors = load_file(file)
        change(tensors, next(name for name in sorted(tensors) if "fc2.weight" in name))
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def transpose(tensors: dict[str, Any], name: str) -> None:
    """Give a matrix another shape."""
    tensors[name] = tensors[name].T.contiguous()


def narrow(tensors: dict[str, Any], name: str) -> None:
    """Give a matrix another type."""
    tensors[name] = tensors[name].half()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "the file is cut short, download or save it again"),
        (spoil_length, "cannot hold the header"),
        (spoil_header, "the header is not JSON"),
        (change_tensor(lambda tensors, name: tensors.pop(name)), "fc2.weight is missing"),
        (change_tensor(transpose), "fc2.weight: its shape is [64, 32], config.json asks for [32, 64]"),
        (change_tensor(narrow), "fc2.weight is torch.float16, config.json says float32"),
        (Path.unlink, "this file is missing though"),
    ],
)
def test_a_damaged_checkpoint(
    own: Job, damage: Callable[[Path], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found before anything is allocated or written, and the line names the file."""
    monkeypatch.setattr("executor.engine.Memory", raising(AssertionError("memory was allocated")))
    damage(own.checkpoint / SHARD)
    line = own.fault()
    assert line.startswith(str(own.checkpoint / SHARD))
    assert words in line
    assert not own.out.exists() or not own.out.stat().st_size


def test_a_checkpoint_that_is_cut_after_it_was_opened(own: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first read of what is gone says so."""
    shard, opened = own.checkpoint / SHARD, Checkpoint.open
    whole = shard.read_bytes()

    def open_and_cut(path: Path) -> Checkpoint:
        checkpoint = opened(path)
        os.truncate(shard, PAGE)
        return checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "open", staticmethod(open_and_cut))
        line = own.fault()
    assert line.startswith(f"{shard}: reading ")
    assert f"the file stops at byte {PAGE}: it is cut short; fetch or write it again" in line
    shard.write_bytes(whole)
    own.resume()


def test_a_checkpoint_that_is_cut_while_it_is_read(own: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are finished stay, and the line says how to go on."""
    shard = own.checkpoint / SHARD
    whole = shard.read_bytes()
    passes = LAYERS * 2 * GEN_LEN  # of a block: calls of mlp
    cutting = at_call(passes + 1, lambda: os.truncate(shard, PAGE), Steps.mlp)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "mlp", cutting)
        line = own.fault()
    assert line.startswith(f"{shard}: reading ")
    assert line.endswith(f"; {BLOCK} of 8 answers are in {own.out}; continue with --resume")
    shard.write_bytes(whole)
    own.resume()


def test_short_transfers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that moves less than it is asked for gives the same answers."""
    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, short(getattr(os, name), PAGE + 100))
    job.resume()


def short(call: Callable[..., int], most: int) -> Callable[..., int]:
    """Let a transfer say that it moved a part of what it was asked for, and not in whole pages."""
    return lambda descriptor, views, offset: min(most, call(descriptor, [views[0][: 2 * PAGE]], offset))


@dataclass
class Disk:
    """Counts transfers, and fails from one of them on."""

    call: Callable[..., int]
    last: float = float("inf")
    count: int = 0

    def transfer(self, *arguments: Any) -> int:
        """Do one, or fail as a broken disk does."""
        self.count += 1
        if self.count > self.last:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.call(*arguments)


@pytest.mark.parametrize("name", ["preadv", "pwritev"])
@pytest.mark.parametrize(("share", "answered"), [(0.0, 0), (0.3, 0), (0.8, BLOCK)])
def test_a_disk_that_breaks(
    job: Job, name: str, share: float, answered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and all lanes stop; the answers before that stay, and a disk that is mended gives the rest."""
    with monkeypatch.context() as patch:
        disk = Disk(getattr(os, name))
        patch.setattr(os, name, disk.transfer)
        job.resume()
        job.out.unlink()
        broken = Disk(disk.call, share * disk.count)
        patch.setattr(os, name, broken.transfer)
        line = job.fault()
    assert f"{'reading' if name == 'preadv' else 'writing'} " in line
    assert "(EIO): the disk reports an error; look at the system's log" in line
    assert len(job.answers()) == answered
    assert line.endswith("continue with --resume") == bool(answered)
    job.resume()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of a few pages; skip where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_no_space_for_the_cache(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch file cannot be made: it is told before anything is computed."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", raising(OSError(errno.ENOSPC, "No space left on device")))
        patch.setattr(Steps, "perform", raising(AssertionError("something was computed")))
        line = job.fault()
    assert line.startswith(f"{job.folder}/scratch-")
    assert "(ENOSPC): the disk is full; free space, put less on the disk, or choose another folder" in line
    job.resume()


def test_a_small_scratch_folder(job: Job) -> None:
    """A file system that is really too small says the same; another folder helps."""
    scratch = job.folder / "small"
    with small_disk(scratch, "4k"):
        line = job.fault("--scratch", scratch)
        assert line.startswith(f"{scratch}/scratch-")
        assert "(ENOSPC): the disk is full" in line
        assert not list(scratch.iterdir())
    job.resume()


def test_no_space_for_the_answers(job: Job) -> None:
    """The answer that does not fit is no half line; with more space the rest is answered."""
    long = [line | {"id": f"{line['id']}-{700 * 'x'}"} for line in PROMPTS]
    names = {line["id"]: f"{line['id']}-{700 * 'x'}" for line in PROMPTS}
    expected = {names[name]: line | {"id": names[name]} for name, line in job.expected.items()}
    folder = job.folder / "small"
    with small_disk(folder, "4k"):
        other = replace(job, folder=folder, expected=expected)
        prompts = job.folder / "prompts.jsonl"
        prompts.write_text("".join(f"{json.dumps(line)}\n" for line in long))
        (folder / "prompts.jsonl").symlink_to(prompts)
        scratch = ("--scratch", job.folder)
        line = other.fault(*scratch)
        assert line == (
            f"--out {other.out}: cannot be written (no space left on device); "
            f"5 of 8 answers are in {other.out}; continue with --resume"
        )
        assert len(other.answers()) == 5
        assert "cannot be written" in other.fault("--resume", *scratch)
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        other.resume(*scratch)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            {"tokens": [1] * 62},
            "62 prompt and 4 new tokens do not fit the 64 positions of model; shorten the",
        ),
        ({"tokens": [1] * 9}, "9 prompt tokens are more than the 8 of the plan; make a plan with"),
        ({"tokens": [1], "max_tokens": 5}, "5 new tokens are more than the 4 of the plan; make a plan with"),
        ({"tokens": [1, 97]}, "token 97 is not in the vocabulary of 97; take the model's tokenizer"),
        ({"tokens": [-1]}, "tokens.0: "),
    ],
)
def test_a_prompt_that_does_not_fit(job: Job, line: dict[str, Any], words: str) -> None:
    """Neither the model's limits nor the plan's are passed; the line is named, and nothing is written."""
    prompts = job.folder / "prompts.jsonl"
    prompts.write_text("".join(f"{json.dumps(each)}\n" for each in (*PROMPTS, line)))
    told = job.fault()
    assert told.startswith(f"{prompts}:9")
    assert words in told
    assert not job.out.exists()


@pytest.mark.parametrize(
    ("error", "handler", "lane"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "mlp", "gpu"),
        (RuntimeError(TORCH_SAYS), "head", "gpu"),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), "load_cache", "h2d"),
        (MemoryError(), "attend_cpu", "cpu"),
        (MemoryError(), "read_weights", "disk_read"),
        (MemoryError(), "write_cache", "disk_write"),
    ],
)
def test_out_of_memory(
    job: Job, error: BaseException, handler: str, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names lane and remedy, whatever the allocator says, and the answers before that stay."""
    with monkeypatch.context() as patch:
        method, calls = getattr(Steps, handler), itertools.count()
        patch.setattr(Steps, handler, lambda self, step: (next(calls), method(self, step))[1])
        job.resume()
        job.out.unlink()
        patch.setattr(Steps, handler, at_call(next(calls) - 1, raising(error), method))
        line = job.fault()
    where = rf"\({handler} of pass \d+, layer \d+, group -?\d+\)"
    assert re.match(f"out of memory in lane {lane} {where}: other programs may use it too; stop them", line)
    assert "plan with a smaller capacity of this tier (--set)" in line
    assert len(job.answers()) >= BLOCK
    job.resume()


def test_an_error_of_the_program(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one line that names the task; with --debug, there is the traceback and the schedule around it."""
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "mlp", at_call(3, raising(ValueError("so\nodd")), Steps.mlp))
        line = job.fault()
        assert re.fullmatch(
            r"internal error in lane gpu \(mlp of pass 0, layer \d, group \d\): ValueError: so odd", line
        )
        patch.setattr(Steps, "mlp", at_call(3, raising(ValueError("odd")), Steps.mlp))
        told = cli_run("--debug", *job.words()).stderr
    assert "Traceback (most recent call last)" in told
    assert "ValueError: odd" in told
    shown = [each for each in told.splitlines() if " mlp " in f"{each} " and each.lstrip().startswith(">")]
    assert len(shown) == 1
    assert told.splitlines()[-1].startswith("error: internal error in lane gpu (mlp of pass 0")
    job.resume()


def test_an_error_while_homes_are_filled(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong before the first task ends likewise."""
    with monkeypatch.context() as patch:
        patch.setattr("executor.arena.aligned", raising(RuntimeError(TORCH_SAYS)))
        line = job.fault()
    assert re.match(r"gpu memory: [\w ]+ needs \d\.\d+ GiB more than is free; stop other programs", line)
    job.resume()


def test_an_operation_without_a_handler(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error, not a task that is left out."""
    with monkeypatch.context() as patch:
        patch.delattr(CacheSteps, "attend_cpu")
        line = job.fault()
    assert line.startswith("internal error in lane cpu (attend_cpu of pass 1, layer ")
    assert "LookupError: no handler does the operation attend_cpu" in line
    job.resume()


HELD = """
import signal, sys, threading, time
from pathlib import Path
from executor.lanes import Played
from executor.steps import Steps

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background may have it ignored
folder, answered, ends = Path(sys.argv[-3]), int(sys.argv[-2]), sys.argv[-1] == "ends"
mlp, stop, stopped = Steps.mlp, Played.stop, threading.Event()

def held(self, step):
    if (folder / "answers.jsonl").read_bytes().count(b"\\n") >= answered:
        (folder / "held").touch()
        stopped.wait()
        while not ends:
            time.sleep(1)
    mlp(self, step)

def note_stop(self):
    stop(self)
    stopped.set()
    (folder / "stopped").touch()

Steps.mlp, Played.stop = held, note_stop
from planner.cli import cli
cli.main(sys.argv[1:-3], prog_name="planner")
"""


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a process has done something."""
    end = time.monotonic() + LONG
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.005)


@contextmanager
def held_run(job: Job, answered: int, *, ends: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Run the command, and give it while it computes a layer and has so many answers at least.

    The layer is not ended before the run is told to stop, and never if it has no end.
    """
    held = job.folder / "held"
    last = (str(job.folder), str(answered), "ends" if ends else "never")
    command = [sys.executable, "-c", HELD, *job.words(), *last]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        try:
            wait_for(held.exists, process)
            yield process
        finally:
            process.kill()


def end_by(job: Job, number: signal.Signals, answered: int) -> tuple[int, str]:
    """Send a signal to a run that has so many answers at least; give exit code and errors."""
    with held_run(job, answered) as process:
        process.send_signal(number)
        _, told = process.communicate(timeout=LONG)
    return process.returncode, told


@pytest.mark.parametrize("answered", [0, BLOCK])
def test_an_interrupt(job: Job, answered: int) -> None:
    """The run ends at once with one line that says how to go on; nothing is asked twice."""
    code, told = end_by(job, signal.SIGINT, answered)
    assert code == 130, told
    done = len(job.answers())
    assert answered <= done < len(PROMPTS)
    assert told == f"interrupted: {done} of 8 answers are in {job.out}; continue with --resume\n"
    assert not list(job.folder.glob("scratch-*"))
    job.resume()


def test_a_sudden_end(job: Job) -> None:
    """A process that is killed leaves whole lines, and nothing on the disk beside them."""
    code, told = end_by(job, signal.SIGKILL, BLOCK)
    assert (code, told) == (-signal.SIGKILL, "")
    assert len(job.answers()) >= BLOCK
    assert not list(job.folder.glob("scratch-*"))
    job.resume()


def test_two_interrupts(job: Job) -> None:
    """The first lets every lane end its task; who cannot wait for one that takes for ever asks again."""
    with held_run(job, 0, ends=False) as process:
        process.send_signal(signal.SIGINT)
        wait_for((job.folder / "stopped").exists, process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=LONG)
    assert process.returncode == 130, told
    assert told == f"interrupted: 0 of 8 answers are in {job.out}; continue with --resume\n"
    job.resume()
