"""The command ``planner run``: generate from prompts by a plan, and hold the speed against the plan's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.listings import FORMATS, echo_json
from planner.plan import Plan, read_plan
from planner.run_report import Report, Watch
from planner.torch_commands import open_checkpoint
from simulator.errors import InputError, PlannerError
from simulator.model import ModelSpec
from simulator.trace import Trace, write_trace
from simulator.units import one_line, shortened
from simulator.workload import Workload

if TYPE_CHECKING:
    from executor.answers import AnswerFile
    from executor.checkpoint import Checkpoint
    from executor.engine import Outcome
    from executor.prompts import Prompt
    from executor.sampling import Result

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@dataclass(frozen=True)
class _Files:
    """The files of a run, and what it is asked about them."""

    plan: Path
    prompts: Path
    out: Path
    trace: Path | None
    scratch: Path
    resume: bool


@dataclass(frozen=True)
class _Job:
    """A run, checked: all prompts, and those that are not answered yet."""

    plan: Plan
    checkpoint: Checkpoint
    device: str
    files: _Files
    prompts: Sequence[Prompt]
    pending: Sequence[Prompt]


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    required=True,
    type=_FOLDER,
    metavar="FOLDER",
    help="The model: config.json, safetensors, and tokenizer.json for prompts in text.",
)
@click.option(
    "--prompts",
    required=True,
    type=_FILE,
    metavar="PATH",
    help='JSON lines with "prompt" or "tokens", and if wished "id", "max_tokens", "temperature", "top_k", '
    '"top_p", "seed", "stop".',
)
@click.option(
    "--out", required=True, type=_FILE, metavar="PATH", help="Write answers here, each once it is finished."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What plays the GPU's part  [default: cuda where there is one]",
)
@click.option("--resume", is_flag=True, help="Answer only the prompts that --out has no answer to.")
@click.option("--trace", type=_FILE, metavar="PATH", help="Write the measured Chrome/Perfetto trace here.")
@click.option(
    "--scratch",
    type=_FOLDER,
    metavar="FOLDER",
    help="Where cache and activations on the disk tier go  [default: the folder of --out]",
)
@click.option("--format", "output", type=FORMATS, default="text", show_default=True, help="What to print.")
def run(  # noqa: PLR0913 - one parameter per option
    plan_file: Path,
    checkpoint: Path,
    prompts: Path,
    out: Path,
    device: str | None,
    resume: bool,
    trace: Path | None,
    scratch: Path | None,
    output: str,
) -> None:
    """Generate text by a plan, on this machine.

    Every answer is a line of --out as soon as it is finished, in any order. A run that was interrupted is
    continued with --resume.

    \b
    planner run plan.json --checkpoint opt-30b --prompts prompts.jsonl --out answers.jsonl
    planner run plan.json --checkpoint opt-30b --prompts prompts.jsonl --out answers.jsonl --resume
    """  # noqa: D301 - click reads the escape
    files = _Files(plan_file, prompts, out, trace, scratch or out.parent, resume)
    plan = read_plan(plan_file)
    if plan.runtime.name != "reference":
        raise InputError(
            f"{plan_file}: a plan for {plan.runtime.name}, which is not part of this project; make one with "
            "--runtime reference, or start that engine with what `planner plan --launch` prints"
        )
    _check_work(plan_file, plan.workload)
    _check_files(files)
    opened = open_checkpoint("run", checkpoint)
    _check_model(plan.model, opened.model, checkpoint)
    report = _answer(plan, opened, device, files)
    if output == "json":
        echo_json(report.to_json())
    else:
        click.echo(report.text(), nl=False)


def _check_work(plan_file: Path, workload: Workload) -> None:
    """Refuse work that can be planned but not run."""
    if workload.shared_prefix:
        raise InputError(
            f"{plan_file}: a plan with a prefix that prompts share, which cannot be run yet; make one "
            "without --shared-prefix"
        )
    if workload.scores:
        raise InputError(
            f"{plan_file}: a plan that scores prompts, which cannot be run yet; make one with "
            "--gen-len 1 or more"
        )


def _check_files(files: _Files) -> None:
    """Refuse files that a run would overwrite, and folders that are missing, before anything is computed."""
    known: dict[Path, str] = {}
    named = {"PLAN": files.plan, "--prompts": files.prompts, "--out": files.out, "--trace": files.trace}
    for name, path in named.items():
        other = known.setdefault(path.resolve(), name) if path else name
        if other != name:
            raise InputError(one_line(f"{name} {path}: the same file as {other}; give another path"))
    folders = {"--out": files.out.parent, "--scratch": files.scratch}
    if files.trace:
        folders["--trace"] = files.trace.parent
    for name, folder in folders.items():
        if not folder.is_dir():
            raise InputError(one_line(f"{name}: there is no folder {folder}; make it, or give another one"))


def _check_model(planned: ModelSpec, found: ModelSpec, folder: Path) -> None:
    """Refuse a checkpoint of another model than the plan's, whatever the two are called."""
    for name in ModelSpec.model_fields:
        one, other = getattr(planned, name), getattr(found, name)
        if name != "name" and one != other:
            raise InputError(
                f"{folder}: {name} is {shortened(other)}, but {shortened(one)} in the plan's model "
                f"{planned.name}; make a plan with --model {folder}"
            )


