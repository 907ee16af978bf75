"""The command ``planner calibrate``: measure this machine and write its profile, or correct one by traces."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from planner.listings import FORMATS, console, echo_json
from planner.torch_commands import missing, quieten_threads
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.profiles import load_profile
from simulator.trace import read_trace
from simulator.units import one_line

if TYPE_CHECKING:
    from executor.calibrate import Options

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--out", required=True, type=_FILE, metavar="PATH", help="Write the profile here (YAML).")
@click.option("--name", metavar="NAME", help="Of the machine  [default: the name of --out]")
@click.option(
    "--disk",
    type=_FOLDER,
    default=Path(),
    metavar="FOLDER",
    help="On the disk that runs will use; needs 5 GB  [default: where you are]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What plays the GPU's part  [default: cuda where there is one]",
)
@click.option("--thorough", is_flag=True, help="Measure four times as long.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Number type of the models that will run.",
)
@click.option("--hw", "hardware", metavar="PATH", help="With --refine: the calibrated profile to correct.")
@click.option(
    "--refine",
    "traces",
    multiple=True,
    type=_FILE,
    metavar="TRACE",
    help="Measure nothing; correct --hw by a measured trace of a run. May be given several times.",
)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def calibrate(  # noqa: PLR0913 - one parameter per option
    out: Path,
    name: str | None,
    disk: Path,
    device: str | None,
    thorough: bool,
    dtype: str,
    hardware: str | None,
    traces: tuple[Path, ...],
    output: str,
) -> None:
    """Measure this machine, and write a profile that plans can be made on.

    Small models are run by the executor itself, for two to three minutes; nothing else should run meanwhile.

    \b
    planner calibrate --out my-machine.yaml --disk /mnt/nvme
    planner plan --hw my-machine.yaml --model opt-30b
    planner calibrate --hw my-machine.yaml --refine measured.json --out refined.yaml
    """  # noqa: D301 - click reads the escape
    if bool(traces) != bool(hardware):
        raise InputError("--hw and --refine: give both to correct a profile, or neither to measure")
    if not out.parent.is_dir():
        raise InputError(one_line(f"--out: there is no folder {out.parent}; make it, or give another one"))
    if hardware:
        profile, rows = _refined(hardware, traces)
    else:
        profile, rows = _measured(name or out.stem, disk, device, thorough, dtype)
    try:
        out.write_text(profile.to_yaml(), encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"--out {out}: cannot be written ({reason})")) from None
    if output == "json":
        echo_json({"written": str(out), "profile": profile.model_dump(mode="json", exclude_none=True)})
        return
    console().print(rows)
    _tell(profile)
    click.echo(one_line(f"written: {out}"))


def _measured(
    name: str, disk: Path, device: str | None, thorough: bool, dtype: str
) -> tuple[HardwareProfile, Table]:
    """Measure the machine."""
    quieten_threads()
    try:
        if find_spec("scipy") is None:  # needed at the end, and better missed now
            raise ModuleNotFoundError("scipy", name="scipy")
        from executor.calibrate import Options, check_disk  # noqa: PLC0415 - planning does without torch
        from executor.calibrate import calibrate as measure  # noqa: PLC0415
        from executor.prompts import choose_device  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing("calibrate", error) from None
    check_disk(disk)
    device = choose_device(device)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        task = progress.add_task("measuring", total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        options: Options = Options(
            name=name,
            disk=disk,
            device=device,
            mode="thorough" if thorough else "quick",
            dtype=dtype,
            progress=tell,
        )
        profile = measure(options)
    return profile, constants(profile)


def _refined(hardware: str, traces: tuple[Path, ...]) -> tuple[HardwareProfile, Table]:
    """Correct a profile."""
    from executor.refine import corrections, refine, runs_of  # noqa: PLC0415 - the executor's, without torch

    profile = load_profile(hardware)
    runs = runs_of({str(path): read_trace(path) for path in traces})
    found = refine(profile, runs, [path.name for path in traces])
    table = _table("operation", "type", "runs", "measured / profile", "times changed by")
    for (name, dtype), one in corrections(profile, runs).items():
        table.add_row(name, dtype or "-", str(one.runs), f"{one.measured:.3f}", f"{one.factor - 1:+.1%}")
    return found, table


def constants(profile: HardwareProfile) -> Table:
    """List what was measured: every operation's rates, and how well they describe it."""
    assert profile.operations is not None
    assert profile.calibration is not None
    table = _table("operation", "type", "rates", "half of the times within", "nine in ten")
    held: list[tuple[str, str, Any]] = [
        (name, dtype, one) for dtype, each in profile.operations.kernels.items() for name, one in each.items()
    ]
    held += [(name, "", one) for name, one in profile.operations.transfers.items()]
    for name, dtype, one in held:
        residual = profile.calibration.residuals[f"{name} {dtype}".strip()]
        rates = one.model_dump(mode="json", exclude_none=True, include={"flops", "bandwidth", "latency"})
        table.add_row(
            name, dtype or "-", ", ".join(rates.values()), f"{residual.median:.1%}", f"{residual.ninth:.1%}"
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 or name == "rates" else "right")
    return table


def _tell(profile: HardwareProfile) -> None:
    """Say how steady the machine was, and what its lanes share."""
    about = profile.calibration
    assert about is not None
    shared = [
        f"{name}: " + ", ".join(f"{lane} {share:.2f}" for lane, share in capacity.lanes.items())
        for name, capacity in profile.capacities.items()
    ]
    click.echo("")
    click.echo(f"shared       {'; '.join(shared) or 'nothing that was seen'}")
    if about.undetermined:
        click.echo(f"left out     {', '.join(about.undetermined)}: not determined; rates of links stand in")
    click.echo(f"steadiness   drift {about.drift:+.1%}, noise {about.noise:.1%} of a probe's time")
