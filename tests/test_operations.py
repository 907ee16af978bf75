"""Measured operations: they go before other rates for the engine that was measured, and for no other."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.ceiling import ceiling
from planner.choices import Options
from planner.evaluate import evaluate
from planner.make_plan import Request, make_plan
from planner.problem import Outer, Problem
from planner.program import Program
from planner.search import search
from simulator.cost import BEGINS, Rates
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.kernels import Roofline
from simulator.layout import Placed
from simulator.model_config import load_model
from simulator.operations import OP, OPERATIONS, Operation
from simulator.profiles import decode_profile, load_profile, override_profile
from simulator.runtime import Runtime, load_runtime, runtime_names
from simulator.schema import parse_yaml, read_yaml
from simulator.simulate import simulate
from simulator.units import BYTE_RATE, DURATION, FLOP_RATE
from simulator.workload import Workload
from tests.problems import cases, problems, unit, with_memory
from tests.strategies import layouts, machines

PAGE = Path(__file__).parents[1] / "docs" / "hardware-profiles.md"
MACHINE = "a100-80"
BEFORE = load_profile(MACHINE)
KERNELS = [each for each in OPERATIONS if each.cost in ("matmul", "attention", "prompt_attention")]
TRANSFERS = [each for each in OPERATIONS if each.cost != "none" and each not in KERNELS]
COPIES = [each for each in TRANSFERS if each.cost == "copy"]
CONVERSIONS = [each for each in TRANSFERS if each.cost != "copy"]
OTHERS = sorted(set(runtime_names()) - {"reference"})
SLACK = 1 + 1e-6
LOAD = OPERATIONS[OP["load_weights"]]

factors = st.floats(0.01, 1.0)
times = st.floats(0.0, 1e-3)
#: FLOPs, bytes, kernels, steps, blocks.
works = st.tuples(
    st.floats(0.0, 1e15), st.floats(1.0, 1e12), st.integers(1, 100), st.integers(0, 1000), st.integers(0, 500)
)


@cache
def engine(name: str) -> Runtime:
    """Read an engine, once."""
    return load_runtime(name)


def plain(profile: HardwareProfile = BEFORE) -> dict[str, Any]:
    """Give a machine as plain data that may be changed."""
    return profile.model_dump(mode="json", exclude_none=True)


def engine_of(operation: Operation) -> str:
    """Name the engine that does an operation's kernels and conversions."""
    return "cpu" if operation.lane == "cpu" else "gpu"


def dtype_of(profile: HardwareProfile, operation: Operation) -> str:
    """Name the type that a 16-bit model is computed in."""
    return profile.engines[engine_of(operation)].compute_dtype("float16")  # type: ignore[index]


def link_peak(profile: HardwareProfile, operation: Operation) -> float:
    """Give the physical limit of a copy or conversion. [B/s]"""
    if operation.cost != "copy":
        return profile.engines[engine_of(operation)].peak.memory_bandwidth  # type: ignore[index]
    return float(getattr(profile.links, operation.lane).peak)


@st.composite
def kernels(draw: st.DrawFn, profile: HardwareProfile, operation: Operation) -> dict[str, Any]:
    """Draw a measured kernel below the peaks of its engine."""
    peak = profile.engines[engine_of(operation)].peak  # type: ignore[index]
    flops = peak.flops[dtype_of(profile, operation)]  # type: ignore[index]
    data = {
        "flops": FLOP_RATE.format(flops * draw(factors)),
        "bandwidth": BYTE_RATE.format(peak.memory_bandwidth * draw(factors)),
        "latency": DURATION.format(draw(times)),
        "sharpness": draw(st.floats(1.0, 64.0)),
        "source": "drawn",
    }
    return data | draw(st.sampled_from([{}, {"tail": "20 ns", "split": 64.0}, {"grain": "2 kB"}]))


@st.composite
def transfers(draw: st.DrawFn, profile: HardwareProfile, operation: Operation) -> dict[str, Any]:
    """Draw a measured copy or conversion below its peak."""
    return {
        "bandwidth": BYTE_RATE.format(link_peak(profile, operation) * draw(factors)),
        "latency": DURATION.format(draw(times)),
        "piece": DURATION.format(draw(times)),
        "source": "drawn",
    }


