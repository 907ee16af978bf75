"""A prefix that all prompts share: computed once, kept once with the model, attended to on the GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from pydantic import ValidationError

from planner.cli import cli
from planner.make_plan import Request, make_plan
from planner.plan import read_plan
from planner.replay import replay
from planner.words import lengths
from simulator.errors import InputError
from simulator.generate import generate
from simulator.layers import CellKind, Shape, layer_tensors, total_weight_bytes
from simulator.layout import Placed, lay_out
from simulator.memory import Batch, memory_items
from simulator.model_config import load_model
from simulator.operations import OP
from simulator.policy import ALWAYS, CpuAttention, Policy, Split
from simulator.prefix import PREFIX_TENSOR, with_prefix, without_prefix
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.simulate import play, prefix_pass, rates_of, simulate
from simulator.work import Cells, cell_work
from simulator.workload import Workload
from tests.problems import problem_of
from tests.strategies import layouts
from tests.test_scoring import TINY

REFERENCE, MACHINE = load_runtime("reference"), load_profile("t4-16")
GPU, CPU = Split(gpu=1, cpu=0, disk=0), Split(gpu=0, cpu=1, disk=0)
ON_CPU = Policy(
    gpu_batch=4,
    num_groups=2,
    weights=CPU,
    cache=CPU,
    activations=GPU,
    cpu_attention=CpuAttention(cpu=1.0, disk=1.0),
)


def work_of(prefix: int, own: int = 10) -> Workload:
    """Prompts of some tokens of their own after a prefix; three tokens follow."""
    return Workload(prompt_len=prefix + own, gen_len=3, shared_prefix=prefix)


def test_what_a_workload_says_of_itself() -> None:
    """A sequence computes, keeps and counts what comes after the prefix; positions count all."""
    work = work_of(30)
    assert (work.prompt_len, work.own_len, work.context_len, work.positions) == (40, 10, 12, 42)
    assert work.model_copy(update={"gen_len": 0}).counted_tokens == 10
    assert lengths(work) == "40 tokens in (30 of them shared), 3 out"
    with pytest.raises(ValidationError, match="leaves nothing of prompts"):
        Workload(prompt_len=8, shared_prefix=8)


@pytest.mark.parametrize("bits", [16, 4])
def test_the_bytes_of_a_prefix_by_hand(bits: int) -> None:
    """Two tensors of two heads of eight in two bytes, thirty tokens, two layers: kept once, as they are."""
    model, shape = with_prefix(TINY, work_of(30)), Shape(weight_bits=bits)  # type: ignore[arg-type]
    held = 2 * 2 * 8 * 2 * 30 * 2
    assert total_weight_bytes(model, shape, REFERENCE) - total_weight_bytes(TINY, shape, REFERENCE) == held
    halves = REFERENCE.model_copy(update={"layers": "half"})
    assert layer_tensors(model, halves, CellKind.ATTENTION)[-1].name == PREFIX_TENSOR
    assert layer_tensors(model, halves, CellKind.MLP) == layer_tensors(TINY, halves, CellKind.MLP)
    placed = lay_out(TINY, REFERENCE, work_of(30), ON_CPU)
    assert placed.layout.tensors[PREFIX_TENSOR] == "cc"
    assert placed.layout.home_of(PREFIX_TENSOR) == CPU


def test_the_memory_of_a_sequence_is_that_of_its_own_tokens() -> None:
    """Beside the model's bytes, and a second output of attention, a prefix takes no memory."""
    batch = Batch(gpu_batch=4, prompt_batch=2)
    with_one, without = (
        {
            (item.name, item.tier): item.slots * item.form
            for item in memory_items(with_prefix(TINY, work), Shape(), REFERENCE, work, batch, 0)
        }
        for work in (work_of(30), work_of(0))
    )
    for name, form in with_one.items():
        if name[0] not in ("model weights", "weights", "weight_staging", "workspace"):
            np.testing.assert_array_equal(form, without[name])
    more = (with_one["workspace", "gpu"] - without["workspace", "gpu"]) @ ALWAYS
    assert more == 2 * 10 * TINY.query_bytes


