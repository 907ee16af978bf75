"""``planner validate``: rows that ship, the summary, orders, malformed files, JSON, picture and page."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import cli
from planner.engine_rows import policy_of
from planner.measurements import (
    Measurement,
    Order,
    recognised,
    shipped_breakdowns,
    shipped_orders,
    shipped_suites,
)
from planner.score import Score, component_of, score_orders, summarise
from planner.validate_report import reasons
from simulator.model_config import catalogue_names
from simulator.operations import OPERATIONS
from simulator.profiles import shipped_profiles
from simulator.runtime import runtime_names

ROOT = Path(__file__).resolve().parent.parent
GOOD: dict[str, str] = {
    "id": "mine",
    "system": "flexgen",
    "model": "opt-1.3b",
    "prompt_len": "64",
    "gen_len": "4",
    "gpu_batch": "4",
    "num_gpu_batches": "2",
    "wg": "50",
    "wc": "50",
    "cg": "0",
    "cc": "100",
    "hg": "0",
    "hc": "100",
    "cpu_attention": "1",
    "weight_bits": "16",
    "cache_bits": "16",
    "overlap": "1",
    "pinned_weights": "1",
    "throughput_tok_s": "12.5",
    "source": "a run, on a machine",
}
PERCENTAGES = ("wg", "wc", "cg", "cc", "hg", "hc")
SIZES = ("prompt_len", "gen_len", "gpu_batch", "num_gpu_batches")


def text_of(*rows: dict[str, str]) -> str:
    """Write rows as CSV with the columns of the first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["validate", *arguments])


