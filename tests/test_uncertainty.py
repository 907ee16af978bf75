"""Laws of a prediction's range: it holds the prediction, grows with intervals, and rests on what matters."""

from __future__ import annotations

import doctest
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from planner import report
from planner.make_plan import Request, make_plan
from planner.plan import Plan, read_plan
from planner.problem import Problem
from planner.report import print_plan
from planner.uncertainty import NOISE, Cause, Range, throughput_range
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import LANES, HardwareProfile
from simulator.layers import CellKind, layer_weight_bytes
from simulator.layout import Placed, lay_out
from simulator.model_config import load_model
from simulator.operations import OPERATIONS
from simulator.policy import Policy, Split
from simulator.profiles import load_profile, override_profile
from simulator.runtime import load_runtime
from simulator.schema import decode
from simulator.simulate import simulate
from simulator.units import BYTE_RATE
from simulator.workload import Workload
from tests.strategies import layouts, machines

READ = "operations.transfers.read_weights.bandwidth"
_KERNELS = ("matmul", "attention", "prompt_attention")
_ROUNDING = 1e-9
Intervals = dict[str, tuple[float, float]]


def calibrated(
    hardware: HardwareProfile,
    runtime: str,
    intervals: Intervals | None = None,
    noise: float = 0.0,
    **bandwidth: str,
) -> HardwareProfile:
    """Give a machine whose operations were all measured, as fast as its engines and links.

    ``bandwidth`` is that of some of the copies.
    """
    data = hardware.model_dump(mode="json", exclude_none=True)
    kernels: dict[str, Any] = {}
    transfers: dict[str, Any] = {}
    links = hardware.links
    rates = {"h2d": links.h2d.pinned, "d2h": links.d2h.pinned}
    rates |= {"disk_read": links.disk_read, "disk_write": links.disk_write}
    for operation in OPERATIONS:
        if operation.cost in _KERNELS:
            side = "cpu" if operation.lane == "cpu" else "gpu"
            dtype = hardware.engines[side].compute_dtype("float16")
            engine = data["engines"][side]
            line = {"matmul": engine["matmul"][dtype], "prompt_attention": engine["attention"]["prefill"]}
            line["attention"] = engine["attention"]["decode"]
            kernels.setdefault(dtype, {})[operation.name] = line[operation.cost]
        elif operation.cost != "none":
            rate = rates[operation.lane].bandwidth if operation.lane in rates else 5e9
            text = bandwidth.get(operation.name, BYTE_RATE.format(rate))
            transfers[operation.name] = {"bandwidth": text, "latency": "10 us", "source": "fit"}
    data["operations"] = {"runtime": runtime, "kernels": kernels, "transfers": transfers}
    data["calibration"] = {
        "date": "2026-11-21",
        "mode": "quick",
        "machine": {},
        "versions": {},
        "drift": 0.0,
        "noise": noise,
        "intervals": {path: {"low": low, "high": high} for path, (low, high) in (intervals or {}).items()},
        "residuals": {},
    }
    return decode(HardwareProfile, data, "hardware")


def paths(hardware: HardwareProfile) -> list[str]:
    """List all constants of a calibrated machine that may have intervals."""
    measured = hardware.operations
    assert measured is not None
    found = [
        f"operations.kernels.{dtype}.{name}.{constant}"
        for dtype, kernels in measured.kernels.items()
        for name in kernels
        for constant in ("flops", "bandwidth", "latency", "sharpness")
    ]
    found += [
        f"operations.transfers.{name}.{constant}"
        for name in measured.transfers
        for constant in ("bandwidth", "latency")
    ]
    return found + [f"capacities.{name}.lanes.{lane}" for name in hardware.capacities for lane in LANES[1:]]


