"""Wrong input of every kind: one clear line on standard error, exit code 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import cli
from simulator.profiles import find_profile

PROFILE = find_profile("t4-16").read_text()
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "torch_dtype": "bfloat16",
}
GOOD = ("plan", "--hw", "t4-16", "--model", "opt-125m")


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(cli, list(arguments))


def complaint(result: Result) -> str:
    """Give the one line that a wrong input must end with."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    assert not isinstance(result.exception, Exception)
    return lines[0]


PROFILES: dict[str, tuple[str, str]] = {
    "wrong unit": ("capacity: 15 GiB", "capacity: 15 GHz"),
    "bare number": ("capacity: 15 GiB", "capacity: 15"),
    "negative": ("capacity: 15 GiB", "capacity: -15 GiB"),
    "not a number": ("capacity: 15 GiB", "capacity: .nan"),
    "not a number with a unit": ("capacity: 15 GiB", "capacity: nan GiB"),
    "infinite": ("capacity: 15 GiB", "capacity: .inf"),
    "huge": ("capacity: 15 GiB", "capacity: 1e300 GiB"),
    "empty value": ("capacity: 15 GiB", "capacity:"),
    "list for a value": ("capacity: 15 GiB", "capacity: [15 GiB]"),
    "truth for a value": ("capacity: 15 GiB", "capacity: true"),
    "reserve above capacity": ("reserve: 0.6 GiB", "reserve: 60 GiB"),
    "typo in a key": ("capacity: 15 GiB", "capcity: 15 GiB"),
    "missing tier": ("  disk: {", "  dsk: {"),
    "unknown key": ("schema_version: 1", "schema_version: 1\ncolour: red"),
    "unknown version": ("schema_version: 1", "schema_version: 7"),
    "missing key": ("schema_version: 1\n", ""),
    "key given twice": ("schema_version: 1", "schema_version: 1\nschema_version: 1"),
    "refers to itself": ("schema_version: 1", "schema_version: &a [*a]"),
    "unknown source": ("source: gpu-datasheet", "source: hearsay"),
    "achieved above peak": ("float16: 65 TFLOP/s", "float16: 1 TFLOP/s"),
    "not YAML": ("schema_version: 1", "schema_version: [1"),
    "tab indentation": ("tiers:\n", "tiers:\n\t- x\n"),
    "empty name": ("name: t4-16", "name: ''"),
}


@pytest.mark.parametrize("case", PROFILES)
def test_a_malformed_profile(case: str, tmp_path: Path) -> None:
    """A fault in a profile is told in one line."""
    old, new = PROFILES[case]
    assert old in PROFILE
    path = tmp_path / "machine.yaml"
    path.write_text(PROFILE.replace(old, new, 1))
    complaint(run("plan", "--hw", str(path), "--model", "opt-125m"))


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b"- 1\n- 2\n", b"just words", b"{}", b"null", b"[" * 5000]
)
def test_a_file_that_is_no_profile(content: bytes, tmp_path: Path) -> None:
    """Empty files, binary files, lists, words and nests are no profiles."""
    path = tmp_path / "machine.yaml"
    path.write_bytes(content)
    assert "machine.yaml" in complaint(run("plan", "--hw", str(path), "--model", "opt-125m"))


