"""What every operation of the schedule does: one handler each, and nothing else runs the model.

Handlers of one lane are called in the schedule's order, each after the tasks that it waits for. On a GPU they
only issue their work. A handler gives the bytes that it moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from executor import layers
from executor.cache_steps import CacheSteps, Step
from executor.cells import Cell, inputs
from executor.memory import Memory
from executor.sampling import choose
from simulator.operations import OPERATIONS


class Accept(Protocol):
    """Takes the tokens [B] that were chosen for a cell's sequences, and their logits [B,V]."""

    def __call__(self, cell: Cell, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        """Add the tokens to the sequences."""


class Steps(CacheSteps):
    """The handlers of a run.

    Args:
        memory: everything that was allocated.
        accept: takes the tokens that a head chose.
        top: share of the cached tokens whose values attention uses.
    """

    def __init__(self, memory: Memory, accept: Accept, top: float) -> None:
        super().__init__(memory, top)
        self._accept = accept
        self._handlers: dict[str, Callable[[Step], int | None]] = {
            operation.name: getattr(self, operation.name)
            for operation in OPERATIONS
            if hasattr(self, operation.name)
        }

    def perform(self, operation: str, step: Step) -> int:
        """Do one task; give the bytes that it moved.

        Raises:
            LookupError: nothing does this operation.
        """
        if operation not in self._handlers:
            raise LookupError(f"no handler does the operation {operation}")
        return self._handlers[operation](step) or 0

    def skip(self, operation: str, cell: Cell, layer: int) -> None:
        """Do what is left to do of a task of a group that has ended: give its pages back."""
        if operation == "mlp" and cell.group is not None and cell.group.idle:
            self._memory.cache.release(cell.group.number, layer)

    def read_weights(self, step: Step) -> int:
        """Disk to staging memory: a part of a layer."""
        return self._memory.weights.read(step.layer, step.staging, step.part, step.parts)

    def load_weights(self, step: Step) -> int:
        """CPU memory to a slot of the GPU: a part of a layer."""
        return self._memory.weights.load(step.layer, step.weights, step.staging, step.part, step.parts)

    def dequantize_weights(self, step: Step) -> None:
        """Expand a layer's matrices; two layers are in use at once while projections run ahead."""
        self._memory.layers.expand(step.layer, step.weights, step.number)

    def read_embeddings(self, step: Step) -> int:
        """Disk to CPU memory: the rows of the tokens at hand."""
        return self._memory.embeddings.read(step.cell)

    def load_embeddings(self, step: Step) -> int:
        """CPU memory to the GPU: the rows of the tokens at hand."""
        return self._memory.embeddings.load(step.cell)

    def embed(self, step: Step) -> None:
        """Tokens to hidden states."""
        self._memory.activations.put(step.cell, self._memory.embeddings.embed(step.cell))

    def read_activations(self, step: Step) -> int:
        """Disk to CPU memory: hidden states."""
        return self._memory.activations.read(step.cell)

    def load_activations(self, step: Step) -> int:
        """CPU memory to the GPU: hidden states; for the head, of the last tokens."""
        return self._memory.activations.load(step.cell, self._last(step))

    def qkv(self, step: Step) -> None:
        """Project to queries, keys and values, and put the new records where they belong."""
        memory, cell = self._memory, step.cell
        cell.hidden = memory.activations.get(cell)
        positions = self._positions(cell)
        weights = memory.layers.of(step.layer, step.weights, step.number)
        q, k, v = layers.project_qkv(self._facts, cell.hidden, positions, weights)
        cell.queries, cell.keys, cell.values = q, k, v
        if cell.position:
            cell.attention = torch.empty_like(q)
        rows = self._new(step)
        memory.cache.grow(rows.group, rows.layer, rows.stop)
        if not memory.quantized_cache:
            memory.cache.pack(rows, k, v, cell.slots.get("new_cache", 0))

    def mlp(self, step: Step) -> None:
        """Do the rest of a block."""
        memory, cell = self._memory, step.cell
        assert cell.attention is not None
        assert cell.hidden is not None
        weights = memory.layers.of(step.layer, step.weights, step.number)
        hidden = layers.project_out(self._facts, cell.attention, cell.hidden, weights)
        memory.activations.put(cell, layers.mlp(self._facts, hidden, weights))
        cell.clear()
        if cell.final and cell.group is not None and cell.sequences.stop == len(cell.group.members):
            memory.cache.release(cell.group.number, step.layer)

    def head(self, step: Step) -> None:
        """Choose the next tokens."""
        memory, cell = self._memory, step.cell
        group = cell.group
        assert group is not None
        hidden = memory.activations.get(cell, self._last(step))[:, 0]
        weights = memory.layers.of(step.layer, step.weights, step.number)
        logits = layers.head(self._facts, hidden, weights)
        samplings = [group.requests[index].sampling for index in cell.sequences]
        tokens = choose(logits, samplings, [cell.position] * len(cell.sequences))
        self._accept(cell, tokens, logits)

    def store_activations(self, step: Step) -> int:
        """GPU to CPU memory: hidden states."""
        return self._memory.activations.store(step.cell)

    def write_activations(self, step: Step) -> int:
        """CPU memory to the disk: hidden states."""
        return self._memory.activations.write(step.cell)

    def _positions(self, cell: Cell) -> torch.Tensor:
        """Give the positions of a cell's tokens: [B,T]."""
        assert cell.group is not None
        limit = self._facts.context_limit
        key = ("positions", cell.position, cell.sequences)
        found = cell.group.once(key, lambda: inputs(cell, limit)[1].to(self._device))
        assert found is not None
        return found

    def _last(self, step: Step) -> torch.Tensor | None:
        """Give the places of the last tokens [B] of a cell of the head; None for other layers."""
        cell = step.cell
        assert cell.group is not None
        if step.layer <= self._facts.model.num_layers:
            return None
        if cell.position:
            return torch.zeros(len(cell.sequences), dtype=torch.int64)
        return cell.group.lengths(cell.sequences) - 1
