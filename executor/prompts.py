"""What is asked of a run: the file of prompts, checked against the model and the plan, and the device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import torch
from pydantic import BeforeValidator, Field, StrictStr, model_validator

from executor.checkpoint import Checkpoint
from executor.facts import Facts, Token
from executor.reference import check_request
from executor.sampling import Request, Sampling
from executor.tensor_file import fault
from simulator.errors import InputError
from simulator.schema import Record, decode, read_text
from simulator.units import shortened
from simulator.workload import Workload

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NUMBERS = 'give token numbers in "tokens"'


def _text_or_number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected a text or a whole number; got {shortened(value)}")
    return _encodable(value)


def _encodable(value: object) -> object:
    """Refuse half of a character, which JSON can say, but which no tokenizer and no file takes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"half of a surrogate pair in {shortened(value)}; write the whole character"
            ) from None
    return value


Id = Annotated[int | str, BeforeValidator(_text_or_number)]
_Text = Annotated[StrictStr, BeforeValidator(_encodable)]
_Whole = Annotated[int, Field(strict=True)]
_Number = Annotated[float, Field(strict=True)]


class _Line(Record):
    """The keys of a line: a prompt as text or as token numbers, and what to generate.

    ``max_tokens`` is the plan's generated length if absent. ``stop``, token numbers or texts of one token,
    replaces the tokens that end a text by the checkpoint; none do if it is empty.
    """

    id: Id | None = None
    prompt: _Text | None = None
    tokens: tuple[Token, ...] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    temperature: _Number = 0.0
    top_k: _Whole = 0
    top_p: _Number = 1.0
    seed: _Whole = 0
    stop: tuple[Id, ...] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.tokens is None):
            raise ValueError('give either a text in "prompt" or token numbers in "tokens"')
        return self


@dataclass(frozen=True)
class Prompt:
    """A line of the file.

    Attributes:
        id: what the line calls itself, else its number as a text.
        request: what to generate from.
    """

    id: int | str
    request: Request


def choose_device(device: str | None) -> str:
    """Give the device asked for, or if none is, CUDA's where there is one.

    Raises:
        InputError: CUDA is asked for and torch has none.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError(
            "--device cuda: torch finds no CUDA device; check the driver and that torch is a build for CUDA, "
            "or give --device cpu"
        )
    return device or ("cuda" if found else "cpu")


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """Read the checkpoint's tokenizer; None without its file or without the library.

    Raises:
        InputError: the file is damaged.
    """
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - runs on token numbers do without it
    except ImportError:
        return None
    if checkpoint.tokenizer is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    except Exception as error:  # the library raises this very class
        raise fault(
            checkpoint.tokenizer, f"not a tokenizer ({shortened(str(error))}); download it again"
        ) from None
    # Settings for training may be left in the file; a prompt is fed as it is, or refused.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_prompts(
    path: Path, checkpoint: Checkpoint, workload: Workload, tokenizer: Tokenizer | None
) -> list[Prompt]:
    """Read a file of prompts, one JSON object a line; empty lines are skipped.

    Args:
        path: the file.
        checkpoint: the model that will run them.
        workload: the lengths that the plan has room for; its generated length is the default.
        tokenizer: the checkpoint's, without which prompts are token numbers.

    Raises:
        InputError: a line that is no prompt, or that model or plan cannot run.
    """
    coder = _Coder(checkpoint, tokenizer)
    prompts: dict[str, Prompt] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        name = str(number) if line.id is None else line.id
        # A reader of the answers may take every id as a text.
        if str(name) in prompts:
            raise fault(where, f"id {shortened(name)} is that of line {lines[str(name)]} too; change one")
        request = coder.request(line, where, workload.gen_len)
        _check(checkpoint.config, request, where)
        prompts[str(name)], lines[str(name)] = Prompt(name, request), number
    if not prompts:
        raise fault(path, 'it holds no prompts; write one JSON object a line, such as {"prompt": "Hello"}')
    _check_plan(path, list(lines.values()), [each.request for each in prompts.values()], workload)
    return list(prompts.values())


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    """Number the lines from 1. Texts may hold other separators, so that only a newline ends a line."""
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            yield number, decode(_Line, parse_line(text, f"{path}:{number}"), f"{path}:{number}")


def parse_line(text: str, where: str) -> object:
    """Read a line that must be one JSON object.

    Raises:
        InputError: it is not.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fault(where, f"not valid JSON ({error or type(error).__name__})") from None
    if not isinstance(data, dict):
        raise fault(where, f"expected a JSON object, keys with values; got {shortened(data)}")
    return data


@dataclass(frozen=True)
class _Coder:
    """Turns lines into requests, with a tokenizer if there is one."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer | None

    def request(self, line: _Line, where: str, longest: int) -> Request:
        """Build a request; it asks for ``longest`` new tokens if the line does not say."""
        prompt = line.tokens if line.prompt is None else self._encode(line.prompt, f"{where}.prompt")
        assert prompt is not None  # a line has one of them
        stop = None if line.stop is None else frozenset(self._stop(each, where) for each in line.stop)
        try:
            sampling = Sampling(line.temperature, line.top_k, line.top_p, line.seed)
            return Request(prompt, line.max_tokens or longest, sampling, stop)
        except InputError as error:
            raise fault(where, str(error)) from None

    def _encode(self, text: str, where: str, *, special: bool = True) -> tuple[int, ...]:
        """Give a text's tokens, with those that the tokenizer's own template puts around them."""
        if self.tokenizer is None:
            if self.checkpoint.tokenizer is None:
                missing = f"{self.checkpoint.path} has no tokenizer.json; download it"
            else:
                missing = "the library tokenizers is missing; pip install 'offload-planner[run]'"
            raise fault(where, f"a text, but {missing}, or {_NUMBERS}")
        return tuple(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def _stop(self, stop: int | str, where: str) -> int:
        if isinstance(stop, str):
            tokens = self._encode(stop, f"{where}.stop", special=False)
            if len(tokens) != 1:
                raise fault(
                    f"{where}.stop", f"{shortened(stop)} is {len(tokens)} tokens; give a text that is one"
                )
            return tokens[0]
        if not 0 <= stop < self.checkpoint.model.vocab_size:
            raise fault(
                f"{where}.stop",
                f"token {stop} is not in the vocabulary of {self.checkpoint.model.vocab_size}; "
                "take the model's tokenizer",
            )
        return stop


def _check(facts: Facts, request: Request, where: str) -> None:
    try:
        check_request(facts, request, where)
    except InputError as error:
        raise fault(where, str(error).removeprefix(f"{where}: ")) from None


def _check_plan(path: Path, numbers: Sequence[int], requests: Sequence[Request], workload: Workload) -> None:
    """Refuse what is longer than the plan has room for, with the lengths that the whole file needs."""
    prompt_len = max(len(request.prompt) for request in requests)
    gen_len = max(request.max_new_tokens for request in requests)
    remedy = f"make a plan with --prompt-len {prompt_len} --gen-len {gen_len} for this file"
    for number, request in zip(numbers, requests, strict=True):
        for length, most, words in (
            (len(request.prompt), workload.prompt_len, "prompt tokens"),
            (request.max_new_tokens, workload.gen_len, "new tokens"),
        ):
            if length > most:
                raise fault(
                    f"{path}:{number}", f"{length} {words} are more than the {most} of the plan; {remedy}"
                )
