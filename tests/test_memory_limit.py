"""Commands with a memory limit: what is too much is killed, what is less is measured, page cache counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory_limit
from benchmarks.memory_limit import CannotLimitError, Limited, forget, run_limited

MIB = 1 << 20
LIMIT = 96 * MIB


def run(code: str, limit: int = LIMIT, timeout: float = 60.0) -> Limited:
    """Run Python code with a limit [B]; skip where there are no limits."""
    try:
        return run_limited([sys.executable, "-S", "-c", code], limit, timeout=timeout)
    except CannotLimitError as error:
        pytest.skip(str(error))


def groups() -> set[Path]:
    """List the control groups that were made for commands."""
    return {found for parent, _ in memory_limit._parents() for found in parent.glob("limited-*")}


def test_too_much_memory_is_killed_and_told() -> None:
    """A command that allocates more than the limit ends there, and the result says why."""
    found = run(f"print('begun', flush=True); bytearray(b'1') * {4 * LIMIT}; print('survived')")
    assert found.out_of_memory
    assert found.returncode == -9
    assert found.stdout == "begun\n"
    assert found.peak_bytes <= LIMIT


def test_less_memory_survives_and_is_measured() -> None:
    """A command below the limit is left alone; its peak is that of its memory, whatever it has at the end."""
    found = run(f"x = bytearray(b'1') * {48 * MIB}; del x; import sys; print('out'); sys.exit('in error')")
    assert not found.out_of_memory
    assert (found.returncode, found.stdout, found.stderr) == (1, "out\n", "in error\n")
    assert 48 * MIB < found.peak_bytes < LIMIT


def test_page_cache_counts_and_does_not_kill(tmp_path: Path) -> None:
    """Reading a file larger than the limit fills the memory up to the limit, and goes on."""
    file = tmp_path / "file"
    file.write_bytes(b"1" * 2 * LIMIT)
    forget([tmp_path])
    code = f"f = open({str(file)!r}, 'rb', 0); print(sum(len(b) for b in iter(lambda: f.read({MIB}), b'')))"
    found = run(code)
    assert not found.out_of_memory
    assert (found.returncode, found.stdout) == (0, f"{2 * LIMIT}\n")
    assert 0.9 * LIMIT < found.peak_bytes <= LIMIT


def test_children_count_and_do_not_outlive_the_command() -> None:
    """What a command starts shares its limit, and ends with it."""
    child = f"bytearray(b'1') * {2 * LIMIT}"
    assert run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])").out_of_memory
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid)"
    stat = Path("/proc", run(code).stdout.strip(), "stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"  # dead, not yet reaped


def test_groups_are_removed() -> None:
    """No control group stays behind, whether the command ends, is killed, or takes too long."""
    before = groups()
    run("pass")
    run(f"bytearray(b'1') * {4 * LIMIT}")
    with pytest.raises(subprocess.TimeoutExpired):
        run("import time; time.sleep(60)", timeout=0.3)
    assert groups() <= before


def test_no_limit_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no control group can be made, the error says so instead of running without a limit."""
    monkeypatch.setattr(memory_limit, "_parents", lambda: iter([(Path("/proc"), memory_limit._V2)]))
    with pytest.raises(CannotLimitError, match="memory cannot be limited here: /proc: "):
        run_limited(["true"], LIMIT)