@st.composite
def measured(draw: st.DrawFn, profile: HardwareProfile, runtime: str) -> HardwareProfile:
    """Add drawn operations to a machine, and draw whether its memory is one."""
    data, found = plain(profile), {"runtime": runtime, "kernels": {}, "transfers": {}}
    lists: dict[str, Any] = found  # type: ignore[assignment]
    for operation in draw(st.lists(st.sampled_from(KERNELS), unique=True)):
        of_type = lists["kernels"].setdefault(dtype_of(profile, operation), {})
        of_type[operation.name] = draw(kernels(profile, operation))
    for operation in draw(st.lists(st.sampled_from(TRANSFERS), unique=True)):
        lists["transfers"][operation.name] = draw(transfers(profile, operation))
    data |= {"operations": lists, "unified_memory": draw(st.booleans())}
    data["sources"] |= {"drawn": {"kind": "assumed", "title": "drawn"}}
    return decode_profile(data)


def with_operations(profile: HardwareProfile, **lists: Any) -> HardwareProfile:
    """Add operations of the reference engine."""
    data = plain(profile)
    data["operations"] = {"runtime": "reference", **lists}
    data["sources"] |= {"drawn": {"kind": "assumed", "title": "drawn"}}
    return decode_profile(data)


def seconds(profile: HardwareProfile, runtime: str, operation: Operation, work: Any, **options: Any) -> float:
    """Give the time of one task. [s]"""
    rates = Rates(profile, engine(runtime), "float16", **options)
    flops, bytes_, *rest = (np.array([float(each)]) for each in work)
    return float(rates.seconds(operation, flops, bytes_, *rest)[0])


# --- an operation that was measured -------------------------------------------------------------------------


@given(st.data(), st.sampled_from(KERNELS), works)
def test_a_measured_kernel_has_its_own_roofline(data: st.DataObject, operation: Operation, work: Any) -> None:
    """The engine that was measured computes it at the measured constants; no other task's time changes."""
    kernel = data.draw(kernels(BEFORE, operation))
    after = with_operations(BEFORE, kernels={dtype_of(BEFORE, operation): {operation.name: kernel}})
    flops, bytes_, count, steps, blocks = work
    alone = Roofline.model_validate(kernel).seconds(flops, bytes_, count, steps / count, blocks)
    assert seconds(after, "reference", operation, work) == pytest.approx(float(alone))
    _nothing_else_changes(after, operation, work)


@given(st.data(), st.sampled_from(COPIES), works, st.booleans())
def test_a_measured_copy_has_latency_and_pieces(
    data: st.DataObject, operation: Operation, work: Any, pinned: bool
) -> None:
    """Copies times latency, pieces times piece, bytes over bandwidth, whatever memory is pinned."""
    found = data.draw(transfers(BEFORE, operation))
    after = with_operations(BEFORE, transfers={operation.name: found})
    _, bytes_, count, _, pieces = work
    expected = count * DURATION.parse(found["latency"]) + pieces * DURATION.parse(found["piece"])
    expected += bytes_ / BYTE_RATE.parse(found["bandwidth"])
    assert seconds(after, "reference", operation, work, pinned=pinned) == pytest.approx(expected)
    _nothing_else_changes(after, operation, work)


@given(st.data(), st.sampled_from(CONVERSIONS), works)
def test_a_measured_conversion_has_a_latency(data: st.DataObject, operation: Operation, work: Any) -> None:
    """Others are bytes over rate; a measured one costs its latency too, and its rate is what is reported."""
    found = data.draw(transfers(BEFORE, operation))
    after = with_operations(BEFORE, transfers={operation.name: found})
    _, bytes_, count, _, pieces = work
    rate = BYTE_RATE.parse(found["bandwidth"])
    expected = bytes_ / rate + count * DURATION.parse(found["latency"])
    expected += pieces * DURATION.parse(found["piece"])
    assert seconds(after, "reference", operation, work) == pytest.approx(expected)
    assert Rates(after, engine("reference")).conversion(operation) == rate
    _nothing_else_changes(after, operation, work)


def _nothing_else_changes(after: HardwareProfile, operation: Operation, work: Any) -> None:
    """Check that other operations, and all of other engines, take as long as without the measurement."""
    for each in OPERATIONS:
        for runtime in ("reference", *OTHERS):
            if runtime == "reference" and each == operation:
                continue
            assert seconds(after, runtime, each, work) == seconds(BEFORE, runtime, each, work)


def test_a_kernel_is_measured_in_one_type() -> None:
    """A model that is computed in another type goes by the rates of hardware."""
    kernel = {"flops": "1 TFLOP/s", "bandwidth": "100 GB/s", "source": "drawn"}
    after = with_operations(BEFORE, kernels={"bfloat16": {"mlp": kernel}})
    mlp, work = OPERATIONS[OP["mlp"]], (1e12, 1e9, 1, 0, 0)
    assert seconds(after, "reference", mlp, work) == seconds(BEFORE, "reference", mlp, work)
    rates = Rates(after, engine("reference"), "bfloat16")
    assert rates.roofline(mlp) == Roofline.model_validate(kernel)


