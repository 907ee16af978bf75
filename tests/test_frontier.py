"""Throughput against latency: no point is beaten, every point keeps its limit, published runs are reached."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.choices import Options, Quantize
from planner.frontier import Frontier, Point, frontier, frontier_chart, undominated
from planner.make_plan import Request, make_plan
from planner.measurements import shipped_suites
from planner.problem import Problem
from planner.study_answer import Answer, answer
from planner.study_cells import Cell
from planner.study_files import read_findings
from simulator.runtime import load_runtime
from tests.problems import problem_of
from tests.study_cases import LIMITED_WORK, SHORT_OPTIONS, cell, complaint, made_up, planned, run

BASE = cell("t4-16", "opt-6.7b", work=LIMITED_WORK)
#: What the search by simulation may miss.
TOLERANCE = 0.01


@cache
def one_answer(limit: float | None) -> Answer:
    """Answer the base under a limit, once in a process."""
    return answer(BASE.model_copy(update={"max_latency": limit}))


@cache
def found(points: int) -> Frontier:
    """Find the frontier of the base."""
    return frontier([BASE], points, lambda cells: [one_answer(each.max_latency) for each in cells])


def best_within(curve: Frontier, latency: float) -> float:
    """Give the throughput that a frontier reaches within a latency."""
    return max((each.tok_s for each in curve.curves[0].points if each.latency <= latency), default=0.0)


def test_no_point_is_beaten() -> None:
    """Points rise in both; each is the plan of its cell, keeps its limit and beats no other's answer."""
    (curve,) = found(5).curves
    assert len(curve.points) >= 3
    pairs = [(point.latency, point.tok_s) for point in curve.points]
    assert pairs == sorted(set(pairs))
    assert [each for _, each in pairs] == sorted(each for _, each in pairs)
    for point in curve.points:
        limit = found(5).cells[point.cell].max_latency
        assert limit is None or point.latency <= limit * (1 + 1e-9)
        assert found(5).answers[point.cell].plans[0].plan == point.plan
    for reply in found(5).answers:
        for one in reply.plans:
            speed = best_within(found(5), one.plan.predictions.latency_s)
            assert speed >= one.plan.predictions.throughput_tok_s * (1 - 1e-6)


def test_more_points_never_lower_the_curve() -> None:
    """Between the same ends, five limits lie on the curve of three: it is nowhere lower."""
    few, more = found(3), found(5)
    assert {each.max_latency for each in few.cells} < {each.max_latency for each in more.cells}
    for point in few.curves[0].points:
        assert best_within(more, point.latency) >= point.tok_s * (1 - TOLERANCE)


