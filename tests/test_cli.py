"""The command line: what it prints and writes, its exit codes, and that planning needs no heavy library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner.cli import cli
from planner.plan import Plan, read_plan
from simulator.model_config import catalogue_names
from simulator.profiles import find_profile, shipped_profiles
from simulator.runtime import runtime_names

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("plan", "--hw", "t4-16", "--model", "opt-1.3b")
MAIN = ("plan", "--hw", "a100-80", "--model", "opt-175b")
HEAVY = ("torch", "pandas", "scipy", "matplotlib", "transformers", "safetensors", "executor")


def run(*arguments: str, code: int = 0) -> Result:
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == code, result.output
    return result


def planned(*arguments: str) -> Plan:
    """Plan, and read the JSON that is printed."""
    return Plan.model_validate_json(run(*arguments, "--format", "json").stdout)


def shell(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def test_the_report_has_what_people_ask_for() -> None:
    """The text names the machine, what to do, what to expect, memory, prices and what else was considered."""
    text = run(*MAIN).stdout
    for part in (
        "opt-175b on a100-80",
        "tok/s",
        "What to do",
        "What to expect",
        "certified ceiling",
        "How busy each lane is",
        "Memory",
        "What it would take to go faster",
        "What else was considered",
        "linear programs",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 110
    assert "\x1b[" not in text


def test_json_is_the_plan_file(tmp_path: Path) -> None:
    """What --format json prints is what --out writes, and it reads back."""
    path = tmp_path / "plan.json"
    result = run(*SMALL, "--format", "json", "--out", str(path))
    assert path.read_text(encoding="utf-8") == result.stdout
    assert read_plan(path) == Plan.model_validate_json(result.stdout)
    assert json.loads(result.stdout)["model"]["name"] == "opt-1.3b"


def test_out_says_where(tmp_path: Path) -> None:
    """With text output, the last line says which file was written."""
    path = tmp_path / "plan.json"
    assert run(*SMALL, "--out", str(path)).stdout.rstrip().endswith(f"written: {path}")
    assert path.exists()


def test_a_machine_by_name_or_by_file(tmp_path: Path) -> None:
    """``a100-80``, ``a100-80.yaml`` and a copy of the file are the same machine."""
    copy = tmp_path / "mine.yaml"
    shutil.copy(find_profile("a100-80"), copy)
    texts = {
        run("plan", "--hw", name, "--model", "opt-6.7b", "--format", "json").stdout
        for name in ("a100-80", "a100-80.yaml", str(copy))
    }
    assert len(texts) == 1


def test_a_model_by_name_or_by_file(tmp_path: Path) -> None:
    """A config.json of the same shape gives the same plan as the catalogue, but for the name."""
    spec = planned(*SMALL).model
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
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    other = planned("plan", "--hw", "t4-16", "--model", str(path))
    assert other.predictions == planned(*SMALL).predictions


def test_set_changes_just_that() -> None:
    """An override changes its figure, is noted in the plan, and leaves the rest as it was."""
    before, after = planned(*SMALL), planned(*SMALL, "--set", "tiers.cpu.capacity=100 GiB")
    assert after.hardware.overrides == ("tiers.cpu.capacity=100 GiB",)
    assert after.hardware.profile.tiers["cpu"].capacity == 100 * 2**30
    one, two = (each.hardware.profile.model_dump(mode="json") for each in (before, after))
    one["tiers"]["cpu"]["capacity"] = two["tiers"]["cpu"]["capacity"]
    assert one == two
    assert before.hardware.content_hash != after.hardware.content_hash


def test_overrides_and_pins_add_up() -> None:
    """Options that may be given several times are all applied."""
    plan = planned(
        *SMALL,
        *("--set", "tiers.gpu.capacity=14 GiB", "--set", "links.h2d.pinned.bandwidth=10 GB/s"),
        *("--fix", "gpu_batch=4", "--fix", "num_groups=3", "--fix", "activations=0/100/0"),
    )
    assert plan.hardware.profile.links.h2d.pinned.bandwidth == 10e9
    assert (plan.policy.gpu_batch, plan.policy.num_groups) == (4, 3)
    assert plan.policy.activations.cpu == 1.0


def test_the_workload_is_as_asked() -> None:
    """Lengths and the number of prompts reach the plan."""
    plan = planned(*SMALL, "--prompt-len", "100", "--gen-len", "7", "--num-prompts", "9")
    assert (plan.workload.prompt_len, plan.workload.gen_len, plan.workload.num_prompts) == (100, 7, 9)
    assert plan.policy.block < 9 + plan.policy.gpu_batch


def test_choices_of_form_and_schedule() -> None:
    """--quantize and --schedule limit what comes out; auto may do anything."""
    assert planned(*SMALL, "--quantize", "both").policy.weight_bits == 4
    assert planned(*SMALL, "--quantize", "cache").policy.cache_bits == 4
    assert planned(*SMALL, "--schedule", "zigzag").schedule in ("zigzag", "row")
    assert planned(*SMALL, "--schedule", "diagonal").schedule == "diagonal"
    assert planned(*SMALL, "--schedule", "row").policy.num_groups == 1
    speeds = [planned(*SMALL, "--quantize", each).predictions.throughput_tok_s for each in ("none", "auto")]
    assert speeds[1] >= speeds[0]


def test_a_latency_limit_with_a_unit() -> None:
    """--max-latency takes a time with a unit, and the plan keeps it."""
    plan = planned("plan", "--hw", "a100-80", "--model", "opt-30b", "--max-latency", "30 s")
    assert plan.predictions.latency_s <= 30


def test_infeasible_is_exit_code_1_and_the_remedy_works() -> None:
    """Too small a machine: one line with tier, amount and remedy, and with the remedy there is a plan."""
    command = ("plan", "--hw", "t4-16", "--model", "opt-175b", "--set")
    result = run(*command, "tiers.disk.capacity=1 GB", code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: opt-175b on t4-16 does not fit: disk memory is short by ")
    found = re.search(r"([\d.]+) GiB more disk memory", line)
    assert found is not None
    size = 1e9 + float(found[1]) * 2**30
    assert "tok/s" in run(*command, f"tiers.disk.capacity={size:.0f} B").stdout


@pytest.mark.parametrize("arguments", [("--help",), ("plan", "--help"), ("simulate", "-h"), ("--version",)])
def test_help_is_exit_code_0(arguments: tuple[str, ...]) -> None:
    """Help and version print to standard output and succeed."""
    result = run(*arguments)
    assert result.stdout
    assert result.stderr == ""


def test_lists() -> None:
    """Machines, models and engines that come along are listed, as text and as JSON."""
    for command, names in (("hardware", shipped_profiles()), ("models", catalogue_names())):
        text = run(command).stdout
        assert all(name in text for name in names)
        assert set(json.loads(run(command, "--format", "json").stdout)) == set(names)
    assert all(name in run("runtimes").stdout for name in runtime_names())


def test_a_plan_can_be_played(tmp_path: Path) -> None:
    """``planner simulate`` plays a plan file and finds the throughput that the plan predicts."""
    path, trace = tmp_path / "plan.json", tmp_path / "trace.json"
    plan = planned(
        *SMALL, "--out", str(path), "--gen-len", "4", "--fix", "gpu_batch=4", "--fix", "num_groups=2"
    )
    result = run("simulate", str(path), "--format", "json", "--trace", str(trace))
    again = json.loads(result.stdout)
    assert again["predictions"]["throughput_tok_s"] == pytest.approx(
        plan.predictions.throughput_tok_s, rel=0.02
    )
    assert json.loads(trace.read_text())["traceEvents"]


def launch_text(runtime: str, *more: str) -> str:
    """Plan for an engine, and give what it prints with and below the plan."""
    return run(*SMALL, "--runtime", runtime, *more).stdout


def test_what_is_typed_stands_below_the_plan() -> None:
    """Plans for others' engines end with commands, unwrapped; this project's own needs none."""
    text = launch_text("flexgen")
    plan, below = text.split("\nFlexGen: one run of a block\n")
    assert "What to do" in plan
    assert "python3 -m flexllmgen.flex_opt --model facebook/opt-1.3b" in below
    assert '    "facebook/opt-1.3b",' in launch_text("accelerate")
    assert 'Path("ds_config.json")' in launch_text("zero-inference")
    assert "\nds_config.json:\n{" in launch_text("zero-inference")
    for name in ("FlexGen", "Accelerate", "ZeRO", "Petals"):
        assert f"{name}:" not in launch_text("reference")


def test_what_is_typed_is_not_wrapped() -> None:
    """A note is one line, however long; brackets and numbers come as they are."""
    text = launch_text("zero-inference", "--launch", "--fix", "weights=0/0/100")
    assert "nvme_path" in text
    assert max(map(len, text.splitlines())) > 80
    assert "model = deepspeed.initialize(model=model, config=config)[0].module.eval()" in text
    assert "\x1b[" not in text


def test_json_of_a_plan_for_another_engine_reads_back(tmp_path: Path) -> None:
    """The plan's JSON has no key for commands, which come with an option of their own."""
    path = tmp_path / "plan.json"
    printed = run(*SMALL, "--runtime", "flexgen", "--format", "json", "--out", str(path)).stdout
    assert path.read_text(encoding="utf-8") == printed
    assert read_plan(path).runtime.name == "flexgen"
    launch = json.loads(run(*SMALL, "--runtime", "flexgen", "--launch", "--format", "json").stdout)
    assert set(launch) == {"engine", "title", "text", "file", "files", "notes"}
    assert launch["text"] in run(*SMALL, "--runtime", "flexgen", "--launch").stdout


