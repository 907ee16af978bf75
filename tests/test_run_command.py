"""``planner run`` with plain generation in the engine's place: prompts, answers, resuming, errors."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as Output

REASON = "torch, transformers and tokenizers are needed to run models"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)
tokenizers = pytest.importorskip("tokenizers", reason=REASON)

from executor.answers import AnswerFile, Found, read_answers
from executor.checkpoint import Checkpoint
from executor.engine import Listener
from executor.prompts import Prompt
from executor.reference import generate
from executor.sampling import Request, Result, Sampling
from planner.cli import cli
from planner.plan import Plan, read_plan
from planner.run_report import Watch
from simulator.errors import InfeasibleError, InputError, PlannerError
from simulator.trace import Trace, read_trace
from tests.checkpoints import VARIANTS, build, change_json, one_thread, save

ROOT = Path(__file__).resolve().parent.parent
PROMPT_LEN, GEN_LEN, BEGIN = 8, 4, 2
TOKENS = [{"tokens": [5 + n, 9, 11 * n % 90], "id": f"p{n}"} for n in range(6)]


def cli_run(*arguments: object, code: int = 0) -> Output:
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the words w0 to w96, which puts w2 before a text, as OPT's does."""
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(97)})
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"w{BEGIN} $A", special_tokens=[(f"w{BEGIN}", BEGIN)]
    )
    tokenizer.enable_truncation(max_length=5)  # what must not shorten prompts
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a small checkpoint with a tokenizer."""
    path = tmp_path_factory.mktemp("checkpoints") / "opt"
    save(build(VARIANTS["opt"]), path)
    write_tokenizer(path)
    return path


def make_plan(folder: Path, path: Path, prompt_len: int = PROMPT_LEN, gen_len: int = GEN_LEN) -> Path:
    """Plan for a checkpoint."""
    lengths = ("--prompt-len", prompt_len, "--gen-len", gen_len, "--num-prompts", 6)
    cli_run("plan", "--hw", "cpu-only", "--model", folder, *lengths, "--out", path)
    return path


@pytest.fixture(scope="module")
def plan_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a plan for the checkpoint."""
    return make_plan(folder, tmp_path_factory.mktemp("plans") / "plan.json")


def small_trace() -> Trace:
    """Measure one task of a second."""
    one, whole = np.ones(1), np.zeros(1, dtype=np.int32)
    lane = np.zeros(1, dtype=np.int8)
    return Trace(lane, lane, 0 * one, one, *[whole] * 3, *[one] * 5, (), {"kind": "measured"})


@dataclass
class Engine:
    """Stands for the engine: plain generation, whose answers come from a thread, the last first.

    Attributes:
        answered: it stops before it has given so many answers and one more.
        error: what it raises then.
        asked: the requests of every call.
        called: the other arguments of the last call.
    """

    answered: int = 1_000_000
    error: BaseException | None = None
    asked: list[list[Request]] = field(default_factory=list)
    called: dict[str, Any] = field(default_factory=dict)

    def run(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        requests: Sequence[Request],
        *,
        device: str,
        scratch: Path,
        listener: Listener,
    ) -> object:
        """Answer as the engine does."""
        self.asked.append(list(requests))
        self.called = {"device": device, "scratch": scratch}
        results = generate(checkpoint, requests)
        last_first = list(enumerate(results))[::-1][: self.answered]
        faults: list[BaseException] = []

        def work() -> None:
            try:
                for index, result in last_first:
                    listener.tokens(len(result.tokens))
                    listener.finish(index, result)
            except PlannerError as error:
                faults.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        for fault in (*faults, *([self.error] if self.error else [])):
            raise fault
        tokens = sum(len(result.tokens) for result in results)
        memory = {"gpu": {"weights": 1000.0, "cache": 24.0}, "cpu": {}, "disk": {}}
        return SimpleNamespace(seconds=2.0, tokens=tokens, trace=small_trace(), memory=memory)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Put the stand-in where the engine is."""
    stand_in = Engine()
    monkeypatch.setattr("executor.engine.run", stand_in.run)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):  # what the command sets is undone after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return stand_in


@dataclass(frozen=True)
class Place:
    """A plan, a checkpoint, and a folder with prompts and answers."""

    plan: Path
    checkpoint: Path
    folder: Path
    engine: Engine

    @property
    def out(self) -> Path:
        """The file of answers."""
        return self.folder / "answers.jsonl"

    def run(self, prompts: Sequence[object] | str, *more: object, code: int = 0) -> Output:
        """Write the prompts and run them on the CPU."""
        lines = (each if isinstance(each, str) else json.dumps(each) for each in prompts)
        text = prompts if isinstance(prompts, str) else "".join(f"{line}\n" for line in lines)
        (self.folder / "prompts.jsonl").write_text(text, encoding="utf-8")
        files = ("--prompts", self.folder / "prompts.jsonl", "--out", self.out)
        command = ("run", self.plan, "--checkpoint", self.checkpoint, *files, "--device", "cpu", *more)
        return cli_run(*command, code=code)

    def refuse(self, prompts: Sequence[object] | str, *more: object, code: int = 2) -> str:
        """Run what must be an error of one line, without calling the engine or touching the answers."""
        before = self.out.read_bytes() if self.out.exists() else None
        calls = len(self.engine.asked)
        result = self.run(prompts, *more, code=code)
        assert (self.out.read_bytes() if self.out.exists() else None) == before
        assert len(self.engine.asked) == calls
        return only_error(result)

    def answers(self) -> dict[Any, dict[str, Any]]:
        """Read the answers by id."""
        lines = [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]
        assert len({line["id"] for line in lines}) == len(lines)
        return {line["id"]: line for line in lines}


def only_error(result: Output) -> str:
    """Give the one line of an error."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def place(plan_file: Path, folder: Path, tmp_path: Path, engine: Engine) -> Place:
    """Give a place to run in."""
    return Place(plan_file, folder, tmp_path, engine)


