"""Traces: what happened and when, predicted or measured, and how full each memory was.

A trace is written as Chrome's trace-event JSON, which https://ui.perfetto.dev opens: a thread a lane, a
counter for every use of memory. Times are kept to the nanosecond, so that what is written reads back equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.hardware import LANES, TIERS, TierName
from simulator.layout import Placed
from simulator.operations import OPERATIONS
from simulator.policy import FloatArray
from simulator.schedule import Int8Array, Int32Array
from simulator.schema import read_json
from simulator.simulate import Simulation
from simulator.trace_events import WORK, read_counter, read_span
from simulator.trace_memory import MemoryUse, memory_in_use
from simulator.units import GIB

_NS_PER_S, _NS_PER_US = 1e9, 1e3
_PROCESS = 1


@dataclass(frozen=True, eq=False)
class Trace:
    """N spans as columns, in issue order, and memory over time.

    Attributes:
        operation: index into ``OPERATIONS``. [N]
        lane: index into ``LANES``. [N]
        start: when each task started. [N] [s]
        end: when it ended. [N] [s]
        pass_number: number of the pass in the run (not of those played). [N]
        layer: 0 is the embedding, then the blocks, last the head. [N]
        group: the group's number. [N]
        bytes: bytes moved. [N] [B]
        flops: work. [N] [FLOP]
        kernels: launches or copies. [N]
        steps: inner dimensions of all kernels together. [N]
        blocks: attention blocks. [N]
        memory: the uses of memory over time.
        metadata: what was run, where, and whether it is predicted or measured.
    """

    operation: Int8Array
    lane: Int8Array
    start: FloatArray
    end: FloatArray
    pass_number: Int32Array
    layer: Int32Array
    group: Int32Array
    bytes: FloatArray
    flops: FloatArray
    kernels: FloatArray
    steps: FloatArray
    blocks: FloatArray
    memory: tuple[MemoryUse, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Round times to nanoseconds."""
        for name in ("start", "end"):
            object.__setattr__(self, name, _nanoseconds(getattr(self, name)) / _NS_PER_S)

    def __len__(self) -> int:
        """Count the spans."""
        return len(self.operation)

    def __eq__(self, other: object) -> bool:
        """Compare all columns, memory and metadata."""
        if not isinstance(other, Trace):
            return NotImplemented
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)

    __hash__ = None  # type: ignore[assignment] # arrays can change

    @property
    def names(self) -> list[str]:
        """Name the operation of every span."""
        return [OPERATIONS[code].name for code in self.operation.tolist()]

    def high_water(self) -> dict[TierName, float]:
        """Give the most bytes in use at once on every tier. [B]"""
        peaks: dict[TierName, float] = {}
        for tier in TIERS:
            uses = [use for use in self.memory if use.tier == tier]
            times = np.unique(np.concatenate([use.time for use in uses])) if uses else np.zeros(1)
            total = sum((use.at(times) for use in uses), np.zeros(len(times)))
            peaks[tier] = float(total.max())
        return peaks


def from_simulation(
    simulation: Simulation, placed: Placed, metadata: Mapping[str, str] | None = None
) -> Trace:
    """Turn a simulation into a predicted trace."""
    schedule = simulation.schedule
    numbers = np.array([one.number for one in schedule.window.passes], dtype=np.int32)
    about = {"kind": "predicted", "model": placed.model.name, "runtime": placed.runtime.name}
    return Trace(
        operation=schedule.operation,
        lane=schedule.lane,
        start=simulation.start,
        end=simulation.end,
        pass_number=numbers[schedule.pass_index],
        layer=schedule.layer,
        group=schedule.group,
        bytes=schedule.bytes,
        flops=schedule.flops,
        kernels=schedule.kernels,
        steps=schedule.steps,
        blocks=schedule.blocks,
        memory=memory_in_use(simulation, placed),
        metadata=about | dict(metadata or {}),
    )


def to_chrome(trace: Trace) -> dict[str, Any]:
    """Write a trace as Chrome's trace events: metadata, complete events, counters in GiB; times in us."""
    return _chrome(trace.metadata, _events(trace, _PROCESS))


