"""The command ``planner size``: the cheapest machines that serve a load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table as TextTable
from rich.text import Text

from planner.asking import Asking, asking, cell_of, mix_of
from planner.charts import Chart, Series, number
from planner.costs import Economics
from planner.listings import console, echo_json
from planner.plan_command import MAX_LATENCY, RUNTIME, read_duration
from planner.size import Sized, Sizing, size
from planner.study_rows import study_table
from planner.words import duration
from simulator.errors import InfeasibleError, InputError
from simulator.profiles import shipped_profiles
from simulator.units import BUDGET, one_line

LOAD = click.option(
    "--tokens-per-day",
    "load",
    required=True,
    metavar="COUNT",
    help="Tokens to generate a day, such as 50M or 2e9 (k, M, G; B is G).",
)
BUDGET_LIMIT = click.option("--budget", metavar="PRICE", help='The most it may cost, such as "200 USD/day".')
MACHINES = click.option(
    "--hw",
    "machines",
    multiple=True,
    metavar="NAME|PATH",
    help="Machines to choose from; give several  [default: all that ship]",
)
YEARS = click.option(
    "--years",
    type=click.FloatRange(0.1, 50.0),
    default=3.0,
    show_default=True,
    help="For which own machines are used.",
)
ELECTRICITY = click.option(
    "--electricity",
    type=click.FloatRange(0.0, 10.0),
    default=0.15,
    show_default=True,
    metavar="PRICE",
    help="Of a kWh for own machines, in USD.",
)
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_COUNT = re.compile(r"\s*(\d+\.?\d*(?:[eE]\+?\d+)?)\s*([kMGBT]?)\s*", re.ASCII)


@click.command("size")
@asking(LOAD, BUDGET_LIMIT, MACHINES, RUNTIME, MAX_LATENCY, YEARS, ELECTRICITY)
def size_of(**options: Any) -> None:
    """Find the cheapest machines that serve a load.

    Every machine gets its best plan, within the limit of latency if there is one. Shown are how many of them
    the load takes, what they cost, and how many it takes at least, whatever the schedule.

    \b
    planner size --tokens-per-day 20M --model llama-3-70b --gen-len 128
    planner size --tokens-per-day 20M --model llama-3-70b --gen-len 128 --max-latency "600 s"
    planner size --tokens-per-day 5M --model opt-175b --quantize auto --budget "300 USD/day"
    """  # noqa: D301 - click reads the escape
    load, budget = read_load(options["load"]), read_budget(options["budget"])
    limit, mix = read_duration(options["max_latency"]), mix_of(options)
    economics = Economics(years=options["years"], usd_per_kwh=options["electricity"])
    cells = [
        cell_of(machine, mix, options["runtime"], options).model_copy(update={"max_latency": limit})
        for machine in dict.fromkeys(options["machines"] or shipped_profiles())
    ]
    with Asking(options) as questions:
        answers = questions.ask(cells)
        found = size(cells, answers, load, economics)
        table = study_table(cells, answers, economics)
        charts = [cost_chart(found)] if found.sized else []
        written = list(questions.write(f"Machines for {cells[0].model.name}, {mix.name}", table, charts))
    if not found.sized:
        raise found.none_can
    if options["output"] == "json":
        echo_json(to_json(found, budget))
    else:
        console().print(Group(*_sections(found, f"{cells[0].model.name}, {mix.name}")))
        for line in written:
            click.echo(line)
    check_budget(found, budget)


def read_load(text: str) -> float:
    """Read a number of tokens a day.

    Raises:
        InputError: it is none, or nothing.

    >>> read_load("50M"), read_load("2e9"), read_load("1.5 B")
    (50000000.0, 2000000000.0, 1500000000.0)
    """
    match = _COUNT.fullmatch(text)
    value = float(match[1]) * _SCALE[match[2]] if match else 0.0
    if not 0.0 < value < 1e18:
        raise InputError(one_line(f"--tokens-per-day: expected a count such as 50M or 2e9; got {text!r}"))
    return value


def read_budget(text: str | None) -> float | None:
    """Read a budget. [USD/day]

    Raises:
        InputError: it has no unit, or an unknown one.
    """
    if text is None:
        return None
    try:
        return BUDGET.parse(text)
    except ValueError as error:
        raise InputError(f"--budget: {error}") from None


def check_budget(found: Sizing, budget: float | None) -> None:
    """Hold the cheapest answer against the budget.

    Raises:
        InfeasibleError: it costs more; the message says how much the budget buys.
    """
    if budget is None:
        return
    cheapest = found.sized[0]
    if cheapest.usd_per_day is None:
        raise InputError("--budget: no machine that fits has a price; set cost.rent or cost.purchase")
    if cheapest.usd_per_day > budget:
        a_machine = cheapest.usd_per_day / cheapest.machines
        machines = int(budget / a_machine * (1 + 1e-12))
        buys = machines * cheapest.tok_s * 86400
        raise InfeasibleError(
            f"--budget: the cheapest costs {cheapest.usd_per_day:.4g} USD/day; {budget:.4g} USD/day pays for "
            f"{machines} {cheapest.machine}, which is {buys:.4g} tokens a day"
        )


def cost_chart(found: Sizing) -> Chart:
    """Draw what each kind of machine costs for the load."""
    priced = [each for each in found.sized if each.usd_per_million_tokens is not None]
    return Chart(
        key="cost",
        title="Cost by machine",
        kind="bars",
        x_label="machine",
        y_label="cost of the load [USD/million tokens]",
        series=(
            Series(
                name="cost",
                x=tuple(_apart([each.machine for each in priced])),
                y=tuple(each.usd_per_million_tokens for each in priced),
                cells=tuple(each.cell for each in priced),
            ),
        ),
        note="Whole machines, all day: one that is idle for part of it costs as much.",
    )


def _apart(names: Sequence[str]) -> Iterator[str]:
    """Number names that occur several times: files of machines may be called alike."""
    for index, name in enumerate(names):
        before = names[:index].count(name)
        yield f"{name} ({before + 1})" if before else name


def to_json(found: Sizing, budget: float | None) -> dict[str, Any]:
    """Give all machines for programs, the cheapest first."""
    return {
        "tokens_per_day": found.tokens_per_day,
        "budget_usd_per_day": budget,
        "least_usd_per_day": found.least_usd_per_day,
        "machines": [each.model_dump() for each in found.sized],
        "unfit": [each.model_dump() for each in found.unfit],
    }


def _sections(found: Sizing, work: str) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"{found.tokens_per_day:,.0f} tokens a day of {work}", "bold"),
        Text(),
        _table(found.sized),
        Text(),
        *_sentences(found),
    ]
    parts += [Text(f"{each.machine}: {each.reason}", "dim") for each in found.unfit]
    return parts


def _sentences(found: Sizing) -> list[str]:
    best, *others = found.sized
    if best.usd_per_day is None:
        return ["No machine that fits has a price; set cost.rent or cost.purchase."]
    said = [f"Cheapest: {_count(best)}, {best.usd_per_day:.4g} USD/day."]
    if others and others[0].usd_per_day is not None:
        more = 100 * (others[0].usd_per_day / best.usd_per_day - 1)
        said.append(f"Runner-up: {_count(others[0])}, {more:.0f} % more.")
    said.append(
        f"No schedule whatsoever on these machines costs less than {found.least_usd_per_day:.4g} USD/day, "
        "by the certified ceilings."
    )
    return said


def _count(each: Sized) -> str:
    return f"{each.machines} x {each.machine}"


def _table(sized: tuple[Sized, ...]) -> TextTable:
    table = TextTable(box=None, padding=(0, 2, 0, 0))
    heads = (
        "machine",
        "count",
        "at least",
        "tok/s\neach",
        "busy",
        "latency",
        "USD/day",
        "USD/Mtok",
        "tok/USD",
    )
    for name in (*heads, "J/tok"):
        table.add_column(name, justify="left" if name == "machine" else "right")
    for each in sized:
        table.add_row(
            each.machine,
            str(each.machines),
            str(each.at_least),
            f"{each.tok_s:.4g}",
            f"{100 * each.busy:.0f} %",
            duration(each.latency_s),
            *(number(value) for value in (each.usd_per_day, each.usd_per_million_tokens)),
            number(each.tokens_per_usd),
            number(each.joules_per_token),
        )
    return table
