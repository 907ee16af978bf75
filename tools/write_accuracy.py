"""Run ``planner validate`` and write its tables into docs/accuracy.md: ``python tools/write_accuracy.py``.

Tables stand between markers; all else on the page is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from planner.validate import Validation, validate_shipped
from planner.validate_picture import draw
from planner.validate_report import (
    BREAKDOWN_COLUMNS,
    ORDER_COLUMNS,
    ROW_COLUMNS,
    SUMMARY_COLUMNS,
    breakdown_cells,
    order_cells,
    reasons,
    row_cells,
    summary_cells,
)
from simulator.errors import InputError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
PICTURE = PAGE.with_suffix(".png")
SECTIONS = ("summary", "rows", "orders", "breakdown")


def markers(section: str) -> tuple[str, str]:
    """Give the lines between which a section stands."""
    return f"<!-- generated: {section} -->", f"<!-- end: {section} -->"


def between(page: str, section: str) -> str:
    """Give what stands between the markers of a section."""
    first, last = markers(section)
    found = re.search(f"{re.escape(first)}\n(.*?){re.escape(last)}", page, re.DOTALL)
    if found is None:
        raise SystemExit(f"{PAGE.name}: the markers of the section {section} are missing")
    return found[1]


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Write a table of Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def sections(outcome: Validation) -> dict[str, str]:
    """Make the text of every section."""
    rows = table(ROW_COLUMNS, map(row_cells, outcome.scores))
    notes = "".join(f"\n{note}\n" for note in reasons(outcome.scores))
    return {
        "summary": table(SUMMARY_COLUMNS, map(summary_cells, outcome.summaries)),
        "rows": rows + notes,
        "orders": table(ORDER_COLUMNS, map(order_cells, outcome.orders)),
        "breakdown": table(BREAKDOWN_COLUMNS, map(breakdown_cells, outcome.breakdown)),
    }


def refreshed(page: str, outcome: Validation) -> str:
    """Put new sections between the markers of a page."""
    for section, text in sections(outcome).items():
        first, last = markers(section)
        page = page.replace(f"{first}\n{between(page, section)}{last}", f"{first}\n{text}{last}")
    return page


def main() -> None:
    """Refresh page and picture."""
    outcome = validate_shipped()
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), outcome), encoding="utf-8")
    try:
        draw(PICTURE, outcome.scores, outcome.breakdown)
    except InputError as error:
        sys.exit(f"the picture is as it was: {error}")


if __name__ == "__main__":
    main()
