"""Memory that an engine frees: what a tier holds at every moment, by hand; published runs must fit."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given

from planner.cli import cli
from planner.engine_rows import policy_of
from planner.measurements import Measurement, shipped_suites
from planner.problem import Outer, Problem, memory_limit
from planner.program import Program
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import TIERS
from simulator.layers import Shape
from simulator.layout import Placed, lay_out
from simulator.memory import WHOLE_RUN, Moment
from simulator.model_config import load_model, parse_config
from simulator.policy import Policy, Split
from simulator.profiles import load_profile
from simulator.runtime import Runtime, load_runtime
from simulator.schema import decode
from simulator.simulate import play, rates_of
from simulator.trace import from_simulation
from simulator.units import GIB
from simulator.workload import Workload
from tests.strategies import layouts

FLEXGEN = load_runtime("flexgen")
CPU = Split(gpu=0, cpu=1, disk=0)
TINY = parse_config(
    {
        "model_type": "opt",
        "hidden_size": 16,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 16,
        "max_position_embeddings": 14,
        "dtype": "float16",
    },
    "tiny",
)
#: 3 groups of 4 sequences, 8 tokens in, 4 out; all on the CPU, in 4 bits with 32 bits for each 16 elements.
BY_HAND = lay_out(
    TINY,
    FLEXGEN,
    Workload(prompt_len=8, gen_len=4),
    Policy(
        gpu_batch=4,
        num_groups=3,
        weights=CPU,
        cache=CPU,
        activations=CPU,
        weight_bits=4,
        cache_bits=4,
        quant_group=16,
    ),
)
#: In what FlexGen's benchmark times of large models (``--debug fewer_batch``) most of the cache is never
#: written, and pages that nobody wrote take no memory: a whole run of this policy would not have fitted.
DO_NOT_FIT = {("s-175b-256-c", "cpu"): 3.69 * GIB}


def test_every_moment_by_hand() -> None:
    """OPT with states of 32 bytes, keys and values of 64 (24 in 4 bits), MLP of 128; 32 new tokens, or 4."""
    weights = 2 * (2 * 64 * 16 * 6 / 8 + 2 * (64 + 16) + 2 * 2 * 16)  # two slots; the MLP half is the largest
    prompt = {
        "weights": weights,
        "new_cache": 2 * 32 * 24,
        "activations": 3 * 32 * 32,
    }
    decode_ = {
        "weights": weights,
        "cache": 2 * 4 * 11 * 24,
        "new_cache": 2 * 4 * 24,
        "activations": 3 * 4 * 32,
    }
    scores, logits = 4 * 2 * 4 * 8 * 8, 4 * 4 * 16
    attention, mlp = 2 * 4 * 16 * 16, 2 * 2 * 64 * 16  # expanded
    by_hand = {
        "prompt attention": prompt
        | {"workspace": 32 * (2 * 32 + 32 + 64 + 32) + scores, "expanded weights": attention},
        "prompt MLP": prompt | {"workspace": 32 * (2 * 32 + 128) + logits, "expanded weights": mlp},
        "decode attention": decode_
        | {
            "workspace": 4 * (2 * 32 + 32 + 64 + 32),
            "expanded weights": attention,
            "expanded cache": 4 * 11 * 64,
        },
        "decode MLP": decode_ | {"workspace": 4 * (2 * 32 + 128) + logits, "expanded weights": mlp},
    }
    assert {moment.label: BY_HAND.memory_at(moment)["gpu"] for moment in BY_HAND.moments} == by_hand
    assert {label: sum(uses.values()) for label, uses in by_hand.items()} == {
        "prompt attention": 18368,
        "prompt MLP": 18624,
        "decode attention": 11840,
        "decode MLP": 11328,
    }
    assert BY_HAND.peak_memory()["gpu"] == by_hand["prompt MLP"]


def test_the_workspace_follows_the_kernels() -> None:
    """A trace has the workspace of every moment while its layers run, and what all have in common between."""
    simulation = play(generate(BY_HAND, None), rates_of(BY_HAND, load_profile("t4-16")))
    found = {
        (use.tier, use.name): set(use.bytes.tolist()) for use in from_simulation(simulation, BY_HAND).memory
    }
    assert found["gpu", "workspace"] == {8192, 6400, 768, 1024}
    assert found["gpu", "expanded weights"] == {2048, 4096}
    assert found["gpu", "expanded cache"] == {0, 2816}


def test_without_later_passes_there_is_no_decoding() -> None:
    """Of one token each, only the prompt's moments count."""
    placed = lay_out(TINY, FLEXGEN, Workload(prompt_len=8, gen_len=1), BY_HAND.policy)
    assert placed.moments == (Moment("prompt", "attention"), Moment("prompt", "MLP"))