def test_the_cell_overhead_stays() -> None:
    """What an engine's own code costs is not part of its kernels, so it is added to measured ones, too."""
    data = plain()
    kernel = {"flops": "1 TFLOP/s", "bandwidth": "100 GB/s", "latency": "7 us", "source": "fit"}
    data["operations"] = {"runtime": "flexgen", "kernels": {"float16": {"qkv": kernel}}}
    assert "qkv" in BEGINS["half"]
    cell = engine("flexgen").overheads.cell
    assert cell > 0.0
    work = (0.0, 0.0, 2, 0, 0)
    assert seconds(decode_profile(data), "flexgen", OPERATIONS[OP["qkv"]], work) == pytest.approx(
        14e-6 + cell
    )


# --- one memory ---------------------------------------------------------------------------------------------


@given(st.sampled_from(OPERATIONS), works, st.sampled_from(runtime_names()), st.booleans())
@example(LOAD, (0.0, 1e9, 3, 0, 0), "reference", True)
def test_in_one_memory_layers_are_handed_over(
    operation: Operation, work: Any, runtime: str, pinned: bool
) -> None:
    """Loads of weights of an engine that hands over are free of time and of traffic; all else stays."""
    after = override_profile(BEFORE, ("unified_memory=true",))
    took = seconds(after, runtime, operation, work, pinned=pinned)
    rates = [Rates(each, engine(runtime), pinned=pinned) for each in (BEFORE, after)]
    dram, moved = BEFORE.capacities["dram"], np.array([work[1]])
    drawn = [each.draw(dram, operation, moved, np.array([1.0]))[0] for each in rates]
    if runtime == "reference" and operation == LOAD:
        assert rates[1].hands_over(operation)
        assert took == drawn[1] == 0.0
        assert math.isinf(rates[1].copy(operation).bandwidth)
    else:
        assert not rates[1].hands_over(operation)
        assert took == seconds(BEFORE, runtime, operation, work, pinned=pinned)
        assert drawn[0] == drawn[1]


def test_handing_over_costs_its_measured_latency() -> None:
    """Each tensor that is handed over costs the latency, its bytes nothing, however slow the copy was."""
    data = plain()
    slow = {"bandwidth": "1 GB/s", "latency": "5 us", "piece": "1 s", "source": "fit"}
    data |= {"unified_memory": True, "operations": {"runtime": "reference"}}
    data["operations"]["transfers"] = {"load_weights": slow}
    assert seconds(decode_profile(data), "reference", LOAD, (0.0, 1e12, 4, 0, 9)) == pytest.approx(20e-6)


# --- plans on such machines ---------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data(), layouts(), machines())
def test_simulations_are_below_the_ceiling(
    data: st.DataObject, placed: Placed, machine: HardwareProfile
) -> None:
    """Any layout on any measured machine that just holds it: simulated <= ceiling, and no peak is beaten."""
    used = {tier: sum(uses.values()) for tier, uses in placed.peak_memory().items()}
    hardware = data.draw(measured(with_memory(machine, **used), placed.runtime.name))
    problem = Problem(hardware, placed.model, placed.workload, placed.runtime)
    prediction, _ = simulate(placed, hardware, None)
    top = ceiling(problem, [placed.shape]).throughput_tok_s
    assert prediction.throughput_tok_s <= top * SLACK


@given(st.data(), cases(), st.integers(1, 6))
def test_programs_are_below_the_ceiling(
    data: st.DataObject, case: tuple[Problem, Outer], groups: int
) -> None:
    """With the block open or not, what the program answers for a measured machine is below its ceiling."""
    problem, outer = case
    hardware = data.draw(measured(problem.hardware, problem.runtime.name))
    problem = replace(problem, hardware=hardware)
    top = ceiling(problem, [outer.shape]).throughput_tok_s
    for block in (None, groups * unit(problem, outer)):
        solution = Program(problem, outer, block).solve()
        assert solution is None or solution.throughput <= top * SLACK