CONFIGS: dict[str, dict[str, Any]] = {
    "unknown architecture": {"model_type": "mamba"},
    "no architecture": {"model_type": None},
    "negative": {"hidden_size": -64},
    "zero": {"num_hidden_layers": 0},
    "text for a number": {"hidden_size": "64"},
    "truth for a number": {"num_hidden_layers": True},
    "fraction for a count": {"num_hidden_layers": 2.5},
    "not a number": {"hidden_size": float("nan")},
    "huge": {"hidden_size": 10**30},
    "list": {"vocab_size": [100]},
    "heads that do not divide": {"num_key_value_heads": 3},
    "missing": {"vocab_size": None},
    "unknown type": {"torch_dtype": "float8"},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_malformed_config(case: str, tmp_path: Path) -> None:
    """A fault in a model's config is told in one line."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | CONFIGS[case]))
    complaint(run("plan", "--hw", "t4-16", "--model", str(tmp_path)))


@pytest.mark.parametrize("content", ["", "[]", "{", "nul", '{"a": 1}', "[" * 100000])
def test_a_file_that_is_no_config(content: str, tmp_path: Path) -> None:
    """Text that is not a JSON object of a known model is refused."""
    path = tmp_path / "config.json"
    path.write_text(content)
    complaint(run("plan", "--hw", "t4-16", "--model", str(path)))


OPTIONS: dict[str, tuple[str, ...]] = {
    "nothing required": ("plan",),
    "no model": ("plan", "--hw", "t4-16"),
    "unknown command": ("plna",),
    "unknown option": (*GOOD, "--colour", "red"),
    "option without value": (*GOOD, "--gen-len"),
    "unknown machine": ("plan", "--hw", "t5", "--model", "opt-125m"),
    "machine is a folder": ("plan", "--hw", ".", "--model", "opt-125m"),
    "unknown model": ("plan", "--hw", "t4-16", "--model", "opt-125"),
    "unknown runtime": (*GOOD, "--runtime", "vllm"),
    "unknown schedule": (*GOOD, "--schedule", "spiral"),
    "schedule the runtime lacks": (*GOOD, "--runtime", "flexgen", "--schedule", "diagonal"),
    "unknown quantisation": (*GOOD, "--quantize", "2"),
    "no prompt": (*GOOD, "--prompt-len", "0"),
    "negative prompt": (*GOOD, "--prompt-len", "-5"),
    "huge prompt": (*GOOD, "--prompt-len", str(10**30)),
    "text for tokens": (*GOOD, "--gen-len", "many"),
    "fraction of a token": (*GOOD, "--gen-len", "1.5"),
    "no prompts": (*GOOD, "--num-prompts", "0"),
    "latency without unit": (*GOOD, "--max-latency", "600"),
    "no latency": (*GOOD, "--max-latency", "0 s"),
    "negative latency": (*GOOD, "--max-latency", "-1 s"),
    "latency in bytes": (*GOOD, "--max-latency", "1 GB"),
    "set without value": (*GOOD, "--set", "tiers.gpu.capacity"),
    "set of nothing": (*GOOD, "--set", "=16 GiB"),
    "set of an unknown path": (*GOOD, "--set", "tiers.gpu.size=16 GiB"),
    "set of a group": (*GOOD, "--set", "tiers.gpu=16 GiB"),
    "set without unit": (*GOOD, "--set", "tiers.gpu.capacity=16"),
    "set beyond a value": (*GOOD, "--set", "tiers.gpu.capacity.x=16 GiB"),
    "fix without value": (*GOOD, "--fix", "gpu_batch"),
    "fix of an unknown variable": (*GOOD, "--fix", "batch=4"),
    "fix of nothing sensible": (*GOOD, "--fix", "gpu_batch=four"),
    "fix of zero": (*GOOD, "--fix", "gpu_batch=0"),
    "fix of a split that sums to 90": (*GOOD, "--fix", "weights=20/70/0"),
    "fix of two numbers": (*GOOD, "--fix", "cache=20/80"),
    "fix of five bits": (*GOOD, "--fix", "weight_bits=5"),
    "fix of a share above one": (*GOOD, "--fix", "cpu_attention=2"),
    "fix given twice": (*GOOD, "--fix", "gpu_batch=4", "--fix", "gpu_batch=8"),
    "sub-batch that does not divide": (*GOOD, "--fix", "gpu_batch=4", "--fix", "prompt_batch=3"),
    "groups that do not divide": (*GOOD, "--fix", "num_groups=3", "--fix", "stagger=1"),
    "stagger against the schedule": (*GOOD, "--schedule", "zigzag", "--fix", "stagger=1"),
    "plan into a folder": (*GOOD, "--out", "."),
    "plan into nowhere": (*GOOD, "--out", "no/such/folder/plan.json"),
    "commands for the project's own engine": (*GOOD, "--launch"),
    "files for the project's own engine": (*GOOD, "--launch-dir", "x"),
    "files into a file": (*GOOD, "--runtime", "flexgen", "--launch-dir", __file__),
    "files below a file": (*GOOD, "--runtime", "flexgen", "--launch-dir", f"{__file__}/x"),
    "files of a swarm that cannot be": (*GOOD, "--runtime", "petals", "--launch-dir", "x"),
    "schedule of a swarm": (*GOOD, "--runtime", "petals", "--schedule", "zigzag"),
    "pin of a swarm": (*GOOD, "--runtime", "petals", "--fix", "gpu_batch=4"),
    "quantised swarm": (*GOOD, "--runtime", "petals", "--quantize", "weights"),
    "swarm into a file": (*GOOD, "--runtime", "petals", "--out", "plan.json"),
    "latency of a swarm": (*GOOD, "--runtime", "petals", "--max-latency", "60 s"),
    "queue of a swarm": (*GOOD, "--runtime", "petals", "--num-prompts", "9"),
    "prompt too long for a swarm": (*GOOD, "--runtime", "petals", "--prompt-len", "9000"),
    "no plan": ("simulate", "no-such-plan.json"),
    "plan is a folder": ("simulate", "."),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option(case: str) -> None:
    """A wrong option or value is told in one line."""
    complaint(run(*OPTIONS[case]))


def test_a_broken_plan(tmp_path: Path) -> None:
    """A plan that was edited into nonsense is refused with the path of the fault."""
    path = tmp_path / "plan.json"
    assert run(*GOOD, "--out", str(path)).exit_code == 0
    plan = json.loads(path.read_text())
    for keys, value in (
        (("policy", "gpu_batch"), -1),
        (("policy", "weights", "gpu"), 2),
        (("layout", "grain"), "dust"),
        (("schema_version",), 99),
        (("predictions", "throughput_tok_s"), "fast"),
        (("layout", "weights"), {"gpu": 0.5, "cpu": 0.25, "disk": 0.25}),
    ):
        broken = json.loads(json.dumps(plan))
        node = broken
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        path.write_text(json.dumps(broken))
        assert f"plan.{keys[0]}" in complaint(run("simulate", str(path)))


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the paths of all values in nested data."""
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]
    return [path]


LEAVES = leaves(yaml.safe_load(PROFILE))
NONSENSE = st.one_of(
    st.integers(-10, 10**20),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8).map(lambda text: f"?{text}"),
)


@given(path=st.sampled_from([leaf for leaf in LEAVES if leaf[0] in ("tiers", "links")]), value=NONSENSE)
def test_nonsense_anywhere_in_a_profile(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any
) -> None:
    """Whatever stands where a quantity should, the command tells of it in one line."""
    data = yaml.safe_load(PROFILE)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file = tmp_path_factory.mktemp("profile") / "machine.yaml"
    file.write_text(yaml.safe_dump(data))
    assert "hardware" in complaint(run("plan", "--hw", str(file), "--model", "opt-125m"))


@given(text=st.text(max_size=20))
def test_any_text_as_a_pin(text: str) -> None:
    """No text after ``--fix`` crashes the command."""
    if "=" not in text or text.partition("=")[0].strip() not in ("gpu_batch", "prefetch"):
        complaint(run(*GOOD, f"--fix={text}"))
