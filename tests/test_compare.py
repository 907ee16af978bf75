"""All engines side by side: shapes of table and JSON, ratios by hand, engines that cannot, published runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import planner.compare as module
from planner.choices import Options
from planner.cli import cli
from planner.compare import Comparison, Question, compare_engines
from planner.compare_published import Published, published_runs
from planner.compare_report import report
from planner.compare_rows import Best, Failed, Row, best_plan
from planner.launch import limited, lost_forms
from planner.make_plan import Request, make_plan
from planner.measurements import shipped_pipelines, shipped_suites
from planner.pins import parse_pins
from simulator.errors import InfeasibleError, InputError, PlannerError
from simulator.model_config import load_model
from simulator.pipeline import Swarm
from simulator.pipelines import load_pipeline, pipeline_names
from simulator.policy import Split
from simulator.profiles import load_profile
from simulator.runtime import runtime_names
from simulator.workload import Workload
from tests.problems import problem_of
from tests.test_pipeline import PUBLISHED

ENGINES = {*runtime_names(), *pipeline_names()}
SMALL = ("compare", "--hw", "t4-16", "--model", "opt-1.3b", "--gen-len", "8")
GPU, CPU = Split(gpu=1, cpu=0, disk=0), Split(gpu=0, cpu=1, disk=0)
LARGE = ("compare", "--hw", "t4-16", "--model", "opt-6.7b")


def run(*arguments: str, code: int = 0) -> Result:
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == code, result.output
    return result


def best(engine: str, tok_s: float, **changes: object) -> Best:
    """Make the row of an engine that reaches a throughput."""
    given: dict[str, Any] = {
        "schedule": "zigzag",
        "groups": 3,
        "group_size": 48,
        "weights": Split(gpu=0.2, cpu=0.8, disk=0.0),
        "cache": CPU,
        "activations": GPU,
        "weight_bits": 16,
        "cache_bits": 4,
        "latency_s": 75.0,
        "busiest": "disk_read",
        "busy": 0.9,
    }
    return Best(engine=engine, tok_s=tok_s, **(given | changes))


def question(model: str = "opt-1.3b", **work: int) -> Question:
    """Ask about a model on the smallest machine."""
    return Question(load_profile("t4-16"), load_model(model), Workload(**work))


def stub(monkeypatch: pytest.MonkeyPatch, answers: dict[str, float | Exception]) -> None:
    """Let engines answer what is given, without planning."""

    def answer(_: Question, engine: str) -> Best:
        found = answers[engine]
        if isinstance(found, Exception):
            raise found
        return best(engine, found)

    monkeypatch.setattr(module, "_best", answer)


def text_of(rows: tuple[Row, ...], published: tuple[Published, ...] = ()) -> str:
    """Print a report as to a file."""
    console = Console(width=110)
    with console.capture() as capture:
        console.print(report(rows, published, ("opt-1.3b on t4-16", "a queue"), "reference"))
    return capture.get()


def line_of(text: str, start: str) -> str:
    """Give the first line that starts with a word."""
    return next(line for line in text.splitlines() if line.lstrip().startswith(start))


def test_json_has_every_engine_with_the_same_keys() -> None:
    """A row for every engine that comes along, all with the same keys; the reference is once itself."""
    data = json.loads(run(*SMALL, "--format", "json").stdout)
    assert data["hardware"] == "t4-16"
    assert data["model"] == "opt-1.3b"
    assert data["workload"]["gen_len"] == 8
    assert {row["engine"] for row in data["engines"]} == ENGINES
    assert len({tuple(sorted(row)) for row in data["engines"]}) == 1
    rows = {row["engine"]: row for row in data["engines"]}
    reference = rows["reference"]
    assert data["engines"][0] == reference
    assert reference["reference_is_times"] == 1.0
    for row in data["engines"]:
        assert row["reason"] is None
        assert row["reference_is_times"] == pytest.approx(reference["tok_s"] / row["tok_s"])
    assert data["published"] == []


def test_a_row_is_the_plan_of_its_engine() -> None:
    """What stands in a row is what ``planner plan`` finds for the engine."""
    rows = {row["engine"]: row for row in json.loads(run(*SMALL, "--format", "json").stdout)["engines"]}
    for engine in ("flexgen", "accelerate"):
        plan = make_plan(Request(problem_of("t4-16", "opt-1.3b", runtime=engine, gen_len=8)))
        row = rows[engine]
        assert row["tok_s"] == plan.predictions.throughput_tok_s
        assert (row["groups"], row["group_size"]) == (plan.policy.num_groups, plan.policy.gpu_batch)
        assert row["weights"] == plan.layout.weights.model_dump(mode="json")
        assert (row["busiest"], row["latency_s"]) == (plan.busiest, plan.predictions.latency_s)


def test_the_petals_row_is_of_its_best_swarm() -> None:
    """Throughput of a pipeline is per GPU; a block is clients x sequences of a request."""
    asked = question("opt-30b")
    found = Swarm(load_pipeline(), asked.model, asked.hardware, asked.workload).best()
    row = module._best(asked, "petals")
    assert row.tok_s == found.per_gpu
    assert row.gpus == found.pipeline.servers == 4
    assert (row.groups, row.group_size) == (found.pipeline.clients, found.pipeline.batch)
    assert row.weight_bits == 8
    assert row.latency_s == found.latency
    assert f"{found.throughput:.4g} tok/s in all" in row.notes[0]
    queue = Question(asked.hardware, asked.model, Workload(num_prompts=3))
    assert any("without end" in note for note in module._best(queue, "petals").notes)


def test_the_table_fits_and_names_all() -> None:
    """Everything is in 110 columns without colours, and nothing on standard error."""
    result = run(*LARGE, "--quantize", "auto")
    assert result.stderr == ""
    assert "\x1b[" not in result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 110
    assert "…" not in result.stdout
    for engine in ENGINES:
        assert line_of(result.stdout, engine)
    assert "cannot store weights and the KV cache in 4 bits" in result.stdout
    assert "The policies of published runs are what others chose" in result.stdout


def test_ratios_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference at 12 tok/s is 4 times an engine at 3; the reference comes first, pipelines later."""
    answers = {"reference": 12.0, "flexgen": 3.0, "accelerate": 24.0, "zero-inference": 0.05, "petals": 6.0}
    answers["zero-inference-2023"] = 0.02
    stub(monkeypatch, dict(answers))
    outcome = compare_engines(question())
    assert [row.engine for row in outcome.rows] == [
        *("reference", "accelerate", "flexgen", "zero-inference", "zero-inference-2023", "petals")
    ]
    ratios = {row["engine"]: row["reference_is_times"] for row in outcome.to_json()["engines"]}
    assert ratios == {
        "reference": 1.0,
        "flexgen": 4.0,
        "accelerate": 0.5,
        "zero-inference": pytest.approx(240.0),
        "zero-inference-2023": pytest.approx(600.0),
        "petals": 2.0,
    }
    text = text_of(outcome.rows)
    cells = line_of(text, "flexgen").split()
    assert cells[:4] == ["flexgen", "3", "4", "x"]
    assert "3 x 48" in line_of(text, "flexgen")
    assert "20/80/0" in line_of(text, "flexgen")
    assert "0/100/0 4b" in line_of(text, "flexgen")
    assert "1 min 15 s" in line_of(text, "flexgen")
    assert "reads 90%" in line_of(text, "flexgen")
    assert "240 x" in line_of(text, "zero-inference")