@dataclass(frozen=True)
class Case:
    """A layout on a calibrated machine."""

    placed: Placed
    hardware: HardwareProfile
    intervals: Intervals
    noise: float

    def range(self, widened: float = 1.0) -> Range:
        """Give the range of a prediction of 1 token a second, with intervals so many times as wide."""
        wider = {
            path: (max(-1.0, widened * low), widened * high) for path, (low, high) in self.intervals.items()
        }
        name = self.placed.runtime.name
        machine = calibrated(self.hardware, name, wider, min(0.99, widened * self.noise))
        found = throughput_range(self.placed, machine, 1.0)
        assert found is not None
        return found


@st.composite
def cases(draw: st.DrawFn, *, shared: bool = True) -> Case:
    """Draw a layout, a machine, and intervals of some constants; without sharing, a block played in full."""
    placed, hardware = draw(layouts(finite=None if shared else False)), draw(machines(shared=shared))
    if not shared:
        policy = placed.policy.model_copy(update={"stagger": None})
        placed = lay_out(placed.model, placed.runtime, placed.workload, policy)
    known = paths(calibrated(hardware, placed.runtime.name))
    bounds = st.tuples(st.floats(-1.0, 0.0), st.floats(0.0, 3.0))
    intervals = draw(st.dictionaries(st.sampled_from(known), bounds, max_size=6))
    return Case(placed, hardware, intervals, draw(st.sampled_from([0.0, 0.01, 0.3])))


@given(cases())
def test_a_range_holds_the_prediction(case):
    """From above nothing to below infinity, and as far as the causes say, joined in squares."""
    found = case.range()
    assert 0.0 < found.low_tok_s <= 1.0 <= found.high_tok_s < math.inf
    weights = [cause.weight for cause in found.by]
    assert weights == sorted(weights, reverse=True)
    assert {cause.path for cause in found.by} <= {NOISE, *case.intervals}
    assert 1.0 / found.low_tok_s - 1.0 == pytest.approx(math.hypot(*(each.loss for each in found.by)))
    assert found.high_tok_s - 1.0 == pytest.approx(math.hypot(*(each.gain for each in found.by)))


@given(cases(shared=False), st.floats(1.0, 4.0))
def test_wider_intervals_never_give_a_narrower_range(case, widened):
    """A rate that falls further slows no less; with shared capacities an order of tasks may have luck."""
    narrow, wide = case.range(), case.range(widened)
    assert wide.low_tok_s <= narrow.low_tok_s * (1 + _ROUNDING)
    assert wide.high_tok_s >= narrow.high_tok_s * (1 - _ROUNDING)


@given(cases())
def test_without_doubt_the_range_is_the_prediction(case):
    """All intervals of no width and no noise: both ends are what is predicted."""
    sure = Case(case.placed, case.hardware, dict.fromkeys(case.intervals, (0.0, 0.0)), 0.0)
    assert sure.range() == Range(low_tok_s=1.0, high_tok_s=1.0, by=())


@given(cases(), st.floats(0.001, 0.9), st.floats(0.1, 1e4))
def test_noise_alone_stretches_all_times(case, noise, predicted):
    """Times of 1 - s to 1 + s make p / (1 + s) to p / (1 - s)."""
    machine = calibrated(case.hardware, case.placed.runtime.name, {}, noise)
    found = throughput_range(case.placed, machine, predicted)
    assert found is not None
    assert found.low_tok_s == pytest.approx(predicted / (1 + noise))
    assert found.high_tok_s == pytest.approx(predicted / (1 - noise))
    assert [cause.path for cause in found.by] == [NOISE]


