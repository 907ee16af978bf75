"""The executor on a GPU: streams and events instead of threads that do the work themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from executor import reference
from executor.engine import Listener, execute
from executor.sampling import Request, Result
from simulator.hardware import LANES
from simulator.layout import lay_out
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.workload import Workload
from tests.checkpoints import VARIANTS, build, save

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

_MIXED = Split(gpu=0.3, cpu=0.4, disk=0.3)
_ON_GPU = Split(gpu=1, cpu=0, disk=0)
_ON_CPU = Split(gpu=0, cpu=1, disk=0)


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stagger": 2},
        {"prompt_batch": 1},
        {"cpu_attention": CpuAttention(cpu=1.0, disk=1.0)},
        {"cpu_attention": CpuAttention(cpu=0.0, disk=0.0)},
        {"pinned": False},
        {"overlap": False},
        {"weights": _ON_CPU, "cache": _ON_CPU, "activations": _ON_CPU},
        {"weights": _ON_GPU, "cache": _ON_GPU, "activations": _ON_GPU},
        {"weight_bits": 8, "cache_bits": 8},
    ],
)
def test_a_gpu_gives_the_tokens_of_the_plain_model(
    tmp_path: Path, kind: str, changes: dict[str, object]
) -> None:
    """In float32 without TF32; with 8 bits the tokens may differ, and only the order is looked at."""
    checkpoint = save(build(VARIANTS[kind]), tmp_path / "model")
    policy = Policy(
        gpu_batch=2,
        num_groups=4,
        weights=_MIXED,
        cache=_MIXED,
        activations=_MIXED,
        cpu_attention=CpuAttention(cpu=0.5, disk=0.5),
        quant_group=8,
    ).model_copy(update=changes)
    work = Workload(prompt_len=9, gen_len=4)
    prompts = [Request(tuple(range(1, 3 + n % 8)), 4, stop=frozenset()) for n in range(17)]
    found: dict[int, Result] = {}
    outcome = execute(
        lay_out(checkpoint.model, load_runtime("reference"), work, policy),
        checkpoint,
        prompts,
        torch.device("cuda"),
        tmp_path,
        listener=Listener(found.__setitem__),
    )
    assert sorted(found) == list(range(len(prompts)))
    if policy.weight_bits == 16:
        wanted = reference.generate(checkpoint, prompts)
        assert [found[n].tokens for n in range(len(prompts))] == [one.tokens for one in wanted]
    trace = outcome.trace
    for index in range(len(LANES)):
        of_lane = trace.lane == index
        assert (np.diff(trace.start[of_lane]) >= 0).all()
        assert (trace.end[of_lane] >= trace.start[of_lane]).all()
