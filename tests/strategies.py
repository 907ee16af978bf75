"""Small worlds for hypothesis: models, machines, runtimes, workloads, policies, and layouts made of them.

Everything is small enough that a whole run has some hundreds of tasks. Sizes are multiples of 8, and
``eighths`` draws splits that fall on whole rows of every tensor.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from simulator.hardware import TIERS, HardwareProfile, TierName
from simulator.layout import Placed, lay_out
from simulator.model import ModelSpec
from simulator.model_config import parse_config
from simulator.policy import CpuAttention, Policy, Split, cohorts_in_flight
from simulator.profiles import load_profile
from simulator.runtime import Overheads, Runtime, load_runtime
from simulator.schema import decode
from simulator.workload import Workload

_RATES = ("bandwidth", "flops", "dequantize", "quantize", "expand", "staging", "stream", "cached")
#: Constants of kernels that a profile may leave out; a tail is a latency, a grain is work.
_TAIL = {"tail": "20 ns", "split": 64.0}
_GRAIN = {"grain": "2 kB"}

ENGINES = ("reference", "flexgen", "accelerate", "zero-inference")


@st.composite
def models(draw: st.DrawFn, max_layers: int = 3) -> ModelSpec:
    """Draw a model of 1 to ``max_layers`` blocks, of OPT's family or Llama's, with tied tables or not."""
    heads, head_dim = draw(st.sampled_from([2, 4])), draw(st.sampled_from([8, 16]))
    config: dict[str, Any] = {
        "hidden_size": heads * head_dim,
        "num_hidden_layers": draw(st.integers(1, max_layers)),
        "num_attention_heads": heads,
        "vocab_size": draw(st.sampled_from([64, 512])),
        "max_position_embeddings": 126,
        "tie_word_embeddings": draw(st.booleans()),
        "dtype": "float16",
    }
    if draw(st.booleans()):
        config |= {"model_type": "opt", "ffn_dim": 4 * heads * head_dim}
    else:
        kv_heads = draw(st.sampled_from([heads, heads // 2]))
        config |= {"model_type": "llama", "intermediate_size": 128, "num_key_value_heads": kv_heads}
    return parse_config(config, "small")


@st.composite
def machines(draw: st.DrawFn, *, latency: bool | None = None, shared: bool = True) -> HardwareProfile:
    """Draw a machine like ``t4-16`` whose achieved rates are lower by random factors.

    Args:
        draw: hypothesis.
        latency: False removes all latencies, and all rates that depend on how many copies run together; True
            keeps them, None draws which.
        shared: False removes the shared capacities.
    """
    keep = draw(st.booleans()) if latency is None else latency
    data = load_profile("t4-16").model_dump(mode="json", exclude_none=True)
    further = draw(st.sampled_from([{}, _GRAIN, _GRAIN | _TAIL if keep else _GRAIN]))
    for engine in data["engines"].values():
        for section in ("matmul", "attention", "conversion"):
            _scale(draw, engine[section], keep)
        for kernel in (*engine["matmul"].values(), *engine["attention"].values()):
            kernel.update(further)
    _scale(draw, data["links"], keep)
    if not keep:
        del data["links"]["disk_read"]["stream"]
    if not shared:
        data["capacities"] = {}
    elif data["capacities"]:
        data["capacities"]["dram"]["bandwidth"] = f"{draw(st.sampled_from([2e9, 1e10, 8e10])):.0f} B/s"
    return decode(HardwareProfile, data, "hardware")


def _scale(draw: st.DrawFn, node: dict[str, Any], latency: bool) -> None:
    """Lower the achieved rates in nested data by factors, and drop latencies."""
    for key, value in node.items():
        if key == "latency" and not latency:
            node[key] = "0 s"
        elif key in _RATES and isinstance(value, str):
            number, _, unit = value.partition(" ")
            node[key] = f"{float(number) * draw(st.sampled_from([0.05, 0.3, 1.0]))!r} {unit}"
        elif isinstance(value, dict):
            _scale(draw, value, latency)


@st.composite
def runtimes(
    draw: st.DrawFn,
    *,
    names: tuple[str, ...] = ENGINES,
    grain: str | None = None,
    placement: str | None = None,
    overheads: bool = True,
) -> Runtime:
    """Draw one of the engines, with either grain, any placement, and other details where it has a choice.

    Args:
        draw: hypothesis.
        names: the engines to draw from; the first one twice as often.
        grain: how fine tensors are placed; None draws it.
        placement: which tensors go where; None draws it.
        overheads: False removes what an engine's own code costs for each task.
    """
    runtime = load_runtime(draw(st.sampled_from([names[0], *names])))
    changes: dict[str, Any] = {"grain": grain or draw(st.sampled_from(["tensor", "row"]))}
    changes["placement"] = placement or draw(st.sampled_from([runtime.placement, "even", "midpoint"]))
    if runtime.synchronization == "dependency":
        changes["attention_lookahead"] = draw(st.integers(0, 4))
        changes["weight_loads"] = draw(st.sampled_from(["chunked", "burst"]))
        changes["dequantize"] = draw(st.sampled_from(["per_pass", "per_group"]))
        slot_names = type(runtime.slots).model_fields
        slots = {name: draw(st.integers(1, 3)) for name in slot_names} if draw(st.booleans()) else {}
        changes["slots"] = runtime.slots.model_copy(update=slots)
    changes["page_tokens"] = draw(st.sampled_from([0, 1, 16]))
    if not overheads:
        changes["overheads"] = Overheads(link_share=runtime.overheads.link_share)
    return runtime.model_copy(update=changes)


def splits(*, eighths: bool = False) -> st.SearchStrategy[Split]:
    """Draw three fractions that sum to 1, often whole ones; ``eighths`` draws multiples of 1/8."""
    fraction = st.integers(0, 8).map(lambda eighth: eighth / 8)
    if not eighths:
        fraction = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, allow_subnormal=False))
    cuts = st.tuples(fraction, fraction).map(sorted)
    return cuts.map(lambda cut: Split(gpu=cut[0], cpu=cut[1] - cut[0], disk=1 - cut[1]))


def all_on(tier: TierName) -> Split:
    """Put all of a class on one tier."""
    return Split(**{name: float(name == tier) for name in TIERS})


def workloads(*, finite: bool | None = None, runtime: Runtime | None = None) -> st.SearchStrategy[Workload]:
    """Draw prompts of 1 to 40 tokens of which 1 to 6 follow; ``finite`` None draws whether they end.

    With a runtime, also what only some engines can do: prompts that are scored, prompts with a common prefix.
    """
    count: st.SearchStrategy[int | None] = st.integers(1, 30)
    if finite is not True:
        count = st.none() if finite is False else st.one_of(st.none(), count)
    lives = [3, 4, 5, 6, 2, 1]  # evenly: small ones hide the diagonal
    gen_len = st.sampled_from([*lives, 0] if runtime and runtime.scores_prompts else lives)
    prefix = st.sampled_from([0, 0, 8, 24] if runtime and runtime.shares_prefix else [0])
    lengths = st.tuples(prefix, st.integers(1, 40)).map(lambda drawn: (drawn[0], sum(drawn)))
    return st.builds(
        lambda length, generated, prompts: Workload(
            prompt_len=length[1], gen_len=generated, num_prompts=prompts, shared_prefix=length[0]
        ),
        lengths,
        gen_len,
        count,
    )


@st.composite
def policies(
    draw: st.DrawFn,
    runtime: Runtime,
    workload: Workload,
    *,
    homes: bool | None = None,
    eighths: bool = False,
    max_groups: int = 6,
) -> Policy:
    """Draw a policy that the runtime can run: any schedule, split, share of CPU attention, bits, batches.

    The schedule is drawn first and the diagonal, which varies most, most often; half of the diagonals have a
    stagger that does not divide a life, where there is one.

    ``homes`` keeps to what the engine itself can choose (classes of tensors whole on one tier, all of the
    attention on the CPU or none). None does so half of the time for tensors, as no rule of a schedule depends
    on it.
    """
    whole = runtime.homes if homes or (homes is None and draw(st.booleans())) else {}
    choices: dict[str, st.SearchStrategy[Split]] = {"weights": splits(eighths=eighths)}
    choices |= dict.fromkeys(("cache", "activations"), splits())
    choices |= {name: st.sampled_from(tiers).map(all_on) for name, tiers in whole.items()}
    names = [*runtime.schedules, *["diagonal"] * (2 * ("diagonal" in runtime.schedules))]
    gen_len, name = workload.passes, draw(st.sampled_from(names))
    if name == "diagonal" and gen_len > 1:
        uneven = [every for every in range(1, gen_len) if gen_len % every]
        stagger = draw(st.one_of(st.integers(1, gen_len - 1), st.sampled_from(uneven or [1])))
    else:  # a stagger of a life or more is none
        stagger = (
            draw(st.sampled_from([None, None, gen_len + 1])) if "diagonal" in runtime.schedules else None
        )
    cohorts = cohorts_in_flight(stagger, gen_len)
    prompt_batch = draw(st.sampled_from([1, 2])) if runtime.splits_prompts else None
    share, cache_bits = st.sampled_from([0.0, 0.5, 1.0]), draw(st.sampled_from([16, 16, 8, 4]))
    on_cpu = CpuAttention(cpu=draw(share), disk=draw(share))
    if homes and runtime.cpu_attention == "whole":
        on_all = draw(st.booleans()) and cache_bits == 16
        on_cpu = CpuAttention(cpu=float(on_all), disk=float(on_all))
    return Policy(
        gpu_batch=(prompt_batch or 1) * draw(st.integers(1, 3)),
        num_groups=cohorts * (1 if name == "row" else draw(st.integers(1, max(1, max_groups // cohorts)))),
        **{name: draw(choice) for name, choice in choices.items()},
        cpu_attention=on_cpu,
        weight_bits=draw(st.sampled_from([16, 16, 8, 4])),
        cache_bits=cache_bits,
        quant_group=draw(st.sampled_from([16, 64])),
        stagger=stagger,
        prompt_batch=prompt_batch,
        pinned=draw(st.booleans()),
        overlap=draw(st.sampled_from([True, True, True, False])),
        prefetch=draw(st.integers(1, 3)),
    )


@st.composite
def layouts(
    draw: st.DrawFn,
    *,
    finite: bool | None = None,
    names: tuple[str, ...] = ENGINES,
    grain: str | None = None,
    placement: str | None = None,
    overheads: bool = True,
    eighths: bool = False,
) -> Placed:
    """Draw a model, a runtime, a workload and a policy, and lay them out."""
    runtime = draw(runtimes(names=names, grain=grain, placement=placement, overheads=overheads))
    workload = draw(workloads(finite=finite, runtime=runtime))
    policy = draw(policies(runtime, workload, eighths=eighths))
    return lay_out(draw(models()), runtime, workload, policy)
