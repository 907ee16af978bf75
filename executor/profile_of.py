"""From fits to a hardware profile: every constant in its place, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from executor.contention import Shares
from executor.fit import Fit
from executor.observe import Kind
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.operations import OP, OPERATIONS
from simulator.profiles import decode_profile
from simulator.units import BYTE_RATE, BYTES, DURATION, FLOP_RATE

_SOURCE = "calibration"
DIGITS = 4
_FORMATS = {
    "flops": FLOP_RATE.format,
    "bandwidth": BYTE_RATE.format,
    "latency": DURATION.format,
    "piece": DURATION.format,
    "grain": BYTES.format,
}
#: Operations without which no plan can be predicted.
NEEDED = (
    *("qkv", "mlp", "head", "attend_prompt", "attend", "attend_cpu"),
    *("load_cache", "store_cache", "read_weights", "write_cache"),
)


@dataclass(frozen=True)
class Memories:
    """The memories of the machine, and what does not belong to plans. [B]"""

    gpu: float
    cpu: float
    disk: float
    gpu_reserve: float
    cpu_reserve: float
    unified: bool


@dataclass(frozen=True)
class Measured:
    """All that was found out about a machine.

    Attributes:
        name: of the profile.
        description: the machine in a sentence.
        gpu: what plays the GPU's part.
        cpu: the processor.
        fits: by operation and number type.
        pageable: copies from and to memory that is not pinned: to the GPU, and back.
        shares: what lanes draw of one thing, and its name.
        memories: sizes.
        calibration: how all was measured, without intervals and residuals.
    """

    name: str
    description: str
    gpu: str
    cpu: str
    fits: Mapping[Kind, Fit]
    pageable: Mapping[str, Fit]
    shares: tuple[str, str, Shares]
    memories: Memories
    calibration: Mapping[str, Any]


def profile_of(found: Measured) -> HardwareProfile:
    """Write a profile.

    Raises:
        InputError: an operation was not measured that plans need.
    """
    missing = [name for name in NEEDED if not any(kind[0] == name for kind in found.fits)]
    if missing:
        raise InputError(
            f"calibrate: {missing[0]} was not measured; measure with `planner calibrate` as it is"
        )
    kernels: dict[str, dict[str, Any]] = {}
    transfers: dict[str, Any] = {}
    for (name, dtype), fitted in found.fits.items():
        if dtype:
            lane = OPERATIONS[OP[name]].lane
            lanes = ("gpu", "cpu") if found.memories.unified else (lane,)
            kernels.setdefault(dtype, {})[name] = kernel(fitted, _fastest(found, dtype, lanes))
        else:
            transfers[name] = transfer(fitted, _most(found, (OPERATIONS[OP[name]].lane,), kernels=False))
    data = {
        "schema_version": 1,
        "name": found.name,
        "description": found.description,
        "tiers": _tiers(found.memories),
        "engines": _engines(found, kernels, transfers),
        "links": _links(found, transfers),
        "capacities": _capacities(found),
        "unified_memory": found.memories.unified,
        "operations": {"runtime": "reference", "kernels": kernels, "transfers": transfers},
        "calibration": {**found.calibration, "intervals": _intervals(found), "residuals": _residuals(found)},
        "sources": {
            _SOURCE: {"kind": "measured", "title": "planner calibrate", "date": found.calibration["date"]},
            "machine": {"kind": "measured", "title": "What the operating system reports"},
            "highest": {"kind": "measured", "title": "The highest rate measured; no datasheet was read"},
        },
    }
    return decode_profile(data, "calibrate")


def text(name: str, value: float) -> Any:
    """Write a constant with its unit, to four digits."""
    rounded = float(f"{value:.{DIGITS}g}")
    return _FORMATS[name](rounded) if name in _FORMATS else rounded


def path_of(kind: Kind) -> str:
    """Give the path of an operation's constants in a profile."""
    name, dtype = kind
    return f"operations.kernels.{dtype}.{name}" if dtype else f"operations.transfers.{name}"


def kernel(fitted: Fit, fastest: float) -> dict[str, Any]:
    """Write the constants of a kernel; FLOPs that nothing was seen to depend on take the fastest rate."""
    values = {name: value for name, value in fitted.constants.items() if name != "grain" or value > 0}
    values["flops"] = min(values["flops"], fastest)
    return {name: text(name, value) for name, value in values.items()} | {"source": _SOURCE}


def transfer(fitted: Fit, most: float) -> dict[str, Any]:
    """Write the constants of a copy; a rate that nothing was seen to depend on is that of its lane."""
    values = dict(fitted.constants)
    if "bandwidth" not in fitted.intervals:
        values["bandwidth"] = min(values["bandwidth"], most)
    return {name: text(name, value) for name, value in values.items()} | {"source": _SOURCE}


def _fastest(found: Measured, dtype: str, lanes: tuple[str, ...]) -> float:
    """Give the highest rate of the kernels of some lanes, intervals included. [FLOP/s]"""
    rates = [
        fitted.constants["flops"] * (1 + fitted.intervals["flops"].high)
        for (name, own), fitted in found.fits.items()
        if own == dtype and OPERATIONS[OP[name]].lane in lanes and "flops" in fitted.intervals
    ]
    return max(rates, default=1e12)