def scored(path: Path, text: str, *more: str) -> dict[str, Any]:
    """Score rows, and read the JSON that is printed."""
    path.write_text(text, encoding="utf-8")
    result = run("--file", str(path), "--hw", "t4-16", "--format", "json", *more)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def complaint(path: Path, text: str | bytes) -> str:
    """Give the one line that a malformed file must end with."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run("--file", str(path), "--hw", "t4-16")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {path}: ")
    return line


def score(name: str, predicted: float | None, measured: float = 10.0, **more: Any) -> Score:
    """Make a score as the command would."""
    error = None if predicted is None else predicted / measured - 1
    known: dict[str, Any] = {"suite": "one", "unit": "tok/s", "fitted": False} | more
    return Score(id=name, predicted=predicted, measured=measured, error=error, **known)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """What the command says about everything that ships."""
    result = run("--format", "json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


# Rows that ship -----------------------------------------------------------------------------------------


def test_shipped_rows_are_complete() -> None:
    """Every row decodes, has a source, a machine and a model that come along, and an id of its own."""
    rows = [row for suite in shipped_suites().values() for row in suite]
    assert len(rows) >= 33
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert row.source
        assert row.hardware in shipped_profiles()
        assert row.model in catalogue_names()
        assert policy_of(row).block == row.gpu_batch * row.num_gpu_batches


def test_only_the_headline_rows_are_fitted() -> None:
    """Constants were fitted to table 2 with prompts of 512 tokens, and to no other row."""
    rows = [row for suite in shipped_suites().values() for row in suite]
    headline = {row.id for row in rows if row.prompt_len == 512 and row.id.startswith("t2-")}
    assert {row.id for row in rows if row.fitted} == headline
    assert len(headline) == 10


def test_shipped_orders_name_rows_that_differ() -> None:
    """Both rows of a pair exist, and the faster one is faster by more than repeated runs might differ."""
    speeds = {row.id: row.throughput_tok_s for suite in shipped_suites().values() for row in suite}
    orders = shipped_orders()
    assert len({(order.faster_id, order.slower_id) for order in orders}) == len(orders)
    for order in orders:
        assert speeds[order.faster_id] > 1.02 * speeds[order.slower_id]


def test_the_breakdown_is_of_a_row_without_overlap() -> None:
    """Both stages of a run that ships, in which nothing runs beside anything else."""
    rows = {row.id: row for suite in shipped_suites().values() for row in suite}
    stages = shipped_breakdowns()
    assert {stage.stage for stage in stages} == {"prefill", "decode"}
    assert not any(rows[stage.row].overlap for stage in stages)


# Numbers ------------------------------------------------------------------------------------------------


def test_a_summary_by_hand() -> None:
    """Four errors of +10, -20, +40 and none; one more row was used for fitting."""
    rows = [score("a", 11.0), score("b", 8.0), score("c", 14.0), score("d", None, reason="why")]
    fitted, others = summarise([*rows, score("e", 10.5, fitted=True)])
    assert (others.suite, others.fitted, others.rows, others.unpredicted) == ("one", False, 4, 1)
    assert others.median_abs_error == pytest.approx(0.2)
    assert others.mean_error == pytest.approx(0.1)
    assert others.worst_error == pytest.approx(0.4)
    assert others.worst_id == "c"
    assert others.near == pytest.approx(1 / 3)
    assert (fitted.fitted, fitted.rows, fitted.unpredicted, fitted.near) == (True, 1, 0, 1.0)


def test_a_summary_of_nothing() -> None:
    """Without predictions there are counts and no errors."""
    (summary,) = summarise([score("a", None, reason="why")])
    assert (summary.rows, summary.unpredicted) == (1, 1)
    assert summary.median_abs_error is None
    assert summary.near is None


def test_suites_of_one_unit_are_summed_up_together() -> None:
    """Two suites have a common line; throughputs and times have none."""
    two = [score("a", 11.0), score("b", 9.0, suite="two")]
    assert [each.rows for each in summarise(two) if each.suite == "all suites"] == [2]
    mixed = [score("a", 11.0), score("b", 9.0, suite="two", unit="ms")]
    assert {each.suite for each in summarise(mixed)} == {"one", "two"}


def test_orders() -> None:
    """A pair is as measured if the faster row is predicted to be faster; unknown without a prediction."""
    scores = [score("a", 8.0, 10.0), score("b", 6.0, 5.0), score("c", 9.0, 2.0), score("d", None, 1.0)]
    pairs = [Order(faster_id="a", slower_id=slower, meaning="it helps") for slower in "bcd"]
    first, second, third = score_orders(pairs, scores)
    assert (first.measured_ratio, first.predicted_ratio, first.as_measured) == (2.0, 8 / 6, True)
    assert (second.measured_ratio, second.predicted_ratio, second.as_measured) == (5.0, 8 / 9, False)
    assert (third.measured_ratio, third.predicted_ratio, third.as_measured) == (10.0, None, None)


def test_components() -> None:
    """Cores compute; copies are of weights or cache, in or out, or of neither."""
    found = {each.name: component_of(each) for each in OPERATIONS}
    assert found["mlp"] == found["attend_cpu"] == "compute"
    assert found["read_weights"] == found["load_weights"] == "weight_read"
    assert found["read_cache"] == found["load_cache"] == "cache_read"
    assert found["store_cache"] == found["write_cache"] == "cache_write"
    assert found["load_activations"] is None
    of_tensors = [name for name in found if name.endswith(("_weights", "_cache", "_embeddings"))]
    assert all(found[name] for name in of_tensors)


def test_reasons_are_told_once() -> None:
    """Rows without a prediction are listed by reason."""
    rows = [score("a", None, reason="x"), score("b", 1.0), score("c", None, reason="x")]
    assert reasons(rows) == ["no prediction for a, c: x"]


# The command --------------------------------------------------------------------------------------------


def test_json_of_what_ships(shipped: dict[str, Any]) -> None:
    """Every row is there with its prediction or the reason why there is none; so are orders and breakdown."""
    ids = [row.id for suite in shipped_suites().values() for row in suite]
    assert [row["id"] for row in shipped["rows"]] == ids
    for row in shipped["rows"]:
        assert {"predicted", "measured", "error", "fitted", "suite", "unit"} <= set(row)
        if row["predicted"] is None:
            assert row["reason"]
        else:
            assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    assert sum(each["rows"] for each in shipped["summary"] if each["suite"] != "all suites") == len(ids)
    assert len(shipped["orders"]) == len(shipped_orders())
    assert len(shipped["breakdown"]) == 5 * len(shipped_breakdowns())


def test_rows_of_engines_that_are_described_are_predicted(shipped: dict[str, Any]) -> None:
    """Only a missing description of an engine may leave a shipped row without a prediction."""
    for row in shipped["rows"]:
        assert (row["predicted"] is not None) == (row["system"] in runtime_names()), row


def test_the_breakdown_adds_up(shipped: dict[str, Any]) -> None:
    """Nothing is read before the first pass ends, and no component of a serial run takes longer than all."""
    seconds = {(each["stage"], each["component"]): each["predicted"] for each in shipped["breakdown"]}
    assert seconds["prefill", "cache_read"] == 0
    assert all(seconds[stage, "compute"] > 0 for stage in ("prefill", "decode"))


def test_text_of_what_ships() -> None:
    """Every row, the summary, the orders and the breakdown are printed, within the width."""
    result = run()
    assert result.exit_code == 0
    for part in ("Summary", "within 10 %", "Orders that matter", "CPU attention helps: 30B", "Breakdown of"):
        assert part in result.stdout
    for suite in shipped_suites().values():
        assert all(row.id in result.stdout for row in suite)
    assert max(len(line) for line in result.stdout.splitlines()) <= 110


def test_a_file(tmp_path: Path) -> None:
    """Rows of the user's are scored on the machine that is named; they count as not used for fitting."""
    outcome = scored(tmp_path / "mine.csv", text_of(GOOD, GOOD | {"id": "other", "overlap": "0"}))
    assert [(row["id"], row["suite"], row["fitted"]) for row in outcome["rows"]] == [
        ("mine", "mine", False),
        ("other", "mine", False),
    ]
    assert all(row["predicted"] > 0 for row in outcome["rows"])
    assert outcome["orders"] == outcome["breakdown"] == []


