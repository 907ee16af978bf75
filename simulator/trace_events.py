"""Reading single events of a trace file; every fault raises, with what is wrong in the message."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.hardware import LANES, TIERS
from simulator.operations import OP

_PLACE = ("pass", "layer", "group")
WORK = ("bytes", "flops", "kernels", "steps", "blocks")
_LATEST_US = 9e12  # beyond, nanoseconds are not whole in a float


def _number(value: object, least: float = -np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < np.inf:
        raise ValueError(f"expected a number{' of 0 or more' if least == 0 else ''}; got {value!r:.40}")
    return float(value)


def _time(value: object) -> float:
    time = _number(value, 0)
    if time > _LATEST_US:
        raise ValueError(f"expected microseconds since the start of the run; got {value!r:.40}")
    return time


def _whole(value: object) -> float:
    number = _number(value)
    if number != int(number) or abs(number) >= 2**31:
        raise ValueError(f"expected a whole number; got {value!r:.40}")
    return number


def read_span(event: dict[str, Any]) -> tuple[float, ...]:
    """Read a complete event: operation, lane, start and duration [us], pass, layer, group, and the work.

    Raises:
        KeyError, TypeError, ValueError: something is missing or wrong; the message says what.
    """
    name, lane, args = event["name"], event["tid"] - 1, event["args"]
    if name not in OP:
        raise ValueError(f"unknown operation {name!r:.40}")
    if lane not in range(len(LANES)):
        raise ValueError(f"unknown lane {lane + 1!r:.40}")
    start, took = _time(event["ts"]), _time(event["dur"])
    place = [_whole(args[key]) for key in _PLACE]
    return (OP[name], lane, start, took, *place, *(_number(args[key], 0) for key in WORK))


def read_counter(event: dict[str, Any]) -> tuple[str, float, float]:
    """Read a counter event: tier and use of memory, time [us], GiB.

    Raises:
        KeyError, TypeError, ValueError: something is missing or wrong; the message says what.
    """
    tier, colon, _ = event["name"].partition(": ")
    if tier not in TIERS or not colon:
        raise ValueError(f"unknown counter {event['name']!r:.40}")
    return event["name"], _time(event["ts"]), _number(event["args"]["GiB"], 0)
