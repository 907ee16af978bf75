"""The placement program: a linear program that finds the block and the placement for one group size.

Time per sequence is linear-fractional in the block size. With ``tau = 1 / block`` and weight fractions scaled
by tau, everything is linear, so one program finds the best block and the best placement together (the
Charnes-Cooper transformation; docs/cost-model.md, section "The placement program"). With the block fixed the
same rows are exact for every buffer; with the block open the few terms that multiply a cache fraction by tau
are dropped, which leaves a relaxation.

Rows are named in the words that the report prints. Rates are scaled so that coefficients are near 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from planner.linear import Optimum, Row, minimise
from planner.phases import phases_of, rates_of
from planner.problem import Outer, Problem, Solution
from planner.program_memory import define_memory
from planner.program_turns import define_turns
from simulator.demand import resource_limits
from simulator.hardware import LANES
from simulator.layers import CellKind, layer_weight_bytes, total_weight_bytes
from simulator.policy import PLACEMENT, FloatArray, cohorts_in_flight

_WEIGHTS = slice(1, 4)
_CACHE = slice(4, 9)
_ACTIVATIONS = slice(9, 12)
_VARIABLES = tuple(enumerate(PLACEMENT))[1:]
#: More groups than this buy nothing that larger groups do not, and cost launches and simulation time.
MAX_GROUPS = 64


@dataclass
class Program:
    """The rows of one program. ``block`` of None leaves the block open."""

    problem: Problem
    outer: Outer
    block: int | None = None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read work and memory off the schedule's forms and write the rows."""
        problem, outer = self.problem, self.outer
        self.rates = rates_of(problem, outer)
        self.cohorts = cohorts_in_flight(outer.stagger, problem.workload.passes)
        self.phases = phases_of(problem, outer)
        define_placement(self)
        define_loads(self)
        define_demand(self)
        define_turns(self)
        define_memory(self)
        define_limits(self)
        define_pins(self)

    def scaled(self, per_pass: FloatArray, per_sequence: FloatArray) -> tuple[dict[str, float], float]:
        """Write ``(per_pass(x) + block * per_sequence(x)) / block`` as terms of variables and a constant.

        Weight variables stand for fraction x tau. Terms that need a product of two variables (a cache
        fraction x tau, a weight fraction without tau) are exact when the block is fixed. Else what costs is
        dropped, and what saves counts as in a block of one group: no block does better.
        """
        block = self.block or self.outer.gpu_batch * self.cohorts
        fixed = self.block is not None
        once, each = per_pass.tolist(), per_sequence.tolist()  # a few floats are quicker than an array
        terms = {}
        for index, name in _VARIABLES:
            is_weight = index < _WEIGHTS.stop
            mixed = each[index] * block if is_weight else once[index] / block
            terms[name] = (once if is_weight else each)[index] + (mixed if fixed else min(0.0, mixed))
        terms["tau"] = once[0]
        return {name: value for name, value in terms.items() if value}, each[0]

    def demand(self, per_pass: FloatArray, per_sequence: FloatArray) -> tuple[dict[str, float], float]:
        """Write demand as :meth:`scaled` does, counting of the weights only what a pass moves.

        All that recurs once a pass on a placement of weights is loads of layers (``define_loads``). What a
        buffer saves on them stays with the weights themselves.
        """
        terms, constant = self.scaled(per_pass, per_sequence)
        once, read = (float(per_pass[PLACEMENT.index(name)]) for name in ("weights_cpu", "weights_disk"))
        for load, saving, names in (
            (once, "layers_loaded", ("weights_cpu", "weights_disk")),
            (read - once, "layers_read", ("weights_disk",)),
        ):
            if load > 0.0:
                terms |= {saving: load} | {name: terms.get(name, 0.0) - load for name in names}
        return terms, constant

    def add(
        self,
        name: str,
        terms: dict[str, float],
        constant: float = 0.0,
        *,
        equal: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Add a row ``scale * terms <= scale * constant``."""
        scaled = {variable: value * scale for variable, value in terms.items()}
        self.rows.append(Row(name, scaled, constant * scale, equal))

    def solve(self, *, traffic: float | None = None, small: float | None = None) -> Solution | None:
        """Solve the program; None if no placement fits.

        Args:
            traffic: with a time per sequence, find instead the placement of least traffic that keeps it.
            small: with a time per sequence, find instead the smallest block that keeps it.
        """
        objective = {"admission": 1.0, "others": 1.0}
        rows, kept = self.rows, traffic if traffic is not None else small
        if kept is not None:
            rows = [*rows, Row("time per sequence", objective, kept)]
            objective = {"tau": -1.0} if small is not None else self._traffic()
        found = minimise(objective, rows, self.sizes)
        return self._solution(found) if found is not None else None

    @property
    def sizes(self) -> dict[str, float]:
        """Give the order of magnitude of every variable, in which the solver measures it."""
        tau = 1.0 / (self.block or math.sqrt(math.prod(self.blocks)))
        kernels = [tau * each.per_pass[0, 0] + each.per_sequence[0, 0] for each in self.phases]
        weights = dict.fromkeys([*PLACEMENT[_WEIGHTS], "layers_loaded", "layers_read"], tau)
        times = dict.fromkeys(("admission", "others"), float(sum(kernels)))
        return dict.fromkeys(PLACEMENT[1:], 1.0) | weights | times | {"tau": tau}

    @property
    def blocks(self) -> tuple[int, int]:
        """Give the smallest and the largest block that an open one may be."""
        outer, prompts = self.outer, self.problem.workload.num_prompts
        smallest = (outer.smallest_batch or outer.gpu_batch) * self.cohorts
        most = MAX_GROUPS * outer.gpu_batch
        return smallest, max(min(most, prompts or most), smallest)

    def _solution(self, found: Optimum) -> Solution:
        tau = found.values["tau"]
        placement = np.array([1.0] + [max(0.0, found.values[name]) for name in PLACEMENT[1:]])
        placement[_WEIGHTS] /= tau
        for part in (_WEIGHTS, _CACHE, _ACTIVATIONS):
            placement[part] /= placement[part].sum()
        seconds = found.values["admission"] + found.values["others"]
        return Solution(
            seconds=seconds,
            block=1.0 / tau,
            placement=placement,
            throughput=self.problem.workload.counted_tokens / (self.cohorts * seconds),
            duals=found.duals,
            values=found.values,
        )

    def _traffic(self) -> dict[str, float]:
        """Seconds on all lanes together, as the tie-break between equally fast placements."""
        total: dict[str, float] = {}
        for phase in self.phases:
            per_pass = phase.per_pass[: len(LANES)].sum(axis=0)
            per_sequence = phase.per_sequence[: len(LANES)].sum(axis=0)
            for name, value in self.demand(per_pass, per_sequence)[0].items():
                total[name] = total.get(name, 0.0) + value
        # Among placements of equal traffic, the nearer tier is simpler to run.
        for weight, name in enumerate(("activations_gpu", "activations_cpu", "activations_disk")):
            total[name] = total.get(name, 0.0) + 1e-9 * weight
        return total


def define_placement(program: Program) -> None:
    """Every class of tensors lies somewhere: ``wg + wc + wd = tau``, ``sum of cache = 1``, ``sum of h = 1``.

    Weight variables are fractions times tau; so is the fixed block, as ``tau = 1 / block``.
    """
    program.add("weights placed", dict.fromkeys(PLACEMENT[_WEIGHTS], 1.0) | {"tau": -1.0}, equal=True)
    program.add("cache placed", dict.fromkeys(PLACEMENT[_CACHE], 1.0), 1.0, equal=True)
    pinned = any(name.startswith("cache") for name, _ in program.outer.pins)
    if program.problem.workload.scores and not pinned:
        program.add("no cache", {"cache_gpu": 1.0}, 1.0, equal=True)  # anywhere would do
    program.add("activations placed", dict.fromkeys(PLACEMENT[_ACTIVATIONS], 1.0), 1.0, equal=True)
    if program.block is not None:
        program.add("block", {"tau": 1.0}, 1.0 / program.block, equal=True)
    else:
        smallest, most = program.blocks
        program.add("block at least one group", {"tau": 1.0}, 1.0 / smallest)
        program.add("block at most the queue", {"tau": -1.0}, -1.0 / most)


def define_loads(program: Program) -> None:
    """Rows of the embedding table are looked up where they lie: ``W (wc + wd) - E <= (W - E) loaded``.

    Whole tensors are laid out so that the table leaves the GPU first (and the CPU, for ``wd`` and ``read``).
    Where tensors are cut into rows all of them are cut alike, and some engines load the table like any other
    weights: ``wc + wd = loaded``, ``wd = read``.
    """
    model, shape, runtime = program.problem.model, program.outer.shape, program.problem.runtime
    whole = total_weight_bytes(model, shape, runtime)
    looked_up = runtime.grain == "tensor" and not runtime.loads_embeddings
    table = layer_weight_bytes(model, shape, runtime, CellKind.EMBED) if looked_up else 0.0
    away = {"layers_loaded": ("weights_cpu", "weights_disk"), "layers_read": ("weights_disk",)}
    for name, tiers in away.items():
        least = dict.fromkeys(tiers, whole) | {"tau": -table, name: table - whole}
        program.add(f"{name} at least", least, scale=1.0 / whole)
        program.add(f"{name} at most", dict.fromkeys(tiers, -1.0) | {name: 1.0})


def define_demand(program: Program) -> None:
    """Time covers every lane and capacity: ``demand_r(x) - carry_r(x) <= limit_r * T_phase``, and in all.

    Demand is divided by the block. Carry is what buffers let a lane do before or after the phase; over the
    whole period nothing is carried: ``sum of demand_r <= limit_r * (T_admission + T_others)``.
    """
    limits = resource_limits(program.rates)
    names = [*LANES, *program.problem.hardware.capacities]
    phases = dict(zip(("admission", "others"), program.phases, strict=True))
    for index, (name, most) in enumerate(zip(names, limits, strict=True)):
        scale = 1.0 / most
        for variable, phase in phases.items():
            per_pass = phase.per_pass[index] - phase.carry[index]
            terms, constant = program.demand(per_pass, phase.per_sequence[index])
            program.add(f"{name}, {variable}", terms | {variable: -most}, -constant, scale=scale)
        admission, others = program.phases
        terms, constant = program.demand(
            admission.per_pass[index] + others.per_pass[index],
            admission.per_sequence[index] + others.per_sequence[index],
        )
        program.add(f"{name}, period", terms | {"admission": -most, "others": -most}, -constant, scale=scale)


def define_limits(program: Program) -> None:
    """A sequence lives n / stagger periods: ``(T_admission + T_others) * n / stagger <= limit * tau``."""
    most = program.problem.max_latency
    if most is None:
        return
    passes = program.problem.workload.passes
    every = program.outer.stagger if program.outer.stagger and program.cohorts > 1 else passes
    periods = passes / every
    terms = {"admission": periods, "others": periods, "tau": -most}
    program.add("latency limit", terms, scale=1.0 / most)


def define_pins(program: Program) -> None:
    """Keep what the user fixed; a share of CPU attention fixes two cache variables to each other."""
    for name, value in program.outer.pins:
        if name == "cpu_attention":
            for tier in ("cpu", "disk"):
                terms = {f"cache_{tier}_on_cpu": 1.0 - value, f"cache_{tier}_on_gpu": -value}
                program.add(f"{name} of {tier} pinned", terms, equal=True)
        elif name in ("cache_cpu", "cache_disk"):
            program.add(f"{name} pinned", {f"{name}_on_cpu": 1.0, f"{name}_on_gpu": 1.0}, value, equal=True)
        elif name.startswith("weights_"):
            program.add(f"{name} pinned", {name: 1.0, "tau": -value}, equal=True)
        else:
            program.add(f"{name} pinned", {name: 1.0}, value, equal=True)
