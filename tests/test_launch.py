"""What users of other engines type: FlexGen's percentages, Accelerate's map, DeepSpeed's file, Petals."""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from planner.choices import Options
from planner.launch import Launch, as_text, commands, require_commands, save, write
from planner.launch_accelerate import device_map, max_memory
from planner.launch_flexgen_percent import (
    cache_percents,
    laid_out_share,
    realised_share,
    stored_groups,
    weight_percents,
)
from planner.launch_parts import Wanted
from planner.launch_petals import Swarm, blocks_per_server, swarm_commands
from planner.make_plan import Request, make_plan
from planner.pins import parse_pins
from planner.plan import Plan
from simulator.errors import InputError
from simulator.layout import lay_out
from simulator.model import ModelSpec
from simulator.model_config import catalogue_names, load_model, parse_config
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import Runtime, load_runtime
from simulator.units import GIB
from simulator.workload import Workload
from tests.problems import problem_of

OPT = ("opt-125m", "opt-1.3b", "opt-30b", "opt-175b")
GPU, CPU = Split(gpu=1, cpu=0, disk=0), Split(gpu=0, cpu=1, disk=0)
ALL_ON_CPU = CpuAttention(cpu=1, disk=1)
SPLITS = st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(
    lambda cut: Split(
        gpu=min(cut) / 1000, cpu=abs(cut[0] - cut[1]) / 1000, disk=max(0.0, 1 - max(cut) / 1000)
    )
)


def engine(name: str, **changes: object) -> Runtime:
    """Make a runtime that places as an engine does; the rest of its description does not matter here."""
    places: dict[str, dict[str, object]] = {
        "flexgen": {"placement": "midpoint", "layers": "half", "loads_embeddings": True},
        "accelerate": {"placement": "in_order", "layers": "block", "loads_embeddings": True},
    }
    return load_runtime("reference").model_copy(update={"name": name} | places.get(name, {}) | changes)


def wanted(runtime: Runtime, model: ModelSpec | str, work: Workload | None = None, **choices: Any) -> Wanted:
    """Lay out a policy, by default one sequence with everything on the GPU."""
    spec = load_model(model) if isinstance(model, str) else model
    work = work or Workload()
    policy = Policy(
        **{"gpu_batch": 1, "num_groups": 1, "weights": GPU, "cache": GPU, "activations": GPU, **choices}
    )
    layout = lay_out(spec, runtime, work, policy).layout
    capacity = {"gpu": 15 * GIB, "cpu": 200 * GIB, "disk": 1000 * GIB}
    return Wanted(runtime.name, spec, work, policy, layout, capacity)  # type: ignore[arg-type]


def launched(plan: Wanted) -> Launch:
    """Write what starts the plan."""
    launch = write(plan)
    assert launch is not None
    assert Launch.model_validate_json(launch.model_dump_json()) == launch
    assert all(note.endswith((".", '".')) for note in launch.notes)
    return launch


# FlexGen


def flexgen_parser() -> argparse.ArgumentParser:
    """Make a parser with those of flex_opt's options that are used."""

    def boolean(text: str) -> bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--percent", nargs="+", type=int, required=True)
    for name in ("gpu-batch-size", "num-gpu-batches", "prompt-len", "gen-len"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("sep-layer", "pin-weight", "overlap"):
        parser.add_argument(f"--{name}", type=boolean, nargs="?", const=True, default=True)
    for name in ("cpu-cache-compute", "compress-weight", "compress-cache"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def typed(launch: Launch) -> argparse.Namespace:
    """Read a FlexGen command as a shell and its parser do."""
    words = shlex.split(launch.text.replace("\\\n", " "))
    assert words[:3] == ["python3", "-m", "flexllmgen.flex_opt"]
    return flexgen_parser().parse_args(words[3:])


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        *((0, 0), (4, 0), (10, 0), (12, 0), (13, 1 / 12), (20, 1 / 12), (25, 1 / 12), (26, 5 / 12)),
        *((37, 5 / 12), (38, 1 / 2), (50, 1 / 2), (62, 1 / 2), (63, 7 / 12), (75, 7 / 12), (76, 11 / 12)),
        *((87, 11 / 12), (88, 1), (97, 1), (100, 1)),
    ],
)
def test_seven_shares_of_blocks_exist(asked: int, share: float) -> None:
    """FlexGen's rule makes the known seven shares of what is typed, in blocks of any size."""
    for model in OPT:
        halves = [group for group in stored_groups(load_model(model)) if group.copies > 1]
        assert realised_share(halves, asked, 100 - asked) == pytest.approx((share, 1 - share, 0), abs=1e-12)


