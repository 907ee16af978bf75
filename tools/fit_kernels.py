"""Fit the roofline constants of a hardware profile to a table of measured kernels.

    python tools/fit_kernels.py h100_gemm_perf.csv.gz h100_context_attention_perf.csv.gz
    python tools/fit_kernels.py l40s_gemm_perf.csv --cache "96 MiB"

The tables are those of NVIDIA's aiconfigurator: one measured shape a row, latency in milliseconds. Their
columns tell a GEMM (m, n, k) from attention over a prompt and over cached tokens. Four constants go into the
profile. Two effects of the measurement are fitted beside them and stay out of it:

* *grain*: an attention block (one sequence, one head) never costs less than so many bytes read. Only short
  sequences feel it.
* *cache*: the benchmark repeats a kernel on the same operands, so those that fit the second-level cache never
  leave it. A model that streams its weights has no such luck. Give ``--cache`` to look for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.hardware import Roofline
from simulator.units import BYTE_RATE, BYTES, DURATION, FLOP_RATE

Floats = NDArray[np.float64]

ELEMENT = 2.0  # bytes of a bfloat16 number
GEMM_WEIGHTS = 6.0  # sets of weights through which the GEMM benchmark cycles
QUERY_TILE = 128.0  # prompt tokens that one attention block takes
_EDGE = 8.0  # how sharply the cache ends
_LOSSES = (("soft_l1", 0.1), ("soft_l1", 0.03), ("cauchy", 0.05))  # from all rows to the bulk of them
_LONG = 1e-3  # kernels of this many seconds and more are reported apart: offloading runs large ones
_LIMITS = {  # name: (start, lowest, highest)
    "flops": (1e14, 1e11, 1e16),
    "bandwidth": (1e12, 1e10, 1e14),
    "latency": (5e-6, 1e-7, 1e-3),
    "sharpness": (2.0, 1.001, 60.0),
    "grain": (3e4, 1.0, 1e7),
    "speedup": (2.0, 1.01, 20.0),
}


@dataclass(frozen=True)
class Shapes:
    """What the measured kernels do, one entry a row, and how long they took."""

    kind: str
    flops: Floats  # [FLOP]
    operands: tuple[tuple[Floats, Floats], ...]  # bytes moved, and bytes that must fit a cache to stay there
    blocks: Floats | None  # units that cost at least the grain
    seconds: Floats  # [s]

    def charged(self, constants: dict[str, float], cache: float) -> Floats:
        """Count the bytes that a kernel is charged for: those moved, the grain, less what the cache serves."""
        moved = sum(bytes_ for bytes_, _ in self.operands)
        charged = np.zeros_like(self.seconds)
        for bytes_, footprint in self.operands:
            hot = 1.0 / (1.0 + (footprint / cache) ** _EDGE) if cache else np.zeros_like(bytes_)
            charged = charged + bytes_ * (1.0 - hot + hot / constants.get("speedup", 1.0))
        if self.blocks is None:
            return charged
        return np.asarray(charged * (1.0 + (self.blocks * constants["grain"] / moved) ** 4) ** 0.25)

    def predicted(self, constants: dict[str, float], cache: float) -> Floats:
        """Give the time of every row by the profile's own formula [s]."""
        names = ("flops", "bandwidth", "latency", "sharpness")
        line = Roofline.model_construct(None, **{name: constants[name] for name in names}, source="fit")
        return line.seconds(self.flops, self.charged(constants, cache))

    def plain_error(self, constants: dict[str, float]) -> float:
        """Give the median error of the four constants alone, without grain and cache."""
        moved = sum(bytes_ for bytes_, _ in self.operands)
        bare = Shapes(self.kind, self.flops, ((np.asarray(moved), np.asarray(moved)),), None, self.seconds)
        return float(np.median(np.abs(bare.predicted(constants, 0.0) / self.seconds - 1.0)))


@dataclass(frozen=True)
class Fit:
    """Fitted constants and how well they describe the table."""

    constants: dict[str, float]
    error: Floats  # |predicted / measured - 1|, one entry a row

    @property
    def median(self) -> float:
        """The median of the relative error."""
        return float(np.median(self.error))

    @property
    def worst_tenth(self) -> float:
        """The relative error that nine tenths of the rows keep."""
        return float(np.quantile(self.error, 0.9))


def gemm_shapes(m: Floats, n: Floats, k: Floats, seconds: Floats) -> Shapes:
    """Count the work of ``[m, k] x [k, n]``: 2mnk FLOP, operands and result moved once."""
    weights, rest = ELEMENT * k * n, ELEMENT * (m * k + m * n)
    operands = ((weights, GEMM_WEIGHTS * weights + rest), (rest, weights + rest))
    return Shapes("gemm", 2.0 * m * n * k, operands, None, seconds)


def context_shapes(
    batch: Floats, tokens: Floats, heads: Floats, kv_heads: Floats, head_dim: Floats, seconds: Floats
) -> Shapes:
    """Count causal attention over prompts: every token with itself and those before it; q, k, v, o moved once."""
    pairs = tokens * (tokens + 1.0) / 2.0
    bytes_ = batch * tokens * head_dim * (2.0 * heads + 2.0 * kv_heads) * ELEMENT
    blocks = batch * heads * np.ceil(tokens / QUERY_TILE)
    return Shapes("prefill", 4.0 * heads * head_dim * pairs * batch, ((bytes_, bytes_),), blocks, seconds)


