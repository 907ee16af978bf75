"""Throughput against latency: the plans that no other plan beats in both, found limit by limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.charts import Chart, Series
from planner.choices import allowed_shapes
from planner.compare_published import alike_to
from planner.infeasible import quickest
from planner.measurements import Measurement, shipped_suites
from planner.plan import Plan
from planner.problem import Problem
from planner.study_answer import Answer, Ask
from planner.study_cells import Cell

_ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True)
class Point:
    """One plan of a frontier, with the number of its row in the table."""

    cell: int
    plan: Plan

    @property
    def latency(self) -> float:
        """From admission to last token. [s]"""
        return self.plan.predictions.latency_s

    @property
    def tok_s(self) -> float:
        """Simulated throughput. [tok/s]"""
        return self.plan.predictions.throughput_tok_s


@dataclass(frozen=True)
class Published:
    """A measured run that others published, where it lies in the picture. [s] [tok/s]"""

    id: str
    engine: str
    latency: float
    tok_s: float


@dataclass(frozen=True)
class Curve:
    """The frontier of one machine and engine, quickest first; ``reason`` says why there is none."""

    name: str
    points: tuple[Point, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Frontier:
    """Frontiers side by side, everything that was asked for them, and published runs on the same machines."""

    curves: tuple[Curve, ...]
    cells: tuple[Cell, ...]
    answers: tuple[Answer, ...]
    published: tuple[Published, ...]


def frontier(bases: Sequence[Cell], points: int, ask: Ask) -> Frontier:
    """Find the frontier of every base, a cell without a limit, at about so many limits of latency.

    Limits are spread evenly, on a logarithmic scale, between what the fastest plan takes and the least that
    the program reaches for the smallest block; where runs of the engine were published, what these took is a
    limit too.
    """
    unlimited, measured = ask(bases), _published(bases)
    cells, owners = list(bases), list(range(len(bases)))
    for owner, (base, reply) in enumerate(zip(bases, unlimited, strict=True)):
        limits = [*_limits(base, reply, points), *_measured_limits(base, reply, measured)]
        limited = [base.model_copy(update={"max_latency": each}) for each in dict.fromkeys(limits)]
        cells += limited
        owners += [owner] * len(limited)
    answers = [*unlimited, *ask(cells[len(bases) :])]
    curves = []
    for owner, base in enumerate(bases):
        found = [
            Point(number, answers[number].plans[0].plan)
            for number, whose in enumerate(owners)
            if whose == owner and answers[number].plans
        ]
        curves.append(Curve(_name(base, bases), tuple(undominated(found)), unlimited[owner].reason))
    return Frontier(tuple(curves), tuple(cells), tuple(answers), tuple(measured))


def _limits(base: Cell, reply: Answer, points: int) -> list[float]:
    """Spread limits below the latency of the fastest plan. [s]"""
    if not reply.plans or points < 2:
        return []
    workload = base.mix.parts[0].workload
    problem = Problem(base.hardware, base.model, workload, base.runtime)
    least = quickest(problem, base.options)
    longest = reply.plans[0].plan.predictions.latency_s
    if least is None or least >= longest:
        return []
    spread = np.geomspace(least * 1.02, longest, points)[:-1]
    return [float(f"{limit:.4g}") for limit in spread if limit < longest]


def _measured_limits(base: Cell, reply: Answer, measured: Sequence[Published]) -> list[float]:
    """Give what measured runs of the engine took, so that a plan stands right beside each. [s]"""
    if not reply.plans:
        return []
    longest = reply.plans[0].plan.predictions.latency_s
    times = [run.latency for run in measured if run.engine == base.runtime.name]
    return [float(f"{time:.4g}") for time in times if time < longest]


def undominated(points: Sequence[Point]) -> list[Point]:
    """Keep the points that no other beats in latency and throughput, quickest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.latency, -each.tok_s)):
        if not kept or point.tok_s > kept[-1].tok_s * _ROUNDING:
            kept.append(point)
    return kept


def _name(base: Cell, bases: Sequence[Cell]) -> str:
    """Name a curve by what tells it from the others."""
    told = [(each.machine, each.runtime.name, _BITS[each.quantize]) for each in bases]
    own = (base.machine, base.runtime.name, _BITS[base.quantize])
    varied = (
        value for value, values in zip(own, zip(*told, strict=True), strict=True) if len(set(values)) > 1
    )
    return ", ".join(varied) or base.machine


_BITS = {
    "none": "16 bits",
    "weights": "4 bits for weights",
    "cache": "4 bits for cache",
    "both": "4 bits",
    "auto": "16 or 4 bits",
}


def _published(bases: Sequence[Cell]) -> list[Published]:
    """List the measured runs of the machines, models, lengths and engines asked for, in any form allowed."""
    found: dict[str, Published] = {}
    for base in bases:
        forms = {(shape.weight_bits, shape.cache_bits) for shape in allowed_shapes(base.options)}
        alike = alike_to(base.hardware, base.model.name, base.mix.parts[0].workload)
        for row in (row for suite in shipped_suites().values() for row in suite):
            if alike(row) and row.system == base.runtime.name and (row.weight_bits, row.cache_bits) in forms:
                found[row.id] = _where(row)
    return list(found.values())


def _where(row: Measurement) -> Published:
    """Place a run of one block: its sequences all take the time of the whole run."""
    sequences = row.gpu_batch * row.num_gpu_batches
    return Published(row.id, row.system, sequences * row.gen_len / row.throughput_tok_s, row.throughput_tok_s)


def frontier_chart(found: Frontier) -> Chart:
    """Draw all curves, and what was published beside those of the same engine."""
    series = [
        Series(
            name=curve.name,
            x=tuple(point.latency for point in curve.points),
            y=tuple(point.tok_s for point in curve.points),
            cells=tuple(point.cell for point in curve.points),
        )
        for curve in found.curves
        if curve.points
    ]
    for engine in dict.fromkeys(each.engine for each in found.published):
        runs = [each for each in found.published if each.engine == engine]
        series.append(
            Series(
                name=f"{engine}, measured",
                x=tuple(each.latency for each in runs),
                y=tuple(each.tok_s for each in runs),
                labels=tuple(f"{each.id}: {each.tok_s:g} tok/s in {each.latency:.4g} s" for each in runs),
                joined=False,
            )
        )
    return Chart(
        key="frontier",
        title=f"{found.cells[0].model.name}, {found.cells[0].mix.name}: throughput against latency",
        kind="line",
        x_label="latency, admission to last token [s]",
        y_label="throughput [tok/s]",
        x_log=True,
        y_log=True,
        series=tuple(series),
        note="Points are plans, simulated; no plan found is better than one of them in both.",
    )
