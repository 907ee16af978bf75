"""Measured kernels against a profile: laws of the prediction, known shapes, and files that are no tables."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.validate_kernels import KernelTable, Kind, predict_kernels, read_kernels
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.profiles import load_profile

PROFILES = {name: load_profile(name) for name in ("a100-80", "h100-80", "l40s-48", "t4-16")}
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "prefill": ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step"),
    "decode": ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step"),
}
TABLES = Path("shared", "published", "kernels")  # beside the project or in it, where they are at all
PUBLISHED = next((up / TABLES for up in Path(__file__).parents if (up / TABLES).is_dir()), None)

sizes = st.integers(1, 20_000)
gemms = st.fixed_dictionaries(dict.fromkeys(COLUMNS["gemm"], sizes))
attention = {
    "batch_size": st.integers(1, 512),
    "num_heads": st.integers(1, 64),
    "num_key_value_heads": st.integers(1, 8),
    "head_dim": st.sampled_from([64, 128]),
}
shapes = st.one_of(
    st.tuples(st.just("gemm"), gemms),
    st.tuples(st.just("prefill"), st.fixed_dictionaries(attention | {"isl": sizes, "step": st.just(0)})),
    st.tuples(st.just("decode"), st.fixed_dictionaries(attention | {"isl": st.just(1), "step": sizes})),
)
Shape = tuple[Kind, dict[str, int]]
profiles = st.sampled_from(sorted(PROFILES))


def table(kind: Kind, *rows: Mapping[str, float], dtype: str = "bfloat16") -> KernelTable:
    """Make a table of shapes, each with a time of one second."""
    columns = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS[kind]}
    return KernelTable("made up", kind, columns, (dtype,) * len(rows), np.ones(len(rows)))  # type: ignore[arg-type]


def text(kind: Kind, rows: list[Mapping[str, object]], latency: list[float], **extra: object) -> str:
    """Write shapes and times [ms] as CSV, with further columns."""
    out = io.StringIO()
    names = ["version", *COLUMNS[kind], *extra, "latency"]
    writer = csv.DictWriter(out, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(
        {"version": "1,2", **row, **extra, "latency": repr(time)}
        for row, time in zip(rows, latency, strict=True)
    )
    return out.getvalue()


# Laws.


@given(shape=shapes, name=profiles)
def test_no_kernel_beats_the_peak(shape: Shape, name: str) -> None:
    """A kernel takes at least its FLOPs at the peak rate, and its bytes too where no cache holds them."""
    peak = PROFILES[name].engines["gpu"].peak
    work = table(*shape).work()
    seconds = predict_kernels(table(*shape), PROFILES[name])[0]
    assert np.all(seconds > work.flops / max(peak.flops.values()))
    assert peak.cache or np.all(seconds > work.bytes / peak.memory_bandwidth)


@given(shape=shapes, name=profiles, more=st.integers(1, 1000), draw=st.data())
def test_a_larger_kernel_takes_longer(shape: Shape, name: str, more: int, draw: st.DataObject) -> None:
    """Whichever side of a kernel grows, its time does not fall."""
    kind, row = shape
    grown = draw.draw(
        st.sampled_from([n for n in row if (kind, n) not in {("prefill", "step"), ("decode", "isl")}])
    )
    seconds = predict_kernels(table(kind, row, row | {grown: row[grown] + more}), PROFILES[name])[0]
    assert seconds[1] >= seconds[0] * (1.0 - 1e-12)


@given(kind_rows=st.lists(shapes, min_size=1, max_size=6), name=profiles)
def test_rows_do_not_touch_each_other(kind_rows: list[Shape], name: str) -> None:
    """A table is predicted as its rows are one by one."""
    kind = kind_rows[0][0]
    rows = [row for other, row in kind_rows if other == kind]
    alone = [float(predict_kernels(table(kind, row), PROFILES[name])[0][0]) for row in rows]
    assert predict_kernels(table(kind, *rows), PROFILES[name])[0].tolist() == pytest.approx(alone, rel=1e-13)


@given(shape=shapes, name=profiles)
def test_a_table_made_from_a_profile_scores_zero(
    shape: Shape, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Times that a profile predicts, written and read again, are predicted without error."""
    kind, row = shape
    predicted, _ = predict_kernels(table(kind, row, row), PROFILES[name])
    path = tmp_path_factory.mktemp("tables") / "made.csv.gz"
    written = text(kind, [row, row], (predicted * 1e3).tolist(), window_size=0, kernel="any, thing")
    path.write_bytes(gzip.compress(written.encode()))
    again = read_kernels(path)
    assert again.kind == kind
    predicted, measured = predict_kernels(again, PROFILES[name])
    assert (predicted / measured).tolist() == pytest.approx([1.0, 1.0], rel=1e-12)


