"""Direct files and pools: any range, any order, every failure of a disk, nothing left behind."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.aligned import PAGE, aligned, padded, wanted
from executor.direct_io import DirectFile, ScratchFile
from executor.read_pool import ReadPool, _cuts
from simulator.errors import InputError, PlannerError

SIZE = 5 * PAGE + 1234
HUGE = 1 << 55

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(
    lambda ends: (min(ends), abs(ends[1] - ends[0]))
)
both = pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])


def noise(nbytes: int, seed: int = 0) -> torch.Tensor:
    """Give bytes at random, shape [nbytes]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file of SIZE random bytes."""
    path = tmp_path_factory.mktemp("shard") / "a.safetensors"
    path.write_bytes(noise(SIZE).numpy().tobytes())
    return path


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Check after every test that no file stays open and no thread runs."""
    files = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only; the folder itself is among them
    threads = threading.active_count()
    yield
    assert len(os.listdir("/proc/self/fd")) == len(files)  # noqa: PTH208
    assert threading.active_count() == threads


def short(call: Callable[..., int], most: int) -> Callable[..., int]:
    """Give a transfer that moves ``most`` bytes at a time."""
    return lambda descriptor, views, offset: call(descriptor, [views[0][:most]], offset)


def failing(code: int, after: int = 0) -> Callable[..., int]:
    """Give a transfer that fails beyond the first ``after`` bytes of a file."""

    def transfer(descriptor: int, views: list[memoryview], offset: int) -> int:
        if offset >= after:
            raise OSError(code, os.strerror(code))
        return len(views[0][: after - offset])

    return transfer


@both
@given(ranges)
@same_folder
def test_any_range_is_read(shard: Path, direct: bool, at: tuple[int, int]) -> None:
    """Every offset and length gives the bytes of the file, as a slice of the buffer."""
    offset, nbytes = at
    buffer = aligned(padded(offset, nbytes))
    with DirectFile(shard, direct=direct) as file:
        assert file.nbytes == SIZE
        read = file.read_into(buffer, offset, nbytes)
    assert torch.equal(read, noise(SIZE)[offset : offset + nbytes])
    assert read.data_ptr() == buffer.data_ptr() + offset % PAGE or not nbytes


@both
@given(st.lists(ranges, max_size=6), st.integers(0, 99))
@same_folder
def test_what_is_written_is_read(
    tmp_path: Path, direct: bool, writes: list[tuple[int, int]], seed: int
) -> None:
    """Writes at any place, over each other, leave what they leave in plain memory."""
    model = torch.zeros(SIZE, dtype=torch.uint8)
    with ScratchFile(tmp_path, SIZE, direct=direct) as file:
        for number, (offset, nbytes) in enumerate(writes):
            buffer = aligned(padded(offset, nbytes))
            buffer.fill_(99)
            wanted(buffer, offset, nbytes).copy_(noise(nbytes, seed + number))
            file.write_from(buffer, offset, nbytes)
            model[offset : offset + nbytes] = noise(nbytes, seed + number)
        assert torch.equal(file.read_into(aligned(padded(0, SIZE)), 0, SIZE), model)


