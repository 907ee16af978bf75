"""Calibration: fits find the constants that traces were made with, and the command writes what was found."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

REASON = "torch, safetensors and scipy are needed to calibrate"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("safetensors", reason=REASON)
pytest.importorskip("scipy", reason=REASON)

from executor import calibrate as measuring
from executor.calibrate import Options, fitted_profile
from executor.fit import MATMUL, TRANSFER, fit, transfer_seconds
from executor.fits import fit_all
from executor.observe import Run, alone, busy_beside, observations
from executor.probe import CPU_ATTENTION, IN_CPU, REFERENCE, Probe, quick, run_probe
from executor.probe_models import LlamaShape, make_checkpoint
from planner.cli import cli
from simulator.errors import InputError
from simulator.hardware import LANES, HardwareProfile
from simulator.operations import OP, OPERATIONS
from simulator.policy import Policy, Split
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.simulate import rates_of, simulate
from simulator.trace import write_trace
from simulator.workload import Workload
from tests.calibrated import CALIBRATED, machine, models, noisy_run, session

SMALL = LlamaShape(64, 160, 2, 4, 2, 128)


def options(tmp_path: Path) -> Options:
    """Options of a quick calibration."""
    return Options("found", tmp_path, "cpu", "quick")


def cli_run(*arguments: object, code: int = 0) -> Result:
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


# Fitting simulated traces recovers the profile.


def constants_within(found: HardwareProfile, truth: HardwareProfile) -> tuple[int, int]:
    """Count the fitted constants, and those whose interval holds the true one."""
    assert found.calibration is not None
    inside = total = 0
    for path, interval in found.calibration.intervals.items():
        one, other = (at_path(profile, path) for profile in (found, truth))
        if other is None:
            continue
        total += 1
        inside += one * (1 + interval.low) * 0.999 <= other <= one * (1 + interval.high) * 1.001
    return inside, total


def at_path(profile: HardwareProfile, path: str) -> float | None:
    """Give a figure of a profile by its path."""
    node: object = profile
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else getattr(node, key)
    return node  # type: ignore[return-value]


def later_seconds(profile: HardwareProfile) -> dict[str, float]:
    """Give the time of every operation in runs that no probe is like. [s]"""
    totals: dict[str, float] = {}
    everywhere = Split(gpu=0.4, cpu=0.3, disk=0.3)
    for name, model in models().items():
        policy = Policy(
            gpu_batch=10, num_groups=2, weights=everywhere, cache=everywhere, activations=everywhere
        )
        workload = Workload(prompt_len=90, gen_len=6, num_prompts=20)
        from simulator.layout import lay_out  # noqa: PLC0415

        placed = lay_out(model, load_runtime("reference"), workload, policy)
        _, simulation = simulate(placed, profile, None)
        for code in np.unique(simulation.schedule.operation):
            operation = OPERATIONS[code].name
            spent = simulation.seconds[simulation.schedule.operation == code].sum()
            totals[f"{name} {operation}"] = float(spent)
    return totals


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[float, HardwareProfile]:
    """Profiles fitted to simulated sessions with little and with much noise."""
    folder = tmp_path_factory.mktemp("found")
    return {noise: fitted_profile(session(shared_machine(), noise), options(folder)) for noise in (0.0, 0.1)}


def shared_machine() -> HardwareProfile:
    """The calibrated machine with round shares of its cores."""
    data = machine().model_dump(mode="json", exclude_none=True)
    data["capacities"]["cores"]["lanes"] = {"gpu": 1.0, "cpu": 0.4, "disk_read": 0.25}
    return HardwareProfile.model_validate(data)


def test_exact_traces_give_the_profile_back(found: dict[float, HardwareProfile]) -> None:
    """Without noise every operation takes the same time on the fitted machine, also in runs unlike probes."""
    truth, fitted = later_seconds(machine()), later_seconds(found[0.0])
    assert truth.keys() == fitted.keys()
    for name, seconds in truth.items():
        assert fitted[name] == pytest.approx(seconds, rel=0.03), name


def test_noisy_traces_give_it_back_too(found: dict[float, HardwareProfile]) -> None:
    """With tasks 10 % longer or shorter by chance, operations are within 10 %; intervals hold the truth."""
    truth, fitted = later_seconds(machine()), later_seconds(found[0.1])
    errors = {name: abs(fitted[name] / seconds - 1) for name, seconds in truth.items()}
    assert np.median(list(errors.values())) < 0.03
    assert np.quantile(list(errors.values()), 0.9) < 0.1, errors
    inside, total = constants_within(found[0.1], machine())
    assert total > 30
    assert inside / total > 0.85


def test_what_lanes_share_is_found(found: dict[float, HardwareProfile]) -> None:
    """The shares of the cores come back from the overlapping probes; of none there are none."""
    for profile in found.values():
        truth = shared_machine().capacities["cores"].lanes
        lanes = profile.capacities["cores"].lanes
        assert lanes["gpu"] == 1.0
        assert lanes["disk_read"] == pytest.approx(truth["disk_read"], abs=0.06)
        assert lanes["cpu"] == pytest.approx(truth["cpu"], abs=0.15)
        assert lanes.get("h2d", 0.0) < 0.1


# The laws of fits.


def sizes(seconds: np.ndarray, bytes_: np.ndarray, runs: int = 4) -> object:
    """Copies of so many bytes, seen in several runs."""
    nothing = np.zeros(len(bytes_))
    return observations(
        (nothing, bytes_, np.ones(len(bytes_)), nothing, nothing), seconds, np.arange(len(bytes_)) % runs
    )


def test_a_copy_worked_by_hand() -> None:
    """1 ms and 2 GB/s: 1 MB takes 1.5 ms, 8 MB 5 ms, 64 MB 33 ms."""
    bytes_ = np.array([1e6, 8e6, 64e6, 1e6, 8e6, 64e6])
    seen = sizes(np.array([1.5e-3, 5e-3, 33e-3] * 2), bytes_)
    result = fit("load_cache", TRANSFER, seen)
    assert result.constants["latency"] == pytest.approx(1e-3, rel=1e-3)
    assert result.constants["bandwidth"] == pytest.approx(2e9, rel=1e-3)
    assert result.residual.median < 1e-3


def test_one_stalled_task_changes_little() -> None:
    """A task that took ten times as long does not move the constants."""
    bytes_ = np.geomspace(1e5, 1e9, 24)
    seconds = 2e-4 + bytes_ / 3e9
    seconds[7] *= 10
    result = fit("load_cache", TRANSFER, sizes(seconds, bytes_))
    assert result.constants["bandwidth"] == pytest.approx(3e9, rel=0.02)
    assert result.constants["latency"] == pytest.approx(2e-4, rel=0.05)


def test_what_is_not_determined_is_left_without_effect() -> None:
    """Copies so large that their latency does not show get none, and no interval for it."""
    bytes_ = np.geomspace(1e9, 8e9, 12)
    rng = np.random.default_rng(0)
    seconds = bytes_ / 2e9 * np.exp(0.05 * rng.standard_normal(12))
    result = fit("read_weights", TRANSFER, sizes(seconds, bytes_))
    assert "latency" not in result.intervals
    assert transfer_seconds(sizes(seconds, bytes_), result.constants) == pytest.approx(seconds, rel=0.15)


def test_a_design_without_variety_is_refused() -> None:
    """One size of matrix cannot tell FLOPs from bytes; the error names the operation and what to do."""
    ones = np.ones(3)
    seen = observations((1e9 * ones, 1e6 * ones, ones, ones, ones), 1e-3 * ones, np.zeros(3))
    with pytest.raises(InputError, match=r"calibrate: mlp: .* do not determine flops, .*planner calibrate"):
        fit("mlp", MATMUL, seen)


def test_more_noise_gives_wider_intervals() -> None:
    """Noise widens intervals; it is no failure."""
    bytes_ = np.geomspace(1e5, 1e9, 40)
    widths = []
    for noise in (0.01, 0.1, 0.3):
        rng = np.random.default_rng(1)
        seconds = (1e-3 + bytes_ / 2e9) * np.exp(noise * rng.standard_normal(40))
        interval = fit("read_weights", TRANSFER, sizes(seconds, bytes_)).intervals["bandwidth"]
        widths.append(interval.high - interval.low)
    assert widths[0] < widths[1] < widths[2]


# What is observed.


def test_lanes_beside_a_task_are_counted() -> None:
    """Of overlapping lanes each task knows the share of its time in which the others work."""
    placed = Probe("narrow", 4, 8, 2, 2, IN_CPU, overlap=True).placed(
        models()["narrow"], load_runtime("reference")
    )
    trace = noisy_run(placed, rates_of(placed, machine()), 0.0, np.random.default_rng(0)).trace
    shares = busy_beside(trace)
    assert shares.shape == (len(trace), len(LANES))
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    for task in range(0, len(trace), 37):
        lane = LANES.index("gpu")
        others = trace.lane == lane
        overlap = np.minimum(trace.end[others], trace.end[task]) - np.maximum(
            trace.start[others], trace.start[task]
        )
        by_hand = np.clip(overlap, 0, None).sum() / max(trace.end[task] - trace.start[task], 1e-9)
        due = 0.0 if trace.lane[task] == lane else by_hand
        assert shares[task, lane] == pytest.approx(min(due, 1.0), abs=1e-6)


def test_tasks_that_are_not_alone_do_not_count() -> None:
    """Kernels beside others are left out; reads of the disk count, as others do not slow them."""
    placed = Probe("narrow", 32, 24, 3, 2, CPU_ATTENTION, overlap=True).placed(
        models()["narrow"], load_runtime("reference")
    )
    run = noisy_run(placed, rates_of(placed, machine()), 0.0, np.random.default_rng(0))
    quiet = busy_beside(run.trace).sum(axis=1) < 0.05
    of = alone([run])
    mlp = run.trace.operation == OP["mlp"]
    assert 0 < (quiet & mlp).sum() < mlp.sum()
    kinds = {
        tuple(row) for row in zip(run.trace.flops[quiet & mlp], run.trace.bytes[quiet & mlp], strict=True)
    }
    assert len(of["mlp", "bfloat16"]) == len(kinds)


# Measuring for real, in small.


def test_a_probe_runs_on_the_executor(tmp_path: Path) -> None:
    """A probe of a made-up model gives a trace with the work of every task, and the model reads back."""
    checkpoint = make_checkpoint(tmp_path / "narrow", SMALL, "bfloat16")
    probe = Probe("narrow", 2, 8, 3, 2, IN_CPU)
    run = run_probe(probe, checkpoint, load_runtime("reference"), torch.device("cpu"), tmp_path)
    assert isinstance(run, Run)
    assert run.dtype == "bfloat16"
    assert {"qkv", "mlp", "head", "attend_cpu", "load_cache", "store_query"} <= set(run.trace.names)
    assert run.trace.metadata["full_length"] == "yes"
    products = run.trace.operation == OP["mlp"]
    assert (run.trace.blocks[products] > 0).all()
    assert (run.trace.kernels[products] > 0).all()


def test_the_command_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with runs as the simulator gives them: the profile is written, reads back and plans."""
    rng, specs, runtime = np.random.default_rng(0), models(), load_runtime("reference")

    def simulated(probe: Probe, *_: object) -> Run:
        placed = probe.placed(specs[probe.model], runtime)
        return noisy_run(placed, rates_of(placed, machine()), 0.05, rng)

    monkeypatch.setattr(measuring, "run_probe", simulated)
    monkeypatch.setattr(measuring, "make_checkpoint", lambda folder, shape, dtype: None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # what the command sets is undone after the test
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    out = tmp_path / "mine.yaml"
    text = cli_run("calibrate", "--out", out, "--disk", tmp_path, "--device", "cpu").output
    assert f"written: {out}" in text
    assert "read_weights" in text
    profile = load_profile(str(out))
    assert profile.name == "mine"
    assert profile.unified_memory
    assert profile.calibration is not None
    assert profile.calibration.mode == "quick"
    assert load_profile(str(out)).to_yaml() == out.read_text()
    plan = cli_run("plan", "--hw", out, "--model", "opt-1.3b", "--prompt-len", 64, "--gen-len", 8).output
    assert "19 of 20" in plan
    assert not list(tmp_path.glob("planner-calibrate-*"))


def test_errors_come_before_the_measuring(tmp_path: Path) -> None:
    """A folder that is not there, and options that contradict each other, are one line and exit code 2."""
    out = tmp_path / "x.yaml"
    cases = (
        (("--out", out, "--disk", tmp_path / "none"), "--disk: there is no folder"),
        (("--out", tmp_path / "none" / "x.yaml"), "--out: there is no folder"),
        (("--out", out, "--refine", tmp_path / "trace.json"), "give both"),
        (("--out", out, "--hw", CALIBRATED), "give both"),
    )
    for arguments, words in cases:
        output = cli_run("calibrate", *arguments, code=2).output
        assert output.startswith("error: ")
        assert words in output
        assert len(output.strip().splitlines()) == 1
    assert not out.exists()


# Refining.


def slower_machine(factor: float) -> HardwareProfile:
    """A machine whose matrix products and reads take so many times as long."""
    data = machine().model_dump(mode="json", exclude_none=True)
    assert machine().operations is not None
    mlp = machine().operations.kernels["bfloat16"]["mlp"]
    data["operations"]["kernels"]["bfloat16"]["mlp"] |= {
        "flops": f"{mlp.flops / factor / 1e9!r} GFLOP/s",
        "bandwidth": f"{mlp.bandwidth / factor / 1e9!r} GB/s",
        "latency": f"{mlp.latency * factor * 1e6!r} us",
    }
    return HardwareProfile.model_validate(data)


def real_runs(count: int, factor: float) -> list[Run]:
    """Runs of policies on the slower machine."""
    rng, hardware, found = np.random.default_rng(3), slower_machine(factor), []
    for number in range(count):
        probe = Probe("middle", 6 + number, 40 + 7 * number, 5, 2, overlap=number % 2 == 1)
        placed = probe.placed(models()["middle"], load_runtime("reference"))
        found.append(noisy_run(placed, rates_of(placed, hardware), 0.05, rng))
    return found


def test_refining_moves_towards_what_was_measured() -> None:
    """Runs with slower products correct these and nothing else, and further the more runs there are."""
    from executor.refine import corrections, refine  # noqa: PLC0415

    factors = []
    for count in (1, 8):
        found = corrections(machine(), real_runs(count, 1.3))
        mlp = found["mlp", "bfloat16"]
        assert mlp.runs == count
        assert mlp.measured == pytest.approx(1.3, rel=0.05)
        assert 1.0 < mlp.factor < 1.35
        assert mlp.sure < 1.0
        assert found["qkv", "bfloat16"].factor == pytest.approx(1.0, abs=0.04)
        factors.append(mlp.factor)
    assert factors[0] < factors[1]
    refined = refine(machine(), real_runs(8, 1.3), ["a.json"])
    assert refined.operations is not None
    assert refined.calibration is not None
    assert refined.calibration.refined == ("a.json",)
    before = machine().operations.kernels["bfloat16"]["mlp"]  # type: ignore[union-attr]
    after = refined.operations.kernels["bfloat16"]["mlp"]
    assert before.flops / after.flops == pytest.approx(factors[1], rel=1e-3)


def test_refining_by_runs_of_the_profile_itself_changes_nothing() -> None:
    """A machine that is as its profile says stays so."""
    from executor.refine import corrections  # noqa: PLC0415

    for kind, one in corrections(machine(), real_runs(6, 1.0)).items():
        assert one.factor == pytest.approx(1.0, abs=0.04), kind


def test_the_command_refines(tmp_path: Path) -> None:
    """Traces correct a profile; those of which the work is not known, and predictions, are refused."""
    paths = []
    for number, run in enumerate(real_runs(3, 1.2)):
        paths.append(tmp_path / f"{number}.json")
        write_trace(run.trace, paths[-1])
    out = tmp_path / "refined.yaml"
    asked = [word for path in paths for word in ("--refine", path)]
    text = cli_run("calibrate", "--hw", CALIBRATED, *asked, "--out", out).output
    assert "mlp" in text
    assert load_profile(str(out)).calibration.refined == ("0.json", "1.json", "2.json")  # type: ignore[union-attr]
    changed = cli_run("hardware", "diff", CALIBRATED, out).output
    assert "operations.kernels.bfloat16.mlp.flops" in changed.replace("\n", "")
    run = real_runs(1, 1.0)[0]
    for change, words in (
        ({"full_length": "no"}, "shorter than the plan's"),
        ({"kind": "predicted"}, "not a measured trace"),
    ):
        run.trace.metadata.update(change)
        write_trace(run.trace, tmp_path / "other.json")
        asked = ["--hw", CALIBRATED, "--refine", tmp_path / "other.json", "--out", out]
        output = cli_run("calibrate", *asked, code=2).output
        assert words in output


def test_every_operation_of_a_plan_is_probed() -> None:
    """The quick design determines every operation that this executor has, on simulated traces.

    A shared prefix can be planned, but not run yet.
    """
    fits, undetermined = fit_all(session(machine(), 0.02).runs)
    names = {name for name, _ in fits} | set(undetermined)
    due = {one.name for one in OPERATIONS if one.cost not in ("none", "stage", "expand")}
    assert due - names == {"project", "relay_weights", "attend_prefix"}
    assert len(undetermined) <= 2
    assert REFERENCE.model in {probe.model for probe in quick()}
