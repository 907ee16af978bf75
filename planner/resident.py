"""How much memory this process really takes while something runs, as the operating system counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux takes as: let the peak be what is resident now

Result = TypeVar("Result")


def peak_beyond(action: Callable[[], Result]) -> tuple[Result, float | None]:
    """Do something; give what it gives, and the most memory that it took beyond what was there. [B]

    None where the system does not tell (it is Linux that does).
    """
    before = _status("VmRSS")
    try:
        _RESET.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        before = None
    result = action()
    peak = _status("VmHWM")
    return result, None if before is None or peak is None else max(0.0, peak - before)


def _status(name: str) -> float | None:
    """Read a line of the process's status. [B]"""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
