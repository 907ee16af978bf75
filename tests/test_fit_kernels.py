"""Fitting kernel tables: constants that made the times come back, and what is no table is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simulator.errors import InputError
from simulator.hardware import Roofline
from simulator.schema import parse_yaml

pd = pytest.importorskip("pandas", reason="fitting needs pandas: pip install offload-planner[fit]")
pytest.importorskip("scipy", reason="fitting needs scipy: pip install offload-planner[fit]")

from tools import fit_kernels  # noqa: E402 - only where its dependencies are

TRUE = {"flops": 250e12, "bandwidth": 1.6e12, "latency": 6e-6, "sharpness": 2.5}
SIZES = np.array([16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0])
CACHE = 32 * 2.0**20


def gemms() -> fit_kernels.Work:
    """Make GEMMs of all sizes."""
    m, n, k = (axis.ravel() for axis in np.meshgrid(SIZES, SIZES, SIZES))
    return fit_kernels.gemm_work({"m": m, "n": n, "k": k})


def attention(length: str) -> dict[str, np.ndarray]:
    """Make attention shapes of all sizes."""
    batch, tokens, kv_heads, group = (
        axis.ravel()
        for axis in np.meshgrid([1.0, 8.0, 64.0, 512.0], SIZES - 1.0, [1.0, 8.0, 32.0], [1.0, 4.0])
    )
    heads = {"num_heads": kv_heads * group, "num_key_value_heads": kv_heads, "head_dim": 0.0 * batch + 128.0}
    return {"batch_size": batch, length: tokens, **heads}


def noisy(work: fit_kernels.Work, constants: dict[str, float], cache: float, seed: int) -> np.ndarray:
    """Make times from constants, three per cent off, and one in twenty twice as long."""
    rng = np.random.default_rng(seed)
    spoilt = np.where(rng.random(len(work.flops)) < 0.05, 2.0, 1.0)
    return work.seconds(constants, cache) * np.exp(rng.normal(0.0, 0.03, len(work.flops))) * spoilt


def assert_close(found: dict[str, float], true: dict[str, float], tolerance: float) -> None:
    """Compare constants one by one."""
    for name, value in true.items():
        assert found[name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "values",
    [(2.1e13, 2.65e11, 1.5e-5, 3.0), (2.7e14, 1.5e12, 5e-6, 1.6), (8.3e14, 2.9e12, 3e-6, 2.5)],
    ids=["small", "middling", "large"],
)
def test_gemm_constants_come_back(values: tuple[float, ...], seed: int) -> None:
    """Times made from constants, with noise and outliers, give the constants back within a few per cent."""
    true = dict(zip(TRUE, values, strict=True))
    result = fit_kernels.fit(gemms(), noisy(gemms(), true, 0.0, seed))
    sharp = true.pop("sharpness")
    assert_close(result.constants, true, 0.06)
    assert result.constants["sharpness"] == pytest.approx(sharp, rel=0.35)
    assert result.median < 0.03


def test_exact_times_give_exact_constants() -> None:
    """Without noise nothing is left to doubt."""
    result = fit_kernels.fit(gemms(), gemms().seconds(TRUE))
    assert_close(result.constants, TRUE, 1e-4)
    assert result.error.max() < 1e-4


@pytest.mark.parametrize("length", ["isl", "step"])
def test_attention_constants_come_back(length: str) -> None:
    """The grain of short sequences is told apart from the four constants."""
    rows = attention(length)
    work = fit_kernels.prefill_work(rows | {"isl": rows[length] + 1.0})
    work = work if length == "isl" else fit_kernels.decode_work(rows)
    true = TRUE | {"grain": 5e4, "sharpness": 1.5}
    found = fit_kernels.fit(work, noisy(work, true, 0.0, 1)).constants
    assert_close(found, {name: true[name] for name in ("bandwidth", "latency", "grain")}, 0.06)
    if length == "isl":  # cached tokens are read, hardly computed with
        assert_close(found, {"flops": true["flops"]}, 0.06)


def test_a_cache_is_found() -> None:
    """Operands that stay in a cache do not pass for memory bandwidth."""
    seconds = noisy(gemms(), TRUE | {"speedup": 3.0}, CACHE, 2)
    with_cache = fit_kernels.fit(gemms(), seconds, CACHE)
    assert_close(with_cache.constants, {"speedup": 3.0}, 0.1)
    assert_close(with_cache.constants, {name: TRUE[name] for name in ("flops", "bandwidth", "latency")}, 0.06)
    assert fit_kernels.fit(gemms(), seconds).median > with_cache.median


def test_the_work_of_known_shapes() -> None:
    """FLOPs and bytes of one shape of each kind are those counted by hand."""
    one = {name: np.array([value]) for name, value in {"m": 2.0, "n": 3.0, "k": 5.0}.items()}
    gemm = fit_kernels.gemm_work(one)
    assert gemm.flops.tolist() == [2 * 2 * 3 * 5]
    assert gemm.bytes.tolist() == [2 * (2 * 5 + 5 * 3 + 2 * 3)]
    shape = {
        "batch_size": 2.0,
        "isl": 3.0,
        "step": 7.0,
        "num_heads": 4.0,
        "num_key_value_heads": 1.0,
        "head_dim": 8.0,
    }
    rows = {name: np.array([value]) for name, value in shape.items()}
    prefill = fit_kernels.prefill_work(rows)
    assert prefill.flops.tolist() == [4 * 4 * 8 * (1 + 2 + 3) * 2]
    assert prefill.bytes.tolist() == [2 * 2 * 3 * 8 * (4 + 1 + 1 + 4)]
    decode = fit_kernels.decode_work(rows)
    assert decode.flops.tolist() == [4 * 4 * 8 * (7 + 1) * 2]
    assert decode.bytes.tolist() == [2 * (2 * 8 * 2 * (7 + 1) + 2 * 4 * 8 * 2)]


def test_the_command_prints_a_line_for_the_profile(tmp_path: Path) -> None:
    """The command reads all three kinds of table and prints lines that a profile accepts."""
    names = ("m", "n", "k")
    shapes = dict(zip(names, (axis.ravel() for axis in np.meshgrid(SIZES, SIZES, SIZES)), strict=True))
    prefill = attention("isl") | {"isl": attention("isl")["isl"] + 1.0}
    works = {
        "gemm": (shapes, fit_kernels.gemm_work(shapes)),
        "prefill": (prefill | {"step": 0.0 * prefill["isl"]}, fit_kernels.prefill_work(prefill)),
        "decode": (
            attention("step") | {"isl": 0.0 * prefill["isl"] + 1.0},
            fit_kernels.decode_work(attention("step")),
        ),
    }
    paths = []
    for name, (rows, work) in works.items():
        paths.append(str(tmp_path / f"{name}.csv.gz"))
        milliseconds = work.seconds(TRUE | {"grain": 5e4}) * 1e3
        pd.DataFrame({**rows, "window_size": 0, "latency": milliseconds}).to_csv(paths[-1], index=False)
    result = CliRunner().invoke(fit_kernels.main, [*paths, "--cache", "32 MiB"])
    assert result.exit_code == 0, result.output
    printed = [
        line.strip() for line in result.output.splitlines() if line.strip().startswith(("bf", "pre", "dec"))
    ]
    found = [line for line in printed if "{" in line]
    assert [line.partition(":")[0] for line in found] == ["bfloat16", "prefill", "decode"]
    for line in found:
        values = next(iter(parse_yaml(line).values()))
        assert Roofline.model_validate(values).bandwidth == pytest.approx(TRUE["bandwidth"], rel=0.02)


NO_TABLES = {
    "nothing": "",
    "no rows": "m,n,k,latency\n",
    "no latency": "m,n,k\n1,2,3\n",
    "no shape": "latency\n1\n",
    "half a shape": "m,n,latency\n1,2,3\n",
    "half of attention": "batch_size,step,latency\n1,2,3\n",
    "words": "m,n,k,latency\na,b,c,d\n",
    "a latency of zero": "m,n,k,latency\n1,2,3,0\n",
    "a latency that is missing": "m,n,k,latency\n1,2,3,\n",
    "ragged rows": "m,n,k,latency\n1\n1,2,3,4,5,6\n",
}


@pytest.mark.parametrize("kind", NO_TABLES)
def test_what_is_no_table_is_refused(kind: str, tmp_path: Path) -> None:
    """A file of other content is refused in one line that names it."""
    path = tmp_path / "table.csv"
    path.write_text(NO_TABLES[kind])
    with pytest.raises(InputError) as caught:
        fit_kernels.read_table(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def test_wrong_options_are_one_line(tmp_path: Path) -> None:
    """A missing file and a cache without a unit end with code 2 and one line."""
    for arguments in (["nowhere.csv"], ["nowhere.csv", "--cache", "96"]):
        result = CliRunner().invoke(fit_kernels.main, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert result.output.count("\n") == 1


def test_sliding_windows_are_left_out(tmp_path: Path) -> None:
    """Rows of sliding-window attention do not count."""
    path = tmp_path / "table.csv"
    rows = pd.DataFrame(attention("step"))
    table = pd.concat([rows.assign(window_size=0), rows.assign(window_size=128)]).assign(isl=1, latency=1.0)
    table.to_csv(path, index=False)
    work, seconds = fit_kernels.read_table(path)
    assert len(work.flops) == len(seconds) == len(rows)
