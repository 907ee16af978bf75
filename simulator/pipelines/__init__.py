"""Engines that run pipelines of servers, as data: the files of this folder, and what stands in them.

They are no runtimes of the offloading kind (``simulator/runtimes``): nothing of theirs is placed or scheduled
by the planner.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field

from simulator.errors import InputError
from simulator.policy import Bits
from simulator.schema import Record, decode, read_yaml
from simulator.units import ByteRate, Bytes, Seconds, shortened

Count = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(gt=0.0, le=4.0)]


class Pipeline(Record):
    """What is chosen, and the network.

    Attributes:
        servers: GPUs, each with an equal span of blocks (within one).
        clients: requests in flight, one a client.
        batch: sequences of a request.
        requests: how many a client sends, each when the one before has ended. All clients start together.
        latency: of a message one way: half of the round trip. [s]
        bandwidth: of each server's link, each way. [B/s]
        window: what a connection that was idle sends before the first answer; doubled by every answer. [B]
        overhead: of each visit to a server: serialization and the like, on processors that nobody shares. [s]
    """

    servers: Count
    clients: Count
    batch: Count
    requests: Count
    latency: Seconds
    bandwidth: ByteRate
    window: Bytes
    overhead: Seconds


class PipelineRuntime(Record):
    """The behaviour of one engine that runs pipelines.

    Attributes:
        name: what the engine is called.
        description: what it does, in a sentence.
        weight_bits: of the weights of blocks in GPU memory; products read them as they are.
        relayed: activations return to the client after every server; otherwise servers pass them on.
        fused_attention: prompt attention never materialises the scores.
        product_share: speed of a product beside the profile's 16-bit kernel of as many FLOPs and bytes.
        host: time of the server's processor for issuing a block's kernels; a block takes no less. [s]
        default: the choices and the network if nothing else is said.
        sources: where the figures come from.
    """

    name: str
    description: str
    weight_bits: Bits
    relayed: bool
    fused_attention: bool
    product_share: Share
    host: Seconds
    default: Pipeline
    sources: dict[str, str]


def pipeline_names() -> list[str]:
    """List the engines for pipelines that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_pipeline(name: str = "petals") -> PipelineRuntime:
    """Read an engine for pipelines by name.

    Raises:
        InputError: it is unknown.
    """
    known = pipeline_names()
    if name not in known:
        raise InputError(f"runtime: {shortened(name)} runs no pipelines; known: {', '.join(known)}")
    return decode(PipelineRuntime, read_yaml(_folder() / f"{name}.yaml"), "runtime")


def _folder() -> Path:
    return Path(str(resources.files("simulator").joinpath("pipelines")))