@settings(max_examples=20)
@given(st.data(), problems(finite=None))
def test_simulations_are_below_the_program(data: st.DataObject, problem: Problem) -> None:
    """What is simulated of a candidate on a measured machine never beats the program's answer for it."""
    hardware = data.draw(measured(problem.hardware, problem.runtime.name))
    problem = replace(problem, hardware=hardware)
    for candidate in search(problem, Options()).candidates[:3]:
        one = evaluate(problem, candidate)
        if one is not None and one.placed.policy.block == candidate.policy.block:
            assert one.prediction.throughput_tok_s <= candidate.lp_tok_s * SLACK


@settings(max_examples=6)
@given(st.data(), st.sampled_from(["none", "both"]))
def test_plans_keep_the_order(data: st.DataObject, quantize: Any) -> None:
    """A model twice the size of the GPU, planned on a measured machine: simulated <= program <= ceiling."""
    sets = ("tiers.gpu.capacity=1 GiB", "tiers.gpu.reserve=0 B", "tiers.cpu.capacity=8 GiB")
    hardware = data.draw(measured(load_profile("t4-16", (*sets, "tiers.cpu.reserve=0 B")), "reference"))
    work = Workload(prompt_len=64, gen_len=4)
    problem = Problem(hardware, load_model("opt-1.3b"), work, engine("reference"))
    plan = make_plan(Request(problem, Options(schedule="zigzag", quantize=quantize)))
    assert 0.0 < plan.predictions.throughput_tok_s <= plan.bounds.lp_tok_s * SLACK
    assert plan.bounds.lp_tok_s <= plan.bounds.ceiling_tok_s * SLACK


# --- files and errors ---------------------------------------------------------------------------------------

CALIBRATION: dict[str, Any] = {
    "date": "2026-11-20T14:05:00Z",
    "mode": "quick",
    "machine": {"cpu": "16 cores"},
    "versions": {"torch": "2.9.0"},
    "drift": -0.01,
    "noise": 0.02,
    "intervals": {"links.h2d.pinned.bandwidth": {"low": -0.02, "high": 0.03, "spread": 0.01}},
    "residuals": {"load_weights": {"tasks": 40, "median": 0.01, "ninth": 0.05}},
    "refined": ["trace.json"],
}


@given(st.data())
def test_a_measured_profile_reads_back(data: st.DataObject) -> None:
    """What is written as YAML reads back equal, operations and calibration too."""
    profile = data.draw(measured(BEFORE, data.draw(st.sampled_from(runtime_names()))))
    again = decode_profile(parse_yaml(profile.to_yaml()))
    assert again == profile
    sure = decode_profile(plain(profile) | {"calibration": CALIBRATION})
    assert decode_profile(parse_yaml(sure.to_yaml())) == sure != profile
    assert sure.to_yaml() == decode_profile(parse_yaml(sure.to_yaml())).to_yaml()


def test_the_examples_on_the_page_can_be_used() -> None:
    """The operations and the calibration that the page shows belong to a profile that reads."""
    data = plain()
    data["sources"]["measured"] = {"kind": "measured", "title": "here"}
    blocks = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]
    for block in blocks:
        data |= yaml.safe_load(block.partition("```")[0])
    assert data["operations"]
    assert data["calibration"]
    profile = decode_profile(data)
    assert profile.operations is not None
    assert profile.operations.transfers["read_embeddings"].piece == 3e-6


KERNEL = {"flops": "1 TFLOP/s", "bandwidth": "10 GB/s", "source": "fit"}
COPY = {"bandwidth": "1 GB/s", "source": "fit"}


def kernel(name: str, dtype: str = "float16", **changes: str) -> dict[str, Any]:
    """Give operations with one kernel."""
    return {"kernels": {dtype: {name: KERNEL | changes}}}


def copy(name: str, **changes: str) -> dict[str, Any]:
    """Give operations with one transfer."""
    return {"transfers": {name: COPY | changes}}


