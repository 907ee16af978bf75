"""How an engine behaves beyond the policy: data in ``simulator/runtimes``, mechanisms in the generators."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.errors import InputError
from simulator.policy import ScheduleName
from simulator.schema import Record, decode, read_yaml

Slots = Annotated[int, Field(ge=1, le=64)]


#: With fewer, a copy would wait for a slot that is freed only after the barrier that waits for the copy.
_SLOTS_WITH_BARRIERS = {"cache": 2, "cache_staging": 2, "new_cache": 2, "activations": 3}


class BufferSlots(Record):
    """How many buffers of each kind exist; a task that needs one waits until one is free."""

    weight_staging: Slots = 2
    cache: Slots = 2
    cache_staging: Slots = 2
    new_cache: Slots = 2
    cache_writing: Slots = 2
    activations: Slots = 3


class Runtime(Record):
    """The behaviour of one engine.

    Attributes:
        synchronization: ``dependency`` lets every lane run ahead as far as slots allow; ``barrier`` waits
            for all lanes after every (layer, group).
        weight_loads: ``chunked`` loads the next layer in one piece a group, between the cache loads;
            ``burst`` loads it whole with the first group.
        grain: what a placement fraction is rounded to: whole ``tensor`` or ``row`` of each tensor.
        attention_lookahead: projections of so many further groups are issued before a group's attention
            output is awaited, so that CPU attention overlaps GPU work.
        dequantize: quantised weights are expanded once a pass or once a group.
        fused_attention: prompt attention never materialises the scores.
        splits_prompts: a group's prompts may be computed in smaller batches than its single tokens.
        page_tokens: tokens in a block of the paged cache; 0 is a contiguous, pre-allocated cache.
        schedules: the traversals it can run.
        slots: how many buffers of each kind it allocates.
    """

    name: str
    description: str
    synchronization: Literal["dependency", "barrier"]
    weight_loads: Literal["chunked", "burst"]
    grain: Literal["tensor", "row"]
    attention_lookahead: Annotated[int, Field(ge=0, le=8)]
    dequantize: Literal["per_pass", "per_group"]
    fused_attention: bool
    splits_prompts: bool
    page_tokens: Annotated[int, Field(ge=0, le=4096)]
    schedules: tuple[ScheduleName, ...]
    slots: BufferSlots = BufferSlots()

    @model_validator(mode="after")
    def _slots_for_barriers(self) -> Self:
        for name, least in _SLOTS_WITH_BARRIERS.items():
            if self.synchronization == "barrier" and getattr(self.slots, name) < least:
                raise ValueError(
                    f"slots.{name}: copies run one cell ahead or behind a barrier; give at least {least}"
                )
        return self


def runtime_names() -> list[str]:
    """List the runtimes that come with the package."""
    folder = resources.files("simulator").joinpath("runtimes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_runtime(name: str) -> Runtime:
    """Read a runtime by name or by path.

    Raises:
        InputError: it is unknown or its description is wrong.
    """
    path = Path(name)
    if not path.is_file():
        known = runtime_names()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"runtime: {name!r} is unknown; {hint}")
        path = Path(str(resources.files("simulator").joinpath("runtimes", f"{name}.yaml")))
    return decode(Runtime, read_yaml(path), "runtime")
