"""Groups of sequences, and the cells of the traversal: a group (or a part of it) at a layer in a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from executor.sampling import Request, Result

_KEPT = 64  # tensors that a group keeps for the layers to come: those of a pass, in parts


@dataclass(eq=False)
class Group:
    """Sequences that advance together.

    Attributes:
        number: the group's number in the run.
        members: indices of the requests.
        requests: what they ask for.
        stops: the tokens that end each.
        tokens: what was generated.
        active: whether a sequence still generates.
        logits: those of the generated tokens, where they are kept.
    """

    number: int
    members: list[int]
    requests: list[Request]
    stops: list[frozenset[int]]
    tokens: list[list[int]] = field(init=False)
    active: list[bool] = field(init=False)
    logits: list[list[torch.Tensor]] = field(init=False)
    _kept: dict[tuple[object, ...], tuple[torch.Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with nothing generated."""
        self.tokens = [[] for _ in self.members]
        self.active = [True for _ in self.members]
        self.logits = [[] for _ in self.members]

    def once(self, key: tuple[object, ...], make: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
        """Make what all layers of a pass need, positions or a mask, for the first of them only."""
        kept = self._kept.get(key)
        if kept is None:
            kept = (make(),)
            self._kept[key] = kept
            for old in list(self._kept)[:-_KEPT]:  # another lane may have dropped it already
                self._kept.pop(old, None)
        return kept[0]

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not any(self.active)

    @property
    def width(self) -> int:
        """Tokens of the longest prompt: rows of the cache that prompts fill."""
        return max(len(request.prompt) for request in self.requests)

    def lengths(self, sequences: range) -> torch.Tensor:
        """Give the lengths of prompts. [B]"""
        return torch.tensor([len(self.requests[index].prompt) for index in sequences])

    def accept(self, index: int, token: int) -> Result | None:
        """Add a token to a sequence; give its result if that was the last."""
        request, tokens = self.requests[index], self.tokens[index]
        if len(tokens) < len(request.forced):
            token = request.forced[len(tokens)]
        tokens.append(token)
        stopped = token in self.stops[index]
        if not stopped and len(tokens) < request.max_new_tokens:
            return None
        self.active[index] = False
        kept = torch.stack(self.logits[index]) if self.logits[index] else None
        return Result(tuple(tokens), "stop" if stopped else "length", kept)


@dataclass(eq=False)
class Cell:
    """A group, or a part of its prompts, at a layer in a pass, and what its tasks hand to each other.

    Attributes:
        group: the group; None where there are no requests left for it.
        layer: 0 is the embedding, then the blocks, last the head.
        position: 0 is the prompt, t the t-th generated token.
        sequences: of the group.
        final: whether this is the group's last pass.
        slots: the slots that its tasks took, by buffer.
        order: counts cells with attention on the CPU.
        hidden: [B,T,E] on the GPU.
        queries: [B,T,H,D], likewise keys and values.
        attention: [B,T,H,D].
    """

    group: Group | None
    layer: int
    position: int
    sequences: range
    final: bool
    slots: dict[str, int] = field(default_factory=dict)
    order: int = 0
    hidden: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    attention: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """New tokens of each sequence, padding included."""
        assert self.group is not None
        return 1 if self.position else self.group.width

    @property
    def row(self) -> int:
        """The row of the cache that the first new token gets."""
        assert self.group is not None
        return self.group.width + self.position - 1 if self.position else 0

    def clear(self) -> None:
        """Let go of what was handed on."""
        self.hidden = self.queries = self.keys = self.values = self.attention = None


def inputs(cell: Cell, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a cell's tokens and their positions: [B,T] each, on the CPU.

    What is behind a shorter prompt, or a text that has ended, means nothing; it only has to be a token at a
    position that the model has.
    """
    group = cell.group
    assert group is not None
    lengths = group.lengths(cell.sequences)
    if not cell.position:
        width = group.width
        rows = [list(group.requests[index].prompt) for index in cell.sequences]
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        return tokens, torch.arange(width).expand(len(rows), width)
    tokens = torch.tensor([[group.tokens[index][-1]] for index in cell.sequences])
    positions = lengths[:, None] + cell.position - 1
    return tokens, positions if limit is None else positions.clamp(max=limit - 1)


def hidden_rows(cell: Cell) -> torch.Tensor | None:
    """Mark the rows of the cache, the new one included, that are not tokens of a sequence: [B,S].

    None where prompts have the same length, so that all rows are.
    """
    group = cell.group
    assert group is not None
    lengths = group.lengths(cell.sequences)
    if bool((lengths == group.width).all()):
        return None
    rows = torch.arange(cell.row + 1)
    return (rows >= lengths[:, None]) & (rows < group.width)
