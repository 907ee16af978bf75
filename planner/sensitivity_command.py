"""The command ``planner sensitivity``: prices, how far they hold, and what matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table as TextTable
from rich.text import Text

from planner.asking import Asking, asking, cell_of, single_of
from planner.costs import Economics
from planner.listings import console, echo_json
from planner.plan_command import HARDWARE, MAX_LATENCY, RUNTIME, read_duration
from planner.sensitivity import Sensitivity, sensitivity
from planner.sensitivity_charts import heat_map, tornado, uncertain
from planner.study_figures import PRICED
from planner.study_rows import study_table
from planner.words import constant, resource
from simulator.errors import InfeasibleError, InputError

RANGE = click.option(
    "--range",
    "most",
    type=click.FloatRange(1.01, 16.0),
    default=2.0,
    show_default=True,
    metavar="FACTOR",
    help="Change each resource by up to this factor, up and down.",
)
GRID = click.option(
    "--grid",
    type=click.IntRange(2, 21),
    default=5,
    show_default=True,
    metavar="COUNT",
    help="Rows and columns of the heat map.",
)
PAIR = click.option(
    "--pair",
    nargs=2,
    type=click.Choice(list(PRICED)),
    metavar="RESOURCE RESOURCE",
    help="Two resources to change together  [default: the two that matter most]",
)
HEAT_MAP = click.option(
    "--heat-map",
    "heat",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the heat map: .png, .svg or .pdf.",
)


@click.command("sensitivity")
@asking(HARDWARE, RUNTIME, MAX_LATENCY, RANGE, PAIR, GRID, HEAT_MAP)
def sensitivity_of(**options: Any) -> None:
    """Find out what a plan depends on.

    Of every resource: its price, between which factors the price holds, and throughput with less and with
    more of it, planned and simulated anew. Two resources are changed together too. On a measured profile,
    also which of its uncertain constants the answer depends on most.

    \b
    planner sensitivity --hw t4-16 --model opt-30b --picture tornado.png
    planner sensitivity --hw a100-80 --model opt-175b --pair "cpu memory" disk_read --heat-map heat.png
    """  # noqa: D301 - click reads the escape
    mix = single_of(options, "sensitivity")
    limit = read_duration(options["max_latency"])
    base = cell_of(options["hardware"], mix, options["runtime"], options)
    base = base.model_copy(update={"max_latency": limit})
    with Asking(options, pictures=(options["picture"], options["heat"])) as questions:
        reply = questions.ask([base])[0]
        if not reply.plans:
            raise (InfeasibleError if reply.status == "infeasible" else InputError)(reply.reason)
        most, grid = options["most"], options["grid"]
        found = sensitivity(
            base,
            reply.plans[0].plan,
            (1 / most, most),
            [float(f"{factor:.4g}") for factor in np.geomspace(1 / most, most, grid)],
            options["pair"] or (),
            questions.ask,
        )
        charts = [tornado(found), heat_map(found), *uncertain(found)]
        table = study_table(found.cells, found.answers, Economics())
        written = list(questions.write(f"Sensitivity of {base.model.name} on {base.machine}", table, charts))
        written += questions.draw(charts[1], options["heat"])
    if options["output"] == "json":
        echo_json(to_json(found))
        return
    console().print(Group(*_sections(found)))
    for line in written:
        click.echo(line)


def to_json(found: Sensitivity) -> dict[str, Any]:
    """Give all of it for programs, in the units of the figures and in tok/s."""
    return {
        "tok_s": found.base_tok_s,
        "prices": [
            {
                "resource": price.figure.name,
                "unit": price.figure.unit,
                "value": price.value,
                "tok_s_per_unit": price.tok_s_per_unit,
                "holds_from": price.low,
                "holds_to": price.high,
                "tok_s_by_factor": {
                    f"{factor:.4g}": value
                    for factor, value in sorted(found.swings[price.figure.name].items())
                },
            }
            for price in found.prices
        ],
        "pair": list(found.pair),
        "pair_tok_s": [{"factors": list(factors), "tok_s": value} for factors, value in found.pairs.items()],
        "uncertain": [cause.model_dump() for cause in found.causes],
    }


def _sections(found: Sensitivity) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"{found.plan.model.name} on {found.plan.hardware.name}: {found.base_tok_s:.4g} tok/s", "bold"),
        Text(),
        _prices(found),
        Text(),
        Text(
            "A price holds where it is right to within 10 %, looked for between half and twice the resource.",
            style="dim",
        ),
    ]
    if found.causes:
        parts += [Text(), Text("Which uncertain constant of the profile it depends on most", "bold"), Text()]
        parts.append(_causes(found))
    return parts


def _prices(found: Sensitivity) -> TextTable:
    factors = sorted({factor for each in found.swings.values() for factor in each if factor != 1.0})
    table = TextTable(box=None, padding=(0, 2, 0, 0))
    for name in ("resource", "now", "one more", "is worth", "price holds", *(f"x {f:.3g}" for f in factors)):
        table.add_column(name, justify="left" if name in ("resource", "one more") else "right")
    for price in sorted(found.prices, key=lambda each: -found.swing(each.figure.name)):
        base, name = found.base_tok_s, price.figure.name
        changes = [_change(found.swings[name].get(factor), base) for factor in factors]
        worth = price.tok_s_per_unit
        table.add_row(
            resource(name),
            f"{price.value:.4g} {price.figure.unit}",
            price.figure.unit,
            f"+{worth:.3g} tok/s" if worth > 1e-9 * base else "nothing",
            f"x {price.low:.2f} to {price.high:.2f}",
            *changes,
        )
    return table


def _change(value: float | None, base: float) -> str:
    return "does not fit" if value is None else f"{100 * (value / base - 1):+.1f} %"


def _causes(found: Sensitivity) -> TextTable:
    table = TextTable(box=None, padding=(0, 2, 0, 0))
    for name in ("constant", "at worst", "at best"):
        table.add_column(name, justify="left" if name == "constant" else "right")
    for cause in found.causes[:8]:
        table.add_row(
            constant(cause.path),
            f"{-100 * cause.loss / (1 + cause.loss):.1f} %",
            f"+{100 * cause.gain:.1f} %",
        )
    return table
