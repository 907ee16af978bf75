"""The pictures of a sensitivity: what matters, two resources together, and uncertain constants."""

from __future__ import annotations

from collections.abc import Iterator

from planner.charts import Chart, Series
from planner.sensitivity import Sensitivity
from planner.words import constant, resource


def tornado(found: Sensitivity) -> Chart:
    """Draw throughput with less and with more of every resource, the largest swing on top."""
    factors = sorted({factor for each in found.swings.values() for factor in each if factor != 1.0})
    return Chart(
        key="what-matters",
        title=f"What {found.plan.model.name} on {found.plan.hardware.name} depends on",
        kind="tornado",
        x_label="",
        y_label="throughput [tok/s]",
        base=found.base_tok_s,
        series=tuple(
            Series(
                name=f"{factor:.3g} times as much",
                x=tuple(resource(name) for name in found.swings),
                y=tuple(each.get(factor) for each in found.swings.values()),
                cells=tuple(found.number({name: factor}) for name in found.swings),
            )
            for factor in factors
        ),
        note="Each bar is a new plan, simulated; where one is missing nothing fits.",
    )


def heat_map(found: Sensitivity) -> Chart:
    """Draw throughput over factors on two resources."""
    first, second = found.pair
    across = sorted({factors[0] for factors in found.pairs})
    down = sorted({factors[1] for factors in found.pairs})
    return Chart(
        key="two-together",
        title=f"{resource(first)} and {resource(second)} together",
        kind="heatmap",
        x_label=f"{resource(first)}, times as much",
        y_label=f"{resource(second)}, times as much",
        z_label="throughput [tok/s]",
        series=tuple(
            Series(
                name=f"{factor:.3g}",
                x=tuple(f"{each:.3g}" for each in across),
                y=tuple(found.pairs[each, factor] for each in across),
                cells=tuple(found.number({first: each, second: factor}) for each in across),
            )
            for factor in down
        ),
        note="If the two did not interact, every row would be the same but for a constant.",
    )


def uncertain(found: Sensitivity) -> Iterator[Chart]:
    """Draw what each uncertain constant does to throughput, on a profile that was measured."""
    if not found.causes:
        return
    base, names = found.base_tok_s, tuple(constant(cause.path) for cause in found.causes)
    ends = {
        "lowest": tuple(base / (1.0 + cause.loss) for cause in found.causes),
        "highest": tuple(base * (1.0 + cause.gain) for cause in found.causes),
    }
    yield Chart(
        key="uncertain-constants",
        title="Uncertain constants of the profile",
        kind="tornado",
        x_label="",
        y_label="throughput [tok/s]",
        base=base,
        series=tuple(Series(name=name, x=names, y=values) for name, values in ends.items()),
        note="Each constant at the ends of its interval, with the same plan.",
    )
