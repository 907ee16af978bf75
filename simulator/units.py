"""Quantities with units: text on the outside, SI floats on the inside.

Everything inside the program is in seconds, bytes, FLOPs and their rates. Units appear only where
people read or write, and only this module converts. GB is 10^9 bytes, GiB is 2^30 bytes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY = re.compile(
    r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z/$][A-Za-z0-9/$]*)\s*", re.ASCII
)


_LONGEST_SHOWN = 60


def shortened(value: object) -> str:
    """Show a value in an error message: on one line and not for ever."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def one_line(text: str) -> str:
    """Write a message on one line of printable characters."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


@dataclass(frozen=True)
class Dimension:
    """A kind of quantity: its name, an example, its units in SI, and the range that is plausible."""

    name: str
    example: str
    units: dict[str, float]
    low: float
    high: float

    def parse(self, text: object) -> float:
        """Read ``"12.9 GB/s"`` as 1.29e10.

        Raises:
            ValueError: no unit, an unknown unit, or a value outside the plausible range.
        """
        expected = f'expected {self.name} such as "{self.example}"'
        if not isinstance(text, str):
            raise ValueError(f"{expected}; got {shortened(text)}")
        match = _QUANTITY.fullmatch(text)
        if match is None or match[2] not in self.units:
            raise ValueError(f"{expected}; got {shortened(text)}")
        value = _scaled(match[1], self.units[match[2]])
        if not self.low <= value <= self.high:
            raise ValueError(
                f"{shortened(text)} is not plausible for {self.name}: "
                f"it must lie between {self.format(self.low)} and {self.format(self.high)}"
            )
        return value

    def format(self, value: float) -> str:
        """Write a value in the largest unit that keeps it at 1 or more; reads back to the same float."""
        if value == 0:
            return f"0 {min(self.units, key=self.units.__getitem__)}"
        fitting = [(unit, factor) for unit, factor in self.units.items() if factor <= abs(value)]
        for digits in (12, 17):
            for unit, factor in sorted(fitting, key=lambda item: -item[1]):
                number = f"{value / factor:.{digits}g}"
                if _scaled(number, factor) == value:
                    return f"{number} {unit}"
        unit, factor = min(self.units.items(), key=lambda item: abs(math.log(item[1])))
        return f"{value / factor!r} {unit}"


def multiplied(text: str, factor: str) -> str:
    """Multiply a quantity, in its own unit and in decimal; a plain number too.

    Raises:
        ValueError: it is neither.

    >>> multiplied("12.9 GB/s", "2"), multiplied("0.5", "3")
    ('25.8 GB/s', '1.5')
    """
    match = _QUANTITY.fullmatch(text)
    number, unit = (match[1], f" {match[2]}") if match else (text, "")
    try:
        return f"{Decimal(number.strip()) * Decimal(factor):f}{unit}"
    except InvalidOperation:
        raise ValueError(f"{shortened(text)} is not a number that can be multiplied") from None


def _scaled(number: str, factor: float) -> float:
    """Multiply in decimal, so that ``"10.94 us"`` is the float nearest to 10.94e-6."""
    if not math.isfinite(float(number)):
        return float(number)
    return float(Decimal(number) * Decimal(repr(factor)))


def _prefixed(suffix: str, *, binary: bool = False) -> dict[str, float]:
    prefixes = _DECIMAL | _BINARY if binary else _DECIMAL
    return {prefix + suffix: factor for prefix, factor in prefixes.items()}


BYTES = Dimension("an amount of memory", "16 GiB", _prefixed("B", binary=True), 0.0, 1e17)
BYTE_RATE = Dimension("a rate", "12.9 GB/s", _prefixed("B/s", binary=True), 1e5, 1e15)
FLOP_RATE = Dimension("a compute rate", "65 TFLOP/s", _prefixed("FLOP/s"), 1e8, 1e18)
DURATION = Dimension("a time", "10 us", {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}, 0.0, 1e6)
POWER = Dimension("a power", "70 W", {"W": 1.0, "kW": 1e3}, 1.0, 1e6)
PRICE = Dimension("a price per hour", "0.53 USD/h", {"USD/h": 1.0, "$/h": 1.0}, 1e-4, 1e4)
BUDGET = Dimension(
    "a budget", "200 USD/day", {"USD/day": 1.0, "USD/h": 24.0, "USD/month": 12.0 / 365.25}, 1e-2, 1e9
)
PURCHASE = Dimension("a price", "3500 USD", {"USD": 1.0, "kUSD": 1e3}, 1.0, 1e8)

Bytes = Annotated[float, BeforeValidator(BYTES.parse), PlainSerializer(BYTES.format)]
ByteRate = Annotated[float, BeforeValidator(BYTE_RATE.parse), PlainSerializer(BYTE_RATE.format)]
FlopRate = Annotated[float, BeforeValidator(FLOP_RATE.parse), PlainSerializer(FLOP_RATE.format)]
Seconds = Annotated[float, BeforeValidator(DURATION.parse), PlainSerializer(DURATION.format)]
Watts = Annotated[float, BeforeValidator(POWER.parse), PlainSerializer(POWER.format)]
PricePerHour = Annotated[float, BeforeValidator(PRICE.parse), PlainSerializer(PRICE.format)]
Price = Annotated[float, BeforeValidator(PURCHASE.parse), PlainSerializer(PURCHASE.format)]

KIB = 2.0**10
GIB = 2.0**30
GB = 1e9
TFLOP = 1e12
