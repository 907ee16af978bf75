"""Files that are read and written past the page cache.

A model that does not fit in memory is read again for every token; the page cache would spend memory that the
plan gave to something else, would copy every byte once more, and would make the first tokens' times differ
from the later ones'. So files are opened with O_DIRECT. Where a file system does not take it, reads and
writes go through the page cache, and what they leave there is dropped at once; ``direct`` says which.

All requests may come from several threads at once; `executor.read_pool` does that. A file must stay open
until its requests have ended.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from executor.aligned import PAGE, aligned, pages_of, wanted
from simulator.errors import InputError
from simulator.units import one_line

__all__ = ["DirectFile", "ScratchFile"]

Transfer = Callable[[int, list[memoryview], int], int]

_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}
_PATIENCE = 8  # transfers that may stop at the same place before this is an error
_REMEDY = {
    errno.EIO: "the disk reports an error; look at the system's log, and use another disk",
    errno.ENOSPC: "the disk is full; free space, put less on the disk, or choose another folder",
    errno.EDQUOT: "the quota is used up; free space, put less on the disk, or choose another folder",
    errno.EFBIG: "the file system or ulimit -f does not allow so large a file; choose another folder",
    errno.ENOENT: "there is no such file or folder; check the path",
    errno.EACCES: "change the permissions or choose another place",
    errno.EMFILE: "too many files are open; raise ulimit -n",
}


def _failure(path: Path, action: str, error: OSError) -> InputError:
    """Word an error of the operating system: path, what was tried, why it failed, what to do."""
    code = errno.errorcode.get(error.errno or 0, "unknown")
    remedy = _REMEDY.get(error.errno or 0, "check the file and its disk")
    return InputError(one_line(f"{path}: {action} failed, {error.strerror} ({code}): {remedy}"))


class _File:
    """An open file with direct reads; what `DirectFile` and `ScratchFile` share.

    Attributes:
        path: Name for messages.
        nbytes: Size [B].
        direct: Whether requests go past the page cache.
    """

    def __init__(self, path: Path, open_path: Path, flags: int, direct: bool) -> None:
        self.path = path
        try:
            descriptor, self.direct = _open(open_path, flags, direct)
        except OSError as error:
            raise _failure(path, "opening", error) from error
        self._descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)  # also when it is just forgotten
        self.nbytes = os.fstat(descriptor).st_size

    def read_into(self, buffer: torch.Tensor, offset: int, nbytes: int) -> torch.Tensor:
        """Read ``nbytes`` [B] at ``offset`` [B], which may be any.

        Args:
            buffer: uint8, at least ``[padded(offset, nbytes)]``, at a page (see `executor.aligned`). Its
                bytes outside the returned slice are undefined afterwards.
            offset: Where in the file [B].
            nbytes: How many [B].

        Returns:
            The slice of ``buffer`` with the wanted bytes, uint8, shape ``[nbytes]``.

        Raises:
            InputError: the file is too short or cannot be read.
        """
        memory = pages_of(buffer, offset, nbytes)
        self._check_range("reading", offset, nbytes)
        if nbytes:
            self._transfer("reading", os.preadv, memory, offset - offset % PAGE, offset % PAGE + nbytes)
            self._drop(offset - offset % PAGE, len(memory))
        return wanted(buffer, offset, nbytes)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._closing()

    def _check_range(self, action: str, offset: int, nbytes: int) -> None:
        if not self._closing.alive:
            raise ValueError(f"{self.path} is closed")
        if offset < 0 or nbytes < 0:
            raise ValueError(f"{self.path}: {nbytes} B at offset {offset} is no range")
        if offset + nbytes > self.nbytes:
            raise self._too_short(action, offset, nbytes, self.nbytes)

    def _too_short(self, action: str, offset: int, nbytes: int, end: int) -> InputError:
        return InputError(
            one_line(
                f"{self.path}: {action} {nbytes} B at offset {offset} failed, the file stops at byte {end}: "
                "it is cut short; fetch or write it again"
            )
        )

    def _transfer(self, action: str, call: Transfer, memory: memoryview, start: int, needed: int) -> None:
        """Move ``needed`` bytes between memory and the file at ``start``, in as many calls as it takes.

        A direct transfer goes on at a page: what a short one moved beyond the last whole page moves again.
        """
        step = PAGE if self.direct else 1
        done, stalled = 0, 0
        while done < needed:
            try:
                moved = call(self._descriptor, [memory[done:]], start + done)
            except OSError as error:
                at = f"{action} {needed - done} B at offset {start + done}"
                raise _failure(self.path, at, error) from error
            before, done = done, done + moved
            if done < needed:
                done -= done % step
            stalled = 0 if done > before else stalled + 1
            if not moved or stalled > _PATIENCE:
                raise self._too_short(action, start, needed, start + before + moved)

    def _drop(self, start: int, nbytes: int) -> None:
        """Leave nothing of a buffered transfer in the page cache: the plan has given that memory away."""
        if not self.direct:
            os.posix_fadvise(self._descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DirectFile(_File):
    """A file to read from, for example a shard of a checkpoint.

    Args:
        path: The file.
        direct: False goes through the page cache even where direct I/O would work.

    Raises:
        InputError: there is no such file, or it cannot be opened.
    """

    def __init__(self, path: Path, *, direct: bool = True) -> None:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise InputError(one_line(f"{path}: this is not a file; give the path of a file"))
        super().__init__(path, path, os.O_RDONLY, direct)


class ScratchFile(_File):
    """A file to write and read back, for example a key-value cache; it has its full size from the start.

    Its name is removed as soon as it is open, so that its space comes back however the program ends; no
    folder shows it. What was never written reads as zeros, without a transfer from the disk.

    Args:
        folder: Where the file system has the space. One in memory (tmpfs) would spend memory.
        nbytes: Size [B]; rounded up to whole pages.
        direct: False goes through the page cache even where direct I/O would work.

    Raises:
        InputError: there is no such folder, or not enough space.
    """

    def __init__(self, folder: Path, nbytes: int, *, direct: bool = True) -> None:
        size = max(-(-nbytes // PAGE) * PAGE, PAGE)
        self._edges = threading.Lock()
        self._edge = aligned(PAGE)  # under the lock
        try:
            descriptor, name = tempfile.mkstemp(prefix="scratch-", dir=folder)
        except OSError as error:
            raise _failure(folder, "creating a scratch file", error) from error
        path = Path(name)
        try:
            os.posix_fallocate(descriptor, 0, size)
            # Opened again: creating with O_DIRECT leaves an empty file where O_DIRECT is refused.
            super().__init__(path, path, os.O_RDWR, direct)
        except OSError as error:
            raise _failure(path, f"allocating {size} B at offset 0", error) from error
        finally:
            os.close(descriptor)
            path.unlink()

    def write_from(self, buffer: torch.Tensor, offset: int, nbytes: int) -> torch.Tensor:
        """Write ``nbytes`` [B] at ``offset`` [B]; what lies beside them in the file stays.

        Fast where the range is whole pages. Otherwise the first and the last page are read before, and such
        writes wait for each other, since two of them may share a page.

        Args:
            buffer: As for `read_into`: uint8, at least ``[padded(offset, nbytes)]``, the bytes to write at
                ``wanted(buffer, offset, nbytes)``. Those beside them are overwritten.
            offset: Where in the file [B].
            nbytes: How many [B].

        Returns:
            The slice of ``buffer`` that was written, uint8, shape ``[nbytes]``.

        Raises:
            InputError: the range is outside the file, or the disk fails.
        """
        memory = pages_of(buffer, offset, nbytes)
        self._check_range("writing", offset, nbytes)
        if not nbytes:
            return wanted(buffer, offset, nbytes)
        head = offset % PAGE
        if not self.direct:
            self._transfer("writing", os.pwritev, memory[head : head + nbytes], offset, nbytes)
            os.fdatasync(self._descriptor)  # only what has reached the disk can be dropped
            self._drop(offset - head, len(memory))
        elif nbytes == len(memory):
            self._transfer("writing", os.pwritev, memory, offset, nbytes)
        else:
            with self._edges:
                self._complete_edges(memory, offset - head, head, head + nbytes)
                self._transfer("writing", os.pwritev, memory, offset - head, len(memory))
        return wanted(buffer, offset, nbytes)

    def _complete_edges(self, memory: memoryview, start: int, head: int, tail: int) -> None:
        """Fill a buffer before ``head`` and from ``tail`` on with what the file has there."""
        page = self._edge.numpy().data
        last = len(memory) - PAGE
        if head:
            self._transfer("reading", os.preadv, page, start, PAGE)
            memory[:head] = page[:head]
        if tail < len(memory):
            self._transfer("reading", os.preadv, page, start + last, PAGE)
            memory[tail:] = page[tail - last :]


def _open(path: Path, flags: int, direct: bool) -> tuple[int, bool]:
    """Open a file past the page cache if asked to and possible; say whether it is."""
    if direct and hasattr(os, "O_DIRECT"):
        try:
            descriptor = os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
        else:
            if _reads_directly(descriptor):
                return descriptor, True
            os.close(descriptor)
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    # Nothing is read ahead of a request: it would stay in memory.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor, False


def _reads_directly(descriptor: int) -> bool:
    """Try a read: some file systems take the flag and refuse the reads, or want more than a page."""
    try:
        os.preadv(descriptor, [aligned(PAGE).numpy().data], 0)
    except OSError as error:
        return error.errno not in _NOT_DIRECT  # any other error meets the caller's first read
    return True
