"""How an engine behaves beyond the policy: data in ``simulator/runtimes``, mechanisms in the generators."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from simulator.errors import InputError
from simulator.hardware import TierName
from simulator.policy import ScheduleName
from simulator.schema import Record, decode, read_yaml
from simulator.units import Bytes, Seconds

TensorClass = Literal["weights", "cache", "activations"]
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


class Pinning(Record):
    """Which classes of tensors lie in pinned CPU memory; ``policy`` leaves it to ``Policy.pinned``."""

    weights: bool | Literal["policy"] = "policy"
    cache: bool | Literal["policy"] = "policy"
    activations: bool | Literal["policy"] = "policy"

    def of(self, name: TensorClass, chosen: bool) -> bool:
        """Say whether a class is pinned in a run whose policy chose so."""
        answer: bool | str = getattr(self, name)
        return chosen if isinstance(answer, str) else answer


class Overheads(Record):
    """What an engine's own code costs beside the work. Of a copy: seconds for each tensor it copies.

    Attributes:
        cell: of every (layer, group): the interpreter between kernels. [s]
        load_weights: of every tensor loaded. [s]
        write_cache: of every tensor of a few rows written to the disk. [s]
        link_share: share of the link's rate that loads of weights reach, 0 to 1.
    """

    cell: Seconds = Field(default=0.0, validate_default=False)
    load_weights: Seconds = Field(default=0.0, validate_default=False)
    write_cache: Seconds = Field(default=0.0, validate_default=False)
    link_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class Runtime(Record):
    """The behaviour of one engine.

    Attributes:
        synchronization: ``dependency`` lets every lane run ahead as far as slots allow; ``barrier`` waits
            for all lanes after every (layer, group); ``serial`` runs one task after the other.
        layers: ``block`` computes and loads a transformer block at once; ``half`` treats attention and MLP
            as layers of their own.
        weight_loads: ``chunked`` loads the next layer in one piece a group, between the cache loads;
            ``burst`` loads it whole with the first group.
        grain: what a placement fraction is rounded to: whole ``tensor`` or ``row`` of each tensor.
        placement: which tensors: ``even`` deals them evenly over the layers; ``midpoint`` puts each where
            the middle of its bytes falls within its layer, disk first and GPU last; ``in_order`` fills the
            GPU with whole layers first, then the CPU, then the disk.
        attention_lookahead: projections of so many further groups are issued before a group's attention
            output is awaited, so that CPU attention overlaps GPU work.
        dequantize: quantised weights are expanded once a pass or once a group.
        fused_attention: prompt attention never materialises the scores.
        splits_prompts: a group's prompts may be computed in smaller batches than its single tokens.
        shares_prefix: it keeps the keys and values of tokens that all prompts begin with once for all.
        scores_prompts: it can compute the log-probabilities of a prompt's own tokens and generate nothing.
        page_tokens: tokens in a block of the paged cache; 0 is a contiguous, pre-allocated cache.
        cache_copies: how many times the cache is held: 2 where every step copies it into a longer tensor, and
            what that frees is too short for the next.
        homes: for a class of tensors that is kept on one tier as a whole, the tiers to choose from.
        pinned: which classes of tensors lie in pinned memory.
        staging: how pageable memory reaches the GPU: the ``driver`` copies it, or the ``host`` thread that
            issues all work copies it to pinned memory first and is blocked meanwhile.
        disk_io: ``direct`` reads and writes at the device's rate; ``mapped`` goes through memory-mapped
            files: one thread a tensor, a relay to the GPU, writes into the page cache.
        cpu_attention: the CPU may attend to any ``share`` of the cache that lies off the GPU, or to the
            ``whole`` of it or none (then to none of a quantised cache), or ``always`` to all of it.
        cpu_attention_dtype: the CPU attends to the cache as stored, or to a ``float32`` copy of it.
        sparse_attention: it can leave out the values of cached tokens with small weights.
        loads_embeddings: the token table is a layer's weights like any other: stored for input and output,
            loaded in every pass. Otherwise its rows are looked up where it lies.
        quantizes: the classes of tensors that it can store quantised.
        quantizes_ends: embeddings and head are quantised with the blocks.
        hands_over: where CPU and GPU tier are one memory, it hands layers over and copies nothing.
        frees_buffers: what the work at hand has no use for is freed: memory for prompts in decoding, and the
            other way round; for one half during the other; for new cache in 16 bits once it is quantised.
            Otherwise everything is kept for the whole run. Not where lanes run ahead, nor on the diagonal:
            there both kinds of passes meet.
        relay: pinned CPU memory that copy threads hold for themselves. [B]
        overheads: what the engine's own code costs.
        schedules: the traversals it can run.
        slots: how many buffers of each kind it allocates.
    """

    name: str
    description: str
    synchronization: Literal["dependency", "barrier", "serial"]
    layers: Literal["block", "half"] = "block"
    weight_loads: Literal["chunked", "burst"]
    grain: Literal["tensor", "row"]
    placement: Literal["even", "midpoint", "in_order"] = "even"
    attention_lookahead: Annotated[int, Field(ge=0, le=8)]
    dequantize: Literal["per_pass", "per_group"]
    fused_attention: bool
    splits_prompts: bool
    page_tokens: Annotated[int, Field(ge=0, le=4096)]
    cache_copies: Annotated[int, Field(ge=1, le=2)] = 1
    homes: dict[TensorClass, tuple[TierName, ...]] = Field(default_factory=dict)
    pinned: Pinning = Pinning()
    staging: Literal["driver", "host"] = "driver"
    disk_io: Literal["direct", "mapped"] = "direct"
    cpu_attention: Literal["share", "whole", "always"] = "share"
    cpu_attention_dtype: Literal["stored", "float32"] = "stored"
    sparse_attention: bool = False
    loads_embeddings: bool = False
    quantizes: tuple[Literal["weights", "cache"], ...] = ("weights", "cache")
    quantizes_ends: bool = False
    hands_over: bool = False
    scores_prompts: bool = False
    shares_prefix: bool = False
    frees_buffers: bool = False
    relay: Bytes = Field(default=0.0, validate_default=False)
    overheads: Overheads = Overheads()
    schedules: tuple[ScheduleName, ...]
    slots: BufferSlots = BufferSlots()

    def __hash__(self) -> int:
        """Hash by name: homes are a dictionary, which has no hash, and equal engines have equal names."""
        return hash(self.name)

    @model_validator(mode="after")
    def _slots_for_barriers(self) -> Self:
        for name, least in _SLOTS_WITH_BARRIERS.items():
            if self.synchronization == "barrier" and getattr(self.slots, name) < least:
                raise ValueError(
                    f"slots.{name}: copies run one cell ahead or behind a barrier; give at least {least}"
                )
        return self

    @model_validator(mode="after")
    def _phases_apart(self) -> Self:
        if self.frees_buffers and (self.synchronization == "dependency" or "diagonal" in self.schedules):
            raise ValueError(
                "frees_buffers: prompts and decoding meet where lanes run ahead, and on the diagonal; drop it"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write plans of engines that keep their buffers as they were written before there were others."""
        found: dict[str, Any] = write(self)
        if not self.frees_buffers:
            del found["frees_buffers"]
        return found


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
