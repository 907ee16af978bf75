"""Sizing: whole machines for a load, the cheapest first, and what a budget buys."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.costs import Economics
from planner.size import Sizing, size
from planner.size_command import check_budget, cost_chart, read_budget, read_load
from planner.study_answer import Answer
from planner.study_files import read_findings
from simulator.errors import InfeasibleError, InputError
from simulator.profiles import load_profile, override_profile
from simulator.workload import Workload
from tests.study_cases import SHORT_OPTIONS, cell, complaint, made_up_answer, mix, planned, run

DAY = 86400.0
FREE = load_profile("t4-16").model_copy(update={"cost": None, "name": "free"})


def machine(rent: str, name: str = "rented") -> object:
    """Make a machine that costs so much an hour."""
    return override_profile(load_profile("t4-16"), (f"cost.rent={rent}", f"name={name}"))


def sizing(load: float, *machines: tuple[object, float, float]) -> Sizing:
    """Size machines of so many tok/s, and of such a ceiling."""
    cells = [cell(hardware=one, machine=one.name) for one, *_ in machines]  # type: ignore[attr-defined]
    replies = [
        made_up_answer(asked, tok_s, ceiling=ceiling)
        for asked, (_, tok_s, ceiling) in zip(cells, machines, strict=True)
    ]
    return size(cells, replies, load, Economics())


def test_machines_by_hand() -> None:
    """25 tok/s on average: three of 10 tok/s, one of 40, at least two and one by ceilings of 20 and 50.

    Three at 1 USD/h are 72 USD a day, one at 2 USD/h 48; the bound is one of the cheap's two: 48.
    """
    load = 25 * DAY
    found = sizing(load, (machine("1 USD/h", "slow"), 10, 20), (machine("2 USD/h", "fast"), 40, 50))
    fast, slow = found.sized
    assert (fast.machine, fast.machines, fast.at_least, fast.cell) == ("fast", 1, 1, 1)
    assert (slow.machine, slow.machines, slow.at_least, slow.cell) == ("slow", 3, 2, 0)
    assert (fast.usd_per_day, slow.usd_per_day) == (48.0, 72.0)
    assert found.least_usd_per_day == 48.0
    assert slow.usd_per_million_tokens == pytest.approx(72 / (25 * DAY) * 1e6)
    assert slow.tokens_per_usd == pytest.approx(25 * DAY / 72)
    assert (fast.busy, slow.busy) == (pytest.approx(25 / 40), pytest.approx(25 / 30))
    assert slow.joules_per_token == pytest.approx(350 / 10)


def test_a_load_that_is_just_served() -> None:
    """Exactly three machines' worth is three machines, not four for the sake of a rounding."""
    found = sizing(3 * 0.1 * DAY, (machine("1 USD/h"), 0.1, 0.1))
    assert (found.sized[0].machines, found.sized[0].at_least) == (3, 3)


SPEEDS = st.floats(0.1, 1e4)


@given(
    load=st.floats(1.0, 1e12),
    kinds=st.lists(st.tuples(st.integers(0, 900), SPEEDS, st.floats(1.0, 9.0)), min_size=1, max_size=4),
)
def test_machines_serve_the_load(load: float, kinds: list[tuple[int, float, float]]) -> None:
    """So many serve the load and one less does not; the cheapest is first, unpriced ones last."""
    machines = [
        (machine(f"{price} USD/h") if price else FREE, tok_s, tok_s * above) for price, tok_s, above in kinds
    ]
    found = sizing(load, *machines)
    needed = load / DAY
    for each in found.sized:
        assert each.machines * each.tok_s >= needed * (1 - 1e-9)
        assert each.machines == 1 or (each.machines - 1) * each.tok_s < needed
        assert each.machines == max(1, math.ceil(needed / each.tok_s * (1 - 1e-12)))
        assert 1 <= each.at_least <= each.machines
        assert each.busy <= 1 + 1e-9
    costs = [each.usd_per_day for each in found.sized if each.usd_per_day is not None]
    assert costs == sorted(costs)
    assert [each.usd_per_day is None for each in found.sized] == sorted(
        each.usd_per_day is None for each in found.sized
    )
    if costs:
        assert found.least_usd_per_day is not None
        assert found.least_usd_per_day <= costs[0] * (1 + 1e-9)
    else:
        assert found.least_usd_per_day is None


def test_a_mix_is_sized_as_a_whole() -> None:
    """8 x 4 tokens at 4 tok/s and 8 x 4 at 16 are 64 tokens in 10 s: 6.4 tok/s."""
    parts = mix(Workload(prompt_len=8, gen_len=4), Workload(prompt_len=9, gen_len=4), counts=[8.0, 8.0])
    one = cell(mix=parts)
    found = size([one], [made_up_answer(one, 4.0, 16.0, ceiling=32.0)], 12.8 * DAY, Economics())
    assert found.sized[0].tok_s == pytest.approx(6.4)
    assert (found.sized[0].machines, found.sized[0].at_least) == (2, 1)


