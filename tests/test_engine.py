"""The executor: every policy gives the tokens of the plain model, and lanes work in the schedule's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import engine, reference
from executor.checkpoint import Checkpoint
from executor.memory import Memory
from executor.quantize import dequantize, quantize
from executor.reference import LoadedModel
from executor.sampling import Request, Sampling
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import LANES, TIERS
from simulator.layout import lay_out
from simulator.operations import OPERATIONS
from simulator.passes import window
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.workload import Workload
from tests.checkpoints import VARIANTS, build, save
from tests.engine_cases import Case, cases, play, tokens_of

_KINDS = ("llama", "llama-tied", "opt", "opt-350m", "qwen3")
_ALL_GPU = Split(gpu=1, cpu=0, disk=0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads, and other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One small random checkpoint of every kind of arithmetic, in float32."""
    folder = tmp_path_factory.mktemp("engine")
    return {kind: save(build(VARIANTS[kind]), folder / kind) for kind in _KINDS}


@given(st.data())
def test_every_policy_gives_the_tokens_of_the_plain_model(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any split, traversal, engine of attention and size of parts; prompts of any lengths, greedy or not."""
    checkpoint = checkpoints[data.draw(st.sampled_from(_KINDS))]
    case = data.draw(cases(checkpoint))
    results, outcome = play(case, checkpoint, tmp_path_factory.getbasetemp())
    assert results == reference.generate(checkpoint, case.requests)
    assert outcome.tokens == sum(len(result.tokens) for result in results)


@given(st.data())
def test_rows_of_tensors_may_lie_on_different_tiers(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A placement by rows cuts every tensor; products are put together again."""
    checkpoint = checkpoints[data.draw(st.sampled_from(_KINDS))]
    case = data.draw(cases(checkpoint, grain="row"))
    results, _ = play(case, checkpoint, tmp_path_factory.getbasetemp())
    assert tokens_of(results) == tokens_of(reference.generate(checkpoint, case.requests))


@given(st.data(), st.sampled_from([4, 8]))
def test_quantised_weights_give_the_tokens_of_the_model_with_these_weights(
    checkpoints: dict[str, Checkpoint],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    bits: int,
) -> None:
    """Quantised blocks are expanded to exactly what quantising and expanding in memory gives."""
    checkpoint = checkpoints[data.draw(st.sampled_from(_KINDS))]
    case = data.draw(cases(checkpoint, weight_bits=bits, quant_group=8))
    results, _ = play(case, checkpoint, tmp_path_factory.getbasetemp())
    model = _rounded(reference.load(checkpoint), bits)
    assert tokens_of(results) == tokens_of(reference.generate(model, case.requests))


def _rounded(model: LoadedModel, bits: int) -> LoadedModel:
    """Quantise the matrices of all blocks and bring them back."""
    blocks = (
        {
            name: dequantize(quantize(tensor, bits, 8)) if tensor.dim() == 2 else tensor
            for name, tensor in block.items()
        }
        for block in model.blocks
    )
    return replace(model, blocks=tuple(blocks))


@settings(max_examples=30)
@given(st.data())
def test_a_cache_of_8_bits_hardly_changes_the_logits(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The same tokens are forced on the plain model, so that logits can be compared."""
    checkpoint = checkpoints[data.draw(st.sampled_from(_KINDS))]
    case = data.draw(cases(checkpoint, cache_bits=8, quant_group=8))
    results, _ = play(case, checkpoint, tmp_path_factory.getbasetemp(), logits=True)
    same = [
        replace(request, forced=result.tokens) for request, result in zip(case.requests, results, strict=True)
    ]
    for result, wanted in zip(results, reference.generate(checkpoint, same, logits=True), strict=True):
        assert result.logits is not None
        assert wanted.logits is not None
        assert (result.logits - wanted.logits).abs().max() < 0.3


@settings(max_examples=30)
@given(st.data())
def test_every_lane_works_in_the_order_of_the_schedule(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Each lane's spans are the schedule's tasks in order, one after the other, after what they wait for."""
    checkpoint = checkpoints["llama"]
    case = data.draw(cases(checkpoint))
    policy = case.placed.policy
    count = data.draw(st.integers(1, policy.block))
    prompts = [Request((1,), case.placed.workload.gen_len, stop=frozenset()) for _ in range(count)]
    _, outcome = play(Case(case.placed, prompts), checkpoint, tmp_path_factory.getbasetemp())
    workload = case.placed.workload.model_copy(update={"num_prompts": count})
    schedule = generate(case.placed, played=window(policy, workload, None))
    trace = outcome.trace
    done = len(trace)  # the loads of a pass that will not come may be left out
    for index, _ in enumerate(LANES):
        of_lane = np.nonzero(trace.lane == index)[0]
        wanted = np.nonzero(schedule.lane == index)[0][: len(of_lane)]
        for column in ("operation", "layer", "group"):
            assert (getattr(trace, column)[of_lane] == getattr(schedule, column)[wanted]).all()
        assert (np.diff(trace.start[of_lane]) >= 0).all()
        assert (trace.start[of_lane][1:] >= trace.end[of_lane][:-1]).all()
    if done == len(schedule):
        for waits in schedule.waits_for.T:
            task = np.nonzero(waits >= 0)[0]
            assert (trace.start[task] >= trace.end[waits[task]]).all()


@settings(max_examples=50)
@given(st.data())
def test_memory_is_what_the_plan_says(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Beyond the plan there are only whole pages, alignment, and a unit or sequence more of a part."""
    checkpoint = checkpoints["llama"]
    placed = data.draw(cases(checkpoint)).placed
    memory = Memory(placed, checkpoint, torch.device("cpu"), tmp_path_factory.getbasetemp())
    used = memory.used()
    memory.close()
    planned = placed.peak_memory()
    for tier in TIERS:
        assert set(used[tier]) <= set(planned[tier])
        for use in ("model weights", "KV cache"):
            if tier != "disk":
                pages = 64 * (placed.model.num_layers * 20 + 10)
                assert used[tier].get(use, 0) <= planned[tier].get(use, 0) + pages


def test_a_stop_token_ends_a_block_early(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """When all sequences have ended, no further pass is played."""
    checkpoint = checkpoints["llama"]
    policy = Policy(gpu_batch=2, num_groups=2, weights=_ALL_GPU, cache=_ALL_GPU, activations=_ALL_GPU)
    placed = lay_out(checkpoint.model, load_runtime("reference"), Workload(prompt_len=4, gen_len=20), policy)
    everything = frozenset(range(97))
    prompts = [Request((1, 2, 3), 20, stop=everything) for _ in range(3)]
    results, outcome = play(Case(placed, prompts), checkpoint, tmp_path)
    assert {result.finish for result in results} == {"stop"}
    assert set(outcome.trace.pass_number.tolist()) <= {0, 1}  # the next pass may have begun


def test_a_long_run_is_played_in_pieces(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pieces everything is at home, so the second goes on where the first ended."""
    checkpoint = checkpoints["opt"]
    policy = Policy(
        gpu_batch=2,
        num_groups=4,
        stagger=3,
        weights=Split(gpu=0.5, cpu=0.0, disk=0.5),
        cache=Split(gpu=0.0, cpu=0.5, disk=0.5),
        activations=_ALL_GPU,
        cpu_attention=CpuAttention(cpu=1.0, disk=0.5),
    )
    placed = lay_out(checkpoint.model, load_runtime("reference"), Workload(prompt_len=6, gen_len=6), policy)
    prompts = [Request(tuple(range(1, 2 + number % 6)), 6, stop=frozenset()) for number in range(19)]
    whole, _ = play(Case(placed, prompts), checkpoint, tmp_path)
    monkeypatch.setattr(engine, "_TASKS", 150)
    pieces, outcome = play(Case(placed, prompts), checkpoint, tmp_path)
    assert pieces == whole == reference.generate(checkpoint, prompts)
    assert outcome.trace.metadata["block_starts"] == "0"


def test_bfloat16_stays_near_the_plain_model(tmp_path: Path) -> None:
    """Against float32 the error is like that of the plain model in bfloat16."""
    checkpoint = save(build(VARIANTS["llama"]).bfloat16(), tmp_path / "model")
    third = Split(gpu=0.3, cpu=0.3, disk=0.4)
    policy = Policy(
        gpu_batch=3,
        num_groups=2,
        weights=third,
        cache=third,
        activations=third,
        cpu_attention=CpuAttention(cpu=0.5, disk=0.5),
    )
    placed = lay_out(checkpoint.model, load_runtime("reference"), Workload(prompt_len=9, gen_len=5), policy)
    prompts = [Request(tuple(range(1, 3 + number)), 5, stop=frozenset()) for number in range(6)]
    results, _ = play(Case(placed, prompts), checkpoint, tmp_path, logits=True)
    same = [replace(one, forced=got.tokens) for one, got in zip(prompts, results, strict=True)]
    exact = reference.generate(checkpoint, same, logits=True)
    plain = reference.generate(checkpoint, same, torch.bfloat16, logits=True)
    for result, wanted, other in zip(results, exact, plain, strict=True):
        assert result.logits is not None
        assert wanted.logits is not None
        assert other.logits is not None
        # Rounding differs with the order of sums, so the plain run in bfloat16 is no nearer to float32.
        error, usual = ((one - wanted.logits).abs().max() for one in (result.logits, other.logits))
        assert error < 3 * usual + 0.02


def test_chance_does_not_depend_on_the_batch(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """A sampled text depends on its seed alone."""
    checkpoint = checkpoints["qwen3"]
    prompts = [Request((5, 6), 6, Sampling(temperature=1.0, seed=n), frozenset()) for n in range(5)]
    found = []
    for batch in (1, 3):
        policy = Policy(gpu_batch=batch, num_groups=2, weights=_ALL_GPU, cache=_ALL_GPU, activations=_ALL_GPU)
        work = Workload(prompt_len=2, gen_len=6)
        placed = lay_out(checkpoint.model, load_runtime("reference"), work, policy)
        found.append(tokens_of(play(Case(placed, prompts), checkpoint, tmp_path)[0]))
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


def test_every_operation_that_the_engine_is_given_has_a_handler() -> None:
    """What is left are tasks of other engines: halves of blocks, barriers, mapped files, staging by hand.

    And attention to a shared prefix, of which plans are refused.
    """
    from executor.steps import Steps  # noqa: PLC0415

    missing = {operation.name for operation in OPERATIONS if not hasattr(Steps, operation.name)}
    others = {"stage_weights", "stage_cache", "expand_cache", "relay_weights", "project", "sync"}
    assert missing == others | {"attend_prefix"}


@pytest.mark.parametrize("change", [{"gen_len": 0}, {"shared_prefix": 1}])
def test_what_can_only_be_planned_is_refused(
    change: dict[str, int], checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Scored prompts and shared prefixes: the engine says so before it takes any memory."""
    checkpoint, work = checkpoints["qwen3"], Workload(prompt_len=2, **change)
    policy = Policy(gpu_batch=1, num_groups=1, weights=_ALL_GPU, cache=_ALL_GPU, activations=_ALL_GPU)
    placed = lay_out(checkpoint.model, load_runtime("reference"), work, policy)
    with pytest.raises(InputError, match=f"workload.{next(iter(change))}: the engine"):
        play(Case(placed, []), checkpoint, tmp_path)
