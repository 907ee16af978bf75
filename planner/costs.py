"""What running a machine costs: rent, or purchase and electricity, and what that makes of a token."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.hardware import Cost
from simulator.schema import Record

HOURS_PER_YEAR = 8766.0
SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0


class Economics(Record):
    """What a purchase is spread over, and what electricity costs.

    Attributes:
        years: for which an own machine is used, all day and night.
        usd_per_kwh: price of electricity. A rent includes it.
    """

    years: Annotated[float, Field(gt=0.0, le=50.0)] = 3.0
    usd_per_kwh: Annotated[float, Field(ge=0.0, le=10.0)] = 0.15


class Running(Record):
    """What a machine costs while it runs, as far as its profile says. [USD/h] [W]"""

    usd_per_hour: float | None = None
    watts: float | None = None

    def usd_per_million_tokens(self, tok_s: float) -> float | None:
        """Give the cost of a million tokens. [USD]"""
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour / SECONDS_PER_HOUR / tok_s * 1e6

    def tokens_per_usd(self, tok_s: float) -> float | None:
        """Give the tokens that a dollar pays for."""
        return tok_s * SECONDS_PER_HOUR / self.usd_per_hour if self.usd_per_hour else None

    def joules_per_token(self, tok_s: float) -> float | None:
        """Give the electrical energy of a token. [J]"""
        return self.watts / tok_s if self.watts is not None else None


def running_cost(cost: Cost | None, economics: Economics) -> Running:
    """Price an hour: the rent, or else the purchase over its years and the power that is drawn.

    >>> bought = Cost(purchase="26298 USD", power="1 kW", source="bill")
    >>> running_cost(bought, Economics(years=3, usd_per_kwh=0.2)).usd_per_hour
    1.2
    """
    if cost is None:
        return Running()
    if cost.rent is not None:
        return Running(usd_per_hour=cost.rent, watts=cost.power)
    if cost.purchase is None or cost.power is None:
        return Running(watts=cost.power)
    spread = cost.purchase / (economics.years * HOURS_PER_YEAR)
    return Running(usd_per_hour=spread + cost.power / 1e3 * economics.usd_per_kwh, watts=cost.power)
