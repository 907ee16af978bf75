"""The command ``planner hardware diff``: every figure that two profiles do not share, and how it is shown."""

from __future__ import annotations

import doctest
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from planner import hardware_diff
from planner.cli import cli
from planner.hardware_diff import Difference, compare_profiles, report
from simulator.hardware import HardwareProfile
from simulator.profiles import decode_profile, load_profile, shipped_profiles
from tests.problems import with_memory
from tests.strategies import machines
from tests.test_operations import BEFORE, CALIBRATION, measured, plain

PAGE = Path(__file__).parents[1] / "docs" / "hardware-profiles.md"
BANDWIDTH = "links.h2d.pinned.bandwidth"
PROFILES = [load_profile(name) for name in shipped_profiles()]
any_machine = st.one_of(st.sampled_from(PROFILES), machines(), measured(BEFORE, "reference"))


def run(*arguments: object, code: int = 0) -> Result:
    """Run the command line in this process."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


def shown(first: HardwareProfile, second: HardwareProfile) -> str:
    """Give the report as a terminal of 110 columns prints it."""
    console = Console(width=110)
    with console.capture() as caught:
        console.print(report(compare_profiles(first, second)))
    return caught.get()


def with_interval(low: float, high: float, rate: str = "25 GB/s", path: str = BANDWIDTH) -> HardwareProfile:
    """Give a machine with a rate of copies and how far it may be off."""
    data = plain()
    data["links"]["h2d"]["pinned"]["bandwidth"] = rate
    data["calibration"] = CALIBRATION | {"intervals": {path: {"low": low, "high": high}}}
    return decode_profile(data)


# --- by hand ------------------------------------------------------------------------------------------------


def changed() -> HardwareProfile:
    """Change an a100-80: four figures that have a ratio, three that have none, and words."""
    data: dict[str, Any] = plain()
    data["tiers"]["gpu"]["capacity"] = "40 GiB"  # half
    data["links"]["h2d"]["pinned"]["latency"] = "25 us"  # of 10 us
    data["engines"]["gpu"]["matmul"]["float32"]["sharpness"] = 5.0  # of 4
    data["capacities"]["dram"]["lanes"]["cpu"] = 3.0  # of 1
    data["tiers"]["cpu"]["pinnable"] = "64 GiB"  # only here
    data["tiers"]["disk"]["reserve"] = "1 GB"  # of nothing
    del data["cost"]["power"]  # only there
    data["unified_memory"] = True
    data["name"] = "mine"
    data["sources"]["fit"]["kind"] = "measured"
    data["links"]["h2d"]["pinned"]["source"] = "fit"
    return decode_profile(data)


def test_by_hand() -> None:
    """The largest ratio comes first, twice and half alike; then what has none, by path."""
    found = compare_profiles(BEFORE, changed())
    assert found.words == ("name", "sources")
    assert found.figures[:4] == (
        Difference("capacities.dram.lanes.cpu", "1", "3", 2.0),
        Difference("links.h2d.pinned.latency", "10 us", "25 us", pytest.approx(1.5)),
        Difference("tiers.gpu.capacity", "80 GiB", "40 GiB", -0.5),
        Difference("engines.gpu.matmul.float32.sharpness", "4", "5", 0.25),
    )
    assert found.figures[4:] == (
        Difference("cost.power", "800 W", None),
        Difference("tiers.cpu.pinnable", None, "64 GiB"),
        Difference("tiers.disk.reserve", "0 B", "1 GB"),
        Difference("unified_memory", "false", "true"),
    )


def test_the_report_by_hand() -> None:
    """A header with what the machines are, a row a figure, a dash for what is not there."""
    lines = [" ".join(line.split()) for line in shown(BEFORE, changed()).splitlines()]
    assert lines[0].startswith("A a100-80: NVIDIA A100 SXM 80 GB; AMD EPYC 7J13, 16 of 128 cores (assumed,")
    assert lines[1].startswith("B mine: ")
    assert lines[2] == "Beside figures these differ: name, sources."
    for row in (
        "figure A B change",
        "capacities.dram.lanes.cpu 1 3 +200 %",
        "links.h2d.pinned.latency 10 us 25 us +150 %",
        "tiers.gpu.capacity 80 GiB 40 GiB -50 %",
        "tiers.cpu.pinnable - 64 GiB -",
        "cost.power 800 W - -",
    ):
        assert row in lines


def test_equal_profiles_say_so() -> None:
    """Without any difference there is one line about it, and no table; words alone are named."""
    text = shown(BEFORE, BEFORE)
    assert text.endswith("The two profiles are equal.\n")
    assert "figure " not in text
    renamed = shown(BEFORE, decode_profile(plain() | {"name": "mine"}))
    assert renamed.endswith("Beside figures these differ: name.\nNo figure differs.\n")


def test_profiles_with_and_without_operations() -> None:
    """What was measured stands in the list like any other figure, and so do the constants of one engine."""
    data = plain()
    own = {"bandwidth": "20 GB/s", "piece": "2 us", "source": "fit"}
    data["operations"] = {"runtime": "reference", "transfers": {"load_cache": own}}
    assert compare_profiles(BEFORE, decode_profile(data)).figures == (
        Difference("operations.runtime", None, "reference"),
        Difference("operations.transfers.load_cache.bandwidth", None, "20 GB/s"),
        Difference("operations.transfers.load_cache.latency", None, "0 ns"),
        Difference("operations.transfers.load_cache.piece", None, "2 us"),
    )


# --- intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "within"),
    [
        (with_interval(-0.02, 0.03), with_interval(-0.02, 0.02, "26 GB/s"), True),  # 25.75 and 25.48
        (with_interval(-0.02, 0.01), with_interval(-0.02, 0.02, "26 GB/s"), False),  # 25.25 and 25.48
        (BEFORE, with_interval(-0.05, 0.0, "26 GB/s"), True),  # 25 and 24.7
        (BEFORE, with_interval(-0.03, 0.0, "26 GB/s"), False),  # 25 and 25.22
        (
            with_interval(-0.9, 9.0, path="links.h2d.peak"),
            with_interval(-0.9, 9.0, "26 GB/s", "cost.rent"),
            None,
        ),
    ],
)
def test_intervals_by_hand(first: HardwareProfile, second: HardwareProfile, within: bool | None) -> None:
    """A difference is within both intervals if these overlap; a value without one is exact."""
    [found] = compare_profiles(first, second).figures
    assert (found.path, found.change, found.within) == (BANDWIDTH, pytest.approx(0.04), within)
    [back] = compare_profiles(second, first).figures
    assert back.within == within


def test_intervals_are_shown() -> None:
    """Measured profiles get a column, a legend and a header that says how they were measured."""
    text = shown(with_interval(-0.02, 0.03), with_interval(-0.02, 0.02, "26 GB/s"))
    flat = " ".join(text.split())
    assert "measured 2026-11-20T14:05:00Z, quick, noise 2 %, drift -1 %" in flat
    assert f"{BANDWIDTH} 25 GB/s 26 GB/s +4 % within both" in flat
    assert "Intervals:" in text
    assert "beyond" in shown(BEFORE, with_interval(-0.01, 0.01, "26 GB/s"))
    assert "Intervals:" not in shown(BEFORE, changed())


# --- laws ---------------------------------------------------------------------------------------------------


@given(any_machine)
def test_a_profile_does_not_differ_from_itself(profile: HardwareProfile) -> None:
    """The difference of a profile and itself is empty."""
    found = compare_profiles(profile, profile)
    assert found.figures == found.words == ()


@given(any_machine, any_machine)
def test_either_order_names_the_same(first: HardwareProfile, second: HardwareProfile) -> None:
    """Both orders name the same figures in the same order, with values exchanged and inverse ratios."""
    there, back = compare_profiles(first, second), compare_profiles(second, first)
    assert there.words == back.words
    assert [each.path for each in there.figures] == [each.path for each in back.figures]
    assert (plain(first) == plain(second)) == (not there.figures and not there.words)
    for one, other in zip(there.figures, back.figures, strict=True):
        assert (one.first, one.second, one.within) == (other.second, other.first, other.within)
        if one.change is not None and other.change is not None and min(one.change, other.change) > -0.999:
            assert (1 + one.change) * (1 + other.change) == pytest.approx(1.0)
    changes = [each.change for each in there.figures if each.change is not None and each.change > -0.999]
    ratios = [abs(math.log1p(change)) for change in changes]
    assert all(one >= other - 1e-8 for one, other in itertools.pairwise(ratios))


@given(st.data(), st.sampled_from(PROFILES), st.floats(0.5, 2.0))
def test_a_figure_that_is_changed_is_found(
    data: st.DataObject, profile: HardwareProfile, factor: float
) -> None:
    """Any figure that is changed is the one difference that is found."""
    tier = data.draw(st.sampled_from(["gpu", "cpu", "disk"]))
    sizes = (1e12, round(1e12 * factor))
    one, other = (decode_profile(plain(with_memory(profile, **{tier: size}))) for size in sizes)
    found = compare_profiles(one, other).figures
    assert [each.path for each in found] == [f"tiers.{tier}.capacity"] * (sizes[0] != sizes[1])
    assert [each.change for each in found] == [pytest.approx(factor - 1.0)] * len(found)


# --- the command --------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_command_prints() -> None:
    """The example on the page is current."""
    page = PAGE.read_text(encoding="utf-8").partition(
        "planner hardware diff a100-40 a100-80\n```\n\n```text\n"
    )
    printed = "\n".join(
        line.rstrip() for line in run("hardware", "diff", "a100-40", "a100-80").stdout.split("\n")
    )
    assert page[2].partition("```")[0] == printed


def test_json() -> None:
    """Programs get the same: values as the profiles write them, changes as fractions."""
    data = json.loads(run("hardware", "diff", "a100-40", "a100-80", "--format", "json").stdout)
    assert [each["name"] for each in data["profiles"]] == ["a100-40", "a100-80"]
    assert data["words"] == ["description", "engines.cpu.name", "engines.gpu.name", "name", "sources"]
    found = {each["path"]: each for each in data["figures"]}
    assert found["tiers.gpu.capacity"] == {
        "path": "tiers.gpu.capacity",
        "values": ["40 GiB", "80 GiB"],
        "change": 1.0,
        "within_intervals": None,
    }
    direct = compare_profiles(load_profile("a100-40"), load_profile("a100-80"))
    assert data == direct.to_json()


def test_files_and_names(tmp_path: Path) -> None:
    """A file is compared with a shipped machine, with any number of figures that only it has."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain(with_interval(-0.1, 0.1, "24 GB/s"))))
    text = run("hardware", "diff", "a100-80", path).stdout
    assert f"{BANDWIDTH}" in text
    assert "within both" in text
    assert "calibration" in text
    assert "a100-80" in run("hardware").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hardware", "diff", "a100-40"), "Missing argument 'B'"),
        (("hardware", "diff", "a100-40", "a100-81"), "did you mean a100-80?"),
        (("hardware", "diff", "no/such.yaml", "a100-80"), "neither a file nor a shipped profile"),
        (("hardware", "diff", "a100-40", "a100-80", "--format", "xml"), "'xml' is not one of"),
        (("hardware", "--format", "json", "diff", "a100-40", "a100-80"), "name it after diff"),
        (("hardware", "dif"), "No such command 'dif'"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], words: str) -> None:
    """What is wrong is said in one line on standard error, with exit code 2."""
    result = run(*arguments, code=2)
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_examples_of_the_module() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(hardware_diff).failed == 0
