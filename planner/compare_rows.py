"""What ``planner compare`` shows of an engine: its best plan in a few figures, or why it has none."""

from __future__ import annotations

from collections.abc import Sequence

from planner.launch_swarm import SwarmPlan
from planner.plan import Plan
from simulator.policy import Bits, Split
from simulator.schema import Record

_ALL_ON_GPU = Split(gpu=1.0, cpu=0.0, disk=0.0)


class Best(Record):
    """The best plan of an engine.

    Attributes:
        engine: which one.
        tok_s: simulated throughput, for each GPU.
        gpus: how many the plan takes.
        schedule: how the work is traversed; of servers, how many there are.
        groups: groups of a block; of servers, their clients.
        group_size: sequences of a group; of servers, of a request.
        weights: where they lie, in whole tensors or rows.
        cache: where the KV cache lies.
        activations: where they lie.
        weight_bits: of stored weights.
        cache_bits: of the stored cache.
        latency_s: of a sequence, from admission to last token.
        busiest: the lane that works the largest share of the time.
        busy: that share.
        notes: what else must be known; full sentences.
    """

    engine: str
    tok_s: float
    gpus: int = 1
    schedule: str
    groups: int
    group_size: int
    weights: Split
    cache: Split
    activations: Split
    weight_bits: Bits
    cache_bits: Bits
    latency_s: float
    busiest: str
    busy: float
    notes: tuple[str, ...] = ()


class Failed(Record):
    """An engine without a plan, and why; ``infeasible`` if the machine is too small."""

    engine: str
    reason: str
    infeasible: bool


Row = Best | Failed


def best_plan(plan: Plan, lost: Sequence[str] = ()) -> Best:
    """Give the row of a plan; ``lost`` are the tensors that were to be in 4 bits, which the engine cannot."""
    policy = plan.policy
    names = {"weights": "weights", "cache": "the KV cache"}
    cannot = f"It cannot store {' and '.join(names[name] for name in lost)} in 4 bits."
    return Best(
        engine=plan.runtime.name,
        tok_s=plan.predictions.throughput_tok_s,
        schedule=f"{plan.schedule} /{policy.stagger}" if plan.schedule == "diagonal" else plan.schedule,
        groups=policy.num_groups,
        group_size=policy.gpu_batch,
        weights=plan.layout.weights,
        cache=plan.layout.cache,
        activations=plan.layout.activations,
        weight_bits=policy.weight_bits,
        cache_bits=policy.cache_bits,
        latency_s=plan.predictions.latency_s,
        busiest=plan.busiest,
        busy=plan.predictions.busy[plan.busiest],
        notes=(cannot,) if lost else (),
    )


def best_of_swarm(plan: SwarmPlan) -> Best:
    """Give the row of a pipeline of servers."""
    found, chosen, bits = plan.found, plan.found.pipeline, plan.swarm.engine.weight_bits
    each = f"Figures are for each of {chosen.servers} GPUs; {found.throughput:.4g} tok/s in all. "
    notes = [
        f"{each if chosen.servers > 1 else ''}Weights are always in {bits} bits; a block is clients x "
        "sequences of a request, and the clients' own GPUs do not count."
    ]
    if plan.swarm.workload.num_prompts is not None:
        notes.append("Clients send requests without end, however many prompts wait.")
    on_gpu = found.gpu_busy >= found.network_busy
    return Best(
        engine=plan.swarm.engine.name,
        tok_s=found.per_gpu,
        gpus=chosen.servers,
        schedule=f"{chosen.servers} server{'s' * (chosen.servers > 1)}",
        groups=chosen.clients,
        group_size=chosen.batch,
        weights=_ALL_ON_GPU,
        cache=_ALL_ON_GPU,
        activations=_ALL_ON_GPU,
        weight_bits=bits,
        cache_bits=16,
        latency_s=found.latency,
        busiest="gpu" if on_gpu else "network",
        busy=max(found.gpu_busy, found.network_busy),
        notes=tuple(notes),
    )


def faster(speeds: dict[str, float], one: str, other: str) -> float | None:
    """Give how many times as fast one engine is as another; None if either has no speed.

    >>> faster({"a": 6.0, "b": 1.5}, "a", "b"), faster({"a": 6.0}, "a", "b")
    (4.0, None)
    """
    if one not in speeds or other not in speeds:
        return None
    return speeds[one] / speeds[other]
