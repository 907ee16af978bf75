"""Quantisation: its laws on arbitrary tensors, one example by hand, and its bytes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.quantize import Quantized, QuantizedForm, dequantize, quantize
from simulator.errors import InputError
from simulator.model import stored_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
TINY = {dtype: torch.finfo(dtype).smallest_normal for dtype in DTYPES}
bits_of = st.sampled_from([4, 8])
group_of = st.sampled_from([2, 6, 32, 64])


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> torch.Tensor:
    """Draw tensors whose rows have very different sizes and offsets, some of them constant."""
    shape = [*draw(st.lists(st.integers(1, 5), max_size=2)), draw(st.integers(1, 150))]
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    tensor = torch.randn(shape, generator=random)
    spread = draw(st.sampled_from([0.0, 1e-7, 1e-3, 1.0, 100.0]))
    offset = draw(st.sampled_from([0.0, 1e-6, -1.0, 3.0, 1000.0]))
    return (tensor * spread + offset).to(draw(st.sampled_from(dtypes)))


def per_element(values: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """Spread one number a group, shape [rows, groups], to the elements: the tensor's shape, float64."""
    form = quantized.form
    wide = values.double().repeat_interleave(form.group, dim=-1)
    return wide[:, : form.columns].reshape(form.shape)


def rounding(back: torch.Tensor) -> torch.Tensor:
    """Give half a unit in the last place of the tensor's type."""
    return back.double().abs() * EPS[back.dtype] / 2 + TINY[back.dtype] * EPS[back.dtype] / 2


@given(tensors(), bits_of, group_of)
def test_no_element_moves_by_more_than_half_a_step(tensor: torch.Tensor, bits: int, group: int) -> None:
    """A code is the nearest, in every type, size and grouping."""
    quantized = quantize(tensor, bits, group)
    back = dequantize(quantized)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    step = per_element(quantized.scale, quantized)
    # Computing is in float32, relative to the largest number of the group.
    computing = (step * 2**bits + per_element(quantized.minimum, quantized).abs()) * 2**-22
    moved = (back.double() - tensor.double()).abs()
    assert (moved <= step / 2 + rounding(back) + computing).all()


@given(tensors([torch.float16, torch.bfloat16]), bits_of, group_of)
def test_extremes(tensor: torch.Tensor, bits: int, group: int) -> None:
    """The minimum of a group is exact, the maximum up to the rounding of the scale."""
    quantized = quantize(tensor, bits, group)
    back = dequantize(quantized)
    for part, moved in zip(tensor.split(group, -1), back.split(group, -1), strict=True):
        assert torch.equal(part.amin(-1), moved.amin(-1))
        lowest, highest = part.double().amin(-1), part.double().amax(-1)
        off = (moved.double().amax(-1) - highest).abs()
        slack = rounding(moved).amax(-1) + part.double().abs().amax(-1) * 2**-20
        # Of a subnormal scale with few digits all that is known is half a step.
        slack += (TINY[tensor.dtype] > (highest - lowest) / 2**bits) * TINY[tensor.dtype] * 256
        assert (off <= (highest - lowest) * EPS[tensor.dtype] / 2 + slack).all()


@given(tensors([torch.float16, torch.bfloat16]), bits_of, group_of)
def test_constant_groups_are_exact(tensor: torch.Tensor, bits: int, group: int) -> None:
    """No step: nothing is divided by zero, and nothing is lost."""
    constant = tensor[..., :1].expand(tensor.shape)
    quantized = quantize(constant, bits, group)
    assert torch.equal(dequantize(quantized), constant)
    assert not quantized.scale.any()


