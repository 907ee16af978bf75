"""Drawn runs of the executor: policies, prompts, and the small checkpoints that they run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from executor.checkpoint import Checkpoint
from executor.engine import Listener, Outcome, execute
from executor.sampling import Request, Result, Sampling
from simulator.layout import Placed, lay_out
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.workload import Workload

VOCABULARY = 97  # of `tests.checkpoints`

_SHARES = (0.0, 0.3, 0.5, 1.0)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Draw a split; one or two tiers have nothing more often than not."""
    gpu = draw(st.sampled_from(_SHARES))
    cpu = min(draw(st.sampled_from(_SHARES)), 1 - gpu)
    return Split(gpu=gpu, cpu=cpu, disk=round(1 - gpu - cpu, 9))


@dataclass(frozen=True)
class Case:
    """A layout and what is asked of it."""

    placed: Placed
    requests: list[Request]


@st.composite
def requests(draw: st.DrawFn, workload: Workload, block: int) -> list[Request]:
    """Draw some prompts of different lengths, for up to two blocks and a bit."""
    token = st.integers(0, VOCABULARY - 1)

    def one() -> Request:
        sampling = Sampling(temperature=draw(st.sampled_from([0.0, 0.8])), seed=draw(st.integers(0, 99)))
        return Request(
            prompt=tuple(draw(st.lists(token, min_size=1, max_size=workload.prompt_len))),
            max_new_tokens=draw(st.integers(1, workload.gen_len)),
            sampling=sampling,
            stop=frozenset(draw(st.lists(token, max_size=2))),
        )

    return [one() for _ in range(draw(st.integers(1, 2 * block + 1)))]


@st.composite
def cases(draw: st.DrawFn, checkpoint: Checkpoint, grain: str = "tensor", **fixed: Any) -> Case:
    """Draw a policy, row by row, zig-zag or diagonal, with prompts for it."""
    workload = Workload(prompt_len=draw(st.integers(1, 20)), gen_len=draw(st.integers(1, 6)))
    batch = draw(st.integers(1, 4))
    stagger = draw(st.none() | st.integers(1, workload.gen_len))
    cohorts = 1 if stagger is None else -(-workload.gen_len // stagger)
    policy = Policy(
        gpu_batch=batch,
        num_groups=cohorts * draw(st.integers(1, 3)),
        stagger=stagger,
        prompt_batch=draw(st.sampled_from([one for one in range(1, batch + 1) if batch % one == 0])),
        weights=draw(splits()),
        cache=draw(splits()),
        activations=draw(splits()),
        cpu_attention=CpuAttention(
            cpu=draw(st.sampled_from([0.0, 0.5, 1.0])), disk=draw(st.sampled_from([0.0, 0.5, 1.0]))
        ),
        prefetch=draw(st.integers(1, 2)),
        overlap=draw(st.sampled_from([True, True, True, False])),
    ).model_copy(update=fixed)
    asked = draw(requests(workload, min(policy.block, 12)))
    runtime = load_runtime("reference").model_copy(update={"grain": grain})
    return Case(lay_out(checkpoint.model, runtime, workload, policy), asked)


def play(
    case: Case, checkpoint: Checkpoint, scratch: Path, *, logits: bool = False
) -> tuple[list[Result], Outcome]:
    """Run a case; every request must be answered once."""
    found: dict[int, Result] = {}

    def hear(index: int, result: Result) -> None:
        assert index not in found
        found[index] = result

    outcome = execute(
        case.placed,
        checkpoint,
        case.requests,
        torch.device("cpu"),
        scratch,
        listener=Listener(hear),
        logits=logits,
    )
    assert sorted(found) == list(range(len(case.requests)))
    return [found[index] for index in range(len(case.requests))], outcome


def tokens_of(results: Sequence[Result]) -> list[tuple[int, ...]]:
    """List what was generated."""
    return [result.tokens for result in results]