def expected(folder: Path, request: Request) -> Result:
    """Generate one answer alone."""
    return generate(Checkpoint.open(folder), [request])[0]


def test_answers_of_plain_generation(place: Place) -> None:
    """Every prompt has its own answer, with what the tokenizer makes of it; the report says what came out."""
    result = place.run([{"prompt": "w7 w8"}, {"tokens": [3, 4, 5], "id": 7, "max_tokens": 2}])
    answers = place.answers()
    one = expected(place.checkpoint, Request((BEGIN, 7, 8), GEN_LEN))
    other = expected(place.checkpoint, Request((3, 4, 5), 2))
    assert answers["1"] == {
        "id": "1",
        "prompt_tokens": 3,
        "tokens": list(one.tokens),
        "text": " ".join(f"w{token}" for token in one.tokens),
        "finish_reason": "length",
    }
    assert answers[7]["tokens"] == list(other.tokens)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[:2] == ["answers     2 of 2", "generated   6 tokens in 2 s on cpu"]
    assert lines[2].startswith("throughput  3 tok/s, ")
    assert "x the predicted" in lines[2]
    assert lines[3].startswith("memory      gpu: 0.000977 MiB, planned at most ")
    assert lines[-1] == f"written: {place.out}"
    assert place.engine.called == {"device": "cpu", "scratch": place.folder}


def test_report_for_programs(place: Place) -> None:
    """The same as JSON, and the trace reads back."""
    trace, scratch = place.folder / "measured.json", place.folder / "scratch"
    scratch.mkdir()
    result = place.run(TOKENS, "--format", "json", "--trace", trace, "--scratch", scratch)
    data, plan = json.loads(result.stdout), read_plan(place.plan)
    predicted = plan.predictions.throughput_tok_s
    assert (data["prompts"], data["answered_before"], data["answers"]) == (6, 0, 6)
    assert (data["seconds"], data["tokens"], data["throughput_tok_s"]) == (2.0, 24, 12.0)
    assert (data["predicted_tok_s"], data["ratio"]) == (predicted, 12.0 / predicted)
    assert data["memory"]["gpu"] == {
        "measured": 1024.0,
        "planned_peak": plan.memory["gpu"].peak,
        "uses": {"weights": 1000.0, "cache": 24.0},
    }
    assert (data["out"], data["trace"]) == (str(place.out), str(trace))
    assert read_trace(trace) == small_trace()
    assert place.engine.called["scratch"] == scratch
    again = place.run(TOKENS[:1], "--resume", "--trace", trace, code=2)  # the file has more answers than that
    assert "is not among the prompts" in only_error(again)


