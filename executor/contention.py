"""What lanes take from each other: how much slower tasks are beside others, and the shares that explain it.

Of two lanes a and b that work at once, a takes 1 + s_ab times as long as alone. If both draw on one thing, a
the whole of it and b a share f at full speed, the two speeds fill it: 1 / (1 + s_ab) + f / (1 + s_ba) = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from executor.observe import Beside, Kind, Run, beside
from simulator.calibration import Interval
from simulator.hardware import LANES, LaneName
from simulator.policy import FloatArray

_ENOUGH = 0.1  # seconds of a lane's work beside another, to say anything of the two
_NOTHING = 0.02  # a share below this is none
_NORMAL = 1.96

Shares = dict[LaneName, tuple[float, Interval]]


def shares(runs: Sequence[Run], seconds: Mapping[Kind, FloatArray], whole: LaneName) -> Shares:
    """Give the share that each lane draws, at full speed, of what one lane uses the whole of.

    Args:
        runs: with overlapping lanes.
        seconds: of each operation and type, the time alone of all such tasks of all runs, in order. [s]
        whole: the lane that uses all of it.
    """
    own = LANES.index(whole)
    mine = slowdowns(beside(runs, seconds, own))
    found: Shares = {}
    for index, lane in enumerate(LANES):
        if index == own or index not in mine:
            continue
        theirs = slowdowns(beside(runs, seconds, index)).get(own, (0.0, 0.0))
        (slow, error), (other, _) = mine[index], theirs
        share = min(1.0, (1.0 - 1.0 / (1.0 + slow)) * (1.0 + other))
        if share < _NOTHING:
            continue
        off = _NORMAL * error * (1.0 + other) / (1.0 + slow) ** 2 / share
        found[lane] = (share, Interval(low=-min(off, 0.95), high=off))
    return found


def slowdowns(seen: Beside) -> dict[int, tuple[float, float]]:
    """Give how much longer a lane's tasks take for each other lane that works all of their time.

    Returns:
        by lane: relative slowdown and its standard error, over runs. Least squares of times, so that long
        tasks count for more; none is negative.
    """
    from scipy.optimize import nnls  # noqa: PLC0415 - heavy, and an optional dependency

    together = seen.alone[:, None] * seen.shares
    lanes = np.nonzero(together.sum(axis=0) > _ENOUGH)[0]
    if len(lanes) == 0:
        return {}
    design, excess = together[:, lanes], seen.measured - seen.alone
    weight = 1.0 / np.sqrt(seen.alone)
    runs = np.unique(seen.run)
    whole = nnls(design * weight[:, None], np.maximum(excess, -seen.alone) * weight)[0]
    parts = [
        nnls(design[keep] * weight[keep, None], excess[keep] * weight[keep])[0]
        for keep in (seen.run != run for run in runs)
    ]
    count = len(parts)
    error = (
        np.sqrt((count - 1) / count * ((np.stack(parts) - whole) ** 2).sum(axis=0)) if count > 1 else whole
    )
    return dict(zip(lanes.tolist(), zip(whole.tolist(), error.tolist(), strict=True), strict=True))
