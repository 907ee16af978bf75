"""How fast a disk gives and takes bytes past the page cache, and through it.

    python benchmarks/bench_disk.py [--folder .] [--size 1.0] [--rounds 5] [--json]

Reads a file of random bytes in requests of 64 MiB, two requests in flight, in chunks of several sizes by
several threads; then writes one. "buffered" is the fallback of `executor.direct_io`: through the page cache,
with nothing read ahead and pages dropped at once, so no round finds what an earlier one left. "plain" is
what reading a file does without any of this, from a cache that was emptied of it before.

All settings take turns in every round, so that a disk which others use too is slow for all of them alike.
Prints the median rate of each in GB/s (10^9 bytes) and, in brackets, the slowest and the fastest round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from executor.aligned import aligned
from executor.direct_io import DirectFile, ScratchFile
from executor.read_pool import ReadPool

REQUEST = 64 << 20
MIB = 1 << 20
CHUNKS = (MIB // 4, MIB, 4 * MIB, 16 * MIB)
THREADS = (1, 2, 4, 8)

Setting = tuple[str, int, int]  # way, bytes of a chunk, threads


@contextmanager
def random_file(folder: Path, nbytes: int) -> Iterator[Path]:
    """Write a file that cannot be compressed, and remove it afterwards."""
    with tempfile.NamedTemporaryFile(prefix="bench-disk-", dir=folder) as file:
        block = random.Random(0).randbytes(16 * MIB)  # noqa: S311 - not for secrets
        for _ in range(nbytes // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(file.name)


def through_pool(
    start: Callable[[ReadPool, torch.Tensor, int], object], nbytes: int, chunk: int, threads: int
) -> float:
    """Run a file's requests, two in flight. [s]"""
    buffers = [aligned(REQUEST).fill_(1) for _ in range(2)]
    pending: list[object] = []
    with ReadPool(threads, chunk) as pool:
        begin = time.perf_counter()
        for number, offset in enumerate(range(0, nbytes, REQUEST)):
            if number >= len(buffers):
                pending.pop(0).result()  # type: ignore[attr-defined]
            pending.append(start(pool, buffers[number % len(buffers)], offset))
        for future in pending:
            future.result()  # type: ignore[attr-defined]
        return time.perf_counter() - begin


def read_plainly(path: Path, chunk: int) -> float:
    """Read a file that is not in the page cache, one chunk after the other. [s]"""
    memory = aligned(chunk).numpy().data
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        while file.readinto(memory):
            pass
        seconds = time.perf_counter() - begin
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return seconds


def measure(path: Path, scratch: ScratchFile, setting: Setting) -> float:
    """Run one setting once; give its rate. [GB/s]"""
    way, chunk, threads = setting
    nbytes = path.stat().st_size
    if way == "plain":
        return nbytes / read_plainly(path, chunk) / 1e9
    if way == "write":
        seconds = through_pool(lambda p, b, o: p.write(scratch, b, o, REQUEST), nbytes, chunk, threads)
        return nbytes / seconds / 1e9
    with DirectFile(path, direct=way == "direct") as file:
        seconds = through_pool(lambda p, b, o: p.submit(file, b, o, REQUEST), nbytes, chunk, threads)
    return nbytes / seconds / 1e9


def show(rates: dict[Setting, list[float]]) -> None:
    """Print a table a way: chunks downwards, threads to the right."""
    for way in dict.fromkeys(way for way, _, _ in rates):
        chunks = sorted({chunk for other, chunk, _ in rates if other == way})
        threads = sorted({count for other, _, count in rates if other == way})
        print(f"\n{way:>9}" + "".join(f"{f'{count} threads':>20}" for count in threads))
        for chunk in chunks:
            cells = [rates[way, chunk, count] for count in threads]
            shown = [f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in cells]
            print(f"{chunk / MIB:>5.2f} MiB" + "".join(f"{text:>20}" for text in shown))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where to put the files")
    parser.add_argument("--size", type=float, default=1.0, help="GiB of the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line of JSON after the tables")
    arguments = parser.parse_args()
    nbytes = max(round(arguments.size * 2**30) // REQUEST, 1) * REQUEST
    settings: list[Setting] = [
        *itertools.product(("direct", "write"), CHUNKS, THREADS),
        *itertools.product(("buffered",), CHUNKS[1:3], (1, 4)),
        ("plain", 4 * MIB, 1),
    ]
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    with random_file(arguments.folder, nbytes) as path, ScratchFile(arguments.folder, nbytes) as scratch:
        measure(path, scratch, ("write", MIB, 1))  # the first write also marks the space as written
        for _ in range(arguments.rounds):
            for setting in settings:
                rates[setting].append(measure(path, scratch, setting))
        direct = "past the page cache" if scratch.direct else "which does not take direct I/O"
    print(
        f"{nbytes / 2**30:g} GiB in {arguments.folder.resolve()}, {direct}; {arguments.rounds} rounds; GB/s"
    )
    show(rates)
    if arguments.json:
        print(json.dumps([[*setting, *values] for setting, values in rates.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
