"""Fits of operations' times to what was measured: robust, in logarithms, with intervals. No torch.

The formulas are those of the simulator; a fit only finds their constants. A constant that the measurements do
not determine is left at the value without effect, where there is one, and refused where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from executor.observe import Observations
from simulator.calibration import Interval, Residual
from simulator.cost import CopyRate
from simulator.errors import InputError
from simulator.hardware import Roofline
from simulator.policy import FloatArray

Constants = Mapping[str, float]
Formula = Callable[[Observations, Constants], FloatArray]

_LOOSE, _TIGHT = 0.3, 0.05  # scales of the loss, in logarithms: from all rows to the bulk of them
_FARTHEST = 0.7  # of a residual that counts in an interval: single stalls say nothing of the constants
_UNSURE = 1.0  # standard error of a constant's logarithm above which it counts as not determined
NORMAL = 1.96  # standard errors of an interval that holds in 19 cases of 20
_LEAST_RUNS = 2

#: name: lowest, highest
_LIMITS = {
    "flops": (1e8, 1e16),
    "bandwidth": (1e6, 1e14),
    "latency": (1e-8, 1.0),
    "sharpness": (1.001, 16.0),
    "grain": (1.0, 1e8),
    "piece": (1e-9, 0.1),
}


@dataclass(frozen=True)
class Form:
    """What is fitted to an operation.

    Attributes:
        formula: seconds of observations by constants.
        names: of the constants.
        neutral: constants that can be left out, and the values without effect.
        fixed: constants that are not fitted.
    """

    formula: Formula
    names: tuple[str, ...]
    neutral: Mapping[str, float]
    fixed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """Constants with intervals, and how well they describe what was measured."""

    constants: dict[str, float]
    intervals: dict[str, Interval]
    residual: Residual


def kernel_seconds(seen: Observations, constants: Constants) -> FloatArray:
    """Give the time of kernels by the profile's own formula. [s]"""
    values: dict[str, Any] = dict.fromkeys(Roofline.model_fields) | dict(constants)
    line = Roofline.model_construct(None, **values)  # numbers without units
    depth = np.divide(seen.steps, seen.kernels, out=np.zeros(len(seen)), where=seen.kernels > 0)
    return line.seconds(seen.flops, seen.bytes, seen.kernels, depth, seen.blocks)


def transfer_seconds(seen: Observations, constants: Constants) -> FloatArray:
    """Give the time of copies and conversions by the cost model's own formula. [s]"""
    rate = CopyRate(constants["bandwidth"], constants.get("latency", 0.0), constants.get("piece", 0.0))
    return rate.seconds(seen.bytes, seen.kernels, seen.blocks)


MATMUL = Form(
    kernel_seconds,
    ("flops", "bandwidth", "latency", "sharpness", "grain"),
    {"latency": 0.0, "sharpness": 1.0, "grain": 0.0},
)
ATTENTION = Form(  # softmax and products take turns, so that times add up
    kernel_seconds,
    ("flops", "bandwidth", "latency", "grain"),
    {"flops": 1e15, "latency": 0.0, "grain": 0.0},
    {"sharpness": 1.0},
)
LOOKUP = Form(kernel_seconds, ("bandwidth", "latency"), {"latency": 0.0}, {"sharpness": 1.0, "flops": 1e15})
TRANSFER = Form(transfer_seconds, ("bandwidth", "latency", "piece"), {"latency": 0.0, "piece": 0.0})