def test_the_model_itself_stays_as_it_is() -> None:
    """Parameters are the published ones; without a prefix nothing is made anew."""
    model = load_model("opt-6.7b")
    assert with_prefix(model, Workload()) is model
    prefixed = with_prefix(model, work_of(30))
    assert with_prefix(prefixed, work_of(30)) is prefixed
    assert without_prefix(prefixed) == model == with_prefix(prefixed, work_of(0))
    assert without_prefix(prefixed).num_parameters == model.num_parameters


@pytest.mark.parametrize(("position", "new"), [(0, 10), (2, 1)])
def test_the_work_of_a_prefix_by_hand(position: int, new: int) -> None:
    """Four sequences: every token attends to thirty more, whose keys and values are read once."""
    kind, four = np.array([CellKind.BLOCK]), np.full(1, 4.0)
    work, without = (
        cell_work(
            TINY, Shape(), REFERENCE, Cells.at(work_of(prefix), kind, four, np.full(1, float(position)))
        )
        for prefix in (30, 0)
    )
    prefix = work.pop("attend_prefix")
    assert prefix.flops[0] @ ALWAYS == 4 * new * 30 * 4 * 2 * 8  # 4 d a pair and head
    assert prefix.bytes[0] @ ALWAYS == 30 * 2 * 2 * 8 * 2 + 4 * new * 2 * (2 * 8 * 2)
    assert (prefix.kernels[0], prefix.steps[0], prefix.blocks[0] @ ALWAYS) == (1, 30, 2)
    assert work.keys() == without.keys()
    for name, each in work.items():
        np.testing.assert_array_equal(each.flops, without[name].flops)
        np.testing.assert_array_equal(each.bytes, without[name].bytes)


def test_attention_to_prefix_and_own_tokens_is_attention_to_all() -> None:
    """The formula for cached tokens is the sum of both parts."""
    new, prefix = np.array([1.0, 7.0]), np.array([30.0, 5.0])
    both = TINY.attention_flops(new, 0.0) + TINY.prefix_flops(new, prefix)
    np.testing.assert_allclose(both, TINY.attention_flops(new, prefix))


@given(layouts(names=("reference",)))
def test_every_cell_attends_to_the_prefix_on_the_gpu(placed: Placed) -> None:
    """One task for each cell of a block that projects queries, wherever the attention of own tokens is."""
    schedule = generate(placed)
    projected, attended = (int(schedule.where(name).sum()) for name in ("qkv", "attend_prefix"))
    assert attended == (projected if placed.workload.shared_prefix else 0)


def test_with_attention_on_the_cpu_the_prefix_stays_on_the_gpu() -> None:
    """The CPU attends to own tokens, the GPU to the prefix."""
    schedule = generate(lay_out(TINY, REFERENCE, work_of(30), ON_CPU))
    later = schedule.pass_index > 0
    found = {
        name: bool((schedule.where(name) & later).any()) for name in ("attend", "attend_cpu", "attend_prefix")
    }
    assert found == {"attend": False, "attend_cpu": True, "attend_prefix": True}


@pytest.mark.parametrize("gen_len", [0, 1, 4])
def test_a_prefix_costs_less_than_tokens_of_ones_own(gen_len: int) -> None:
    """The same policy: 400 tokens of which 200 are shared lie between prompts of 200 and of 400."""
    seconds = []
    for prompt, prefix in ((200, 0), (400, 200), (400, 0)):
        work = Workload(prompt_len=prompt, gen_len=gen_len, shared_prefix=prefix)
        placed = lay_out(
            load_model("opt-1.3b"), REFERENCE, work, ON_CPU.model_copy(update={"prompt_batch": 1})
        )
        seconds.append(simulate(placed, MACHINE)[0].latency_s)
    assert seconds == sorted(set(seconds))


