"""What a plan depends on: prices hold as far as is said, and changes are those of the machine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from planner.plan import Plan
from planner.prices import Figure, figures
from planner.program import Program
from planner.sensitivity import (
    Held,
    Sensitivity,
    changed,
    changes,
    held,
    outer_of,
    problem_of,
    sensitivity,
)
from planner.sensitivity_charts import heat_map, tornado, uncertain
from planner.study_answer import Answer, answer
from planner.study_cells import Cell, cell_key
from planner.study_files import read_findings
from planner.words import LANE_WORDS
from simulator.errors import InputError
from simulator.profiles import load_profile
from tests.calibrated import CALIBRATED
from tests.study_cases import LIMITED_WORK, SHORT_OPTIONS, cell, complaint, run

BASE = cell("t4-16", "opt-6.7b")
LARGE = cell("t4-16", "opt-30b", work=LIMITED_WORK)


@cache
def one_answer(key: str) -> Answer:
    """Answer a cell that was asked before, once in a process."""
    return answer(ASKED[key])


ASKED: dict[str, Cell] = {}


def ask(cells: Sequence[Cell]) -> list[Answer]:
    """Answer cells; equal ones once."""
    ASKED.update({cell_key(one): one for one in cells})
    return [one_answer(cell_key(one)) for one in cells]


def plan_of(one: Cell) -> Plan:
    """Plan a cell."""
    return ask([one])[0].plans[0].plan


def found(factors: Sequence[float] = (0.5, 2.0), pair: Sequence[str] = ()) -> Sensitivity:
    """Find what the base depends on."""
    return sensitivity(BASE, plan_of(BASE), factors, [0.5, 1.0, 2.0], pair, ask)


def solved(one: Cell, figure: Figure, factor: float) -> float:
    """Solve the program of a cell's plan on a machine read anew with the figure changed."""
    problem, outer = problem_of(one), outer_of(one, plan_of(one))
    machine = load_profile(one.hardware.name, changes(figure, factor)) if factor != 1.0 else one.hardware
    answer = Program(replace(problem, hardware=machine), outer).solve()
    return answer.throughput if answer else 0.0


@cache
def held_of(name: str) -> tuple[Held, ...]:
    """Find how far the prices of a plan hold."""
    one = {"base": BASE, "large": LARGE}[name]
    return tuple(held(one, plan_of(one)))


@pytest.mark.parametrize("name", ["base", "large"])
def test_prices_hold_where_they_are_said_to(name: str) -> None:
    """At both ends what the program gains is within a tenth of what the price promises, just beyond not.

    Prices themselves are those of the plan, for what the resource is now.
    """
    one = {"base": BASE, "large": LARGE}[name]
    prices = {each.resource: each.tok_s_per_unit for each in plan_of(one).prices}
    start = solved(one, held_of(name)[0].figure, 1.0)
    assert {each.figure.name for each in held_of(name)} == set(prices)
    assert sum(each.tok_s_per_unit * each.value > 0.01 * start for each in held_of(name)) >= 1
    for each in held_of(name):
        assert each.tok_s_per_unit == prices[each.figure.name]
        assert each.value == each.figure.value(one.hardware) / each.figure.size
        assert 0.5 <= each.low <= 1.0 <= each.high <= 2.0
        for end, beyond in ((each.low, each.low / 1.02), (each.high, each.high * 1.02)):
            promised = each.tok_s_per_unit * each.value * (end - 1.0)
            gained = solved(one, each.figure, end) - start
            assert abs(gained - promised) <= max(0.1 * abs(promised), 1e-5 * start) * (1 + 1e-6)
            if 0.5 < beyond < 2.0 and end not in (0.5, 2.0):
                promised = each.tok_s_per_unit * each.value * (beyond - 1.0)
                assert abs(solved(one, each.figure, beyond) - start - promised) > 0.1 * abs(promised)