def test_an_engine_that_cannot_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reason stands in its row, after the others; without a reference there are no ratios."""
    answers: dict[str, float | Exception] = {
        "reference": InfeasibleError("gpu memory is short by 1 GiB"),
        "flexgen": 3.0,
        "accelerate": InputError("it has no such layers"),
        "zero-inference": 1.0,
        "zero-inference-2023": 0.5,
        "petals": 2.0,
    }
    stub(monkeypatch, answers)
    outcome = compare_engines(question())
    assert {row.engine for row in outcome.rows[4:]} == {"reference", "accelerate"}
    text = text_of(outcome.rows)
    assert line_of(text, "accelerate").split(maxsplit=1)[1].strip() == "it has no such layers"
    assert line_of(text, "reference  ").split(maxsplit=1)[1].strip() == "gpu memory is short by 1 GiB"
    rows = {row["engine"]: row for row in outcome.to_json()["engines"]}
    assert rows["accelerate"]["reason"] == "it has no such layers"
    assert rows["accelerate"]["tok_s"] is None
    assert rows["flexgen"]["reference_is_times"] is None


def test_all_engines_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the command fails: as infeasible if memory is a reason, else as wrong input; one line."""
    short = InfeasibleError("opt-1.3b on t4-16 does not fit: gpu memory is short by 1 GiB")
    stub(monkeypatch, dict.fromkeys(ENGINES, short) | {"petals": InputError("no")})
    with pytest.raises(InfeasibleError) as error:
        compare_engines(question())
    assert str(error.value).count("gpu memory is short") == 1
    assert "petals: no" in str(error.value)
    line = run(*SMALL, code=1).stderr
    assert line.startswith("error: no engine can run opt-1.3b on t4-16; ")
    assert len(line.splitlines()) == 1
    stub(monkeypatch, {engine: InputError("too long") for engine in ENGINES})
    assert run(*SMALL, code=2).stderr == "error: no engine can run opt-1.3b on t4-16; too long\n"