def _most(found: Measured, lanes: tuple[str, ...], *, kernels: bool) -> float:
    """Give the highest byte rate of kernels, or of copies, on some lanes, intervals included. [B/s]"""
    rates = [
        fitted.constants["bandwidth"] * (1 + fitted.intervals["bandwidth"].high)
        for (name, dtype), fitted in found.fits.items()
        if OPERATIONS[OP[name]].lane in lanes and bool(dtype) == kernels and "bandwidth" in fitted.intervals
        if not (found.memories.unified and name == "load_weights")
    ]
    return max(rates, default=1e9)


def _highest(found: Measured, lanes: tuple[str, ...], *, kernels: bool) -> str:
    """Write the highest byte rate of some lanes, as their peak."""
    return str(text("bandwidth", 1.001 * _most(found, lanes, kernels=kernels)))


def _tiers(sizes: Memories) -> dict[str, Any]:
    def tier(size: float, reserve: float) -> dict[str, str]:
        whole, free = (BYTES.format(float(int(each) >> 20 << 20)) for each in (size, reserve))
        return {"capacity": whole, "reserve": free, "source": "machine"}

    return {
        "gpu": tier(sizes.gpu, sizes.gpu_reserve),
        "cpu": tier(sizes.cpu, sizes.cpu_reserve),
        "disk": tier(sizes.disk, 0.0),
    }


def _engines(found: Measured, kernels: dict[str, Any], transfers: dict[str, Any]) -> dict[str, Any]:
    """Describe engines by their chief kernels, for engines other than this project's own.

    A processor beside a GPU computes nothing but attention, so that this stands for all its kernels.
    """
    together = found.memories.unified
    products = ("mlp", "attend_prompt")
    both = ("gpu", "cpu")
    gpu = _engine(found, kernels, (*products, "attend"), both if together else ("gpu",))
    others = products if together else ("attend_cpu", "attend_cpu")
    cpu = _engine(found, kernels, (*others, "attend_cpu"), both if together else ("cpu",))
    return {
        "gpu": {"name": found.gpu, **gpu, "conversion": _conversion(transfers, "dequantize_cache")},
        "cpu": {"name": found.cpu, **cpu, "conversion": _conversion(transfers, "dequantize_cache_cpu")},
    }


def _engine(
    found: Measured, kernels: dict[str, Any], names: tuple[str, str, str], lanes: tuple[str, ...]
) -> dict[str, Any]:
    """Describe an engine by a kernel for products, one for prompts, and one for cached tokens."""
    product, prompt, decoding = names
    first = next(iter(kernels.values()))
    peaks = {dtype: text("flops", _fastest(found, dtype, lanes)) for dtype in kernels}
    return {
        "peak": {
            "flops": peaks,
            "memory_bandwidth": _highest(found, lanes, kernels=True),
            "source": "highest",
        },
        "matmul": {dtype: each[product] for dtype, each in kernels.items()},
        "attention": {"prefill": first[prompt], "decode": first[decoding]},
    }


def _conversion(transfers: dict[str, Any], dequantize: str) -> dict[str, Any]:
    rate = transfers.get(dequantize, transfers["load_cache"])["bandwidth"]
    back = transfers.get("quantize_cache", {"bandwidth": rate})["bandwidth"]
    return {"dequantize": rate, "quantize": back, "source": _SOURCE}


def _links(found: Measured, transfers: dict[str, Any]) -> dict[str, Any]:
    unified = found.memories.unified
    inward = transfers["load_cache" if unified else "load_weights"]
    outward = transfers["store_cache"]
    most = _most(found, ("h2d", "d2h"), kernels=False)
    slow = {name: transfer(fitted, most) for name, fitted in found.pageable.items()}

    def disk(lane: str, rate: dict[str, Any]) -> dict[str, Any]:
        return {
            "peak": _highest(found, (lane,), kernels=False),
            **{k: v for k, v in rate.items() if k != "piece"},
        }

    def host(lane: str, pinned: dict[str, Any], pageable: dict[str, Any]) -> dict[str, Any]:
        return {"peak": _highest(found, (lane,), kernels=False), "pinned": pinned, "pageable": pageable}

    return {
        "h2d": host("h2d", inward, slow.get("load_weights", inward)),
        "d2h": host("d2h", outward, slow.get("store_cache", outward)),
        "disk_read": disk("disk_read", transfers["read_weights"]),
        "disk_write": disk("disk_write", transfers["write_cache"]),
    }


def _capacities(found: Measured) -> dict[str, Any]:
    name, whole, shares = found.shares
    if not shares:
        return {}
    lanes = {whole: 1.0} | {lane: round(share, DIGITS) for lane, (share, _) in shares.items()}
    return {name: {"share": 1.0, "lanes": lanes, "source": _SOURCE}}


def _intervals(found: Measured) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for kind, fitted in found.fits.items():
        paths |= {f"{path_of(kind)}.{constant}": each for constant, each in fitted.intervals.items()}
    capacity, _, shares = found.shares
    paths |= {f"capacities.{capacity}.lanes.{lane}": interval for lane, (_, interval) in shares.items()}
    return {
        path: {key: round(value, DIGITS) for key, value in each.model_dump().items()}
        for path, each in paths.items()
    }


def _residuals(found: Measured) -> dict[str, Any]:
    return {
        f"{name} {dtype}".strip(): {
            "tasks": fitted.residual.tasks,
            "median": round(fitted.residual.median, DIGITS),
            "ninth": round(fitted.residual.ninth, DIGITS),
        }
        for (name, dtype), fitted in found.fits.items()
    }