def _answer(plan: Plan, checkpoint: Checkpoint, device: str | None, files: _Files) -> Report:
    """Answer what is not answered yet, and report it."""
    from executor.answers import AnswerFile, Found, check_new, read_answers  # noqa: PLC0415 - needs torch
    from executor.prompts import choose_device, open_tokenizer, read_prompts  # noqa: PLC0415 - needs torch

    device = choose_device(device)
    if not files.resume:
        check_new(files.out)
    tokenizer = open_tokenizer(checkpoint)
    prompts = read_prompts(files.prompts, checkpoint, plan.workload, tokenizer)
    found = read_answers(files.out, prompts) if files.resume else Found()
    pending = [prompt for prompt in prompts if str(prompt.id) not in found.ids]
    job = _Job(plan, checkpoint, device, files, prompts, pending)
    with AnswerFile(files.out, found, tokenizer) as answers:
        outcome = _generate(job, answers) if pending else None
    before = len(prompts) - len(pending)
    if outcome is None:
        return Report(plan, device, len(prompts), before, files.out)
    if files.trace is not None:
        _write(outcome.trace, files.trace)
    return Report(
        *(plan, device, len(prompts), before, files.out),
        seconds=outcome.seconds,
        tokens=outcome.tokens,
        memory=outcome.memory,
        trace=files.trace,
    )


def _generate(job: _Job, answers: AnswerFile) -> Outcome:
    """Let the engine run; what is answered when it fails stays answered.

    Raises:
        PlannerError: the engine's, or that it left out prompts; says how to go on.
    """
    from executor.engine import Listener  # noqa: PLC0415 - needs torch
    from executor.engine import run as generate  # noqa: PLC0415 - needs torch

    pending, path = job.pending, job.files.out
    watch = Watch(sum(each.request.max_new_tokens for each in pending), job.plan)

    def finished(index: int, result: Result) -> None:
        answers.add(pending[index], result)
        watch.spare(pending[index].request.max_new_tokens - len(result.tokens))

    def so_far() -> tuple[int, str]:
        done = len(job.prompts) - len(pending) + answers.count
        return done, one_line(f"{done} of {len(job.prompts)} answers are in {path}; continue with --resume")

    try:
        with watch.progress:
            requests = [each.request for each in pending]
            outcome = generate(
                job.plan,
                job.checkpoint,
                requests,
                device=job.device,
                scratch=job.files.scratch,
                listener=Listener(finished, watch.advance, watch.prepare),
            )
    except KeyboardInterrupt:
        click.echo(f"interrupted: {so_far()[1]}", err=True)
        raise click.exceptions.Exit(130) from None
    except PlannerError as error:
        done, remedy = so_far()
        if not done:
            raise
        raise type(error)(f"{error}; {remedy}") from error
    if answers.count != len(pending):
        raise PlannerError(f"the engine left out prompts: {so_far()[1]}")
    return outcome


def _write(trace: Trace, path: Path) -> None:
    try:
        write_trace(trace, path)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"--trace {path}: cannot be written ({reason}); the answers are")) from None