@given(st.data(), bits_of, st.sampled_from(DTYPES), st.integers(1, 3), st.integers(1, 3))
def test_what_can_be_represented_is_exact(
    data: st.DataObject, bits: int, dtype: torch.dtype, rows: int, groups: int
) -> None:
    """Values on the grid come back, so quantising twice is quantising once."""
    group, levels = 8, 2**bits - 1
    # bfloat16 has eight digits: minimum + levels must fit in them.
    lowest = (
        data.draw(st.integers(-levels, 0)) if dtype is torch.bfloat16 else data.draw(st.integers(-500, 500))
    )
    unit = 2.0 ** data.draw(st.integers(-6, 6))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    codes = torch.randint(0, levels + 1, (rows, groups, group), generator=random)
    codes[..., 2], codes[..., 5] = 0, levels
    tensor = ((codes + lowest) * unit).reshape(rows, groups * group).to(dtype)
    once = quantize(tensor, bits, group)
    assert torch.equal(dequantize(once), tensor)
    assert torch.equal(quantize(dequantize(once), bits, group).to_bytes(), once.to_bytes())
    assert (once.scale == unit).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_idempotent_on_weights(bits: int, dtype: torch.dtype) -> None:
    """Numbers like weights are quantised once and for all."""
    tensor = (torch.randn(64, 512, generator=torch.Generator().manual_seed(1)) * 0.05).half().to(dtype)
    once = quantize(tensor, bits)
    again = quantize(dequantize(once), bits)
    assert torch.equal(once.data, again.data)
    assert torch.equal(dequantize(once), dequantize(again))


def test_by_hand() -> None:
    """Two rows of two groups of two: step 1 and 2, then 0 (a constant group) and 0.5."""
    tensor = torch.tensor([[0.0, 15.0, -10.0, 20.0], [3.0, 3.0, 1.0, 8.5]], dtype=torch.float16)
    quantized = quantize(tensor, 4, 2)
    assert quantized.scale.tolist() == [[1, 2], [0, 0.5]]
    assert quantized.minimum.tolist() == [[0, -10], [3, 1]]
    # Low four bits: the first half of the row, codes 0 15 and 0 0; high: the second, 0 15 and 0 15.
    assert quantized.data.tolist() == [[0, 15 + 16 * 15], [0, 16 * 15]]
    halves = [1.0, 2.0, 0.0, 0.5, 0.0, -10.0, 3.0, 1.0]
    floats = torch.tensor(halves, dtype=torch.float16).view(torch.uint8)
    assert quantized.to_bytes().tolist() == [*floats.tolist(), 0, 255, 0, 240]
    assert torch.equal(dequantize(quantized), tensor)


def test_rounding_by_hand() -> None:
    """Group of eight from 0 to 255 in four bits: steps of 17."""
    tensor = torch.tensor([0.0, 8.0, 9.0, 25.0, 26.0, 100.0, 254.0, 255.0])
    assert dequantize(quantize(tensor, 4, 8)).tolist() == [0, 0, 17, 17, 34, 102, 255, 255]


@given(tensors(), bits_of, group_of)
def test_flat_form(tensor: torch.Tensor, bits: int, group: int) -> None:
    """What is written comes back from any even place, and as a view."""
    quantized = quantize(tensor, bits, group)
    room = torch.zeros(quantized.nbytes + 20, dtype=torch.uint8)
    flat = quantized.to_bytes(room[6:])
    assert torch.equal(flat, quantized.to_bytes())
    assert not room[:6].any()
    assert not room[6 + quantized.nbytes :].any()
    seen = Quantized.from_buffer(room[6:], quantized.form)
    assert torch.equal(seen.data, quantized.data)
    assert torch.equal(seen.scale, quantized.scale)
    assert torch.equal(seen.minimum, quantized.minimum)
    assert seen.scale.data_ptr() == room.data_ptr() + 6
    direct = quantize(tensor, bits, group, out=torch.zeros_like(room)[10:])
    assert torch.equal(direct.to_bytes(), flat)


@given(st.integers(1, 40), st.integers(1, 6), bits_of, st.sampled_from([32, 64, 128]))
def test_bytes_are_those_of_the_plan(rows: int, groups: int, bits: int, group: int) -> None:
    """Without incomplete groups, bytes are what the planner counts."""
    form = QuantizedForm((rows, groups * group), torch.float16, bits, group)
    assert form.nbytes == rows * groups * group * stored_bits(bits, group) / 8
    parts = quantize(torch.zeros(form.shape, dtype=torch.float16), bits, group)
    assert (
        form.nbytes == sum(part.nbytes for part in (parts.data, parts.scale, parts.minimum)) == parts.nbytes
    )


def test_incomplete_groups_are_filled_up() -> None:
    """Every group has its bytes, also one with a single element."""
    assert QuantizedForm((3, 65), torch.float16, 4, 64).nbytes == 3 * 2 * (32 + 4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 64)])
def test_empty(bits: int, shape: tuple[int, ...]) -> None:
    """Nothing is quantised to nothing."""
    quantized = quantize(torch.zeros(shape), bits)
    assert quantized.nbytes == 0
    assert dequantize(quantized).shape == shape


