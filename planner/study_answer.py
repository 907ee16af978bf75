"""Answers to the cells of a study: a plan for every part of the work, or the reason why there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.make_plan import Request, make_plan
from planner.plan import Plan
from planner.problem import Problem
from planner.study_cells import Cell, cell_key, program_hash
from simulator.errors import InfeasibleError, InputError
from simulator.mix import Part
from simulator.schema import Record

#: Answers cells, in their order.
Ask = Callable[[Sequence[Cell]], Sequence["Answer"]]
Status = Literal["planned", "infeasible", "failed"]


class PartPlan(Record):
    """The plan for one part of the work."""

    part: Part
    plan: Plan


class Answer(Record):
    """What came of a cell: plans, or why there are none.

    ``failed`` is a question that cannot be asked (an engine or a model that cannot do this), or a fault of
    this program; ``infeasible`` is one that the machine is too small for.
    """

    status: Status
    reason: str | None = None
    plans: tuple[PartPlan, ...] = ()

    def to_json(self) -> str:
        """Write the answer; numbers are in seconds, bytes and tokens per second."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False) + "\n"


def answer(cell: Cell) -> Answer:
    """Plan a cell. What prevents a plan is part of the answer, whatever it is."""
    plans = []
    for part in cell.mix.parts:
        problem = Problem(cell.hardware, cell.model, part.workload, cell.runtime, cell.max_latency)
        try:
            plan = make_plan(Request(problem, cell.options, cell.overrides))
        except (InputError, InfeasibleError) as error:
            status: Status = "infeasible" if isinstance(error, InfeasibleError) else "failed"
            prefix = f"{part.name}: " if len(cell.mix.parts) > 1 else ""
            return Answer(status=status, reason=f"{prefix}{error}")
        plans.append(PartPlan(part=part, plan=plan))
    reply = Answer(status="planned", plans=tuple(plans))
    limit, together = cell.max_latency, latency(reply.plans, serial=cell.mix.serial)
    if limit is not None and together > limit:
        reason = f"each call keeps {limit:g} s, but the chain of them takes {together:.4g} s"
        return Answer(status="infeasible", reason=f"{cell.model.name} on {cell.hardware.name}: {reason}")
    return reply


def latency(plans: Sequence[PartPlan], *, serial: bool) -> float:
    """Give the longest latency of a part; of a chain of calls, that of all together. [s]"""
    times = [one.plan.predictions.latency_s for one in plans]
    if not serial:
        return max(times)
    return sum(one.part.count * time for one, time in zip(plans, times, strict=True))


@dataclass(frozen=True)
class Found:
    """What a worker found: the version of its program, and of each cell its key and its answer as JSON.

    The last of the three says whether an answer is worth keeping: faults of this program are not, so that
    they are tried again.
    """

    program: str
    answers: tuple[tuple[str, str, bool], ...]


def answer_family(cells: Mapping[str, Cell]) -> Found:
    """Answer cells, by their keys, that differ in their limit of latency only; the loosest first.

    A plan that keeps a tighter limit anyway is the answer there too, since a limit only takes choices away;
    what does not fit at all fits with no limit; and a plan for a tighter limit that is faster, as blocks are
    fitted to limits by simulation, is the answer under the looser ones.
    """
    found: list[tuple[str, Answer, bool]] = []
    looser: tuple[Cell, Answer] | None = None
    for key, cell in sorted(cells.items(), key=lambda item: _looseness(item[1])):
        known = _implied(*looser, cell.max_latency) if looser else None
        keep = True
        try:
            reply = known or answer(cell)
        except Exception as error:
            reply, keep = Answer(status="failed", reason=f"internal error: {error!r}"), False
        found.append((key, reply, keep))
        looser = (cell, reply) if keep and not known else looser
    return Found(program_hash(), tuple(_raised(found)))


def _raised(found: Sequence[tuple[str, Answer, bool]]) -> Iterator[tuple[str, str, bool]]:
    """Go from the tightest limit to the loosest, and take what is faster along; give answers as JSON."""
    best: Answer | None = None
    for key, own, keep in reversed(found):
        if own.status == "planned" and (best is None or _seconds(own) <= _seconds(best)):
            best = own
        yield key, (best if best and own.status == "planned" else own).to_json(), keep


def _seconds(reply: Answer) -> float:
    return sum(seconds(one, one.plan.predictions.throughput_tok_s) for one in reply.plans)


def seconds(one: PartPlan, tok_s: float) -> float:
    """Give the time that a part takes at a throughput, padded tokens and all. [s]"""
    return one.part.count * one.part.workload.counted_tokens / tok_s


def _looseness(cell: Cell) -> float:
    return -cell.max_latency if cell.max_latency is not None else -math.inf


def _implied(cell: Cell, reply: Answer, limit: float | None) -> Answer | None:
    """Give the answer under a tighter limit, if that under a looser one says it."""
    if reply.status == "failed" or limit == cell.max_latency:
        return reply
    if reply.status == "planned":
        kept = limit is None or latency(reply.plans, serial=cell.mix.serial) <= limit
        return reply if kept else None
    if cell.max_latency is None:
        return reply
    return Answer(status="infeasible", reason=f"{reply.reason}; all the more for {limit:g} s")


def families(cells: Mapping[str, Cell]) -> list[dict[str, Cell]]:
    """Group cells, by their keys, that differ in their limit of latency only.

    Families about the same work follow each other, so that a process still has what it computed for the last.
    """
    grouped: dict[str, dict[str, Cell]] = {}
    for key, cell in cells.items():
        same = cell_key(cell.model_copy(update={"max_latency": None}))
        grouped.setdefault(same, {})[key] = cell
    return sorted(grouped.values(), key=_work)


def _work(family: Mapping[str, Cell]) -> tuple[str, ...]:
    cell = next(iter(family.values()))
    return cell.model.name, cell.runtime.name, cell.mix.name
