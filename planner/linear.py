"""Linear programs with named rows: scaled for the solver, answered in the units that they were asked in.

A solver accepts a row that is off by a fixed small amount. So that this means a small share of what the row
is about, whether a run takes microseconds or days, variables are measured in given sizes and every row in
its largest coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulp


@dataclass(frozen=True)
class Row:
    """``sum of coefficient x variable <= constant``, or equal to it, under a name that reports print."""

    name: str
    terms: dict[str, float]
    constant: float = 0.0
    equal: bool = False


@dataclass(frozen=True)
class Optimum:
    """Values of all variables by name, and d(objective) / d(constant) of all rows by name."""

    values: dict[str, float]
    duals: dict[str, float]


class _Model(pulp.LpProblem):  # type: ignore[misc] # PuLP has no types
    """A program that knows its variables, where PuLP would gather them from all rows again and again."""

    ordered: list[pulp.LpVariable]

    def variables(self) -> list[pulp.LpVariable]:
        """Give the variables in the order in which a solver gets them."""
        return self.ordered


def minimise(
    objective: Mapping[str, float], rows: Sequence[Row], sizes: Mapping[str, float]
) -> Optimum | None:
    """Minimise a linear objective over variables that are at least 0; None if no values satisfy the rows.

    Args:
        objective: coefficients of the objective.
        rows: the constraints; names must differ.
        sizes: every variable with its order of magnitude.

    >>> found = minimise({"x": 3e9}, [Row("floor", {"x": -1e-9}, -2e-9)], {"x": 1.0})
    >>> found.values["x"], found.duals["floor"]
    (2.0, -3e+18)
    """
    program = _Model("program", pulp.LpMinimize)
    variables = {name: program.add_variable(name, lowBound=0) for name in sizes}
    program.ordered = sorted(variables.values(), key=lambda variable: variable.name)
    factors = []
    for number, row in enumerate(rows):
        scaled, factor = _scaled(row.terms, sizes)
        factors.append(factor)
        terms = pulp.LpAffineExpression({variables[name]: value for name, value in scaled.items()})
        sense = pulp.LpConstraintEQ if row.equal else pulp.LpConstraintLE
        program.addConstraint(pulp.LpConstraint(terms, sense, f"row{number}", row.constant / factor))
    costs, cost = _scaled(objective, sizes)
    program.setObjective(pulp.LpAffineExpression({variables[name]: value for name, value in costs.items()}))
    status = program.solve(pulp.HiGHS(msg=False, threads=1))
    if pulp.LpStatus[status] != "Optimal":
        return None
    return Optimum(
        values={name: sizes[name] * float(variable.value() or 0.0) for name, variable in variables.items()},
        duals={
            row.name: float(program.get_constraint_by_name(f"row{number}").pi or 0.0) * cost / factors[number]
            for number, row in enumerate(rows)
        },
    )


def _scaled(terms: Mapping[str, float], sizes: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Measure variables in their sizes, and the whole in its largest coefficient; give that too."""
    sized = {name: value * sizes[name] for name, value in terms.items()}
    largest = max(map(abs, sized.values()), default=0.0) or 1.0
    return {name: value / largest for name, value in sized.items()}, largest