def test_what_may_be_left_out(tmp_path: Path) -> None:
    """A mark of spreadsheets, comments, empty lines, spaces, and an empty cell of an optional column."""
    rows = text_of(GOOD | {"fitted": "yes"}, GOOD | {"id": "two", "fitted": ""}).replace("12.5", " 12.5 ")
    outcome = scored(tmp_path / "mine.csv", f"\ufeff# a comment, with a comma\n\n{rows}\n")
    assert [(row["measured"], row["fitted"]) for row in outcome["rows"]] == [(12.5, True), (12.5, False)]


def test_a_machine_may_stand_in_the_row(tmp_path: Path) -> None:
    """Without --hw a row needs a machine of its own."""
    path = tmp_path / "mine.csv"
    path.write_text(text_of(GOOD | {"hardware": "t4-16"}))
    assert run("--file", str(path)).exit_code == 0
    path.write_text(text_of(GOOD))
    result = run("--file", str(path))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "--hw" in result.stderr


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("model", "opt-7.6b", "opt-6.7b"), ("num_gpu_batches", "1000000", "too many")],
)
def test_a_row_that_cannot_be_predicted(column: str, value: str, reason: str, tmp_path: Path) -> None:
    """It is shown with the reason and counted; the exit code is 0."""
    text = text_of(GOOD, GOOD | {"id": "odd", column: value})
    outcome = scored(tmp_path / "mine.csv", text)
    first, second = outcome["rows"]
    assert first["predicted"] > 0
    assert second["predicted"] is None
    assert reason in second["reason"]
    assert [(each["rows"], each["unpredicted"]) for each in outcome["summary"]] == [(2, 1)]
    printed = run("--file", str(tmp_path / "mine.csv"), "--hw", "t4-16")
    assert printed.exit_code == 0
    assert "no prediction for odd" in printed.stdout


