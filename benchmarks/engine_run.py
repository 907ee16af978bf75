"""Runs a plan with the executor, wholly or without a part of its work, and prints one line of JSON.

    python -m benchmarks.engine_run PLAN --checkpoint DIR [--without compute|reads]

``--without compute`` leaves out what the processor computes, ``--without reads`` what comes from the disk
(buffers then hold what was read first). Both go through the same schedule, lanes and buffers, so that they
are the limits of this very run: no overlap of the two is faster than the slower one.

Prompts are random, one for each place of a block; every text has the plan's full length.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `planner run` does
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch

from executor import engine
from executor.checkpoint import Checkpoint
from executor.sampling import Request
from executor.steps import Step, Steps
from executor.weights import WeightStore
from planner.plan import Plan, read_plan
from simulator.errors import PlannerError
from simulator.hardware import LANES
from simulator.trace import Trace

_COMPUTED = ("embed", "attend_prompt", "attend", "attend_cpu", "mlp", "dequantize_weights")


def without_compute() -> None:
    """Let every operation of the processor do nothing; heads choose token 0."""

    def nothing(_steps: Steps, _step: Step) -> None:
        return

    def head(steps: Steps, step: Step) -> None:
        count = len(step.cell.sequences)
        steps._accept(step.cell, torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1))

    def qkv(steps: Steps, step: Step) -> None:
        cell, model = step.cell, steps._facts.model
        assert cell.group is not None
        shape = (len(cell.sequences), cell.tokens, model.num_heads, model.head_dim)
        cell.queries = cell.attention = torch.empty(shape, dtype=steps._memory.dtype)
        steps._memory.cache.grow(cell.group.number, step.layer, cell.row + cell.tokens)

    Steps.qkv = qkv  # type: ignore[method-assign]
    for name in _COMPUTED:
        setattr(Steps, name, nothing)
    Steps.head = head  # type: ignore[method-assign]


def without_reads() -> None:
    """Read every buffer once, so that it holds numbers, and never again."""
    read, seen = WeightStore.read, set[int]()

    def once(store: WeightStore, layer: int, staging: int, part: int, parts: int) -> int:
        memory = store._staging[staging]
        if memory.data_ptr() in seen:
            return 0
        if part == parts - 1:
            seen.add(memory.data_ptr())
        return read(store, layer, staging, part, parts)

    WeightStore.read = once  # type: ignore[method-assign]


def requests(plan: Plan) -> list[Request]:
    """Make random prompts for one block."""
    work = plan.workload
    numbers = np.random.default_rng(0).integers(
        plan.model.vocab_size, size=(plan.policy.block, work.prompt_len)
    )
    return [Request(tuple(row), work.gen_len, stop=frozenset()) for row in numbers.tolist()]


def pass_seconds(trace: Trace) -> list[float]:
    """Give the time of every pass, from the end of the one before to its last head. [s]"""
    heads = np.array(trace.names) == "head"
    ends = [
        float(trace.end[heads & (trace.pass_number == number)].max())
        for number in np.unique(trace.pass_number)
    ]
    return np.diff([0.0, *ends]).tolist()


def busy(trace: Trace) -> dict[str, float]:
    """Give the time that each lane works. [s]"""
    took = trace.end - trace.start
    return {lane: float(took[trace.lane == index].sum()) for index, lane in enumerate(LANES)}


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--without", choices=["compute", "reads"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scratch", type=Path, default=Path.cwd())
    given = parser.parse_args()
    {"compute": without_compute, "reads": without_reads, None: lambda: None}[given.without]()
    plan = read_plan(given.plan)
    asked = requests(plan)
    outcome = engine.run(
        plan,
        Checkpoint.open(given.checkpoint),
        asked,
        device=given.device,
        scratch=given.scratch,
        listener=engine.Listener(lambda _index, _result: None),
    )
    passes = pass_seconds(outcome.trace)
    found = {
        "generate_s": outcome.seconds,
        "tokens_per_s": outcome.tokens / outcome.seconds,
        "prefill_s": passes[0],
        "steps_s": passes[1:],
        "busy_s": busy(outcome.trace),
        "predicted_tokens_per_s": plan.predictions.throughput_tok_s,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlannerError as error:
        sys.exit(f"error: {error}")
