"""Correcting a profile by what real runs took: the level of every operation, as far as the traces are surer.

A trace of a run says how much longer each operation took than the profile expects, what runs beside it
counted in. Each run is one opinion. It and the profile's own are weighed by their variances, and the interval
becomes that of both together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from executor.fit import NORMAL
from executor.observe import Kind, Run, busy_beside, tasks, tasks_of
from executor.profile_of import DIGITS, path_of, text
from simulator.calibration import Calibration, Operations
from simulator.cost import Rates
from simulator.errors import InputError
from simulator.hardware import LANES, DType, HardwareProfile
from simulator.operations import OP, OPERATIONS
from simulator.policy import FloatArray
from simulator.profiles import decode_profile
from simulator.runtime import load_runtime
from simulator.trace import Trace

_WIDE = 1.645  # standard errors in half of the central 90 %
_LEAST = 0.01  # a spread below this is not believed: runs of a day have more in common than runs of a year
_RATES, _TIMES = ("flops", "bandwidth"), ("latency", "piece")


@dataclass(frozen=True)
class Correction:
    """How an operation's times change.

    Attributes:
        runs: that say something of it.
        measured: over expected, the mean over runs.
        factor: by which its times are multiplied.
        sure: by which its intervals are.
    """

    runs: int
    measured: float
    factor: float
    sure: float


def runs_of(traces: Mapping[str, Trace]) -> list[Run]:
    """Take the runs that traces are of.

    Args:
        traces: by their path.

    Raises:
        InputError: one is no measured trace of this executor, or its texts were not all of the plan's length.
    """
    found = []
    for path, trace in traces.items():
        about = trace.metadata
        if about.get("kind") != "measured" or "dtype" not in about:
            raise InputError(f"{path}: not a measured trace; give one that `planner run --trace` wrote")
        if about.get("full_length") != "yes":
            raise InputError(
                f"{path}: its texts were shorter than the plan's, so its work is not known; give a trace of "
                "prompts of the plan's full length, none of which ends early"
            )
        found.append(Run(trace, about["dtype"]))
    return found


def refine(profile: HardwareProfile, runs: Sequence[Run], names: Sequence[str]) -> HardwareProfile:
    """Correct the measured operations of a profile.

    Args:
        profile: a calibrated one.
        runs: of the same machine.
        names: of their traces, to be kept in the profile.

    Raises:
        InputError: the profile holds no measured operations.
    """
    if profile.operations is None or profile.calibration is None:
        raise InputError(f"{profile.name}: not a calibrated profile; make one with `planner calibrate --out`")
    found = corrections(profile, runs)
    data = profile.model_dump(mode="json", exclude_none=True)
    intervals = data["calibration"]["intervals"]
    for kind, correction in found.items():
        (name, dtype), base = kind, f"{path_of(kind)}."
        held = profile.operations.kernels.get(_dtype(dtype), {}) if dtype else profile.operations.transfers
        place = data["operations"]["kernels"][dtype] if dtype else data["operations"]["transfers"]
        fitted = {each.removeprefix(base) for each in intervals if each.startswith(base)}
        place[name] |= _scaled(held[name], correction.factor, fitted, _peaks(profile, name, dtype))
        for path, interval in intervals.items():
            if path.startswith(base):
                interval["low"] = round(interval["low"] * correction.sure, DIGITS)
                interval["high"] = round(interval["high"] * correction.sure, DIGITS)
    data["calibration"]["refined"] = [*profile.calibration.refined, *names]
    return decode_profile(data, "calibrate")


def corrections(profile: HardwareProfile, runs: Sequence[Run]) -> dict[Kind, Correction]:
    """Work out how the times of each operation change."""
    assert profile.operations is not None
    assert profile.calibration is not None
    found = {}
    for kind in _kinds(profile.operations):
        opinions = [value for run in runs for value in _opinion(profile, run, kind)]
        if not opinions:
            continue
        prior = _variance(profile.calibration, kind)
        own = (profile.calibration.noise / _WIDE) ** 2
        between = float(np.var(opinions, ddof=1)) if len(opinions) > 1 else own
        variance = max(between, _LEAST**2) / len(opinions)
        weight = prior / (prior + variance)
        mean = float(np.mean(opinions))
        found[kind] = Correction(
            len(opinions), math.exp(mean), math.exp(weight * mean), math.sqrt(variance / (prior + variance))
        )
    return found


def _kinds(operations: Operations) -> Iterator[Kind]:
    for dtype, kernels in operations.kernels.items():
        yield from ((name, dtype) for name in kernels)
    yield from ((name, "") for name in operations.transfers)


def _variance(calibration: Calibration, kind: Kind) -> float:
    """Give the variance of the level of an operation's times: that of its surest rate. [of logarithms]"""
    path = f"{path_of(kind)}."
    widths = [
        (one.high - one.low) / 2
        for name, one in calibration.intervals.items()
        if name.startswith(path) and name.rpartition(".")[2] in _RATES
    ]
    width = min(widths) if widths else 1.0
    return max((width / NORMAL) ** 2, _LEAST**2)


