"""The certified ceiling: no schedule whatsoever on this machine is faster.

Whatever the order of the work, the live KV cache cannot exceed the memory that the weights leave free, so the
weights must be gone through at least ``k / C`` times a sequence (``planner.bounds``; proof in
``docs/bounds.md``). That, the compute, and the bytes that must cross each link bound the time per sequence
from below. Two things are free: the sweeps over the weights per sequence (``rho``), and the share of
attention that the CPU computes (``x``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.bounds import kv_bytes_read, sweep_rate_range
from planner.linear import Row, minimise
from planner.problem import Problem
from simulator.cost import Rates
from simulator.layers import CellKind, Shape, layer_weight_bytes, total_weight_bytes
from simulator.operations import BLOCK_STAGES, OP, OPERATIONS
from simulator.prefix import without_prefix

_PRODUCTS = ("qkv", "project", "mlp", "head")


@dataclass(frozen=True)
class Ceiling:
    """A bound on throughput [tok/s], and the resource that sets it."""

    throughput_tok_s: float
    bound_by: str


@dataclass(frozen=True)
class _Sequence:
    """What one sequence needs, whatever the schedule. Bytes and seconds."""

    swept: float  # weights that every sweep goes through, as stored
    swept_expanded: float  # the same expanded, as matrix products read them: without a shared prefix
    cache_read: float  # KV that its attention reads, as stored
    cache_expanded: float  # the same expanded
    matmul_seconds: float  # matrix products at the asymptotic rate
    prompt_seconds: float  # attention over the prompt, and all of it over a shared prefix
    attention_seconds: float  # attention of single tokens, if the GPU computes it
    cpu_seconds: float  # the same, if the CPU computes it


def ceiling(problem: Problem, shapes: list[Shape]) -> Ceiling:
    """Bound the throughput of any schedule that stores weights and cache in one of the given forms."""
    return max((_ceiling_of(problem, shape) for shape in shapes), key=lambda each: each.throughput_tok_s)


def _ceiling_of(problem: Problem, shape: Shape) -> Ceiling:
    tiers = problem.hardware.tiers
    one = _sequence(problem, shape)
    room = sum(tier.usable for tier in tiers.values()) - total_weight_bytes(
        problem.model, shape, problem.runtime
    )
    if room <= 0:
        return Ceiling(0.0, "memory")
    count = problem.workload.num_prompts or math.inf
    low, high = sweep_rate_range(one.cache_read, room, problem.workload.passes, count)
    rows = [
        Row("least sweeps", {"sweeps": -1.0}, -low),
        Row("most sweeps", {"sweeps": 1.0}, max(low, high)),
        Row("all attention", {"cpu_attention": 1.0}, 1.0),
    ]
    # time >= fixed + a sweep's seconds x sweeps + seconds of all attention on the CPU x its share there
    demands = _demands(problem, shape, one)
    for number, (_, fixed, sweep, shared) in enumerate(demands):
        terms = {"sweeps": sweep, "cpu_attention": shared, "time": -1.0}
        rows.append(Row(f"demand {number}", terms, -fixed))
    sizes = {"time": one.matmul_seconds, "sweeps": max(low, high), "cpu_attention": 1.0}
    found = minimise({"time": 1.0}, rows, sizes)
    assert found is not None
    dearest = min(range(len(demands)), key=lambda number: found.duals[f"demand {number}"])
    return Ceiling(problem.workload.counted_tokens / found.values["time"], demands[dearest][0])


def _demands(problem: Problem, shape: Shape, one: _Sequence) -> list[tuple[str, float, float, float]]:
    """List (resource, fixed seconds, seconds a sweep, seconds more if the CPU attends to everything)."""
    tiers, best = problem.hardware.tiers, _best_rates(problem)
    gpu, above_disk = tiers["gpu"].usable, tiers["gpu"].usable + tiers["cpu"].usable
    h2d = _loading(best)
    disk = max(best.copy(OPERATIONS[OP[name]]).bandwidth for name in ("read_weights", "read_cache"))
    hbm = max(best.roofline(OPERATIONS[OP[name]]).bandwidth for name in _PRODUCTS)
    attention, cache = one.attention_seconds, one.cache_read
    on_gpu = attention + one.prompt_seconds
    # Bytes that are read into a fast memory of m: each sweep finds at most m of what it needs there.
    demands = [
        ("gpu", one.matmul_seconds + on_gpu, 0.0, -attention),
        ("gpu", on_gpu, one.swept_expanded / hbm, -attention),
        ("cpu", 0.0, 0.0, one.cpu_seconds),
        ("h2d", 0.0, max(0.0, one.swept - gpu) / h2d, 0.0),
        ("h2d", cache / h2d, (one.swept - gpu) / h2d, -cache / h2d),
        ("disk_read", cache / disk, (one.swept - above_disk) / disk, 0.0),
    ]
    if shape.weight_bits < 16:
        # Expanded weights may stay on the GPU; the rest is expanded once a sweep.
        again = max(0.0, one.swept_expanded - gpu) / best.conversion(OPERATIONS[OP["dequantize_weights"]])
        demands.append(("gpu", one.matmul_seconds + on_gpu, again, -attention))
    return demands


def _best_rates(problem: Problem) -> Rates:
    """Rates of pinned or pageable copies, whichever is faster."""
    pinned = Rates(problem.hardware, problem.runtime, problem.model.dtype, pinned=True)
    pageable = Rates(problem.hardware, problem.runtime, problem.model.dtype, pinned=False)
    return max(pinned, pageable, key=_loading)


def _loading(rates: Rates) -> float:
    """Give the faster of the rates at which weights and cache are loaded to the GPU. [B/s]"""
    return max(rates.copy(OPERATIONS[OP[name]]).bandwidth for name in ("load_weights", "load_cache"))


def _sequence(problem: Problem, shape: Shape) -> _Sequence:
    """Sum the work of one sequence's life at the asymptotic rates of the kernels."""
    model, workload = problem.model, problem.workload
    best = _best_rates(problem)
    own, passes, shared = workload.own_len, workload.passes, workload.shared_prefix
    tokens = own + passes - 1
    linear = model.num_layers * sum(model.linear_flops(stage) for stage in BLOCK_STAGES)
    flops = tokens * linear + workload.counted_tokens * model.linear_flops("head")
    prompt = OPERATIONS[OP["attend_prompt"]]
    attend, attend_cpu = OPERATIONS[OP["attend"]], OPERATIONS[OP["attend_cpu"]]
    read = kv_bytes_read(1.0, own, passes) * model.num_layers
    expanded = read * model.kv_bytes_per_token
    positions = np.arange(1, passes)
    attention = model.num_layers * float(
        model.attention_flops(np.ones(len(positions)), own + positions - 1.0).sum()
    )

    def least(operation: str, work: float, moved: float) -> float:
        roofline = best.roofline(OPERATIONS[OP[operation]])
        return max(work / roofline.flops, moved / roofline.bandwidth)

    prompt_flops = model.num_layers * model.attention_flops(float(own), 0.0)
    prefix_flops = model.num_layers * model.prefix_flops(np.array(float(tokens)), np.array(float(shared)))
    layers = model.num_layers * model.weight_bytes(without_prefix(model).layer_weights())
    head = layer_weight_bytes(model, shape, problem.runtime, CellKind.HEAD)
    return _Sequence(
        swept=model.num_layers * layer_weight_bytes(model, shape, problem.runtime, CellKind.BLOCK) + head,
        swept_expanded=layers + head,
        cache_read=read * model.kv_bytes(shape.cache_bits, shape.quant_group),
        cache_expanded=expanded,
        matmul_seconds=flops / max(best.roofline(OPERATIONS[OP[name]]).flops for name in _PRODUCTS),
        prompt_seconds=least(prompt.name, float(prompt_flops), 0.0)
        + least("attend_prefix", float(prefix_flops), 0.0),
        attention_seconds=least(attend.name, attention, expanded) * shape.attended,
        cpu_seconds=least(attend_cpu.name, attention, expanded) * shape.attended,
    )
