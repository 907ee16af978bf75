"""Run a command that has only so much memory, the page cache of the files it reads included.

    python -m benchmarks.memory_limit --limit "8 GB" [--forget DIR] -- COMMAND ...

A machine with less memory is imitated by a control group of Linux, version 1 or 2, whichever is there; making
one takes root. A page counts for the group that touched it first: a file that is in the page cache already
costs a command nothing and needs no disk. So drop files before (``--forget``, `forget`).

Prints what the command printed, then one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from simulator.errors import PlannerError
from simulator.units import BYTES, one_line

_ENTER = 'echo $$ > "$0" || exit 125; exec "$@"'  # a shell joins the group, then becomes the command
_PATIENCE = 5.0  # seconds for processes that were killed to be gone


class CannotLimitError(PlannerError):
    """No control group with a memory limit can be made here; the message says why."""


@dataclass(frozen=True)
class Limited:
    """What became of a command.

    Attributes:
        returncode: its exit status; -9 if it was killed.
        stdout: what it printed.
        stderr: what it printed there.
        peak_bytes: the most memory that it and its children had at once, page cache included [B]. The kernel
            gives page cache up only when the limit is reached, so whoever reads files ends up there.
        out_of_memory: whether the kernel killed any of its processes for memory.
    """

    returncode: int
    stdout: str
    stderr: str
    peak_bytes: int
    out_of_memory: bool


@dataclass(frozen=True)
class _Version:
    """The names that a version of control groups has for things."""

    limit: str
    peak: str
    events: str
    swap: str
    swap_of: dict[str, str]


_V1 = _Version(
    "memory.limit_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
    "memory.memsw.limit_in_bytes",  # of memory and swap together
    {},
)
_V2 = _Version("memory.max", "memory.peak", "memory.events", "memory.swap.max", {"memory.oom.group": "1"})


def run_limited(
    command: list[str],
    limit_bytes: int,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Limited:
    """Run a command with at most ``limit_bytes`` [B] of memory and no swap.

    Args:
        command: program and arguments.
        limit_bytes: for it and its children together, page cache included [B].
        env: its environment; None: this one.
        timeout: seconds [s] until it is killed; None: never.

    Raises:
        CannotLimitError: there is no such limit on this machine, or not for this user.
        subprocess.TimeoutExpired: it took longer than ``timeout``.
    """
    with _group(limit_bytes) as (group, version):
        entering = ["/bin/sh", "-c", _ENTER, str(group / "cgroup.procs"), *command]
        with subprocess.Popen(
            entering, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            finally:
                _end_all(group)  # children that outlive the command, too
        return Limited(
            process.returncode,
            stdout,
            stderr,
            int((group / version.peak).read_text()),
            _counter(group / version.events, "oom_kill") > 0,
        )


def forget(paths: Iterable[Path]) -> None:
    """Drop files, and those of folders, from the page cache."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)  # pages that the disk does not have yet cannot be dropped
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


@contextmanager
def _group(limit: int) -> Iterator[tuple[Path, _Version]]:
    """Make a control group with a limit [B], and remove it at the end."""
    group, version = _make()
    try:
        _set_limit(group, version, limit)
        yield group, version
    finally:
        _end_all(group)
        _remove(group)


def _make() -> tuple[Path, _Version]:
    """Make a group inside this process's own or, where that is not possible, further up."""
    reasons = []
    for parent, version in _parents():
        try:
            group = Path(tempfile.mkdtemp(prefix="limited-", dir=parent))
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        if (group / version.limit).exists() and (group / version.peak).exists():
            return group, version
        reasons.append(f"{parent}: no {version.limit} and {version.peak} in groups made there")
        group.rmdir()
    why = "; ".join(reasons) or "no control group file system with a memory controller is mounted"
    raise CannotLimitError(one_line(f"memory cannot be limited here: {why}"))


def _parents() -> Iterator[tuple[Path, _Version]]:
    """List the folders in which a group may be made, from this process's own up to the root."""
    own = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in _lines(Path("/proc/self/cgroup"))}
    for line in _lines(Path("/proc/mounts")):
        _, mount, kind, options, *_ = line.split()
        v1 = kind == "cgroup" and "memory" in options.split(",")
        if not v1 and kind != "cgroup2":
            continue
        names = next((path for controllers, path in own.items() if "memory" in controllers.split(",")), "")
        path = Path(mount, (names if v1 else own.get("", "")).lstrip("/"))
        while True:
            if path.is_dir():
                if not v1:
                    _give_children_memory(path)
                yield path, _V1 if v1 else _V2
            if path == Path(mount) or path == path.parent:
                break
            path = path.parent


def _give_children_memory(parent: Path) -> None:
    """Let groups below a parent have limits; where it is refused, a parent further up may allow it."""
    with contextlib.suppress(OSError):
        (parent / "cgroup.subtree_control").write_text("+memory")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _set_limit(group: Path, version: _Version, limit: int) -> None:
    wanted = {version.limit: limit, **version.swap_of}
    if (group / version.swap).exists():  # after the limit: version 1 wants the sum to be no smaller
        wanted[version.swap] = limit if version is _V1 else 0
    elif len(_lines(Path("/proc/swaps"))) > 1:
        raise CannotLimitError(
            "memory cannot be limited here: there is swap, and the kernel does not count it"
        )
    for name, value in wanted.items():
        try:
            (group / name).write_text(str(value))
        except OSError as error:
            text = f"memory cannot be limited here: {group / name}: {error.strerror}"
            raise CannotLimitError(one_line(text)) from error


def _counter(file: Path, name: str) -> int:
    """Read a line ``name number`` of a file; 0 where it is missing."""
    pairs = (line.split() for line in _lines(file))
    return next((int(value) for key, value in pairs if key == name), 0)


def _end_all(group: Path) -> None:
    """Kill every process of a group, and wait until they are gone."""
    end = time.monotonic() + _PATIENCE
    while (numbers := _lines(group / "cgroup.procs")) and time.monotonic() < end:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        time.sleep(0.01)


def _remove(group: Path) -> None:
    """Remove a group; its page cache would else be counted for the parent."""
    with contextlib.suppress(OSError):  # version 1 only
        (group / "memory.force_empty").write_text("0")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def main() -> int:
    """Run a command and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=BYTES.parse, required=True, help="such as '8 GB'")
    parser.add_argument("--forget", type=Path, nargs="*", default=[], help="files or folders to drop before")
    parser.add_argument("--timeout", type=float, help="seconds")
    parser.add_argument("command", nargs="+", help="after --")
    given = parser.parse_args()
    forget(given.forget)
    try:
        limited = run_limited(given.command, int(given.limit), timeout=given.timeout)
    except PlannerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.TimeoutExpired:
        print(f"Error: not finished after {given.timeout:g} s; allow more with --timeout", file=sys.stderr)
        return 1
    told = asdict(limited)
    sys.stdout.write(str(told.pop("stdout")))
    sys.stderr.write(str(told.pop("stderr")))
    print(json.dumps(told))
    return limited.returncode if limited.returncode >= 0 else 128 - limited.returncode


if __name__ == "__main__":
    sys.exit(main())
