"""``planner verify``: which policies are drawn, how runs are judged, and the whole way on a small model."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

REASON = "torch, transformers and safetensors are needed to run models"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

from executor import engine
from executor.probe_models import LlamaShape, llama_config, make_checkpoint
from planner.cli import cli
from planner.verify import OperationTime, Outcome, judge, summed
from planner.verify_cases import KINDS, draw_cases
from planner.verify_report import draw, markdown
from simulator.errors import InfeasibleError
from simulator.model_config import parse_config
from simulator.profiles import override_profile
from simulator.runtime import load_runtime
from tests.calibrated import CALIBRATED, machine

ONE_B = LlamaShape(2048, 5632, 22, 32, 4, 32000, 2048)
SMALL = LlamaShape(64, 160, 3, 4, 2, 128)


def outcome(
    predicted: float, measured: float, low: float | None = None, high: float | None = None
) -> Outcome:
    """A run of a policy."""
    times = (OperationTime(lane="gpu", operation="mlp", predicted=2.0, measured=3.0),)
    return Outcome(
        kind="disk",
        schedule="row",
        batch=4,
        groups=1,
        prompt_len=16,
        gen_len=8,
        predicted=predicted,
        low=low,
        high=high,
        measured=measured,
        repeats=(measured,),
        memory={"gpu": (100.0, 98.0), "cpu": (50.0, 50.0), "disk": (0.0, 0.0)},
        resident=153.0,
        operations=times,
    )


# Judging.


def test_runs_judged_by_hand() -> None:
    """Errors of 10, -20 and 0 %, one of two ranges kept, and the best by prediction 20 % behind."""
    runs = [outcome(11, 10, 9, 12), outcome(8, 10, 7, 9), outcome(8, 8), outcome(12, 12.5)]
    verdict = judge(runs)
    assert verdict.runs == 4
    assert verdict.median == pytest.approx((0.1 + 0.04) / 2)
    assert verdict.ninth == pytest.approx(0.2)
    assert verdict.inside == 0.5
    assert verdict.memory_over == 0.0
    assert verdict.resident_off == pytest.approx((0.02, 0.02))
    assert verdict.best_loss == 0.0
    assert judge([outcome(12, 10), outcome(11, 12.5)]).best_loss == pytest.approx(0.2)


rates = st.floats(0.1, 1e4)


@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=12))
def test_judging_follows_its_runs(pairs: list[tuple[float, float]]) -> None:
    """Half of the runs keep the median error, nine in ten the other, and no best is better than the best."""
    runs = [outcome(*pair) for pair in pairs]
    verdict = judge(runs)
    errors = np.abs([one.error for one in runs])
    assert (errors <= verdict.median * (1 + 1e-9)).mean() >= 0.5
    assert (errors <= verdict.ninth * (1 + 1e-9)).mean() >= 0.9
    assert 0.0 <= verdict.best_loss < 1.0
    assert verdict.inside is None


def test_operations_are_summed_over_runs() -> None:
    """Two runs of 2 s predicted and 3 s measured are 4 s and 6 s."""
    (row,) = summed([outcome(1, 1), outcome(1, 1)])
    assert (row.predicted, row.measured) == (4.0, 6.0)


# Drawing.


def test_every_kind_is_drawn_and_fits() -> None:
    """On the calibrated machine all kinds can be planned for a model of a billion parameters, and fit."""
    model = parse_config(llama_config(ONE_B, "bfloat16"), "llama-1b")
    cases = list(draw_cases(machine(), model, load_runtime("reference"), len(KINDS), 0, 10.0))
    assert [case.kind for case in cases] == [kind.name for kind in KINDS]
    assert {case.plan.schedule for case in cases} == {"row", "zigzag", "diagonal"}
    for case in cases:
        assert case.plan.throughput_range is not None
        for use in case.plan.memory.values():
            assert use.peak <= use.capacity * (1 + 1e-9)
    again = list(draw_cases(machine(), model, load_runtime("reference"), 3, 0, 10.0))
    assert [case.plan for case in again] == [case.plan for case in cases[:3]]
    other = list(draw_cases(machine(), model, load_runtime("reference"), 3, 1, 10.0))
    assert [case.plan for case in other] != [case.plan for case in again]


def test_a_machine_too_small_says_so() -> None:
    """Where nothing that is drawn fits, the planner's own reason is given."""
    model = parse_config(llama_config(ONE_B, "bfloat16"), "llama-1b")
    tiny = override_profile(machine(), ("tiers.gpu.capacity=900 MiB",))
    with pytest.raises(InfeasibleError, match="llama-1b"):
        list(draw_cases(tiny, model, load_runtime("reference"), len(KINDS), 0, 10.0))


