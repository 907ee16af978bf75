"""Fitting kernel tables: the constants that made the times come back, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simulator.hardware import Roofline
from simulator.kernels import KernelWork, decode_work, gemm_work, prefill_work
from simulator.schema import parse_yaml

pytest.importorskip("scipy", reason="fitting needs scipy: pip install offload-planner[fit]")

from tools import fit_kernels

TRUE = {"flops": 250e12, "bandwidth": 1.6e12, "latency": 6e-6, "sharpness": 2.5}
CHAIN = {"tail": 5e-9, "split": 500.0}
SIZES = np.array([16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0])
CACHE = 32 * 2.0**20


def gemm_rows() -> dict[str, np.ndarray]:
    """Make GEMMs of all sizes."""
    return dict(zip("mnk", (axis.ravel() for axis in np.meshgrid(SIZES, SIZES, SIZES)), strict=True))


def attention(length: str) -> dict[str, np.ndarray]:
    """Make attention shapes of all sizes, over prompts ("isl") or cached tokens ("step")."""
    batch, tokens, kv_heads, group = (
        axis.ravel()
        for axis in np.meshgrid([1.0, 8.0, 64.0, 512.0], SIZES - 1.0, [1.0, 8.0, 32.0], [1.0, 4.0])
    )
    heads = {"num_heads": kv_heads * group, "num_key_value_heads": kv_heads, "head_dim": 0.0 * batch + 128.0}
    lengths = {"isl": 0.0 * tokens + 1.0, "step": 0.0 * tokens} | {length: tokens}
    return {"batch_size": batch, **lengths, **heads}


WORKS = {
    "gemm": gemm_work(gemm_rows()),
    "prefill": prefill_work(attention("isl")),
    "decode": decode_work(attention("step")),
}


def noisy(work: KernelWork, constants: dict[str, float], cache: float, seed: int) -> np.ndarray:
    """Make times from constants, three per cent off, and one in twenty twice as long."""
    rng = np.random.default_rng(seed)
    spoilt = np.where(rng.random(len(work.flops)) < 0.05, 2.0, 1.0)
    exact = fit_kernels.seconds(work, constants, cache)
    return exact * np.exp(rng.normal(0.0, 0.03, len(work.flops))) * spoilt


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
    result = fit_kernels.fit(WORKS["gemm"], noisy(WORKS["gemm"], true, 0.0, seed), ())
    sharp = true.pop("sharpness")
    assert_close(result.constants, true, 0.06)
    assert result.constants["sharpness"] == pytest.approx(sharp, rel=0.35)
    assert result.median < 0.03


def test_exact_times_give_exact_constants() -> None:
    """Without noise nothing is left to doubt."""
    true = TRUE | CHAIN
    result = fit_kernels.fit(WORKS["gemm"], fit_kernels.seconds(WORKS["gemm"], true), CHAIN)
    assert_close(result.constants, true, 1e-3)
    assert result.error.max() < 1e-3


def test_a_tail_is_found_and_only_where_there_is_one() -> None:
    """Kernels with a tail ask for it; to others neither it nor its split is given."""
    work = WORKS["gemm"]
    result, names = fit_kernels.choose("gemm", work, noisy(work, TRUE | CHAIN, 0.0, 3))
    assert names == ("tail", "split")
    assert_close(result.constants, {"latency": TRUE["latency"]} | CHAIN, 0.15)
    result, names = fit_kernels.choose("gemm", work, noisy(work, TRUE, 0.0, 3))
    assert names == ()
    assert set(result.constants) == set(TRUE)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_attention_constants_come_back(kind: str) -> None:
    """The grain of short sequences is told apart from the four constants."""
    work, true = WORKS[kind], TRUE | {"grain": 5e4, "sharpness": 1.5}
    found = fit_kernels.fit(work, noisy(work, true, 0.0, 1), ("grain",)).constants
    assert_close(found, {name: true[name] for name in ("bandwidth", "latency", "grain")}, 0.06)
    if kind == "prefill":  # cached tokens are read, hardly computed with
        assert_close(found, {"flops": true["flops"]}, 0.06)


def test_a_cache_is_found() -> None:
    """Operands that stay in a cache do not pass for memory bandwidth."""
    work, true = WORKS["gemm"], TRUE | {"cached": 4.8e12}
    measured = noisy(work, true, CACHE, 2)
    with_cache, names = fit_kernels.choose("gemm", work, measured, CACHE)
    assert "cached" in names
    assert_close(with_cache.constants, {"cached": 4.8e12}, 0.1)
    assert_close(with_cache.constants, {name: TRUE[name] for name in ("flops", "bandwidth")}, 0.06)
    assert fit_kernels.choose("gemm", work, measured)[0].median > with_cache.median


def test_unseen_shapes_are_as_close_as_seen_ones() -> None:
    """Constants of one half of the rows predict the other half as well, where the formula is the true one."""
    work = WORKS["gemm"]
    measured = noisy(work, TRUE | CHAIN, 0.0, 5)
    seen = fit_kernels.fit(work, measured, CHAIN).median
    unseen = fit_kernels.cross_validated(work, measured, tuple(CHAIN))
    assert unseen == pytest.approx([seen, seen], rel=0.5)


def test_the_command_prints_a_line_for_the_profile(tmp_path: Path) -> None:
    """The command reads all three kinds of table and prints lines that a profile accepts."""
    paths = []
    for kind, rows in (("gemm", gemm_rows()), ("prefill", attention("isl")), ("decode", attention("step"))):
        paths.append(str(tmp_path / f"{kind}.csv.gz"))
        milliseconds = fit_kernels.seconds(WORKS[kind], TRUE | CHAIN | {"grain": 5e4}) * 1e3
        table = np.column_stack([*rows.values(), milliseconds])
        np.savetxt(
            paths[-1], table, fmt="%.17g", delimiter=",", header=",".join([*rows, "latency"]), comments=""
        )
    result = CliRunner().invoke(fit_kernels.main, [*paths, "--cache", "32 MiB"])
    assert result.exit_code == 0, result.output
    found = [line.strip() for line in result.output.splitlines() if "{" in line]
    assert [line.partition(":")[0] for line in found] == ["bfloat16", "prefill", "decode"]
    for line in found:
        values = next(iter(parse_yaml(line).values()))
        assert Roofline.model_validate(values).bandwidth == pytest.approx(TRUE["bandwidth"], rel=0.02)


def test_wrong_options_are_one_line(tmp_path: Path) -> None:
    """A missing file and a cache without a unit end with code 2 and one line."""
    for arguments in ([str(tmp_path / "nowhere.csv")], ["nowhere.csv", "--cache", "96"]):
        result = CliRunner().invoke(fit_kernels.main, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert result.output.count("\n") == 1
