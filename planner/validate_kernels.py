"""Tables of measured GPU kernels, and what a hardware profile says about them.

The tables are those of NVIDIA's aiconfigurator: CSV, plain or compressed with gzip, one measured shape a row,
latency in milliseconds. Their columns tell a GEMM (m, n, k) from attention over a prompt and over cached
tokens. Predictions rest on the profile's constants alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from simulator.errors import InputError
from simulator.hardware import DType, Engine, HardwareProfile, Roofline
from simulator.kernels import Floats, KernelWork, decode_work, gemm_work, prefill_work
from simulator.units import one_line, shortened

Kind = Literal["gemm", "prefill", "decode"]

_GEMM = ("m", "n", "k")
_ATTENTION = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step")
_MAY_BE_ZERO = ("step",)  # no tokens cached
_MILLISECOND = 1e-3
_CACHE_EDGE = 8.0  # how sharply the cache ends
_DTYPES: dict[str, DType] = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
    "int8": "int8",
}
_ELEMENT: dict[DType, float] = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "int8": 1.0}


@dataclass(frozen=True)
class KernelTable:
    """Measured kernels of one kind: their shapes by column, number types and times [s], one entry a row."""

    path: str
    kind: Kind
    rows: Mapping[str, Floats]
    dtypes: tuple[DType, ...]
    seconds: Floats

    def work(self) -> KernelWork:
        """Count FLOPs, bytes, depth and blocks of every row."""
        if self.kind == "gemm":
            return gemm_work(self.rows, np.array([_ELEMENT[dtype] for dtype in self.dtypes]))
        return prefill_work(self.rows) if self.kind == "prefill" else decode_work(self.rows)


def predict_kernels(table: KernelTable, hardware_profile: HardwareProfile) -> tuple[Floats, Floats]:
    """Give predicted and measured times of every row [s], by the GPU's constants in the profile.

    Raises:
        InputError: the table has a number type that the profile's GPU has no constants for.
    """
    engine, work = hardware_profile.engines["gpu"], table.work()
    cache = engine.peak.cache or 0.0
    if table.kind != "gemm":
        line = engine.attention.prefill if table.kind == "prefill" else engine.attention.decode
        return kernel_seconds(work, line, cache), table.seconds
    dtypes, predicted = np.array(table.dtypes), np.zeros(len(table.seconds))
    for dtype in dict.fromkeys(table.dtypes):
        seconds = kernel_seconds(work, _matmul(engine, dtype, table.path), cache)
        predicted = np.where(dtypes == dtype, seconds, predicted)
    return predicted, table.seconds


def kernel_seconds(work: KernelWork, line: Roofline, cache: float = 0.0) -> Floats:
    """Give the time of every kernel of a benchmark that repeats it [s].

    Args:
        work: The kernels.
        line: Their constants.
        cache: Size of the second-level cache [B]; operands within it come at the rate ``line.cached``.
    """
    bytes_ = work.bytes
    if cache and line.cached is not None:
        spared = 1.0 - line.bandwidth / line.cached
        hot = [moved / (1.0 + (footprint / cache) ** _CACHE_EDGE) for moved, footprint in work.operands]
        bytes_ = bytes_ - spared * np.asarray(sum(hot))
    return line.seconds(work.flops, bytes_, 1.0, work.depth, work.blocks)


def _matmul(engine: Engine, dtype: DType, path: str) -> Roofline:
    """Find the constants of a number type; 16-bit types stand in for each other."""
    found = engine.compute_dtype(dtype)
    if _ELEMENT[found] != _ELEMENT[dtype]:
        have = ", ".join(engine.matmul)
        raise InputError(
            f"{path}: column gemm_dtype: the profile's GPU has no matmul.{dtype}; keep rows of {have}"
        )
    return engine.matmul[found]


def read_kernels(path: str | Path) -> KernelTable:
    """Read a kernel table.

    Rows of sliding-window attention (``window_size`` above 0) are left out: their kernels are others, and the
    models here attend to all tokens. Columns that are not needed may hold anything.

    Raises:
        InputError: unreadable, or not such a table; the message names path, line and column.
    """
    name, lines = str(path), csv.reader(io.StringIO(_text(Path(path)), newline=""))
    try:
        header = next(lines, [])
        kind = _columns(header, name)
        rows = list(_records(lines, header, name))
    except csv.Error as error:
        raise InputError(one_line(f"{name}: line {lines.line_num}: {error}; mend or remove it")) from None
    rows = [(line, row) for line, row in rows if row.get("window_size", "0") in ("", "0", "0.0")]
    if not rows:
        raise InputError(f"{name}: no rows of measured kernels; one row at least is needed")
    columns = {column: _numbers(column, rows, name) for column in (*kind, "latency")}
    seconds = columns.pop("latency") * _MILLISECOND
    dtype_column = "gemm_dtype" if kind == _GEMM else "attn_dtype"
    dtypes = tuple(_dtype(row.get(dtype_column, "bfloat16"), dtype_column, line, name) for line, row in rows)
    return KernelTable(name, _kind(columns), columns, dtypes, seconds)


def _text(path: Path) -> str:
    """Read a file that may be compressed."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # what every gzip file begins with
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "not text, plain or gzip"
        )
        raise InputError(
            one_line(f"{path}: cannot be read ({reason.lower()}); give a kernel table as CSV")
        ) from None


def _columns(header: list[str], name: str) -> tuple[str, ...]:
    """Choose the columns that tell the shape: those of a GEMM or those of attention."""
    kinds = [kind for kind in (_GEMM, _ATTENTION) if set(kind) & set(header)]
    if not kinds:
        raise InputError(
            f"{name}: not a kernel table; it needs the columns {', '.join(_GEMM)} of a GEMM or"
            f" {', '.join(_ATTENTION)} of attention, and latency"
        )
    for column in (*kinds[0], "latency"):
        if column not in header:
            raise InputError(f"{name}: the column {column} is missing; add it")
    return kinds[0]


def _records(
    lines: Iterable[list[str]], header: list[str], name: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Give the rows by column, each with its line; empty lines do not count."""
    for line, row in enumerate(lines, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(
                f"{name}: line {line}: {len(row)} values for {len(header)} columns; mend or remove it"
            )
        yield line, dict(zip(header, row, strict=True))


def _numbers(column: str, rows: list[tuple[int, dict[str, str]]], name: str) -> Floats:
    values = np.empty(len(rows))
    for i, (line, row) in enumerate(rows):
        try:
            values[i] = float(row[column])
        except ValueError:
            values[i] = np.nan
        if not (0.0 < values[i] < np.inf or (values[i] == 0.0 and column in _MAY_BE_ZERO)):
            least = "of zero or more" if column in _MAY_BE_ZERO else "above zero"
            raise InputError(
                f"{name}: line {line}, column {column}: expected a number {least}, got"
                f" {shortened(row[column])}; mend or remove the row"
            )
    return values


def _dtype(text: str, column: str, line: int, name: str) -> DType:
    if text not in _DTYPES or (column == "attn_dtype" and _ELEMENT[_DTYPES[text]] != _ELEMENT["bfloat16"]):
        known = ", ".join(_DTYPES) if column == "gemm_dtype" else "16-bit types"
        raise InputError(
            f"{name}: line {line}, column {column}: {shortened(text)} is not known here; keep rows of {known}"
        )
    return _DTYPES[text]


def _kind(columns: Mapping[str, Floats]) -> Kind:
    if "m" in columns:
        return "gemm"
    one_token = bool(np.all(columns["isl"] == 1.0)) and bool(np.any(columns["step"] > 0.0))
    return "decode" if one_token else "prefill"