def fit(name: str, form: Form, seen: Observations) -> Fit:
    """Find the constants of an operation.

    Args:
        name: of the operation, for messages.
        form: what is fitted.
        seen: kinds of tasks.

    Raises:
        InputError: what was measured does not determine a constant that cannot be left out.
    """
    if len(np.unique(seen.run)) < _LEAST_RUNS or len(seen) <= len(form.names):
        raise InputError(
            f"calibrate: {name}: {len(seen)} kinds of tasks in {len(np.unique(seen.run))} runs do not "
            f"determine {', '.join(form.names)}; give more traces, or measure with `planner calibrate`"
        )
    fixed = dict(form.fixed)
    names = [one for one in form.names if one != "piece" or seen.blocks.any()]
    while True:
        values, errors, residuals = _solve(form, seen, names, fixed)
        unsure = [one for one, error in zip(names, errors, strict=True) if error > _UNSURE]
        if not unsure:
            break
        neutral = dict(form.neutral)
        if "piece" in names:  # of many small pieces the bytes may not matter
            neutral["bandwidth"] = _LIMITS["bandwidth"][1]
        dropped = next((one for one in reversed(form.names) if one in unsure and one in neutral), None)
        if dropped is None:
            raise InputError(
                f"calibrate: {name}: the measurements do not determine its {unsure[0]}; measure longer with "
                "--thorough"
            )
        names = [one for one in names if one != dropped]
        fixed[dropped] = neutral[dropped]
    spread = float(np.median(np.abs(np.expm1(residuals))))
    intervals = {
        one: Interval(
            low=-float(1 - np.exp(-NORMAL * error)), high=float(np.expm1(NORMAL * error)), spread=spread
        )
        for one, error in zip(names, errors, strict=True)
    }
    wrong = np.abs(np.expm1(residuals))
    residual = Residual(tasks=len(seen), median=float(np.median(wrong)), ninth=float(np.quantile(wrong, 0.9)))
    return Fit(fixed | dict(zip(names, values.tolist(), strict=True)), intervals, residual)


def _solve(
    form: Form, seen: Observations, names: Sequence[str], fixed: Constants
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fit constants; give them, the standard errors of their logarithms, and log(fitted / measured)."""
    from scipy.optimize import least_squares  # noqa: PLC0415 - heavy, and an optional dependency

    low, high = (np.log([_LIMITS[name][index] for name in names]) for index in (0, 1))
    log_measured = np.log(seen.seconds)

    weight = 1.0 / np.sqrt(seen.times_seen)

    def residuals(logs: FloatArray) -> FloatArray:
        constants = dict(fixed) | dict(zip(names, np.exp(logs).tolist(), strict=True))
        return np.log(form.formula(seen, constants)) - log_measured

    def weighted(logs: FloatArray) -> FloatArray:
        return residuals(logs) * weight

    start = np.clip(np.log([_guess(name, seen) for name in names]), low + 1e-6, high - 1e-6)
    for scale in (_LOOSE, _TIGHT):
        found = least_squares(weighted, start, bounds=(low, high), loss="soft_l1", f_scale=scale)
        start = np.clip(found.x, low + 1e-9, high - 1e-9)
    return np.exp(found.x), _errors(residuals, found.x, seen), residuals(found.x)


def _guess(name: str, seen: Observations) -> float:
    """Guess a constant from the extremes of what was seen."""
    rates = {"flops": seen.flops, "bandwidth": seen.bytes}
    if name in rates:
        return float(max((rates[name] / seen.seconds).max(), 1e8))
    if name == "latency":
        return float(0.3 * (seen.seconds / seen.kernels).min())
    if name == "piece":
        return float(0.3 * (seen.seconds / np.maximum(seen.blocks, 1)).min())
    return {"sharpness": 1.5, "grain": 1e3}[name]


def _errors(
    residuals: Callable[[FloatArray], FloatArray], logs: FloatArray, seen: Observations
) -> FloatArray:
    """Give standard errors of logarithms; residuals of one run go together (a sandwich over runs)."""
    step = 1e-4
    base = residuals(logs)
    columns = [(residuals(logs + step * unit) - base) / step for unit in np.eye(len(logs))]
    slopes = np.stack(columns, axis=1)
    left = np.clip(base, -_FARTHEST, _FARTHEST)
    bread = np.linalg.pinv(slopes.T @ slopes)
    runs = np.unique(seen.run)
    sums = np.stack([(slopes[seen.run == run] * left[seen.run == run, None]).sum(axis=0) for run in runs])
    together = bread @ (sums.T @ sums) @ bread * len(runs) / max(1, len(runs) - 1)
    # Of few runs the sandwich may be too small by chance: no less than the errors of single residuals.
    single = bread * float((left**2).sum() / max(1, len(left) - len(logs)))
    errors = np.sqrt(np.maximum(np.diag(together), np.diag(single)))
    without = np.sqrt((slopes**2).sum(axis=0)) < 1e-6 * np.sqrt(len(left))  # no effect at all
    return np.where(without, np.inf, errors)
