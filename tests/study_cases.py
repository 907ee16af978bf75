"""Small cells of studies for tests, answers made up from one plan, and how a study is run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from click.testing import CliRunner, Result

from planner.cli import cli
from planner.costs import Economics
from planner.study_answer import Answer, PartPlan, answer
from planner.study_cells import Cell
from planner.study_rows import study_table
from planner.table import Table
from simulator.mix import Mix, Part, single_mix
from simulator.model_config import load_model
from simulator.profiles import load_profile
from simulator.runtime import load_runtime
from simulator.workload import Workload

#: A workload whose plans are found in a fifth of a second.
SHORT = {"prompt_len": 16, "gen_len": 4, "num_prompts": 8}
#: As options of a command.
SHORT_OPTIONS = ("--prompt-len", "16", "--gen-len", "4", "--num-prompts", "8")


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(cli, list(arguments))


def complaint(result: Result, code: int = 2) -> str:
    """Give the one line on standard error that a refused command ends with, but for what shows progress."""
    assert result.exit_code == code, result.output
    assert not isinstance(result.exception, Exception), result.exception
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("planning")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def cell(place: str = "rtx-4090", name: str = "opt-1.3b", /, **changes: Any) -> Cell:
    """Make a small cell on a machine; ``work`` are lengths, ``sets`` are overrides, all else are fields."""
    work = Workload(**changes.pop("work", SHORT))
    sets = changes.pop("sets", ())
    profile = load_profile(place, sets)
    fields = {
        "machine": profile.name,
        "hardware": profile,
        "overrides": sets,
        "model": load_model(name),
        "mix": single_mix(work),
        "runtime": load_runtime("reference"),
    }
    return Cell(**fields | changes)


def mix(*workloads: Workload, serial: bool = False, counts: Sequence[float] = ()) -> Mix:
    """Make a mix of several workloads."""
    parts = (
        Part(name=f"part {number}", workload=work, count=counts[number] if counts else 1.0)
        for number, work in enumerate(workloads)
    )
    return Mix(name="mix", parts=tuple(parts), serial=serial)


@cache
def planned() -> Answer:
    """Plan the small cell, once in a process."""
    return answer(cell())


def made_up(part: Part, tok_s: float, latency: float = 1.0, ceiling: float | None = None) -> PartPlan:
    """Give a plan of the small cell, with other predictions."""
    plan = planned().plans[0].plan
    predictions = {"throughput_tok_s": tok_s, "latency_s": latency}
    bounds = {"ceiling_tok_s": ceiling or 2 * tok_s}
    changes = {
        "predictions": plan.predictions.model_copy(update=predictions),
        "bounds": plan.bounds.model_copy(update=bounds),
    }
    return PartPlan(part=part, plan=plan.model_copy(update=changes))


def made_up_answer(one: Cell, *tok_s: float, ceiling: float | None = None) -> Answer:
    """Give an answer with a plan for each part of the work, of these throughputs and a second each."""
    pairs = zip(one.mix.parts, tok_s, strict=True)
    return Answer(status="planned", plans=tuple(made_up(part, each, 1.0, ceiling) for part, each in pairs))


def table_of(cells: Sequence[Cell], answers: Sequence[Answer]) -> Table:
    """Write the table of cells and their answers."""
    return study_table(cells, answers, Economics())


#: Work whose fastest plan takes minutes on a small machine, so that limits have something to do.
LIMITED_WORK = {"prompt_len": 64, "gen_len": 8}
