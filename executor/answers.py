"""The file of answers: JSON lines, each written whole once it is known, so that a run can be resumed."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, StrictStr

from executor.facts import Token
from executor.prompts import Id, Prompt, parse_line
from executor.sampling import Result
from executor.tensor_file import fault
from simulator.errors import InputError
from simulator.schema import Record, decode
from simulator.units import shortened

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OTHER = "give the path of this file's own answers, or a new one"
_BEGINNING = b'{"id": '  # of every line that this module writes


class _Line(Record):
    """The keys of a line."""

    id: Id
    prompt_tokens: Annotated[int, Field(strict=True, ge=1)]
    tokens: tuple[Token, ...]
    text: StrictStr | None = None
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Found:
    """What a file of answers holds.

    Attributes:
        ids: of the prompts that are answered, as texts.
        size: of the whole lines. [B]
        torn: of the rest, which is cut off when the file is continued. [B]
    """

    ids: frozenset[str] = frozenset()
    size: int = 0
    torn: int = 0


def check_new(path: Path) -> None:
    """Refuse to continue a file unasked.

    Raises:
        InputError: it holds something.
    """
    if _size(path):
        raise fault(
            f"--out {path}",
            "it exists already and is not overwritten; continue it with --resume, or give another path",
        )


def read_answers(path: Path, prompts: Sequence[Prompt]) -> Found:
    """Find out which prompts are answered in a file; it need not exist.

    A last line that is torn, as an interrupted machine leaves it, does not count.

    Raises:
        InputError: a line that is no answer, or the answer to a prompt that is not asked.
    """
    if not _size(path):
        return Found()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _fault(path, "read", error) from None
    *lines, tail = data.split(b"\n")
    if lines and not tail and _is_torn(lines[-1]):
        tail = lines.pop()
    asked = {str(prompt.id): len(prompt.request.prompt) for prompt in prompts}
    ids: set[str] = set()
    for number, line in enumerate(lines, start=1):
        ids.add(_answered(line, f"{path}:{number}", asked, ids))
    _check_tail(tail, f"{path}:{len(lines) + 1}")
    size = sum(len(line) + 1 for line in lines)
    return Found(frozenset(ids), size, len(data) - size)


def _size(path: Path) -> int:
    """Give the size of a file, 0 if there is none. [B]"""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _fault(path, "read", error) from None


def _is_torn(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return True
    return False


def _check_tail(tail: bytes, where: str) -> None:
    """Refuse to cut off what is not the beginning of an answer: the file may be quite another one.

    A file system may have filled what was not written before the power failed with zeros.
    """
    beginning = tail.rstrip(b"\0")[: len(_BEGINNING)]
    if not _BEGINNING.startswith(beginning):
        raise fault(where, f"not an answer; {_OTHER}")


def _answered(line: bytes, where: str, asked: dict[str, int], before: set[str]) -> str:
    """Give the id of a whole line, checked against the prompts and the lines before it."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise fault(where, f"not text; {_OTHER}") from None
    answer = decode(_Line, parse_line(text, where), where)
    name, shown = str(answer.id), shortened(answer.id)
    if name not in asked:
        raise fault(where, f"id {shown} is not among the prompts; {_OTHER}")
    if name in before:
        raise fault(where, f"id {shown} is answered in an earlier line too; remove one of the lines")
    if answer.prompt_tokens != asked[name]:
        raise fault(
            where,
            f"id {shown} was asked with {answer.prompt_tokens} prompt tokens, not {asked[name]}; {_OTHER}",
        )
    return name


class AnswerFile:
    """A file that answers are appended to, from any thread.

    Args:
        path: the file; it is made if there is none.
        found: what it holds; a torn line is cut off.
        tokenizer: for the texts of answers, which are left out without it.

    Raises:
        InputError: the file cannot be written to, or has changed since it was read.
    """

    def __init__(self, path: Path, found: Found, tokenizer: Tokenizer | None) -> None:
        self._path, self._tokenizer, self._lock = path, tokenizer, threading.Lock()
        self._size, self._count = found.size, 0
        # Without a buffer, a line is one write, and nothing is left to be written when that fails.
        try:
            self._file: io.FileIO = path.open("ab", buffering=0)
        except OSError as error:
            raise _fault(path, "written", error) from None
        if os.fstat(self._file.fileno()).st_size != found.size + found.torn:
            self._file.close()
            raise fault(f"--out {path}", "it changed since it was read; wait for the run that writes to it")
        if found.torn:
            self._file.truncate(found.size)

    @property
    def count(self) -> int:
        """Answers written since the file was opened."""
        return self._count

    def add(self, prompt: Prompt, result: Result) -> None:
        """Write an answer.

        Raises:
            InputError: it cannot be written; the file is left with whole lines.
        """
        line = _line(prompt, result, self._tokenizer)
        with self._lock:
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what the next write would say
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)
                raise _fault(self._path, "written", error) from None
            self._size += len(line)
            self._count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.closing(self._file):
            try:
                os.fsync(self._file.fileno())
            except OSError as reason:
                if reason.errno != errno.EINVAL:  # which says that it is a pipe or a device
                    raise _fault(self._path, "written", reason) from None


def _line(prompt: Prompt, result: Result, tokenizer: Tokenizer | None) -> bytes:
    """Write an answer as a line; the id is first."""
    answer: dict[str, Any] = {
        "id": prompt.id,
        "prompt_tokens": len(prompt.request.prompt),
        "tokens": list(result.tokens),
    }
    if tokenizer is not None:
        answer["text"] = tokenizer.decode(list(result.tokens))
    answer["finish_reason"] = result.finish
    return json.dumps(answer, ensure_ascii=False).encode() + b"\n"


def _fault(path: Path, verb: str, error: OSError) -> InputError:
    return fault(f"--out {path}", f"cannot be {verb} ({(error.strerror or 'unknown').lower()})")
