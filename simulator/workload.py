"""The work: prompts of one length, from each of which the same number of tokens is generated."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.schema import Record


class Workload(Record):
    """Prompts and generated lengths in tokens, and how many prompts wait.

    With ``gen_len`` of 0 nothing is generated: prompts are *scored*, that is, the log-probabilities of their
    own tokens are computed, in one pass and without keeping a key or value. The first ``shared_prefix``
    tokens of every prompt are the same, and are computed once for all. ``num_prompts`` of None is a queue
    that never empties: predictions are for the steady state.
    """

    prompt_len: Annotated[int, Field(ge=1, le=10_000_000)] = 512
    gen_len: Annotated[int, Field(ge=0, le=1_000_000)] = 32
    num_prompts: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    shared_prefix: Annotated[int, Field(ge=0, le=10_000_000)] = 0

    @model_validator(mode="after")
    def _prompts_differ(self) -> Self:
        if self.shared_prefix >= self.prompt_len:
            raise ValueError(
                f"shared_prefix {self.shared_prefix} leaves nothing of prompts of {self.prompt_len} tokens; "
                "it is part of prompt_len and must be less"
            )
        return self

    @property
    def scores(self) -> bool:
        """Whether prompts are scored, and nothing is generated."""
        return self.gen_len == 0

    @property
    def passes(self) -> int:
        """Passes that a sequence lives: one for its prompt, one for each token generated after the first."""
        return max(1, self.gen_len)

    @property
    def own_len(self) -> int:
        """Tokens of a prompt that its sequence computes itself: those after the shared prefix."""
        return self.prompt_len - self.shared_prefix

    @property
    def counted_tokens(self) -> int:
        """Tokens of a sequence that throughput counts: those generated, or the own ones that are scored."""
        return self.gen_len or self.own_len

    @property
    def positions(self) -> int:
        """Positions that the model must have: the last token's result is the end."""
        return self.prompt_len + self.passes - 1

    @property
    def context_len(self) -> int:
        """Tokens whose keys and values a sequence ever stores for itself: the last one's are not needed."""
        return 0 if self.scores else self.own_len + self.gen_len - 1

    def cached_at(self, position: int) -> int:
        """Give the tokens of a sequence that are stored when its pass at a position is over."""
        return 0 if self.scores else self.own_len + position
