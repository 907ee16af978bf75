"""From a plan to what the user of its engine types.

One writer for each engine that others have written; this project's own executor needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from planner.choices import Options
from planner.launch_accelerate import accelerate
from planner.launch_flexgen import flexgen
from planner.launch_parts import Launch, Wanted, wanted
from planner.launch_petals import petals
from planner.launch_zero import zero_inference
from planner.pins import Pins
from planner.plan import Plan
from simulator.errors import InputError
from simulator.runtime import load_runtime
from simulator.units import one_line

__all__ = ["Launch", "as_text", "commands", "limited", "lost_forms", "require_commands", "save", "write"]

_WRITERS: dict[str, Callable[[Wanted], Launch]] = {
    "flexgen": flexgen,
    "zero-inference": zero_inference,
    "zero-inference-2023": zero_inference,
    "accelerate": accelerate,
    "petals": petals,
}


def commands(plan: Plan) -> Launch | None:
    """Give what starts a plan on its engine; None for an engine that has no writer."""
    return write(wanted(plan))


def write(plan: Wanted) -> Launch | None:
    """Give the same for the parts of a plan."""
    writer = _WRITERS.get(plan.engine)
    return writer(plan) if writer else None


def as_text(launch: Launch) -> str:
    """Write everything for people: the title, the text, the files, the notes."""
    parts = [launch.title + "\n", launch.text]
    parts += [f"{name}:\n{content}" for name, content in launch.files.items()]
    parts.append("\n".join(launch.notes) + "\n" if launch.notes else "")
    return "\n".join(part for part in parts if part)


def require_commands(engine: str, option: str) -> None:
    """Refuse an option that is about launch commands for an engine that has none.

    Raises:
        InputError: the engine has no writer.
    """
    if engine not in _WRITERS:
        raise InputError(
            f"{option}: runtime {engine} has no command to type; known for {', '.join(sorted(_WRITERS))}"
        )


def save(launch: Launch, folder: Path) -> list[Path]:
    """Write the text and the files that it reads into a folder, which is made if need be.

    Raises:
        InputError: the engine cannot run the plan, or the folder cannot be written to.
    """
    if not launch.text:
        raise InputError(f"--launch-dir: there is nothing to write; {launch.notes[0]}")
    script = launch.file.endswith(".sh")
    contents = {launch.file: "#!/bin/sh\n" * script + launch.text, **launch.files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
        if script:
            (folder / launch.file).chmod(0o755)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"--launch-dir {folder}: cannot be written ({reason})")) from None
    return [folder / name for name in contents]


def lost_forms(options: Options, engine: str) -> list[str]:
    """List what the options allow in 4 bits, and the engine stores in 16 all the same."""
    able = load_runtime(engine).quantizes
    allowed = ("weights", "cache") if options.quantize in ("both", "auto") else (options.quantize,)
    return [name for name in ("weights", "cache") if name in allowed and name not in able]


def limited(options: Options, engine: str) -> Options:
    """Leave out the forms that an engine cannot store; what the user pinned stays."""
    bits = {f"{'weight' if name == 'weights' else name}_bits": 16 for name in lost_forms(options, engine)}
    pins = bits | dict(options.pins.values)
    return replace(options, pins=Pins(tuple(pins.items())))
