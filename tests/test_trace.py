"""Traces: spans and memory, written as Chrome's trace events and read back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.profiles import load_profile
from simulator.simulate import Simulation, play, rates_of
from simulator.trace import Trace, from_simulation, read_trace, to_chrome, write_trace
from simulator.trace_memory import MemoryUse
from simulator.units import GIB
from tests.strategies import layouts, machines
from tests.test_schedule import tiny_layout


def tiny_trace(runtime="reference", **metadata):
    """Play the tiny schedule on the shipped T4."""
    placed = tiny_layout(runtime)
    simulation = play(generate(placed), rates_of(placed, load_profile("t4-16")))
    return from_simulation(simulation, placed, metadata)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write one trace; give its path and content."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    write_trace(tiny_trace(), path)
    return path, json.loads(path.read_text())


@settings(max_examples=30)
@given(layouts(), machines(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_a_trace_reads_back_equal(tmp_path_factory, placed, hardware, metadata):
    """Law 10: spans, memory and metadata survive the file, to the last bit."""
    trace = from_simulation(play(generate(placed, 3), rates_of(placed, hardware)), placed, metadata)
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    write_trace(trace, path)
    again = read_trace(path)
    assert again == trace
    assert [column.dtype for column in vars(again).values() if isinstance(column, np.ndarray)] == [
        column.dtype for column in vars(trace).values() if isinstance(column, np.ndarray)
    ]


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    """Two runs with the same inputs write identical files."""
    for name in ("one", "two"):
        write_trace(tiny_trace(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_spans_are_the_simulation_to_the_nanosecond():
    """A predicted trace is the schedule with its times."""
    placed = tiny_layout()
    simulation = play(generate(placed), rates_of(placed, load_profile("t4-16")))
    trace = from_simulation(simulation, placed, {"hardware": "t4-16"})
    schedule = simulation.schedule
    assert len(trace) == len(schedule)
    np.testing.assert_allclose(trace.start, simulation.start, atol=0.51e-9, rtol=0)
    np.testing.assert_allclose(trace.end, simulation.end, atol=0.51e-9, rtol=0)
    assert trace.names == [task.operation for task in schedule.tasks()]
    assert trace.bytes.tolist() == schedule.bytes.tolist()
    assert trace.metadata == {
        "kind": "predicted",
        "model": "tiny",
        "runtime": "reference",
        "hardware": "t4-16",
    }


def test_passes_are_numbered_as_in_the_run():
    """Of a sampled run the trace names the passes themselves, not their rank among those played."""
    placed = tiny_layout()
    workload = placed.workload.model_copy(update={"gen_len": 30})
    placed = replace(placed, workload=workload)
    simulation = play(generate(placed, 8), rates_of(placed, load_profile("t4-16")))
    numbers = {one.number for one in simulation.schedule.window.passes}
    assert set(from_simulation(simulation, placed).pass_number.tolist()) == numbers
    assert max(numbers) == 29


def test_chrome_events(written):
    """Lanes are named threads, spans are complete events in microseconds, memory is counters in GiB."""
    _, data = written
    trace = tiny_trace()
    events = data["traceEvents"]
    assert to_chrome(trace) == data
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == list(LANES)
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(trace)
    first = spans[0]
    assert first["name"] == "read_weights"
    assert LANES[first["tid"] - 1] == "disk_read"
    assert first["dur"] == pytest.approx((trace.end[0] - trace.start[0]) * 1e6)
    work = {"bytes": trace.bytes[0], "flops": 0, "kernels": trace.kernels[0], "steps": 0, "blocks": 0}
    assert first["args"] == {"pass": 0, "layer": 1, "group": 0, **work}
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {f"{use.tier}: {use.name}" for use in trace.memory}


def test_memory_by_hand():
    """A slot is held from its taker's start to its freer's end; what stays is there all the time."""
    placed = tiny_layout()
    schedule = generate(placed)
    seconds = np.arange(len(schedule), dtype=float)  # task n runs from n to n + 1
    simulation = Simulation(schedule, np.ones(len(schedule)), seconds, seconds + 1)
    uses = {(use.tier, use.name): use for use in from_simulation(simulation, placed).memory}
    items = {item.name: item for item in placed.items()}
    size = float(items["cache_writing"].form @ placed.placement)
    use = uses["cpu", "cache_writing"]
    stores, writes = (np.nonzero(schedule.where(name))[0] for name in ("store_cache", "write_cache"))
    assert use.bytes[0] == 0
    assert use.at(np.array([stores[0], writes[0], writes[0] + 1])).tolist() == [size, size, 0]
    assert uses["cpu", "model weights"].bytes.tolist() == [placed.layer_bytes[:, 1].sum()]
    cache = uses["disk", "KV cache"]
    token = 2 * 16 * 2 * 2 / 2  # one layer, half of 2 sequences
    assert cache.bytes[1] == pytest.approx(16 * token)  # page of 16 for 8 prompt tokens
    assert cache.bytes[-1] == 0  # both groups are done


def test_a_steady_window_starts_with_what_is_in_flight():
    """By hand, pages of one token: 4 passes a life, a cohort every 2, each of one group of 2 sequences.

    The window starts and ends with a pass at positions 0 and 2. Before it, only the elder cohort has a
    cache, of 8 + 1 tokens; after it, the two have 8 and 8 + 2. The most are 8 + 1 and 8 + 3, one pass later.
    """
    placed = tiny_layout(stagger=2)
    runtime = placed.runtime.model_copy(update={"page_tokens": 1})
    placed = replace(placed, runtime=runtime, workload=placed.workload.model_copy(update={"gen_len": 4}))
    simulation = play(generate(placed), rates_of(placed, load_profile("t4-16")))
    passes = simulation.schedule.window.passes
    assert [[t for _, t in one.cohorts] for one in (passes[0], passes[-1])] == [[0, 2], [0, 2]]
    token = 2 * 64 / 2  # two layers of 64 B, half of them on each of CPU and disk
    caches = [use for use in from_simulation(simulation, placed).memory if use.name == "KV cache"]
    assert [use.tier for use in caches] == ["cpu", "disk"]
    for use in caches:
        assert use.bytes[[0, -1]].tolist() == [2 * 9 * token, 2 * (8 + 10) * token]
        assert use.bytes.max() == 2 * (9 + 11) * token


def test_steps():
    """Between two steps the earlier one holds; before the first there is nothing."""
    use = MemoryUse("gpu", "cache", np.array([1.0, 2.0]), np.array([5.0, 0.0]))
    assert use.at(np.array([0.5, 1.0, 1.9, 2.0, 9.0])).tolist() == [0, 5, 5, 0, 0]


def test_high_water_adds_uses_of_a_tier():
    """The high-water mark is the largest sum at one time, not the sum of largest values."""
    one = MemoryUse("gpu", "a", np.array([0.0, 1.0]), np.array([4.0, 1.0]))
    two = MemoryUse("gpu", "b", np.array([0.0, 1.0]), np.array([1.0, 3.0]))
    trace = replace(tiny_trace(), memory=(one, two))
    assert trace.high_water() == {"gpu": 5.0, "cpu": 0.0, "disk": 0.0}


def test_traces_compare_by_content():
    """Equal content is equal; any other column, memory or metadata is not."""
    trace = tiny_trace()
    assert trace == tiny_trace()
    assert trace != tiny_trace(hardware="t4-16")
    assert trace != replace(trace, bytes=trace.bytes + 1)
    assert trace != replace(trace, memory=trace.memory[1:])
    assert trace != "trace"
    assert trace.memory[0] != "memory"


def test_an_empty_trace_reads_back(tmp_path):
    """A measured run that was stopped at once is a trace too."""
    nothing = np.zeros(0)
    codes, places = nothing.astype(np.int8), nothing.astype(np.int32)
    work = [nothing] * 5
    trace = Trace(codes, codes, nothing, nothing, places, places, places, *work)
    write_trace(trace, tmp_path / "trace.json")
    assert read_trace(tmp_path / "trace.json") == trace


SPAN = {"ph": "X", "pid": 1, "tid": 1, "name": "qkv", "ts": 0.0, "dur": 1.0}
ARGS = {"pass": 0, "layer": 1, "group": 0, "bytes": 1.0, "flops": 1.0, "kernels": 1, "steps": 0, "blocks": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "the file is empty"),
        ("[1]", "the file is a list"),
        ('{"otherData": {}}', "traceEvents: expected a list"),
        ({"otherData": [], "traceEvents": []}, "otherData: expected texts"),
        ({"otherData": {"a": 1}, "traceEvents": []}, "otherData: expected texts"),
        ({"traceEvents": [3]}, r"traceEvents\.0: "),
        ({"traceEvents": [{"name": "qkv"}]}, r"traceEvents\.0: 'ph' is missing"),
        ({"traceEvents": [{"ph": "B"}]}, r"traceEvents\.0: unknown kind 'B'"),
        ({"traceEvents": [SPAN | {"args": ARGS}, SPAN]}, r"traceEvents\.1: 'args' is missing"),
        ({"traceEvents": [SPAN | {"args": {}}]}, r"traceEvents\.0: 'pass' is missing"),
        ({"traceEvents": [SPAN | {"args": ARGS, "name": "qvk"}]}, "unknown operation 'qvk'"),
        ({"traceEvents": [SPAN | {"args": ARGS, "name": []}]}, r"traceEvents\.0: "),
        ({"traceEvents": [SPAN | {"args": ARGS, "tid": 7}]}, "unknown lane 7"),
        ({"traceEvents": [SPAN | {"args": ARGS, "tid": "gpu"}]}, r"traceEvents\.0: "),
        ({"traceEvents": [SPAN | {"args": ARGS, "ts": "now"}]}, "expected a number of 0 or more; got 'now'"),
        ({"traceEvents": [SPAN | {"args": ARGS, "ts": None}]}, "expected a number of 0 or more; got None"),
        (
            {"traceEvents": [SPAN | {"args": ARGS, "ts": float("nan")}]},
            "expected a number of 0 or more; got nan",
        ),
        ({"traceEvents": [SPAN | {"args": ARGS, "dur": -1}]}, "expected a number of 0 or more; got -1"),
        ({"traceEvents": [SPAN | {"args": ARGS, "dur": True}]}, "expected a number of 0 or more; got True"),
        ({"traceEvents": [SPAN | {"args": ARGS | {"layer": 1e99}}]}, r"traceEvents\.0: "),
        ({"traceEvents": [SPAN | {"args": ARGS | {"group": 0.5}}]}, r"traceEvents\.0: "),
        ({"traceEvents": [{"ph": "C", "name": "ram: x", "ts": 0, "args": {"GiB": 1}}]}, "unknown counter"),
        ({"traceEvents": [{"ph": "C", "name": "gpu: x", "ts": 0, "args": {}}]}, "'GiB' is missing"),
    ],
)
def test_malformed_files_are_refused(tmp_path, content, message):
    """What is no trace raises, in one line that names file and event."""
    path = tmp_path / "trace.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    """The message names the path."""
    with pytest.raises(InputError, match=r"no\.json: cannot be read"):
        read_trace(tmp_path / "no.json")


@settings(max_examples=60)
@given(st.data())
def test_any_change_of_a_file_reads_or_is_refused(tmp_path_factory, data):
    """A file with one value replaced is read or refused in one line, never a traceback."""
    trace = tiny_trace()
    content = to_chrome(trace)
    events = content["traceEvents"]
    event = dict(events[data.draw(st.integers(0, len(events) - 1))])
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]), st.just({})
    )
    event[data.draw(st.sampled_from(sorted(event)))] = data.draw(junk)
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    path.write_text(json.dumps(content | {"traceEvents": [*events[:20], event]}))
    try:
        assert isinstance(read_trace(path), Trace)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_memory_is_in_gib_and_exact(written):
    """Counters are bytes over 2^30, which divides without rounding."""
    path, data = written
    trace = read_trace(path)
    counters = [event for event in data["traceEvents"] if event["ph"] == "C"]
    sizes = np.concatenate([use.bytes for use in trace.memory])
    assert [event["args"]["GiB"] * GIB for event in counters] == sizes.tolist()