@given(layouts(names=("flexgen", "accelerate")))
def test_what_is_freed_is_saved(placed: Placed) -> None:
    """No tier needs more than if everything were kept, and none less than what stays in any case."""
    kept = placed.memory_at(WHOLE_RUN)
    for tier, uses in placed.peak_memory().items():
        assert sum(uses.values()) <= sum(kept[tier].values()) * (1 + 1e-12)
        for name in ("model weights", "KV cache"):
            assert uses.get(name, 0.0) == kept[tier].get(name, 0.0)


@pytest.mark.parametrize("engine", ["reference", "zero-inference", "zero-inference-2023"])
def test_engines_that_keep_their_buffers_have_one_row_a_tier(engine: str) -> None:
    """Their memory is that of the whole run, in the program too."""
    runtime = load_runtime(engine)
    problem = Problem(load_profile("t4-16"), load_model("opt-6.7b"), Workload(), runtime)
    names = [row.name for row in Program(problem, Outer(8)).rows if " memory" in row.name]
    assert names == [f"{tier} memory" for tier in TIERS]
    assert "frees_buffers" not in json.loads(runtime.model_dump_json())


def test_the_program_has_a_row_for_every_moment_that_may_be_the_fullest() -> None:
    """A moment that holds no more than another one, whatever the placement, has none."""
    workload = Workload(prompt_len=512, gen_len=32)
    problem = Problem(load_profile("t4-16"), load_model("opt-6.7b"), workload, FLEXGEN)
    others = ["cpu memory", "disk memory"]
    for bits, of_gpu in (
        (16, ["prompt attention", "decode MLP"]),  # scores; cache that is loaded
        (4, ["prompt MLP", "decode attention", "decode MLP"]),  # the larger half is expanded, and the cache
    ):
        outer = Outer(8, shape=Shape(weight_bits=bits, cache_bits=bits))
        names = [row.name for row in Program(problem, outer).rows if " memory" in row.name]
        assert names == [*(f"gpu memory, {moment}" for moment in of_gpu), *others]


@pytest.mark.parametrize(
    "changes", [{"synchronization": "dependency"}, {"schedules": ["zigzag", "diagonal"]}], ids=str
)
def test_phases_that_meet_free_nothing(changes: dict[str, object]) -> None:
    """Where lanes run ahead, and on the diagonal, memory of both kinds of passes is in use at once."""
    with pytest.raises(InputError, match="frees_buffers: prompts and decoding meet"):
        decode(Runtime, FLEXGEN.model_dump(mode="json") | changes, "runtime")


# --- published runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", shipped_suites()["flexgen_t4"], ids=lambda row: row.id)
def test_published_policies_fit(row: Measurement) -> None:
    """What really ran fits the machine it ran on by the static bound, but for the runs listed."""
    assert row.hardware is not None
    hardware = load_profile(row.hardware)
    workload = Workload(prompt_len=row.prompt_len, gen_len=row.gen_len)
    placed = lay_out(load_model(row.model), load_runtime(row.system), workload, policy_of(row))
    for tier, uses in placed.peak_memory().items():
        most = memory_limit(hardware, tier, pinned=placed.policy.pinned)[1]
        missing = DO_NOT_FIT.get((row.id, tier), 0.0)
        short = max(0.0, sum(uses.values()) - most)
        assert short == pytest.approx(missing, rel=2e-3), f"{row.id}: {tier} short by {short / GIB:.3f} GiB"


def test_the_best_plan_is_no_slower_than_the_published_one() -> None:
    """OPT-175B in 4 bits on a T4: FlexGen's own policy reached 1.12 tok/s, and the planner finds its like."""
    command = "plan --hw t4-16 --model opt-175b --runtime flexgen --quantize both --format json"
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["policy"]["gpu_batch"] >= 48
    assert plan["predictions"]["throughput_tok_s"] >= 1.08