@pytest.mark.parametrize("bits", [4, 8])
def test_many_tiles_are_as_one(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working on some rows at a time changes no result."""
    tensor = torch.randn(33, 100, generator=torch.Generator().manual_seed(2)).half()
    whole = quantize(tensor, bits, 16)
    monkeypatch.setattr("executor.quantize._TILE", {"cpu": 500})
    tiled = quantize(tensor, bits, 16)
    assert torch.equal(whole.to_bytes(), tiled.to_bytes())
    assert torch.equal(dequantize(whole), dequantize(tiled))


def test_out() -> None:
    """Results go where they are asked to, also across rows that do not touch, and in another type."""
    tensor = torch.randn(4, 6, 32).half()
    quantized = quantize(tensor.transpose(0, 1), 8, 32)
    want = dequantize(quantized)
    room = torch.zeros(6, 9, 32)
    assert torch.equal(dequantize(quantized, out=room[:, :4]), want.float()) is False  # rounded once less
    assert torch.equal(room[:, :4].half(), want)
    with pytest.raises(ValueError, match="out has shape"):
        dequantize(quantized, out=room)
    with pytest.raises(ValueError, match="even address"):
        Quantized.from_buffer(torch.zeros(4000, dtype=torch.uint8)[1:], quantized.form)
    with pytest.raises(ValueError, match="flat uint8 buffer"):
        Quantized.from_buffer(torch.zeros(4, dtype=torch.uint8), quantized.form)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_refused(bad: float, dtype: torch.dtype) -> None:
    """One bad element anywhere is an error, not a group of zeros."""
    tensor = torch.zeros(3, 130, dtype=dtype)
    tensor[1, 129] = bad
    with pytest.raises(InputError, match=r"shape \[3, 130\] holds NaN.*keep it at 16 bits"):
        quantize(tensor, 4)


def test_what_16_bits_cannot_describe_is_refused() -> None:
    """Minima and spans have 16 bits; what is beyond is an error."""
    for tensor in (
        torch.tensor([0.0, 1e9]),
        torch.tensor([-1e9, -1e9]),
        torch.tensor([65504.0, -65504.0]).half(),
    ):
        with pytest.raises(InputError, match=r"range beyond torch\.float16"):
            quantize(tensor, 4)
    wide = torch.tensor([-3e38, 3e38], dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"range beyond torch\.bfloat16"):
        quantize(wide, 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "bits", "group", "message"),
    [
        ((64,), torch.float16, 3, 64, "bits: 3"),
        ((64,), torch.float16, 4, 7, "group: 7"),
        ((64,), torch.float16, 4, 0, "group: 0"),
        ((64,), torch.int32, 4, 64, r"torch\.int32"),
        ((), torch.float16, 4, 64, r"shape \[\]"),
    ],
)
def test_wrong_questions(
    shape: tuple[int, ...], dtype: torch.dtype, bits: int, group: int, message: str
) -> None:
    """Other bits, groups, types and shapes name what is wrong."""
    with pytest.raises(InputError, match=message):
        quantize(torch.zeros(shape, dtype=dtype), bits, group)


@pytest.mark.parametrize("exponent", range(-24, -10))
@pytest.mark.parametrize("bits", [4, 8])
def test_subnormal_steps_do_not_overflow_the_codes(exponent: int, bits: int) -> None:
    """Where the scale has few digits left it is rounded up, so the largest code stays the largest."""
    tensor = (torch.rand(8, 64, generator=torch.Generator().manual_seed(3)) * 2.0**exponent).half()
    quantized = quantize(tensor, bits, 64)
    step = per_element(quantized.scale, quantized)
    back = dequantize(quantized)
    assert ((back.double() - tensor.double()).abs() <= step / 2 + rounding(back)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_and_cpu_agree(bits: int, dtype: torch.dtype) -> None:
    """The same operations give the same bits on both."""
    tensor = torch.randn(300, 1000, generator=torch.Generator().manual_seed(4)).to(dtype)
    here = quantize(tensor, bits)
    there = quantize(tensor.cuda(), bits)
    assert torch.equal(here.to_bytes(), there.to_bytes().cpu())
    assert torch.equal(dequantize(here), dequantize(there).cpu())