def pair_to_chrome(predicted: Trace, measured: Trace) -> dict[str, Any]:
    """Write two traces as the processes "predicted" and "measured", their times as they are."""
    events: list[dict[str, Any]] = []
    metadata: dict[str, str] = {}
    for process, (name, trace) in enumerate(
        (("predicted", predicted), ("measured", measured)), start=_PROCESS
    ):
        events.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}})
        events += _events(trace, process)
        metadata |= {f"{name}.{key}": value for key, value in trace.metadata.items()}
    return _chrome(metadata, events)


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace to a file; the same trace gives the same bytes."""
    _write(to_chrome(trace), path)


def write_pair(predicted: Trace, measured: Trace, path: str | Path) -> None:
    """Write two traces to one file, for looking at; `read_trace` refuses it, as a trace has one process."""
    _write(pair_to_chrome(predicted, measured), path)


def _write(data: dict[str, Any], path: str | Path) -> None:
    text = json.dumps(data, separators=(",", ":"), sort_keys=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _chrome(metadata: dict[str, str], events: list[dict[str, Any]]) -> dict[str, Any]:
    return {"displayTimeUnit": "ms", "otherData": metadata, "traceEvents": events}


def _events(trace: Trace, process: int) -> list[dict[str, Any]]:
    return [*_lane_names(process), *_spans(trace, process), *_counters(trace, process)]


def _nanoseconds(seconds: FloatArray) -> FloatArray:
    return np.asarray(np.round(seconds * _NS_PER_S))


def _lane_names(process: int) -> list[dict[str, Any]]:
    events = []
    for index, lane in enumerate(LANES):
        for kind, args in (("thread_name", {"name": lane}), ("thread_sort_index", {"sort_index": index})):
            events.append({"ph": "M", "pid": process, "tid": index + 1, "name": kind, "args": args})
    return events


def _spans(trace: Trace, process: int) -> list[dict[str, Any]]:
    start, end = _nanoseconds(trace.start), _nanoseconds(trace.end)
    columns = (
        trace.names,
        (trace.lane + 1).tolist(),
        (start / _NS_PER_US).tolist(),
        ((end - start) / _NS_PER_US).tolist(),
        trace.pass_number.tolist(),
        trace.layer.tolist(),
        trace.group.tolist(),
        *(getattr(trace, name).tolist() for name in WORK),
    )
    return [
        {
            "ph": "X",
            "pid": process,
            "tid": lane,
            "name": name,
            "ts": ts,
            "dur": duration,
            "args": {"pass": number, "layer": layer, "group": group, **dict(zip(WORK, work, strict=True))},
        }
        for name, lane, ts, duration, number, layer, group, *work in zip(*columns, strict=True)
    ]


def _counters(trace: Trace, process: int) -> list[dict[str, Any]]:
    return [
        {"ph": "C", "pid": process, "name": f"{use.tier}: {use.name}", "ts": ts, "args": {"GiB": size}}
        for use in trace.memory
        for ts, size in zip(
            (_nanoseconds(use.time) / _NS_PER_US).tolist(), (use.bytes / GIB).tolist(), strict=True
        )
    ]


def read_trace(path: str | Path) -> Trace:
    """Read a trace that `write_trace` wrote.

    Raises:
        InputError: the file cannot be read or is no such trace; it names the event at fault.
    """
    data = read_json(Path(path))
    events, metadata = data.get("traceEvents"), data.get("otherData", {})
    if not isinstance(events, list):
        raise InputError(f"{path}: traceEvents: expected a list of events; write it with `planner simulate`")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: otherData: expected texts by name")
    _require_one_process(events, path)
    rows, counts = [], []
    for number, event in enumerate(events):
        try:
            kind = event["ph"]
            if kind == "X":
                rows.append(read_span(event))
            elif kind == "C":
                counts.append(read_counter(event))
            elif kind != "M":
                raise ValueError(f"unknown kind {kind!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}: traceEvents.{number}: {reason}") from None
    return _gather(rows, counts, metadata)


def _require_one_process(events: list[Any], path: str | Path) -> None:
    numbers = {event["pid"] for event in events if isinstance(event, dict) and type(event.get("pid")) is int}
    if len(numbers) > 1:
        raise InputError(
            f"{path}: traceEvents: {len(numbers)} processes, and a trace has one; give the files that these"
            " were put together from"
        )


def _gather(
    rows: list[tuple[float, ...]], counts: list[tuple[str, float, float]], metadata: dict[str, str]
) -> Trace:
    columns: npt.NDArray[np.float64] = np.array(rows, dtype=float).reshape(len(rows), 7 + len(WORK)).T
    start = np.round(columns[2] * _NS_PER_US)
    took = np.round(columns[3] * _NS_PER_US)
    series: dict[str, list[tuple[float, float]]] = {}
    for name, ts, size in counts:
        series.setdefault(name, []).append((ts, size))
    memory = []
    for name, points in series.items():
        tier, _, use = name.partition(": ")
        time, size = np.array(points).T
        memory.append(MemoryUse(_tier(tier), use, np.round(time * _NS_PER_US) / _NS_PER_S, size * GIB))
    places = columns[4:7].astype(np.int32)
    return Trace(
        operation=columns[0].astype(np.int8),
        lane=columns[1].astype(np.int8),
        start=start / _NS_PER_S,
        end=(start + took) / _NS_PER_S,
        pass_number=places[0],
        layer=places[1],
        group=places[2],
        **dict(zip(WORK, columns[7:], strict=True)),
        memory=tuple(memory),
        metadata=metadata,
    )


def _tier(name: str) -> TierName:
    return next(tier for tier in TIERS if tier == name)