def test_what_a_line_may_say(place: Place) -> None:
    """Sampling and stops reach the engine; empty lines are skipped; an empty list of stops is kept."""
    line = {
        "tokens": [1],
        "temperature": 1,
        "top_k": 5,
        "top_p": 0.5,
        "seed": -3,
        "stop": ["w4", 9],
        "id": None,
    }
    last = '{"tokens": [1, 2], "stop": [], "id": "\u2028"}'
    place.run("\n" + json.dumps(line) + "\r\n \n" + last)
    one, other = place.engine.asked[0]
    assert one == Request((1,), GEN_LEN, Sampling(1.0, 5, 0.5, -3), frozenset({4, 9}))
    assert other == Request((1, 2), GEN_LEN, stop=frozenset())
    lines = place.out.read_text(encoding="utf-8").split("\n")
    assert {json.loads(line)["id"] for line in lines if line} == {"2", "\u2028"}


def test_a_stop_ends_an_answer(place: Place) -> None:
    """The reason is in the answer, and the stop token is its last."""
    first = expected(place.checkpoint, Request((5, 9), 1)).tokens[0]
    place.run([{"tokens": [5, 9], "stop": [f"w{first}"]}])
    assert place.answers()["1"]["finish_reason"] == "stop"
    assert place.answers()["1"]["tokens"] == [first]


