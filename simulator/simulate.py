"""Play a layout on a machine and say what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.cost import Rates, limit
from simulator.errors import PlannerError
from simulator.generate import generate
from simulator.hardware import LANES, HardwareProfile, LaneName
from simulator.kernel import event_loop, recurrence
from simulator.layout import Placed
from simulator.operations import OP, OPERATIONS
from simulator.passes import MAX_PASSES, Window
from simulator.policy import CpuAttention, FloatArray
from simulator.prefix import PREFIX_TENSOR
from simulator.schedule import Schedule
from simulator.schema import Record
from simulator.workload import Workload

_ROUNDING = 1e-9


class Prediction(Record):
    """What a run is expected to do.

    ``prefill_s`` is the time of the pass that admits prompts, ``decode_s`` the rest of ``latency_s``, the
    time from a sequence's admission to its last token. ``busy`` is the share of time that each lane works.
    """

    throughput_tok_s: float
    prefill_s: float
    decode_s: float
    latency_s: float
    busy: dict[LaneName, float]
    prefill_busy: dict[LaneName, float]
    decode_busy: dict[LaneName, float]


@dataclass(frozen=True)
class Simulation:
    """A schedule with its times. [s]"""

    schedule: Schedule
    seconds: FloatArray
    start: FloatArray
    end: FloatArray

    @property
    def makespan(self) -> float:
        """Time from the first start to the last end. [s]"""
        return float(self.end.max())


def rates_of(placed: Placed, hardware: HardwareProfile) -> Rates:
    """Look at a machine as a layout's run does."""
    return Rates(hardware, placed.runtime, placed.model.dtype, placed.policy.pinned)


def task_seconds(schedule: Schedule, rates: Rates) -> FloatArray:
    """Give the time of every task at full speed. [N] [s]"""
    seconds = np.zeros(len(schedule))
    for code, tasks in schedule.by_operation.items():
        work = (column.take(tasks) for column in schedule.work)
        seconds[tasks] = rates.seconds(OPERATIONS[code], *work)
    return seconds