# Known shapes.


def plain(*overrides: str) -> HardwareProfile:
    """Give a machine of round figures: the T4 with kernels of 10 TFLOP/s, 100 GB/s, 10 us, summed up."""
    kernel = {"flops": "10 TFLOP/s", "bandwidth": "100 GB/s", "latency": "10 us", "sharpness": "1"}
    paths = ("matmul.float16", "attention.prefill", "attention.decode")
    texts = [f"engines.gpu.{path}.{key}={value}" for path in paths for key, value in kernel.items()]
    return load_profile("t4-16", (*texts, *overrides))


def test_a_gemm_by_hand() -> None:
    """A product of 1000 by 1000 by 500: 1e9 FLOP in 100 us, 4e6 B in 40 us, 10 us, and 500 steps of tail."""
    rows = table("gemm", {"m": 1000, "n": 1000, "k": 500})
    assert predict_kernels(rows, plain())[0].tolist() == pytest.approx([150e-6])
    tail = ("engines.gpu.matmul.float16.tail=20 ns",)
    assert predict_kernels(rows, plain(*tail))[0].tolist() == pytest.approx([160e-6])
    split = (*tail, "engines.gpu.matmul.float16.split=500.0")  # half of the tail at a depth of split
    assert predict_kernels(rows, plain(*split))[0].tolist() == pytest.approx([155e-6])


def test_attention_by_hand() -> None:
    """Prompts of 3 tokens, and one token over 7 cached ones: FLOPs and bytes counted on paper."""
    shape = {"batch_size": 2, "num_heads": 4, "num_key_value_heads": 1, "head_dim": 8}
    prompt = table("prefill", shape | {"isl": 3, "step": 0})
    flops, moved = 4 * 4 * 8 * (1 + 2 + 3) * 2, 2 * 2 * 3 * 8 * (4 + 1 + 1 + 4)
    assert prompt.work().flops.tolist() == [flops]
    assert prompt.work().bytes.tolist() == [moved]
    assert predict_kernels(prompt, plain())[0].tolist() == pytest.approx([1e-5 + flops / 1e13 + moved / 1e11])
    decode = table("decode", shape | {"isl": 1, "step": 7})
    flops, moved = 4 * 4 * 8 * (7 + 1) * 2, 2 * (2 * 8 * 2 * (7 + 1) + 2 * 4 * 8 * 2)
    assert decode.work().flops.tolist() == [flops]
    assert decode.work().bytes.tolist() == [moved]
    grain = plain("engines.gpu.attention.decode.grain=10 MB")  # two blocks, far above what they move
    assert predict_kernels(decode, grain)[0].tolist() == pytest.approx([1e-5 + flops / 1e13 + 2e7 / 1e11])


