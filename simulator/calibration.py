"""What a measured profile says beside rates of engines and links: single operations, and how sure all is."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.kernels import Roofline
from simulator.schema import Record
from simulator.units import ByteRate, Seconds

Share = Annotated[float, Field(ge=0.0, le=1e3)]
Mode = Literal["quick", "thorough"]


class Transfer(Record):
    """An achieved copy rate and what one copy costs before its first byte.

    ``piece`` is what each separate run of bytes costs, where a copy consists of several: rows of a table, or
    a page of every sequence.
    """

    bandwidth: ByteRate
    latency: Seconds = Field(default=0.0, validate_default=False)
    piece: Seconds = Field(default=0.0, validate_default=False)
    source: str


class Operations(Record):
    """Measured times of single operations of one engine, which go before the rates of engines and links.

    Attributes:
        runtime: the engine whose code was measured.
        kernels: by the number type that is computed in, then by operation.
        transfers: copies and conversions, by operation; conversions in bytes of 16-bit data.
    """

    runtime: str
    kernels: dict[Literal["float32", "bfloat16", "float16", "int8"], dict[str, Roofline]] = Field(
        default_factory=dict
    )
    transfers: dict[str, Transfer] = Field(default_factory=dict)


class Interval(Record):
    """How far a fitted constant may be off, as fractions of it, in 19 of 20 cases.

    Attributes:
        low: of the lowest value, -1 to 0.
        high: of the highest.
        spread: of single measurements around the fit: the median of |measured / fitted - 1|.
    """

    low: Annotated[float, Field(ge=-1.0, le=0.0)]
    high: Share
    spread: Share = 0.0


class Residual(Record):
    """How well a fit describes what it was fitted to.

    Attributes:
        tasks: measured.
        median: of |fitted / measured - 1| over kinds of tasks.
        ninth: what nine kinds in ten keep.
    """

    tasks: Annotated[int, Field(ge=1)]
    median: Share
    ninth: Share


class Calibration(Record):
    """How a profile was measured.

    Attributes:
        date: when, in UTC.
        mode: how long was measured.
        machine: what it was measured on, in words.
        versions: of the programs that measured.
        drift: of the first probe, measured again at the end: relative change of its time.
        noise: half of the central 90 % of the times of one probe, run again between the others, over their
            median: what all rates have in common that no constant explains.
        intervals: of fitted constants, by their path in the profile.
        residuals: of fits, by operation.
        undetermined: operations whose rates the measurements did not determine; those of engines and links
            stand in.
        refined: traces of real runs that rates were corrected from.
    """

    date: str
    mode: Mode
    machine: dict[str, str]
    versions: dict[str, str]
    drift: float
    noise: Share
    intervals: dict[str, Interval]
    residuals: dict[str, Residual]
    undetermined: tuple[str, ...] = ()
    refined: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _noise_is_plausible(self) -> Self:
        if self.noise >= 1.0:
            raise ValueError("noise is a fraction below 1; measure on a quieter machine")
        return self
