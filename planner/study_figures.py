"""The figures of a planned cell that the table of a study has: a column each, with its words and unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from planner.costs import Running
from planner.plan import Plan
from planner.study_answer import PartPlan, latency, seconds
from planner.table import Column, Entry
from planner.words import resource
from simulator.hardware import LANES, TIERS, LaneName, TierName
from simulator.units import GB, GIB


@dataclass(frozen=True)
class Planned:
    """The plans of a cell, one for each part of its work, and what its machine costs.

    With ``serial`` the parts are calls that wait for each other.
    """

    plans: tuple[PartPlan, ...]
    running: Running
    serial: bool = False

    @property
    def seconds(self) -> list[float]:
        """Time that each part takes. [s]"""
        return [seconds(one, one.plan.predictions.throughput_tok_s) for one in self.plans]

    @property
    def main(self) -> Plan:
        """The plan of the part that takes most of the time."""
        return max(zip(self.seconds, self.plans, strict=True), key=lambda pair: pair[0])[1].plan

    def rate(self, of: Callable[[Plan], float]) -> float:
        """Join a rate of the parts: all tokens that count over the sum of the parts' times. [tok/s]"""
        tokens = sum(one.part.count * one.part.counted_tokens for one in self.plans)
        return tokens / sum(seconds(one, of(one.plan)) for one in self.plans)

    @property
    def tok_s(self) -> float:
        """Simulated throughput. [tok/s]"""
        return self.rate(lambda plan: plan.predictions.throughput_tok_s)

    @property
    def latency(self) -> float:
        """The longest latency of a part; of a chain of calls, that of all together. [s]"""
        return latency(self.plans, serial=self.serial)


def binding(plan: Plan) -> tuple[str, float]:
    """Name the resource that sets most of a plan's time, by the program's duals, and give its share."""
    weights = {"prefill": plan.predictions.prefill_s, "decode": plan.predictions.decode_s}
    total = sum(weights[phase] for phase, found in plan.limits.items() if found)
    shares: dict[str, float] = {}
    for phase, found in plan.limits.items():
        for name, share in found.items():
            shares[name] = shares.get(name, 0.0) + share * weights[phase] / (total or 1.0)
    return max(shares.items(), key=lambda item: item[1], default=("nothing", 0.0))


Read = Callable[[Planned], Entry]


@dataclass(frozen=True)
class PlanColumn:
    """A column that a planned cell fills: key, title, unit (None: not a number), how to read it off.

    ``brief`` is as in :class:`planner.table.Column`.
    """

    key: str
    title: str
    unit: str | None
    read: Read
    brief: bool = True

    @property
    def column(self) -> Column:
        """Give its column in the table."""
        kind: Literal["text", "number"] = "text" if self.unit is None else "number"
        return Column(key=self.key, title=self.title, unit=self.unit or "", kind=kind, brief=self.brief)


def _range(end: str) -> Read:
    def read(found: Planned) -> Entry:
        if any(one.plan.throughput_range is None for one in found.plans):
            return None
        return found.rate(lambda plan: float(getattr(plan.throughput_range, end)))

    return read


def _rate(name: str) -> Read:
    return lambda found: found.rate(lambda plan: float(getattr(plan.bounds, name)))


def _bound(name: str) -> Read:
    return lambda found: getattr(found.main.bounds, name)


def _gigabytes(name: str) -> Read:
    return lambda found: float(getattr(found.main.bounds, name)) / GB


def _policy(name: str) -> Read:
    return lambda found: getattr(found.main.policy, name)


def _share(tensors: str, tier: TierName) -> Read:
    return lambda found: float(getattr(getattr(found.main.policy, tensors), tier))


def _on_cpu(found: Planned) -> Entry:
    cache, share = found.main.policy.cache, found.main.policy.cpu_attention
    return cache.cpu * share.cpu + cache.disk * share.disk


def _peak(tier: TierName) -> Read:
    return lambda found: found.main.memory[tier].peak / GIB


def _busy(lane: LaneName) -> Read:
    def read(found: Planned) -> Entry:
        parts = zip(found.seconds, found.plans, strict=True)
        return sum(time * one.plan.predictions.busy[lane] for time, one in parts) / sum(found.seconds)

    return read


