"""Fit the constants of the T4 machine, and of the engines on it, to the published prompt-512 runs.

    python -m tools.fit_engines

Every constant is physical: a rate that a microbenchmark would measure, or seconds that an engine's own code
takes. Rows marked ``fitted`` in ``planner/published`` and the seconds of the runtime breakdown determine
them, in relative errors. The table gives 95 % confidence intervals from the Jacobian at the optimum; the last
column is how much of a constant's estimate the data determine beside a loose prior (within a factor of about
two of the start). Constants that no row depends on are not fitted; the profile names where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.engine_rows import play_row
from planner.measurements import Measurement, shipped_breakdowns, shipped_suites
from planner.score import component_seconds
from simulator.hardware import HardwareProfile
from simulator.profiles import load_profile, override_profile
from simulator.runtime import Runtime, load_runtime

Floats = NDArray[np.float64]

MACHINE = "t4-16"
_ROW, _PART, _PRIOR = 0.02, 0.05, 0.7  # scale of relative residuals: rows, parts of a breakdown, priors
#: Reading weights in prefill: its components sum to more than the total, see docs/accuracy.md.
_LEFT_OUT = {("prefill", "weight_read")}


@dataclass(frozen=True)
class Constant:
    """A constant: keys of the profile that share its value, or one key of an engine's overheads."""

    name: str
    start: float
    unit: str
    keys: tuple[str, ...] = ()
    engine: str | None = None


CONSTANTS = (
    Constant("GEMM rate", 20.8e12, "FLOP/s", ("engines.gpu.matmul.float16.flops",)),
    Constant("GPU memory bandwidth", 287e9, "B/s", ("engines.gpu.matmul.float16.bandwidth",)),
    Constant(
        "dequantisation",
        21.5e9,
        "B/s",
        ("engines.gpu.conversion.dequantize", "engines.gpu.conversion.quantize"),
    ),
    Constant(
        "pageable copies", 4.94e9, "B/s", ("links.h2d.pageable.bandwidth", "links.d2h.pageable.bandwidth")
    ),
    Constant("staging by the host", 9.9e9, "B/s", ("links.h2d.staging", "links.d2h.staging")),
    Constant("disk read", 2.87e9, "B/s", ("links.disk_read.bandwidth",)),
    Constant("disk read, one mapped file", 1.94e9, "B/s", ("links.disk_read.stream",)),
    Constant("disk write into the page cache", 4.6e9, "B/s", ("links.disk_write.cached",)),
    Constant("CPU attention", 33.6e9, "B/s", ("engines.cpu.attention.decode.bandwidth",)),
    Constant("float32 copy of cache", 21e9, "B/s", ("engines.cpu.conversion.expand",)),
    Constant("small mapped write", 2.25e-3, "s", ("write_cache",), "flexgen"),
    Constant("link share", 0.85, "", ("link_share",), "zero-inference"),
    Constant("fetch of a matrix", 0.63e-3, "s", ("load_weights",), "zero-inference"),
    Constant("interpreter per layer", 0.2e-3, "s", ("cell",), "accelerate"),
)


def machine_with(values: Floats) -> HardwareProfile:
    """Put constants into the machine's profile."""
    changes = [
        f"{key}={value:.12g} {constant.unit}"
        for constant, value in zip(CONSTANTS, values, strict=True)
        if constant.engine is None
        for key in constant.keys
    ]
    return override_profile(load_profile(MACHINE), tuple(changes))


@cache
def _engine(name: str) -> Runtime:
    return load_runtime(name)


def engine_with(name: str, values: Floats) -> Runtime:
    """Put constants into an engine's description."""
    runtime = _engine(name)
    own = {
        constant.keys[0]: float(value)
        for constant, value in zip(CONSTANTS, values, strict=True)
        if constant.engine == name
    }
    return runtime.model_copy(update={"overheads": runtime.overheads.model_copy(update=own)})


def residuals(
    values: Floats, rows: list[Measurement], by_id: dict[str, Measurement]
) -> list[tuple[str, float]]:
    """List log(predicted / measured) of every row and of every part of the breakdown."""
    machine = machine_with(values)
    found = []
    for row in rows:
        prediction, _ = play_row(row, machine, engine_with(row.system, values))
        found.append((row.id, float(np.log(prediction.throughput_tok_s / row.throughput_tok_s))))
    played: dict[str, dict[str, dict[str, float]]] = {}
    for stage in shipped_breakdowns():
        row = by_id[stage.row]
        if row.id not in played:
            seconds = component_seconds(play_row(row, machine, engine_with(row.system, values))[1])
            played[row.id] = {name: dict(parts) for name, parts in seconds.items()}
        for part, predicted in played[row.id][stage.stage].items():
            measured = getattr(stage, f"{part}_s")
            if measured and (stage.stage, part) not in _LEFT_OUT:
                found.append((f"{stage.stage} {part}", float(np.log(predicted / measured))))
    return found


def main() -> None:
    """Fit, and print constants with their intervals and the errors of the rows."""
    by_id = {row.id: row for suite in shipped_suites().values() for row in suite}
    rows = [row for row in by_id.values() if row.fitted and row.hardware == MACHINE]
    start = np.array([constant.start for constant in CONSTANTS])

    def scaled(logs: Floats) -> Floats:
        named = residuals(start * np.exp(logs - 1.0), rows, by_id)
        scale = [_ROW if name in by_id else _PART for name, _ in named]
        data = np.array([error for _, error in named]) / np.array(scale)
        return np.concatenate([data, (logs - 1.0) / _PRIOR])

    fit = least_squares(scaled, np.ones(len(start)), loss="soft_l1", diff_step=2e-3, verbose=1)
    values = start * np.exp(fit.x - 1.0)
    information = fit.jac.T @ fit.jac
    width = 1.96 * np.sqrt(np.diag(np.linalg.inv(information)))
    determined = 1.0 - (width / 1.96 / _PRIOR) ** 2
    table = pd.DataFrame(
        {
            "constant": [constant.name for constant in CONSTANTS],
            "value": [f"{value:.4g} {c.unit}" for value, c in zip(values, CONSTANTS, strict=True)],
            "95 %": [f"+- {100 * each:.0f} %" for each in width],
            "determined": [f"{100 * each:.0f} %" for each in determined],
        }
    )
    print(table.to_string(index=False))
    errors = pd.DataFrame(residuals(values, rows, by_id), columns=["row", "error"])
    errors["error"] = errors["error"].map(lambda error: f"{100 * np.expm1(error):+.1f} %")
    print(errors.to_string(index=False))


if __name__ == "__main__":
    main()
