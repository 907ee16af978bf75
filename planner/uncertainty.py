"""How sure a prediction is: a plan's schedule is timed again with every measured constant at its bounds.

A calibrated profile says of each fitted constant how far it may be off, and how much all times vary together
(its noise). Schedules do not depend on rates, so one short schedule is made and played with one constant at
a time set to its lowest and to its highest value. The changes of throughput are joined as those of
independent errors are: the root of the sum of their squares, towards slower and towards faster apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from planner.evaluate import passes_within
from simulator.calibration import Interval
from simulator.cost import Rates
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import LANES, DType, HardwareProfile, LaneName
from simulator.layout import Placed
from simulator.operations import OP, OPERATIONS, Operation
from simulator.policy import FloatArray
from simulator.schedule import Schedule
from simulator.schema import Record
from simulator.simulate import play, predict, rates_of
from simulator.units import one_line, shortened

#: The path of what all rates have in common; it is an interval of every time.
NOISE = "calibration.noise"

_TASKS = 20_000  # of the schedule that is timed: for ratios of throughputs a short one will do
_LITTLE = 1e-3  # an interval as narrow, or a change of a run's time as small, moves no digit that matters
_LEAST = 1e-3  # of a constant: an interval may reach down to nothing, and a rate of nothing takes for ever
_AT_LEAST_ONE = ("sharpness", "split")
_BOUND_BY_MEMORY = ("bandwidth", "dequantize", "quantize", "expand")
_KEPT = 8  # causes that a plan lists
_ROUNDING = 1e-9


class Cause(Record):
    """What one constant's interval does to a plan's throughput.

    Attributes:
        path: of the constant in the profile, or ``NOISE``.
        loss: how many times slower the plan may be because of it, less 1.
        gain: how many times faster, less 1.
    """

    path: str
    loss: float
    gain: float

    @property
    def weight(self) -> float:
        """How much it matters: in squares, as changes are joined."""
        return self.loss**2 + self.gain**2


class Range(Record):
    """Throughput that 19 of 20 runs keep, as far as the profile's intervals say. [tok/s]

    ``by`` lists what it rests on most, the most important first.
    """

    low_tok_s: float
    high_tok_s: float
    by: tuple[Cause, ...]

    def mainly(self, share: float = 0.9, most: int = 3) -> tuple[Cause, ...]:
        """List the causes that make up a share of the range together, but not more than so many."""
        weights = [cause.weight for cause in self.by]
        before = np.cumsum([0.0, *weights])[:-1]
        return self.by[: min(most, int((before < share * sum(weights)).sum()))]


def throughput_range(placed: Placed, hardware: HardwareProfile, predicted: float) -> Range | None:
    """Give the range around a layout's predicted throughput [tok/s]; None for a profile without intervals.

    With S the root of the sum of the squares of all losses and F that of all gains, it goes from
    ``predicted / (1 + S)`` to ``predicted (1 + F)``, so it is never zero and never infinite. A noise of s
    makes times 1 - s to 1 + s of what they were, which alone is ``predicted / (1 + s)`` to
    ``predicted / (1 - s)``.

    Raises:
        InputError: an interval is of a constant that the profile does not have.
    """
    calibration = hardware.calibration
    if calibration is None:
        return None
    noise = calibration.noise
    causes = [Cause(path=NOISE, loss=noise, gain=noise / (1.0 - noise))]
    causes += _Timed.of(placed, hardware).causes(calibration.intervals)
    slower = math.hypot(*(cause.loss for cause in causes))
    faster = math.hypot(*(cause.gain for cause in causes))
    ranked = sorted(causes, key=lambda each: (-each.weight, each.path))
    return Range(
        low_tok_s=predicted / (1.0 + slower),
        high_tok_s=predicted * (1.0 + faster),
        by=tuple(each for each in ranked[:_KEPT] if max(each.loss, each.gain) > _ROUNDING),
    )


@dataclass(frozen=True)
class _Timed:
    """A short schedule of a layout, to be timed on machines that differ in one constant."""

    placed: Placed
    hardware: HardwareProfile
    schedule: Schedule

    @classmethod
    def of(cls, placed: Placed, hardware: HardwareProfile) -> _Timed:
        """Make the schedule."""
        layers, lives = placed.model.num_layers, placed.workload.passes
        passes = passes_within(layers, lives, placed.policy, _TASKS)
        return cls(placed, hardware, generate(placed, passes))

    def causes(self, intervals: dict[str, Interval]) -> Iterator[Cause]:
        """Time the schedule with each constant at its two bounds."""
        for path, interval in intervals.items():
            constant = _Constant(path, self.rates)
            if interval.high - interval.low < _LITTLE or not self._may_matter(constant):
                continue
            bounds = [constant.times(1.0 + interval.low), constant.times(1.0 + interval.high)]
            if all(self._changes_little(constant, machine) for machine in bounds):
                continue
            speeds = [self._speed(machine) for machine in bounds]
            # Which bound is the slow one depends on the constant: rates and latencies are opposites.
            loss, gain = self._usual / min(speeds) - 1.0, max(speeds) / self._usual - 1.0
            yield Cause(path=path, loss=max(0.0, loss), gain=max(0.0, gain))

    @cached_property
    def rates(self) -> Rates:
        """The machine as it was measured."""
        return rates_of(self.placed, self.hardware)

    def _speed(self, machine: HardwareProfile) -> float:
        return predict(play(self.schedule, rates_of(self.placed, machine)), self.placed).throughput_tok_s

    @cached_property
    def _usual(self) -> float:
        return self._speed(self.hardware)

    def _may_matter(self, constant: _Constant) -> bool:
        """Say whether the schedule has tasks that a constant is for; what is not known is timed."""
        match constant.keys:
            case ("operations", "kernels", dtype, name, _):
                return dtype == constant.dtype and self._has(name)
            case ("operations", "transfers", name, _):
                return self._has(name)
            case ("capacities", _, "lanes", lane) if lane in LANES:
                return bool((self.schedule.lane == LANES.index(lane)).any())
        return True

    def _has(self, name: str) -> bool:
        return self.rates.measured is not None and name in OP and bool(self.schedule.where(name).any())

    def _changes_little(self, constant: _Constant, machine: HardwareProfile) -> bool:
        """Say whether an operation's tasks together change too little, as then a run does not either.

        That is far quicker to find out than to play, and true of most constants.
        """
        if constant.operation is None:
            return False
        window, tasks = self.schedule.window, self.schedule.where(constant.operation.name)
        work = [column[tasks] for column in self.schedule.work]
        before, after = (
            rates.seconds(constant.operation, *work) for rates in (self.rates, rates_of(self.placed, machine))
        )
        # A pass that is played but not counted may still delay one that is.
        weights = np.maximum(1.0, [one.weight for one in window.passes])[self.schedule.pass_index[tasks]]
        total = window.sequences * self.placed.workload.counted_tokens / self._usual
        change: FloatArray = weights * np.abs(after - before)
        return bool(change.sum() < _LITTLE * total)


@dataclass(frozen=True)
class _Constant:
    """A constant of a machine, by its path in the profile."""

    path: str
    rates: Rates

    @property
    def keys(self) -> tuple[str, ...]:
        """The path, key by key."""
        return tuple(self.path.split("."))

    @property
    def operation(self) -> Operation | None:
        """The operation that was measured; None for engines, links and capacities."""
        names = self.keys[2:] if self.keys[0] == "operations" else ()
        return next((OPERATIONS[OP[name]] for name in names if name in OP), None)

    @property
    def lane(self) -> LaneName | None:
        """The lane whose work it times, if it is one's."""
        if self.operation is not None:
            return self.operation.lane
        part, name = (*self.keys, "")[:2]
        return name if part in ("engines", "links") and name in LANES else None

    @property
    def dtype(self) -> DType:
        """The number type that the kernel's engine computes the model in."""
        engine = self.rates.hardware.engines["cpu" if self.lane == "cpu" else "gpu"]
        return engine.compute_dtype(self.rates.dtype)

    @property
    def peak(self) -> float:
        """The datasheet's limit on an achieved rate; infinite for what has none."""
        hardware, lane, field = self.rates.hardware, self.lane, self.keys[-1]
        if lane in ("gpu", "cpu"):
            limits = hardware.engines[lane].peak
            if field == "flops":
                return limits.flops.get(self.dtype, math.inf)
            return limits.memory_bandwidth if field in _BOUND_BY_MEMORY else math.inf
        if lane is None or field != "bandwidth":
            return math.inf
        return hardware.links.limit(lane)

    def times(self, factor: float) -> HardwareProfile:
        """Give the machine with the constant so many times as large, but no rate above its peak.

        Raises:
            InputError: the profile does not have the constant.
        """

        def changed(value: float) -> float:
            moved = max(factor, _LEAST) * value
            if self.keys[-1] in _AT_LEAST_ONE:
                return max(1.0, moved)
            return min(moved, max(self.peak, value))

        try:
            return cast(HardwareProfile, _changed(self.rates.hardware, self.keys, changed))
        except (KeyError, AttributeError, TypeError):
            shown = shortened(self.path)
            raise InputError(
                one_line(f"hardware.calibration.intervals: the profile has no number at {shown}; drop it")
            ) from None


def _changed(node: Any, keys: tuple[str, ...], changed: Callable[[float], float]) -> Any:
    """Give nested records and dictionaries with one number changed; one that is left out stays out."""
    if not keys:
        return None if node is None else changed(node)
    if isinstance(node, dict):
        return node | {keys[0]: _changed(node[keys[0]], keys[1:], changed)}
    return node.model_copy(update={keys[0]: _changed(getattr(node, keys[0]), keys[1:], changed)})
