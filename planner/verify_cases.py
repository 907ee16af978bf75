"""Policies to prove predictions with: each kind loads another lane, sizes are drawn, none was fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.choices import Options, ScheduleChoice
from planner.make_plan import Request, make_plan
from planner.pins import Pins
from planner.plan import Plan
from planner.problem import Problem
from simulator.errors import InfeasibleError
from simulator.hardware import HardwareProfile
from simulator.model import ModelSpec
from simulator.runtime import Runtime
from simulator.workload import Workload

_SHORTEST, _LONGEST = 4, 64  # tokens generated
_TRIES = 6  # draws of a kind until one fits the machine

Split = tuple[float, float, float]


@dataclass(frozen=True)
class Kind:
    """A kind of policy: what is pinned, and between which sizes the rest is drawn.

    Attributes:
        name: which lane it loads.
        batches: sizes of a group.
        groups: counts of groups.
        prompts: least and most tokens of a prompt.
        streamed: least and most share of the weights that lies on the disk.
        pins: fixed policy variables.
        schedule: how the work is traversed.
        rounds: blocks of prompts.
    """

    name: str
    batches: tuple[int, ...]
    groups: tuple[int, ...] = (1,)
    prompts: tuple[int, int] = (16, 48)
    streamed: tuple[float, float] = (0.0, 0.0)
    pins: tuple[tuple[str, Any], ...] = ()
    schedule: ScheduleChoice = "auto"
    rounds: int = 1


_IN_CPU = ("cache", (0.0, 1.0, 0.0))
KINDS = (
    Kind("disk", (4, 6, 10, 14), streamed=(0.7, 1.0)),
    Kind("compute", (10, 14, 20, 28), prompts=(90, 200), streamed=(0.3, 0.6)),
    Kind("zig-zag over groups", (6, 10, 12), (2, 3, 4), streamed=(0.5, 0.9), schedule="zigzag"),
    Kind("copied cache", (6, 12, 18), (2, 3), (60, 160), (0.0, 0.3), (_IN_CPU, ("cpu_attention", 0.0))),
    Kind("CPU attention", (6, 12, 18), (2, 3), (60, 160), (0.0, 0.3), (_IN_CPU, ("cpu_attention", 1.0))),
    Kind("in memory", (12, 20, 40)),
    Kind("4-bit weights", (6, 12, 20), streamed=(0.6, 1.0), pins=(("weight_bits", 4),)),
    Kind("4-bit cache", (8, 12), (2,), (40, 100), (0.2, 0.5), (("cache_bits", 4), _IN_CPU)),
    Kind("diagonal", (4, 6), (4,), streamed=(0.4, 0.8), schedule="diagonal", rounds=2),
    Kind(
        "cache on disk",
        (4, 8),
        (2,),
        (40, 100),
        (0.0, 0.2),
        (("cache", (0.0, 0.0, 1.0)), ("cpu_attention", 0.0)),
    ),
)


@dataclass(frozen=True)
class Case:
    """A plan to be run, and the kind that it is of."""

    kind: str
    plan: Plan

    @property
    def seconds(self) -> float:
        """How long it is predicted to run. [s]"""
        work = self.plan.workload
        assert work.num_prompts is not None
        return work.num_prompts * work.gen_len / self.plan.predictions.throughput_tok_s


def draw_cases(
    hardware: HardwareProfile, model: ModelSpec, runtime: Runtime, count: int, seed: int, seconds: float
) -> Iterator[Case]:
    """Draw policies of all kinds in turn, and plan each.

    Args:
        hardware: the machine.
        model: what runs.
        runtime: the engine.
        count: how many.
        seed: of the draws.
        seconds: about how long each is to run.

    Raises:
        InfeasibleError: of a kind nothing that was drawn fits the machine.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield _drawn(kind, Problem(hardware, model, Workload(), runtime), rng, seconds)


def _drawn(kind: Kind, problem: Problem, rng: np.random.Generator, seconds: float) -> Case:
    """Draw until a plan can be made, then let it generate for about as long as asked."""
    for attempt in range(_TRIES):
        pins = _pins(kind, rng)
        prompt_len = int(rng.integers(kind.prompts[0], kind.prompts[1] + 1))
        try:
            first = _plan(kind, problem, pins, prompt_len, 8)
            longer = _longer(first, seconds)
            return Case(kind.name, _plan(kind, problem, pins, prompt_len, longer) if longer != 8 else first)
        except InfeasibleError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def _pins(kind: Kind, rng: np.random.Generator) -> Pins:
    on_disk = float(np.round(rng.uniform(*kind.streamed), 2))
    drawn = {
        "gpu_batch": int(rng.choice(kind.batches)),
        "num_groups": int(rng.choice(kind.groups)),
        "weights": (1.0 - on_disk, 0.0, on_disk),
        "cache": (1.0, 0.0, 0.0),
        "activations": (1.0, 0.0, 0.0),
    }
    return Pins(tuple((drawn | dict(kind.pins)).items()))


def _plan(kind: Kind, problem: Problem, pins: Pins, prompt_len: int, gen_len: int) -> Plan:
    groups = pins.get("num_groups")
    block = pins.get("gpu_batch") * groups
    if kind.schedule == "diagonal":  # a group every so many passes, so that all are in flight
        stagger = -(-gen_len // groups)
        pins, gen_len = Pins((*pins.values, ("stagger", stagger))), stagger * groups
    workload = Workload(prompt_len=prompt_len, gen_len=gen_len, num_prompts=block * kind.rounds)
    asked = Problem(problem.hardware, problem.model, workload, problem.runtime)
    return make_plan(Request(asked, Options("none", kind.schedule, pins)))


def _longer(plan: Plan, seconds: float) -> int:
    """Choose the tokens to generate so that a run takes about so long."""
    done = Case("", plan).seconds - plan.predictions.prefill_s
    a_token = max(1e-6, done / max(1, plan.workload.gen_len - 1))
    return int(np.clip(round((seconds - plan.predictions.prefill_s) / a_token), _SHORTEST, _LONGEST))
