"""Probes: small schedules that the executor runs itself, so that what is measured is what will run.

A probe is a policy on one of a few made-up models. Most probes run one task after the other, so that each has
the machine to itself; others let lanes overlap, for what they take from each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from executor import engine
from executor.checkpoint import Checkpoint
from executor.observe import Run
from executor.sampling import Request
from simulator.layout import Placed, lay_out
from simulator.model import ModelSpec
from simulator.policy import Bits, CpuAttention, Policy, Split
from simulator.runtime import Runtime
from simulator.workload import Workload

ALL_GPU, ALL_CPU, ALL_DISK = (
    Split(gpu=1, cpu=0, disk=0),
    Split(gpu=0, cpu=1, disk=0),
    Split(gpu=0, cpu=0, disk=1),
)
_HALF = CpuAttention(cpu=0.5, disk=0.5)


@dataclass(frozen=True)
class Homes:
    """Where things lie in a probe, and how they are stored."""

    weights: Split = ALL_GPU
    cache: Split = ALL_GPU
    activations: Split = ALL_GPU
    cpu_attention: CpuAttention = field(default_factory=CpuAttention)
    bits: Bits = 16


IN_GPU = Homes()
IN_CPU = Homes(cache=ALL_CPU, activations=ALL_CPU, cpu_attention=_HALF)
ON_DISK = Homes(ALL_DISK, ALL_DISK, ALL_DISK, _HALF)
FOUR_BITS = Homes(cache=Split(gpu=0.5, cpu=0.5, disk=0), cpu_attention=CpuAttention(cpu=1), bits=4)
WEIGHTS_IN_CPU = Homes(weights=ALL_CPU)
WEIGHTS_ON_DISK = Homes(weights=ALL_DISK)
STREAMED_CACHE = Homes(cache=ALL_CPU, activations=ALL_CPU)
CPU_ATTENTION = Homes(cache=ALL_CPU, cpu_attention=CpuAttention(cpu=1))
CACHE_ON_DISK = Homes(cache=ALL_DISK)


@dataclass(frozen=True)
class Probe:
    """A small run.

    Attributes:
        model: the name of its shape.
        batch: sequences of a group.
        prompt_len: tokens of each prompt.
        gen_len: tokens generated of each.
        groups: how many groups.
        homes: where things lie.
        overlap: whether lanes work at the same time.
        pinned: whether the CPU tier is pinned memory.
    """

    model: str
    batch: int
    prompt_len: int
    gen_len: int = 4
    groups: int = 1
    homes: Homes = IN_GPU
    overlap: bool = False
    pinned: bool = True

    @property
    def steady(self) -> bool:
        """Whether kernels follow one another without the pauses that reads from the disk make."""
        homes = self.homes
        return self.overlap or not (homes.weights.disk or homes.cache.disk or homes.activations.disk)

    def policy(self) -> Policy:
        """Give what is run."""
        homes = self.homes
        return Policy(
            gpu_batch=self.batch,
            num_groups=self.groups,
            weights=homes.weights,
            cache=homes.cache,
            activations=homes.activations,
            cpu_attention=homes.cpu_attention,
            weight_bits=homes.bits,
            cache_bits=homes.bits,
            overlap=self.overlap,
            pinned=self.pinned,
        )

    def placed(self, model: ModelSpec, runtime: Runtime) -> Placed:
        """Lay it out."""
        block = self.batch * self.groups
        workload = Workload(prompt_len=self.prompt_len, gen_len=self.gen_len, num_prompts=block)
        return lay_out(model, runtime, workload, self.policy())


def run_probe(
    probe: Probe, checkpoint: Checkpoint, runtime: Runtime, device: torch.device, scratch: Path
) -> Run:
    """Run a probe and give what was measured."""
    placed = probe.placed(checkpoint.model, runtime)
    requests = full_requests(placed.workload, placed.model)
    nobody = engine.Listener(lambda _index, _result: None)
    outcome = engine.execute(placed, checkpoint, requests, device, scratch, listener=nobody)
    return Run(outcome.trace, placed.model.dtype)


def full_requests(workload: Workload, model: ModelSpec) -> list[Request]:
    """Make random prompts of a workload's full length, none of whose texts ends early."""
    assert workload.num_prompts is not None
    shape = (workload.num_prompts, workload.prompt_len)
    numbers = np.random.default_rng(0).integers(model.vocab_size, size=shape)
    return [Request(tuple(row), workload.gen_len, stop=frozenset()) for row in numbers.tolist()]


#: Run first, now and then between the others, and last: how steady the machine is.
REFERENCE = Probe("middle", 16, 64, gen_len=3)

#: Batch and prompt length: from a row to thousands, short and long contexts. Hardly any is round, as real
#: ones are not: matrix products of some round sizes are up to 40 % faster than of their neighbours.
_SIZES = {
    "wide": ((2, 61), (15, 31), (90, 7), (3, 263)),
    "middle": ((1, 131), (4, 37), (9, 123), (23, 61), (62, 17), (187, 9), (5, 411)),
    "narrow": ((2, 33), (17, 63), (91, 17), (4, 701)),
}
_OUTSIDE = (
    *(("middle", 2, 65), ("middle", 9, 197), ("middle", 45, 31)),
    *(("narrow", 99, 11), ("wide", 7, 59)),
)
_QUANTISED = (("middle", 2, 64), ("middle", 16, 60), ("narrow", 24, 100), ("narrow", 4, 30))
_BESIDE_READS = (
    *(("middle", 96, 8, 6, 2), ("middle", 64, 24, 5, 3), ("middle", 10, 24, 6, 6), ("middle", 24, 16, 6, 4)),
    ("narrow", 64, 24, 6, 3),
)


def quick() -> Iterator[Probe]:
    """List the probes of a quick calibration."""
    for model, sizes in _SIZES.items():
        for batch, prompt_len in sizes:
            yield Probe(model, batch, prompt_len)
    for model, batch, prompt_len in _OUTSIDE:
        yield Probe(model, batch, prompt_len, homes=IN_CPU)
        yield Probe(model, batch, prompt_len, homes=ON_DISK)
    for model, batch, prompt_len in (
        ("middle", 2, 64),
        ("middle", 16, 60),
        ("narrow", 24, 100),
        ("narrow", 4, 30),
    ):
        yield Probe(model, batch, prompt_len, homes=FOUR_BITS)
    for model in ("wide", "middle", "narrow"):
        yield Probe(model, 2, 16, gen_len=3, groups=2, homes=WEIGHTS_IN_CPU)
        yield Probe(model, 2, 16, gen_len=3, groups=4, homes=WEIGHTS_ON_DISK)
    yield from overlapping()


def overlapping() -> Iterator[Probe]:
    """List probes in which lanes work beside each other, and the GPU's part hardly ever waits.

    After a pause kernels are slower: caches have been used by others, and threads and clocks must wake up.
    """
    for model, batch, prompt_len, gen_len, groups in _BESIDE_READS:
        yield Probe(model, batch, prompt_len, gen_len, groups, WEIGHTS_ON_DISK, overlap=True)
    for homes in (STREAMED_CACHE, CPU_ATTENTION, CACHE_ON_DISK):
        yield Probe("middle", 16, 64, 8, 3, homes, overlap=True)
    yield Probe("narrow", 12, 200, 8, 3, CPU_ATTENTION, overlap=True)


def pageable(probe: Probe) -> Probe:
    """Run a probe from memory that is not pinned."""
    return replace(probe, pinned=False)
