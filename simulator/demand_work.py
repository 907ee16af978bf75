"""The work of a period, kept where there is any: what demand sums, whatever the machine.

Of the forms of ``simulator.work`` most coefficients are zero: an operation belongs to some kinds of cells and
to few placement variables. Only the others are kept, so that a search can price them on many machines.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from simulator.cells import cell_kinds
from simulator.layers import WORKING, CellKind, Shape, count_layers
from simulator.model import ModelSpec
from simulator.operations import OP, OPERATIONS, BoolArray, IntArray, Operation
from simulator.passes import period_positions
from simulator.policy import PLACEMENT, FloatArray, cohorts_in_flight
from simulator.runtime import Runtime
from simulator.work import Cells, Work, cell_work, layer_work
from simulator.workload import Workload

#: Operations that every placement runs: their launch latencies belong to the demand.
_ALWAYS = ("qkv", "project", "mlp", "head", "embed", "attend_prompt", "attend_prefix")
_ONE = PLACEMENT.index("one")
_INSIDE = (CellKind.BLOCK, CellKind.ATTENTION, CellKind.MLP)
_KEPT = 64  # periods; one of a thousand generated tokens has about half a megabyte


@dataclass(frozen=True, eq=False)
class Part:
    """The work of one operation in n kinds of cells and k placement variables; elsewhere it has none.

    Attributes:
        operation: what is done.
        columns: the placement variables, as indices into ``PLACEMENT``. [k]; of coefficients that are alike
            for all of them there is one column only.
        flops: coefficients. [n, k]
        bytes: the same. [n, k]
        blocks: the same. [n, k]
        kernels: launches. [n]
        steps: inner dimensions of all kernels together. [n]
        shares: how many such cells there are in a period for each sequence in flight; of what is done once a
            pass, in a pass. [n, 1]
        admission: how many of the kinds belong to the pass with an admission; they come first.
        always: the column whose launches count whatever the placement, if any.
        inside: it is a load of a transformer block.
    """

    operation: Operation
    columns: IntArray
    flops: FloatArray
    bytes: FloatArray
    blocks: FloatArray
    kernels: FloatArray
    steps: FloatArray
    shares: FloatArray
    admission: int = 0
    always: int | None = None
    inside: bool = False


@dataclass(frozen=True, eq=False)
class PeriodWork:
    """The work of a period of so many passes: of cells, of cells once a pass, and of whole layers."""

    passes: int
    cells: tuple[Part, ...]
    once: tuple[Part, ...]
    layers: tuple[Part, ...]


@lru_cache(_KEPT)
def period_work(
    model: ModelSpec,
    shape: Shape,
    runtime: Runtime,
    workload: Workload,
    gpu_batch: int,
    prompt_batch: int,
    stagger: int | None,
) -> PeriodWork:
    """List the work of one period, cells of the pass with an admission first."""
    cohorts = cohorts_in_flight(stagger, workload.passes)
    every = stagger if stagger and cohorts > 1 else workload.passes
    beside, others = period_positions(workload, every)
    positions = np.concatenate([[0.0], beside, others])
    kinds = cell_kinds(workload, positions, gpu_batch, prompt_batch)
    counts = count_layers(model, runtime)
    layers = np.repeat([float(counts[kind]) for kind in WORKING], len(positions))
    in_admission = np.tile(np.arange(len(positions)) <= len(beside), len(WORKING))
    rows = np.concatenate([np.nonzero((layers > 0) & phase)[0] for phase in (in_admission, ~in_admission)])
    present = Cells(**{one.name: getattr(kinds, one.name)[rows] for one in fields(Cells)})
    layers, admitted, first = layers[rows], in_admission[rows], rows % len(positions) == 0
    shares = layers / present.sequences / cohorts
    cells, once = [], []
    for name, work in cell_work(model, shape, runtime, present).items():
        if name == "dequantize_weights" and runtime.dequantize == "per_pass":  # alike at all positions
            once += _parts(name, work, np.where(first, layers, 0.0))
        else:
            cells += _parts(name, work, shares, admitted)
    return PeriodWork(every, tuple(cells), tuple(once), tuple(_loads(model, shape, runtime)))


def _loads(model: ModelSpec, shape: Shape, runtime: Runtime) -> list[Part]:
    """List the loads of the layers of every kind, in one pass."""
    return [
        part
        for kind, count in count_layers(model, runtime).items()
        if count
        for name, work in layer_work(model, shape, runtime, kind).items()
        for part in _parts(name, work, np.array([float(count)]), inside=kind in _INSIDE)
    ]


def _parts(
    name: str,
    work: Work,
    shares: FloatArray,
    admitted: BoolArray | None = None,
    *,
    inside: bool = False,
) -> list[Part]:
    """Keep the rows and columns of an operation's forms in which there is work; an empty list if none."""
    forms = [work.flops, work.bytes, work.blocks]
    launched = (work.kernels != 0.0) if name in _ALWAYS else np.zeros(len(shares), dtype=bool)
    any_of = np.any([form.any(axis=0) for form in forms], axis=0)
    any_of[_ONE] |= launched.any()
    columns = np.nonzero(any_of)[0]
    if not len(columns):
        return []
    forms = [form[:, columns] for form in forms]
    kept = np.any([launched, *(form.any(axis=1) for form in forms)], axis=0)
    forms = [form[kept] for form in forms]
    if name not in _ALWAYS and all((form == form[:, :1]).all() for form in forms):
        forms = [form[:, :1].copy() for form in forms]
    flops, bytes_, blocks = forms
    part = Part(
        operation=OPERATIONS[OP[name]],
        columns=columns,
        flops=flops,
        bytes=bytes_,
        blocks=blocks,
        kernels=work.kernels[kept],
        steps=work.steps[kept],
        shares=shares[kept, None],
        admission=int(admitted[kept].sum()) if admitted is not None else 0,
        always=0 if name in _ALWAYS and columns[0] == _ONE else None,
        inside=inside,
    )
    return [part]


def in_order(amounts: FloatArray) -> FloatArray:
    """Sum the rows one after the other, so that what is left out as zero changes no digit. [n, k] to [k]"""
    return np.asarray(np.add.accumulate(amounts, axis=0)[-1])
