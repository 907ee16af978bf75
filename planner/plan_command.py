"""The command ``planner plan``, and what it shares with ``planner compare``: options and their readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from planner.choices import Options
from planner.launch import Launch, as_text, commands, limited, require_commands, save
from planner.launch_swarm import SwarmPlan, plan_swarm, print_swarm
from planner.listings import FORMATS, console, echo_json
from planner.make_plan import Request, make_plan
from planner.pins import parse_pins
from planner.plan import Plan
from planner.problem import Problem
from planner.report import print_plan
from planner.work_options import read_single, work_options
from simulator.errors import InputError
from simulator.model_config import load_model
from simulator.pipelines import pipeline_names
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.units import DURATION, one_line

HARDWARE = click.option(
    "--hw", "hardware", required=True, metavar="NAME|PATH", help="Machine: a shipped profile or a file."
)
MODEL = click.option(
    "--model", required=True, metavar="NAME|PATH", help="Model: from the catalogue, or a config.json."
)
QUANTIZE = click.option(
    "--quantize",
    type=click.Choice(["none", "weights", "cache", "both", "auto"]),
    default="none",
    show_default=True,
    help="What may be stored in 4 bits; auto lets the planner choose.",
)
MAX_LATENCY = click.option(
    "--max-latency", metavar="TIME", help='Limit from admission to last token, such as "600 s".'
)
RUNTIME = click.option(
    "--runtime", default="reference", show_default=True, metavar="NAME", help="Engine that runs the plan."
)
OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a figure of the machine."
)
FORMAT = click.option(
    "--format", "output", type=FORMATS, default="text", show_default=True, help="What to print."
)


@click.command()
@HARDWARE
@MODEL
@work_options
@MAX_LATENCY
@QUANTIZE
@click.option(
    "--schedule",
    type=click.Choice(["zigzag", "diagonal", "row", "auto"]),
    default="auto",
    show_default=True,
    help="How the work may be traversed.",
)
@RUNTIME
@OVERRIDES
@click.option("--fix", "fixed", multiple=True, metavar="NAME=VALUE", help="Pin a policy variable.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file (JSON)."
)
@click.option("--launch", is_flag=True, help="Print only what the user of the engine types.")
@click.option(
    "--launch-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write what the user of the engine types into this folder.",
)
@FORMAT
def plan(  # noqa: PLR0913 - one parameter per option
    hardware: str,
    model: str,
    max_latency: str | None,
    quantize: Any,
    schedule: Any,
    runtime: str,
    overrides: tuple[str, ...],
    fixed: tuple[str, ...],
    out: Path | None,
    launch: bool,
    launch_dir: Path | None,
    output: str,
    **work: str | None,
) -> None:
    """Find the best way to run a model on a machine, and say what to expect.

    Below the plan for an engine that others have written stands what its user types.

    \b
    planner plan --hw a100-80 --model opt-175b
    planner plan --hw t4-16 --model opt-30b --fix gpu_batch=48 --fix num_groups=3
    planner plan --hw a100-80 --model opt-175b --set tiers.cpu.capacity="512 GiB"
    planner plan --hw t4-16 --model opt-30b --runtime flexgen --launch-dir run
    """  # noqa: D301 - click reads the escape
    place = (
        load_profile(hardware, overrides),
        load_model(model),
        read_single(**work),
    )
    if runtime in pipeline_names():
        asked = {"num-prompts": work["num_prompts"], "max-latency": max_latency, "fix": fixed, "out": out}
        _refuse(runtime, asked | {"quantize": quantize != "none", "schedule": schedule != "auto"})
        swarm = plan_swarm(runtime, *place)
        _finish(swarm, swarm.launch(), None, _Shown(output, launch, launch_dir))
        return
    problem = Problem(*place, load_runtime(runtime), read_duration(max_latency))
    for option, given in (("--launch", launch), ("--launch-dir", launch_dir)):
        if given:
            require_commands(problem.runtime.name, option)
    options = Options(quantize, schedule, parse_pins(fixed))
    if quantize == "auto":
        options = limited(options, problem.runtime.name)
    with Console(stderr=True).status("planning"):
        result = make_plan(Request(problem, options, overrides))
    _finish(result, commands(result), out, _Shown(output, launch, launch_dir))


@dataclass(frozen=True)
class _Shown:
    """Where the answer goes: text or JSON, only what is typed or all, and the folder for what is typed."""

    output: str
    only_launch: bool
    folder: Path | None


def _finish(result: Plan | SwarmPlan, launch: Launch | None, out: Path | None, shown: _Shown) -> None:
    """Write the files, then print: a place that cannot be written to must be the only output."""
    written = save(launch, shown.folder) if launch and shown.folder else []
    if out is not None:
        _write(out, result.to_json())
        written.append(out)
    if shown.output == "json":
        if shown.only_launch and launch:
            echo_json(launch.model_dump(mode="json"))
        else:
            click.echo(result.to_json(), nl=False)
        return
    if not shown.only_launch:
        _print(result)
    if launch:
        text = as_text(launch).rstrip("\n")
        below = "" if shown.only_launch else "\n"
        console().print(below + text, markup=False, highlight=False, soft_wrap=True)
    if written:
        click.echo("")
    for path in written:
        click.echo(one_line(f"written: {path}"))


def _print(result: Plan | SwarmPlan) -> None:
    if isinstance(result, Plan):
        print_plan(result, console())
    else:
        print_swarm(result, console())


def _refuse(runtime: str, asked: dict[str, object]) -> None:
    """Refuse options that are about placing, scheduling or queueing.

    Raises:
        InputError: one of them was given.
    """
    for option, given in asked.items():
        if given:
            raise InputError(
                f"--{option}: runtime {runtime} runs servers that hold the model; nothing is placed, "
                "scheduled or queued, so drop the option"
            )


def read_duration(text: str | None) -> float | None:
    """Read a limit of latency. [s]

    Raises:
        InputError: no time, or none above 0.
    """
    if text is None:
        return None
    try:
        seconds = DURATION.parse(text)
    except ValueError as error:
        raise InputError(f"--max-latency: {error}") from None
    if seconds <= 0:
        raise InputError(f"--max-latency: it must be more than 0; got {text!r}")
    return seconds


def _write(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        InputError: the place cannot be written to.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--out {path}: cannot be written ({(error.strerror or 'unknown').lower()})"
        ) from None
