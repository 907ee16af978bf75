"""The example study: its page is what its table says, and its table what planning it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.study import read_study
from planner.study_answer import Answer, answer_family, families
from planner.study_cells import Cell, cell_key, expand
from planner.study_charts import named_columns, study_charts
from planner.study_files import read_findings
from planner.study_rows import study_table
from tools import write_study

STUDY = write_study.EXAMPLE.with_suffix(".yaml")
#: Columns whose figures the page shows, or that say how they come about.
FIGURES = ("tok_s", "latency_s", "usd_per_million_tokens", "ceiling_tok_s")
#: One machine of every question, as they are called in the study, with what tells the cell apart.
PLANNED_ANEW = (
    ("a100-80", "opt-175b", "both", "flexgen"),
    ("t4-16", "opt-6.7b", "none", "128/512"),
    ("l40s-48", "llama-3-70b", "none", "512/128"),
)


def test_the_page_is_current() -> None:
    """Tables and answers are those of the study's table; ``python -m tools.write_study`` writes them."""
    text = write_study.EXAMPLE.read_text(encoding="utf-8")
    assert write_study.example(text) == text
    assert all(
        f"<!-- {mark} -->" in text for mark in ("q1 flexgen", "a1", "q2", "a2", "q3 none", "q3 both", "a3")
    )


def test_the_presets_are_listed() -> None:
    """The page about studies lists every preset with its source."""
    text = write_study.PAGE.read_text(encoding="utf-8")
    assert write_study.filled(text, "workloads", write_study.workloads()) == text
    assert "arxiv.org" in write_study.workloads()


def test_the_definition_is_that_of_the_table() -> None:
    """The table is of the study as it stands: all its cells, in their order, under its definition."""
    assert (write_study.FOLDER / "study.yaml").read_text("utf-8") == STUDY.read_text("utf-8")
    findings, rows = read_findings(write_study.FOLDER)
    cells = expand(read_study(STUDY), STUDY.parent)
    asked = [
        (cell.machine, cell.model.name, cell.mix.name, cell.quantize, cell.max_latency) for cell in cells
    ]
    names = ("machine", "model", "workload", "quantize", "max_latency_s")
    assert [tuple(row[name] for name in names) for row in rows] == asked
    assert len(findings.charts) == len(read_study(STUDY).charts)


@pytest.mark.parametrize("asked", PLANNED_ANEW, ids="-".join)
def test_cells_planned_anew_are_those_of_the_table(asked: tuple[str, str, str, str]) -> None:
    """A cell of every question, with all its limits and changes of the machine, gives its row again."""
    study, (_, rows) = read_study(STUDY), read_findings(write_study.FOLDER)
    cells = expand(study, STUDY.parent)
    chosen = [n for n, cell in enumerate(cells) if _names(cell) == asked][:4]
    assert chosen
    wanted = {cell_key(cells[n]): cells[n] for n in chosen}
    texts = {key: text for some in families(wanted) for key, text, _ in answer_family(some).answers}
    replies = [Answer.model_validate_json(texts[cell_key(cells[n])]) for n in chosen]
    again = study_table([cells[n] for n in chosen], replies, study.economics).rows
    for number, row in zip(chosen, again, strict=True):
        assert row["status"] == rows[number]["status"]
        for name in FIGURES:
            known = rows[number][name]
            assert row.get(name) == (pytest.approx(known, rel=1e-3) if known is not None else None)


def _names(cell: Cell) -> tuple[str, str, str, str]:
    return cell.machine, cell.model.name, cell.quantize, cell.mix.name


def test_the_study_on_the_page(tmp_path: Path) -> None:
    """The study that the page shows is one: its cells, and its chart from their table."""
    text = write_study.PAGE.read_text(encoding="utf-8")
    (tmp_path / "dram.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    study = read_study(tmp_path / "dram.yaml")
    cells = expand(study, tmp_path)
    assert len(cells) == 2 * 2 * 3 * 2 * 2
    replies = [Answer(status="infeasible", reason="made up")] * len(cells)
    table = study_table(cells, replies, study.economics, named_columns(study))
    (chart,) = study_charts(study, table)
    assert [one.name for one in chart.series] == [
        "t4-16, opt-30b",
        "t4-16, opt-175b",
        "a100-80, opt-30b",
        "a100-80, opt-175b",
    ]


def test_the_python_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that the page shows runs as it stands, on a study of one cell."""
    monkeypatch.chdir(tmp_path)
    study = "name: one\ngrids: [{machine: rtx-4090, model: opt-6.7b, workload: alpaca}]\n"
    (tmp_path / "dram.yaml").write_text(study, encoding="utf-8")
    text = write_study.PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)  # noqa: S102 - what the page shows
    assert names["best"]["model"] == "opt-6.7b"
    assert names["failed"] == {}
