"""The work: prompts of one length, from each of which the same number of tokens is generated."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.schema import Record


class Workload(Record):
    """Prompts and generated lengths in tokens, and how many prompts wait.

    ``num_prompts`` of None is a queue that never empties: predictions are for the steady state.
    """

    prompt_len: Annotated[int, Field(ge=1, le=10_000_000)] = 512
    gen_len: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    num_prompts: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None

    @property
    def context_len(self) -> int:
        """Tokens of a sequence whose keys and values are ever stored: the last one's are not needed."""
        return self.prompt_len + self.gen_len - 1