@pytest.mark.parametrize("name", ["base", "large"])
def test_more_never_hurts(name: str) -> None:
    """With more of a resource the program's answer is never lower."""
    one = {"base": BASE, "large": LARGE}[name]
    for figure in figures(problem_of(one), outer_of(one, plan_of(one))):
        speeds = [solved(one, figure, factor) for factor in (0.25, 0.5, 0.8, 1.0, 1.3, 2.0, 4.0)]
        for before, after in itertools.pairwise(speeds):
            assert after >= before * (1 - 1e-9), figure.name


def test_a_factor_of_one_changes_nothing() -> None:
    """The machine as it is is the base itself, and is planned once."""
    for figure in figures(problem_of(BASE), outer_of(BASE, plan_of(BASE))):
        assert changed(BASE, {figure: 1.0}) == BASE
    same = found((1.0,))
    assert {value for swing in same.swings.values() for value in swing.values()} == {same.base_tok_s}
    assert same.pairs[1.0, 1.0] == same.base_tok_s
    assert same.number({"h2d": 1.0}) == 0


def test_changes_are_those_of_the_machine() -> None:
    """A change multiplies the figure, with more of it the peak too, nothing else; as one would type it."""
    known = figures(problem_of(BASE), outer_of(BASE, plan_of(BASE)))
    for figure in known:
        for factor in (0.5, 1 / 3, 2.0):
            one = changed(BASE, {figure: factor})
            assert figure.value(one.hardware) == pytest.approx(figure.value(BASE.hardware) * factor)
            assert one.hardware == load_profile("t4-16", one.overrides)
            assert one.variant == f"{factor:.3g} x {LANE_WORDS.get(figure.name, figure.name)}"
    link = next(each for each in known if each.name == "h2d")
    peak = BASE.hardware.links.h2d.peak
    assert changed(BASE, {link: 2.0}).hardware.links.h2d.peak == 2 * peak
    assert changed(BASE, {link: 0.5}).hardware.links.h2d.peak == peak


def test_swings_are_plans_of_their_cells() -> None:
    """Every resource has a bar for each factor, as fast as its cell's plan; the pair are the largest two."""
    result = found()
    names = {each.resource for each in plan_of(BASE).prices}
    assert set(result.swings) == names
    for name, swing in result.swings.items():
        assert set(swing) == {0.5, 1.0, 2.0}
        for factor, value in swing.items():
            number = result.number({name: factor})
            assert number is not None
            plans = result.answers[number].plans
            assert value == (plans[0].plan.predictions.throughput_tok_s if plans else None)
    largest = sorted(names, key=result.swing, reverse=True)
    assert result.swing(largest[1]) > 0.0
    assert {result.swing(name) for name in result.pair} == {result.swing(name) for name in largest[:2]}
    first, second = result.pair
    assert result.pairs[2.0, 1.0] == result.swings[first][2.0]
    assert result.pairs[1.0, 0.5] == result.swings[second][0.5]


def test_charts_show_all_of_it() -> None:
    """The tornado has every resource, the heat map every pair; points know their rows."""
    result = found()
    chart = tornado(result)
    assert chart.base == result.base_tok_s
    assert [one.name for one in chart.series] == ["0.5 times as much", "2 times as much"]
    for one, factor in zip(chart.series, (0.5, 2.0), strict=True):
        assert len(set(one.x)) == len(result.swings)
        assert one.y == tuple(swing[factor] for swing in result.swings.values())
        assert None not in one.cells
    both = heat_map(result)
    values = {each for one in both.series for each in one.y}
    assert values == set(result.pairs.values())
    assert None not in {each for one in both.series for each in one.cells}
    assert list(uncertain(result)) == []


def test_a_machine_that_cannot_be() -> None:
    """With less memory than the reserve nothing fits: a bar is missing, and the others stand."""
    one = cell("cpu-only", "opt-1.3b", sets=("tiers.gpu.reserve=300 GiB",))
    result = sensitivity(one, plan_of(one), (0.4,), [0.4, 1.0], ("gpu memory", "h2d"), ask)
    assert result.swings["gpu memory"][0.4] is None
    assert result.number({"gpu memory": 0.4}) is None
    assert [result.pairs[key] for key in ((0.4, 0.4), (0.4, 1.0))] == [None, None]
    assert result.pairs[1.0, 1.0] == result.base_tok_s
    assert len(result.cells) == len(result.answers)


