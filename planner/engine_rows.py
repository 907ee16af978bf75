"""From a measured row to what the simulator says about that run."""

from __future__ import annotations

from planner.evaluate import passes_within
from planner.measurements import Measurement
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.layout import lay_out
from simulator.model_config import load_model
from simulator.passes import first_step
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import Runtime, load_runtime
from simulator.simulate import Prediction, Simulation, simulate
from simulator.workload import Workload

#: More tasks than this are sampled by passes; a run whose fewest passes take more is not played.
MAX_TASKS = 4_000_000


def predict_row(row: Measurement, hardware: HardwareProfile) -> Prediction:
    """Predict a measured run.

    Raises:
        PlannerError: the model or the engine is unknown, or the policy cannot be played.
    """
    return play_row(row, hardware)[0]


def play_row(
    row: Measurement, hardware: HardwareProfile, runtime: Runtime | None = None
) -> tuple[Prediction, Simulation]:
    """Simulate a measured run: the prediction, and the tasks with their times; by default on its engine.

    Raises:
        PlannerError: the model or the engine is unknown, or the policy cannot be played.
    """
    runtime = runtime or load_runtime(row.system)
    model, policy = load_model(row.model), policy_of(row)
    workload = Workload(prompt_len=row.prompt_len, gen_len=row.gen_len)
    passes = passes_within(model.num_layers, row.gen_len, policy, MAX_TASKS)
    if min(passes, row.gen_len) * row.num_gpu_batches * model.num_layers > MAX_TASKS:
        raise InputError(f"{row.num_gpu_batches} groups a pass are too many to play")
    placed = lay_out(model, runtime, workload, policy)
    played = first_step(workload, policy.block) if row.first_step else None
    return simulate(placed, hardware, None if passes >= row.gen_len else passes, played)


def policy_of(row: Measurement) -> Policy:
    """Make the policy that a row asked of its engine."""
    on_cpu = CpuAttention(cpu=1.0, disk=1.0) if row.cpu_attention else CpuAttention()
    return Policy(
        gpu_batch=row.gpu_batch,
        num_groups=row.num_gpu_batches,
        weights=_split(row.wg, row.wc),
        cache=_split(row.cg, row.cc),
        activations=_split(row.hg, row.hc),
        cpu_attention=on_cpu,
        weight_bits=row.weight_bits,
        cache_bits=row.cache_bits,
        pinned=row.pinned_weights,
        overlap=row.overlap,
    )


def _split(gpu: float, cpu: float) -> Split:
    """Turn percentages on GPU and CPU into fractions; the rest is on disk."""
    return Split(gpu=gpu / 100, cpu=cpu / 100, disk=max(0.0, 100 - gpu - cpu) / 100)
