"""Seconds: what the work of an operation takes on a machine. The one place where rates meet work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.calibration import Operations
from simulator.hardware import LANES, Capacity, DiskLink, DType, HardwareProfile, HostLink, Roofline
from simulator.operations import OPERATIONS, Operation
from simulator.policy import FloatArray
from simulator.runtime import Runtime


class CopyRate(NamedTuple):
    """An achieved copy rate [B/s], what each copy costs before its first byte, and each piece of it [s]."""

    bandwidth: float
    latency: float
    piece: float = 0.0

    def seconds(
        self, bytes_: FloatArray, kernels: FloatArray | float, pieces: FloatArray | float
    ) -> FloatArray:
        """Give ``copies x latency + pieces x piece + bytes / bandwidth``, elementwise. [s]"""
        return np.asarray(kernels * self.latency + pieces * self.piece + bytes_ / self.bandwidth)


#: Bytes that pass through the CPU's memory for each byte of a task, where these are not as many.
_HOST_TRAFFIC = {"stage": 2.0, "expand": 3.0}  # read and written; read, and written twice as wide

#: The kernel that begins a (layer, group), by how an engine divides layers.
BEGINS = {"block": ("embed", "qkv", "head"), "half": ("embed", "qkv", "mlp", "head")}


@dataclass(frozen=True)
class Rates:
    """A machine as one run sees it: its profile, the engine, the model's number type, pinned host memory."""

    hardware: HardwareProfile
    runtime: Runtime
    dtype: DType = "float16"
    pinned: bool = True

    @property
    def measured(self) -> Operations | None:
        """Rates of single operations, if this engine's were measured."""
        found = self.hardware.operations
        return found if found is not None and found.runtime == self.runtime.name else None

    def hands_over(self, operation: Operation) -> bool:
        """Say whether a load of weights copies nothing."""
        loads = operation.name == "load_weights"
        return loads and self.runtime.hands_over and self.hardware.unified_memory

    def copy(self, operation: Operation) -> CopyRate:
        """Give the achieved rate of a copy: over the disk's link or the host's, for its class of tensors."""
        own = self.measured.transfers.get(operation.name) if self.measured else None
        if self.hands_over(operation):
            return CopyRate(math.inf, own.latency if own else 0.0)
        if own is not None:
            return CopyRate(own.bandwidth, own.latency, own.piece)
        links = self.hardware.links
        if operation.lane == "disk_read":
            return CopyRate(links.disk_read.bandwidth, links.disk_read.latency)
        if operation.lane == "disk_write":
            return self._write(links.disk_write)
        return self._host_copy(operation, links.h2d if operation.lane == "h2d" else links.d2h)

    def _host_copy(self, operation: Operation, host: HostLink) -> CopyRate:
        assert operation.of is not None
        if self.runtime.pinned.of(operation.of, self.pinned):
            rate = CopyRate(host.pinned.bandwidth, host.pinned.latency)
        elif self.runtime.staging == "driver":
            rate = CopyRate(host.pageable.bandwidth, host.pageable.latency)
        elif operation.lane == "h2d":  # the host has copied it to pinned memory: ``stage_cache`` and others
            rate = CopyRate(host.pinned.bandwidth, host.pageable.latency)
        else:  # a thread copies it into a pinned buffer and from there to its place
            relayed = 1.0 / (1.0 / host.pinned.bandwidth + 1.0 / _staging(host))
            rate = CopyRate(relayed, host.pageable.latency)
        if operation.name != "load_weights":
            return rate
        extra = self.runtime.overheads
        return CopyRate(rate.bandwidth * extra.link_share, rate.latency + extra.load_weights)

    def _write(self, disk: DiskLink) -> CopyRate:
        if self.runtime.disk_io == "direct":
            return CopyRate(disk.bandwidth, disk.latency)
        return CopyRate(disk.cached or disk.bandwidth, self.runtime.overheads.write_cache)

    def _copy_seconds(
        self,
        operation: Operation,
        bytes_: FloatArray,
        kernels: FloatArray | float,
        blocks: FloatArray | float,
    ) -> FloatArray:
        """Give the time of copies; a thread reads each mapped file."""
        rate = self.copy(operation)
        disk = self.hardware.links.disk_read
        if operation.lane != "disk_read" or self.runtime.disk_io == "direct" or disk.stream is None:
            return rate.seconds(bytes_, kernels, blocks)
        threads = np.where(np.asarray(kernels) > 0, np.asarray(kernels) * disk.stream, np.inf)
        return np.asarray(np.sign(kernels) * rate.latency + bytes_ / np.minimum(rate.bandwidth, threads))

    def roofline(self, operation: Operation) -> Roofline:
        """Give the roofline of a kernel's operation."""
        engine = self.hardware.engines["cpu" if operation.lane == "cpu" else "gpu"]
        dtype = engine.compute_dtype(self.dtype)
        if self.measured and operation.name in self.measured.kernels.get(dtype, {}):
            return self.measured.kernels[dtype][operation.name]
        if operation.cost == "matmul":
            return engine.matmul[dtype]
        return engine.attention.prefill if operation.cost == "prompt_attention" else engine.attention.decode

    def seconds(
        self,
        operation: Operation,
        flops: FloatArray,
        bytes_: FloatArray,
        kernels: FloatArray | float,
        steps: FloatArray | float = 0.0,
        blocks: FloatArray | float = 0.0,
    ) -> FloatArray:
        """Give the time of work done alone at full speed, elementwise. [s]

        A copy takes ``copies x latency + pieces x piece + bytes / bandwidth``, a conversion ``bytes / rate``
        (a measured one like a copy), a kernel its roofline. ``blocks`` of a copy are its pieces. With
        ``kernels`` of 0 this is homogeneous in the work, so it maps the columns of an affine form whose
        FLOPs, bytes and blocks are proportional to the columns of its time.
        """
        if operation.cost == "none":
            return np.zeros_like(bytes_)
        if operation.cost == "copy" or (self.measured and operation.name in self.measured.transfers):
            return self._copy_seconds(operation, bytes_, kernels, blocks)
        if operation.cost not in ("matmul", "attention", "prompt_attention"):
            return np.asarray(bytes_ / self.conversion(operation))
        depth = np.divide(steps, kernels, out=np.zeros(np.shape(kernels)), where=np.asarray(kernels) > 0.0)
        seconds = self.roofline(operation).seconds(flops, bytes_, kernels, depth, blocks)
        if operation.name in BEGINS[self.runtime.layers]:
            seconds = seconds + np.sign(kernels) * self.runtime.overheads.cell
        return np.asarray(seconds)

    def conversion(self, operation: Operation) -> float:
        """Give the rate at which an engine stages, expands, quantises or dequantises. [B/s]"""
        if self.measured and operation.name in self.measured.transfers:
            return self.measured.transfers[operation.name].bandwidth
        if operation.cost == "stage":
            return _staging(self.hardware.links.h2d)
        engine = self.hardware.engines["cpu" if operation.lane == "cpu" else "gpu"]
        conversion = engine.conversion
        if operation.cost == "expand":
            return conversion.expand or engine.attention.decode.bandwidth / _HOST_TRAFFIC["expand"]
        return conversion.dequantize if operation.cost == "dequantize" else conversion.quantize

    def draw(
        self, capacity: Capacity, operation: Operation, bytes_: FloatArray, seconds: FloatArray
    ) -> FloatArray:
        """Give what a task takes from a shared capacity: bytes, or seconds of a share of the cores."""
        factor = capacity.lanes.get(operation.lane, 0.0)
        if capacity.bandwidth is None:
            return factor * seconds
        if self.hands_over(operation):
            return np.zeros_like(bytes_)
        return factor * _HOST_TRAFFIC.get(operation.cost, 1.0) * bytes_


def _staging(link: HostLink) -> float:
    return link.staging or link.pageable.bandwidth


def limit(capacity: Capacity) -> float:
    """Give the rate of a shared capacity, in what :meth:`Rates.draw` counts per second."""
    return capacity.bandwidth if capacity.bandwidth is not None else float(capacity.share or 0.0)


LANE_OF_OPERATION = np.array([LANES.index(operation.lane) for operation in OPERATIONS], dtype=np.int8)