@given(pairs=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_undominated_points_by_trying_all(pairs: list[tuple[int, int]]) -> None:
    """Kept are exactly the pairs that no other pair beats in one and equals in the other."""
    part = BASE.mix.parts[0]
    points = [Point(n, made_up(part, tok_s, latency).plan) for n, (latency, tok_s) in enumerate(pairs)]
    kept = [(point.latency, point.tok_s) for point in undominated(points)]
    best = {(a, b) for a, b in pairs if not any((c <= a and d >= b) and (c, d) != (a, b) for c, d in pairs)}
    assert kept == sorted(best)


def test_a_machine_without_a_plan() -> None:
    """Where nothing fits a curve has no point but a reason, and the others stand."""
    reply = Answer(status="infeasible", reason="too small")
    cells = [BASE, cell("rtx-4090")]
    both = frontier(
        cells, 2, lambda asked: [reply if each.machine == "t4-16" else planned() for each in asked]
    )
    assert [(len(curve.points), curve.reason) for curve in both.curves] == [(0, "too small"), (1, None)]
    assert [curve.name for curve in both.curves] == ["t4-16", "rtx-4090"]
    assert [one.name for one in frontier_chart(both).series] == ["rtx-4090"]


def test_published_runs_stand_beside() -> None:
    """Runs of the same machine, model, lengths, engine and bits are found, where their block ends."""
    work = {"prompt_len": 512, "gen_len": 32}
    base = cell("t4-16", "opt-30b", work=work, runtime=load_runtime("flexgen"))

    def none(cells: list[Cell]) -> list[Answer]:
        return [Answer(status="infeasible", reason="not asked")] * len(cells)

    known = {each.id: each for each in frontier([base], 2, none).published}
    assert {"t2-30b-512", "t4-30b-nosearch", "t4-30b-nocpu"} <= set(known)
    assert "t2-30b-512-c" not in known
    run_of = known["t2-30b-512"]
    assert (run_of.engine, run_of.tok_s) == ("flexgen", 7.32)
    assert run_of.latency == pytest.approx(48 * 3 * 32 / 7.32)
    four = base.model_copy(update={"quantize": "cache"})
    assert "t2-30b-512-c" in {each.id for each in frontier([four], 2, none).published}


@pytest.mark.parametrize(
    ("row", "quantize"),
    [
        ("t2-30b-512", "none"),
        ("t2-175b-512", "none"),
        ("t4-175b-1batch", "none"),
        ("t4-30b-nosearch", "none"),
        ("t4-30b-nocpu", "none"),
        ("t2-30b-512-c", "cache"),
    ],
)
def test_published_runs_are_reached(row: str, quantize: Quantize) -> None:
    """Within the time that a published run took, the plan is as fast, by the simulator's accuracy."""
    known = {each.id: each for suite in shipped_suites().values() for each in suite}
    measured = known[row]
    sequences = measured.gpu_batch * measured.num_gpu_batches
    limit = 1.03 * sequences * measured.gen_len / measured.throughput_tok_s
    work = {"prompt_len": measured.prompt_len, "gen_len": measured.gen_len}
    asked = problem_of("t4-16", measured.model, runtime="flexgen", **work)
    problem = Problem(asked.hardware, asked.model, asked.workload, asked.runtime, limit)
    plan = make_plan(Request(problem, Options(quantize)))
    assert plan.predictions.latency_s <= limit * (1 + 1e-9)
    assert plan.predictions.throughput_tok_s >= 0.97 * measured.throughput_tok_s


# The command.

ASKED = ("frontier", "--model", "opt-1.3b", *SHORT_OPTIONS, "--points", "3", "--jobs", "1")


def test_the_command(tmp_path: Path) -> None:
    """Text and JSON say the same; the folder has a row for every limit asked, and becomes a page."""
    picture, out = tmp_path / "f.svg", tmp_path / "out"
    options = (*ASKED, "--hw", "rtx-4090", "--hw", "t4-16", "--hw", "rtx-4090")
    shown = run(*options, "--out", str(out), "--picture", str(picture))
    assert shown.exit_code == 0, shown.output
    assert picture.read_text().count("<svg") == 1
    data = json.loads(run(*options, "--format", "json").stdout)
    assert [curve["name"] for curve in data["curves"]] == ["rtx-4090", "t4-16"]
    findings, rows = read_findings(out)
    assert [chart.key for chart in findings.charts] == ["frontier"]
    for curve in data["curves"]:
        assert curve["name"] in shown.stdout
        for point in curve["points"]:
            row = rows[point["cell"]]
            assert row["machine"] == curve["name"]
            assert row["tok_s"] == point["throughput_tok_s"]
            assert row["latency_s"] == point["latency_s"]
            assert row["bound_by"] == point["bound_by"]
            assert row["block"] == point["policy"]["gpu_batch"] * point["policy"]["num_groups"]
            assert f"{point['throughput_tok_s']:.4g}" in shown.stdout
    assert run("report", str(out)).exit_code == 0
    assert (out / "report.html").is_file()


def test_what_has_no_frontier(tmp_path: Path) -> None:
    """Wrong questions are told in one line with code 2, machines that are too small with code 1."""
    hw = ("--hw", "rtx-4090", "--jobs", "1")
    long = ("frontier", "--model", "opt-1.3b", "--prompt-len", "5000", *hw)
    assert "positions of opt-1.3b" in complaint(run(*long))
    small = ("--set", "tiers.gpu.capacity=1.3 GiB", "--set", "tiers.cpu.capacity=5 GiB", *hw)
    assert "opt-175b" in complaint(run("frontier", "--model", "opt-175b", *small), code=1)
    assert "one part" in complaint(run("frontier", "--model", "opt-1.3b", "--workload", "voyager", *hw))
    assert "--points" in complaint(run(*ASKED, "--points", "1", *hw))
    assert "x.jpg" in complaint(run(*ASKED, "--picture", str(tmp_path / "x.jpg"), *hw))
