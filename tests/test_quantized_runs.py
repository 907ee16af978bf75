"""What quantising and sparse attention cost in accuracy, on a model that has learnt something.

Texts are scored by the executor itself: a prompt of one byte, and all that follow forced.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from executor.checkpoint import Checkpoint
from executor.sampling import Request
from simulator.layout import lay_out
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.workload import Workload
from tests.byte_model import Texts, heldout, perplexity, shared_folder, trained
from tests.engine_cases import Case, play

_PROMPT = 64
_MIXED = Split(gpu=0.25, cpu=0.5, disk=0.25)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The trained model."""
    return Checkpoint.open(trained(shared_folder(tmp_path_factory)))


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Perplexity with 16 bits for everything."""
    return _scored(checkpoint, tmp_path_factory.getbasetemp())


def _scored(checkpoint: Checkpoint, scratch: Path, **changes: Any) -> float:
    """Let the executor score the held-out texts, those bytes that follow a prompt."""
    policy = Policy(
        gpu_batch=8,
        num_groups=2,
        weights=_MIXED,
        cache=_MIXED,
        activations=Split(gpu=1, cpu=0, disk=0),
        cpu_attention=CpuAttention(cpu=0.5, disk=0.5),
        quant_group=32,
        **changes,
    )

    def logits_of(texts: Texts) -> list[torch.Tensor]:
        count = len(texts[0]) - _PROMPT
        work = Workload(prompt_len=_PROMPT, gen_len=count)
        prompts = [
            Request(tuple(text[:_PROMPT]), count, stop=frozenset(), forced=tuple(text[_PROMPT:]))
            for text in texts
        ]
        placed = lay_out(checkpoint.model, load_runtime("reference"), work, policy)
        results, _ = play(Case(placed, prompts), checkpoint, scratch, logits=True)
        found = []
        for result in results:
            assert result.logits is not None
            found.append(result.logits)
        return found

    texts = heldout(16, 112)
    # The prompt's last byte is the first that is given.
    return perplexity(lambda _: logits_of(texts), [text[_PROMPT - 1 :] for text in texts])


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"weight_bits": 8, "cache_bits": 8}, 0.002),
        ({"weight_bits": 4}, 0.01),
        ({"cache_bits": 4}, 0.01),
        ({"weight_bits": 4, "cache_bits": 4}, 0.01),
    ],
)
def test_four_bits_cost_less_than_one_per_cent(
    checkpoint: Checkpoint, exact: float, tmp_path: Path, changes: dict[str, Any], most: float
) -> None:
    """Perplexity against that of the same run at 16 bits."""
    assert abs(math.log(_scored(checkpoint, tmp_path, **changes) / exact)) < most


def test_sparse_attention_costs_little_and_all_of_it_nothing(
    checkpoint: Checkpoint, exact: float, tmp_path: Path
) -> None:
    """With a tenth of the values the texts are read nearly as well; with two thousandths they are not."""
    tenth = _scored(checkpoint, tmp_path, attention_top=0.1) / exact
    fewest = _scored(checkpoint, tmp_path, attention_top=0.002) / exact
    print(f"perplexity with the values of the top 10 %: {tenth:.4f} x, of one token: {fewest:.4f} x")
    assert abs(math.log(_scored(checkpoint, tmp_path, attention_top=0.9999) / exact)) < 0.005
    assert tenth < fewest
    assert tenth < 1.5
