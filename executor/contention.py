"""What lanes take from each other: how much slower tasks are beside others, and the shares that explain it.

A task of lane a takes 1 + s times as long while lane b works as alone. If a uses the whole of something that
both need, b has drawn the share 1 - 1 / (1 + s) of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from executor.fit import NORMAL
from executor.observe import Beside, Kind, Run, beside
from simulator.calibration import Interval
from simulator.hardware import LANES, LaneName
from simulator.policy import FloatArray

_ENOUGH = 0.02  # share of a lane's work in a run that is beside another, to say anything of the two
_HALF = 0.45  # of two that want more than half each, both get half
_NOTHING = 0.02  # a share below this is none

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
        slow, error = mine[index]
        share = 1.0 - 1.0 / (1.0 + slow)
        if share > _HALF:  # both have half: what the other one draws shows in its own time alone
            other, _ = slowdowns(beside(runs, seconds, index)).get(own, (0.0, 0.0))
            share = min(1.0, max(share, share * (1.0 + other)))
        if share < _NOTHING:
            continue
        off = NORMAL * error / (1.0 + slow) ** 2 / share
        found[lane] = (share, Interval(low=-min(off, 0.95), high=off))
    return found


def slowdowns(seen: Beside) -> dict[int, tuple[float, float]]:
    """Give how much longer a lane's tasks take for each other lane that works all of their time.

    Returns:
        by lane: relative slowdown and its standard error: the median over runs in which the two work beside
        each other. Within a run least squares of times, so that long tasks count for more; none is negative.
    """
    opinions: dict[int, list[float]] = {}
    for run in np.unique(seen.run).tolist():
        for lane, slow in _of_run(seen, seen.run == run).items():
            opinions.setdefault(lane, []).append(slow)
    return {lane: (float(np.median(each)), _error(each)) for lane, each in opinions.items()}


def _of_run(seen: Beside, chosen: npt.NDArray[np.bool_]) -> dict[int, float]:
    """Give the slowdowns of one run."""
    from scipy.optimize import nnls  # noqa: PLC0415 - heavy, and an optional dependency

    together = seen.alone[chosen, None] * seen.shares[chosen]
    lanes = np.nonzero(together.sum(axis=0) > _ENOUGH * seen.alone[chosen].sum())[0]
    if len(lanes) == 0:
        return {}
    weight = 1.0 / np.sqrt(seen.alone[chosen])
    excess = (seen.measured - seen.alone)[chosen]
    found = nnls(together[:, lanes] * weight[:, None], excess * weight)[0]
    return dict(zip(lanes.tolist(), found.tolist(), strict=True))


def _error(values: list[float]) -> float:
    """Give the standard error of a median, from the spread of the values; of one value, half of it."""
    if len(values) == 1:
        return 0.5 * values[0]
    spread = 1.48 * float(np.median(np.abs(np.array(values) - np.median(values))))
    return 1.25 * max(spread, 0.05) / float(np.sqrt(len(values)))
