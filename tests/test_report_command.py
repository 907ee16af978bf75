"""``planner report``: the page of a study has all of its rows, plans and charts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from planner.study_files import read_findings
from tests.study_cases import complaint, run

STUDY = """
name: A study
description: Of two machines
grids:
- machine: [rtx-4090, t4-16]
  model: opt-1.3b
  workload: {prompt_len: 16, gen_len: 4, num_prompts: 8}
  max_latency: [none, 1 us]
- {machine: rtx-4090, model: opt-125m, workload: voyager}
charts:
- title: Cost
  kind: bars
  x: machine
  y: usd_per_million_tokens
  series: max_latency_s
  where: {model: opt-1.3b}
- {title: Speed, kind: points, x: latency_s}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the study, once in a process."""
    path = tmp_path_factory.mktemp("report") / "study.yaml"
    path.write_text(STUDY)
    done = run("study", str(path), "--jobs", "1")
    assert done.exit_code == 0, done.output
    return path.with_suffix("")


def data_of(page: str) -> dict[str, Any]:
    """Read the data that a page holds."""
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def detail_of(page: str, row: int) -> dict[str, Any]:
    """Read what a page holds of a row, if anything."""
    found = re.search(rf'<script[^>]*id="detail-{row}">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(found[1]) if found else {}
    return data


def test_the_page_has_everything(folder: Path, tmp_path: Path) -> None:
    """All rows are on the page, a plan for each that has one, and timelines for as many as asked for."""
    findings, rows = read_findings(folder)
    page = tmp_path / "page.html"
    shown = run("report", str(folder), "--out", str(page), "--timelines", "1")
    assert shown.exit_code == 0, shown.output
    text = page.read_text()
    data = data_of(text)
    assert len(rows) == 5
    statuses = [row["status"] for row in rows]
    assert statuses == ["planned", "infeasible"] * 2 + ["failed"]
    assert "A study" in text
    assert "Of two machines" in text
    assert [chart["key"] for chart in data["charts"]] == [chart.key for chart in findings.charts]
    assert len(data["rows"]) == len(rows)
    for row in rows:
        for entry in (row["machine"], row["reason"]):
            assert entry is None or json.dumps(entry)[1:-1] in text
        assert str(row["answer"]) not in text
    details = {number: detail_of(text, number) for number in range(len(rows))}
    assert {number for number, detail in details.items() if detail.get("plan")} == {0, 2}
    assert "opt-1.3b" in details[0]["plan"]
    assert {number for number, detail in details.items() if "timeline" in detail} == {0}


def test_pictures_of_every_kind(folder: Path, tmp_path: Path) -> None:
    """Every chart is drawn in the kinds asked for; without a word, the page lies in the folder."""
    shown = run("report", str(folder), "--pictures", str(tmp_path / "pictures"), "--timelines", "0")
    assert shown.exit_code == 0, shown.output
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"cost.png", "cost.svg", "speed.png", "speed.svg"}
    assert (folder / "report.html").is_file()
    assert shown.stdout.count("written: ") == 5
    run("report", str(folder), "--pictures", str(tmp_path / "more"), "--kind", "pdf", "--timelines", "0")
    assert {path.name for path in (tmp_path / "more").iterdir()} == {"cost.pdf", "speed.pdf"}


def test_what_cannot_be_reported(folder: Path, tmp_path: Path) -> None:
    """A folder without a table, a lost answer, and places that cannot be written to are told in one line."""
    assert "there is no table of a study" in complaint(run("report", str(tmp_path)))
    assert "no table" in complaint(run("report", str(tmp_path / "missing")))
    page = str(tmp_path / "no" / "page.html")
    assert "cannot be written" in complaint(run("report", str(folder), "--out", page))
    (tmp_path / "file").write_text("")
    options = ("--pictures", str(tmp_path / "file"), "--out", str(tmp_path / "page.html"))
    assert "--pictures" in complaint(run("report", str(folder), *options))
    lost = tmp_path / "lost"
    (lost / "answers").mkdir(parents=True)
    for name in ("cells.csv", "findings.json"):
        (lost / name).write_bytes((folder / name).read_bytes())
    assert "cannot be read" in complaint(run("report", str(lost)))
