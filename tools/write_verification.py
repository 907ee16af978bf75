"""Write what `planner calibrate` and `planner verify` found on a machine into docs/accuracy.md.

    planner calibrate --out my-machine.yaml
    planner verify --hw my-machine.yaml --checkpoint llama-1b --out proof --repeats 3
    python -m tools.write_verification my-machine.yaml --checkpoint llama-1b --out proof --repeats 3

Options are those of `planner verify`; what lies in ``--out`` is not run again. The page's two sections
stand between markers, and the picture beside the page.
"""

from __future__ import annotations

import io
import subprocess
import sys
from typing import cast

from rich.console import Console

from planner.calibrate_command import constants
from simulator.profiles import load_profile
from tools.write_accuracy import PAGE, between, markers

PICTURE = PAGE.with_name("verify.png")


def measured(profile: str) -> str:
    """Write the table of the constants of a profile, as the command prints it."""
    console = Console(width=120, file=io.StringIO())
    found = load_profile(profile)
    console.print(constants(found))
    about = found.calibration
    assert about is not None
    shared = [f"{lane} {share:.2f}" for lane, share in next(iter(found.capacities.values())).lanes.items()]
    text = cast(io.StringIO, console.file).getvalue()
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    words = f"{about.machine['cpu']}, {about.date}, {about.mode}, torch {about.versions['torch']}."
    steady = f"Noise {about.noise:.1%}, drift {about.drift:+.1%}; shares of the cores: {', '.join(shared)}."
    return f"{words} {steady}\n\n```text\n" + "\n".join(lines) + "\n```\n"


def verified(profile: str, options: list[str]) -> str:
    """Run the command, or read what it found before."""
    command = [sys.executable, "-m", "planner.cli", "verify", "--hw", profile, *options]
    command += ["--picture", str(PICTURE), "--format", "markdown"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Refresh both sections."""
    profile, *options = sys.argv[1:]
    page = PAGE.read_text(encoding="utf-8")
    for section, text in (("calibration", measured(profile)), ("verification", verified(profile, options))):
        first, last = markers(section)
        page = page.replace(f"{first}\n{between(page, section)}{last}", f"{first}\n{text}{last}")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
