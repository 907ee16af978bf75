"""Which units of a group's cache, and which of its sequences' activations, lie where.

A group's prompts may be computed in parts. Every part is split over the tiers alike, so that the work of all
parts is the same and a buffer for one part has the size that the plan gave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.hardware import TIERS, TierName
from simulator.layout import Placed

Engine = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Share:
    """A run of units (or sequences) of a group that are kept together.

    Attributes:
        tier: where they lie.
        engine: which engine attends to them.
        first: the first of them in the group.
        count: how many.
    """

    tier: TierName
    engine: Engine
    first: int
    count: int

    def within(self, first: int, stop: int) -> range:
        """Give those of it that lie in a range of the group."""
        return range(max(self.first, first), max(self.first, first, min(self.first + self.count, stop)))


def cache_shares(placed: Placed) -> list[Share]:
    """Split the (sequence, KV head) units of a group; those of a sequence are neighbours."""
    policy, layout = placed.policy, placed.layout
    units = policy.gpu_batch * placed.model.num_kv_heads
    on_gpu, on_cpu, on_disk = _whole([layout.cache.gpu, layout.cache.cpu, layout.cache.disk], units)
    cpu_on_cpu = round(on_cpu * layout.cpu_attention.cpu)
    disk_on_cpu = round(on_disk * layout.cpu_attention.disk)
    classes: list[tuple[TierName, Engine, int]] = [
        ("gpu", "gpu", on_gpu),
        ("cpu", "gpu", on_cpu - cpu_on_cpu),
        ("cpu", "cpu", cpu_on_cpu),
        ("disk", "gpu", on_disk - disk_on_cpu),
        ("disk", "cpu", disk_on_cpu),
    ]
    return _in_parts(classes, units, policy.gpu_batch // policy.prompts_together)


def activation_shares(placed: Placed) -> list[Share]:
    """Split the sequences of a group."""
    policy, split = placed.policy, placed.layout.activations
    counts = _whole([split.gpu, split.cpu, split.disk], policy.gpu_batch)
    classes: list[tuple[TierName, Engine, int]] = [
        (tier, "gpu", count) for tier, count in zip(TIERS, counts, strict=True)
    ]
    return _in_parts(classes, policy.gpu_batch, policy.gpu_batch // policy.prompts_together)


def _whole(shares: list[float], units: int) -> list[int]:
    """Turn fractions into whole numbers that sum to ``units``."""
    ends = [round(end * units) for end in np.cumsum(shares)[:-1]]
    return [int(count) for count in np.diff([0, *ends, units])]


def _in_parts(classes: list[tuple[TierName, Engine, int]], units: int, parts: int) -> list[Share]:
    """Give every part its share of each class; a class that has all and is in memory stays whole.

    Records on the disk are written whole, so there the parts are kept apart.
    """
    for tier, engine, count in classes:
        if count == units and tier != "disk":
            return [Share(tier, engine, 0, units)]
    found = []
    for part in range(parts):
        first, dealt = part * (units // parts), 0
        for tier, engine, count in classes:
            # What even shares leave of the classes is dealt to one part after the other.
            even, left = divmod(count, parts)
            own = even + ((part - dealt) % parts < left)
            dealt += left
            if own:
                found.append(Share(tier, engine, first, own))
                first += own
    return found
