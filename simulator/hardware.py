"""The machine: tiers, engines, links and what they share, read from a YAML profile.

Two kinds of figures stand side by side and are never mixed. *Peaks* come from datasheets and are the
physical limit that no prediction may beat. *Achieved* rates drive the predictions. Every section names
its source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, StrictBool, model_validator

from simulator.calibration import Calibration, Operations
from simulator.calibration import Transfer as Transfer  # noqa: PLC0414 - a part of profiles, taken from here
from simulator.kernels import Roofline as Roofline  # noqa: PLC0414 - a part of profiles, taken from here
from simulator.schema import Record
from simulator.units import (
    BYTE_RATE,
    BYTES,
    FLOP_RATE,
    ByteRate,
    Bytes,
    FlopRate,
    Price,
    PricePerHour,
    Seconds,
    Watts,
)

DType = Literal["float32", "bfloat16", "float16", "int8"]
TierName = Literal["gpu", "cpu", "disk"]
LaneName = Literal["gpu", "cpu", "h2d", "d2h", "disk_read", "disk_write"]
Factor = Annotated[float, Field(gt=0.0, le=64.0, strict=True)]
SourceKind = Literal["datasheet", "measured", "fitted", "published", "assumed"]

TIERS: tuple[TierName, ...] = ("gpu", "cpu", "disk")
LANES: tuple[LaneName, ...] = ("gpu", "cpu", "h2d", "d2h", "disk_read", "disk_write")
_SIXTEEN_BIT: tuple[DType, ...] = ("bfloat16", "float16")


class Source(Record):
    """Where figures come from; a report says on which kinds it rests."""

    kind: SourceKind
    title: str = Field(min_length=1)
    url: str | None = None
    date: str | None = None


class Tier(Record):
    """A memory: its capacity, what must stay free of the plan, how much of it can be pinned [B]."""

    capacity: Bytes
    reserve: Bytes = Field(default=0.0, validate_default=False)
    pinnable: Bytes | None = None
    source: str

    @model_validator(mode="after")
    def _reserve_fits(self) -> Self:
        if self.reserve > self.capacity:
            raise ValueError(
                f"reserve {BYTES.format(self.reserve)} exceeds capacity {BYTES.format(self.capacity)};"
                " lower it"
            )
        if self.pinnable is not None and self.pinnable > self.capacity:
            raise ValueError("pinnable exceeds capacity; lower it")
        return self

    @property
    def usable(self) -> float:
        """Bytes that a plan may fill [B]."""
        return self.capacity - self.reserve


class Peaks(Record):
    """The physical limits of an engine, from its datasheet: FLOP/s by dtype, memory bandwidth, cache size."""

    flops: dict[DType, FlopRate] = Field(min_length=1)
    memory_bandwidth: ByteRate
    cache: Bytes | None = None
    source: str


class Conversion(Record):
    """Rates of conversions, in bytes of 16-bit data produced (or consumed) per second.

    ``dequantize`` and ``quantize`` are group-wise; ``expand`` makes a float32 copy, which only engines that
    attend in float32 on the CPU do (absent: a third of the bandwidth of attention over a cache, since it
    reads once and writes twice as much).
    """

    dequantize: ByteRate
    quantize: ByteRate
    expand: ByteRate | None = None
    source: str


class Attention(Record):
    """Achieved attention kernels: over a prompt, and of one new token over cached ones."""

    prefill: Roofline
    decode: Roofline


class Engine(Record):
    """Hardware that computes."""

    name: str
    peak: Peaks
    matmul: dict[DType, Roofline] = Field(min_length=1)
    attention: Attention
    conversion: Conversion

    @model_validator(mode="after")
    def _achieved_below_peak(self) -> Self:
        highest, memory = max(self.peak.flops.values()), self.peak.memory_bandwidth
        for dtype, kernel in self.matmul.items():
            if dtype not in self.peak.flops:
                raise ValueError(f"matmul.{dtype} has no peak; add peak.flops.{dtype}")
            below_peak(f"matmul.{dtype}.flops", kernel.flops, self.peak.flops[dtype], FLOP_RATE.format)
            below_peak(f"matmul.{dtype}.bandwidth", kernel.bandwidth, memory, BYTE_RATE.format)
        for phase, kernel in (("prefill", self.attention.prefill), ("decode", self.attention.decode)):
            below_peak(f"attention.{phase}.flops", kernel.flops, highest, FLOP_RATE.format)
            below_peak(f"attention.{phase}.bandwidth", kernel.bandwidth, memory, BYTE_RATE.format)
        return self

    @model_validator(mode="after")
    def _cache_has_a_size(self) -> Self:
        kernels = {f"matmul.{dtype}": kernel for dtype, kernel in self.matmul.items()}
        kernels |= {"attention.prefill": self.attention.prefill, "attention.decode": self.attention.decode}
        for name, kernel in kernels.items():
            if kernel.cached is not None and self.peak.cache is None:
                raise ValueError(f"{name}.cached needs the size of the cache; add peak.cache")
        return self

    def compute_dtype(self, dtype: DType) -> DType:
        """Choose the type that this engine computes a model of ``dtype`` in.

        The model's own type if the engine has it, else the other 16-bit type, else float32.
        """
        return next(each for each in (dtype, *_SIXTEEN_BIT, "float32", *self.matmul) if each in self.matmul)


class HostLink(Record):
    """A link between CPU and GPU memory; copies differ between pinned and pageable host memory.

    ``staging`` is how fast the CPU itself copies pageable memory to a pinned buffer, for engines that do
    (absent: as fast as pageable copies).
    """

    peak: ByteRate
    pinned: Transfer
    pageable: Transfer
    staging: ByteRate | None = None

    @model_validator(mode="after")
    def _achieved_below_peak(self) -> Self:
        below_peak("pinned.bandwidth", self.pinned.bandwidth, self.peak, BYTE_RATE.format)
        below_peak("pageable.bandwidth", self.pageable.bandwidth, self.peak, BYTE_RATE.format)
        return self


class DiskLink(Record):
    """One direction of the disk.

    Memory-mapped files have rates of their own: ``stream`` is what one thread reads from one file, and
    ``cached`` what the page cache takes in before it writes back, which may exceed the device's peak (absent:
    the device's rate).
    """

    peak: ByteRate
    bandwidth: ByteRate
    stream: ByteRate | None = None
    cached: ByteRate | None = None
    latency: Seconds = Field(default=0.0, validate_default=False)
    source: str

    @model_validator(mode="after")
    def _achieved_below_peak(self) -> Self:
        below_peak("bandwidth", self.bandwidth, self.peak, BYTE_RATE.format)
        return self


class Links(Record):
    """The four directions in which bytes move between tiers."""

    h2d: HostLink
    d2h: HostLink
    disk_read: DiskLink
    disk_write: DiskLink

    def limit(self, lane: LaneName) -> float:
        """Give the rate that no transfer beats; the page cache may take in more than the disk. [B/s]"""
        if lane == "disk_write":
            return max(self.disk_write.peak, self.disk_write.cached or 0.0)
        return float(getattr(self, lane).peak)


class Capacity(Record):
    """A rate that several lanes share.

    With ``bandwidth``, a lane draws its factor times the bytes of its task (host-memory traffic). With
    ``share``, it draws its factor times the time of its task (processor cores: a share of 1 is all of them).
    """

    bandwidth: ByteRate | None = None
    share: Factor | None = None
    lanes: dict[LaneName, Factor] = Field(min_length=1)
    source: str

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.bandwidth is None) == (self.share is None):
            raise ValueError("give either bandwidth or share, not both and not neither")
        return self


class Cost(Record):
    """What the machine costs: its rent, or else its purchase and the power that it draws under load."""

    rent: PricePerHour | None = None
    purchase: Price | None = None
    power: Watts | None = None
    source: str


class HardwareProfile(Record):
    """A whole machine. See ``docs/hardware-profiles.md`` for every key.

    With ``unified_memory`` the gpu and the cpu tier are parts of one memory, so that an engine that can do so
    hands a layer over where another one copies it.
    """

    schema_version: Literal[1]
    name: str = Field(min_length=1, max_length=64)
    description: str
    tiers: dict[TierName, Tier]
    engines: dict[Literal["gpu", "cpu"], Engine]
    links: Links
    capacities: dict[str, Capacity] = Field(default_factory=dict)
    unified_memory: StrictBool = False
    operations: Operations | None = None
    cost: Cost | None = None
    calibration: Calibration | None = None
    sources: dict[str, Source] = Field(min_length=1)

    def __hash__(self) -> int:
        """Hash what has a hash of its own, which dictionaries have not."""
        return hash((self.name, self.links))

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for kind, names, have in (("tiers", TIERS, self.tiers), ("engines", ("gpu", "cpu"), self.engines)):
            for name in names:
                if name not in have:
                    raise ValueError(f"{kind}.{name} is missing; add it")
        for path, name in _source_names(self.model_dump(), ""):
            if name not in self.sources:
                raise ValueError(f"{path}: no source is called {name!r}; add sources.{name}")
        return self

    @property
    def content_hash(self) -> str:
        """SHA-256 over the profile's content in canonical JSON, the first 16 hexadecimal digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Write the profile as YAML that reads back into an equal profile."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)

    def source_kinds(self) -> list[SourceKind]:
        """List the kinds of sources that the profile's figures rest on."""
        return sorted({self.sources[name].kind for _, name in _source_names(self.model_dump(), "")})


def below_peak(path: str, achieved: float, peak: float, show: Callable[[float], str]) -> None:
    """Hold an achieved rate against its peak.

    Raises:
        ValueError: it is higher; the message names the path.
    """
    if achieved > peak:
        raise ValueError(f"{path}: the achieved {show(achieved)} exceeds the peak {show(peak)}; lower it")


def _source_names(data: object, path: str) -> list[tuple[str, str]]:
    """Find every ``source`` in nested data, with its path."""
    if not isinstance(data, dict):
        return []
    found = [(f"{path}source", data["source"])] if isinstance(data.get("source"), str) else []
    for key, value in data.items():
        if key != "sources":
            found += _source_names(value, f"{path}{key}.")
    return found