def test_kernel_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a kernel table are numbered, in milliseconds, and only summed up in the text."""
    kernels = ModuleType("planner.validate_kernels")
    vars(kernels)["read_kernels"] = lambda path: path
    vars(kernels)["predict_kernels"] = lambda table, profile: ([0.002, 0.003], [0.001, 0.004])
    monkeypatch.setitem(sys.modules, "planner.validate_kernels", kernels)
    arguments = ("--kernels", str(tmp_path / "gemm.csv.gz"), "--hw", "a100-80")
    first, second = json.loads(run(*arguments, "--format", "json").stdout)["rows"]
    assert (first["id"], first["suite"], first["unit"]) == ("gemm:1", "gemm", "ms")
    assert (first["predicted"], first["measured"], first["error"]) == pytest.approx((2.0, 1.0, 1.0))
    assert (second["id"], second["error"]) == ("gemm:2", pytest.approx(-0.25))
    assert second["fitted"] is None
    text = run(*arguments).stdout
    assert "gemm" in text
    assert "62.5 %" in text
    assert "--hw" in run("--kernels", str(tmp_path / "gemm.csv.gz")).stderr


# Malformed files ----------------------------------------------------------------------------------------

CELLS = {
    "more than all": ({"wg": "120"}, "column wg"),
    "more than all together": ({"wg": "60", "wc": "50"}, "wg and wc sum to 110"),
    "negative percentage": ({"cc": "-1"}, "column cc"),
    "unknown engine": ({"system": "flexgn"}, "did you mean flexgen?"),
    "five bits": ({"weight_bits": "5"}, "column weight_bits"),
    "bits in words": ({"cache_bits": "four"}, "column cache_bits"),
    "no number": ({"throughput_tok_s": "nan"}, "column throughput_tok_s"),
    "infinite": ({"throughput_tok_s": "inf"}, "column throughput_tok_s"),
    "negative throughput": ({"throughput_tok_s": "-1"}, "column throughput_tok_s"),
    "no throughput": ({"throughput_tok_s": "0"}, "column throughput_tok_s"),
    "empty cell": ({"throughput_tok_s": ""}, "column throughput_tok_s"),
    "half a sequence": ({"gpu_batch": "1.5"}, "column gpu_batch"),
    "no sequences": ({"gpu_batch": "0"}, "column gpu_batch"),
    "no truth": ({"overlap": "2"}, "column overlap"),
    "maybe fitted": ({"fitted": "maybe"}, "column fitted"),
    "no name": ({"id": ""}, "column id"),
    "unknown machine": ({"hardware": "t4-16", "fited": "yes"}, "did you mean fitted?"),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_malformed_row(case: str, tmp_path: Path) -> None:
    """One line names the file, the row, the column and what would be right."""
    change, part = CELLS[case]
    line = complaint(tmp_path / "rows.csv", text_of(GOOD | change))
    assert part in line


def test_the_row_is_named(tmp_path: Path) -> None:
    """The second row, on the fourth line of a file with a comment."""
    text = "# comment\n" + text_of(GOOD, GOOD | {"id": "b", "hg": "200"})
    assert "row 2 (line 4), column hg: " in complaint(tmp_path / "rows.csv", text)


FILES: dict[str, str | bytes] = {
    "empty": "",
    "only a comment": "# nothing\n",
    "only a header": text_of(GOOD).splitlines()[0],
    "no CSV": text_of(GOOD).replace('"a run', 'x "a run').replace('machine"', '"machine" y"'),
    "a quote never closed": text_of(GOOD).replace('machine"', "machine"),
    "not text": b"\x00\xff\xfe",
    "a short row": text_of(GOOD).replace(",12.5,", ",", 1),
    "a long row": text_of(GOOD).replace(",12.5,", ",12.5,1,", 1),
    "a column twice": text_of(GOOD).replace("overlap", "cpu_attention", 1),
    "the same id twice": text_of(GOOD, GOOD),
    "another table": "stage,total_s\nprefill,1\n",
}


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_file(case: str, tmp_path: Path) -> None:
    """A file that is no such table is told in one line."""
    complaint(tmp_path / "rows.csv", FILES[case])


@pytest.mark.parametrize("column", GOOD)
def test_a_missing_column(column: str, tmp_path: Path) -> None:
    """Every column is needed but the source."""
    text = text_of({name: value for name, value in GOOD.items() if name != column})
    if column == "source":
        assert scored(tmp_path / "rows.csv", text)["rows"]
    else:
        assert f"lacks the column {column}" in complaint(tmp_path / "rows.csv", text)


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, and a folder."""
    for path in (tmp_path / "none.csv", tmp_path):
        result = run("--file", str(path), "--hw", "t4-16")
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