def _opinion(profile: HardwareProfile, run: Run, kind: Kind) -> Iterator[float]:
    """Give the logarithm of measured over expected time of an operation in a run, if it occurs."""
    name = kind[0]
    operation, seen = OPERATIONS[OP[name]], tasks(run, kind)
    rates = Rates(profile, load_runtime("reference"), _dtype(run.dtype))
    if len(seen) == 0 or rates.hands_over(operation):
        return
    alone = rates.seconds(operation, *seen.work)
    expected = alone * slower(profile, run.trace, tasks_of(run, kind))
    # The median over tasks of a size, so that a stall does not count for all; large tasks count for more.
    sizes, place = np.unique(np.round(alone, 9), return_inverse=True)
    off = seen.seconds / expected
    ratio = [float(np.median(off[place == number])) for number in range(len(sizes))]
    weight = np.bincount(place, alone)
    yield float(np.log(np.average(ratio, weights=weight)))


def slower(profile: HardwareProfile, trace: Trace, chosen: npt.NDArray[np.intp]) -> FloatArray:
    """Give how many times as long tasks of a lane take for what runs beside them, by what lanes share."""
    beside = busy_beside(trace)[chosen]
    lane = LANES[trace.lane[chosen[0]]]
    factor = np.ones(len(chosen))
    for capacity in profile.capacities.values():
        own = capacity.lanes.get(lane, 0.0)
        if capacity.share is None or not own:
            continue
        for index, other in enumerate(LANES):
            theirs = capacity.lanes.get(other, 0.0) if other != lane else 0.0
            if own + theirs > capacity.share:
                left = max(capacity.share / 2, capacity.share - theirs) if theirs else capacity.share
                factor += beside[:, index] * max(0.0, own / left - 1.0)
    return factor


def _scaled(held: Any, factor: float, fitted: set[str], peaks: Mapping[str, float]) -> dict[str, Any]:
    """Write the fitted constants of times that are multiplied; no rate exceeds its peak."""
    rates = {name: min(getattr(held, name) / factor, peaks[name]) for name in _RATES if name in fitted}
    times = {name: getattr(held, name) * factor for name in _TIMES if name in fitted}
    return {name: text(name, value) for name, value in (rates | times).items()}


def _peaks(profile: HardwareProfile, name: str, dtype: str) -> dict[str, float]:
    """Give the rates that an operation cannot exceed."""
    lane = OPERATIONS[OP[name]].lane
    if lane not in ("gpu", "cpu"):
        return {"bandwidth": profile.links.limit(lane)}
    peak = profile.engines["cpu" if lane == "cpu" else "gpu"].peak
    flops = peak.flops[_dtype(dtype)] if dtype else math.inf
    return {"flops": flops, "bandwidth": peak.memory_bandwidth}


def _dtype(name: str) -> DType:
    return name  # type: ignore[return-value] # a key of the profile, or of a trace of this executor