@given(st.sampled_from(OPT), SPLITS)
@example("opt-30b", Split(gpu=0.2, cpu=0.8, disk=0))
@example("opt-1.3b", Split(gpu=0.25, cpu=0.25, disk=0.5))
def test_percentages_realise_what_the_rule_placed(model: str, split: Split) -> None:
    """A layout placed by the midpoint rule is realised exactly, by percentages near those asked, or plain."""
    plan = wanted(engine("flexgen"), model, weights=split)
    found = weight_percents(plan.model, plan.layout, split)
    groups = stored_groups(plan.model)
    assert found.exact
    assert realised_share(groups, found.gpu, found.cpu) == pytest.approx(laid_out_share(groups, plan.layout))
    assert found.gpu == 100 * found.shares[0] or abs(found.gpu - 100 * split.gpu) <= 1
    assert abs(found.cpu - 100 * split.cpu) <= 2 or found.gpu + found.cpu == 100  # nothing falls on the disk


@given(st.sampled_from(OPT), st.sampled_from(["even", "in_order", "rows"]), SPLITS)
def test_the_gpu_never_gets_more_than_was_laid_out(model: str, placement: str, split: Split) -> None:
    """Of a layout that FlexGen cannot realise, GPU and CPU hold at most the share laid out; it is said."""
    how = {"grain": "row"} if placement == "rows" else {"placement": placement}
    plan = wanted(engine("flexgen", **how), model, weights=split, activations=CPU)
    found = weight_percents(plan.model, plan.layout, split)
    target = laid_out_share(stored_groups(plan.model), plan.layout)
    assert found.shares == realised_share(stored_groups(plan.model), found.gpu, found.cpu)
    assert found.shares[0] <= target[0] + 1e-9
    assert found.shares[2] >= target[2] - 1e-9
    same = found.shares == pytest.approx(target, abs=1e-9)
    assert found.exact == same
    assert any("cannot place the weights" in note for note in launched(plan).notes) != same