BAD_CELL = st.one_of(
    st.tuples(st.sampled_from(PERCENTAGES), st.floats(100.01, 1e300).map(repr)),
    st.tuples(st.sampled_from(PERCENTAGES), st.floats(max_value=-1e-3).map(repr)),
    st.tuples(st.sampled_from(SIZES), st.integers(max_value=0).map(str)),
    st.tuples(st.sampled_from(SIZES), st.integers(min_value=10**8).map(str)),
    st.tuples(st.sampled_from(("weight_bits", "cache_bits")), st.integers().map(str)).filter(
        lambda each: each[1] not in ("4", "8", "16")
    ),
    st.tuples(st.just("throughput_tok_s"), st.floats(max_value=0).map(repr)),
    st.tuples(
        st.sampled_from([name for name in GOOD if name not in ("id", "model", "source", "system")]),
        st.sampled_from(["", "nan", "inf", "-inf", "NaN", "many", "1e999", "[1]", "\x1b[1m", "\u2028", "--"]),
    ),
    st.tuples(
        st.just("system"), st.text(st.characters(exclude_categories=["Cs"]), max_size=99).map("?".__add__)
    ),
)


@given(bad=BAD_CELL, good=st.integers(0, 3))
def test_no_malformed_row_gets_through(bad: tuple[str, str], good: int, tmp_path_factory: Any) -> None:
    """Whatever is wrong in whichever row: exit code 2 and one line, nothing on standard output."""
    rows = [GOOD | {"id": f"row {number}"} for number in range(good)]
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    assert f"row {good + 1} " in complaint(path, text_of(*rows, GOOD | dict([bad])))


# Picture and page ---------------------------------------------------------------------------------------


def test_a_picture_of_no_known_kind(tmp_path: Path) -> None:
    """The kind of picture is checked before anything is simulated."""
    result = run("--picture", str(tmp_path / "picture.gif"))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
@pytest.mark.filterwarnings("default")
def test_a_picture(kind: str, start: bytes, tmp_path: Path) -> None:
    """The picture is written where it was asked for, and is the same every time."""
    pictures = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.{kind}"
        result = run("--picture", str(path))
        assert result.exit_code == 0, result.output
        assert result.stdout.rstrip().endswith(f"written: {path}")
        pictures.append(path.read_bytes())
    assert pictures[0].startswith(start)
    assert pictures[0] == pictures[1]


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is not there is told in one line."""
    result = run("--picture", str(tmp_path / "none" / "picture.png"))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_accuracy", ROOT / "tools" / "write_accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_rows_that_ship() -> None:
    """Markers stand on the page; its rows and orders are those that ship."""
    writer = _writer()
    page = writer.PAGE.read_text(encoding="utf-8")
    texts = {section: writer.between(page, section) for section in writer.SECTIONS}
    rows = re.findall(r"^\| (\S+) \|", texts["rows"], flags=re.MULTILINE)
    assert rows[2:] == [row.id for suite in shipped_suites().values() for row in suite]
    assert all(order.meaning in texts["orders"] for order in shipped_orders())
    assert all(stage.stage in texts["breakdown"] for stage in shipped_breakdowns())
    assert all(suite in texts["summary"] for suite in shipped_suites())


def test_a_row_is_refused_in_words() -> None:
    """A record made in a program is checked as a file's row is."""
    with pytest.raises(ValueError, match="cg and cc sum to 130"):
        Measurement.model_validate(GOOD | {"cg": 30})


def test_rows_that_ship_are_recognised() -> None:
    """The same run in a file of the user's is known: fitted or not, and how it was measured."""
    shipped = {row.id: row for suite in shipped_suites().values() for row in suite}
    row = shipped["t2-30b-512"]
    plain = row.model_dump(exclude={"fitted", "first_step", "hardware", "source"}) | {"id": "mine"}
    (same,) = recognised([Measurement.model_validate(plain)])
    assert (same.id, same.fitted, same.first_step) == ("mine", True, True)
    (other,) = recognised([Measurement.model_validate(plain | {"throughput_tok_s": 7.4})])
    assert (other.fitted, other.first_step) == (False, False)
    (said,) = recognised([Measurement.model_validate(plain | {"first_step": False})])
    assert (said.fitted, said.first_step) == (True, False)