def capacity_draws(schedule: Schedule, rates: Rates, seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Give what every task takes from each shared capacity [N, C], and the rates of these. [C]"""
    capacities = list(rates.hardware.capacities.values())
    draws = np.zeros((len(schedule), len(capacities)))
    for code, tasks in schedule.by_operation.items():
        operation, work = OPERATIONS[code], (schedule.bytes.take(tasks), seconds.take(tasks))
        for index, capacity in enumerate(capacities):
            if operation.lane in capacity.lanes:
                draws[tasks, index] = rates.draw(capacity, operation, *work)
    return draws, np.array([limit(capacity) for capacity in capacities])


def play(schedule: Schedule, rates: Rates, *, shared: bool = True) -> Simulation:
    """Find out when every task starts and ends; without ``shared`` lanes do not slow each other down."""
    seconds = task_seconds(schedule, rates)
    if shared and rates.hardware.capacities:
        draws, limits = capacity_draws(schedule, rates, seconds)
        start, end = event_loop(schedule.lane, schedule.waits_for, seconds, draws, limits, len(LANES))
    else:
        start, end = recurrence(schedule.lane, schedule.waits_for, seconds, len(LANES))
    return Simulation(schedule, seconds, start, end)


def simulate(
    placed: Placed,
    hardware: HardwareProfile,
    max_passes: int | None = MAX_PASSES,
    played: Window | None = None,
) -> tuple[Prediction, Simulation]:
    """Generate the schedule of a layout, play it, check it against physics, and read off the prediction.

    ``max_passes`` bounds how many passes are played (None: all), ``played`` says which.

    Raises:
        PlannerError: the simulated times beat a physical limit, which is a fault of the profile or of this
            program and never a prediction.
    """
    rates = rates_of(placed, hardware)
    simulation = play(generate(placed, max_passes, played), rates)
    check_physics(simulation, rates, placed)
    prediction = predict(simulation, placed)
    if placed.workload.shared_prefix and placed.workload.num_prompts is not None:
        prediction = _after_prefix(prediction, placed, rates)
    return prediction, simulation


def prefix_pass(placed: Placed) -> Placed:
    """Lay out the one pass that computes a shared prefix; its keys and values go where the layout has them.

    The bytes of layers stay those of the run, so the pass loads a home for what it is about to compute too.
    """
    policy = placed.policy.model_copy(
        update={
            "gpu_batch": 1,
            "num_groups": 1,
            "prompt_batch": None,
            "stagger": None,
            "cache_bits": 16,
            "cpu_attention": CpuAttention(),
        }
    )
    home = placed.layout.home_of(PREFIX_TENSOR)
    layout = placed.layout.model_copy(update={"cache": home, "cpu_attention": CpuAttention()})
    workload = Workload(prompt_len=placed.workload.shared_prefix, gen_len=1, num_prompts=1)
    return replace(placed, workload=workload, policy=policy, layout=layout)


def _after_prefix(prediction: Prediction, placed: Placed, rates: Rates) -> Prediction:
    """Count the time of the pass that computes the prefix, once for the whole queue, in the throughput."""
    assert placed.workload.num_prompts is not None
    before = prefix_pass(placed)
    simulation = play(generate(before), rates)
    check_physics(simulation, rates, before)
    tokens = placed.workload.num_prompts * placed.workload.counted_tokens
    seconds = tokens / prediction.throughput_tok_s + simulation.makespan
    return prediction.model_copy(update={"throughput_tok_s": tokens / seconds})


def pass_edges(simulation: Simulation) -> FloatArray:
    """Give the time at which each pass played begins on the GPU, and the end of the last. [P + 1] [s]

    The GPU works through passes in order, so these instants divide its time among them.
    """
    schedule = simulation.schedule
    computes = np.nonzero((schedule.lane == LANES.index("gpu")) & (schedule.operation != OP["sync"]))[0]
    _, first = np.unique(schedule.pass_index[computes], return_index=True)
    edges = np.append(simulation.start[computes[first]], simulation.makespan)
    if schedule.window.passes[0].weight:
        edges[0] = 0.0
    return edges


def busy_seconds(simulation: Simulation, edges: FloatArray) -> FloatArray:
    """Give the time that each lane works between successive edges. [lanes, P] [s]"""
    busy = np.zeros((len(LANES), len(edges) - 1))
    for index in range(len(LANES)):
        tasks = np.nonzero(simulation.schedule.lane == index)[0]
        start, end = simulation.start.take(tasks), simulation.end.take(tasks)
        if len(start) == 0:
            continue
        worked = np.concatenate([[0.0], np.cumsum(end - start)])
        place = np.searchsorted(end, edges, side="right")  # tasks that ended by then
        begun = np.append(start, np.inf)[place]
        busy[index] = np.diff(worked[place] + np.maximum(0.0, edges - begun))
    return busy


def predict(simulation: Simulation, placed: Placed) -> Prediction:
    """Read throughput, latency and how busy the lanes are off a simulation."""
    played = simulation.schedule.window
    edges = pass_edges(simulation)
    weights = np.array([one.weight for one in played.passes])
    admits = np.array([any(position == 0 for _, position in one.cohorts) for one in played.passes])
    time = np.diff(edges) * weights
    busy = busy_seconds(simulation, edges) * weights
    total = float(time.sum())
    latency = total * played.latency_windows
    prefill = float(time[admits].sum() / max(1.0, weights[admits].sum()))
    return Prediction(
        throughput_tok_s=played.sequences * placed.workload.counted_tokens / total,
        prefill_s=prefill,
        decode_s=max(0.0, latency - prefill),
        latency_s=latency,
        busy=_shares(busy, time),
        prefill_busy=_shares(busy[:, admits], time[admits]),
        decode_busy=_shares(busy[:, ~admits], time[~admits]),
    )


def _shares(busy: FloatArray, time: FloatArray) -> dict[LaneName, float]:
    total = float(time.sum())
    return {lane: min(1.0, float(busy[i].sum()) / total) if total else 0.0 for i, lane in enumerate(LANES)}


def check_physics(simulation: Simulation, rates: Rates, placed: Placed) -> None:
    """Check that no lane beat its peak: FLOPs over peak and bytes over bandwidth, from the datasheet.

    Raises:
        PlannerError: a task took less time than its work needs at the physical limit.
    """
    schedule, took = simulation.schedule, simulation.end - simulation.start
    for code, tasks in schedule.by_operation.items():
        operation = OPERATIONS[code]
        if operation.cost == "none" or rates.hands_over(operation):
            continue
        least = _least_seconds(
            operation.lane, schedule.flops.take(tasks), schedule.bytes.take(tasks), rates.hardware, placed
        )
        if (took.take(tasks) < least * (1 - 1e-6)).any():
            raise PlannerError(
                f"the simulated {operation.name} beats the physical limit of lane {operation.lane}; "
                "the profile's achieved rate and peak disagree"
            )


def _least_seconds(
    lane: LaneName, flops: FloatArray, bytes_: FloatArray, hardware: HardwareProfile, placed: Placed
) -> FloatArray:
    if lane in ("gpu", "cpu"):
        engine = hardware.engines["gpu" if lane == "gpu" else "cpu"]
        peak = engine.peak.flops[engine.compute_dtype(placed.model.dtype)]
        return np.asarray(np.maximum(flops / peak, bytes_ / engine.peak.memory_bandwidth))
    return bytes_ / hardware.links.limit(lane)