@given(cases(), st.sampled_from(["absent", "float32", "another engine"]))
def test_a_constant_that_no_task_uses_does_not_matter(case, why):
    """Of an operation that the schedule lacks, of another number type, or of another engine's code."""
    placed, runtime = case.placed, case.placed.runtime.name
    used = {OPERATIONS[code].name for code in generate(placed, None).operation}
    known = [path for path in paths(calibrated(case.hardware, runtime)) if path.startswith("operations")]
    if why == "absent":
        known = [path for path in known if not used & set(path.split("."))]
    elif why == "float32":  # the GPU computes in 16 bits
        known = ["operations.kernels.float32.mlp.flops", "operations.kernels.float32.attend.bandwidth"]
    else:
        runtime = "another engine"
    found = throughput_range(
        placed, calibrated(case.hardware, runtime, dict.fromkeys(known, (-0.9, 3.0))), 1.0
    )
    assert found == Range(low_tok_s=1.0, high_tok_s=1.0, by=())


@settings(max_examples=40)
@given(cases(shared=False), st.sampled_from(["qkv", "mlp"]), st.floats(0.2, 0.95))
def test_a_loss_is_what_a_slower_machine_loses(case, name, factor):
    """One constant at its bound, set as a user sets it and simulated from anew, is as much slower."""
    runtime = case.placed.runtime.name
    path = f"operations.kernels.float16.{name}.bandwidth"
    machine = calibrated(case.hardware, runtime, {path: (factor - 1.0, 0.0)})
    assert machine.operations is not None
    slow = machine.operations.kernels["float16"][name].bandwidth * factor
    usual, _ = simulate(case.placed, machine, None)
    slower, _ = simulate(case.placed, override_profile(machine, (f"{path}={slow!r} B/s",)), None)
    found = throughput_range(case.placed, machine, usual.throughput_tok_s)
    assert found is not None
    if found.by:
        assert found.low_tok_s == pytest.approx(slower.throughput_tok_s)
    else:  # too little to be worth a simulation
        assert slower.throughput_tok_s == pytest.approx(usual.throughput_tok_s, rel=2e-3)


def disk_bound() -> Placed:
    """Lay all weights of OPT-6.7B on the disk and everything else on the GPU; two sequences."""
    policy = Policy(
        gpu_batch=2,
        num_groups=1,
        weights=Split(gpu=0, cpu=0, disk=1),
        cache=Split(gpu=1, cpu=0, disk=0),
        activations=Split(gpu=1, cpu=0, disk=0),
    )
    work = Workload(prompt_len=32, gen_len=8)
    return lay_out(load_model("opt-6.7b"), load_runtime("reference"), work, policy)


def test_what_the_disk_bounds_follows_the_disk():
    """12.9 GB read for each of 8 passes at 1 GB/s: two tokens in 12.9 s, and 10 % slower or 20 % faster."""
    placed = disk_bound()
    kinds = [CellKind.EMBED, *[CellKind.BLOCK] * 32, CellKind.HEAD]
    weights = sum(layer_weight_bytes(placed.model, placed.shape, placed.runtime, kind) for kind in kinds[1:])
    intervals = {READ: (-0.1, 0.2)}
    machine = calibrated(load_profile("t4-16"), "reference", intervals, read_weights="1 GB/s")
    predicted = simulate(placed, machine)[0].throughput_tok_s
    assert predicted == pytest.approx(2 / (weights / 1e9), rel=0.02)
    found = throughput_range(placed, machine, predicted)
    assert found is not None
    assert found.low_tok_s == pytest.approx(0.9 * predicted, rel=0.005)
    assert found.high_tok_s == pytest.approx(1.2 * predicted, rel=0.005)
    assert [cause.path for cause in found.by] == [READ]
    assert found.by[0].loss == pytest.approx(1 / 0.9 - 1, rel=0.02)
    assert found.by[0].gain == pytest.approx(0.2, rel=0.02)


def test_no_constant_is_taken_above_its_peak():
    """A disk that may be three times as fast as was measured is no faster than the datasheet says."""
    placed, intervals = disk_bound(), {READ: (0.0, 2.0)}
    machine = calibrated(load_profile("t4-16"), "reference", intervals, read_weights="2.5 GB/s")
    found = throughput_range(placed, machine, 1.0)
    assert found is not None
    assert found.high_tok_s == pytest.approx(2.8 / 2.5, rel=0.01)