def generation_shapes(
    batch: Floats, cached: Floats, heads: Floats, kv_heads: Floats, head_dim: Floats, seconds: Floats
) -> Shapes:
    """Count attention of one new token: keys and values of the cached and the new token read, q and o moved."""
    tokens = cached + 1.0
    bytes_ = batch * head_dim * (2.0 * kv_heads * tokens + 2.0 * heads) * ELEMENT
    blocks = batch * kv_heads
    return Shapes("decode", 4.0 * heads * head_dim * tokens * batch, ((bytes_, bytes_),), blocks, seconds)


def read_shapes(path: Path, only: Callable[[Any], Any] | None = None) -> Shapes:
    """Read a kernel table.

    Sliding-window attention is left out: its kernels are others, and the models here attend to all tokens.

    Raises:
        InputError: unreadable, or not such a table.
    """
    import pandas as pd  # noqa: PLC0415 - heavy, and an optional dependency

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a kernel table ({' '.join(str(error).split())})") from None
    if "window_size" in table:
        table = table[table["window_size"] == 0]
    table = table if only is None else only(table)
    columns = {str(name): np.asarray(table[name], dtype=float) for name in table.select_dtypes("number")}
    return _shapes_of(path, columns)


def _shapes_of(path: Path, columns: dict[str, Floats]) -> Shapes:
    missing = sorted({"latency"} - set(columns))
    seconds = columns.get("latency", np.zeros(0)) * 1e-3
    attention = ("num_heads", "num_key_value_heads", "head_dim")
    if {"m", "n", "k"} <= set(columns):
        names, count = ("m", "n", "k"), gemm_shapes
    elif {"isl", "step", "batch_size", *attention} <= set(columns):
        prompt = bool(np.all(columns["step"] == 0.0))
        names = ("batch_size", "isl" if prompt else "step", *attention)
        count = context_shapes if prompt else generation_shapes
    else:
        missing = ["m, n, k or batch_size, isl, step, " + ", ".join(attention), *missing]
    if missing or not len(seconds):
        raise InputError(f"{path}: not a kernel table (no {', no '.join(missing) or 'rows'})")
    return count(*(columns[name] for name in names), seconds)


def fit(shapes: Shapes, cache: float = 0.0) -> Fit:
    """Fit the constants to log times, rows far off counting little; of several losses keep the best median."""
    from scipy.optimize import least_squares  # noqa: PLC0415 - heavy, and an optional dependency

    names = ["flops", "bandwidth", "latency", "sharpness"]
    names += ["grain"] * (shapes.blocks is not None) + ["speedup"] * (cache > 0.0)
    start, low, high = (np.log([_LIMITS[name][i] for name in names]) for i in range(3))
    measured = np.log(shapes.seconds)

    def constants(logs: Floats) -> dict[str, float]:
        return dict(zip(names, np.exp(logs).tolist(), strict=True))

    def residuals(logs: Floats) -> Floats:
        return np.log(shapes.predicted(constants(logs), cache)) - measured

    fits = []
    for loss, scale in _LOSSES:  # each starts where the one before ended
        start = least_squares(residuals, start, bounds=(low, high), loss=loss, f_scale=scale).x
        fits.append(Fit(constants(start), np.abs(np.expm1(residuals(start)))))
    return min(fits, key=lambda result: result.median)


def snippet(kind: str, constants: dict[str, float]) -> str:
    """Write the four constants as the line of a profile."""
    key = "bfloat16" if kind == "gemm" else kind
    flops, bandwidth = FLOP_RATE.format(_rounded(constants["flops"])), _rounded(constants["bandwidth"])
    latency = DURATION.format(_rounded(constants["latency"]))
    return (
        f"{key}: {{flops: {flops}, bandwidth: {BYTE_RATE.format(bandwidth)}, latency: {latency}, "
        f"sharpness: {constants['sharpness']:.2f}, source: fit}}"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def report(name: str, shapes: Shapes, result: Fit, cache: float) -> Iterable[str]:
    """Write what was fitted, how well, and the line for the profile."""
    beside = []
    if "grain" in result.constants:
        beside.append(f"{result.constants['grain'] / 1e3:.3g} kB a block")
    if cache:
        beside.append(f"operands in {BYTES.format(cache)} of cache {result.constants['speedup']:.2g} x as fast")
    yield f"{name}: {len(shapes.seconds)} rows"
    yield f"  error: median {result.median:.1%}, nine tenths below {result.worst_tenth:.1%}"
    long = shapes.seconds >= _LONG
    if long.any():
        yield f"  kernels of 1 ms and more: {long.sum()} rows, median {np.median(result.error[long]):.1%}"
    if result.constants.keys() & {"grain", "speedup"}:
        yield f"  the four constants alone: median {shapes.plain_error(result.constants):.1%}"
    yield f"  beside the constants: {', '.join(beside) or 'nothing'}"
    yield f"  {snippet(shapes.kind, result.constants)}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cache", default="0 B", help="Second-level cache that may hold operands between repetitions.")
def main(tables: tuple[Path, ...], cache: str) -> None:
    """Fit every table and print constants, errors and profile lines."""
    try:
        size = BYTES.parse(cache)
        for path in tables:
            shapes = read_shapes(path)
            for line in report(path.name, shapes, fit(shapes, size), size):
                click.echo(line)
    except (InputError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
