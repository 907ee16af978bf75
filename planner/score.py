"""How far predictions are from measurements: errors of rows, orders of pairs, seconds by component."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from planner.engine_rows import play_row, predict_row
from planner.measurements import MeasuredBreakdown, Measurement, Order
from simulator.errors import PlannerError
from simulator.hardware import HardwareProfile
from simulator.operations import OPERATIONS, Operation
from simulator.policy import FloatArray
from simulator.schema import Record
from simulator.simulate import Prediction, Simulation

Component = Literal["compute", "weight_read", "cache_read", "cache_write"]
Stage = Literal["prefill", "decode"]

#: Errors up to this size count as near.
NEAR = 0.1 + 1e-9  # 11 over 10 is near in spite of rounding

_ALL = "all suites"


class Score(Record):
    """A row with its prediction, or with the reason why there is none.

    ``error`` is predicted over measured, less 1; ``unit`` is that of both. ``fitted`` tells whether constants
    were fitted to the row, None where that is not known: profiles may rest on any kernel table.
    """

    id: str
    suite: str
    system: str | None = None
    model: str | None = None
    shape: str | None = None
    unit: Literal["tok/s", "ms"]
    fitted: bool | None
    measured: float
    predicted: float | None = None
    error: float | None = None
    reason: str | None = None


class Summary(Record):
    """The errors of a suite's rows, of those used for fitting or of the others; None without predictions.

    ``worst_error`` is the one of the largest size; ``near`` is the share of predictions within 10 %.
    """

    suite: str
    fitted: bool | None
    rows: int
    unpredicted: int
    median_abs_error: float | None = None
    mean_error: float | None = None
    worst_error: float | None = None
    worst_id: str | None = None
    near: float | None = None


class OrderScore(Record):
    """How many times as fast the faster of two rows is; ``as_measured`` is None without a prediction."""

    faster_id: str
    slower_id: str
    meaning: str
    measured_ratio: float
    predicted_ratio: float | None = None
    as_measured: bool | None = None


class ComponentScore(Record):
    """Seconds of one component (or in total) of one stage; the sum of components may exceed the total."""

    row: str
    stage: Stage
    component: Component | Literal["total"]
    measured: float
    predicted: float | None = None
    reason: str | None = None


def score(row: Measurement, suite: str, hardware: HardwareProfile) -> Score:
    """Predict a row and hold it against what was measured."""
    known = {
        "id": row.id,
        "suite": suite,
        "system": row.system,
        "model": row.model,
        "shape": row.shape,
        "unit": "tok/s",
        "fitted": row.fitted,
        "measured": row.throughput_tok_s,
    }
    try:
        predicted = predict_row(row, hardware).throughput_tok_s
    except PlannerError as fault:
        return Score.model_validate(known | {"reason": str(fault)})
    error = predicted / row.throughput_tok_s - 1
    return Score.model_validate(known | {"predicted": predicted, "error": error})


def summarise(scores: Iterable[Score]) -> list[Summary]:
    """Sum up each suite, then all suites of one unit together; fitted rows always apart from the others."""
    groups: dict[tuple[str, bool | None], list[Score]] = {}
    for each in scores:
        groups.setdefault((each.suite, each.fitted), []).append(each)
    suites = {suite for suite, _ in groups}
    units = {each.unit for members in groups.values() for each in members}
    if len(suites) > 1 and len(units) == 1:
        for (_, fitted), members in list(groups.items()):
            groups.setdefault((_ALL, fitted), []).extend(members)
    order = {suite: place for place, suite in enumerate(dict.fromkeys(suite for suite, _ in groups))}
    names = sorted(groups, key=lambda name: (order[name[0]], not name[1]))
    return [_summary(suite, fitted, groups[suite, fitted]) for suite, fitted in names]


def _summary(suite: str, fitted: bool | None, scores: Sequence[Score]) -> Summary:
    errors = [(each.error, each.id) for each in scores if each.error is not None]
    counts = {"rows": len(scores), "unpredicted": sum(each.error is None for each in scores)}
    if not errors:
        return Summary(suite=suite, fitted=fitted, **counts)
    worst_error, worst_id = max(errors, key=lambda each: abs(each[0]))
    values = np.array([error for error, _ in errors])
    return Summary(
        suite=suite,
        fitted=fitted,
        **counts,
        median_abs_error=float(np.median(np.abs(values))),
        mean_error=float(values.mean()),
        worst_error=worst_error,
        worst_id=worst_id,
        near=float((np.abs(values) <= NEAR).mean()),
    )


def score_orders(orders: Iterable[Order], scores: Iterable[Score]) -> list[OrderScore]:
    """Compare pairs of rows: is the one that was measured to be faster predicted to be?"""
    by_id = {each.id: each for each in scores}
    return [_order(order, by_id[order.faster_id], by_id[order.slower_id]) for order in orders]


def _order(order: Order, faster: Score, slower: Score) -> OrderScore:
    ratio = None
    if faster.predicted is not None and slower.predicted is not None:
        ratio = faster.predicted / slower.predicted
    return OrderScore(
        **order.model_dump(),
        measured_ratio=faster.measured / slower.measured,
        predicted_ratio=ratio,
        as_measured=None if ratio is None else ratio > 1,
    )


def component_of(operation: Operation) -> Component | None:
    """Say what an operation's time is spent for; None for activations, queries and outputs."""
    if operation.of is None:
        return "compute"
    if operation.of == "cache":
        return "cache_write" if operation.lane in ("d2h", "disk_write") else "cache_read"
    return "weight_read" if operation.of == "weights" else None


