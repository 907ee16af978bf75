"""Memory over time: what stays, the KV cache as it grows, and buffer slots while tasks hold them.

What stays (weights, activations at home, workspaces) counts in full at all times; of a workspace that is
freed, what a moment needs beyond all others counts while kernels of its layers run. A slot counts in full
from the start of the task that takes it to the end of the one that frees it. KV of new tokens counts from
the start of the task that writes it to its tier, and that of a sequence until its last task has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.hardware import LANES, TierName
from simulator.layers import CellKind, layer_kinds
from simulator.layout import Placed
from simulator.memory import BUFFERS, WHOLE_RUN, Moment
from simulator.operations import OP, BoolArray
from simulator.passes import Pass, peak_tokens
from simulator.policy import FloatArray
from simulator.simulate import Simulation

#: The operation that brings new keys and values to a tier.
_WRITERS: dict[TierName, str] = {"gpu": "qkv", "cpu": "store_cache", "disk": "write_cache"}

#: Changes of memory in use: times [s] and bytes, in no order.
Changes = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, eq=False)
class MemoryUse:
    """Bytes of one use of memory on a tier, as steps: from each time on, until the next. [K] [s] [B]"""

    tier: TierName
    name: str
    time: FloatArray
    bytes: FloatArray

    def __eq__(self, other: object) -> bool:
        """Compare all values."""
        if not isinstance(other, MemoryUse):
            return NotImplemented
        same = (self.tier, self.name) == (other.tier, other.name)
        return same and np.array_equal(self.time, other.time) and np.array_equal(self.bytes, other.bytes)

    __hash__ = None  # type: ignore[assignment] # arrays can change

    def at(self, times: FloatArray) -> FloatArray:
        """Give the bytes in use from each of some times on; nothing before the first step. [B]"""
        place = np.searchsorted(self.time, times, side="right")
        return np.asarray(np.append(0.0, self.bytes)[place])


def memory_in_use(simulation: Simulation, placed: Placed) -> tuple[MemoryUse, ...]:
    """Follow every use of memory that the static bound counts (``Placed.peak_memory``)."""
    changes: dict[tuple[TierName, str], list[Changes]] = {}
    tasks = [_tasks_at(moment, simulation, placed) for moment in placed.moments]
    for at_moments in zip(*(placed.items(moment) for moment in placed.moments), strict=True):
        item = at_moments[0]
        sizes = [float(each.form @ placed.placement) for each in at_moments]
        if max(sizes) <= 0.0:
            continue
        parts = changes.setdefault((item.tier, item.name), [])
        if item.name in BUFFERS and not item.scales:
            number = BUFFERS.index(item.name)
            parts += [_slots(simulation, number, *each) for each in zip(sizes, tasks, strict=True)]
        elif item.name == "KV cache":
            parts.append(_cache(simulation, placed, item.tier, sizes[0]))
        else:
            least = min(sizes)
            constant = least * item.slots * (placed.policy.block if item.scales else 1)
            parts.append((np.zeros(1), np.array([constant])))
            more = [item.slots * (size - least) for size in sizes]
            parts += [_spans(simulation, *each) for each in zip(more, tasks, strict=True) if each[0] > 0.0]
    return tuple(_steps(tier, name, parts) for (tier, name), parts in changes.items())


def _tasks_at(moment: Moment, simulation: Simulation, placed: Placed) -> BoolArray:
    """Mark the tasks of the passes and layers of a moment. [N]"""
    schedule = simulation.schedule
    if moment == WHOLE_RUN:
        return np.ones(len(schedule), dtype=bool)
    prompt = np.array([any(position == 0 for _, position in one.cohorts) for one in schedule.window.passes])
    attention = np.array([kind == CellKind.ATTENTION for kind in layer_kinds(placed.model, placed.runtime)])
    here = prompt[schedule.pass_index] == (moment.phase == "prompt")
    if moment.part:
        here &= attention[schedule.layer] == (moment.part == "attention")
    return np.asarray(here)


def _spans(simulation: Simulation, size: float, tasks: BoolArray) -> Changes:
    """Let a layer's kernels hold memory from the start of the first to the end of the last, pass by pass."""
    schedule = simulation.schedule
    of_gpu = (schedule.lane == LANES.index("gpu")) & (schedule.operation != OP["sync"])
    kernels = np.nonzero(tasks & of_gpu)[0]
    layers = np.stack([schedule.pass_index[kernels], schedule.layer[kernels]])
    first = np.append(True, (np.diff(layers) != 0).any(axis=0))[: len(kernels)]  # a lane works in order
    last = np.append(first[1:], True)[: len(kernels)]
    start, end = simulation.start[kernels[first]], simulation.end[kernels[last]]
    return np.concatenate([start, end]), np.repeat([size, -size], [len(start), len(end)])