def test_machines_that_cannot() -> None:
    """A machine without a plan is listed with its reason; if none can, what is too small goes first."""
    cells = [cell(), cell("t4-16")]
    wrong, small = (Answer(status=status, reason=status) for status in ("failed", "infeasible"))
    found = size(cells, [wrong, planned()], DAY, Economics())
    assert [each.machine for each in found.sized] == ["t4-16"]
    assert [(each.machine, each.reason, each.cell) for each in found.unfit] == [("rtx-4090", "failed", 0)]
    assert isinstance(size(cells, [wrong, wrong], DAY, Economics()).none_can, InputError)
    error = size(cells, [wrong, small], DAY, Economics()).none_can
    assert isinstance(error, InfeasibleError)
    assert "t4-16: infeasible" in str(error)


def test_budgets_by_hand() -> None:
    """72 USD/day are within 72 and not within 71; that buys two of the three machines."""
    found = sizing(25 * DAY, (machine("1 USD/h"), 10, 20))
    check_budget(found, None)
    check_budget(found, 72.0)
    with pytest.raises(InfeasibleError, match=r"pays for 2 rented, which is 1\.728e\+06 tokens a day"):
        check_budget(found, 71.0)
    with pytest.raises(InfeasibleError, match="pays for 0 rented"):
        check_budget(found, 1.0)
    with pytest.raises(InputError, match="has a price"):
        check_budget(sizing(DAY, (FREE, 10, 20)), 1.0)


def test_machines_of_one_name_are_told_apart() -> None:
    """Two files of machines may be called alike: the chart has a bar for each."""
    found = sizing(DAY, *[(machine("1 USD/h"), 10, 20)] * 3)
    assert cost_chart(found).series[0].x == ("rented", "rented (2)", "rented (3)")


@given(number=st.integers(1, 10**6), unit=st.sampled_from(["", "k", "M", "G", "B", " M", "e3", "."]))
def test_loads_are_read(number: int, unit: str) -> None:
    """Counts may have a prefix of a thousand, a million or a billion."""
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, " M": 1e6, "e3": 1e3}
    assert read_load(f"{number}{unit}") == number * scale.get(unit, 1.0)


@pytest.mark.parametrize("text", ["50 apples", "", "M", "-5", "0", "1e99", "nan", "inf", "5 M M", "\u0665"])
def test_what_is_no_load(text: str) -> None:
    """Other counts are refused in one line."""
    with pytest.raises(InputError, match="--tokens-per-day"):
        read_load(text)


def test_budgets_are_read() -> None:
    """Budgets are by the day, the hour or the month."""
    assert read_budget(None) is None
    assert read_budget("200 USD/day") == 200.0
    assert read_budget("1 USD/h") == 24.0
    for text in ("200", "200 USD", "many USD/day", "-1 USD/day"):
        with pytest.raises(InputError, match="--budget"):
            read_budget(text)


# The command.

ASKED = ("size", "--model", "opt-1.3b", *SHORT_OPTIONS, "--jobs", "1")
MACHINES = ("--hw", "rtx-4090", "--hw", "t4-16", "--hw", "rtx-4090")


def test_the_command(tmp_path: Path) -> None:
    """Text and JSON say the same, a folder becomes a page; over the budget the code is 1."""
    options = (*ASKED, *MACHINES, "--tokens-per-day", "200M", "--budget", "5 USD/day")
    shown = run(*options, "--out", str(tmp_path / "out"), "--picture", str(tmp_path / "cost.svg"))
    assert "the cheapest costs" in complaint(shown, code=1)
    data = json.loads(run(*options, "--format", "json").stdout)
    best, other = data["machines"]
    assert (best["machine"], other["machine"]) == ("rtx-4090", "t4-16")
    for each in data["machines"]:
        assert each["machines"] == math.ceil(200e6 / DAY / each["tok_s"])
        assert each["at_least"] <= each["machines"]
    assert f"Cheapest: {best['machines']} x rtx-4090, {best['usd_per_day']:.4g} USD/day." in shown.stdout
    assert data["least_usd_per_day"] <= best["usd_per_day"] < other["usd_per_day"]
    _, rows = read_findings(tmp_path / "out")
    assert [row["machine"] for row in rows] == ["rtx-4090", "t4-16"]
    assert rows[best["cell"]]["tok_s"] == best["tok_s"]
    assert run("report", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "cost.svg").is_file()


def test_wrong_questions() -> None:
    """Counts, budgets and lengths that make no sense end with code 2, machines that are too small with 1."""
    assert "50 apples" in complaint(run(*ASKED, "--tokens-per-day", "50 apples"))
    assert "--budget" in complaint(run(*ASKED, "--tokens-per-day", "1M", "--budget", "9 apples"))
    long = ("size", "--model", "opt-1.3b", "--prompt-len", "5000", "--tokens-per-day", "1M", "--jobs", "1")
    assert "positions of opt-1.3b" in complaint(run(*long, "--hw", "t4-16"))
    tight = (*ASKED, "--tokens-per-day", "1M", "--hw", "t4-16", "--max-latency", "1 us")
    assert "no machine can: t4-16" in complaint(run(*tight), code=1)
