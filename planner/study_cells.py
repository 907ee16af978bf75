"""The cells of a study: its grids expanded, everything read that they name."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from pydantic import Field

from planner.choices import Options, Quantize, ScheduleChoice
from planner.launch import limited
from planner.pins import Pins, parse_pins
from planner.study import Grid, Study, Value, Variant, WorkloadChoice
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.mix import BUCKETS, Mix, find_mix, lengths_mix, single_mix
from simulator.model import ModelSpec
from simulator.model_config import load_model
from simulator.profiles import load_profile
from simulator.runtime import Runtime, load_runtime
from simulator.schema import Record, decode
from simulator.workload import Workload

_PACKAGES = ("simulator", "planner")
#: Labels, on which no answer depends; the profile counts by the hash of its content.
_NOT_ASKED: dict[str, Any] = dict.fromkeys(("machine", "variant", "swept", "hardware"), True) | {
    "mix": {"name", "description", "source"}
}


class Cell(Record):
    """One question of a study, with everything that its answer depends on.

    Attributes:
        machine: the machine's name in the study; ``hardware`` is its profile, as changed.
        variant: the name of the figures changed together, if any.
        overrides: the changes, as one would type them.
        swept: the figures that the study sweeps, as text.
        quantize, schedule, fixed: what the search may choose, as one would type it.
        max_latency: from admission to last token. [s]
    """

    machine: str
    variant: str | None = None
    hardware: HardwareProfile
    overrides: tuple[str, ...] = ()
    swept: dict[str, str] = Field(default_factory=dict)
    model: ModelSpec
    mix: Mix
    runtime: Runtime
    quantize: Quantize = "none"
    schedule: ScheduleChoice = "auto"
    fixed: tuple[str, ...] = ()
    max_latency: float | None = None

    @property
    def options(self) -> Options:
        """What the search may choose."""
        pins = parse_pins(self.fixed) if self.fixed else Pins()
        options = Options(self.quantize, self.schedule, pins)
        return limited(options, self.runtime.name) if self.quantize == "auto" else options


def expand(study: Study, folder: Path) -> list[Cell]:
    """List the cells of a study, in the order of its grids.

    Args:
        study: what to expand.
        folder: where files that it names by a relative path lie.

    Raises:
        InputError: a profile, model, workload or value that it names is wrong.
    """
    cells = []
    for index, grid in enumerate(study.grids):
        try:
            cells += list(_cells(grid, folder))
        except InputError as error:
            raise InputError(f"study.grids.{index}: {error}") from None
    return cells


def _cells(grid: Grid, folder: Path) -> Iterator[Cell]:
    fixed = tuple(f"{name}={_text(value)}" for name, value in grid.fix.items())
    parse_pins(fixed)
    machines = list(_machines(grid, folder))
    models = [_model(name, folder) for name in grid.model]
    mixes = [_mix(choice, folder) for choice in grid.workload]
    runtimes = [load_runtime(name) for name in grid.runtime]
    for machine, model, mix, runtime, quantize, schedule, limit in itertools.product(
        machines, models, mixes, runtimes, grid.quantize, grid.schedule, grid.max_latency
    ):
        yield Cell(
            **machine,
            model=model,
            mix=mix,
            runtime=runtime,
            quantize=quantize,
            schedule=schedule,
            fixed=fixed,
            max_latency=limit,
        )


def _machines(grid: Grid, folder: Path) -> Iterator[dict[str, Any]]:
    """List the machines of a grid, each as the fields of a cell that are about it."""
    for machine in grid.machine:
        path = _beside(folder, machine.hw)
        for variant in grid.variant or (None,):
            for values in itertools.product(*grid.sweep.values()):
                swept = {name: _text(value) for name, value in zip(grid.sweep, values, strict=True)}
                changes = grid.set | machine.set | (variant.set if variant else {}) | swept
                overrides = tuple(f"{name}={_text(value)}" for name, value in changes.items())
                yield {
                    "machine": machine.name or load_profile(path).name,
                    "variant": variant.name if isinstance(variant, Variant) else None,
                    "hardware": load_profile(path, overrides),
                    "overrides": overrides,
                    "swept": swept,
                }


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _model(name: str, folder: Path) -> ModelSpec:
    config = f"{name}/config.json"
    found = _beside(folder, config)
    return load_model(_beside(folder, name) if found == config else found)


def _beside(folder: Path, name: str) -> str:
    """Give the path of a file in a folder, or the name as it is where there is no such file."""
    try:
        return str(folder / name) if (folder / name).is_file() else name
    except OSError:  # a name too long for a file
        return name


def _mix(choice: WorkloadChoice, folder: Path) -> Mix:
    """Read a workload.

    Raises:
        InputError: it is said in several ways (a preset, lengths, a file of lengths), or in none.
    """
    lengths = choice.model_dump(
        include={"prompt_len", "gen_len", "shared_prefix", "num_prompts"}, exclude_defaults=True
    )
    if sum([choice.preset is not None, choice.lengths is not None, bool(lengths)]) != 1:
        raise InputError("workload: give one of preset, lengths (a file), or prompt_len and gen_len")
    if choice.buckets is not None and choice.lengths is None:
        raise InputError("workload.buckets: only a file of lengths is divided into parts; drop it")
    if choice.lengths is not None:
        mix = lengths_mix(folder / choice.lengths, choice.buckets or BUCKETS)
    elif choice.preset is not None:
        mix = find_mix(choice.preset, folder)
    else:
        mix = single_mix(decode(Workload, lengths, "workload"))
    return mix.model_copy(update={"name": choice.name}) if choice.name else mix


def cell_key(cell: Cell) -> str:
    """Name a cell by its content: all that its answer depends on, this program included. 32 hexadecimals."""
    asked = cell.model_dump(mode="json", exclude=_NOT_ASKED)
    text = json.dumps([program_hash(), cell.hardware.content_hash, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def program_hash() -> str:
    """Hash this program, so that answers of another version are not taken for its own."""
    digest = hashlib.sha256(metadata.version("offload-planner").encode())
    for package in _PACKAGES:
        root = Path(str(resources.files(package)))
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.json"), *root.rglob("*.yaml")]):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