@both
@pytest.mark.parametrize("most", [1, 512, 1000, PAGE, PAGE + 512, 3 * PAGE])
def test_short_transfers_go_on(
    tmp_path: Path, direct: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves less than a page is asked for again; where nothing more comes, there is an error."""
    offset, nbytes = 100, 3 * PAGE
    buffer = aligned(padded(offset, nbytes))
    wanted(buffer, offset, nbytes).copy_(noise(nbytes))
    with ScratchFile(tmp_path, 5 * PAGE, direct=direct) as file:
        assert file.direct == direct
        if not direct and most == 1:
            most = 100  # a byte a call would only take long
        monkeypatch.setattr(os, "preadv", short(os.preadv, most))
        monkeypatch.setattr(os, "pwritev", short(os.pwritev, most))
        if direct and most < PAGE:
            with pytest.raises(InputError, match="cut short"):
                file.write_from(buffer, offset, nbytes)
            return
        file.write_from(buffer, offset, nbytes)
        buffer.fill_(0)
        assert torch.equal(file.read_into(buffer, offset, nbytes), noise(nbytes))


@both
@pytest.mark.parametrize(
    ("code", "name", "remedy"),
    [
        (errno.EIO, "EIO", "another disk"),
        (errno.ENOSPC, "ENOSPC", "free space"),
        (errno.EPERM, "EPERM", "check"),
    ],
)
def test_disk_errors_are_one_line(
    tmp_path: Path, direct: bool, code: int, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, offset, reason and remedy, for reads and writes."""
    buffer = aligned(4 * PAGE)
    with ScratchFile(tmp_path, 8 * PAGE, direct=direct) as file:
        monkeypatch.setattr(os, "preadv", failing(code, 3 * PAGE))
        monkeypatch.setattr(os, "pwritev", failing(code, 3 * PAGE))
        for action, call in (("reading", file.read_into), ("writing", file.write_from)):
            with pytest.raises(InputError) as caught:
                call(buffer, PAGE, 4 * PAGE)
            line = str(caught.value)
            assert line.startswith(f"{file.path}: {action} {2 * PAGE} B at offset {3 * PAGE} failed, ")
            assert f"({name})" in line
            assert remedy in line
            assert "\n" not in line


@both
def test_a_file_that_ends_early(shard: Path, tmp_path: Path, direct: bool) -> None:
    """Beyond the end, or cut short after it was opened."""
    buffer = aligned(10 * PAGE)
    copy = tmp_path / "b.safetensors"
    copy.write_bytes(shard.read_bytes())
    with DirectFile(copy, direct=direct) as file:
        want = f"{copy.name}: reading 6 B at offset {SIZE - 5} failed, the file stops at byte {SIZE}: "
        with pytest.raises(InputError, match=want):
            file.read_into(buffer, SIZE - 5, 6)
        os.truncate(copy, 2 * PAGE + 100)
        with pytest.raises(InputError, match=f"stops at byte {2 * PAGE + 100}"):
            file.read_into(buffer, PAGE + 1, 2 * PAGE)
        assert torch.equal(file.read_into(buffer, PAGE, PAGE + 100), noise(SIZE)[PAGE : 2 * PAGE + 100])


@pytest.mark.parametrize("refuses", ["open", "read"])
def test_fallback(shard: Path, tmp_path: Path, refuses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may refuse the flag, or only the reads; then files say so and drop their pages."""
    opened, read, dropped = os.open, os.preadv, []

    def no_direct_open(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *more)

    def no_direct_read(descriptor: int, views: list[memoryview], offset: int) -> int:
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return read(descriptor, views, offset)

    if refuses == "open":
        monkeypatch.setattr(os, "open", no_direct_open)
    else:
        monkeypatch.setattr(os, "preadv", no_direct_read)
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments[1:]))
    with DirectFile(shard) as file, ScratchFile(tmp_path, SIZE) as scratch:
        assert not file.direct
        assert not scratch.direct
        dropped.clear()
        buffer = aligned(4 * PAGE)
        read_back = file.read_into(buffer, PAGE + 5, PAGE)
        assert torch.equal(read_back, noise(SIZE)[PAGE + 5 : 2 * PAGE + 5])
        scratch.write_from(buffer, 2 * PAGE + 5, PAGE)
        assert dropped == [
            (PAGE, 2 * PAGE, os.POSIX_FADV_DONTNEED),
            (2 * PAGE, 2 * PAGE, os.POSIX_FADV_DONTNEED),
        ]


def is_direct(descriptor: int) -> bool:
    """Whether an open file has the flag."""
    flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0]
    return bool(int(flags, 8) & os.O_DIRECT)


def test_direct_where_the_file_system_takes_it(shard: Path) -> None:
    """The flag is on the open file, or the attribute says that it is not."""
    with DirectFile(shard) as file:
        assert is_direct(file._descriptor) == file.direct
    with DirectFile(shard, direct=False) as file:
        assert not is_direct(file._descriptor)
        assert not file.direct


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """No file, a folder, a pipe (which would wait for its other end)."""
    with pytest.raises(InputError, match=r"nothing: opening failed, .*\(ENOENT\): there is no such file"):
        DirectFile(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="this is not a file"):
            DirectFile(path)
    with pytest.raises(InputError, match="nothing: creating a scratch file failed"):
        ScratchFile(tmp_path / "nothing", PAGE)


def test_scratch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name while it is open, its whole size at once, and a full disk is said before the run."""
    with ScratchFile(tmp_path, PAGE + 1) as file:
        assert not list(tmp_path.iterdir())
        assert file.nbytes == 2 * PAGE
        assert os.fstat(file._descriptor).st_blocks * 512 >= 2 * PAGE
        with pytest.raises(InputError, match="stops at byte"):
            file.write_from(aligned(PAGE), 2 * PAGE, PAGE)
    with pytest.raises(InputError, match=f"allocating {HUGE} B at offset 0 failed"):
        ScratchFile(tmp_path, HUGE)

    def full(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"\(ENOSPC\): the disk is full; free space"):
        ScratchFile(tmp_path, PAGE)
    assert not list(tmp_path.iterdir())


def test_wrong_calls(shard: Path) -> None:
    """Buffers and ranges that only an error of the program can give."""
    buffer = aligned(2 * PAGE)
    with DirectFile(shard) as file:
        for wrong in (buffer[1:], buffer.view(torch.int16), buffer.view(2, PAGE), buffer[::2], buffer[:100]):
            with pytest.raises(ValueError, match="buffer"):
                file.read_into(wrong, 0, PAGE)
        with pytest.raises(ValueError, match="no range"):
            file.read_into(buffer, -1, 1)
    with pytest.raises(ValueError, match="is closed"):
        file.read_into(buffer, 0, 1)
    file.close()
    with pytest.raises(ValueError, match="cannot allocate"):
        aligned(-1)
    with pytest.raises(ValueError, match="at least one thread"):
        ReadPool(threads=0)
    with pytest.raises(InputError, match=r"cannot allocate .* use smaller buffers"):
        aligned(HUGE)


@pytest.mark.parametrize("alignment", [PAGE, 16 * PAGE, 512 * PAGE])
@pytest.mark.parametrize("nbytes", [0, 1, PAGE, 3 * PAGE + 1])
def test_aligned(alignment: int, nbytes: int) -> None:
    """Buffers start where asked, have the size asked for, are zero, and outlive other references."""
    buffer = aligned(nbytes, alignment, pinned=True)
    assert buffer.shape == (nbytes,)
    assert buffer.data_ptr() % alignment == 0 or not nbytes
    assert not buffer.any()
    part = buffer[nbytes // 2 :].fill_(7)
    del buffer
    assert (part == 7).all()


@given(st.integers(0, 10**9), st.integers(0, 10**7))
def test_cuts_are_a_partition(offset: int, nbytes: int) -> None:
    """Chunks follow each other, start at pages but for the first, and are no longer than asked."""
    cuts = list(_cuts(offset, nbytes, 16 * PAGE))
    ends = [start + size for start, size in cuts]
    assert [start for start, _ in cuts] == [offset, *ends[:-1]]
    assert ends[-1] == offset + nbytes
    assert all(start % PAGE == 0 for start, _ in cuts[1:])
    assert all(padded(start, size) <= 16 * PAGE for start, size in cuts)


@both
@given(st.lists(ranges, min_size=1, max_size=8), st.integers(1, 4))
@same_folder
def test_pool_reads(shard: Path, direct: bool, requests: list[tuple[int, int]], threads: int) -> None:
    """Many requests at once, cut into single pages, are all right."""
    with DirectFile(shard, direct=direct) as file, ReadPool(threads, chunk=PAGE) as pool:
        futures = [pool.submit(file, aligned(padded(*at)), *at) for at in requests]
        for (offset, nbytes), future in zip(requests, futures, strict=True):
            assert torch.equal(future.result(10), noise(SIZE)[offset : offset + nbytes])
        assert not pool._open


@both
def test_pool_writes_neighbours(tmp_path: Path, direct: bool) -> None:
    """Requests that share pages but no bytes do not undo each other."""
    size, each = 16 * PAGE, 1000
    with ScratchFile(tmp_path, size, direct=direct) as file, ReadPool(4, chunk=PAGE) as pool:
        futures = []
        for offset in range(0, size - each, each):
            buffer = aligned(padded(offset, each))
            wanted(buffer, offset, each).copy_(noise(size)[offset : offset + each])
            futures.append(pool.write(file, buffer, offset, each))
        assert not wait(futures, 10).not_done
        end = len(futures) * each
        assert torch.equal(pool.submit(file, aligned(size), 0, end).result(10), noise(size)[:end])


def test_pool_tells_errors_and_goes_on(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of any kind ends its own request only."""
    with DirectFile(shard) as file, ReadPool(3, chunk=PAGE) as pool:
        with pytest.raises(ValueError, match="need a buffer"):
            pool.submit(file, aligned(PAGE), 1, PAGE)
        with pytest.raises(InputError, match="stops at byte"):
            pool.submit(file, aligned(9 * PAGE), 0, 9 * PAGE).result(10)
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", failing(errno.EIO, 2 * PAGE))
            with pytest.raises(InputError, match=r"a\.safetensors: reading .* at offset .*EIO"):
                pool.submit(file, aligned(5 * PAGE), 0, 5 * PAGE).result(10)
            patch.setattr(os, "preadv", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                pool.submit(file, aligned(PAGE), 0, PAGE).result(10)
        assert torch.equal(pool.submit(file, aligned(PAGE), 0, PAGE).result(10), noise(SIZE)[:PAGE])


def test_a_failed_request_ends_after_its_last_chunk(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then threads write to its buffer."""
    gate, running = threading.Event(), threading.Event()

    def transfer(descriptor: int, views: list[memoryview], offset: int) -> int:
        if offset:
            running.wait(10)
            raise OSError(errno.EIO, "Input/output error")
        running.set()
        gate.wait(10)
        return len(views[0])

    with DirectFile(shard) as file, ReadPool(2, chunk=PAGE) as pool:
        monkeypatch.setattr(os, "preadv", transfer)
        future = pool.submit(file, aligned(4 * PAGE), 0, 4 * PAGE)
        running.wait(10)
        time.sleep(0.02)
        assert not future.done()
        gate.set()
        assert isinstance(future.exception(10), InputError)


def test_close_does_not_wait_for_a_dead_disk(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that have not finished fail, queued or stuck, and nobody waits for ever."""
    gate = threading.Event()
    with DirectFile(shard) as file:
        pool = ReadPool(2, chunk=PAGE)
        monkeypatch.setattr(os, "preadv", lambda *_: gate.wait(10) and 0)
        futures = [pool.submit(file, aligned(4 * PAGE), 0, 4 * PAGE) for _ in range(3)]
        start = time.monotonic()
        pool.close(timeout=0.05)
        assert time.monotonic() - start < 5
        for future in futures:
            assert isinstance(future.exception(0), PlannerError)
        with pytest.raises(ValueError, match="pool is closed"):
            pool.submit(file, aligned(PAGE), 0, 1)
        pool.close()
        gate.set()
        for thread in pool._threads:
            thread.join(10)


def test_close_from_a_callback(shard: Path) -> None:
    """A thread of the pool may close it: it does not wait for itself."""
    closed = threading.Event()
    with DirectFile(shard) as file:
        pool = ReadPool(2)

        def close(_: Future[torch.Tensor]) -> None:
            pool.close()
            closed.set()

        pool.submit(file, aligned(PAGE), 0, PAGE).add_done_callback(close)
        assert closed.wait(10)
        for thread in pool._threads:
            thread.join(10)