# The command.


def cli_run(*arguments: object, code: int = 0) -> Result:
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    folder = tmp_path_factory.mktemp("verify") / "small"
    make_checkpoint(folder, SMALL, "bfloat16")
    return folder


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after the test what the command sets in the environment."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("quiet")
def test_plans_are_run_and_laid_beside(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind is run on a small model; all figures are there; a second call repeats no run."""
    out, picture = tmp_path / "proof", tmp_path / "proof.svg"
    asked = ("verify", "--hw", CALIBRATED, "--checkpoint", checkpoint, "--seconds", 1, "--scratch", tmp_path)
    asked = (*asked, "--device", "cpu", "--out", out)
    found = json.loads(cli_run(*asked, "--picture", picture, "--format", "json").output)
    assert found["verdict"]["runs"] == len(KINDS)
    assert [run["kind"] for run in found["runs"]] == [kind.name for kind in KINDS]
    for run in found["runs"]:
        assert run["measured"] > 0
        assert run["error"] == pytest.approx(run["predicted"] / run["measured"] - 1)
        assert {one["operation"] for one in run["operations"]} >= {"qkv", "mlp", "head"}
        for planned, used in run["memory"].values():
            assert used <= planned + 2**16  # whole pages
    assert picture.read_text().startswith("<?xml")
    assert (out / "03" / "measured-1.json").is_file()
    shown = cli_run("compare-traces", out / "01" / "predicted.json", out / "01" / "measured-1.json").output
    assert "Every lane ran its tasks in the predicted order" in shown

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(engine, "run", refuse)
    text = cli_run(*asked).output
    assert "zig-zag over groups" in text
    assert "in the range" in text
    assert "| what is loaded |" in cli_run(*asked, "--format", "markdown").output


def test_errors_come_before_the_runs(checkpoint: Path, tmp_path: Path) -> None:
    """Pictures of unknown kinds and missing checkpoints are one line and exit code 2."""
    for arguments, words in (
        (("--checkpoint", checkpoint, "--picture", tmp_path / "x.jpg"), "ends in .png or .svg"),
        (("--checkpoint", tmp_path / "none"), "none"),
    ):
        output = cli_run("verify", "--hw", CALIBRATED, *arguments, code=2).output
        assert output.startswith("error: ")
        assert words in output
        assert len(output.strip().splitlines()) == 1


def test_markdown_and_picture_need_no_ranges(tmp_path: Path) -> None:
    """Profiles without intervals have no ranges; tables and pictures do without."""
    runs = [outcome(10, 11), outcome(10, 9)]
    assert "| - |" in markdown(runs, judge(runs))
    draw(tmp_path / "x.png", runs)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_peak_of_an_action_is_what_it_took() -> None:
    """A buffer of 64 MB that was filled and dropped counts, and nothing that was there before."""
    code = (
        "from planner.resident import peak_beyond;"
        "print(peak_beyond(lambda: len(bytearray(64_000_000)))[1], peak_beyond(lambda: None)[1])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    taken, nothing = told.split()
    if taken != "None":  # the system tells
        assert 50e6 < float(taken) < 90e6
        assert float(nothing) < 5e6