def test_a_prompt_in_two_parts_has_the_work_of_the_whole() -> None:
    """The FLOPs of a prompt after cached tokens are those of both together, less those of the cached ones."""
    shape = {"batch_size": 3, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    parts = [{"isl": 100, "step": 0}, {"isl": 50, "step": 100}, {"isl": 150, "step": 0}]
    flops = table("prefill", *(shape | part for part in parts)).work().flops
    assert flops[0] + flops[1] == flops[2]


def test_operands_in_the_cache_come_faster() -> None:
    """A small product of a repeated benchmark is served by the cache, a large one by the memory."""
    cached = plain("engines.gpu.peak.cache=4 MiB", "engines.gpu.matmul.float16.cached=200 GB/s")
    rows = table("gemm", {"m": 1, "n": 128, "k": 128}, {"m": 1, "n": 8192, "k": 8192})
    without, with_cache = (predict_kernels(rows, machine)[0] - 1e-5 for machine in (plain(), cached))
    assert with_cache[0] == pytest.approx(without[0] / 2.0, rel=0.02)
    assert with_cache[1] == pytest.approx(without[1], rel=1e-3)


def test_number_types_choose_their_constants() -> None:
    """Each row is predicted by the constants of its type; 16-bit types stand in for each other."""
    shape = {"m": 4096, "n": 4096, "k": 4096}
    times = {
        dtype: float(predict_kernels(table("gemm", shape, dtype=dtype), PROFILES["a100-80"])[0][0])
        for dtype in ("bfloat16", "float16", "float32")
    }
    assert times["bfloat16"] == times["float16"] < times["float32"] / 5
    assert predict_kernels(table("gemm", shape), PROFILES["t4-16"])[0] > times["bfloat16"]
    with pytest.raises(InputError, match=r"gemm_dtype.*int8.*keep rows of"):
        predict_kernels(table("gemm", shape, dtype="int8"), PROFILES["a100-80"])


# Files.

GEMM = "m,n,k,latency\n"
ATTENTION = "batch_size,isl,num_heads,num_key_value_heads,head_dim,step,latency\n"
NO_TABLES = {
    "nothing": ("", "needs the columns"),
    "other columns": ("a,latency\n1,2\n", "needs the columns"),
    "no rows": (GEMM, "no rows"),
    "no latency": ("m,n,k\n1,2,3\n", "column latency is missing"),
    "half a shape": ("m,n,latency\n1,2,3\n", "column k is missing"),
    "half of attention": ("batch_size,step,latency\n1,2,3\n", "column isl is missing"),
    "words": (GEMM + "\na,2,3,4\n", "line 3, column m: .*'a'"),
    "a latency of zero": (GEMM + "1,2,3,0\n", "line 2, column latency: .*above zero"),
    "no number": (GEMM + "1,2,3,nan\n", "line 2, column latency"),
    "without end": (GEMM + "1,2,inf,1\n", "line 2, column k"),
    "a latency that is missing": (GEMM + "1,2,3,\n", "line 2, column latency"),
    "fewer than none cached": (ATTENTION + "1,1,1,1,64,-1,1\n", "column step: .*zero or more"),
    "ragged rows": (GEMM + "1\n", "line 2: 1 values for 4 columns"),
    "a type": ("gemm_dtype," + GEMM + "fp8,1,2,3,1\n", "line 2, column gemm_dtype: 'fp8'"),
    "a wide type": ("attn_dtype," + ATTENTION + "float32,1,1,1,1,64,0,1\n", "keep rows of 16-bit"),
}


@pytest.mark.parametrize("kind", NO_TABLES)
def test_what_is_no_table_is_refused(kind: str, tmp_path: Path) -> None:
    """A file of other content is refused in one line that names it and the place in it."""
    path = tmp_path / "table.csv"
    path.write_text(NO_TABLES[kind][0])
    with pytest.raises(InputError, match=NO_TABLES[kind][1]) as caught:
        read_kernels(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content", [None, b"\x1f\x8bnothing", gzip.compress(b"m,n")[:-9], b"\xff\xfe\x00", b"m,\x00"]
)
def test_what_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """A missing file, broken compression and bytes that are no text end in one line."""
    path = tmp_path / "table.csv.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_kernels(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def test_sliding_windows_and_other_columns(tmp_path: Path) -> None:
    """Rows of sliding-window attention do not count; columns that nothing needs may hold anything."""
    shape: dict[str, object] = {"batch_size": 1, "num_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
    rows = [shape | {"isl": 1, "step": 9, "window_size": window} for window in (0, 128, 0)]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*rows[0], "note", "latency"])
    writer.writeheader()
    writer.writerows(
        row | {"note": "a,\nb", "latency": time} for row, time in zip(rows, (1, 2, 3), strict=True)
    )
    path = tmp_path / "table.csv"
    path.write_text(out.getvalue())
    found = read_kernels(str(path))
    assert found.kind == "decode"
    assert found.seconds.tolist() == [1e-3, 3e-3]


# The published tables, where they are.

LIMITS = {  # median error that the shipped constants must keep: GEMM, prompt, cached tokens
    ("a100-80", "a100_sxm"): (0.08, 0.06, 0.09),
    ("h100-80", "h100_sxm"): (0.06, 0.08, 0.05),
    ("l40s-48", "l40s"): (0.09, 0.10, 0.10),
}


@pytest.mark.skipif(PUBLISHED is None, reason="the published kernel tables are not part of the project")
@pytest.mark.parametrize(("name", "gpu"), LIMITS)
def test_the_published_kernels(name: str, gpu: str) -> None:
    """Half of the measured kernels of each table are within a few per cent of the shipped profile."""
    assert PUBLISHED is not None
    for kind, limit in zip(
        ("gemm", "context_attention", "generation_attention"), LIMITS[name, gpu], strict=True
    ):
        kernels = read_kernels(PUBLISHED / f"{gpu}_{kind}_perf.csv.gz")
        predicted, measured = predict_kernels(kernels, PROFILES[name])
        assert np.median(np.abs(predicted / measured - 1.0)) < limit