def test_without_a_tokenizer(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token numbers need neither file nor library; texts need both, and the error says what to do."""
    bare = tmp_path / "bare"
    save(build(VARIANTS["opt"]), bare)
    other = Place(place.plan, bare, tmp_path, place.engine)
    fault = other.refuse([{"tokens": [1]}, {"prompt": "w1"}])
    assert f"prompts.jsonl:2.prompt: a text, but {bare} has no tokenizer.json; download it, or give" in fault
    assert "no tokenizer.json" in other.refuse([{"tokens": [1], "stop": ["w1"]}])
    other.run([{"tokens": [1]}])
    assert "text" not in other.answers()["1"]
    (bare / "tokenizer.json").write_text("{}")
    other.out.unlink()
    assert "tokenizer.json: not a tokenizer (" in other.refuse([{"tokens": [1]}])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install 'offload-planner[run]'" in place.refuse([{"prompt": "w1"}])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"tokens": [1]', ":2: not valid JSON (Expecting ',' delimiter: line 1 column 15 (char 14))"),
        ("[1]", ":2: expected a JSON object, keys with values; got [1]"),
        ({"promt": "w1"}, ":2.promt: unknown key; did you mean 'prompt'?"),
        ({}, ':2: give either a text in "prompt" or token numbers in "tokens"'),
        ({"prompt": "w1", "tokens": [1]}, ":2: give either"),
        ({"prompt": 5}, ":2.prompt: input should be a valid string; got 5"),
        ({"prompt": "\ud800"}, ":2.prompt: half of a surrogate pair in '\\ud800'; write the whole"),
        ({"tokens": [1], "id": "\ud800"}, ":2.id: half of a surrogate pair"),
        ({"tokens": [1], "id": 1.5}, ":2.id: expected a text or a whole number; got 1.5"),
        ({"tokens": [1], "id": True}, ":2.id: expected a text or a whole number; got True"),
        ({"tokens": [1], "id": "a"}, ":2: id 'a' is that of line 1 too; change one"),
        ({"tokens": []}, ":2: prompt: it is empty; give at least one token"),
        ({"tokens": ["w1"]}, ":2.tokens.0: input should be a valid integer; got 'w1'"),
        ({"tokens": [97]}, ":2: prompt: token 97 is not in the vocabulary of 97; take the model's tokenizer"),
        ({"tokens": [1], "max_tokens": "4"}, ":2.max_tokens: input should be a valid integer; got '4'"),
        (
            {"tokens": [1], "max_tokens": 0},
            ":2.max_tokens: input should be greater than or equal to 1; got 0",
        ),
        (
            {"tokens": [1], "temperature": -1},
            ":2: temperature: -1 is not a number of at least 0; 0 is greedy",
        ),
        ({"tokens": [1], "top_p": 2}, ":2: top_p: 2 is not above 0 and at most 1; 1 allows all tokens"),
        ({"tokens": [1], "top_k": -1}, ":2: top_k: -1 is negative; 0 allows all tokens"),
        ({"tokens": [1], "seed": 0.5}, ":2.seed: input should be a valid integer; got 0.5"),
        ({"tokens": [1], "stop": 5}, ":2.stop: input should be a valid tuple; got 5"),
        ({"tokens": [1], "stop": ["w1 w2"]}, ":2.stop: 'w1 w2' is 2 tokens; give a text that is one"),
        ({"tokens": [1], "stop": [97]}, ":2.stop: token 97 is not in the vocabulary of 97;"),
        ({"tokens": [1] * 62}, ":2: 62 prompt and 4 new tokens do not fit the 64 positions of opt;"),
    ],
)
def test_prompts_that_are_wrong(place: Place, line: object, fault: str) -> None:
    """One line, with the file and the line at fault."""
    assert place.refuse([{"tokens": [1], "id": "a"}, line]).startswith(
        f"{place.folder / 'prompts.jsonl'}{fault}"
    )
    assert not place.out.exists()


def test_no_prompts(place: Place) -> None:
    """An empty file is an error, and so is none."""
    assert "it holds no prompts; write one JSON object a line" in place.refuse("\n \n")
    missing = ("--prompts", place.folder / "missing.jsonl")
    assert "missing.jsonl: cannot be read (no such file" in place.refuse(TOKENS, *missing)


def test_prompts_that_the_plan_has_no_room_for(place: Place) -> None:
    """The remedy is a plan that does, for the whole file; a tokenizer's own limit shortens nothing."""
    prompts = [{"tokens": [1]}, {"prompt": "w1 " * 9}, {"tokens": [1], "max_tokens": 7}]
    line = place.refuse(prompts)
    assert line.endswith(
        "prompts.jsonl:2: 10 prompt tokens are more than the 8 of the plan; "
        "make a plan with --prompt-len 10 --gen-len 7 for this file"
    )
    assert "jsonl:2: 7 new tokens are more than the 4 of the plan" in place.refuse([prompts[0], prompts[2]])
    longer = make_plan(place.checkpoint, place.folder / "longer.json", 10, 7)
    Place(longer, place.checkpoint, place.folder, place.engine).run(prompts)
    assert len(place.answers()) == 3


def test_nothing_is_overwritten(place: Place) -> None:
    """A file with something in it is left alone; an empty one may be there."""
    place.out.write_text("mine")
    assert "it exists already and is not overwritten; continue it with --resume" in place.refuse(TOKENS)
    place.out.write_text("")
    place.run(TOKENS)
    assert len(place.answers()) == 6
    assert "--resume" in place.refuse(TOKENS)


def test_resuming_after_an_interrupt(place: Place) -> None:
    """The answers are those of a run in one go, and none is computed twice."""
    place.run(TOKENS)
    whole = place.answers()
    place.out.unlink()
    place.engine.asked.clear()
    place.engine.answered, place.engine.error = 2, KeyboardInterrupt()
    result = place.run(TOKENS, code=130)
    assert result.stdout == ""
    assert result.stderr == f"interrupted: 2 of 6 answers are in {place.out}; continue with --resume\n"
    assert set(place.answers()) == {"p4", "p5"}
    first = place.out.read_bytes()
    place.engine.answered, place.engine.error = 100, None
    text = place.run(TOKENS, "--resume").stdout
    assert "answers     4 of 6, 2 were answered before" in text
    assert place.out.read_bytes().startswith(first)
    assert place.answers() == whole
    assert [len(asked) for asked in place.engine.asked] == [6, 4]


def test_all_are_answered(place: Place) -> None:
    """Nothing runs and nothing changes."""
    place.run(TOKENS, "--resume")  # without a file it is a run like any other
    before = place.out.read_bytes()
    text = place.run(TOKENS, "--resume").stdout
    assert text == f"all 6 prompts are answered already in {place.out}\n"
    data = json.loads(place.run(TOKENS, "--resume", "--format", "json").stdout)
    assert (data["answers"], data["answered_before"], data["tokens"], data["ratio"]) == (0, 6, 0, None)
    assert place.out.read_bytes() == before
    assert len(place.engine.asked) == 1


@pytest.mark.parametrize("cut", [1, 2, 30, None])
@pytest.mark.parametrize("rest", [b"", b"\n", b"\0\0\0"])
def test_a_torn_last_line(place: Place, cut: int | None, rest: bytes) -> None:
    """It is cut off, wherever it broke, and its prompt is answered again."""
    place.run(TOKENS)
    whole, data = place.answers(), place.out.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    torn = data[:-cut] if cut else data[: start + 3]
    place.out.write_bytes(torn + (b"" if cut == 1 else rest))
    place.run(TOKENS, "--resume")
    assert place.answers() == whole
    assert place.out.read_bytes() == data
    assert [len(asked) for asked in place.engine.asked] == [6, 1]


def test_files_that_are_not_these_answers(place: Place) -> None:
    """Each fault is named with its line, and the file stays as it is."""
    place.run(TOKENS)
    lines = place.out.read_text().splitlines(keepends=True)

    def refused(text: str) -> str:
        place.out.write_text(text)
        return place.refuse(TOKENS, "--resume").removeprefix(str(place.out))

    assert refused(lines[0] + lines[1][:20] + "\n" + lines[2]).startswith(":2: not valid JSON (")
    assert refused(lines[0] + "\n" + lines[2]).startswith(":2: not valid JSON (")
    assert refused(lines[0] * 2).startswith(":2: id 'p5' is answered in an earlier line too; remove one")
    assert refused(lines[0].replace("p5", "p9")).startswith(":1: id 'p9' is not among the prompts; give")
    longer = lines[0].replace('"prompt_tokens": 3', '"prompt_tokens": 4')
    assert refused(longer).startswith(":1: id 'p5' was asked with 4 prompt tokens, not 3; give")
    assert refused(lines[0].replace("finish_reason", "reason")).startswith(":1.")
    assert refused(lines[0] + "1\n").startswith(":2: expected a JSON object")
    assert refused("some notes of mine").startswith(":1: not an answer; give")
    place.out.write_bytes(b"\xff\n" + lines[0].encode())
    assert ":1: not text; give" in place.refuse(TOKENS, "--resume")


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("disk: gone"), 2), (PlannerError("odd"), 2), (InfeasibleError("full"), 1)]
)
def test_errors_of_the_engine(place: Place, error: PlannerError, code: int) -> None:
    """One line; answers that were written stay, and the line says how to go on."""
    place.engine.error, place.engine.answered = error, 0
    assert only_error(place.run(TOKENS, code=code)) == str(error)
    assert place.out.read_bytes() == b""
    place.engine.answered = 1
    line = only_error(place.run(TOKENS, code=code))
    assert line == f"{error}; 1 of 6 answers are in {place.out}; continue with --resume"
    assert set(place.answers()) == {"p5"}
    place.engine.answered = 0  # none is new, but there is one
    assert "1 of 6 answers are in" in only_error(place.run(TOKENS, "--resume", code=code))