def test_a_fault_of_the_planner_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a person can mend is a reason; an internal error ends the command."""
    stub(monkeypatch, {engine: PlannerError("internal error") for engine in ENGINES})
    with pytest.raises(PlannerError, match="internal error"):
        compare_engines(question())


def test_engines_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine is named before it is planned for."""
    stub(monkeypatch, dict.fromkeys(ENGINES, 1.0))
    told: list[str] = []
    listen: Callable[[str], None] = told.append
    compare_engines(question(), listen)
    assert set(told) >= ENGINES


def test_a_disk_too_small_in_earnest() -> None:
    """With little memory and disk some engines cannot, and Petals still can: exit code 0."""
    sets = ("--set", "tiers.disk.capacity=1 GB", "--set", "tiers.cpu.capacity=20 GiB")
    lengths = ("--prompt-len", "64", "--gen-len", "2")
    result = run("compare", "--hw", "t4-16", "--model", "opt-30b", *sets, *lengths)
    assert "does not fit" in result.stdout
    assert " servers " in line_of(result.stdout, "petals")
    run(
        "compare", "--hw", "t4-16", "--model", "opt-30b", "--set", "tiers.gpu.capacity=0.7 GiB", *sets, code=1
    )


# What engines store in 4 bits


@pytest.mark.parametrize(
    ("engine", "quantize", "lost"),
    [
        ("reference", "auto", []),
        ("flexgen", "both", []),
        ("accelerate", "auto", ["weights", "cache"]),
        ("accelerate", "cache", ["cache"]),
        ("accelerate", "none", []),
        ("zero-inference", "both", ["cache"]),
        ("zero-inference", "weights", []),
    ],
)
def test_what_an_engine_cannot_store(engine: str, quantize: Any, lost: list[str]) -> None:
    """Forms that an engine lacks are pinned to 16 bits, unless the user pinned them."""
    options = Options(quantize)
    assert lost_forms(options, engine) == lost
    pins = dict(limited(options, engine).pins.values)
    assert pins == {{"weights": "weight_bits", "cache": "cache_bits"}[name]: 16 for name in lost}
    pinned = limited(Options(quantize, pins=parse_pins(("cache_bits=8",))), engine)
    assert pinned.pins.get("cache_bits") == 8


def test_quantised_rows() -> None:
    """Accelerate stays in 16 bits and says so; ZeRO-Inference has 4-bit weights and a 16-bit cache."""
    asked = Question(load_profile("t4-16"), load_model("opt-6.7b"), Workload(gen_len=4), "both")
    rows = {engine: module._best(asked, engine) for engine in ("accelerate", "zero-inference", "flexgen")}
    bits = {engine: (row.weight_bits, row.cache_bits) for engine, row in rows.items()}
    assert bits == {"accelerate": (16, 16), "zero-inference": (4, 16), "flexgen": (4, 4)}
    assert rows["accelerate"].notes == ("It cannot store weights and the KV cache in 4 bits.",)
    assert rows["zero-inference"].notes == ("It cannot store the KV cache in 4 bits.",)
    assert rows["flexgen"].notes == ()


def test_diagonal_plans_say_how_often_they_admit() -> None:
    """The schedule of a diagonal plan has its stagger."""
    plan = make_plan(Request(problem_of("t4-16", "opt-1.3b", gen_len=8), Options(schedule="diagonal")))
    assert best_plan(plan).schedule == f"diagonal /{plan.policy.stagger}"


# Published runs


def test_published_pipelines_are_those_of_the_model_of_pipelines() -> None:
    """The file of Petals has the six published numbers; it is no suite of policies."""
    rows = [
        (row.model, row.servers, row.prompt_len, row.tok_s_per_gpu, row.fitted) for row in shipped_pipelines()
    ]
    assert rows == [
        (model, servers, prompt, speed, fitted) for model, servers, prompt, speed, _, fitted in PUBLISHED
    ]
    assert {(row.clients, row.batch, row.gen_len) for row in shipped_pipelines()} == {(6, 2, 32)}
    assert not any("petals" in name for name in shipped_suites())


