"""A plan for an engine that runs a pipeline of servers: nothing is placed, clients and servers are chosen."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner import launch_petals
from planner.launch_parts import Launch
from planner.words import counted, duration, size
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.model import ModelSpec
from simulator.pipeline import PipelinePrediction, Swarm
from simulator.pipelines import load_pipeline
from simulator.workload import Workload


@dataclass(frozen=True)
class SwarmPlan:
    """A swarm, and what its best choice of servers, clients and sequences of a request achieves."""

    swarm: Swarm
    found: PipelinePrediction

    @property
    def blocks(self) -> int:
        """Blocks of a server, at most."""
        return math.ceil(self.swarm.model.num_layers / self.found.pipeline.servers)

    def launch(self) -> Launch:
        """Give what starts the servers."""
        swarm, chosen = self.swarm, self.found.pipeline
        servers = launch_petals.Swarm(
            model=swarm.model,
            workload=swarm.workload,
            servers=chosen.servers,
            clients=chosen.clients,
            batch=chosen.batch,
            weight_bits=swarm.engine.weight_bits,
        )
        return launch_petals.swarm_commands(servers)

    def to_json(self) -> str:
        """Write the plan and its commands; numbers are in seconds, bytes and tokens per second."""
        swarm, found, chosen = self.swarm, self.found, self.found.pipeline
        data = {
            "runtime": swarm.engine.name,
            "hardware": swarm.hardware.name,
            "model": swarm.model.name,
            "workload": swarm.workload.model_dump(mode="json", exclude={"num_prompts"}),
            "servers": chosen.servers,
            "blocks_per_server": self.blocks,
            "weight_bits": swarm.engine.weight_bits,
            "clients": chosen.clients,
            "batch": chosen.batch,
            "network": {"latency_s": chosen.latency, "bandwidth": chosen.bandwidth},
            "throughput_tok_s": found.throughput,
            "per_gpu_tok_s": found.per_gpu,
            "latency_s": found.latency,
            "prefill_s": found.prefill,
            "decode_s": found.decode,
            "busy": {"gpu": found.gpu_busy, "network": found.network_busy},
            "gpu_memory": {"peak": self.memory, "capacity": swarm.hardware.tiers["gpu"].usable},
            "launch": self.launch().model_dump(mode="json"),
        }
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @property
    def memory(self) -> float:
        """GPU memory that the server with the longest span needs. [B]"""
        return self.swarm.memory(self.found.pipeline, self.blocks)


def plan_swarm(name: str, hardware: HardwareProfile, model: ModelSpec, workload: Workload) -> SwarmPlan:
    """Choose servers, clients and sequences of a request for the most throughput per GPU.

    Raises:
        InfeasibleError: not even one block with one sequence fits a GPU.
        InputError: the engine is unknown, or the model cannot hold the workload's sequences.
    """
    if workload.scores:
        raise InputError(f"workload.gen_len: runtime {name} only generates; take --gen-len 1 or more")
    if workload.shared_prefix:
        raise InputError(
            f"workload.shared_prefix: runtime {name} computes and keeps every prompt whole; "
            "drop --shared-prefix"
        )
    if workload.context_len > model.max_positions:
        raise InputError(
            f"workload: {workload.prompt_len} tokens in and {workload.gen_len} out exceed the "
            f"{model.max_positions} positions of {model.name}; shorten --prompt-len or --gen-len"
        )
    swarm = Swarm(load_pipeline(name), model, hardware, workload)
    return SwarmPlan(swarm, swarm.best())


def print_swarm(plan: SwarmPlan, console: Console) -> None:
    """Print the whole report."""
    swarm, found = plan.swarm, plan.found
    work, chosen = swarm.workload, found.pipeline
    heading = Text.assemble(
        (f"{swarm.model.name} on a swarm of {swarm.hardware.name}", "bold"),
        f"   {work.prompt_len} tokens in, {work.gen_len} out, runtime {swarm.engine.name}\n",
        (f"{found.per_gpu:.4g} tok/s per GPU", "bold green"),
        f", {found.throughput:.4g} in all\n",
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    room = f"{size(plan.memory)} of {size(swarm.hardware.tiers['gpu'].usable)}"
    span = f"{plan.blocks} blocks" if plan.blocks > 1 else "a block"
    each = f"up to {span} each, in {swarm.engine.weight_bits} bits"
    requests = f"{counted(chosen.clients, 'client')} x {counted(chosen.batch, 'sequence')}"
    for name, words in (
        ("servers", f"{counted(chosen.servers, 'server')} of one GPU, {each}"),
        ("GPU memory", f"{room}: blocks and the cache of all clients"),
        (
            "requests",
            f"{requests}; clients are not batched together",
        ),
        ("latency", f"{duration(found.latency)} of a request, {duration(found.prefill)} to its first token"),
        ("GPUs busy", f"{100 * found.gpu_busy:.1f} %, on average over servers"),
        ("network busy", f"{100 * found.network_busy:.1f} %, on average over links"),
        ("network", f"{1e3 * chosen.latency:.3g} ms one way, {chosen.bandwidth / 1e6:.4g} MB/s a link"),
    ):
        table.add_row(name, words)
    console.print(heading, table, sep="\n")
    console.print(Text("The GPUs of clients (embedding and head) do not count.", style="dim"))
