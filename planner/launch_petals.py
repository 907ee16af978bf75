"""The commands that start the servers of a Petals swarm.

They follow from a swarm as the pipeline model describes it (servers, clients, sequences of a request), or
from a plan for one GPU, of which as many make a swarm as hold all blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.launch_parts import Launch, Wanted, cannot, hub_name, model_type, not_on_hub
from simulator.model import ModelSpec
from simulator.policy import Bits
from simulator.workload import Workload

#: Families of the released servers that this project's catalogue has.
_FAMILIES = ("llama",)
_QUANTISATION = {16: "none", 8: "int8", 4: "nf4"}
_CHUNK = 256 * 2**20  # the server's own limit for activations in one go [B]
_TOKENS = 2048  # the server's own limits of tokens in a session and in a batch


@dataclass(frozen=True)
class Swarm:
    """Servers with equal spans of blocks, and requests in flight: one a client, of ``batch`` sequences."""

    model: ModelSpec
    workload: Workload
    servers: int
    clients: int
    batch: int
    weight_bits: Bits

    @property
    def blocks(self) -> int:
        """Blocks of a server, at most."""
        return math.ceil(self.model.num_layers / self.servers)

    @property
    def dtype(self) -> str:
        """The type that is computed in: the checkpoint's."""
        return self.model.dtype


def petals(plan: Wanted) -> Launch:
    """Write the commands for as many GPUs like the plan's as hold the model, or say why it cannot run."""
    held = blocks_per_server(plan)
    if held == 0:
        return cannot(
            plan.engine,
            f"Petals cannot run {plan.model.name} here: it does not offload, and one block with its cache "
            "does not fit in the GPU memory of a server.",
        )
    policy = plan.policy
    servers = math.ceil(plan.model.num_layers / held)
    swarm = Swarm(plan.model, plan.workload, servers, policy.num_groups, policy.gpu_batch, policy.weight_bits)
    launch = swarm_commands(swarm)
    if launch.text and policy.cache_bits < 16:
        note = "Petals does not quantise the KV cache; the plan does."
        return launch.model_copy(update={"notes": (*launch.notes, note)})
    return launch


def blocks_per_server(plan: Wanted) -> int:
    """Count the blocks that fit in one GPU, each with the cache of all sequences in flight.

    ``(memory - chunk) / (weights of a block + sequences x context x cache bytes per token)``, not above the
    number of blocks.
    """
    model, policy = plan.model, plan.policy
    weights = model.weight_bytes(model.layer_weights(), policy.weight_bits, policy.quant_group)
    cache = policy.block * plan.workload.context_len * model.kv_bytes()
    room = max(0.0, plan.capacity["gpu"] - _CHUNK)
    return min(model.num_layers, int(room / (weights + cache)))


def swarm_commands(swarm: Swarm) -> Launch:
    """Write the commands of a swarm, or say that Petals has no code for the model."""
    model, count = swarm.model, f"{swarm.servers} server{'s' if swarm.servers > 1 else ''}"
    family = model_type(model)
    if family is not None and family not in _FAMILIES:
        return cannot(
            "petals",
            f"Released Petals servers do not run {family} models (of this catalogue, llama only); with code "
            f"for them, {model.name} would take {count}.",
        )
    return Launch(
        engine="petals",
        title=f"Petals: {count} of up to {swarm.blocks} blocks",
        text=_commands(swarm),
        notes=tuple(_notes(swarm, family)),
    )


def _commands(swarm: Swarm) -> str:
    work = swarm.workload
    length = work.prompt_len + work.gen_len
    options = {
        "--num_blocks": swarm.blocks,
        "--torch_dtype": swarm.dtype,
        "--quant_type": _QUANTISATION[swarm.weight_bits],
        "--attn_cache_tokens": swarm.clients * swarm.batch * length,
    }
    if length > _TOKENS:
        options["--inference_max_length"] = length
    if swarm.batch * work.prompt_len > _TOKENS:
        options["--max_batch_size"] = swarm.batch * work.prompt_len
    start = f"python -m petals.cli.run_server {hub_name(swarm.model)}"
    common = " \\\n  ".join([start, *(f"{name} {value}" for name, value in options.items())])
    text = f"# the first server\n{common} \\\n  --new_swarm --port 31337 --identity_path first.id\n"
    if swarm.servers > 1:
        others = swarm.servers - 1
        where = "the other server" if others == 1 else f"each of the other {others} servers"
        text += f"# {where}; ADDRESS is what the first one prints\n{common} \\\n  --initial_peers ADDRESS\n"
    return text


def _notes(swarm: Swarm, family: str | None) -> list[str]:
    notes = [f"Cache for {swarm.clients * swarm.batch} sequences at once is reserved on every server."]
    if swarm.servers == 1:
        notes.append("One GPU holds all blocks; a swarm gains nothing.")
    if family is None:
        notes.append(f"Petals runs {swarm.model.name} only if the model_type of its config.json is llama.")
    return [*notes, *not_on_hub(swarm.model)]