@pytest.mark.parametrize("num_prompts", [None, 40])
def test_plans_with_a_prefix(num_prompts: int | None, tmp_path: Path) -> None:
    """The best plans keep that order too; the plan names the plain model, reads back and replays."""
    plans = []
    for prompt, prefix in ((200, 0), (400, 200), (400, 0)):
        problem = problem_of("t4-16", "opt-6.7b")
        work = Workload(prompt_len=prompt, gen_len=4, num_prompts=num_prompts, shared_prefix=prefix)
        plans.append(make_plan(Request(replace(problem, workload=work))))
    speeds = [plan.predictions.throughput_tok_s for plan in plans]
    assert speeds == sorted(speeds, reverse=True)
    shared = plans[1]
    assert shared.model == load_model("opt-6.7b")
    path = tmp_path / "plan.json"
    path.write_text(shared.to_json())
    assert read_plan(path) == shared
    again = replay(shared).prediction.throughput_tok_s
    assert again == pytest.approx(shared.predictions.throughput_tok_s, rel=0.02)


@pytest.mark.parametrize("prompts", [8, 24])
def test_a_finite_queue_computes_the_prefix_once(prompts: int) -> None:
    """Its one pass goes before all blocks; an endless queue does not notice it."""
    work = work_of(30).model_copy(update={"num_prompts": prompts})
    placed = lay_out(TINY, REFERENCE, work, ON_CPU)
    prediction, simulation = simulate(placed, MACHINE)
    before = prefix_pass(placed)
    once = play(generate(before), rates_of(before, MACHINE)).makespan
    whole = prompts / 8 * simulation.makespan + once
    assert prediction.throughput_tok_s == pytest.approx(3 * prompts / whole)
    endless = replace(placed, workload=work.model_copy(update={"num_prompts": None}))
    assert simulate(endless, MACHINE)[0].throughput_tok_s == pytest.approx(3 * 8 / simulation.makespan)


def test_the_pass_that_computes_the_prefix_by_hand() -> None:
    """One prompt of thirty tokens through both layers; its keys and values go where the layout has them."""
    schedule = generate(prefix_pass(lay_out(TINY, REFERENCE, work_of(30), ON_CPU)))
    assert schedule.flops[schedule.where("qkv")].tolist() == [30 * TINY.linear_flops("qkv")] * 2
    assert schedule.bytes[schedule.where("store_cache")].tolist() == [30 * TINY.kv_bytes_per_token] * 2
    assert set(schedule.pass_index.tolist()) == {0}
    on_gpu = lay_out(TINY, REFERENCE, work_of(30), ON_CPU.model_copy(update={"weights": GPU}))
    assert OP["store_cache"] not in generate(prefix_pass(on_gpu)).operation


@pytest.mark.parametrize("runtime", ["flexgen", "accelerate", "zero-inference"])
def test_other_engines_keep_prompts_whole(runtime: str) -> None:
    """They say so in one line that names the remedy."""
    problem = problem_of("t4-16", "opt-1.3b", runtime=runtime, shared_prefix=8)
    with pytest.raises(InputError, match="drop --shared-prefix, or take --runtime reference"):
        make_plan(Request(problem))


def test_a_plan_with_a_prefix_is_not_run(tmp_path: Path) -> None:
    """``planner run`` refuses it in one line, before it looks at anything else."""
    path = tmp_path / "plan.json"
    asked = ["plan", "--hw", "t4-16", "--model", "opt-125m", "--shared-prefix", "100", "--out", str(path)]
    planned = CliRunner().invoke(cli, asked)
    assert planned.exit_code == 0
    assert "512 tokens in (100 of them shared), 32 out" in planned.output
    assert "100 tokens computed once" in planned.output
    asked = ["run", str(path), "--checkpoint", "none", "--prompts", "none", "--out", "none"]
    outcome = CliRunner().invoke(cli, asked)
    assert outcome.exit_code == 2
    assert "cannot be run yet; make one without --shared-prefix" in outcome.output
