"""The command line of FlexGen's ``flex_opt`` for a plan.

Its default ``--sep-layer True`` gives one workspace to CPU attention. With overlap and several groups, the
cache of the next group is loaded into it before the present group has been computed: the text is wrong. With
``--sep-layer False`` there are two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.launch_flexgen_percent import Percents, activation_percents, cache_percents, weight_percents
from planner.launch_parts import Launch, Wanted, cannot, is_catalogued, percent
from simulator.policy import Policy
from simulator.units import GIB

#: The names that its own table of shapes knows and its code can run.
_MODELS = tuple(f"opt-{size}" for size in ("125m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b", "175b"))
_GROUP = 64  # elements per scale; the command line has no option for it


@dataclass(frozen=True)
class _Choice:
    """What is typed: percentages of weights, cache and activations, and two switches."""

    weights: Percents
    cache: Percents
    activations: Percents
    cpu_attention: bool
    sep_layer: bool


def flexgen(plan: Wanted) -> Launch:
    """Write the command, or say why FlexGen cannot run the plan."""
    reason = _obstacle(plan)
    if reason:
        return cannot(plan.engine, reason)
    choice = _choose(plan)
    return Launch(
        engine=plan.engine,
        title="FlexGen: one run of a block",
        text=_command(plan, choice),
        file="run.sh",
        notes=tuple(_notes(plan, choice)),
    )


def _obstacle(plan: Wanted) -> str | None:
    model, policy = plan.model, plan.policy
    if model.architecture != "opt":
        return f"FlexGen cannot run {model.name}: its code has OPT models only."
    if model.name not in _MODELS or not is_catalogued(model):
        return f"FlexGen cannot run {model.name}: it knows by name only {', '.join(_MODELS)}."
    if 8 in (policy.weight_bits, policy.cache_bits):
        return "FlexGen cannot run this plan: it stores weights and cache in 16 or in 4 bits, not in 8."
    if policy.cohorts(plan.workload.gen_len) > 1:
        return "FlexGen cannot run this plan: it finishes a whole block before it admits the next sequences."
    return None


def _choose(plan: Wanted) -> _Choice:
    policy, layout = plan.policy, plan.layout
    cache = cache_percents(policy.gpu_batch, layout.cache, whole=policy.cache_bits != 16)
    on_cpu = _cpu_share(plan) >= 0.5 and policy.cache_bits == 16 and cache.gpu < 100
    return _Choice(
        weights=weight_percents(plan.model, layout, policy.weights),
        cache=cache,
        activations=activation_percents(layout.activations),
        cpu_attention=on_cpu,
        sep_layer=not (on_cpu and policy.overlap and policy.num_groups > 1),
    )


def _cpu_share(plan: Wanted) -> float:
    """Give the share of attention over cache that is off the GPU which the plan gives to the CPU."""
    cache, on_cpu = plan.layout.cache, plan.layout.cpu_attention
    away = cache.cpu + cache.disk
    return (cache.cpu * on_cpu.cpu + cache.disk * on_cpu.disk) / away if away else 0.0


def _command(plan: Wanted, choice: _Choice) -> str:
    policy, work = plan.policy, plan.workload
    parts = (choice.weights, choice.cache, choice.activations)
    numbers = " ".join(f"{each.gpu} {each.cpu}" for each in parts)
    lines = [
        f"python3 -m flexllmgen.flex_opt --model facebook/{plan.model.name}",
        f"--percent {numbers}",
        f"--gpu-batch-size {policy.gpu_batch} --num-gpu-batches {policy.num_groups}",
        f"--prompt-len {work.prompt_len} --gen-len {work.gen_len}",
        " ".join(_switches(policy, choice)),
    ]
    return " \\\n  ".join(lines) + "\n"


def _switches(policy: Policy, choice: _Choice) -> list[str]:
    chosen = {
        "--cpu-cache-compute": choice.cpu_attention,
        "--compress-weight": policy.weight_bits == 4,
        "--compress-cache": policy.cache_bits == 4,
        "--pin-weight 0": not policy.pinned,
        "--overlap False": not policy.overlap,
    }
    return [*(switch for switch, on in chosen.items() if on), f"--sep-layer {choice.sep_layer}"]


def _notes(plan: Wanted, choice: _Choice) -> list[str]:
    return [*_rounding(choice), *_attention(plan, choice), *_differences(plan), *_how_to_run(plan)]


def _rounding(choice: _Choice) -> list[str]:
    notes = []
    for name, found in (
        ("weights", choice.weights),
        ("KV cache", choice.cache),
        ("activations", choice.activations),
    ):
        if not found.exact:
            shares = " / ".join(percent(share) for share in found.shares)
            notes.append(
                f"FlexGen cannot place the {name} as planned; the percentages above put {shares} on "
                "GPU / CPU / disk, never more on the GPU than planned."
            )
    typed, real = choice.weights.gpu / 100, choice.weights.shares[0]
    if choice.weights.exact and abs(typed - real) > 0.005:
        notes.append(
            f"FlexGen rounds to whole tensors: the {choice.weights.gpu} % typed for weights on the GPU put "
            f"{percent(real)} of them there, which is what was simulated."
        )
    return notes


def _attention(plan: Wanted, choice: _Choice) -> list[str]:
    share = _cpu_share(plan)
    notes = []
    if share > 0 and plan.policy.cache_bits != 16:
        notes.append("FlexGen computes no attention on the CPU with a compressed cache; the GPU does it all.")
    elif 0 < share < 1:
        side = "CPU" if choice.cpu_attention else "GPU"
        notes.append(f"FlexGen does not share out attention over cache off the GPU: the {side} does it all.")
    if not choice.sep_layer:
        model, work = plan.model, plan.workload
        buffer = 2 * 4 * plan.policy.gpu_batch * work.context_len * model.hidden_size  # keys, values; float32
        notes.append(
            "Keep --sep-layer False: with FlexGen's default, CPU attention over several groups reads the "
            f"cache of the wrong group, and the text is wrong. It takes {buffer / GIB:.2g} GiB more memory."
        )
    return notes


def _differences(plan: Wanted) -> list[str]:
    policy = plan.policy
    unlike = {
        "compresses in groups of 64 elements": 4 in (policy.weight_bits, policy.cache_bits)
        and policy.quant_group != _GROUP,
        "computes all prompts of a group together": policy.prompts_together != policy.gpu_batch,
        "loads weights one layer ahead": policy.prefetch > 1,
    }
    return [f"Unlike the plan, FlexGen {what}." for what, differs in unlike.items() if differs]


def _how_to_run(plan: Wanted) -> list[str]:
    notes = [f"A run takes exactly {plan.policy.block} prompts, padded to one length."]
    if plan.workload.num_prompts is not None and plan.workload.num_prompts > plan.policy.block:
        runs = math.ceil(plan.workload.num_prompts / plan.policy.block)
        notes = [f"{notes[0][:-1]}; the queue takes {runs} runs."]
    if max(split.disk for split in (plan.layout.weights, plan.layout.cache, plan.layout.activations)) > 0:
        notes.append("Add --offload-dir with a folder on the disk that was planned for.")
    if plan.model.name == "opt-175b":
        notes.append("The weights of OPT-175B are not on the hub; --path _DUMMY_ measures without them.")
    return notes
