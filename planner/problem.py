"""What is asked, and what is chosen outside the placement program."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.hardware import HardwareProfile
from simulator.layers import Shape
from simulator.model import ModelSpec
from simulator.policy import FloatArray
from simulator.prefix import with_prefix
from simulator.runtime import Runtime
from simulator.workload import Workload

#: Matrix products over this many tokens are efficient.
PROMPT_TOKENS = 2048


@dataclass(frozen=True)
class Problem:
    """What is given: machine, model, workload, engine, and the limits that a plan must keep.

    The model holds the keys and values of the prefix that the workload's prompts share, if they do.
    """

    hardware: HardwareProfile
    model: ModelSpec
    workload: Workload
    runtime: Runtime
    max_latency: float | None = None

    def __post_init__(self) -> None:
        """The prefix is part of the model, as of its layouts."""
        object.__setattr__(self, "model", with_prefix(self.model, self.workload))


@dataclass(frozen=True)
class Outer:
    """Choices outside the program. A range of group sizes makes the program a relaxation over all of them.

    ``pins`` fix placement variables by name, or the share of attention on the CPU (``cpu_attention``).
    """

    gpu_batch: int
    stagger: int | None = None
    shape: Shape = Shape()
    pinned: bool = True
    prefetch: int = 1
    prompt_batch: int | None = None
    smallest_batch: int | None = None
    pins: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        """The form of the work depends on pinning too."""
        object.__setattr__(self, "shape", replace(self.shape, pinned=self.pinned))

    def prompts_together(self, problem: Problem) -> int:
        """Give the sub-batch of the prompt pass: as pinned, or the smallest that keeps kernels efficient.

        Of a range of group sizes, give the most efficient sub-batch that any of them may take.
        """
        if self.prompt_batch or not problem.runtime.splits_prompts:
            return self.prompt_batch or self.gpu_batch
        if self.smallest_batch not in (None, self.gpu_batch):
            return self.gpu_batch
        return prompt_batch(self.gpu_batch, problem.workload.own_len)


def prompt_batch(gpu_batch: int, prompt_len: int, tokens: int = PROMPT_TOKENS) -> int:
    """Choose the smallest divisor of the group size whose prompts make at least ``tokens`` tokens.

    >>> prompt_batch(32, 512), prompt_batch(6, 100), prompt_batch(8, 100_000)
    (4, 6, 1)
    """
    divisors = [size for size in range(1, gpu_batch + 1) if gpu_batch % size == 0]
    return next((size for size in divisors if size * prompt_len >= tokens), gpu_batch)


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimum of the program.

    Attributes:
        seconds: time of a period per sequence in flight. [s]
        block: sequences in flight, 1 / tau.
        placement: value of every placement variable.
        throughput: generated tokens per second under perfect overlap.
        duals: d(seconds) / d(right-hand side) of every row, by name.
        values: value of every variable of the program, by name.
    """

    seconds: float
    block: float
    placement: FloatArray
    throughput: float
    duals: dict[str, float]
    values: dict[str, float]


def memory_limit(hardware: HardwareProfile, tier: str, *, pinned: bool) -> tuple[str, float]:
    """Give the name of a tier's memory row and the bytes that a plan may fill. [B]"""
    memory = hardware.tiers[tier]  # type: ignore[index]
    if tier == "cpu" and pinned and memory.pinnable is not None and memory.pinnable < memory.usable:
        return "cpu memory (pinned)", memory.pinnable
    return f"{tier} memory", memory.usable
