"""The command line: ``planner plan``, ``planner simulate`` and what belongs to them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from planner.calibrate_command import calibrate
from planner.compare import compare
from planner.compare_traces import compare_traces
from planner.frontier_command import frontier_of
from planner.listings import FORMATS, hardware, models, runtimes
from planner.plan import read_plan
from planner.plan_command import plan
from planner.report_command import report
from planner.run_command import run
from planner.sensitivity_command import sensitivity_of
from planner.size_command import size_of
from planner.study_command import study
from planner.validate import validate
from planner.verify_command import verify
from simulator.errors import PlannerError


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
    commands=[
        *(calibrate, compare, compare_traces, frontier_of, hardware, models, plan, report, run, runtimes),
        *(sensitivity_of, size_of, study, validate, verify),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="offload-planner", prog_name="planner")
def cli(debug: bool) -> None:
    """Plan and simulate large language models on machines they do not fit in."""


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


def main() -> None:
    """Enter from the shell."""
    try:
        cli.main(prog_name="planner")
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