def test_pinned_memory_answers_to_its_name() -> None:
    """Where not all memory can be pinned, ``cpu memory`` is what can; a pair of one resource is refused."""
    one = cell("t4-16", "opt-1.3b", sets=("tiers.cpu.pinnable=100 GiB",))
    result = sensitivity(one, plan_of(one), (), [1.0], ("cpu memory", "h2d"), ask)
    assert result.pair == ("cpu memory (pinned)", "h2d")
    for pair, said in ((("h2d", "h2d"), "two different"), (("h2d", "warp"), "the machine has none")):
        with pytest.raises(InputError, match=said):
            sensitivity(one, plan_of(one), (), [1.0], pair, ask)


# The command.


def test_the_command(tmp_path: Path) -> None:
    """Text and JSON say the same; pictures are drawn, and the folder has a row for every plan."""
    options = ("sensitivity", "--hw", "rtx-4090", "--model", "opt-1.3b", *SHORT_OPTIONS, "--jobs", "1")
    options = (*options, "--grid", "2", "--out", str(tmp_path / "out"))
    pictures = ("--picture", str(tmp_path / "tornado.svg"), "--heat-map", str(tmp_path / "heat.png"))
    shown = run(*options, *pictures, "--pair", "h2d", "disk_read")
    assert shown.exit_code == 0, shown.output
    assert "Which uncertain constant" not in shown.stdout
    for name in ("tornado.svg", "heat.png"):
        assert (tmp_path / name).stat().st_size > 1000
        assert f"written: {tmp_path / name}" in shown.stdout.replace("\n", "")
    data = json.loads(run(*options, "--pair", "h2d", "disk_read", "--format", "json").stdout)
    assert data["pair"] == ["h2d", "disk_read"]
    assert [each["factors"] for each in data["pair_tok_s"]] == [[0.5, 0.5], [0.5, 2], [2, 0.5], [2, 2]]
    assert data["uncertain"] == []
    findings, rows = read_findings(tmp_path / "out")
    assert [chart.key for chart in findings.charts] == ["what-matters", "two-together"]
    assert len(rows) == 1 + 2 * len(data["prices"]) + 4
    assert rows[0]["tok_s"] == data["tok_s"]
    for price in data["prices"]:
        assert set(price["tok_s_by_factor"]) == {"0.5", "1", "2"}
        assert price["tok_s_by_factor"]["1"] == data["tok_s"]
        assert 0.5 <= price["holds_from"] <= 1 <= price["holds_to"] <= 2


def test_a_calibrated_machine_has_uncertain_constants() -> None:
    """On a profile with intervals the constants that matter are listed, and drawn about the throughput."""
    profile = load_profile(str(CALIBRATED))
    work = {"prompt_len": 8, "gen_len": 2, "num_prompts": 4}
    one = cell("t4-16", "opt-125m", hardware=profile, work=work)
    result = sensitivity(one, plan_of(one), (), [1.0], (), ask)
    assert result.causes
    (chart,) = uncertain(result)
    low, high = chart.series
    assert low.x == high.x
    assert len(low.x) == len(result.causes)
    for below, above in zip(low.y, high.y, strict=True):
        assert below is not None
        assert above is not None
        assert below <= result.base_tok_s <= above


def test_wrong_questions() -> None:
    """What has no plan, no part or no such resource is told in one line."""
    asked = ("sensitivity", "--hw", "rtx-4090", "--model", "opt-1.3b", "--jobs", "1")
    assert "one of its parts" in complaint(run(*asked, "--workload", "voyager"))
    assert "positions" in complaint(run(*asked, "--prompt-len", "5000"))
    assert "latency limit" in complaint(run(*asked, *SHORT_OPTIONS, "--max-latency", "1 us"), code=1)
    assert "--pair" in complaint(run(*asked, "--pair", "h2d", "warp"))
    assert "--range" in complaint(run(*asked, "--range", "1"))
    assert "--max-latency" in complaint(run(*asked, "--max-latency", "60"))
