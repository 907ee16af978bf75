"""Workloads without output: prompts are scored in one pass, and nothing is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given

from planner.choices import Options
from planner.cli import cli
from planner.make_plan import Request, make_plan
from planner.pins import parse_pins
from planner.words import lengths
from simulator.errors import InputError
from simulator.generate import generate
from simulator.layers import CellKind, Shape
from simulator.layout import Placed
from simulator.memory import Batch, buffers, residents, workspaces
from simulator.model_config import parse_config
from simulator.operations import OP
from simulator.passes import peak_tokens, window
from simulator.policy import ALWAYS, Split
from simulator.runtime import load_runtime
from simulator.work import Cells, cell_work
from simulator.workload import Workload
from tests.problems import problem_of
from tests.strategies import layouts

REFERENCE = load_runtime("reference")
OF_CACHE = (
    "store_cache",
    "write_cache",
    "read_cache",
    "load_cache",
    "attend",
    "attend_cpu",
    "quantize_cache",
)
TINY = parse_config(
    {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "dtype": "float16",
    },
    "tiny",
)
ON_GPU = Split(gpu=1, cpu=0, disk=0)
ON_CPU = Split(gpu=0, cpu=1, disk=0)


def test_what_a_workload_says_of_itself() -> None:
    """A scored sequence lives one pass, keeps nothing, and counts its own tokens."""
    scored, one, some = (Workload(prompt_len=10, gen_len=n) for n in (0, 1, 4))
    assert [each.passes for each in (scored, one, some)] == [1, 1, 4]
    assert [each.counted_tokens for each in (scored, one, some)] == [10, 1, 4]
    assert [each.context_len for each in (scored, one, some)] == [0, 10, 13]
    assert [each.positions for each in (scored, one, some)] == [10, 10, 13]
    assert [lengths(each) for each in (scored, some)] == [
        "10 tokens in, no output (scored)",
        "10 tokens in, 4 out",
    ]


def test_the_head_of_a_scored_prompt_by_hand() -> None:
    """Three prompts of ten tokens: the head has thirty rows, and a cell stores nothing."""
    kinds = np.array([CellKind.BLOCK, CellKind.HEAD])
    work, generated = (
        cell_work(
            TINY,
            Shape(),
            REFERENCE,
            Cells.at(Workload(prompt_len=10, gen_len=n), kinds, np.full(2, 3.0), np.zeros(2)),
        )
        for n in (0, 4)
    )
    head = work["head"]
    matrix, norm = 64 * 16, 16
    assert head.flops[1, 0] == 3 * 10 * 2 * matrix
    assert head.bytes[1, 0] == 2 * (matrix + norm) + 30 * (2 * 16 + 4 * 64)  # weights; states in, logits out
    assert generated["head"].flops[1, 0] == 3 * 2 * matrix
    inward = work["load_activations"].bytes.max(axis=1)
    assert inward.tolist() == [30 * 2 * 16, 30 * 2 * 16]  # all tokens go into the head
    assert work["store_cache"].bytes[0].sum() == 0 < generated["store_cache"].bytes[0].sum()
    for name in ("qkv", "mlp", "attend_prompt"):
        np.testing.assert_array_equal(work[name].flops, generated[name].flops)


def test_the_memory_of_scoring_by_hand() -> None:
    """No cache at home, no buffers for it, and logits of every token of the prompts computed together."""
    workload, batch = Workload(prompt_len=10, gen_len=0), Batch(gpu_batch=6, prompt_batch=2)
    assert peak_tokens(workload, None, 16) == (0.0, 10.0)
    items = [*residents(TINY, Shape(), REFERENCE, workload, batch)]
    items += buffers(TINY, Shape(), REFERENCE, workload, batch, ahead=0)
    assert all(not item.form.any() for item in items if "cache" in item.name.lower())
    scratch = workspaces(TINY, Shape(), REFERENCE, workload, batch, ahead=0)[0]
    widest = 3 * 32 + 32 + 0  # q, k, v, attention output
    widest = max(widest, 2 * 2 * 32)  # gate and up
    assert scratch.form @ ALWAYS == 20 * (2 * 32 + widest) + 20 * 4 * 64


@given(layouts(names=("reference",)))
def test_a_schedule_that_scores_has_no_cache(placed: Placed) -> None:
    """One pass, no diagonal, and no task that moves or reads a cache."""
    if not placed.workload.scores:
        return
    assert placed.policy.schedule(placed.workload.passes) in ("zigzag", "row")
    assert len(window(placed.policy, placed.workload).passes) == 1
    schedule = generate(placed)
    assert not np.isin(schedule.operation, [OP[name] for name in OF_CACHE]).any()
    assert not any(use.get("KV cache") for use in placed.peak_memory().values())


def test_a_plan_that_scores() -> None:
    """It counts tokens in, keeps no cache, and is below its ceiling; few groups hide the loads."""
    problem = problem_of("t4-16", "opt-30b", prompt_len=64, gen_len=0, num_prompts=64)
    plan = make_plan(Request(problem))
    assert plan.schedule in ("zigzag", "row")
    assert plan.policy.cache == ON_GPU
    assert "KV cache" not in {name for memory in plan.memory.values() for name in memory.uses}
    whole = 64 * 64 / plan.predictions.throughput_tok_s
    assert plan.predictions.latency_s <= whole * (1 + 1e-9)
    assert plan.predictions.throughput_tok_s <= plan.bounds.ceiling_tok_s
    generating = problem_of("t4-16", "opt-30b", prompt_len=64, gen_len=1, num_prompts=64)
    one = make_plan(Request(generating)).predictions
    # One token of each prompt, and its cache, take about as long: the head is a hundredth of the model.
    assert plan.predictions.throughput_tok_s == pytest.approx(64 * one.throughput_tok_s, rel=0.05)


@pytest.mark.parametrize("runtime", ["flexgen", "accelerate", "zero-inference"])
def test_other_engines_only_generate(runtime: str) -> None:
    """They say so in one line that names the remedy."""
    problem = problem_of("t4-16", "opt-1.3b", runtime=runtime, gen_len=0)
    with pytest.raises(InputError, match=f"runtime {runtime} only generates; take --gen-len 1 or more, or"):
        make_plan(Request(problem))


def test_a_cache_may_be_pinned_though_there_is_none() -> None:
    """A home that the user names for the cache is kept, and holds nothing."""
    options = Options(pins=parse_pins(("cache=0/100/0", "cpu_attention=1")))
    plan = make_plan(Request(problem_of("t4-16", "opt-125m", prompt_len=64, gen_len=0), options))
    assert plan.policy.cache == ON_CPU
    assert "KV cache" not in plan.memory["cpu"].uses


def test_a_plan_that_scores_is_not_run(tmp_path: Path) -> None:
    """``planner run`` refuses it in one line, before it looks at anything else."""
    path = tmp_path / "plan.json"
    path.write_text(make_plan(Request(problem_of("t4-16", "opt-125m", gen_len=0))).to_json())
    asked = ["run", str(path), "--checkpoint", "none", "--prompts", "none", "--out", "none"]
    outcome = CliRunner().invoke(cli, asked)
    assert outcome.exit_code == 2
    assert "a plan that scores prompts, which cannot be run yet; make one with --gen-len 1" in outcome.output
