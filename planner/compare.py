"""The command ``planner compare``: all engines side by side, each with its best plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console

from planner.choices import Options, Quantize
from planner.compare_published import Published, published_runs
from planner.compare_report import report
from planner.compare_rows import Best, Failed, Row, best_of_swarm, best_plan, faster
from planner.launch import limited, lost_forms
from planner.launch_swarm import plan_swarm
from planner.listings import console, echo_json
from planner.make_plan import Request, make_plan
from planner.plan_command import (
    FORMAT,
    HARDWARE,
    MODEL,
    OVERRIDES,
    QUANTIZE,
)
from planner.problem import Problem
from planner.words import lengths
from planner.work_options import read_single, work_options
from simulator.errors import InfeasibleError, InputError
from simulator.hardware import HardwareProfile
from simulator.model import ModelSpec
from simulator.model_config import load_model
from simulator.pipelines import pipeline_names
from simulator.profiles import load_profile
from simulator.runtime import load_runtime, runtime_names
from simulator.workload import Workload

REFERENCE = "reference"


@dataclass(frozen=True)
class Question:
    """What is asked of every engine."""

    hardware: HardwareProfile
    model: ModelSpec
    workload: Workload
    quantize: Quantize = "none"
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The answers: a row for every engine, and the published runs that are alike."""

    question: Question
    rows: tuple[Row, ...]
    published: tuple[Published, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the answers for programs: in seconds and tokens per second, splits as fractions."""
        asked, speeds = self.question, self.speeds
        nothing = dict.fromkeys(Best.model_fields)
        published = [each.model_dump(mode="json") for each in self.published]
        for each in published:
            each["best_tok_s"] = speeds.get(each["engine"])
        return {
            "hardware": asked.hardware.name,
            "model": asked.model.name,
            "workload": asked.workload.model_dump(mode="json"),
            "quantize": asked.quantize,
            "engines": [
                nothing
                | {"reason": None, "reference_is_times": faster(speeds, REFERENCE, row.engine)}
                | row.model_dump(mode="json")
                for row in self.rows
            ],
            "published": published,
        }

    @property
    def heading(self) -> tuple[str, str]:
        """Say what is compared: the main words, and the rest."""
        asked = self.question
        work = asked.workload
        count = "a long queue of" if work.num_prompts is None else str(work.num_prompts)
        queue = f"{count} prompt{'s' * (work.num_prompts != 1)}"
        said = f"{queue}, {lengths(work)}, quantize {asked.quantize}"
        return f"{asked.model.name} on {asked.hardware.name}", said

    @property
    def speeds(self) -> dict[str, float]:
        """Throughput of every engine that has a plan, for each GPU. [tok/s]"""
        return {row.engine: row.tok_s for row in self.rows if isinstance(row, Best)}


def compare_engines(question: Question, announce: Callable[[str], None] = lambda _: None) -> Comparison:
    """Plan for every engine: this project's first, then from the fastest on; those that cannot come last.

    Args:
        question: what is asked of each.
        announce: is told the name of the engine that is next.

    Raises:
        InfeasibleError: no engine has a plan, and memory is one of the reasons.
        InputError: no engine has a plan.
    """
    rows: list[Row] = []
    for engine in [*runtime_names(), *pipeline_names()]:
        announce(engine)
        rows.append(_row(question, engine))
    _require_one(question, rows)
    options = Options(question.quantize)
    announce("published runs")
    published = published_runs(question.hardware, question.model.name, question.workload, options)
    return Comparison(question, tuple(sorted(rows, key=_order)), tuple(published))


def _row(question: Question, engine: str) -> Row:
    try:
        return _best(question, engine)
    except (InfeasibleError, InputError) as error:
        return Failed(engine=engine, reason=str(error), infeasible=isinstance(error, InfeasibleError))


def _best(question: Question, engine: str) -> Best:
    place = question.hardware, question.model, question.workload
    if engine in pipeline_names():
        return best_of_swarm(plan_swarm(engine, *place))
    problem, options = Problem(*place, load_runtime(engine)), Options(question.quantize)
    plan = make_plan(Request(problem, limited(options, engine), question.overrides))
    return best_plan(plan, lost_forms(options, engine))


def _order(row: Row) -> tuple[bool, bool, bool, float]:
    """Order rows; throughput per GPU of many is another thing than that of one, so it comes later."""
    return (
        isinstance(row, Failed),
        row.engine in pipeline_names(),
        row.engine != REFERENCE,
        -row.tok_s if isinstance(row, Best) else 0.0,
    )


def _require_one(question: Question, rows: Sequence[Row]) -> None:
    failed = [row for row in rows if isinstance(row, Failed)]
    if len(failed) < len(rows):
        return
    where = f"{question.model.name} on {question.hardware.name}"
    engines: dict[str, list[str]] = {}
    for row in failed:
        engines.setdefault(row.reason.removeprefix(f"{where} does not fit: "), []).append(row.engine)
    reasons = [f"{', '.join(names)}: {reason}" for reason, names in engines.items()]
    kind = InfeasibleError if any(row.infeasible for row in failed) else InputError
    raise kind(
        f"no engine can run {where}; {'; '.join(reasons) if len(reasons) > 1 else next(iter(engines))}"
    )


@click.command()
@HARDWARE
@MODEL
@work_options
@QUANTIZE
@OVERRIDES
@FORMAT
def compare(
    hardware: str,
    model: str,
    quantize: Any,
    overrides: tuple[str, ...],
    output: str,
    **work: str | None,
) -> None:
    """Plan for every engine, and show the plans side by side.

    Each engine has the best plan that its own rules allow. What it cannot store in 4 bits it stores in 16.
    Published throughputs stand below where some ship for the machine, the model and the lengths.

    \b
    planner compare --hw t4-16 --model opt-30b
    planner compare --hw t4-16 --model opt-175b --quantize auto
    """  # noqa: D301 - click reads the escape
    workload = read_single(**work)
    question = Question(load_profile(hardware, overrides), load_model(model), workload, quantize, overrides)
    with Console(stderr=True).status("planning") as status:
        outcome = compare_engines(question, lambda engine: status.update(f"planning: {engine}"))
    if output == "json":
        echo_json(outcome.to_json())
    else:
        console().print(report(outcome.rows, outcome.published, outcome.heading, REFERENCE))
