"""Quantities with units: what is written reads back, and what has no unit is refused."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.units import (
    BYTE_RATE,
    BYTES,
    DURATION,
    FLOP_RATE,
    POWER,
    PRICE,
    Dimension,
    one_line,
    shortened,
)

DIMENSIONS = (BYTES, BYTE_RATE, FLOP_RATE, DURATION, POWER, PRICE)
NOT_QUANTITIES: tuple[object, ...] = (
    *(12.9, 12, None, True, [], {}, "", "\uff11 B", "1\nB 2"),
    *("12.9", "GB/s", "12,9 GB/s", "12.9 parsecs", "nan GB", "inf s", "1_0 B"),
    *("$", "--1 B", "1e B", "1 B B", "1 gb", "0x10 B", "1 W/s"),
)
dimensions = st.sampled_from(DIMENSIONS)


@st.composite
def quantities(draw: st.DrawFn) -> tuple[Dimension, float]:
    """Draw a dimension and a plausible value of it."""
    dimension = draw(dimensions)
    low, high = dimension.low, dimension.high
    round_value = st.builds(float, st.integers(math.ceil(low), int(high)))
    return dimension, draw(st.floats(low, high) | round_value)


@given(quantities())
def test_format_then_parse_is_the_identity(quantity: tuple[Dimension, float]) -> None:
    """Every plausible value of every dimension is read back to the last bit."""
    dimension, value = quantity
    assert dimension.parse(dimension.format(value)) == value


@given(quantities())
def test_format_is_stable(quantity: tuple[Dimension, float]) -> None:
    """Writing what was read gives the same text, so a file does not change by passing through."""
    dimension, value = quantity
    text = dimension.format(value)
    assert dimension.format(dimension.parse(text)) == text


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda dimension: dimension.name)
def test_limits_and_examples_are_plausible(dimension: Dimension) -> None:
    """The example that errors print, and both ends of the range, are accepted."""
    for text in (dimension.example, dimension.format(dimension.low), dimension.format(dimension.high)):
        assert dimension.low <= dimension.parse(text) <= dimension.high


@pytest.mark.parametrize(
    ("dimension", "text", "value"),
    [
        (BYTES, "16 GiB", 16 * 2**30),
        (BYTES, "16GB", 16e9),
        (BYTES, " 1.5 TB ", 1.5e12),
        (BYTES, "+2e3 kB", 2e6),
        (BYTES, "0 B", 0.0),
        (BYTE_RATE, "12.9 GB/s", 12.9e9),
        (BYTE_RATE, "1 TiB/s", 2**40),
        (FLOP_RATE, ".5 PFLOP/s", 5e14),
        (DURATION, "10.94 us", 10.94e-6),
        (DURATION, "15 ns", 15e-9),
        (POWER, "0.35 kW", 350.0),
        (PRICE, "2 $/h", 2.0),
    ],
)
def test_known_values(dimension: Dimension, text: str, value: float) -> None:
    """GB is 10^9, GiB is 2^30, and the float is the one nearest to what is written."""
    assert dimension.parse(text) == value


@pytest.mark.parametrize(
    ("dimension", "value", "text"),
    [
        (BYTES, 256e9, "256 GB"),
        (BYTES, 2.0**38, "256 GiB"),
        (BYTES, 0.0, "0 B"),
        (BYTE_RATE, 12.9e9, "12.9 GB/s"),
        (FLOP_RATE, 6.79e13, "67.9 TFLOP/s"),
        (DURATION, 1.09e-5, "10.9 us"),
        (DURATION, 1e-10, "1e-10 s"),
        (PRICE, 0.53, "0.53 USD/h"),
    ],
)
def test_texts_are_short(dimension: Dimension, value: float, text: str) -> None:
    """A round number is written as a person would write it."""
    assert dimension.parse(text) == value
    assert dimension.format(value) == text


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda dimension: dimension.name)
@pytest.mark.parametrize("wrong", NOT_QUANTITIES, ids=repr)
def test_what_is_not_a_quantity_is_refused(dimension: Dimension, wrong: object) -> None:
    """A bare number, another unit or no number at all is an error of one line that shows an example."""
    with pytest.raises(ValueError, match="expected") as caught:
        dimension.parse(wrong)
    assert dimension.example in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda dimension: dimension.name)
@pytest.mark.parametrize("number", ["-1", "1e999", "1e999999999", "9" * 400, "-1e30"])
def test_what_is_not_plausible_is_refused(dimension: Dimension, number: str) -> None:
    """A negative or an absurd value is an error that names the range, however it is written."""
    unit = next(iter(dimension.units))
    with pytest.raises(ValueError, match="must lie between"):
        dimension.parse(f"{number} {unit}")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text whatsoever makes the reader fail in another way."""
    for dimension in DIMENSIONS:
        with contextlib.suppress(ValueError):
            assert dimension.low <= dimension.parse(text) <= dimension.high


@given(st.text(max_size=500) | st.integers() | st.lists(st.integers()))
def test_values_in_errors_are_short(value: object) -> None:
    """An error shows a value on one line and not for ever."""
    assert len(shortened(value)) <= 63
    assert shortened(value).isprintable()


@given(st.text(max_size=80))
def test_messages_are_one_printable_line(text: str) -> None:
    """Whatever stands in a file, a message about it is one line, and a printable line is left as it is."""
    assert one_line(text).isprintable()
    assert one_line(one_line(text)) == one_line(text)
