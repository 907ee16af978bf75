"""Sizing: how many machines of which kind serve a load, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.costs import SECONDS_PER_DAY, Economics, running_cost
from planner.study_answer import Answer
from planner.study_cells import Cell
from planner.study_figures import Planned
from simulator.errors import InfeasibleError, InputError, PlannerError
from simulator.schema import Record
from simulator.units import one_line


class Sized(Record):
    """Machines of one kind that serve a load.

    Attributes:
        machine: its name.
        machines: how many it takes by the plan; each runs one copy of it.
        at_least: no schedule whatsoever serves the load with fewer, by the certified ceiling.
        tok_s: simulated throughput of one. [tok/s]
        ceiling_tok_s: no schedule is faster on one. [tok/s]
        latency_s: from admission to last token. [s]
        usd_per_day: of all machines, whether they are busy or not; None without a price.
        usd_per_million_tokens: of the load.
        tokens_per_usd: of the load.
        joules_per_token: of a machine that is busy. [J]
        busy: share of the time that the machines work.
        cell: number of its row.
    """

    machine: str
    machines: int
    at_least: int
    tok_s: float
    ceiling_tok_s: float
    latency_s: float
    usd_per_day: float | None
    usd_per_million_tokens: float | None
    tokens_per_usd: float | None
    joules_per_token: float | None
    busy: float
    cell: int


class Unfit(Record):
    """A machine that has no plan, and why: it is too small, or cannot do what is asked."""

    machine: str
    reason: str
    cell: int
    too_small: bool = True


@dataclass(frozen=True)
class Sizing:
    """All machines: those that serve the load, the cheapest first, and those that have no plan."""

    tokens_per_day: float
    sized: tuple[Sized, ...]
    unfit: tuple[Unfit, ...]

    @property
    def none_can(self) -> PlannerError:
        """Say that no machine can: all are too small, or the question is wrong."""
        kind = InfeasibleError if any(each.too_small for each in self.unfit) else InputError
        first = next((each for each in self.unfit if each.too_small), self.unfit[0])
        return kind(one_line(f"no machine can: {first.machine}: {first.reason}"))

    @property
    def least_usd_per_day(self) -> float | None:
        """Give a bound on the cost: no schedule on whichever of these machines costs less. [USD/day]"""
        costs = [
            each.usd_per_day / each.machines * each.at_least
            for each in self.sized
            if each.usd_per_day is not None
        ]
        return min(costs, default=None)


def size(
    cells: Sequence[Cell], answers: Sequence[Answer], tokens_per_day: float, economics: Economics
) -> Sizing:
    """Count machines of every kind for a load, and order them by what they cost a day.

    Machines without a price come last, the fewest first.
    """
    sized, unfit = [], []
    for number, (cell, reply) in enumerate(zip(cells, answers, strict=True)):
        if reply.plans:
            sized.append(_sized(number, cell, reply, tokens_per_day, economics))
        else:
            too_small = reply.status == "infeasible"
            reason = reply.reason or reply.status
            unfit.append(Unfit(machine=cell.machine, reason=reason, cell=number, too_small=too_small))
    sized.sort(key=lambda each: (each.usd_per_day is None, each.usd_per_day or 0.0, each.machines))
    return Sizing(tokens_per_day, tuple(sized), tuple(unfit))


def _sized(number: int, cell: Cell, reply: Answer, tokens_per_day: float, economics: Economics) -> Sized:
    running = running_cost(cell.hardware.cost, economics)
    planned = Planned(reply.plans, running, cell.mix.serial)
    needed = tokens_per_day / SECONDS_PER_DAY
    ceiling = planned.rate(lambda plan: plan.bounds.ceiling_tok_s)
    machines = _whole(needed / planned.tok_s)
    a_day = machines * 24 * running.usd_per_hour if running.usd_per_hour is not None else None
    return Sized(
        machine=cell.machine,
        machines=machines,
        at_least=_whole(needed / ceiling),
        tok_s=planned.tok_s,
        ceiling_tok_s=ceiling,
        latency_s=planned.latency,
        usd_per_day=a_day,
        usd_per_million_tokens=a_day / tokens_per_day * 1e6 if a_day is not None else None,
        tokens_per_usd=tokens_per_day / a_day if a_day else None,
        joules_per_token=running.joules_per_token(planned.tok_s),
        busy=needed / (machines * planned.tok_s),
        cell=number,
    )


def _whole(machines: float) -> int:
    return max(1, math.ceil(machines * (1 - 1e-12)))
