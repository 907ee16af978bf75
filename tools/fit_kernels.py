"""Fit the roofline constants of a hardware profile to tables of measured kernels.

    python -m tools.fit_kernels h100_gemm_perf.csv.gz h100_context_attention_perf.csv.gz
    python -m tools.fit_kernels l40s_gemm_perf.csv.gz --cache "96 MiB"

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.hardware import Roofline
from simulator.units import BYTE_RATE, BYTES, DURATION, FLOP_RATE

Floats = NDArray[np.float64]
Rows = Mapping[str, Floats]

ELEMENT = 2.0  # bytes of a bfloat16 number
GEMM_WEIGHTS = 6.0  # sets of weights through which the GEMM benchmark cycles
QUERY_TILE = 128.0  # prompt tokens that one attention block takes
_EDGE = 8.0  # how sharply the cache ends
_LONG = 1e-3  # kernels of this many seconds and more are reported apart: offloading runs large ones
_LOSSES = (("soft_l1", 0.1), ("soft_l1", 0.03), ("cauchy", 0.05))  # from all rows to the bulk of them
_CONSTANTS = ("flops", "bandwidth", "latency", "sharpness")
_LIMITS = {  # name: (start, lowest, highest)
    "flops": (1e14, 1e11, 1e16),
    "bandwidth": (1e12, 1e10, 1e14),
    "latency": (5e-6, 1e-7, 1e-3),
    "sharpness": (2.0, 1.001, 16.0),
    "grain": (3e4, 1.0, 1e7),
    "speedup": (2.0, 1.01, 20.0),
}


@dataclass(frozen=True)
class Work:
    """What measured kernels do, one entry a row."""

    key: str  # where the constants stand in a profile
    flops: Floats  # [FLOP]
    operands: tuple[tuple[Floats, Floats], ...]  # bytes moved, and bytes that must fit a cache to stay there
    blocks: Floats | None = None  # units that cost at least the grain

    @property
    def bytes(self) -> Floats:
        """Bytes moved in each row [B]."""
        return np.asarray(sum(moved for moved, _ in self.operands))

    def plain(self) -> Work:
        """Give the same work without what the grain and the cache apply to."""
        return Work(self.key, self.flops, ((self.bytes, self.bytes),))

    def charged(self, constants: Mapping[str, float], cache: float) -> Floats:
        """Count the bytes that kernels pay for: those moved, at least the grain, less what a cache serves."""
        charged = np.zeros_like(self.flops)
        for moved, footprint in self.operands:
            hot = 1.0 / (1.0 + (footprint / cache) ** _EDGE) if cache else np.zeros_like(moved)
            charged += moved * (1.0 - hot + hot / constants.get("speedup", 1.0))
        if self.blocks is not None:
            charged *= (1.0 + (self.blocks * constants["grain"] / self.bytes) ** 4) ** 0.25
        return charged

    def seconds(self, constants: Mapping[str, float], cache: float = 0.0) -> Floats:
        """Give the time of every row by the profile's own formula [s]."""
        values = {name: constants[name] for name in _CONSTANTS}
        return Roofline.model_construct(None, **values, source="fit").seconds(
            self.flops, self.charged(constants, cache)
        )


@dataclass(frozen=True)
class Fit:
    """Fitted constants, and |predicted / measured - 1| of every row."""

    constants: dict[str, float]
    error: Floats

    @property
    def median(self) -> float:
        """The error that half of the rows keep."""
        return float(np.median(self.error))


def gemm_work(rows: Rows) -> Work:
    """Count the work of ``[m, k] x [k, n]``: 2mnk FLOP, operands and result moved once."""
    m, n, k = rows["m"], rows["n"], rows["k"]
    weights, rest = ELEMENT * k * n, ELEMENT * (m * k + m * n)
    operands = ((weights, GEMM_WEIGHTS * weights + rest), (rest, weights + rest))
    return Work("bfloat16", 2.0 * m * n * k, operands)


def prefill_work(rows: Rows) -> Work:
    """Count causal attention over prompts: each token with itself and all before; q, k, v, o moved once."""
    batch, tokens, heads, kv_heads, head_dim = _attention(rows, "isl")
    flops = 4.0 * heads * head_dim * batch * tokens * (tokens + 1.0) / 2.0
    moved = ELEMENT * batch * tokens * head_dim * (2.0 * heads + 2.0 * kv_heads)
    return Work("prefill", flops, ((moved, moved),), batch * heads * np.ceil(tokens / QUERY_TILE))


def decode_work(rows: Rows) -> Work:
    """Count attention of one new token: keys and values of it and the cached ones read, q and o moved."""
    batch, cached, heads, kv_heads, head_dim = _attention(rows, "step")
    tokens = cached + 1.0
    moved = ELEMENT * batch * head_dim * (2.0 * kv_heads * tokens + 2.0 * heads)
    return Work("decode", 4.0 * heads * head_dim * batch * tokens, ((moved, moved),), batch * kv_heads)


