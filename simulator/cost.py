"""Seconds: what the work of an operation takes on a machine. The one place where rates meet work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.hardware import LANES, Capacity, DType, HardwareProfile, Roofline
from simulator.operations import OPERATIONS, Operation
from simulator.policy import FloatArray


class CopyRate(NamedTuple):
    """An achieved copy rate [B/s] and what each copy costs before its first byte [s]."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Rates:
    """A machine as one run sees it: its profile, the model's number type, pinned or pageable host memory."""

    hardware: HardwareProfile
    dtype: DType = "float16"
    pinned: bool = True

    def copy(self, lane: str) -> CopyRate:
        """Give the achieved copy rate of a lane that moves bytes."""
        links = self.hardware.links
        if lane in ("disk_read", "disk_write"):
            disk = links.disk_read if lane == "disk_read" else links.disk_write
            return CopyRate(disk.bandwidth, disk.latency)
        host = links.h2d if lane == "h2d" else links.d2h
        rate = host.pinned if self.pinned else host.pageable
        return CopyRate(rate.bandwidth, rate.latency)

    def roofline(self, operation: Operation) -> Roofline:
        """Give the roofline of a kernel's operation."""
        engine = self.hardware.engines["cpu" if operation.lane == "cpu" else "gpu"]
        if operation.cost == "matmul":
            return engine.matmul[engine.compute_dtype(self.dtype)]
        return engine.attention.prefill if operation.cost == "prompt_attention" else engine.attention.decode

    def seconds(
        self, operation: Operation, flops: FloatArray, bytes_: FloatArray, kernels: FloatArray | float
    ) -> FloatArray:
        """Give the time of work done alone at full speed, elementwise. [s]

        A copy takes ``copies x latency + bytes / bandwidth``, a conversion ``bytes / rate``, a kernel its
        roofline. With ``kernels`` of 0 this is homogeneous in the work, so it maps the columns of an affine
        form whose FLOPs and bytes are proportional to the columns of its time.
        """
        if operation.cost == "none":
            return np.zeros_like(bytes_)
        if operation.cost == "copy":
            rate = self.copy(operation.lane)
            return np.asarray(kernels * rate.latency + bytes_ / rate.bandwidth)
        if operation.cost in ("dequantize", "quantize"):
            conversion = self.hardware.engines["cpu" if operation.lane == "cpu" else "gpu"].conversion
            rate_of = conversion.dequantize if operation.cost == "dequantize" else conversion.quantize
            return np.asarray(bytes_ / rate_of)
        return np.asarray(self.roofline(operation).seconds(flops, bytes_, kernels))

    def draw(
        self, capacity: Capacity, operation: Operation, bytes_: FloatArray, seconds: FloatArray
    ) -> FloatArray:
        """Give what a task takes from a shared capacity: bytes, or seconds of a share of the cores."""
        factor = capacity.lanes.get(operation.lane, 0.0)
        return factor * (bytes_ if capacity.bandwidth is not None else seconds)


def limit(capacity: Capacity) -> float:
    """Give the rate of a shared capacity, in what :meth:`Rates.draw` counts per second."""
    return capacity.bandwidth if capacity.bandwidth is not None else float(capacity.share or 0.0)


LANE_OF_OPERATION = np.array([LANES.index(operation.lane) for operation in OPERATIONS], dtype=np.int8)