def test_an_engine_that_leaves_out_prompts(place: Place) -> None:
    """It is an error, though the engine said nothing."""
    place.engine.answered = 4
    assert "the engine left out prompts: 4 of 6 answers are in" in only_error(place.run(TOKENS, code=2))


def test_a_plan_for_another_engine(place: Place) -> None:
    """Only plans for this project's own engine can be run."""
    other = place.folder / "other.json"
    cli_run("plan", "--hw", "t4-16", "--model", "opt-1.3b", "--runtime", "flexgen", "--out", other)
    fault = Place(other, place.checkpoint, place.folder, place.engine).refuse(TOKENS)
    assert fault.startswith(f"{other}: a plan for flexgen, which is not part of this project; make one with")


def test_another_model(place: Place, tmp_path: Path) -> None:
    """The field that differs is named; a model of another name is the same."""
    other = tmp_path / "other"
    save(build(VARIANTS["opt"] | {"num_hidden_layers": 3}), other)
    fault = Place(place.plan, other, tmp_path, place.engine).refuse(TOKENS)
    assert fault == (
        f"{other}: num_layers is 3, but 2 in the plan's model opt; make a plan with --model {other}"
    )
    renamed = tmp_path / "renamed"
    save(build(VARIANTS["opt"]), renamed)
    Place(place.plan, renamed, tmp_path, place.engine).run(TOKENS)
    change_json(renamed / "config.json", num_attention_heads=8)
    (tmp_path / "answers.jsonl").unlink()
    assert "num_heads is 8" in Place(place.plan, renamed, tmp_path, place.engine).refuse(TOKENS)


