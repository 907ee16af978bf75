"""Run the commands of the documents again and paste what they print: ``python tools/write_outputs.py``.

A block of ``sh`` whose lines are ``planner`` commands, followed by a block of ``text``, is a command with its
output. The commands of a page run in one empty folder, in order, on a terminal of 110 columns. Pictures that
they draw there go to ``docs/studies``. Pages may be named: ``python -m tools.write_outputs docs/study.md``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/tour.md", "docs/study.md")
PICTURES = ROOT / "docs" / "studies"
WIDTH = 110
_PAIR = re.compile(r"```sh\n(planner (?:(?!```).)*)```\n\n```text\n.*?```\n", re.DOTALL)


def output(command: str, folder: str) -> str:
    """Run a command and give what it prints, errors too, wrapped and without trailing spaces."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if "Traceback" in done.stderr:
        raise SystemExit(done.stderr)
    errors = "\n".join(textwrap.wrap(done.stderr, WIDTH))
    return "\n".join(line.rstrip() for line in (done.stdout + errors).rstrip("\n").split("\n"))


def main() -> None:
    """Refresh every page."""
    for name in sys.argv[1:] or PAGES:
        page = ROOT / name
        with tempfile.TemporaryDirectory() as folder:

            def pair(found: re.Match[str], folder: str = folder) -> str:
                return f"```sh\n{found[1]}```\n\n```text\n{output(found[1], folder)}\n```\n"

            page.write_text(_PAIR.sub(pair, page.read_text(encoding="utf-8")), encoding="utf-8")
            for picture in Path(folder).glob("*.png"):
                shutil.copy(picture, PICTURES)


if __name__ == "__main__":
    main()
