"""Memory of a tier: taken once, before the first pass, and counted by use.

On a machine without a GPU the ``gpu`` tier is a part of the CPU's memory like the ``cpu`` tier.
"""

from __future__ import annotations

import torch

from executor.aligned import aligned
from simulator.errors import InputError
from simulator.hardware import TierName
from simulator.units import GIB

ALIGNMENT = 64  # bytes: kernels read whole vectors and cache lines


def rounded(nbytes: int) -> int:
    """Round bytes up so that what follows is aligned. [B]"""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Arena:
    """The memory of one tier that a run takes.

    Args:
        tier: whose memory it is.
        device: where that is; anything but the GPU's is the CPU's memory.
        pinned: whether pages are locked for copies to and from a GPU.

    Attributes:
        used: bytes taken, by use. [B]
    """

    def __init__(self, tier: TierName, device: torch.device, *, pinned: bool = False) -> None:
        self.tier, self.device = tier, device
        self._pinned = pinned
        self.used: dict[str, float] = {}

    def take(self, use: str, nbytes: int) -> torch.Tensor:
        """Take memory for a use: uint8 [nbytes], zeros, whose pages are real at once.

        Raises:
            InputError: there is not so much.
        """
        try:
            if self.device.type == "cpu":
                # A page that becomes real in the middle of the run would be seconds late, all summed up.
                memory = aligned(nbytes, pinned=self._pinned).fill_(0)
            else:
                memory = torch.zeros(nbytes, dtype=torch.uint8, device=self.device)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
                raise
            raise InputError(
                f"{self.tier} memory: {use} needs {nbytes / GIB:.3f} GiB more than is free; "
                "stop other programs, or plan with a smaller capacity of this tier (--set)"
            ) from None
        if nbytes:
            self.used[use] = self.used.get(use, 0.0) + nbytes
        return memory