def test_the_best_published_run_of_each_engine() -> None:
    """OPT-30B with 512 tokens: the best 16-bit row each, fastest first, with the same run simulated."""
    runs = published_runs(load_profile("t4-16"), "opt-30b", Workload(), Options())
    assert [(run.engine, run.tok_s) for run in runs] == [
        *(("flexgen", 7.32), ("petals", 2.84), ("accelerate", 0.62), ("zero-inference", 0.6))
    ]
    assert runs[0].id == "t2-30b-512"
    assert runs[0].policy == "3 x 48"
    assert runs[1].policy == "6 x 2, 4 servers"
    for run in runs:
        assert run.simulated_tok_s == pytest.approx(run.tok_s, rel=0.2)
    quantised = published_runs(load_profile("t4-16"), "opt-30b", Workload(), Options("auto"))
    assert quantised[0].tok_s == 8.38


@pytest.mark.parametrize(
    ("hardware", "model", "work", "sets"),
    [
        ("a100-80", "opt-30b", {}, ()),
        ("t4-16", "opt-13b", {}, ()),
        ("t4-16", "opt-30b", {"prompt_len": 500}, ()),
        ("t4-16", "opt-30b", {"gen_len": 31}, ()),
        ("t4-16", "opt-30b", {}, ("tiers.cpu.capacity=100 GiB",)),
    ],
)
def test_no_published_runs_of_anything_else(
    hardware: str, model: str, work: dict[str, int], sets: tuple[str, ...]
) -> None:
    """Another machine, model or length has no published runs, and neither has a changed machine."""
    assert published_runs(load_profile(hardware, sets), model, Workload(**work), Options()) == []


def test_published_ratios_by_hand() -> None:
    """The fastest published engine is so many times as fast as each: published, simulated, planned."""
    runs = tuple(
        Published(
            engine=engine,
            id=engine,
            policy="3 x 48",
            tok_s=speed,
            simulated_tok_s=other,
            fitted=False,
            source="-",
        )
        for engine, speed, other in (("flexgen", 8.0, 9.0), ("accelerate", 0.5, 0.6), ("petals", 2.0, None))
    )
    rows: tuple[Row, ...] = (
        best("reference", 20.0),
        best("flexgen", 10.0),
        Failed(engine="accelerate", reason="no", infeasible=True),
        best("petals", 4.0, gpus=4),
    )
    text = text_of(rows, runs).split("Published", 1)[1]
    assert " ".join(line_of(text, "flexgen  ").split()) == "flexgen 3 x 48 8 9 10 1 x 1 x 1 x"
    assert " ".join(line_of(text, "accelerate").split()) == "accelerate 3 x 48 0.5 0.6 - 16 x 15 x -"
    assert " ".join(line_of(text, "petals").split()) == "petals 3 x 48 2 - 4 4 x - 2.5 x"
    data = Comparison(question(), rows, runs).to_json()["published"]
    assert [each["best_tok_s"] for each in data] == [10.0, None, 4.0]
    assert "4 *" in line_of(text_of(rows), "petals")


def test_a_run_that_cannot_be_played_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is the published number only."""

    def fail(*_: object) -> None:
        raise InfeasibleError("no")

    monkeypatch.setattr("planner.compare_published.predict_row", fail)
    runs = published_runs(load_profile("t4-16"), "opt-30b", Workload(), Options())
    assert {run.engine for run in runs if run.simulated_tok_s is None} == {
        *("flexgen", "accelerate", "zero-inference")
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare",),
        ("compare", "--hw", "t5", "--model", "opt-125m"),
        ("compare", "--hw", "t4-16", "--model", "opt-125"),
        (*SMALL, "--prompt-len", "many"),
        (*SMALL, "--quantize", "3"),
        (*SMALL, "--set", "tiers.gpu.capacity"),
        (*SMALL, "--prompt-len", "5000"),
        (*SMALL, "--runtime", "flexgen"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...]) -> None:
    """One line on standard error, exit code 2."""
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_a_changed_copy_of_a_machine_is_another(tmp_path: Path) -> None:
    """It has the name, but no published runs."""
    changed = tmp_path / "mine.yaml"
    text = (Path(__file__).parent.parent / "hardware_profiles" / "t4-16.yaml").read_text()
    changed.write_text(text.replace("capacity: 15 GiB", "capacity: 14 GiB", 1))
    assert published_runs(load_profile(str(changed)), "opt-30b", Workload(), Options()) == []
