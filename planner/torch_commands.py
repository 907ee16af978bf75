"""What the commands share that need torch: how it is imported, and what to say where it is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.errors import InputError

if TYPE_CHECKING:
    from executor.checkpoint import Checkpoint

_EXTRAS = {"torch": "run", "safetensors": "run", "scipy": "run,fit"}


def quieten_threads() -> None:
    """Let threads sleep while they wait; OpenMP reads this when it is loaded.

    A pool of threads that spins while it waits takes cores from the lanes that have work.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def missing(command: str, error: ModuleNotFoundError) -> Exception:
    """Say what to install for a command, if that is why a module is not found."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return error
    extras = _EXTRAS[package]
    return InputError(
        f"planner {command} needs {package}, which is not installed: pip install 'offload-planner[{extras}]'"
    )


def open_checkpoint(command: str, folder: Path) -> Checkpoint:
    """Open a checkpoint; here torch is imported first.

    Raises:
        InputError: torch is not installed, or the checkpoint cannot be used.
    """
    quieten_threads()
    try:
        from executor.checkpoint import Checkpoint  # noqa: PLC0415 - planning does without torch
    except ModuleNotFoundError as error:
        raise missing(command, error) from None
    return Checkpoint.open(folder)
