"""Kinds of cells, and work as affine forms in the placement: what an operation does for them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from simulator.operations import IntArray
from simulator.policy import ALWAYS, FloatArray
from simulator.workload import Workload


@dataclass(frozen=True)
class Cells:
    """Kinds of cells, as columns. [C]

    Attributes:
        kind: of layer.
        sequences: computed together.
        new: tokens of each sequence that are computed.
        cached: own tokens of each whose keys and values are there already.
        kept: tokens of each whose new keys and values are stored.
        judged: tokens of each whose logits the head computes.
        prefix: tokens before all of these whose keys and values all sequences share.
    """

    kind: IntArray
    sequences: FloatArray
    new: FloatArray
    cached: FloatArray
    kept: FloatArray
    judged: FloatArray
    prefix: FloatArray

    @classmethod
    def at(cls, workload: Workload, kind: IntArray, sequences: FloatArray, position: FloatArray) -> Cells:
        """Describe cells by the position of their sequences in life: 0 is the prompt, then single tokens."""
        prompt = position == 0
        new = np.where(prompt, workload.own_len, 1.0)
        return cls(
            kind=kind,
            sequences=sequences,
            new=new,
            cached=np.where(prompt, 0.0, workload.own_len + position - 1.0),
            kept=new * (not workload.scores),
            judged=new if workload.scores else np.ones_like(new),
            prefix=np.full_like(new, workload.shared_prefix),
        )


@dataclass(frozen=True)
class Work:
    """What one operation does for C kinds of cells: affine forms in the placement, and counts of kernels.

    Attributes:
        flops: affine form. [C, len(PLACEMENT)]
        bytes: affine form; of a copy what crosses the link, of a kernel what it moves in its engine's
            memory. [C, len(PLACEMENT)]
        kernels: launches, or copies. [C]
        steps: inner dimensions of all kernels together: k of a matrix product, the tokens of attention. [C]
        blocks: affine form: attention blocks, one for each sequence and key-value head (of a prompt, head
            and tile of tokens); of a copy its pieces, where they are many; of matrix products the KiB of
            states that are read and written. [C, len(PLACEMENT)]
    """

    flops: FloatArray
    bytes: FloatArray
    kernels: FloatArray
    steps: FloatArray
    blocks: FloatArray

    def __add__(self, other: Work) -> Work:
        """Do both, one after the other."""
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def times(self, count: FloatArray) -> Work:
        """Do it so many times in each kind of cell. [C]"""
        forms = (self.flops, self.bytes, self.blocks)
        flops, bytes_, blocks = (form * count[:, None] for form in forms)
        return Work(flops, bytes_, self.kernels * count, self.steps * count, blocks)


def form(
    flops: FloatArray | float = 0.0,
    bytes_: FloatArray | float = 0.0,
    kernels: FloatArray | float = 1.0,
    over: FloatArray = ALWAYS,
    *,
    steps: FloatArray | float = 0.0,
    blocks: FloatArray | float = 0.0,
) -> Work:
    """Spread work that is proportional to one indicator form: [C] becomes [C, len(PLACEMENT)]."""
    columns = [np.asarray(each, float) for each in (flops, bytes_, kernels, steps, blocks)]
    count = max(len(column) for column in columns if column.ndim)

    def spread(column: FloatArray) -> FloatArray:
        nothing = column.ndim == 0 and column == 0.0
        return np.zeros((count, len(over))) if nothing else np.broadcast_to(column, count)[:, None] * over

    launches, depth = (
        column if column.ndim else np.broadcast_to(column, count) for column in (columns[2], columns[3])
    )
    return Work(spread(columns[0]), spread(columns[1]), launches, depth, spread(columns[4]))


def pieces(count: FloatArray, over: FloatArray) -> Work:
    """Count separate runs of bytes of copies that are described elsewhere."""
    return form(kernels=0.0, over=over, blocks=count)