def test_launch_dir(tmp_path: Path) -> None:
    """The text and the files that it reads are written to a folder that need not exist, and are named."""
    for runtime, names in (
        ("flexgen", ["run.sh"]),
        ("accelerate", ["snippet.py"]),
        ("zero-inference", ["ds_config.json", "run.py"]),
    ):
        folder = tmp_path / "new" / runtime
        text = launch_text(runtime, "--launch-dir", str(folder), "--out", str(tmp_path / "plan.json"))
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in names:
            assert f"written: {folder / name}" in text
            content = (folder / name).read_text().removeprefix("#!/bin/sh\n")
            assert content in text
        assert text.rstrip().endswith(f"written: {tmp_path / 'plan.json'}")
    assert (tmp_path / "new" / "flexgen" / "run.sh").stat().st_mode & 0o100


def test_launch_dir_says_what_the_engine_cannot(tmp_path: Path) -> None:
    """An engine that cannot run the plan leaves a note below it, and nothing to write."""
    command = ("plan", "--hw", "t4-16", "--model", "llama-3.2-1b", "--runtime", "flexgen")
    text = run(*command).stdout
    assert "What to do" in text
    assert "its code has OPT models only" in text
    result = run(*command, "--launch-dir", str(tmp_path / "new"), code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: --launch-dir: there is nothing to write; FlexGen cannot run")
    assert not (tmp_path / "new").exists()


PETALS = ("plan", "--hw", "t4-16", "--model", "llama-2-70b", "--runtime", "petals")


def test_a_swarm(tmp_path: Path) -> None:
    """A swarm has no plan of placement: servers, clients, throughput and commands are printed."""
    folder = tmp_path / "swarm"
    text = run(*PETALS, "--launch-dir", str(folder)).stdout
    for part in (
        *("llama-2-70b on a swarm of t4-16", "tok/s per GPU", "in all", "servers", "clients x", "latency"),
        *("GPUs busy", "network busy", "--num_blocks", "--initial_peers ADDRESS", "at once is reserved"),
    ):
        assert part in text
    assert (folder / "command.txt").read_text() in text
    data = json.loads(run(*PETALS, "--format", "json").stdout)
    assert data["throughput_tok_s"] == pytest.approx(data["per_gpu_tok_s"] * data["servers"])
    assert data["latency_s"] == pytest.approx(data["prefill_s"] + data["decode_s"])
    assert data["gpu_memory"]["peak"] <= data["gpu_memory"]["capacity"]
    assert f"--num_blocks {data['blocks_per_server']}" in data["launch"]["text"]
    assert json.loads(run(*PETALS, "--launch", "--format", "json").stdout) == data["launch"]
    assert run(*PETALS, "--launch").stdout.startswith("Petals: ")


def test_a_swarm_that_does_not_fit_is_exit_code_1() -> None:
    """Not even one block in a GPU: one line."""
    result = run(*PETALS, "--set", "tiers.gpu.capacity=1 GiB", code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: gpu: one block of llama-2-70b")


def test_debug_shows_the_traceback() -> None:
    """--debug adds the traceback of an error for people."""
    result = run("--debug", *SMALL, "--set", "nonsense=1", code=2)
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_planning_imports_nothing_heavy() -> None:
    """With torch, pandas, scipy, matplotlib and the executor blocked, ``planner plan`` works."""
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
from planner.cli import cli
try:
    cli.main(["plan", "--hw", "t4-16", "--model", "opt-125m"])
finally:
    loaded = sorted(name for name in {HEAVY!r} if name in sys.modules)
    print("loaded:", loaded, file=sys.stderr)
"""
    done = shell(code)
    assert done.returncode == 0, done.stderr
    assert "What to do" in done.stdout
    assert "loaded: []" in done.stderr


def test_starting_is_light() -> None:
    """Help loads no optional package; numba itself looks whether there is a scipy."""
    code = """
import sys
from planner.cli import cli
try:
    cli.main(["--help"])
finally:
    print("loaded:", [name for name in ("torch", "pandas", "matplotlib", "executor") if name in sys.modules])
"""
    done = shell(code)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("loaded: []")


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    """A real process ends with 0, 1 and 2, and writes errors to standard error only."""
    base = [sys.executable, "-m", "planner.cli", *SMALL]

    def process(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*base, *more], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    good, small, bad = process(), process("--set", "tiers.gpu.capacity=0.7 GiB"), process("--gen-len", "x")
    assert [each.returncode for each in (good, small, bad)] == [0, 1, 2]
    assert good.stderr == ""
    for each in (small, bad):
        assert each.stdout == ""
        assert len(each.stderr.splitlines()) == 1
        assert each.stderr.startswith("error: ")
    assert "memory is short by" in small.stderr


def test_a_closed_pipe_is_no_crash() -> None:
    """Output cut off by ``head`` leaves no traceback."""
    command = f"{sys.executable} -m planner.cli models | head -n 1"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, cwd=ROOT)  # noqa: S602
    assert "Traceback" not in done.stderr