def test_the_device(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA must be there if it is asked for, and is taken if nothing is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: torch finds no CUDA device;" in place.refuse(TOKENS, "--device", "cuda")
    base = ("run", place.plan, "--checkpoint", place.checkpoint, "--prompts", place.folder / "prompts.jsonl")
    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        cli_run(*base, "--out", place.folder / device)
        assert place.engine.called["device"] == device


def test_files_and_folders(place: Place) -> None:
    """No file has two parts, folders must be there, and a full disk is an error of one line."""
    prompts, nowhere = place.folder / "prompts.jsonl", place.folder / "no" / "file"
    over = ("--out", prompts, "--resume")
    assert "--trace" in place.refuse(TOKENS, "--trace", place.out)
    assert "the same file as --prompts; give another path" in place.refuse(TOKENS, *over)
    assert prompts.read_text().count("\n") == 6
    for option, path in (("--out", nowhere), ("--trace", nowhere), ("--scratch", nowhere.parent)):
        assert f"{option}: there is no folder {nowhere.parent};" in place.refuse(TOKENS, option, path)
    if Path("/dev/full").exists():
        fault = only_error(place.run(TOKENS, "--out", "/dev/full", code=2))
        assert fault == "--out /dev/full: cannot be written (no space left on device)"
        fault = only_error(place.run(TOKENS, "--trace", "/dev/full", code=2))
        assert fault == "--trace /dev/full: cannot be written (no space left on device); the answers are"
        assert len(place.answers()) == 6


def test_a_file_that_changed(tmp_path: Path) -> None:
    """What another run has written since is not cut off."""
    path = tmp_path / "answers.jsonl"
    path.write_text("more")
    with pytest.raises(InputError, match="it changed since it was read; wait for the run"):
        AnswerFile(path, Found(), None)
    assert path.read_text() == "more"


def test_answers_from_many_threads(tmp_path: Path) -> None:
    """Every line is whole."""
    prompts = [Prompt(n, Request((1,) * (n + 1), 4)) for n in range(200)]
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, Found(), None) as file:

        def work(part: int) -> None:
            for prompt in prompts[part::8]:
                file.add(prompt, Result((1,) * 500, "length"))

        workers = [threading.Thread(target=work, args=(part,)) for part in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert file.count == 200
    found = read_answers(path, prompts)
    assert found.ids == {str(n) for n in range(200)}
    assert (found.size, found.torn) == (path.stat().st_size, 0)


def test_what_a_terminal_shows(place: Place) -> None:
    """Tokens, speed beside the predicted one, and the time left; answers that end early count."""
    watch = Watch(40, read_plan(place.plan))
    column = watch.progress.columns[-1]
    task = watch.progress.tasks[0]
    assert str(column.render(task)).startswith("0/40 tokens, 0 tok/s (predicted ")
    task.start_time = watch.progress.get_time() - 2.0
    watch.advance(10)
    watch.spare(20)
    task.stop_time = task.start_time + 2.0
    text = str(column.render(task))
    assert text.startswith("10/20 tokens, 5 tok/s (predicted ")
    assert text.endswith("), 2 s left")


def test_waiting_threads_leave_the_cores(place: Place) -> None:
    """Torch is loaded with threads that sleep while they wait, unless the user says otherwise."""
    code = """
import os, sys
sys.modules["executor.checkpoint"] = None
os.environ["GOMP_SPINCOUNT"] = "7"
from planner.cli import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"])
"""
    assert process(place, code, "executor.checkpoint").stdout == "PASSIVE 7\n"


def test_without_torch(place: Place) -> None:
    """One line that says what to install."""
    code = "import sys; sys.modules['torch'] = None; from planner.cli import cli; cli.main(sys.argv[1:])"
    done = process(place, code, "torch")
    assert done.returncode == 2
    assert done.stderr == (
        "error: planner run needs torch, which is not installed: pip install 'offload-planner[run]'\n"
    )


def process(place: Place, code: str, blocked: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, where a module is missing."""
    files = ("--checkpoint", place.checkpoint, "--prompts", "prompts.jsonl", "--out", place.out)
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(place.plan), *map(str, files)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert blocked in done.stderr
    return done
