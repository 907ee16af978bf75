"""Plain generation in memory, without tiers: what every other way of running a model is compared with.

All weights are loaded, all requests run together, padded on the right to the longest. Nothing is clever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from executor import layers
from executor.checkpoint import Checkpoint
from executor.facts import Facts
from executor.sampling import Request, Result, choose
from executor.tensor_file import TensorPlace, read
from simulator.errors import InputError


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: its facts, and the tensors of its embedding, its blocks and its head."""

    facts: Facts
    embed: dict[str, torch.Tensor]
    blocks: tuple[dict[str, torch.Tensor], ...]
    head: dict[str, torch.Tensor]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoadedModel:
    """Read all tensors of a checkpoint, tied ones once."""
    loaded: dict[TensorPlace, torch.Tensor] = {}

    def get(places: dict[str, TensorPlace]) -> dict[str, torch.Tensor]:
        for place in places.values():
            if place not in loaded:
                loaded[place] = read(place).to(device=device, dtype=dtype)
        return {name: loaded[place] for name, place in places.items()}

    blocks = tuple(get(checkpoint.block(index)) for index in range(checkpoint.model.num_layers))
    return LoadedModel(checkpoint.config, get(checkpoint.embed), blocks, get(checkpoint.head))


def generate(
    checkpoint: Checkpoint | LoadedModel,
    requests: Sequence[Request],
    dtype: torch.dtype = torch.float32,
    *,
    logits: bool = False,
) -> list[Result]:
    """Generate the answers to all requests in one batch.

    Args:
        checkpoint: the model; one that is loaded already has its own type.
        requests: prompts, of any lengths.
        dtype: of weights, cache and hidden states.
        logits: whether results hold the logits of their tokens.

    Raises:
        InputError: a request cannot be run with this model.
    """
    model = checkpoint if isinstance(checkpoint, LoadedModel) else load(checkpoint, dtype)
    for number, request in enumerate(requests):
        check_request(model.facts, request, f"request {number}")
    if not requests:
        return []
    with torch.inference_mode():
        return _generate(model, requests, logits)


def check_request(facts: Facts, request: Request, where: str) -> None:
    """Refuse what the model cannot run.

    Raises:
        InputError: a token that is not in the vocabulary, or more tokens than the model has positions for.
    """
    size = facts.model.vocab_size
    wrong = next((token for token in request.prompt if not 0 <= token < size), None)
    if wrong is not None:
        raise InputError(
            f"{where}: prompt: token {wrong} is not in the vocabulary of {size}; take the model's tokenizer"
        )
    if facts.context_limit is not None and context(request) > facts.context_limit:
        raise InputError(
            f"{where}: {len(request.prompt)} prompt and {request.max_new_tokens} new tokens do not fit the "
            f"{facts.context_limit} positions of {facts.model.name}; shorten the prompt or ask for fewer"
        )


def context(request: Request) -> int:
    """Count the tokens that are ever fed to the model: the last one is not."""
    return len(request.prompt) + request.max_new_tokens - 1


def _generate(model: LoadedModel, requests: Sequence[Request], keep: bool) -> list[Result]:
    rows = range(len(requests))
    generated: list[list[int]] = [[] for _ in rows]
    kept: list[list[torch.Tensor]] = [[] for _ in rows]
    stops = [model.facts.end_tokens if request.stop is None else request.stop for request in requests]
    tokens, lengths = _padded(requests, next(iter(model.embed.values())).device)
    cache = _empty_cache(model, requests)
    hidden = _forward(model, tokens, None, cache)
    last = hidden[torch.arange(len(requests)), lengths - 1]
    active = list(rows)
    while active:
        logits = layers.head(model.facts, last, model.head)
        chosen = choose(logits, [request.sampling for request in requests], [len(row) for row in generated])
        for row in active:
            forced = requests[row].forced[len(generated[row]) :]
            generated[row].append(forced[0] if forced else int(chosen[row]))
            if keep:
                kept[row].append(logits[row].cpu())
        active = [
            row
            for row in active
            if generated[row][-1] not in stops[row] and len(generated[row]) < requests[row].max_new_tokens
        ]
        if active:  # a sequence that is done keeps its length, and overwrites its last slot
            lengths[active] += 1
            tokens = torch.tensor([[row[-1]] for row in generated], device=lengths.device)
            last = _forward(model, tokens, lengths[:, None] - 1, cache)[:, 0]
    return [
        Result(
            tokens=tuple(generated[row]),
            finish="stop" if generated[row][-1] in stops[row] else "length",
            logits=torch.stack(kept[row]) if keep else None,
        )
        for row in rows
    ]


def _padded(requests: Sequence[Request], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the prompts [B,T], shorter ones followed by token 0, and their lengths [B]."""
    lengths = [len(request.prompt) for request in requests]
    rows = [[*request.prompt, *[0] * (max(lengths) - len(request.prompt))] for request in requests]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


def _empty_cache(model: LoadedModel, requests: Sequence[Request]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Make room for the keys and values of each block [B,S,K,D]; slot s will hold token s of a sequence.

    Slots that nothing was written to are masked, but must be finite: 0 times infinity is not 0.
    """
    spec, like = model.facts.model, next(iter(model.embed.values()))
    shape = (len(requests), max(map(context, requests)), spec.num_kv_heads, spec.head_dim)
    return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in model.blocks]


def _forward(
    model: LoadedModel,
    tokens: torch.Tensor,
    positions: torch.Tensor | None,
    cache: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Run all blocks on new tokens [B,T], whose keys and values go to the cache: -> [B,T,E].

    Args:
        model: the model.
        tokens: [B,T].
        positions: [B,T]; None for prompts, which begin at 0.
        cache: keys and values of each block [B,S,K,D].
    """
    facts, (batch, new) = model.facts, tokens.shape
    at = torch.arange(new, device=tokens.device).expand(batch, new) if positions is None else positions
    rows = torch.arange(batch, device=tokens.device)[:, None]
    hidden = layers.embed(facts, tokens, at, model.embed)
    for weights, (keys, values) in zip(model.blocks, cache, strict=True):
        q, k, v = layers.project_qkv(facts, hidden, at, weights)
        keys[rows, at], values[rows, at] = k, v
        seen = (k, v) if positions is None else (keys, values)
        attention = layers.attend(q, *seen, positions)
        hidden = layers.project_out(facts, attention, hidden, weights)
        hidden = layers.mlp(facts, hidden, weights)
    return hidden