@given(st.integers(1, 300), SPLITS)
def test_cache_is_split_into_whole_sequences(sequences: int, split: Split) -> None:
    """GPU and CPU never get more sequences than the split gives, nor fewer than a percentage allows."""
    found = cache_percents(sequences, split, whole=False)
    whole = [sequences * each // 100 for each in range(101)]
    on_gpu = max(each for each in whole if each <= sequences * split.gpu + 1e-6)
    assert found.shares[0] == pytest.approx(on_gpu / sequences)
    assert found.shares[0] + found.shares[1] <= split.gpu + split.cpu + 1e-9
    assert 0 <= found.gpu <= 100 - found.cpu
    one_place = cache_percents(sequences, split, whole=True)
    assert 1.0 in one_place.shares
    assert one_place.shares[0] <= split.gpu + 1e-9


def test_the_papers_policy_by_hand() -> None:
    """OPT-30B, 3 groups of 48, 20 % of weights on the GPU: as published, but for the workspace."""
    work = Workload(prompt_len=512, gen_len=32, num_prompts=500)
    split = Split(gpu=0.2, cpu=0.8, disk=0)
    plan = wanted(
        *(engine("flexgen"), "opt-30b", work),
        gpu_batch=48,
        num_groups=3,
        weights=split,
        cache=CPU,
        activations=CPU,
        cpu_attention=ALL_ON_CPU,
    )
    launch = launched(plan)
    assert launch.text == (
        "python3 -m flexllmgen.flex_opt --model facebook/opt-30b \\\n"
        "  --percent 20 80 0 100 0 100 \\\n"
        "  --gpu-batch-size 48 --num-gpu-batches 3 \\\n"
        "  --prompt-len 512 --gen-len 32 \\\n"
        "  --cpu-cache-compute --sep-layer False\n"
    )
    rounding, workspace, prompts = launch.notes
    assert "8.18 %" in rounding  # a twelfth of the blocks; none of the tables
    assert "1.4 GiB" in workspace
    assert "144 prompts" in prompts
    assert "4 runs" in prompts
    assert all(note in as_text(launch) for note in launch.notes)


@pytest.mark.parametrize(
    ("choices", "attention", "sep_layer"),
    [
        ({"cpu_attention": ALL_ON_CPU}, True, False),
        ({"cpu_attention": ALL_ON_CPU, "num_groups": 1}, True, True),
        ({"cpu_attention": ALL_ON_CPU, "overlap": False}, True, True),
        ({"cpu_attention": ALL_ON_CPU, "cache_bits": 4}, False, True),
        ({"cpu_attention": ALL_ON_CPU, "cache": GPU}, False, True),
        ({"cpu_attention": CpuAttention(cpu=0.25)}, False, True),
        ({}, False, True),
    ],
)
def test_sep_layer_is_off_where_text_would_be_wrong(
    choices: dict[str, Any], attention: bool, sep_layer: bool
) -> None:
    """Only overlap, several groups and CPU attention together need the second workspace."""
    plan = wanted(engine("flexgen"), "opt-6.7b", **{"gpu_batch": 4, "num_groups": 2, "cache": CPU, **choices})
    options = typed(launched(plan))
    assert (options.cpu_cache_compute, options.sep_layer) == (attention, sep_layer)
    assert options.overlap == plan.policy.overlap
    assert options.compress_cache == (plan.policy.cache_bits == 4)


def test_switches_and_places() -> None:
    """Pageable and compressed weights, cache on three tiers and activations off the GPU are all typed."""
    thirds = Split(gpu=0.5, cpu=0.3, disk=0.2)
    plan = wanted(
        *(engine("flexgen"), "opt-175b"),
        gpu_batch=10,
        weights=Split(gpu=0, cpu=0.5, disk=0.5),
        cache=thirds,
        activations=CPU,
        pinned=False,
        weight_bits=4,
    )
    launch = launched(plan)
    options = typed(launch)
    assert options.percent == [0, 50, 50, 30, 0, 100]
    assert not options.pin_weight
    assert options.compress_weight
    assert not options.compress_cache
    assert options.model == "facebook/opt-175b"
    assert any("--offload-dir" in note for note in launch.notes)
    assert any("not on the hub" in note for note in launch.notes)


@pytest.mark.parametrize(
    ("model", "choices", "why"),
    [
        ("llama-2-7b", {}, "OPT models only"),
        ("opt-350m", {}, "knows by name only"),
        ("opt-30b", {"weight_bits": 8}, "not in 8"),
        ("opt-30b", {"num_groups": 4, "stagger": 8}, "whole block"),
    ],
)
def test_flexgen_cannot(model: str, choices: dict[str, Any], why: str) -> None:
    """Models and policies that FlexGen does not have give a sentence and nothing to paste."""
    launch = launched(wanted(engine("flexgen"), model, **choices))
    assert launch.text == ""
    assert why in launch.notes[0]


def test_a_model_of_the_same_name_is_another_model() -> None:
    """FlexGen would run its own opt-30b, not the user's with fewer layers."""
    mine = load_model("opt-30b").model_copy(update={"num_layers": 4})
    assert launched(wanted(engine("flexgen"), mine)).text == ""


# Accelerate

TINY: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "opt-untied": {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "llama": {"intermediate_size": 48, "num_key_value_heads": 2},
    "llama-untied": {"intermediate_size": 48, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {"intermediate_size": 48, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 48, "num_key_value_heads": 2},
}
REASON = "Accelerate and transformers are needed to load its map"


def tiny(name: str) -> tuple[Any, ModelSpec]:
    """Build a small model with random weights, and read its shapes as the planner does."""
    pytest.importorskip("accelerate", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    torch = pytest.importorskip("torch", reason=REASON)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        name.removesuffix("-untied"),
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=not name.endswith("-untied"),
        **TINY[name],
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return model, parse_config(config.to_dict(), name)


def logits(model: Any) -> Any:
    """Run a pass of two prompts."""
    torch = pytest.importorskip("torch", reason=REASON)
    with torch.no_grad():
        return model(torch.arange(14).reshape(2, 7) + 3).logits


@pytest.fixture(params=TINY)
def case(request: pytest.FixtureRequest) -> tuple[Any, ModelSpec]:
    """Give each small model with its shapes."""
    return tiny(request.param)


def test_accelerate_accepts_and_runs_the_map(case: tuple[Any, ModelSpec], tmp_path: Path) -> None:
    """The map names all modules with weights; with parts on disk the model still computes the same."""
    model, spec = case
    accelerate = pytest.importorskip("accelerate", reason=REASON)
    plan = wanted(engine("accelerate"), spec, weights=Split(gpu=0.4, cpu=0.3, disk=0.3))
    devices = device_map(spec, plan.layout)
    assert set(devices.values()) == {0, "cpu", "disk"}
    accelerate.utils.modeling.check_device_map(model, devices)  # raises if a tensor has no place
    assert set(devices) <= {name for name, _ in model.named_modules()}
    expected = logits(model)
    without_gpu = {name: "cpu" if device == 0 else device for name, device in devices.items()}
    run = accelerate.dispatch_model(model, without_gpu, offload_dir=str(tmp_path), force_hooks=True)
    assert any(parameter.is_meta for parameter in run.parameters())
    assert (logits(run) == expected).all()


def test_the_snippet_loads_a_checkpoint(
    case: tuple[Any, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasting the text calls transformers with arguments that load a real checkpoint from CPU and disk."""
    model, spec = case
    transformers = pytest.importorskip("transformers", reason=REASON)
    model.save_pretrained(tmp_path / "checkpoint")
    plan = wanted(engine("accelerate"), spec, weights=Split(gpu=0, cpu=0.5, disk=0.5))
    plan = replace(plan, capacity={**plan.capacity, "gpu": 0.0})
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda name, **given: load(
            str(tmp_path / "checkpoint"),
            **given | {"offload_folder": str(tmp_path / given["offload_folder"]), "dtype": "float32"},
        ),
    )
    space: dict[str, Any] = {}
    exec(launched(plan).text, space)  # noqa: S102 - it is what the user does
    assert space["device_map"] == device_map(spec, plan.layout, gpu=False)
    assert set(space["model"].hf_device_map.values()) == {"cpu", "disk"}
    assert (logits(space["model"]) == logits(model)).all()


def test_memory_makes_accelerate_find_the_same_map(case: tuple[Any, ModelSpec]) -> None:
    """Within the limits given, Accelerate's own rule puts no more on the GPU, and for Llama the same."""
    model, spec = case
    accelerate = pytest.importorskip("accelerate", reason=REASON)
    plan = wanted(engine("accelerate"), spec, weights=Split(gpu=0.4, cpu=0.3, disk=0.3))
    devices = device_map(spec, plan.layout)
    with warnings.catch_warnings():  # without an accelerator, it cannot keep rotary frequencies there
        warnings.filterwarnings("ignore", message="Current model requires .* bytes of buffer")
        found = accelerate.infer_auto_device_map(
            model,
            max_memory=max_memory(spec, devices),
            no_split_module_classes=list(model._no_split_modules),
        )
    names = [name for name in devices if ".layers." in name or "embed" in name or name == "lm_head"]
    assert all(devices[name] == 0 for name in names if found[name] == 0)
    if spec.architecture == "llama":
        assert all(found[name] == devices[name] for name in names)


@pytest.mark.parametrize("model", catalogue_names())
def test_every_model_of_the_catalogue_has_a_map(model: str) -> None:
    """The text is Python, its map names every layer once, and tied tables lie together."""
    plan = wanted(engine("accelerate"), model, weights=Split(gpu=0.25, cpu=0.5, disk=0.25), gpu_batch=4)
    launch = launched(plan)
    ast.parse(launch.text)
    devices = device_map(plan.model, plan.layout)
    assert sum(".layers." in name for name in devices) == plan.model.num_layers
    tables = [device for name, device in devices.items() if name.endswith(("embed_tokens", "lm_head"))]
    assert len(tables) == 2
    assert len(set(tables)) == 1 or not plan.model.tied_embeddings


def test_something_lies_on_the_gpu() -> None:
    """Accelerate computes on the GPU only if the map names it: a norm goes there when all else is away."""
    for model, norm in (("opt-125m", "model.decoder.final_layer_norm"), ("qwen3-0.6b", "model.norm")):
        plan = wanted(engine("accelerate"), model, weights=CPU)
        devices = device_map(plan.model, plan.layout)
        assert next(name for name, device in devices.items() if device == 0) == norm
        assert 0 not in device_map(plan.model, plan.layout, gpu=False).values()


def test_accelerate_says_what_differs() -> None:
    """Quantised plans have no map; cache off the GPU and several groups are noted."""
    assert launched(wanted(engine("accelerate"), "opt-6.7b", weight_bits=4)).text == ""
    assert launched(wanted(engine("accelerate", grain="row"), "opt-6.7b")).text == ""
    notes = launched(wanted(engine("accelerate"), "opt-6.7b", cache=CPU, num_groups=3, gpu_batch=2)).notes
    assert not any("spreads" in note for note in notes)
    assert any("keeps KV cache" in note for note in notes)
    assert any("3 batches of 2" in note for note in notes)
    halves = wanted(engine("flexgen"), "opt-6.7b", weights=Split(gpu=0.5, cpu=0.5, disk=0))
    assert any("spreads" in note for note in launched(replace(halves, engine="accelerate")).notes)


# ZeRO-Inference and Petals


def config_of(launch: Launch) -> dict[str, Any]:
    """Read the configuration file that the script reads."""
    ast.parse(launch.text)
    (name,) = launch.files
    assert f'"{name}"' in launch.text
    found: dict[str, Any] = json.loads(launch.files[name])
    assert found["zero_optimization"]["stage"] == 3
    return found


def test_zero_inference_from_the_cpu() -> None:
    """Weights in pinned memory, one layer ahead: sizes are those of OPT-30B's layers, in elements."""
    plan = wanted(engine("zero-inference"), "opt-30b", weights=CPU, gpu_batch=24)
    config = config_of(launched(plan))
    zero, hidden = config["zero_optimization"], plan.model.hidden_size
    block = 12 * hidden**2 + 13 * hidden
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert zero["stage3_prefetch_bucket_size"] == block
    assert zero["stage3_max_live_parameters"] == 2 * block
    assert zero["stage3_param_persistence_threshold"] == 4 * hidden
    assert config["train_micro_batch_size_per_gpu"] == 24
    assert config["fp16"] == {"enabled": True}
    assert launched(plan).notes[0] == "The batch is 24 prompts of 512 tokens."
    alone = launched(wanted(engine("zero-inference"), "opt-30b", weights=CPU, gpu_batch=1))
    assert alone.notes[0] == "The batch is 1 prompt of 512 tokens."
    assert not {"aio", "weight_quantization"} & set(config)


def test_zero_inference_serial() -> None:
    """Without overlap nothing is fetched ahead."""
    plan = replace(wanted(engine("zero-inference"), "llama-3-8b", weights=CPU), overlaps=False)
    config = config_of(launched(plan))
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == 0


def test_zero_inference_from_the_disk_in_four_bits() -> None:
    """NVMe has buffers for the largest tensor, and 4-bit weights their group."""
    plan = wanted(
        *(engine("zero-inference"), "opt-175b"),
        weights=Split(gpu=0, cpu=0.25, disk=0.75),
        weight_bits=4,
        pinned=False,
        cache=CPU,
    )
    launch = launched(plan)
    config = config_of(launch)
    offload = config["zero_optimization"]["offload_param"]
    assert offload["device"] == "nvme"
    assert offload["nvme_path"] in " ".join(launch.notes)
    assert offload["buffer_size"] == plan.model.vocab_size * plan.model.hidden_size
    assert offload["buffer_count"] == 6
    assert offload["max_in_cpu"] == pytest.approx(0.25 * plan.model.num_parameters, rel=0.03)
    assert config["aio"]["queue_depth"] > 0
    quantised = config["weight_quantization"]["quantized_initialization"]
    assert quantised == {"num_bits": 4, "group_size": 64, "group_dim": 1, "symmetric": False}
    assert any("set_kv_cache_offload" in note for note in launch.notes)


def test_zero_inference_on_the_gpu() -> None:
    """Weights that all stay on the GPU are not offloaded."""
    config = config_of(launched(wanted(engine("zero-inference"), "opt-1.3b")))
    assert "offload_param" not in config["zero_optimization"]


def test_petals_servers_by_hand() -> None:
    """Llama-2-70B in 16 bits on 15 GiB: a block takes 1.6 GiB, so 9 of 80 fit, on 9 servers."""
    plan = wanted(engine("petals"), "llama-2-70b", gpu_batch=6)
    assert blocks_per_server(plan) == 9
    launch = launched(plan)
    assert launch.title == "Petals: 9 servers of up to 9 blocks"
    first, others = launch.text.replace("\\\n", " ").strip().splitlines()[1::2]
    for line in (first, others):
        assert line.startswith("python -m petals.cli.run_server meta-llama/Llama-2-70b-hf ")
        assert "--num_blocks 9 " in line
        assert f"--attn_cache_tokens {6 * (512 + 32)} " in line
        assert f"--max_batch_size {6 * 512} " in line
    assert "--new_swarm" in first
    assert "--initial_peers ADDRESS" in others


def test_petals_cannot() -> None:
    """OPT has no released servers, though their number is told; a block that does not fit has none."""
    launch = launched(wanted(engine("petals"), "opt-30b"))
    assert launch.text == ""
    assert "4 servers" in launch.notes[0]
    plan = replace(wanted(engine("petals"), "llama-2-70b"), capacity={"gpu": GIB, "cpu": 0.0, "disk": 0.0})
    assert "does not offload" in launched(plan).notes[0]


def test_a_swarm_of_the_pipeline_model() -> None:
    """Servers, clients and requests that were simulated become options; a long request raises the limits."""
    work = Workload(prompt_len=3000, gen_len=96)
    text = swarm_commands(Swarm(load_model("llama-3-70b"), work, 7, 6, 2, 8)).text
    for part in ("--num_blocks 12", "--quant_type int8", f"--attn_cache_tokens {12 * 3096}", "other 6"):
        assert part in text
    for part in ("--inference_max_length 3096", "--max_batch_size 6000", "--torch_dtype bfloat16"):
        assert part in text


def test_one_server_needs_no_peers() -> None:
    """A model that fits in one GPU is one command, without a note of peers."""
    launch = launched(wanted(engine("petals"), "llama-3.2-1b", weight_bits=4))
    assert "ADDRESS" not in launch.text
    assert "--quant_type nf4" in launch.text


# The whole plan


def planned(runtime: str) -> Plan:
    """Plan a small model with everything pinned."""
    pins = ("gpu_batch=4", "num_groups=1", "weights=50/50/0", "cache=100/0/0", "activations=100/0/0")
    problem = problem_of("t4-16", "opt-1.3b", runtime=runtime)
    return make_plan(Request(problem, Options(pins=parse_pins(pins))))


def test_from_a_plan() -> None:
    """A plan for FlexGen gives its command; the project's own executor needs none."""
    plan = planned("flexgen")
    launch = commands(plan)
    assert launch is not None
    assert typed(launch).percent == [50, 50, 100, 0, 100, 0]
    assert typed(launch).gpu_batch_size == 4
    assert commands(plan.model_copy(update={"runtime": load_runtime("reference")})) is None


def test_files_of_a_launch(tmp_path: Path) -> None:
    """A script can be run as it is; a second time the files are replaced; what cannot be written is told."""
    launch = commands(planned("flexgen"))
    assert launch is not None
    for _ in range(2):
        assert save(launch, tmp_path / "a" / "b") == [tmp_path / "a" / "b" / "run.sh"]
    script = tmp_path / "a" / "b" / "run.sh"
    assert script.read_text() == "#!/bin/sh\n" + launch.text
    assert os.access(script, os.X_OK)
    with pytest.raises(InputError, match="cannot be written"):
        save(launch, script / "below")
    with pytest.raises(InputError, match="nothing to write; no such model"):
        save(launch.model_copy(update={"text": "", "notes": ("no such model",)}), tmp_path)


def test_who_has_commands() -> None:
    """Others' engines have commands; an option about them is refused for the project's own."""
    for name in ("flexgen", "accelerate", "zero-inference", "petals"):
        require_commands(name, "--launch")
    with pytest.raises(InputError, match="--launch: runtime reference has no command"):
        require_commands("reference", "--launch")