#: Resources whose price has a column, with the unit that the price is for.
PRICED = {
    "gpu memory": "GiB",
    "cpu memory": "GiB",
    "disk memory": "GiB",
    "h2d": "GB/s",
    "d2h": "GB/s",
    "disk_read": "GB/s",
    "disk_write": "GB/s",
    "gpu matrix products": "TFLOP/s",
    "gpu memory bandwidth": "GB/s",
    "cpu attention": "GB/s",
    "dram": "GB/s",
}


def _price(resource: str) -> Read:
    def read(found: Planned) -> Entry:
        prices = {each.resource.removesuffix(" (pinned)"): each.tok_s_per_unit for each in found.main.prices}
        return prices.get(resource)

    return read


def figures() -> list[PlanColumn]:
    """List the columns that a planned cell fills."""
    return [
        PlanColumn("tok_s", "throughput", "tok/s", lambda found: found.tok_s),
        PlanColumn("tok_s_low", "throughput, low end", "tok/s", _range("low_tok_s")),
        PlanColumn("tok_s_high", "throughput, high end", "tok/s", _range("high_tok_s")),
        PlanColumn("latency_s", "latency", "s", lambda found: found.latency),
        PlanColumn("first_token_s", "first token", "s", lambda found: found.main.predictions.prefill_s),
        *_money(),
        PlanColumn("bound_by", "bound by", None, lambda found: binding(found.main)[0]),
        PlanColumn("bound_share", "share of the time", "", lambda found: binding(found.main)[1]),
        PlanColumn("program_tok_s", "program's answer", "tok/s", _rate("lp_tok_s")),
        PlanColumn("ceiling_tok_s", "certified ceiling", "tok/s", _rate("ceiling_tok_s")),
        PlanColumn("ceiling_bound_by", "ceiling set by", None, _bound("ceiling_bound_by")),
        PlanColumn("io_gb", "to the GPU", "GB/sequence", _gigabytes("io_bytes")),
        PlanColumn("io_least_gb", "least to the GPU", "GB/sequence", _gigabytes("io_lower_bound_bytes")),
        *_policies(),
        *(
            PlanColumn(f"{tier}_peak_gib", f"{tier} memory used", "GiB", _peak(tier), brief=False)
            for tier in TIERS
        ),
        *(
            PlanColumn(f"busy_{lane}", f"{resource(lane)} busy", "", _busy(lane), brief=False)
            for lane in LANES
        ),
        *(
            PlanColumn(
                f"price_{_key(name)}", f"price of {resource(name)}", f"tok/s per {unit}", _price(name), False
            )
            for name, unit in PRICED.items()
        ),
    ]


def _key(resource: str) -> str:
    return resource.replace(" ", "_")


def _money() -> list[PlanColumn]:
    def per_million(found: Planned) -> Entry:
        return found.running.usd_per_million_tokens(found.tok_s)

    return [
        PlanColumn("usd_per_million_tokens", "cost", "USD/Mtok", per_million),
        PlanColumn("tokens_per_usd", "for a dollar", "tok", lambda f: f.running.tokens_per_usd(f.tok_s)),
        PlanColumn("joules_per_token", "energy", "J/tok", lambda f: f.running.joules_per_token(f.tok_s)),
        PlanColumn("usd_per_hour", "machine", "USD/h", lambda f: f.running.usd_per_hour),
    ]


def _policies() -> list[PlanColumn]:
    splits = [(name, tier) for name in ("weights", "cache", "activations") for tier in TIERS]
    return [
        PlanColumn("parts", "parts", "", lambda found: len(found.plans)),
        PlanColumn("plan_schedule", "schedule", None, lambda found: found.main.schedule),
        PlanColumn("gpu_batch", "group", "sequences", _policy("gpu_batch")),
        PlanColumn("num_groups", "groups", "", _policy("num_groups")),
        PlanColumn("block", "block", "sequences", _policy("block")),
        PlanColumn("stagger", "stagger", "passes", _policy("stagger")),
        *(
            PlanColumn(f"{name}_{tier}", f"{name} on {tier}", "", _share(name, tier), False)
            for name, tier in splits
        ),
        PlanColumn("attention_on_cpu", "attention on the CPU", "", _on_cpu),
        PlanColumn("weight_bits", "bits of weights", "", _policy("weight_bits")),
        PlanColumn("cache_bits", "bits of cache", "", _policy("cache_bits")),
        PlanColumn("pinned", "host memory", None, lambda f: "pinned" if f.main.policy.pinned else "pageable"),
    ]
