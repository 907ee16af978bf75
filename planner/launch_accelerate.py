"""The ``device_map`` with which transformers and Accelerate run a plan.

Accelerate places whole modules: blocks, tables, the head. Tied matrices are one tensor, so they lie together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from planner.launch_parts import Launch, Wanted, cannot, hub_name, not_on_hub
from simulator.layout import Layout
from simulator.model import ModelSpec, Weight

Device = int | str

_DEVICES: dict[str, Device] = {"g": 0, "c": "cpu", "d": "disk"}
_ORDER = "gcd"
_MIB = 2**20


def accelerate(plan: Wanted) -> Launch:
    """Write the call that loads the model, or say why Accelerate cannot run the plan."""
    reason = _obstacle(plan)
    if reason:
        return cannot(plan.engine, reason)
    devices = device_map(plan.model, plan.layout, gpu=plan.capacity["gpu"] > 0)
    return Launch(
        engine=plan.engine,
        title="Accelerate: load the model with this device map",
        text=_snippet(plan, devices),
        file="snippet.py",
        notes=tuple(_notes(plan)),
    )


def _obstacle(plan: Wanted) -> str | None:
    policy = plan.policy
    if plan.layout.grain == "row":
        return "Accelerate cannot run this plan: it cuts tensors by rows, and Accelerate moves whole modules."
    if min(policy.weight_bits, policy.cache_bits) < 16:
        return "Accelerate cannot run this plan: it does not quantise what it offloads; plan with 16 bits."
    return None


def device_map(model: ModelSpec, layout: Layout, *, gpu: bool = True) -> dict[str, Device]:
    """Give the device of every module: 0, ``cpu`` or ``disk``.

    A module with tensors in several places goes to the slowest of them, so that the GPU never holds more than
    planned. When the GPU is to hold nothing, the smallest module is put there all the same, because
    Accelerate computes on the first accelerator that the map names.
    """
    letters = _letters(model, layout)
    size = _module_bytes(model)
    if gpu and "g" not in letters.values():
        letters[min((name for name in letters if size(name)), key=size)] = "g"
    if model.architecture == "llama":  # without weights, but asked by every block
        letters[f"{_prefix(model)}rotary_emb"] = "g" if "g" in letters.values() else "c"
    return {name: _DEVICES[letter] for name, letter in letters.items()}


def _prefix(model: ModelSpec) -> str:
    return "model.decoder." if model.architecture == "opt" else "model."


def _letters(model: ModelSpec, layout: Layout) -> dict[str, str]:
    """Give the letter of every module, in the order in which they are used."""
    letters = {}
    table = f"{_prefix(model)}embed_tokens"
    if model.tied_embeddings:
        letters[table] = layout.tensors["lm_head.weight"][0]
    letters |= _ends(model.embed_weights(), layout)
    block = [layout.tensors[weight.name] for weight in model.layer_weights()]
    for layer, here in enumerate(zip(*block, strict=True)):
        letters[f"{_prefix(model)}layers.{layer}"] = max(here, key=_ORDER.index)
    letters |= _ends(model.head_weights(), layout)
    if model.tied_embeddings:
        letters["lm_head"] = letters[table]
    return letters


def _ends(weights: tuple[Weight, ...], layout: Layout) -> dict[str, str]:
    letters: dict[str, str] = {}
    for weight in weights:
        name, letter = _module(weight), layout.tensors[weight.name][-1]
        letters[name] = max(letters.get(name, letter), letter, key=_ORDER.index)
    return letters


def _module(weight: Weight) -> str:
    return weight.name.rpartition(".")[0]


def _module_bytes(model: ModelSpec) -> Callable[[str], float]:
    """Make the function that gives the bytes of a module; of tied ones, the table's. [B]"""
    ends = (*model.embed_weights(), *model.head_weights())
    block = model.weight_bytes(model.layer_weights())

    def size(name: str) -> float:
        if name.rpartition(".")[0].endswith("layers"):
            return block
        return model.weight_bytes(weight for weight in ends if _module(weight) == name)

    return size


def max_memory(model: ModelSpec, devices: dict[str, Device]) -> dict[Device, int]:
    """Give the memory with which ``device_map="auto"`` finds the map again: what it fills on GPU and CPU. [B]

    Accelerate keeps room for the largest module on the GPU when not all modules are there, and on the CPU too
    when some are on disk; it is added. In OPT it meets the last norm before the blocks, so that one block may
    be displaced.
    """
    size = _module_bytes(model)
    held: dict[Device, float] = dict.fromkeys((0, "cpu"), 0.0)
    for name, device in devices.items():
        if device in held:
            held[device] += size(name)
    largest = max(size(name) for name in devices)
    held[0] += largest * (set(devices.values()) != {0})
    held["cpu"] += largest * ("disk" in devices.values())
    return {device: math.ceil(bytes_) for device, bytes_ in held.items()}


def _snippet(plan: Wanted, devices: dict[str, Device]) -> str:
    work = plan.workload
    memory = {
        device: f"{math.ceil(size / _MIB)}MiB" for device, size in max_memory(plan.model, devices).items()
    }
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM",
        "",
        "device_map = {",
        *(f"    {entry}," for entry in _entries(devices)),
        "}",
        "model = AutoModelForCausalLM.from_pretrained(",
        f'    "{hub_name(plan.model)}",',
        f"    dtype=torch.{plan.dtype},",
        "    device_map=device_map,",
        f"    max_memory={_literal(memory)},",
        '    offload_folder="offload",',
        ")",
        f"# {plan.prompts} in a batch: "
        f"model.generate(input_ids, max_new_tokens={work.gen_len}, do_sample=False)",
    ]
    return "\n".join(lines) + "\n"


def _literal(value: object) -> str:
    return repr(value).replace("'", '"')


def _entries(devices: dict[str, Device]) -> Iterator[str]:
    """Write the entries of the map, with runs of blocks on one device as one comprehension each."""

    def run(item: tuple[str, Device]) -> tuple[str, Device]:
        stem, _, last = item[0].rpartition(".")
        return (stem if last.isdigit() else item[0], item[1])

    for (stem, device), items in itertools.groupby(devices.items(), key=run):
        names = [name for name, _ in items]
        if names == [stem]:
            yield f'"{stem}": {_literal(device)}'
        else:
            first, last = (int(name.rpartition(".")[2]) for name in (names[0], names[-1]))
            yield f'**{{f"{stem}.{{n}}": {_literal(device)} for n in range({first}, {last + 1})}}'


def _notes(plan: Wanted) -> list[str]:
    policy, layout = plan.policy, plan.layout
    notes = ['The map decides; max_memory is read only when you replace the map by "auto".']
    block = [layout.tensors[weight.name] for weight in plan.model.layer_weights()]
    if len(set(block)) > 1:
        notes.append(
            "The plan spreads blocks over several places; here each goes whole to the slowest of them."
        )
    if min(layout.cache.gpu, layout.activations.gpu) < 1:
        notes.append(
            "Accelerate keeps KV cache and activations on the GPU, where the plan does not put all of them; "
            "plan with cache and activations at 100/0/0."
        )
    if policy.num_groups > 1:
        notes.append(
            f"Accelerate runs one batch after the other: {policy.num_groups} batches of {policy.gpu_batch}."
        )
    return [*notes, *not_on_hub(plan.model)]