def _steps(tier: TierName, name: str, parts: list[Changes]) -> MemoryUse:
    """Add up changes in order of time; those of the same nanosecond are one step."""
    time = np.round(np.concatenate([times for times, _ in parts]) * 1e9)
    change = np.concatenate([sizes for _, sizes in parts])
    steps, place = np.unique(np.append(0.0, time), return_inverse=True)
    total = np.cumsum(np.bincount(place, np.append(0.0, change)))
    kept = np.append(True, np.abs(np.diff(total)) > 1e-6)  # bytes are whole, but for rounding
    return MemoryUse(tier, name, steps[kept] / 1e9, np.maximum(0.0, total[kept]))


def _slots(simulation: Simulation, number: int, size: float, tasks: BoolArray) -> Changes:
    schedule = simulation.schedule
    taken = simulation.start[tasks & (schedule.takes == number)]
    freed = simulation.end[tasks & (schedule.frees >> number & 1).astype(bool)]
    return np.concatenate([taken, freed]), np.repeat([size, -size], [len(taken), len(freed)])


def _cache(simulation: Simulation, placed: Placed, tier: TierName, size: float) -> Changes:
    """Let the cache grow with every writer of a layer, and shrink when a group has finished.

    ``size`` is that of a sequence in flight at the peak, all layers.
    """
    schedule, workload, policy = simulation.schedule, placed.workload, placed.policy
    peak, _ = peak_tokens(workload, policy.stagger, placed.runtime.page_tokens)
    layers = placed.model.num_layers
    per_token = size / peak / layers  # of one layer
    growth, prompt = _growth(placed, schedule.window.passes)
    per_cohort = policy.num_groups // policy.cohorts(workload.passes)
    writers = np.nonzero(schedule.where(_WRITERS[tier]))[0]
    cohort = schedule.group[writers] // per_cohort
    first = int(cohort.min(initial=0))
    passes = schedule.pass_index[writers]
    table, prompts = _table(growth, first), _table(prompt, first)
    sequences = np.where(prompts[passes, cohort - first] > 0, policy.prompts_together, policy.gpu_batch)
    grown = table[passes, cohort - first] * sequences * per_token
    times, sizes = [np.zeros(1), simulation.start[writers]], [np.zeros(1), grown]
    for (index, one), tokens in _last_passes(placed, schedule.window.passes).items():
        for group in range(one * per_cohort, (one + 1) * per_cohort):
            tasks = (schedule.pass_index == index) & (schedule.group == group)
            ends = simulation.end[tasks & (schedule.where("head") | schedule.where(_WRITERS[tier]))]
            times.append(np.array([ends.max()]))
            sizes.append(np.array([-tokens * policy.gpu_batch * layers * per_token]))
    already = _already(placed, schedule.window.passes[0]) * per_cohort
    sizes[0][0] = already * policy.gpu_batch * layers * per_token
    return np.concatenate(times), np.concatenate(sizes)


def held(placed: Placed, position: int) -> int:
    """Count the tokens of cache that a sequence has after a pass at a position, in whole pages."""
    workload, page = placed.workload, placed.runtime.page_tokens
    if not page:
        return workload.context_len
    return -(-workload.cached_at(position) // page) * page


def _growth(
    placed: Placed, passes: tuple[Pass, ...]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """Give the tokens by which (pass played, cohort) grows the cache of a sequence, and where prompts are."""
    growth: dict[tuple[int, int], float] = {}
    prompt: dict[tuple[int, int], float] = {}
    had: dict[int, int] = {}
    for index, one in enumerate(passes):
        for cohort, position in one.cohorts:
            if index == 0 and position:
                had[cohort] = held(placed, position - 1)
            tokens = held(placed, position)
            growth[index, cohort] = tokens - had.get(cohort, 0)
            prompt[index, cohort] = float(position == 0)
            had[cohort] = tokens
    return growth, prompt


def _table(values: dict[tuple[int, int], float], first: int) -> FloatArray:
    rows = 1 + max(index for index, _ in values)
    table = np.zeros((rows, 1 + max(cohort for _, cohort in values) - first))
    for (index, cohort), value in values.items():
        table[index, cohort - first] = value
    return table


def _last_passes(placed: Placed, passes: tuple[Pass, ...]) -> dict[tuple[int, int], int]:
    """Give the (pass played, cohort) after which a cohort is gone, with the tokens a sequence then had."""
    gone: dict[tuple[int, int], int] = {}
    for index, one in enumerate(passes):
        later = {cohort for cohort, _ in passes[index + 1].cohorts} if index + 1 < len(passes) else None
        for cohort, position in one.cohorts:
            if position == placed.workload.passes - 1 or (later is not None and cohort not in later):
                gone[index, cohort] = held(placed, position)
    return gone


def _already(placed: Placed, first: Pass) -> int:
    """Count the tokens that one sequence of each cohort in flight has before the first pass played."""
    return sum(held(placed, position - 1) for _, position in first.cohorts if position)