@pytest.mark.parametrize(
    "path",
    [
        "operations.transfers.read_weights.speed",
        "operations.transfers.read_weights",
        "operations.transfers.read_weights.source",
        "capacities.cores.lanes.h2d",
        "links",
        "",
    ],
)
def test_an_interval_of_nothing_is_refused(path):
    """On one line that names it."""
    machine = calibrated(load_profile("t4-16"), "reference", {path: (-0.1, 0.1)})
    with pytest.raises(
        InputError, match=r"hardware\.calibration\.intervals: the profile has no number at"
    ) as error:
        throughput_range(disk_bound(), machine, 1.0)
    assert "\n" not in str(error.value)
    assert repr(path) in str(error.value)


def test_a_constant_that_was_left_out_has_no_interval():
    """Kernels without a tail are no slower for its interval."""
    machine = calibrated(
        load_profile("t4-16"), "reference", {"operations.kernels.float16.mlp.tail": (-1.0, 9.0)}
    )
    found = throughput_range(disk_bound(), machine, 1.0)
    assert found == Range(low_tok_s=1.0, high_tok_s=1.0, by=())


def test_a_profile_without_intervals_gives_no_range():
    """Shipped profiles are not calibrated."""
    assert throughput_range(disk_bound(), load_profile("t4-16"), 1.0) is None


def test_what_a_range_mainly_rests_on():
    """As many causes as make up the share, in squares; of many alike, no more than asked for."""
    causes = [Cause(path=str(loss), loss=loss, gain=0.0) for loss in (0.4, 0.1, 0.01)]
    found = Range(low_tok_s=1.0, high_tok_s=1.0, by=tuple(causes))
    assert found.mainly() == tuple(causes[:1])
    assert found.mainly(share=0.95) == tuple(causes[:2])
    assert found.mainly(share=0.95, most=1) == tuple(causes[:1])
    assert Range(low_tok_s=1.0, high_tok_s=1.0, by=()).mainly() == ()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Plan on a calibrated machine."""
    intervals = dict.fromkeys(paths(calibrated(load_profile("t4-16"), "reference")), (-0.1, 0.1))
    machine = calibrated(load_profile("t4-16"), "reference", intervals, 0.02)
    work = Workload(prompt_len=64, gen_len=8)
    return make_plan(Request(Problem(machine, load_model("opt-6.7b"), work, load_runtime("reference"))))


def test_a_plan_keeps_its_range(plan, tmp_path):
    """It reads back; a plan written before there were ranges reads too."""
    found = plan.throughput_range
    assert found.low_tok_s < plan.predictions.throughput_tok_s < found.high_tok_s
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert read_plan(path) == plan
    data = json.loads(plan.to_json())
    del data["throughput_range"]
    path.write_text(json.dumps(data))
    assert read_plan(path) == plan.model_copy(update={"throughput_range": None})


def printed(plan: Plan) -> str:
    """Print a plan's report."""
    console = Console(width=200)
    with console.capture() as capture:
        print_plan(plan, console)
    return capture.get()


def test_the_report_says_how_sure_it_is(plan):
    """Beside the prediction stand the range and what it rests on; without intervals nothing is said."""
    found, text = plan.throughput_range, printed(plan)
    ends = f"{found.low_tok_s:.4g} to {found.high_tok_s:.4g}"
    assert f"tok/s simulated, {ends} in 19 of 20 runs by the profile's intervals; at most" in text
    assert text.count(ends) == 2
    assert "mostly: " in text
    without = printed(plan.model_copy(update={"throughput_range": None}))
    assert "19 of 20" not in without
    assert "mostly" not in without
    assert "tok/s simulated; at most" in without


def test_examples():
    """The examples in the report's docstrings hold."""
    assert doctest.testmod(report).failed == 0
