"""Measuring a machine: runs the probes, fits every operation, and gives a hardware profile."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from executor.checkpoint import Checkpoint
from executor.contention import Shares, shares
from executor.fit import Fit
from executor.fits import alone_seconds, fit_all
from executor.observe import Kind, Run
from executor.probe import REFERENCE, Probe, pageable, quick, run_probe
from executor.probe_models import SHAPES, make_checkpoint
from executor.profile_of import Measured, Memories, profile_of
from simulator.calibration import Mode
from simulator.errors import InputError
from simulator.hardware import HardwareProfile, LaneName
from simulator.runtime import load_runtime

_ROUNDS: Mapping[Mode, int] = {"quick": 1, "thorough": 4}
_REFERENCES = 5  # times that the reference probe is run, the first and the last included
_OWN = 0.75 * 2**30  # bytes that Python and torch take beside the plan's memory
_GPU_OWN = 1.5 * 2**30  # bytes that CUDA, its kernels and torch's allocator take
_SPLIT = (0.65, 0.25)  # of a memory that is both tiers: for the GPU's and the CPU's


@dataclass(frozen=True)
class Options:
    """What is measured, and where.

    Attributes:
        name: of the profile.
        disk: a folder on the disk that runs will use.
        device: ``cpu`` or ``cuda``.
        mode: how long.
        dtype: the number type of the models.
        progress: hears what is done, how many of how many.
    """

    name: str
    disk: Path
    device: str
    mode: Mode
    dtype: str = "bfloat16"
    progress: Callable[[str, int, int], None] = field(default=lambda _what, _done, _total: None)


@dataclass(frozen=True)
class Session:
    """Probes that were run, in order, and the times of the reference among them. [s]"""

    runs: Sequence[tuple[Probe, Run]]
    reference: Sequence[float]

    @property
    def drift(self) -> float:
        """Relative change of the reference from the first time to the last."""
        return self.reference[-1] / self.reference[0] - 1.0

    @property
    def noise(self) -> float:
        """Half of the central 90 % of the reference's times, over their median."""
        low, middle, high = np.quantile(self.reference, [0.05, 0.5, 0.95])
        return float(min(0.9, (high - low) / 2 / middle))


def calibrate(options: Options) -> HardwareProfile:
    """Measure this machine.

    Raises:
        PlannerError: a probe cannot be run, or what was measured does not determine a rate.
        KeyboardInterrupt: the user interrupted; nothing is left behind.
    """
    session = measure(options)
    return fitted_profile(session, options)


def measure(options: Options) -> Session:
    """Run all probes, in rounds, with the reference between them."""
    device = torch.device(options.device)
    runtime = load_runtime("reference")
    probes = [*quick()] * _ROUNDS[options.mode]
    if device.type == "cuda":
        probes += [pageable(probe) for probe in quick() if _copies(probe)]
    every = max(1, len(probes) // (_REFERENCES - 2))
    order: list[Probe] = [REFERENCE, REFERENCE]  # the first is to warm up
    for number, probe in enumerate(probes):
        order.append(probe)
        if number % every == every - 1:
            order.append(REFERENCE)
    with tempfile.TemporaryDirectory(prefix="planner-calibrate-", dir=options.disk) as folder:
        total = len(SHAPES) + len(order) + 1
        checkpoints: dict[str, Checkpoint] = {}
        for number, (name, shape) in enumerate(SHAPES.items()):
            options.progress("writing models to measure with", number, total)
            checkpoints[name] = make_checkpoint(Path(folder) / name, shape, options.dtype)
        runs = []
        for number, probe in enumerate([*order, REFERENCE]):
            options.progress("measuring", len(SHAPES) + number, total)
            run = run_probe(probe, checkpoints[probe.model], runtime, device, Path(folder))
            runs.append((probe, run))
        options.progress("fitting", total, total)
    runs = runs[1:]
    return Session(runs, [float(run.trace.end.max()) for probe, run in runs if probe == REFERENCE])


def check_disk(disk: Path) -> None:
    """Check the folder to measure on.

    Raises:
        InputError: it is none, or its disk has too little space.
    """
    if not disk.is_dir():
        raise InputError(f"--disk: there is no folder {disk}; make it, or give another one")
    need = 5e9
    free = shutil.disk_usage(disk).free
    if free < need:
        raise InputError(
            f"--disk {disk}: {free / 1e9:.1f} GB are free and {need / 1e9:.0f} GB are needed; free some"
        )


def _copies(probe: Probe) -> bool:
    return not probe.overlap and (probe.homes.weights.cpu > 0 or probe.homes.cache.cpu > 0)


def shared(runs: Sequence[Run], fits: Mapping[Kind, Fit], device: str) -> tuple[str, str, Shares]:
    """Find what lanes share: the cores where all of them are threads, else what the CPU's attention uses."""
    whole: LaneName = "gpu" if device == "cpu" else "cpu"
    name = "cores" if device == "cpu" else "dram"
    return name, whole, shares(runs, alone_seconds(runs, fits), whole)


def fitted_profile(session: Session, options: Options) -> HardwareProfile:
    """Fit all that was measured."""
    pinned = [(probe, run) for probe, run in session.runs if probe.pinned]
    slow = [(probe, run) for probe, run in session.runs if not probe.pinned]
    fits, undetermined = fit_all(pinned)
    names = ("load_weights", "store_cache")
    pageable_fits = {kind[0]: each for kind, each in fit_all(slow)[0].items() if kind[0] in names}
    overlapped = [run for probe, run in session.runs if probe.overlap]
    memories = memories_of(options)
    gpu, cpu = engine_names(options.device)
    return profile_of(
        Measured(
            name=options.name,
            description=f"{gpu}, measured by planner calibrate with the disk that it was given.",
            gpu=gpu,
            cpu=cpu,
            fits=fits,
            pageable=pageable_fits,
            shares=shared(overlapped, fits, options.device),
            memories=memories,
            calibration=about(session, options) | {"undetermined": undetermined},
        )
    )


def about(session: Session, options: Options) -> dict[str, Any]:
    """Say how, when and on what was measured."""
    now = datetime.datetime.now(datetime.UTC)
    gpu, cpu = engine_names(options.device)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "mode": options.mode,
        "machine": {
            "gpu": gpu,
            "cpu": cpu,
            "cores": str(os.cpu_count()),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "offload-planner": metadata.version("offload-planner"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "drift": round(session.drift, 4),
        "noise": round(session.noise, 4),
    }


def engine_names(device: str) -> tuple[str, str]:
    """Name the GPU, or what plays its part, and the processor."""
    cpu = _processor()
    return (torch.cuda.get_device_name() if device == "cuda" else cpu), cpu


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def memories_of(options: Options) -> Memories:
    """Ask the system how much memory there is. [B]"""
    disk = float(shutil.disk_usage(options.disk).free)
    host = _available()
    if options.device == "cpu":
        gpu, cpu = (share * host for share in _SPLIT)
        return Memories(gpu, cpu, disk, _OWN, 0.0, unified=True)
    _, total = torch.cuda.mem_get_info()
    return Memories(float(total), host, disk, _GPU_OWN, 0.1 * host, unified=False)


def _available() -> float:
    """Give the memory that programs may take now. [B]"""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) * 0.8
