"""A small language model that has learnt something, to measure what an approximation costs.

With random weights any change is as good as any other: only a model that predicts text can predict it worse.
This one reads bytes, one a token, and learns the source of Python's standard library, which is on every
machine that runs the tests. Training takes about forty seconds of one core, once for all tests of a session.

The learning rate decides how much quantising hurts. With this one 4 bits for weights, for the cache or for
both cost well below 1 % of perplexity; with half of it the model predicts better, and both cost above 1 %.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import transformers

from executor import layers
from executor.reference import LoadedModel
from tests.checkpoints import one_thread, save

Texts = Sequence[tuple[int, ...]]
LogitsOf = Callable[[Texts], list[torch.Tensor]]

_HELD_OUT = 16  # one file of so many is not learnt from
_STEPS = 400
_TEXTS, _LENGTH = 8, 128  # of a step: texts, and bytes of each
_RATE, _WARM_UP = 4e-3, 50  # the learning rate at its highest, and the steps until then
_CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Give the temporary folder that all workers of this session share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def trained(path: Path) -> Path:
    """Train the model, unless it is there, and give its checkpoint: the weights in float16.

    Args:
        path: The folder to keep it in (`shared_folder`). Whoever else wants it there at the same time waits.
    """
    folder = path / "byte-model"
    with (path / "byte-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unnamed = path / "byte-model.part"
            shutil.rmtree(unnamed, ignore_errors=True)
            with one_thread():  # two are no faster while another worker has one of the cores
                save(_train().half(), unnamed)
            unnamed.rename(folder)
    return folder


def heldout(count: int = 64, length: int = 192) -> list[tuple[int, ...]]:
    """Give texts that were not learnt from, spread over all there are: ``count`` of ``length`` bytes."""
    data = _source()[1]
    step = (len(data) - length) // count
    return [tuple(data[start : start + length]) for start in range(0, count * step, step)]


def perplexity(logits_of: LogitsOf, texts: Texts) -> float:
    """Tell among how many equally likely bytes the choice would be as hard; its log2 is in bits a byte.

    Args:
        logits_of: Gives for each text its logits [T,V] or [T-1,V]: those of row i are for byte i + 1.
        texts: Bytes of each text, at least two. The first one is given.
    """
    losses = [
        nn.cross_entropy(logits[: len(text) - 1].double(), torch.tensor(text[1:]), reduction="sum")
        for text, logits in zip(texts, logits_of(texts), strict=True)
    ]
    return math.exp(sum(loss.item() for loss in losses) / sum(len(text) - 1 for text in texts))


def logits_with(model: LoadedModel, cached: Callable[[torch.Tensor], torch.Tensor] | None = None) -> LogitsOf:
    """Compute logits without any machinery, of texts of one length.

    Args:
        model: The model, its weights perhaps approximated.
        cached: What becomes of keys and values [B,T,K,D] in a cache; None: nothing.
    """

    def logits_of(texts: Texts) -> list[torch.Tensor]:
        tokens = torch.tensor(texts)
        at = torch.arange(tokens.shape[1]).expand_as(tokens)
        hidden = layers.embed(model.facts, tokens, at, model.embed)
        for weights in model.blocks:
            q, k, v = layers.project_qkv(model.facts, hidden, at, weights)
            if cached is not None:
                k, v = cached(k), cached(v)
            hidden = layers.project_out(model.facts, layers.attend(q, k, v), hidden, weights)
            hidden = layers.mlp(model.facts, hidden, weights)
        return list(layers.head(model.facts, hidden, model.head))

    return logits_of


def _source() -> tuple[bytes, bytes]:
    """Read the modules of the standard library: those to learn from, and the others."""
    learnt: list[bytes] = []
    others: list[bytes] = []
    for number, file in enumerate(sorted(Path(os.__file__).parent.glob("*.py"))):
        (others if number % _HELD_OUT == 0 else learnt).append(file.read_bytes())
    return b"".join(learnt), b"".join(others)


def _train() -> Any:
    """Train the model from the same start with the same texts each time."""
    data = torch.frombuffer(bytearray(_source()[0]), dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_CONFIG)).train()
        learner = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
        for step in range(_STEPS):
            starts = torch.randint(len(data) - _LENGTH, (_TEXTS, 1))
            for group in learner.param_groups:
                group["lr"] = _RATE * min(1, (step + 1) / _WARM_UP) * (1 - step / _STEPS)
            _learn(model, learner, data[starts + torch.arange(_LENGTH + 1)].long())
    return model.eval()


def _learn(model: Any, learner: torch.optim.Optimizer, texts: torch.Tensor) -> None:
    """Take one step on texts [B,T+1]."""
    logits = model(texts[:, :-1], use_cache=False).logits
    learner.zero_grad()
    loss = nn.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    learner.step()
