"""The command line: ``planner plan``, ``planner simulate`` and what belongs to them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from planner.choices import Options
from planner.listings import FORMATS, console, hardware, models, runtimes
from planner.make_plan import Request, make_plan
from planner.pins import parse_pins
from planner.plan import Plan, read_plan
from planner.problem import Problem
from planner.report import print_plan
from simulator.errors import InputError, PlannerError
from simulator.model_config import load_model
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.schema import decode
from simulator.units import DURATION
from simulator.workload import Workload


class _Group(click.Group):
    """Turns errors for people into one line and an exit code: 1 nothing fits, 2 bad input."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Enter from the shell; always ends by leaving the process (or the test runner's call)."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = 2
        except click.ClickException as error:
            _complain(error.format_message())
            code = 2
        except click.Abort:
            _complain("interrupted")
            code = 130
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except PlannerError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            _complain(str(error))
            ctx.exit(error.exit_code)


def _complain(message: str) -> None:
    click.echo(f"error: {_one_line(message)}", err=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@click.group(
    cls=_Group,
    commands=[hardware, models, runtimes],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="offload-planner", prog_name="planner")
def cli(debug: bool) -> None:
    """Plan and simulate large language models on machines they do not fit in."""


@cli.command()
@click.option(
    "--hw", "hardware", required=True, metavar="NAME|PATH", help="Machine: a shipped profile or a file."
)
@click.option(
    "--model", required=True, metavar="NAME|PATH", help="Model: from the catalogue, or a config.json."
)
@click.option("--prompt-len", default="512", show_default=True, metavar="TOKENS", help="Tokens of a prompt.")
@click.option(
    "--gen-len", default="32", show_default=True, metavar="TOKENS", help="Tokens generated from each."
)
@click.option("--num-prompts", metavar="COUNT", help="How many prompts wait  [default: a long queue]")
@click.option("--max-latency", metavar="TIME", help='Limit from admission to last token, such as "600 s".')
@click.option(
    "--quantize",
    type=click.Choice(["none", "weights", "cache", "both", "auto"]),
    default="none",
    show_default=True,
    help="What may be stored in 4 bits; auto lets the planner choose.",
)
@click.option(
    "--schedule",
    type=click.Choice(["zigzag", "diagonal", "row", "auto"]),
    default="auto",
    show_default=True,
    help="How the work may be traversed.",
)
@click.option(
    "--runtime", default="reference", show_default=True, metavar="NAME", help="Engine that runs the plan."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a figure of the machine."
)
@click.option("--fix", "fixed", multiple=True, metavar="NAME=VALUE", help="Pin a policy variable.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file (JSON)."
)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def plan(  # noqa: PLR0913 - one parameter per option
    hardware: str,
    model: str,
    prompt_len: str,
    gen_len: str,
    num_prompts: str | None,
    max_latency: str | None,
    quantize: Any,
    schedule: Any,
    runtime: str,
    overrides: tuple[str, ...],
    fixed: tuple[str, ...],
    out: Path | None,
    output: str,
) -> None:
    """Find the best way to run a model on a machine, and say what to expect.

    \b
    planner plan --hw a100-80 --model opt-175b
    planner plan --hw t4-16 --model opt-30b --fix gpu_batch=48 --fix num_groups=3
    planner plan --hw a100-80 --model opt-175b --set tiers.cpu.capacity="512 GiB"
    """  # noqa: D301 - click reads the escape
    problem = Problem(
        hardware=load_profile(hardware, overrides),
        model=load_model(model),
        workload=_workload(prompt_len, gen_len, num_prompts),
        runtime=load_runtime(runtime),
        max_latency=_duration(max_latency),
    )
    request = Request(problem, Options(quantize, schedule, parse_pins(fixed)), overrides)
    console = Console(stderr=True)
    with console.status("planning"):
        result = make_plan(request)
    if out is not None:
        _write(out, result.to_json())
    _show(result, output)
    if out is not None and output == "text":
        click.echo(f"\nwritten: {out}")


@cli.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--trace", type=click.Path(path_type=Path, dir_okay=False), help="Write a Chrome/Perfetto trace here."
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="Play about so many passes, sampled  [default: all]",
)
@click.option("--hw", "hardware", metavar="NAME|PATH", help="Play it on another machine than the plan's.")
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a figure of the machine."
)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def simulate(
    plan_file: Path,
    trace: Path | None,
    passes: int | None,
    hardware: str | None,
    overrides: tuple[str, ...],
    output: str,
) -> None:
    """Play a plan task by task, and write its timeline.

    \b
    planner simulate plan.json --trace out.json
    """  # noqa: D301 - click reads the escape
    from planner.replay import replay  # noqa: PLC0415 - pulls in the trace writer only here

    console = Console(stderr=True)
    with console.status("simulating"):
        outcome = replay(read_plan(plan_file), hardware, overrides, passes, trace)
    click.echo(outcome.to_json() if output == "json" else outcome.text(), nl=False)


def _workload(prompt_len: str, gen_len: str, num_prompts: str | None) -> Workload:
    texts = {"prompt_len": prompt_len, "gen_len": gen_len, "num_prompts": num_prompts}
    values = {name: _count(name, text) for name, text in texts.items() if text is not None}
    return decode(Workload, values, "workload")


def _count(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        option = name.replace("_", "-")
        raise InputError(f"--{option}: expected a whole number such as 512; got {text!r}") from None


def _duration(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = DURATION.parse(text)
    except ValueError as error:
        raise InputError(f"--max-latency: {error}") from None
    if seconds <= 0:
        raise InputError(f"--max-latency: it must be more than 0; got {text!r}")
    return seconds


def _show(result: Plan, output: str) -> None:
    if output == "json":
        click.echo(result.to_json(), nl=False)
    else:
        print_plan(result, console())


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


def main() -> None:
    """Enter from the shell."""
    try:
        cli.main(prog_name="planner")
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
