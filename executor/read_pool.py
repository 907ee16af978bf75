"""Several transfers in flight: one thread waits for the disk while another starts the next transfer.

A single direct read leaves the disk idle between its end and the start of the next. So a request is cut into
chunks at page boundaries, and threads transfer chunks; Python's lock is free while the disk works. A request
ends when its last chunk does, also when an earlier one failed, since until then threads use its buffer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import torch

from executor.aligned import PAGE, pages_of, wanted
from executor.direct_io import DirectFile, ScratchFile
from simulator.errors import PlannerError

__all__ = ["ReadPool"]

CHUNK = 4 << 20  # bytes of one transfer; smaller ones cost calls, larger ones leave threads idle at the end

Action = Callable[[torch.Tensor, int, int], torch.Tensor]


class ReadPool:
    """Threads that keep reads, and writes, of files in flight; first come, first served.

    Args:
        threads: Transfers in flight.
        chunk: Bytes [B] of one transfer, whole pages; see ``benchmarks/bench_disk.py``.
    """

    def __init__(self, threads: int = 4, chunk: int = CHUNK) -> None:
        if threads < 1 or chunk < PAGE or chunk % PAGE:
            raise ValueError(
                f"a pool has at least one thread and chunks of pages, not {threads} and {chunk} B"
            )
        self.chunk = chunk
        self._pieces: SimpleQueue[_Piece | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[_Request] = set()
        self._closed = False
        # Threads know the queue only, and do not keep the process alive if a disk never answers.
        self._threads = [
            threading.Thread(target=_work, args=(self._pieces,), name=f"disk-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, file: DirectFile | ScratchFile, buffer: torch.Tensor, offset: int, nbytes: int
    ) -> Future[torch.Tensor]:
        """Start reading ``nbytes`` [B] at ``offset`` [B] of a file.

        Returns:
            What ``file.read_into(buffer, offset, nbytes)`` returns or raises. The buffer belongs to the
            request until then. The request cannot be cancelled.
        """
        return self._start(file.read_into, buffer, offset, nbytes)

    def write(
        self, file: ScratchFile, buffer: torch.Tensor, offset: int, nbytes: int
    ) -> Future[torch.Tensor]:
        """Start writing ``nbytes`` [B] at ``offset`` [B]: ``file.write_from(buffer, offset, nbytes)``."""
        return self._start(file.write_from, buffer, offset, nbytes)

    def close(self, timeout: float = 5.0) -> None:
        """Stop: transfers in flight end, requests that have not finished fail; a second time does nothing.

        Args:
            timeout: Seconds [s] after which threads are left alone that still wait for the disk.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            unfinished = list(self._open)
        for request in unfinished:
            request.fail(
                PlannerError("the transfer was given up: its pool was closed before it had finished")
            )
        for _ in self._threads:
            self._pieces.put(None)
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():  # a future's callback may close the pool
                thread.join(max(end - time.monotonic(), 0))
        for request in unfinished:
            request.give_up()

    def _start(self, action: Action, buffer: torch.Tensor, offset: int, nbytes: int) -> Future[torch.Tensor]:
        pages_of(buffer, offset, nbytes)  # a wrong buffer is told to the caller, not to the future
        cuts = list(_cuts(offset, nbytes, self.chunk))
        request = _Request(wanted(buffer, offset, nbytes), len(cuts))
        base = offset - offset % PAGE
        with self._lock:
            if self._closed:
                raise ValueError("the pool is closed")
            self._open.add(request)
            request.future.add_done_callback(lambda _: self._forget(request))
            for start, size in cuts:
                part = buffer[start - start % PAGE - base :]
                self._pieces.put(_Piece(request, action, part, start, size))
        return request.future

    def _forget(self, request: _Request) -> None:
        with self._lock:
            self._open.discard(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Request:
    """What became of a request's chunks."""

    def __init__(self, result: torch.Tensor, pieces: int) -> None:
        self.future: Future[torch.Tensor] = Future()
        self.future.set_running_or_notify_cancel()
        self.error: BaseException | None = None
        self._result = result
        self._left = pieces
        self._lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        """Note the first error; chunks that have not started are left out."""
        with self._lock:
            self.error = self.error or error

    def piece_ended(self) -> None:
        """Count a chunk; the last one ends the request."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._end()

    def give_up(self) -> None:
        """End the request now, though threads may still use its buffer."""
        with self._lock:
            waiting, self._left = self._left > 0, 0
        if waiting:
            self._end()

    def _end(self) -> None:
        if self.error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self.error)


@dataclass(frozen=True, eq=False)
class _Piece:
    """One chunk: ``action(buffer, offset, nbytes)``."""

    request: _Request
    action: Action
    buffer: torch.Tensor
    offset: int
    nbytes: int

    def run(self) -> None:
        """Transfer, unless the request has failed already."""
        try:
            if self.request.error is None:
                self.action(self.buffer, self.offset, self.nbytes)
        except BaseException as error:  # whatever it is, the one who waits must hear of it
            self.request.fail(error)
        self.request.piece_ended()


def _work(pieces: SimpleQueue[_Piece | None]) -> None:
    """Transfer chunk after chunk until told to stop."""
    while (piece := pieces.get()) is not None:
        piece.run()
        del piece  # waiting for the next, a thread keeps no buffer


def _cuts(offset: int, nbytes: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Cut a range of a file at pages: yield offset and bytes [B]; one empty cut for an empty range."""
    start, end = offset, offset + nbytes
    while True:
        stop = min(end, start - start % PAGE + chunk)
        yield start, stop - start
        start = stop
        if start >= end:
            return
