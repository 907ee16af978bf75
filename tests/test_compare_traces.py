"""The command ``planner compare-traces``: what it prints and writes, and the file with both traces."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from planner.cli import cli
from simulator.errors import InputError
from simulator.trace import read_trace, to_chrome, write_pair, write_trace
from tests.test_trace import tiny_trace
from tests.test_trace_pair import MEASURED, PREDICTED, spans

# --- both in one file ---------------------------------------------------------------------------------------


def test_a_file_of_both(tmp_path):
    """Each trace is a process with a name and its own events, and reading the file as one is refused."""
    one, other = tiny_trace(), tiny_trace("flexgen", kind="measured")
    path = tmp_path / "both.json"
    write_pair(one, other, path)
    data = json.loads(path.read_text())
    names = [event for event in data["traceEvents"] if event["name"] == "process_name"]
    assert [(event["pid"], event["args"]["name"]) for event in names] == [(1, "predicted"), (2, "measured")]
    for process, trace in enumerate((one, other), start=1):
        events = [event for event in data["traceEvents"] if event["pid"] == process and event not in names]
        assert events == [event | {"pid": process} for event in to_chrome(trace)["traceEvents"]]
    assert data["otherData"]["measured.kind"] == "measured"
    with pytest.raises(
        InputError, match=r"both\.json: traceEvents: 2 processes, and a trace has one"
    ) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_trace_with_any_process_number_reads(tmp_path):
    """What counts is that there is one."""
    data = to_chrome(tiny_trace())
    events = [event | {"pid": 77} for event in data["traceEvents"]]
    (tmp_path / "trace.json").write_text(json.dumps(data | {"traceEvents": events}))
    assert read_trace(tmp_path / "trace.json") == tiny_trace()


# --- the command --------------------------------------------------------------------------------------------


def run(*arguments, code=0):
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Simulate a small plan on its machine, on one with half the link to the GPU, and with few passes."""
    folder = tmp_path_factory.mktemp("traces")
    plan = folder / "plan.json"
    fixed = ("gpu_batch=4", "num_groups=2", "weights=0/100/0", "cache=0/100/0")
    pins = [word for each in fixed for word in ("--fix", each)]
    run("plan", "--hw", "t4-16", "--model", "opt-1.3b", "--gen-len", "24", *pins, "--out", plan)
    slow = ("--set", "links.h2d.pinned.bandwidth=6 GB/s")
    for name, options in {"predicted": (), "slow": slow, "sampled": ("--passes", "8")}.items():
        run("simulate", plan, *options, "--trace", folder / f"{name}.json")
    return folder


def test_the_operation_that_is_off_comes_first(simulated):
    """With half the bandwidth to the GPU, loads of weights come first and take twice the time."""
    paths = simulated / "predicted.json", simulated / "slow.json"
    data = json.loads(run("compare-traces", *paths, "--format", "json").stdout)
    first, second = data["operations"][:2]
    assert (first["lane"], first["operation"]) == ("h2d", "load_weights")
    assert first["seconds"]["ratio"] == pytest.approx(2, rel=0.01)
    assert first["median"]["ratio"] == pytest.approx(2, rel=0.01)
    assert first["byte_rate"]["measured"] == pytest.approx(6e9, rel=0.01)
    assert (
        abs(second["seconds"]["measured"] - second["seconds"]["predicted"])
        < 0.01 * first["seconds"]["measured"]
    )
    lanes = {row["lane"]: row for row in data["lanes"]}
    assert lanes["gpu"]["seconds"]["ratio"] == pytest.approx(1)
    assert lanes["h2d"]["part"] == pytest.approx(1, rel=0.1)
    assert all(row["out_of_order"] is None for row in data["lanes"])
    assert [each["unmatched"]["tasks"] for each in data["traces"].values()] == [0, 0]
    assert data["written"] is None
    assert set(data["memory_high_water"]) == {"gpu", "cpu", "disk"}


def test_the_text(simulated):
    """People read both makespans, the operations, the lanes, memory and the order, on lines that fit."""
    out = simulated / "both.json"
    text = run("compare-traces", simulated / "predicted.json", simulated / "slow.json", "--out", out).stdout
    lines = text.splitlines()
    assert lines[0] == "predicted   opt-1.3b, t4-16, reference, zigzag"
    assert lines[1] == "measured    opt-1.3b, t4-16, reference, zigzag, a predicted trace"
    assert lines[2].startswith("makespan")
    table = lines[lines.index(next(line for line in lines if "─" in line)) + 1]
    assert table.split()[:2] == ["h2d", "load_weights"]
    assert "Every lane ran its tasks in the predicted order." in lines
    assert lines[-1] == f"written: {out} (open it at https://ui.perfetto.dev)"
    assert max(len(line) for line in lines[:-1]) <= 110
    assert "unmatched" not in text
    assert "\x1b[" not in text


def test_a_sampled_prediction(simulated):
    """Passes that were not played are told of, the others are compared, and their order is kept."""
    text = run("compare-traces", simulated / "sampled.json", simulated / "slow.json").stdout
    assert "tasks unmatched, in passes " in text
    assert "its makespan includes " in text
    assert "Every lane ran its tasks in the predicted order." in text


def test_what_is_out_of_order_is_told(tmp_path):
    """The text names lane and tasks."""
    swapped = replace(MEASURED, start=MEASURED.start[[2, 1, 0, 3, 4]], end=MEASURED.end[[2, 1, 0, 3, 4]])
    write_trace(PREDICTED, tmp_path / "one.json")
    write_trace(swapped, tmp_path / "other.json")
    text = " ".join(run("compare-traces", tmp_path / "one.json", tmp_path / "other.json").stdout.split())
    assert "h2d: load_weights of pass 0, layer 2, group 0 started before load_weights of pass 0" in text
    assert "broken" in text
    assert "predicted: 1 task unmatched, in pass 0: 1 store_activations; makespan with these 6 s" in text


def complaint(*arguments):
    """Give the one line that a wrong input ends with."""
    result = run("compare-traces", *arguments, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_wrong_inputs_are_told_in_one_line(tmp_path):
    """A missing file, no trace, two in one file, nothing in common, an output that cannot be."""
    one, other, both = (tmp_path / f"{name}.json" for name in ("one", "other", "both"))
    write_trace(PREDICTED, one)
    write_trace(spans(("head", 0, 1)), other)
    write_pair(PREDICTED, MEASURED, both)
    (tmp_path / "no-trace.json").write_text("{}")
    assert "missing.json: cannot be read" in complaint(one, tmp_path / "missing.json")
    assert "no-trace.json" in complaint(tmp_path / "no-trace.json", one)
    assert "2 processes" in complaint(both, one)
    assert "other.json: no task in common with " in complaint(one, other)
    assert "one of the traces that are compared" in complaint(one, one, "--out", one)
    assert "cannot be written" in complaint(one, one, "--out", tmp_path / "no" / "out.json")
    assert "Missing argument" in complaint(one)
