"""The command ``planner frontier``: throughput against latency."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table as TextTable
from rich.text import Text

from planner.asking import RUNTIMES, Asking, asking, cell_of, single_of
from planner.charts import number
from planner.costs import Economics, running_cost
from planner.frontier import Curve, Frontier, Point, frontier, frontier_chart
from planner.listings import console, echo_json
from planner.study_cells import Cell
from planner.study_figures import binding
from planner.study_rows import study_table
from planner.words import duration, resource, split
from simulator.errors import InfeasibleError, InputError, PlannerError

MACHINES = click.option(
    "--hw",
    "machines",
    required=True,
    multiple=True,
    metavar="NAME|PATH",
    help="Machine: a shipped profile or a file; give several to compare.",
)
POINTS = click.option(
    "--points",
    type=click.IntRange(2, 200),
    default=12,
    show_default=True,
    metavar="COUNT",
    help="Limits of latency to try on each curve.",
)


@click.command("frontier")
@asking(MACHINES, RUNTIMES, POINTS)
def frontier_of(**options: Any) -> None:
    """Find the plans that no other beats in both throughput and latency.

    One curve for each machine and engine. Runs that others measured on the same machine, with the same model,
    lengths and engine, stand beside them.

    \b
    planner frontier --hw t4-16 --model opt-30b --picture frontier.png
    planner frontier --hw a100-40 --hw a100-80 --model opt-175b --out frontier
    planner frontier --hw t4-16 --model opt-175b --runtime reference --runtime flexgen
    """  # noqa: D301 - click reads the escape
    mix = single_of(options, "a frontier")
    bases = [
        cell_of(machine, mix, runtime, options)
        for machine in dict.fromkeys(options["machines"])
        for runtime in dict.fromkeys(options["runtimes"])
    ]
    with Asking(options) as questions:
        found = frontier(bases, options["points"], questions.ask)
        if not any(curve.points for curve in found.curves):
            raise _no_curve(found)
        chart = frontier_chart(found)
        table = study_table(found.cells, found.answers, Economics())
        written = list(questions.write(f"Frontier of {bases[0].model.name}, {mix.name}", table, [chart]))
    if options["output"] == "json":
        echo_json(to_json(found))
        return
    console().print(Group(*_sections(found)))
    for line in written:
        click.echo(line)


def _no_curve(found: Frontier) -> PlannerError:
    """Say that there is no plan at all: all machines are too small, or the question is wrong."""
    for curve, reply in zip(found.curves, found.answers, strict=False):
        if reply.status == "infeasible":
            return InfeasibleError(curve.reason)
    return InputError(found.curves[0].reason)


def to_json(found: Frontier) -> dict[str, Any]:
    """Give the curves for programs: policies and predictions of every point, in SI units."""
    return {
        "curves": [
            {"name": curve.name, "reason": curve.reason, "points": [_point(point) for point in curve.points]}
            for curve in found.curves
        ],
        "measured": [vars(run) for run in found.published],
    }


def _point(point: Point) -> dict[str, Any]:
    plan = point.plan
    return {
        "cell": point.cell,
        "latency_s": point.latency,
        "throughput_tok_s": point.tok_s,
        "schedule": plan.schedule,
        "policy": plan.policy.model_dump(mode="json"),
        "bound_by": binding(plan)[0],
    }


def _sections(found: Frontier) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for curve in found.curves:
        parts += [Text(curve.name, style="bold"), Text()]
        parts.append(_table(curve, found.cells) if curve.points else Text(curve.reason or "no plan"))
        parts.append(Text())
    for run in found.published:
        beaten = _best_within(found, run.engine, run.latency)
        parts.append(
            f"measured {run.id}: {run.tok_s:.4g} tok/s in {duration(run.latency)}; planned within that time: "
            + (f"{beaten:.4g} tok/s" if beaten else "nothing")
        )
    return parts


def _best_within(found: Frontier, engine: str, latency: float) -> float | None:
    speeds = [
        point.tok_s
        for curve in found.curves
        for point in curve.points
        if found.cells[point.cell].runtime.name == engine and point.latency <= latency
    ]
    return max(speeds, default=None)


def _table(curve: Curve, cells: tuple[Cell, ...]) -> TextTable:
    table = TextTable(box=None, padding=(0, 2, 0, 0))
    for name in ("latency", "tok/s", "USD/Mtok", "schedule", "groups", "weights", "KV cache", "bound by"):
        table.add_column(name, justify="right" if name in ("latency", "tok/s", "USD/Mtok") else "left")
    for point in curve.points:
        policy = point.plan.policy
        running = running_cost(cells[point.cell].hardware.cost, Economics())
        cost = running.usd_per_million_tokens(point.tok_s)
        table.add_row(
            duration(point.latency),
            f"{point.tok_s:.4g}",
            number(cost),
            point.plan.schedule + (f" /{policy.stagger}" if point.plan.schedule == "diagonal" else ""),
            f"{policy.num_groups} x {policy.gpu_batch}",
            split(policy.weights, policy.weight_bits),
            split(policy.cache, policy.cache_bits),
            resource(binding(point.plan)[0]),
        )
    return table
