"""The operations: every kind of task, its lane, and how its time follows from its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulator.hardware import LaneName
from simulator.runtime import TensorClass

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
CostKind = Literal[
    "copy", "stage", "expand", "matmul", "prompt_attention", "attention", "dequantize", "quantize", "none"
]
LinearStage = Literal["qkv", "project", "mlp"]
Stage = Literal["before", "after", "weights", "sync"]


@dataclass(frozen=True)
class Operation:
    """A kind of task: its lane, how its time follows from its work, and when it is issued.

    ``before`` is issued up to and including the projections to query, key and value, ``after`` from the
    attention on; with lookahead the next cell's ``before`` is issued ahead of this cell's ``after``. ``of``
    is the class of tensors that a copy moves.
    """

    name: str
    lane: LaneName
    cost: CostKind
    stage: Stage
    of: TensorClass | None = None


#: Every operation, in issue order within a cell.
OPERATIONS: tuple[Operation, ...] = (
    Operation("stage_weights", "cpu", "stage", "weights", "weights"),
    Operation("read_activations", "disk_read", "copy", "before", "activations"),
    Operation("load_activations", "h2d", "copy", "before", "activations"),
    Operation("read_cache", "disk_read", "copy", "before", "cache"),
    Operation("stage_cache", "cpu", "stage", "before", "cache"),
    Operation("expand_cache", "cpu", "expand", "before", "cache"),
    Operation("load_cache", "h2d", "copy", "before", "cache"),
    Operation("read_embeddings", "disk_read", "copy", "before", "weights"),
    Operation("load_embeddings", "h2d", "copy", "before", "weights"),
    Operation("dequantize_weights", "gpu", "dequantize", "before"),
    Operation("embed", "gpu", "matmul", "before"),
    Operation("qkv", "gpu", "matmul", "before"),
    Operation("quantize_cache", "gpu", "quantize", "before"),
    Operation("store_query", "d2h", "copy", "before", "activations"),
    Operation("store_cache", "d2h", "copy", "before", "cache"),
    Operation("write_cache", "disk_write", "copy", "before", "cache"),
    Operation("dequantize_cache_cpu", "cpu", "dequantize", "before"),
    Operation("attend_cpu", "cpu", "attention", "before"),
    Operation("load_output", "h2d", "copy", "after", "activations"),
    Operation("attend_prefix", "gpu", "prompt_attention", "after"),
    Operation("dequantize_cache", "gpu", "dequantize", "after"),
    Operation("attend_prompt", "gpu", "prompt_attention", "after"),
    Operation("attend", "gpu", "attention", "after"),
    Operation("project", "gpu", "matmul", "after"),
    Operation("mlp", "gpu", "matmul", "after"),
    Operation("head", "gpu", "matmul", "after"),
    Operation("store_activations", "d2h", "copy", "after", "activations"),
    Operation("write_activations", "disk_write", "copy", "after", "activations"),
    Operation("read_weights", "disk_read", "copy", "weights", "weights"),
    Operation("load_weights", "h2d", "copy", "weights", "weights"),
    Operation("relay_weights", "h2d", "copy", "weights", "weights"),
    Operation("sync", "gpu", "none", "sync"),
)
OP: dict[str, int] = {operation.name: code for code, operation in enumerate(OPERATIONS)}

#: Stages of a block that are matrix products.
BLOCK_STAGES: tuple[LinearStage, ...] = ("qkv", "project", "mlp")

#: Operations of a whole layer; all others belong to one cell.
LAYER_OPERATIONS = ("stage_weights", "read_weights", "load_weights", "relay_weights")
