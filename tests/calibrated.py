"""A calibrated machine for tests, and traces of it as its own simulation gives them, with noise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from executor.calibrate import Session
from executor.observe import Run
from executor.probe import REFERENCE, Probe, quick
from executor.probe_models import SHAPES, llama_config
from simulator.cost import Rates
from simulator.generate import generate
from simulator.hardware import LANES, HardwareProfile
from simulator.kernel import event_loop
from simulator.layout import Placed
from simulator.model import ModelSpec
from simulator.model_config import parse_config
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.simulate import Simulation, capacity_draws, rates_of, task_seconds
from simulator.trace import from_simulation

#: A profile that `planner calibrate` wrote on a small machine without a GPU.
CALIBRATED = Path(__file__).parent / "golden" / "calibrated.yaml"


def machine() -> HardwareProfile:
    """Read the calibrated machine."""
    return load_profile(str(CALIBRATED))


def models(dtype: str = "bfloat16") -> dict[str, ModelSpec]:
    """Give the models that probes run."""
    return {name: parse_config(llama_config(shape, dtype), name) for name, shape in SHAPES.items()}


def noisy_run(placed: Placed, rates: Rates, noise: float, rng: np.random.Generator) -> Run:
    """Play a layout in which each task takes so much longer or shorter by chance, as a measured run."""
    schedule = generate(placed, None)
    seconds = task_seconds(schedule, rates) * np.exp(noise * rng.standard_normal(len(schedule)))
    draws, limits = capacity_draws(schedule, rates, seconds)
    start, end = event_loop(schedule.lane, schedule.waits_for, seconds, draws, limits, len(LANES))
    about = {"kind": "measured", "dtype": placed.model.dtype, "full_length": "yes"}
    return Run(from_simulation(Simulation(schedule, seconds, start, end), placed, about), placed.model.dtype)


def session(
    hardware: HardwareProfile, noise: float, probes: Iterable[Probe] | None = None, seed: int = 0
) -> Session:
    """Simulate a whole calibration."""
    rng, specs, runtime = np.random.default_rng(seed), models(), load_runtime("reference")
    chosen = [REFERENCE, *(probes or quick()), REFERENCE]
    runs = []
    for probe in chosen:
        placed = probe.placed(specs[probe.model], runtime)
        runs.append((probe, noisy_run(placed, rates_of(placed, hardware), noise, rng)))
    times = [float(run.trace.end.max()) for probe, run in runs if probe == REFERENCE]
    return Session(runs, times)
