"""Fit the kernel constants of a hardware profile to tables of measured kernels.

    python -m tools.fit_kernels h100_gemm_perf.csv.gz h100_context_attention_perf.csv.gz
    python -m tools.fit_kernels l40s_gemm_perf.csv.gz --cache "96 MiB"

The tables are those of NVIDIA's aiconfigurator: one measured shape a row, latency in milliseconds. What each
constant means stands with ``simulator.kernels.Roofline``. The four of the plain roofline are always fitted;
of the others those stay that the table asks for: without them its median error would be larger.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from planner.validate_kernels import KernelTable, kernel_seconds, read_kernels
from simulator.errors import InputError
from simulator.hardware import Roofline
from simulator.kernels import Floats, KernelWork
from simulator.units import BYTE_RATE, BYTES, DURATION, FLOP_RATE

_LONG = 1e-3  # kernels of this many seconds and more are reported apart: offloading runs large ones
_LOSSES = (("soft_l1", 0.1), ("soft_l1", 0.03), ("cauchy", 0.05))  # from all rows to the bulk of them
_WORTH = 1.02  # a constant without which the median error grows by less than this is left out
_PLAIN = ("flops", "bandwidth", "latency", "sharpness")
_FURTHER = {"gemm": ("tail", "split"), "prefill": ("tail", "grain"), "decode": ("tail", "split", "grain")}
_KEY = {"gemm": "bfloat16", "prefill": "prefill", "decode": "decode"}
_LIMITS = {  # name: (start, lowest, highest)
    "flops": (1e14, 1e11, 1e16),
    "bandwidth": (1e12, 1e10, 1e14),
    "latency": (5e-6, 1e-7, 1e-3),
    "sharpness": (2.0, 1.001, 16.0),
    "tail": (1e-9, 1e-13, 1e-6),
    "split": (2000.0, 16.0, 1e6),
    "grain": (3e4, 1.0, 1e7),
    "speedup": (2.0, 1.01, 20.0),  # of cached over bandwidth
}


@dataclass(frozen=True)
class Fit:
    """Fitted constants, and |predicted / measured - 1| of every row."""

    constants: dict[str, float]
    error: Floats

    @property
    def median(self) -> float:
        """The error that half of the rows keep."""
        return float(np.median(self.error))


def seconds(work: KernelWork, constants: Mapping[str, float], cache: float = 0.0) -> Floats:
    """Give the time of every row by the profile's own formula [s]."""
    values: dict[str, Any] = dict.fromkeys(Roofline.model_fields) | dict(constants)
    line = Roofline.model_construct(None, **values)  # numbers without units
    return kernel_seconds(work, line, cache)


def take(work: KernelWork, rows: NDArray[np.intp]) -> KernelWork:
    """Give the work of some rows."""
    operands = tuple((moved[rows], footprint[rows]) for moved, footprint in work.operands)
    blocks = np.broadcast_to(work.blocks, work.flops.shape)[rows]
    return KernelWork(work.flops[rows], operands, work.depth[rows], blocks)


def fit(work: KernelWork, measured: Floats, names: Iterable[str], cache: float = 0.0) -> Fit:
    """Fit constants to log times, rows far off counting little; of the losses keep the best median."""
    from scipy.optimize import least_squares  # noqa: PLC0415 - heavy, and an optional dependency

    names = [*_PLAIN, *("speedup" if name == "cached" else name for name in names)]
    start, low, high = (np.log([_LIMITS[name][i] for name in names]) for i in range(3))

    def constants(logs: Floats) -> dict[str, float]:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        if "speedup" in values:
            values["cached"] = values.pop("speedup") * values["bandwidth"]
        return values

    def residuals(logs: Floats) -> Floats:
        return np.log(seconds(work, constants(logs), cache) / measured)

    fits = []
    for loss, scale in _LOSSES:  # each starts where the one before ended
        start = least_squares(residuals, start, bounds=(low, high), loss=loss, f_scale=scale).x
        fits.append(Fit(constants(start), np.abs(np.expm1(residuals(start)))))
    return min(fits, key=lambda result: result.median)


def choose(kind: str, work: KernelWork, measured: Floats, cache: float = 0.0) -> tuple[Fit, tuple[str, ...]]:
    """Fit all constants of a kind of kernel, and leave out one after another that hardly helps."""
    names = (*_FURTHER[kind], *(["cached"] if cache else []))
    best = fit(work, measured, names, cache)
    for group in ({"cached"}, {"grain"}, {"split"}, {"tail", "split"}):
        fewer = tuple(name for name in names if name not in group)
        if fewer != names:
            without = fit(work, measured, fewer, cache)
            if without.median <= best.median * _WORTH:
                best, names = without, fewer
    return best, names


def cross_validated(
    work: KernelWork, measured: Floats, names: tuple[str, ...], cache: float = 0.0
) -> list[float]:
    """Fit one half of the shapes, drawn by chance, and give the other half's median error; both ways."""
    order = np.random.default_rng(0).permutation(len(measured))
    halves = order[::2], order[1::2]
    errors = []
    for seen, unseen in (halves, halves[::-1]):
        constants = fit(take(work, seen), measured[seen], names, cache).constants
        predicted = seconds(take(work, unseen), constants, cache)
        errors.append(float(np.median(np.abs(predicted / measured[unseen] - 1.0))))
    return errors


def snippet(key: str, constants: Mapping[str, float]) -> str:
    """Write the constants as the line of a profile."""
    show: dict[str, Callable[[float], str]] = {
        "flops": FLOP_RATE.format,
        "bandwidth": BYTE_RATE.format,
        "latency": DURATION.format,
        "tail": lambda value: f"{value * 1e9:.3g} ns",
        "grain": lambda value: f"{value / 1e3:.3g} kB",
        "cached": BYTE_RATE.format,
    }
    order = [name for name in Roofline.model_fields if name in constants]
    texts = [f"{name}: {show.get(name, '{:g}'.format)(float(f'{constants[name]:.3g}'))}" for name in order]
    return f"{key}: {{{', '.join(texts)}, source: fit}}"


def report(table: KernelTable, cache: float) -> Iterable[str]:
    """Fit a table and write how well, and the line for the profile."""
    work, long = table.work(), table.seconds >= _LONG
    result, names = choose(table.kind, work, table.seconds, cache)
    yield f"  median error {result.median:.1%}, nine rows in ten below {np.quantile(result.error, 0.9):.1%}"
    if long.any():
        yield f"  {long.sum()} kernels of 1 ms and more: median error {np.median(result.error[long]):.1%}"
    if len(work.flops) > 1:
        halves = " and ".join(f"{error:.1%}" for error in cross_validated(work, table.seconds, names, cache))
        yield f"  fitted to one half of the rows, the other half: {halves}"
    yield f"  {snippet(_KEY[table.kind], result.constants)}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cache", default="0 B", help="Second-level cache that may hold operands between repetitions.")
def main(tables: tuple[Path, ...], cache: str) -> None:
    """Fit every table and print constants, errors and profile lines."""
    try:
        size = BYTES.parse(cache)
        for path in tables:
            table = read_kernels(path)
            click.echo(f"{path.name}: {len(table.seconds)} rows")
            for line in report(table, size):
                click.echo(line)
    except (InputError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
