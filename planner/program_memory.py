"""Rows of the placement program for memory: what a tier holds at any moment is no more than it may."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.problem import PROMPT_TOKENS, memory_limit
from simulator.hardware import TIERS
from simulator.memory import Batch, MemoryItem, lookahead, memory_items, moments
from simulator.policy import PLACEMENT, FloatArray
from simulator.units import GB

if TYPE_CHECKING:
    from planner.program import Program


def define_memory(program: Program) -> None:
    """Each tier holds what lies there: ``resident(x) + sum of slots x buffer(x) <= capacity``, over block.

    Where the engine frees memory there is a row for every moment that no other one exceeds in everything.
    """
    problem, outer = program.problem, program.outer
    smallest = outer.smallest_batch or outer.gpu_batch
    prompts = min(smallest, outer.prompts_together(problem))
    if not outer.prompt_batch and problem.runtime.splits_prompts and smallest < outer.gpu_batch:
        prompts = min(prompts, math.ceil(PROMPT_TOKENS / problem.workload.own_len))
    batch = Batch(smallest, prompts, outer.prefetch, outer.stagger)
    # An open block may have one group only, which needs no buffers for running ahead.
    ahead = lookahead(problem.runtime, program.block // outer.gpu_batch) if program.block else 0
    arguments = (problem.model, outer.shape, problem.runtime, problem.workload, batch, ahead)
    at_moments = moments(problem.runtime, problem.workload)
    items = {moment.label: memory_items(*arguments, moment) for moment in at_moments}
    for tier in TIERS:
        name, capacity = memory_limit(problem.hardware, tier, pinned=outer.pinned)
        forms = {label: _forms([one for one in found if one.tier == tier]) for label, found in items.items()}
        fullest = _fullest(forms)
        for label, (fixed, scaling) in fullest.items():
            terms, constant = program.scaled(fixed, scaling)
            terms["tau"] = terms.get("tau", 0.0) - capacity
            row = f"{name}, {label}" if len(fullest) > 1 else name
            program.add(row, terms, -constant, scale=1.0 / GB)


def _forms(items: list[MemoryItem]) -> FloatArray:
    """Sum what does not grow with the block, and what does. [2, len(PLACEMENT)]"""
    forms = np.zeros((2, len(PLACEMENT)))
    for item in items:
        forms[int(item.scales)] += item.slots * item.form
    return forms


def _fullest(forms: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Leave out moments that hold at most what another does, whatever the placement; of equals keep one.

    Forms have no negative terms, so that one above another in each of them is so at every placement.
    """
    kept: dict[str, FloatArray] = {}
    for label, form in forms.items():
        if not any((form <= other).all() for other in kept.values()):
            kept = {name: other for name, other in kept.items() if not (other <= form).all()}
            kept[label] = form
    return kept