def component_seconds(simulation: Simulation) -> dict[Stage, dict[Component, float]]:
    """Give the time in which each component runs, of the pass with the prompts and of all others. [s]

    Tasks of one component that run beside each other (two tensors of a layer on their way from different
    tiers) count once, as a clock around them would.
    """
    schedule = simulation.schedule
    weight = np.array([one.weight for one in schedule.window.passes])[schedule.pass_index]
    components = [component_of(operation) for operation in OPERATIONS]
    found: dict[Stage, dict[Component, float]] = {"prefill": {}, "decode": {}}
    for name in get_args(Component):
        tasks = np.nonzero(np.isin(schedule.operation, _codes(components, name)))[0]
        clock = _covered(simulation.start[tasks], simulation.end[tasks]) * weight[tasks]
        of_prompts = schedule.pass_index[tasks] == 0
        found["prefill"][name] = float(clock[of_prompts].sum())
        found["decode"][name] = float(clock[~of_prompts].sum())
    return found


def _covered(start: FloatArray, end: FloatArray) -> FloatArray:
    """Give the time that each interval adds to the union of those that start before it. [N] [s]"""
    order = np.argsort(start, kind="stable")
    reached = np.maximum.accumulate(np.append(-np.inf, end[order]))[:-1]
    added = np.zeros(len(start))
    added[order] = np.maximum(0.0, end[order] - np.maximum(reached, start[order]))
    return added


def _codes(components: Sequence[Component | None], name: Component) -> list[int]:
    return [code for code, component in enumerate(components) if component == name]


def score_stage(
    stage: MeasuredBreakdown, row: Measurement, hardware: HardwareProfile
) -> list[ComponentScore]:
    """Play a run whose time was broken down, and hold the seconds of one stage against what was measured."""
    seconds: dict[str, float] = {}
    reason = None
    try:
        seconds = _seconds(stage.stage, *play_row(row, hardware))
    except PlannerError as fault:
        reason = str(fault)
    names: tuple[Component | Literal["total"], ...] = (*get_args(Component), "total")
    return [
        ComponentScore(
            row=stage.row,
            stage=stage.stage,
            component=name,
            measured=getattr(stage, f"{name}_s"),
            predicted=seconds.get(name),
            reason=reason,
        )
        for name in names
    ]


def _seconds(stage: Stage, prediction: Prediction, simulation: Simulation) -> dict[str, float]:
    total = prediction.prefill_s if stage == "prefill" else prediction.decode_s
    return {"total": total} | {str(name): busy for name, busy in component_seconds(simulation)[stage].items()}
