"""The command ``planner verify``: plan, run and compare policies of every kind on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from planner.chart_picture import check_picture
from planner.listings import FORMATS, console, echo_json
from planner.torch_commands import open_checkpoint
from planner.validate_picture import FORMATS as PICTURES
from planner.verify import Outcome, judge
from planner.verify_cases import KINDS, draw_cases
from planner.verify_report import draw, markdown, report
from planner.verify_runs import Proof, Where, make_folder
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.units import one_line

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option(
    "--hw", "hardware", required=True, metavar="PATH", help="The profile to prove, of this machine."
)
@click.option("--checkpoint", required=True, type=_FOLDER, metavar="FOLDER", help="The model to run.")
@click.option(
    "--count", type=click.IntRange(min=1), default=len(KINDS), show_default=True, help="How many policies."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws of policies.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1.0),
    default=15.0,
    show_default=True,
    help="About how long each is to run.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of each; the median counts.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What plays the GPU's part  [default: cuda where there is one]",
)
@click.option(
    "--scratch",
    type=_FOLDER,
    metavar="FOLDER",
    help="Where cache and activations on the disk tier go  [default: where you are]",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change a figure of the machine."
)
@click.option(
    "--out",
    type=_FOLDER,
    metavar="FOLDER",
    help="Keep outcomes and traces here; what is there already is not run again.",
)
@click.option("--picture", type=_FILE, metavar="PATH", help="Draw it here (.png or .svg).")
@click.option(
    "--format",
    "output",
    type=click.Choice([*FORMATS.choices, "markdown"]),
    default="text",
    show_default=True,
    help="What to print.",
)
def verify(  # noqa: PLR0913 - one parameter per option
    hardware: str,
    checkpoint: Path,
    count: int,
    seed: int,
    seconds: float,
    repeats: int,
    device: str | None,
    scratch: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    picture: Path | None,
    output: str,
) -> None:
    """Prove a profile: plan policies that load different lanes, run them, and lay both beside each other.

    \b
    planner calibrate --out my-machine.yaml
    planner verify --hw my-machine.yaml --checkpoint llama-1b --out proof --picture proof.png
    """  # noqa: D301 - click reads the escape
    if picture is not None:
        check_picture(picture, PICTURES)
    if out is not None:
        make_folder(out)
    profile = load_profile(hardware, overrides)
    opened = open_checkpoint("verify", checkpoint)
    runtime = load_runtime("reference")
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory() as temporary, progress.status("planning") as status:
        cases = list(draw_cases(profile, opened.model, runtime, count, seed, seconds))
        where = Where(choose_device(device), scratch or Path(), out or Path(temporary))
        proof = Proof(cases, opened, where)
        left = sum(case.seconds for case in cases) * repeats
        for turn in range(repeats):
            for number, case in enumerate(cases):
                step = f"round {turn + 1} of {repeats}, {number + 1} of {count}: {case.kind}"
                status.update(f"{step}; about {left / 60:.1f} minutes of running left")
                proof.run(number, turn)
                left -= case.seconds
        outcomes = proof.outcomes(repeats)
    if picture is not None:
        draw(picture, outcomes)
    _show(outcomes, output)
    for path in (picture, out):
        if path is not None and output == "text":
            click.echo(one_line(f"written: {path}"))


def _show(outcomes: Sequence[Outcome], output: str) -> None:
    """Print what came of it."""
    verdict = judge(outcomes)
    if output == "json":
        runs = [
            each.model_dump(mode="json") | {"error": each.error, "inside": each.inside} for each in outcomes
        ]
        echo_json({"verdict": verdict.to_json(), "runs": runs})
    elif output == "markdown":
        click.echo(markdown(outcomes, verdict), nl=False)
    else:
        console().print(report(outcomes, verdict))


def choose_device(device: str | None) -> str:
    """Give the device that is asked for, or CUDA's where there is one."""
    from executor.prompts import choose_device as choose  # noqa: PLC0415 - needs torch

    return choose(device)