@pytest.mark.parametrize(
    ("operations", "path", "words"),
    [
        (kernel("qvk"), "kernels.float16.qvk", "did you mean 'qkv'?"),
        (kernel("zzz"), "kernels.float16.zzz", "known: embed, qkv"),
        (kernel("sync"), "kernels.float16.sync", "unknown operation"),
        (kernel("load_cache"), "kernels.float16.load_cache", "belongs under transfers"),
        (kernel("mlp", "int8"), "kernels.int8.mlp", "no matmul in int8, only in bfloat16, float16, float32"),
        (kernel("attend_cpu"), "kernels.float16.attend_cpu", "no matmul in float16, only in float32"),
        (kernel("mlp", flops="313 TFLOP/s"), "kernels.float16.mlp.flops", "exceeds the peak 312 TFLOP/s"),
        (kernel("mlp", "float32", flops="20 TFLOP/s"), "kernels.float32.mlp.flops", "19.5 TFLOP/s; lower it"),
        (kernel("mlp", bandwidth="3 TB/s"), "kernels.float16.mlp.bandwidth", "exceeds the peak 2.039 TB/s"),
        (
            kernel("attend_cpu", "float32", bandwidth="60 GB/s"),
            "kernels.float32.attend_cpu.bandwidth",
            "51.2 GB/s",
        ),
        (kernel("mlp", "float61"), "kernels.float61", "float16"),
        (copy("load_cash"), "transfers.load_cash", "did you mean 'load_cache'?"),
        (copy("mlp"), "transfers.mlp", "belongs under kernels"),
        (copy("load_cache", bandwidth="32 GB/s"), "transfers.load_cache.bandwidth", "the peak 31.5 GB/s"),
        (copy("store_cache", bandwidth="32 GB/s"), "transfers.store_cache.bandwidth", "the peak 31.5 GB/s"),
        (copy("read_cache", bandwidth="4 GB/s"), "transfers.read_cache.bandwidth", "the peak 3.4 GB/s"),
        (copy("write_cache", bandwidth="2 GB/s"), "transfers.write_cache.bandwidth", "the peak 1.8 GB/s"),
        (copy("stage_cache", bandwidth="60 GB/s"), "transfers.stage_cache.bandwidth", "the peak 51.2 GB/s"),
        (copy("dequantize_cache", bandwidth="3 TB/s"), "transfers.dequantize_cache", "the peak 2.039 TB/s"),
        (copy("load_cache", pieces="1 us"), "transfers.load_cache.pieces", "did you mean 'piece'?"),
        (copy("load_cache", piece="1"), "transfers.load_cache.piece", "expected a time"),
        (copy("load_cache", source="nobody"), "transfers.load_cache.source", "add sources.nobody"),
        ({"kernel": {}}, "kernel", "did you mean 'kernels'?"),
    ],
)
def test_wrong_operations_are_one_line(operations: dict[str, Any], path: str, words: str) -> None:
    """A fault is named by its path, with the remedy, in one line."""
    text = fault(plain() | {"operations": {"runtime": "reference", **operations}})
    assert text.removeprefix("hardware: ").removeprefix("hardware.").startswith(f"operations.{path}")
    assert words in text


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"mode": "slow"}, "calibration.mode", "quick"),
        ({"noise": 1.0}, "calibration", "below 1; measure on a quieter machine"),
        ({"intervals": {"a.b": {"low": 0.1, "high": 0.2}}}, "calibration.intervals.a.b.low", "less than"),
        ({"intervals": {"a.b": {"low": 0, "hi": 0.2}}}, "calibration.intervals.a.b.h", "missing"),
        (
            {"residuals": {"mlp": {"tasks": 0, "median": 0, "ninth": 0}}},
            "residuals.mlp.tasks",
            "greater than",
        ),
        ({"drft": 0.0}, "calibration.drft", "did you mean 'drift'?"),
    ],
)
def test_a_wrong_calibration_is_one_line(changes: dict[str, Any], path: str, words: str) -> None:
    """The same for how a profile was measured."""
    text = fault(plain() | {"calibration": CALIBRATION | changes})
    assert path in text
    assert words in text


def fault(data: dict[str, Any]) -> str:
    """Read what must be refused, and give the one line that says why."""
    with pytest.raises(InputError) as caught:
        decode_profile(data)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith("hardware")
    assert len(text) < 700
    return text


def test_operations_are_checked_wherever_a_profile_is_read(tmp_path: Path) -> None:
    """A file, an override of a shipped machine, and an override of a profile that is read already."""
    text = "operations={runtime: reference, transfers: {load_cash: {bandwidth: 1 GB/s, source: fit}}}"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain() | yaml.safe_load(text.replace("=", ": ", 1))))
    assert read_yaml(path)["operations"]
    for read in (
        lambda: load_profile(str(path)),
        lambda: load_profile(MACHINE, (text,)),
        lambda: override_profile(BEFORE, (text,)),
    ):
        with pytest.raises(InputError, match="did you mean 'load_cache'"):
            read()


def test_what_is_handed_over_has_no_peak() -> None:
    """In one memory the link does not limit loads of weights; without it does."""
    data = plain() | {"operations": {"runtime": "reference", **copy("load_weights", bandwidth="900 TB/s")}}
    assert "exceeds the peak" in fault(data)
    assert decode_profile(data | {"unified_memory": True}).unified_memory
