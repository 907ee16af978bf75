"""Cells: every (pass, layer, group) of a window in the order of the traversal, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from simulator.errors import InputError
from simulator.layers import WORKING, CellKind, first_loaded, layer_kinds
from simulator.layout import Placed
from simulator.operations import BoolArray, IntArray
from simulator.passes import Pass, Window
from simulator.policy import FloatArray
from simulator.work import Cells
from simulator.workload import Workload

_COLUMNS = (
    "pass_index",
    "layer",
    "group",
    "kind",
    "work",
    "above",
    "before",
    "weights",
    "column",
    "width",
)
# NumPy asks a member of an enumeration for attributes, and drops whatever is raised meanwhile (before Python
# 3.12 that is Python code): an interrupt would be lost. So it is never handed one to compare with.
_START = int(CellKind.START)
_PAUSE = -(2**40)  # in place of a group's number
_NO_HOME = -1  # of cells that are no prompts


class _Played(NamedTuple):
    """A pass already listed: its first cell, and group and place for activations of each cell of a layer."""

    base: int
    group: IntArray
    homes: IntArray


@dataclass(frozen=True)
class Grid:
    """V cells in traversal order; ``-1`` stands for none.

    Attributes:
        pass_index: index into the window's passes. [V]
        layer: 0 is the embedding, then the blocks, last the head; of START cells, -1. [V]
        group: the group's number. [V]
        kind: a ``CellKind``. [V]
        work: row of ``kinds`` that describes the cell's work. [V]
        above: the cell of the same sequences in the previous layer. [V]
        before: the last cell of the same group and layer in the previous pass played. [V]
        weights: number of the layer with weights, counted through all passes, that the cell belongs to. [V]
        column: the cell's place in its layer and pass. [V]
        width: cells in its layer and pass, pauses included. [V]
        kinds: the distinct kinds of cells.
    """

    pass_index: IntArray
    layer: IntArray
    group: IntArray
    kind: IntArray
    work: IntArray
    above: IntArray
    before: IntArray
    weights: IntArray
    column: IntArray
    width: IntArray
    kinds: Cells

    def __len__(self) -> int:
        """Count the cells."""
        return len(self.layer)

    @cached_property
    def works(self) -> BoolArray:
        """Mark the cells of layers: all but START and PAUSE. [V]"""
        return self.kind < _START

    @cached_property
    def starts(self) -> BoolArray:
        """Mark the START cells. [V]"""
        marked: BoolArray = self.kind == _START
        return marked

    @cached_property
    def embeds(self) -> BoolArray:
        """Mark the cells of the embedding. [V]"""
        marked: BoolArray = self.kind == int(CellKind.EMBED)
        return marked


def groups_per_cohort(num_groups: int, cohorts: int) -> int:
    """Divide the groups in flight among the cohorts.

    Raises:
        InputError: they do not divide evenly.
    """
    if num_groups % cohorts:
        raise InputError(
            f"policy.num_groups: {num_groups} groups cannot be admitted in {cohorts} equal cohorts; "
            f"take a multiple of {cohorts}, or another stagger"
        )
    return num_groups // cohorts


def make_grid(placed: Placed, window: Window) -> Grid:
    """List the cells of a window; START cells, one per layer of prefetch, come first.

    Where projections run ahead of attention outputs, PAUSE cells keep a cell from being issued before the
    one that it continues, and prompts from taking the place of prompts that are still needed.
    """
    policy, workload = placed.policy, placed.workload
    kinds = np.array(layer_kinds(placed.model, placed.runtime))
    positions = sorted({position for one in window.passes for _, position in one.cohorts})
    index_of = {position: index for index, position in enumerate(positions)}
    per_cohort = groups_per_cohort(policy.num_groups, policy.cohorts(workload.passes))
    columns: list[IntArray] = [_start_cells(policy.prefetch)]
    base, previous = policy.prefetch, None
    for index, one in enumerate(window.passes):
        group, position = _groups_of(one, per_cohort, policy.gpu_batch // policy.prompts_together)
        homes = _homes(group, position, per_cohort, policy.stagger)
        pauses = _pauses_between(previous, (group, homes), placed.ahead)
        columns.append(_pauses(index, pauses))
        base += pauses
        missing = max(0, placed.ahead + 1 - len(group))
        group = np.append(group, [_PAUSE] * missing)
        position = np.append(position, [position[0]] * missing)
        at = np.array([index_of[p] for p in position.tolist()])
        rows = _cells_of_pass(index, group, at, kinds, base, first_loaded(placed.runtime))
        rows[6] = _same_group_before(group, len(kinds), previous)
        pause = rows[2] == _PAUSE
        rows[2:7, pause] = np.array([-1, CellKind.PAUSE, 0, -1, -1])[:, None]
        columns.append(rows)
        previous = _Played(base, group, np.append(homes, [_NO_HOME] * missing))
        base += rows.shape[1]
    rows = np.concatenate(columns, axis=1)
    kind = rows[3]
    rows[4] = np.where(kind < _START, kind * len(positions) + rows[4], 0)
    at = np.array(positions, dtype=float)
    described = cell_kinds(workload, at, policy.gpu_batch, policy.prompts_together)
    return Grid(**dict(zip(_COLUMNS, rows, strict=True)), kinds=described)


def cell_kinds(workload: Workload, positions: FloatArray, gpu_batch: int, prompt_batch: int) -> Cells:
    """Describe the cell of every (kind of layer, position), in the order of ``WORKING``.

    Position 0 is the prompt, in sub-batches; position t > 0 is one token over s + t - 1 cached ones.
    """
    at = np.tile(positions, len(WORKING))
    sequences = np.where(at == 0, prompt_batch, gpu_batch).astype(float)
    return Cells.at(workload, np.repeat(np.array(WORKING), len(positions)), sequences, at)


def _start_cells(count: int) -> IntArray:
    cells = _pauses(0, count)
    cells[3] = CellKind.START
    cells[7] = np.arange(count)
    return cells


def _pauses(pass_index: int, count: int) -> IntArray:
    """Make cells without any operation. [columns, count]"""
    cells = np.full((10, count), -1)
    cells[0] = pass_index
    cells[3] = CellKind.PAUSE
    cells[8] = 0
    cells[9] = 1
    return cells


def _homes(group: IntArray, position: IntArray, per_cohort: int, stagger: int | None) -> IntArray:
    """Name the place of every prompt's activations: that of the same group of the cohort before.

    Only with an admission in every pass is that place still in use in the pass before.
    """
    return np.where((position == 0) & (stagger == 1), group % per_cohort, _NO_HOME)


def _pauses_between(previous: _Played | None, now: tuple[IntArray, IntArray], ahead: int) -> int:
    """Count the pauses without which a cell of the embedding would be issued too early.

    A group's last token is to be known, and the head of the prompts whose place for activations it takes has
    to be issued.
    """
    if previous is None or not ahead:
        return 0
    distance = [ahead + 1]
    for earlier, names in zip((previous.group, previous.homes), now, strict=True):
        last = {int(name): offset for offset, name in enumerate(earlier) if name != _NO_HOME}
        first = enumerate(names[:ahead].tolist())
        distance += [len(earlier) - last[name] + i for i, name in first if name in last]
    return ahead + 1 - min(distance)


def _groups_of(one: Pass, per_cohort: int, parts: int) -> tuple[IntArray, IntArray]:
    """List the groups of a pass with their positions; prompts, in parts, are spread evenly among them."""
    prompts = [c * per_cohort + i for c, t in one.cohorts if t == 0 for i in range(per_cohort)]
    prompts = [group for group in prompts for _ in range(parts)]
    others = [(c * per_cohort + i, t) for c, t in one.cohorts if t > 0 for i in range(per_cohort)]
    group = np.array([*prompts, *(group for group, _ in others)], dtype=np.int64)
    position = np.array([0] * len(prompts) + [t for _, t in others], dtype=np.int64)
    place = np.concatenate([(np.arange(size) + 0.5) / max(size, 1) for size in (len(prompts), len(others))])
    order = np.argsort(place, kind="stable")
    return group[order], position[order]


def _cells_of_pass(
    index: int, group: IntArray, position: IntArray, kinds: IntArray, base: int, loaded: int
) -> IntArray:
    """Repeat the groups of a pass for every layer; weights are loaded from layer ``loaded`` on."""
    width, layers = len(group), len(kinds)
    layer = np.repeat(np.arange(layers), width)
    cells = np.empty((10, layers * width), dtype=np.int64)
    cells[0] = index
    cells[1] = layer
    cells[2] = np.tile(group, layers)
    cells[3] = kinds[layer]
    cells[4] = np.tile(position, layers)
    cells[5] = np.where(layer > 0, base + np.arange(layers * width) - width, -1)
    cells[7] = np.where(layer >= loaded, index * (layers - loaded) + layer - loaded, -1)
    cells[8] = np.tile(np.arange(width), layers)
    cells[9] = width
    return cells


def _same_group_before(group: IntArray, layers: int, previous: _Played | None) -> IntArray:
    """Find the last cell of each group in the previous pass, for every layer."""
    if previous is None:
        return np.full(layers * len(group), -1)
    base, earlier = previous.base, previous.group
    last = {int(name): offset for offset, name in enumerate(earlier)}
    offset = np.array([last.get(int(name), -1) for name in group])
    layer = np.repeat(np.arange(layers), len(group))
    offset = np.tile(offset, layers)
    return np.where(offset >= 0, base + layer * len(earlier) + offset, -1)
