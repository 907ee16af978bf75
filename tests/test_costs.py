"""What machines cost: rent, or purchase and electricity, and what that makes of a token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.costs import HOURS_PER_YEAR, Economics, Running, running_cost
from simulator.hardware import Cost

RATES = st.floats(1e-3, 1e6)


def test_a_rented_machine_by_hand() -> None:
    """3.6 USD/h at 100 tok/s: 10 USD a million tokens, 100,000 tokens a dollar; 500 W are 5 J a token."""
    running = running_cost(Cost(rent="3.6 USD/h", power="500 W", source="bill"), Economics())
    assert running == Running(usd_per_hour=3.6, watts=500.0)
    assert running.usd_per_million_tokens(100.0) == pytest.approx(10.0)
    assert running.tokens_per_usd(100.0) == pytest.approx(1e5)
    assert running.joules_per_token(100.0) == pytest.approx(5.0)


def test_a_bought_machine_by_hand() -> None:
    """8766 USD over 2 years are 0.5 USD/h; 650 W at 0.2 USD/kWh are 0.13 USD/h."""
    cost = Cost(purchase="8766 USD", power="650 W", source="bill")
    running = running_cost(cost, Economics(years=2.0, usd_per_kwh=0.2))
    assert running.usd_per_hour == pytest.approx(0.63)
    assert running.watts == 650.0


def test_rent_wins_over_purchase() -> None:
    """A machine with both prices costs its rent, whatever the purchase would be spread over."""
    cost = Cost(rent="1 USD/h", purchase="8766 USD", power="1 kW", source="bill")
    assert running_cost(cost, Economics(years=0.5)).usd_per_hour == 1.0


def test_no_price_is_none() -> None:
    """Without a price nothing is said of money, without a power nothing of energy."""
    for cost in (None, Cost(power="1 kW", source="bill"), Cost(purchase="3000 USD", source="bill")):
        running = running_cost(cost, Economics())
        assert running.usd_per_million_tokens(10.0) is None
        assert running.tokens_per_usd(10.0) is None
    assert Running().joules_per_token(10.0) is None
    rented = running_cost(Cost(rent="1 USD/h", source="bill"), Economics())
    assert rented.joules_per_token(10.0) is None


@given(rent=st.floats(1e-3, 1e3), tok_s=RATES)
def test_costs_and_tokens_are_reciprocal(rent: float, tok_s: float) -> None:
    """The cost of a million tokens times the tokens of a dollar is a million."""
    running = Running(usd_per_hour=rent)
    cost, tokens = running.usd_per_million_tokens(tok_s), running.tokens_per_usd(tok_s)
    assert cost is not None
    assert tokens is not None
    assert cost * tokens == pytest.approx(1e6)


@given(
    price=st.integers(1, 10**6),
    watts=st.integers(1, 10**5),
    years=st.floats(0.1, 50.0),
    usd_per_kwh=st.floats(0.0, 10.0),
)
def test_an_hour_pays_for_the_machine(price: int, watts: int, years: float, usd_per_kwh: float) -> None:
    """Over all its years a bought machine costs its purchase and the energy that it drew."""
    cost = Cost(purchase=f"{price} USD", power=f"{watts} W", source="bill")
    running = running_cost(cost, Economics(years=years, usd_per_kwh=usd_per_kwh))
    assert running.usd_per_hour is not None
    hours = years * HOURS_PER_YEAR
    assert running.usd_per_hour * hours == pytest.approx(price + hours * watts / 1e3 * usd_per_kwh)
