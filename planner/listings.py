"""The commands that list what comes with the planner: machines, models, engines."""

from __future__ import annotations

import json
import sys

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from planner.costs import Economics, running_cost
from planner.hardware_diff import compare_profiles, report
from simulator.hardware import TIERS
from simulator.model import ModelSpec
from simulator.model_config import catalogue_names, load_model
from simulator.pipelines import load_pipeline, pipeline_names
from simulator.profiles import load_profile, shipped_profiles
from simulator.runtime import load_runtime, runtime_names
from simulator.units import GIB

FORMATS = click.Choice(["text", "json"])


def console() -> Console:
    """Print to the terminal's width, or to a fixed one where the output goes to a file or a program."""
    return Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False)


def echo_json(data: object) -> None:
    """Print data for programs."""
    click.echo(json.dumps(data, indent=2))


@click.group(invoke_without_command=True)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
@click.pass_context
def hardware(context: click.Context, output: str) -> None:
    """List the machines that come with the planner."""
    if context.invoked_subcommand is not None:
        if context.get_parameter_source("output") is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--format: name it after {context.invoked_subcommand}")
        return
    profiles = [load_profile(name) for name in shipped_profiles()]
    if output == "json":
        echo_json({profile.name: profile.model_dump(mode="json", exclude_none=True) for profile in profiles})
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("name", "GPU memory", "DRAM", "disk", "USD/h", "GPU", "CPU"):
        table.add_column(
            name,
            justify="left" if name in ("name", "GPU", "CPU") else "right",
            no_wrap=name not in ("GPU", "CPU"),
        )
    for profile in profiles:
        hourly = running_cost(profile.cost, Economics()).usd_per_hour
        sizes = [f"{profile.tiers[tier].capacity / GIB:,.0f} GiB" for tier in TIERS]
        engines = [profile.engines[engine].name for engine in ("gpu", "cpu")]
        table.add_row(profile.name, *sizes, f"{hourly:.2f}" if hourly else "-", *engines)
    console().print(table)


@hardware.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def diff(first: str, second: str, output: str) -> None:
    """List every figure that two machines differ in.

    A and B are machines that come with the planner, or profiles by their paths. Figures whose ratio is
    largest come first. Of profiles that were measured, the last column says whether a difference is larger
    than what measuring leaves open.

    \b
    planner hardware diff a100-40 a100-80
    planner hardware diff last-month.yaml today.yaml
    """  # noqa: D301 - click reads the escape
    found = compare_profiles(load_profile(first), load_profile(second))
    if output == "json":
        echo_json(found.to_json())
        return
    console().print(report(found))


@click.command()
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def models(output: str) -> None:
    """List the models of the catalogue."""
    specs = sorted((load_model(name) for name in catalogue_names()), key=_family_and_size)
    if output == "json":
        echo_json({spec.name: {"parameters": spec.num_parameters} for spec in specs})
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("name", "parameters", "16-bit weights", "layers", "KV per token"):
        table.add_column(name, justify="left" if name == "name" else "right")
    for spec in specs:
        size = spec.weight_bytes([*spec.embed_weights(), *spec.head_weights()])
        size += spec.num_layers * spec.weight_bytes(spec.layer_weights())
        table.add_row(
            spec.name,
            f"{spec.num_parameters:,}",
            f"{size / GIB:.4g} GiB",
            str(spec.num_layers),
            f"{spec.num_layers * spec.kv_bytes_per_token / 1024:.4g} KiB",
        )
    console().print(table)


def _family_and_size(spec: ModelSpec) -> tuple[str, int]:
    return spec.name.split("-")[0], spec.num_parameters


@click.command()
def runtimes() -> None:
    """List the engines that a plan can be made for."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name in runtime_names():
        table.add_row(name, load_runtime(name).description)
    for name in pipeline_names():
        table.add_row(name, load_pipeline(name).description)
    console().print(table)