def _attention(rows: Rows, length: str) -> list[Floats]:
    return [rows[name] for name in ("batch_size", length, "num_heads", "num_key_value_heads", "head_dim")]


def read_table(path: Path) -> tuple[Work, Floats]:
    """Read a kernel table as work and measured seconds.

    Sliding-window attention is left out: its kernels are others, and the models here attend to all tokens.

    Raises:
        InputError: unreadable, or not such a table.
    """
    import pandas as pd  # noqa: PLC0415 - heavy, and an optional dependency

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a kernel table ({' '.join(str(error).split())})") from None
    if "window_size" in table:
        table = table[table["window_size"] == 0]
    numbers = table.select_dtypes("number")
    rows = {str(name): numbers[name].to_numpy(dtype=float) for name in numbers}
    try:
        work, seconds = _counter(rows)(rows), rows["latency"] * 1e-3
    except KeyError as error:
        raise InputError(f"{path}: not a kernel table (no column of numbers called {error})") from None
    if not len(seconds) or not np.all(seconds > 0.0) or not np.all(work.bytes > 0.0):
        raise InputError(f"{path}: every row needs a latency and a shape above zero, and one row at least")
    return work, seconds


def _counter(rows: Rows) -> Callable[[Rows], Work]:
    if "m" in rows:
        return gemm_work
    return prefill_work if not np.any(rows["step"]) else decode_work


def fit(work: Work, seconds: Floats, cache: float = 0.0) -> Fit:
    """Fit the constants to log times, rows far off counting little; of the losses keep the best median."""
    from scipy.optimize import least_squares  # noqa: PLC0415 - heavy, and an optional dependency

    names = [*_CONSTANTS, *["grain"] * (work.blocks is not None), *["speedup"] * (cache > 0.0)]
    start, low, high = (np.log([_LIMITS[name][i] for name in names]) for i in range(3))

    def constants(logs: Floats) -> dict[str, float]:
        return dict(zip(names, np.exp(logs).tolist(), strict=True))

    def residuals(logs: Floats) -> Floats:
        return np.log(work.seconds(constants(logs), cache) / seconds)

    fits = []
    for loss, scale in _LOSSES:  # each starts where the one before ended
        start = least_squares(residuals, start, bounds=(low, high), loss=loss, f_scale=scale).x
        fits.append(Fit(constants(start), np.abs(np.expm1(residuals(start)))))
    return min(fits, key=lambda result: result.median)


def snippet(key: str, constants: Mapping[str, float]) -> str:
    """Write the four constants as the line of a profile."""
    flops, bandwidth, latency, sharpness = (float(f"{constants[name]:.3g}") for name in _CONSTANTS)
    return (
        f"{key}: {{flops: {FLOP_RATE.format(flops)}, bandwidth: {BYTE_RATE.format(bandwidth)}, "
        f"latency: {DURATION.format(latency)}, sharpness: {sharpness:g}, source: fit}}"
    )


def report(work: Work, seconds: Floats, cache: float) -> Iterable[str]:
    """Fit a table and write how well, and the line for the profile."""
    result = fit(work, seconds, cache)
    beside, long = [], seconds >= _LONG
    if "grain" in result.constants:
        beside.append(f"at least {result.constants['grain'] / 1e3:.3g} kB a block")
    if cache:
        beside.append(f"operands in the cache {result.constants['speedup']:.2g} times as fast")
    yield f"  median error {result.median:.1%}, nine rows in ten below {np.quantile(result.error, 0.9):.1%}"
    if long.any():
        yield f"  {long.sum()} kernels of 1 ms and more: median error {np.median(result.error[long]):.1%}"
    if beside:
        plain = np.abs(work.plain().seconds(result.constants) / seconds - 1.0)
        yield f"  with {' and '.join(beside)}; without, median error {np.median(plain):.1%}"
        beyond = np.max([footprint for _, footprint in work.operands], axis=0) > cache
        if cache and beyond.any():
            yield f"  {beyond.sum()} kernels beyond the cache: median error {np.median(plain[beyond]):.1%}"
    yield f"  {snippet(work.key, result.constants)}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cache", default="0 B", help="Second-level cache that may hold operands between repetitions.")
def main(tables: tuple[Path, ...], cache: str) -> None:
    """Fit every table and print constants, errors and profile lines."""
    try:
        size = BYTES.parse(cache)
        for path in tables:
            work, seconds = read_table(path)
            click.echo(f"{path.name}: {len(seconds)} rows")
            for line in report(work, seconds, size):
                click.echo(line)
    except (InputError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
