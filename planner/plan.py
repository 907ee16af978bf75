"""The plan: policy, layout, predictions, bounds, prices and where they come from; a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from planner.prices import Price
from planner.uncertainty import Range
from simulator.hardware import HardwareProfile, LaneName, SourceKind, TierName
from simulator.layout import Layout
from simulator.model import ModelSpec
from simulator.policy import Policy, ScheduleName
from simulator.runtime import Runtime
from simulator.schema import Record, decode, read_json
from simulator.simulate import Prediction
from simulator.workload import Workload


class Machine(Record):
    """The machine that a plan is for: the whole profile, its name, and the hash of its content."""

    name: str
    content_hash: str
    rests_on: tuple[SourceKind, ...]
    overrides: tuple[str, ...]
    profile: HardwareProfile


class Bounds(Record):
    """What the prediction is held against.

    Attributes:
        lp_tok_s: the placement program's answer for this block under perfect overlap.
        search_tok_s: the same, over every policy searched.
        ceiling_tok_s: no schedule whatsoever on this machine is faster.
        ceiling_bound_by: the resource that sets the ceiling.
        io_bytes: bytes read into GPU memory per sequence.
        io_lower_bound_bytes: the least that any schedule reads per sequence, with attention where it is.
        zigzag_factor: 2 (1 + 1/B)(1 + B/N), how far a zig-zag block can be from the best schedule.
    """

    lp_tok_s: float
    search_tok_s: float
    ceiling_tok_s: float
    ceiling_bound_by: str
    io_bytes: float
    io_lower_bound_bytes: float
    zigzag_factor: float


class TierMemory(Record):
    """Memory of one tier: the static bound on the peak, by use, and the capacity a plan may fill. [B]"""

    peak: float
    capacity: float
    uses: dict[str, float]


class Alternative(Record):
    """A policy that was considered, and why it lost."""

    schedule: ScheduleName
    policy: Policy
    lp_tok_s: float
    simulated_tok_s: float | None
    reason: str


class SearchStatistics(Record):
    """How the plan was found."""

    linear_programs: int
    simulated: int


class Plan(Record):
    """Everything about a plan. Reads back from its JSON into an equal plan.

    ``throughput_range`` says how sure the predicted throughput is; None for profiles without intervals.
    """

    schema_version: Literal[1] = 1
    planner_version: str
    hardware: Machine
    model: ModelSpec
    workload: Workload
    runtime: Runtime
    schedule: ScheduleName
    policy: Policy
    layout: Layout
    layout_difference: dict[str, float]
    predictions: Prediction
    throughput_range: Range | None = None
    bounds: Bounds
    limits: dict[str, dict[str, float]]
    memory: dict[TierName, TierMemory]
    prices: tuple[Price, ...]
    alternatives: tuple[Alternative, ...]
    search: SearchStatistics

    def to_json(self) -> str:
        """Write the plan; numbers are in seconds, bytes and tokens per second."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @property
    def busiest(self) -> LaneName:
        """Name the lane that works the largest share of the time."""
        return max(self.predictions.busy, key=self.predictions.busy.__getitem__)


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: the file cannot be read or is not a plan.
    """
    return decode(Plan, read_json(path), "plan")
