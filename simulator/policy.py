"""What is decided: the paper's eleven variables and those it leaves to the user.

Block (``num_groups``), group (``gpu_batch``) and three splits of three are FlexGen's eleven. Beside them
stand the schedule (``stagger``), where attention runs, bits, the sub-batch of the prompt pass, pinning and
prefetch depth.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from simulator.schema import Record

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Bits = Literal[4, 8, 16]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
ScheduleName = Literal["zigzag", "diagonal", "row"]

FloatArray = npt.NDArray[np.float64]

#: The placement variables in which all work and memory is affine; ``cache_cpu_on_gpu`` is the share of the
#: KV cache that lives on the CPU and whose attention runs on the GPU.
PLACEMENT = (
    "one",
    "weights_gpu",
    "weights_cpu",
    "weights_disk",
    "cache_gpu",
    "cache_cpu_on_cpu",
    "cache_cpu_on_gpu",
    "cache_disk_on_cpu",
    "cache_disk_on_gpu",
    "activations_gpu",
    "activations_cpu",
    "activations_disk",
)


def placed(**coefficients: float) -> FloatArray:
    """Make an affine form over ``PLACEMENT``: ``placed(weights_cpu=2)(x) = 2 x[weights_cpu]``."""
    form = np.zeros(len(PLACEMENT))
    for name, value in coefficients.items():
        form[PLACEMENT.index(name)] = value
    return form


#: Indicator forms that several formulas use.
ALWAYS = placed(one=1)
STREAMED_WEIGHTS = placed(weights_cpu=1, weights_disk=1)
CPU_WEIGHTS = placed(weights_cpu=1)
DISK_WEIGHTS = placed(weights_disk=1)
CACHE_ON_CPU_ENGINE = placed(cache_cpu_on_cpu=1, cache_disk_on_cpu=1)
CPU_CACHE_ON_CPU_ENGINE = placed(cache_cpu_on_cpu=1)
CPU_CACHE_ON_GPU_ENGINE = placed(cache_cpu_on_gpu=1)
CACHE_STREAMED = placed(cache_cpu_on_gpu=1, cache_disk_on_gpu=1)
CACHE_ON_GPU_ENGINE = placed(cache_gpu=1, cache_cpu_on_gpu=1, cache_disk_on_gpu=1)
CACHE_OFF_GPU = placed(cache_cpu_on_cpu=1, cache_cpu_on_gpu=1, cache_disk_on_cpu=1, cache_disk_on_gpu=1)
CACHE_IN_CPU = placed(cache_cpu_on_cpu=1, cache_cpu_on_gpu=1)
CACHE_ON_DISK = placed(cache_disk_on_cpu=1, cache_disk_on_gpu=1)
ACTIVATIONS_OFF_GPU = placed(activations_cpu=1, activations_disk=1)
ACTIVATIONS_ON_DISK = placed(activations_disk=1)


class Split(Record):
    """Fractions of one tensor class on the three tiers; they sum to 1."""

    gpu: Fraction
    cpu: Fraction
    disk: Fraction

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.gpu + self.cpu + self.disk
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the fractions sum to {total:g}; they must sum to 1")
        return self

    def __str__(self) -> str:
        """Write percentages as GPU/CPU/disk."""
        return "/".join(f"{100 * part:.4g}" for part in (self.gpu, self.cpu, self.disk))


class CpuAttention(Record):
    """The share of the attention over CPU- and disk-resident cache that the CPU computes."""

    cpu: Fraction = 0.0
    disk: Fraction = 0.0


class Policy(Record):
    """Everything that is decided about a run.

    ``stagger`` is the number of passes between admissions; None admits a whole block at once (zig-zag).
    ``prompt_batch`` is the number of sequences whose prompts are computed together; it divides
    ``gpu_batch``. ``prefetch`` is how many layers ahead weights are loaded. Without ``overlap`` nothing runs
    beside anything else. Below 1, ``attention_top`` makes attention sparse: of the cached tokens only that
    share, those with the largest weights, have their values summed.
    """

    gpu_batch: Count
    num_groups: Count
    weights: Split
    cache: Split
    activations: Split
    cpu_attention: CpuAttention = CpuAttention()
    weight_bits: Bits = 16
    cache_bits: Bits = 16
    quant_group: Annotated[int, Field(ge=8, le=4096)] = 64
    stagger: Count | None = None
    prompt_batch: Count | None = None
    pinned: bool = True
    overlap: bool = True
    prefetch: Annotated[int, Field(ge=1, le=8)] = 1
    attention_top: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.gpu_batch % self.prompts_together:
            raise ValueError(f"prompt_batch {self.prompt_batch} must divide gpu_batch {self.gpu_batch}")
        return self

    @property
    def block(self) -> int:
        """Sequences in flight at most."""
        return self.gpu_batch * self.num_groups

    @property
    def prompts_together(self) -> int:
        """Sequences whose prompts are computed in one go."""
        return self.prompt_batch or self.gpu_batch

    def cohorts(self, passes: int) -> int:
        """Count the sets of groups in flight that were admitted in different passes: ceil(n / stagger)."""
        return cohorts_in_flight(self.stagger, passes)

    def schedule(self, passes: int) -> ScheduleName:
        """Name the traversal: one group is row-by-row, one admission a block is zig-zag, else diagonal."""
        if self.cohorts(passes) > 1:
            return "diagonal"
        return "row" if self.num_groups == 1 else "zigzag"

    def placement(self) -> FloatArray:
        """Give the value of every placement variable, in the order of ``PLACEMENT``."""
        cache, share = self.cache, self.cpu_attention
        return placed(
            one=1,
            weights_gpu=self.weights.gpu,
            weights_cpu=self.weights.cpu,
            weights_disk=self.weights.disk,
            cache_gpu=cache.gpu,
            cache_cpu_on_cpu=cache.cpu * share.cpu,
            cache_cpu_on_gpu=cache.cpu * (1 - share.cpu),
            cache_disk_on_cpu=cache.disk * share.disk,
            cache_disk_on_gpu=cache.disk * (1 - share.disk),
            activations_gpu=self.activations.gpu,
            activations_cpu=self.activations.cpu,
            activations_disk=self.activations.disk,
        )


def cohorts_in_flight(stagger: int | None, passes: int) -> int:
    """Count cohorts in flight at most when one is admitted every ``stagger`` passes and lives ``passes``."""
    return 1 if stagger is None else max(1, math.ceil(passes / stagger))
