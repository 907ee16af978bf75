"""What was done as a trace, of the same type as a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from executor.lanes import Played
from simulator.hardware import TierName
from simulator.policy import FloatArray
from simulator.trace import Trace
from simulator.trace_events import WORK
from simulator.trace_memory import MemoryUse

_COLUMNS = ("operation", "lane", "start", "end", "pass_number", "layer", "group", *WORK)


def trace_of(played: Played, moved: FloatArray) -> Trace:
    """Gather what was done; tasks that were not reached are left out.

    Args:
        played: the tasks, with their times.
        moved: the bytes that each moved. [N] [B]
    """
    schedule = played.schedule
    done = np.isfinite(played.end)
    numbers = np.array([one.number for one in schedule.window.passes], dtype=np.int32)
    return Trace(
        operation=schedule.operation[done],
        lane=schedule.lane[done],
        start=played.start[done],
        end=played.end[done],
        pass_number=numbers[schedule.pass_index[done]],
        layer=schedule.layer[done],
        group=schedule.group[done],
        bytes=moved[done],
        flops=schedule.flops[done],
        kernels=schedule.kernels[done],
        steps=schedule.steps[done],
        blocks=schedule.blocks[done],
    )


def joined(
    parts: Sequence[Trace], used: Mapping[TierName, Mapping[str, float]], about: Mapping[str, str]
) -> Trace:
    """Put traces one behind the other, with the memory that all of them used and what there is to say."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    uses = tuple(
        MemoryUse(tier, name, np.zeros(1), np.array([float(size)]))
        for tier, each in used.items()
        for name, size in each.items()
    )
    return Trace(**columns, memory=uses, metadata={"kind": "measured", **about})
