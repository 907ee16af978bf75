"""Requests and their answers, and the choice of the next token, the same whatever else is in the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from simulator.errors import InputError

_ROWS = 64  # sequences whose probabilities are in float64 at the same time


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen: the most likely one, or by chance.

    Attributes:
        temperature: what logits are divided by; 0 takes the most likely token, of equals the first.
        top_k: how many of the most likely tokens may be taken; 0: all.
        top_p: of these, the fewest whose probabilities sum to at least this may be taken.
        seed: of the chance. Token i of a request depends on its logits, the seed, and i.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: {self.temperature:g} is not a number of at least 0; 0 is greedy")
        if self.top_k < 0:
            raise InputError(f"top_k: {self.top_k} is negative; 0 allows all tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p:g} is not above 0 and at most 1; 1 allows all tokens")


@dataclass(frozen=True)
class Request:
    """A prompt and what is asked for.

    Attributes:
        prompt: token numbers, at least one.
        max_new_tokens: how many tokens to generate at most, at least one.
        sampling: how they are chosen.
        stop: tokens that end the text; None: those that the checkpoint names.
        forced: tokens that are taken instead of the first chosen ones, so that a given text can be scored.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: frozenset[int] | None = None
    forced: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("prompt: it is empty; give at least one token")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: {self.max_new_tokens} is below 1; ask for at least one token")


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        tokens: the generated tokens; a stop token is the last of them.
        finish: whether a stop token or the length ended it.
        logits: those of each generated token [tokens, V], float32 on the CPU; None unless asked for. Equal
            answers may differ in them.
    """

    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]
    logits: torch.Tensor | None = field(default=None, compare=False)


def choose(logits: torch.Tensor, samplings: Sequence[Sampling], steps: Sequence[int]) -> torch.Tensor:
    """Choose the next token of each sequence.

    Args:
        logits: [B,V].
        samplings: of each sequence.
        steps: how many tokens each has generated before.

    Returns:
        Token numbers [B] on the device of the logits.
    """
    chosen = logits.argmax(-1)
    by_chance = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    for start in range(0, len(by_chance), _ROWS):
        rows = by_chance[start : start + _ROWS]
        chance = [uniform(samplings[row].seed, steps[row]) for row in rows]
        chosen[rows] = _draw(logits[rows], [samplings[row] for row in rows], chance)
    return chosen


def uniform(seed: int, step: int) -> float:
    """Give a number from [0, 1) that depends on its arguments alone, on any machine."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _draw(logits: torch.Tensor, samplings: Sequence[Sampling], chance: Sequence[float]) -> torch.Tensor:
    """Go through each row's tokens, the likeliest first, until their share exceeds the row's number."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    ordered, tokens = logits.double().sort(dim=-1, descending=True, stable=True)
    scaled = (ordered - ordered[:, :1]) / column([sampling.temperature for sampling in samplings])
    rank = torch.arange(logits.shape[-1], device=logits.device)
    limit = column([sampling.top_k or logits.shape[-1] for sampling in samplings])
    shares = scaled.masked_fill(rank >= limit, float("-inf")).softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= column([sampling.top_p for sampling in samplings]), 0.0)
    total = shares.cumsum(-1)
    place = (total <= column(chance) * total[:, -1:]).sum(-1, keepdim=True)
    last = (shares > 0).sum(-1, keepdim=True) - 1  # sums made in parallel may sink a little after it
    return tokens.gather(-1, place.minimum(last))[:, 0]
