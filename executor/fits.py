"""All operations of a calibration: which formula each has, and from which probes it is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from executor.fit import ATTENTION, LOOKUP, MATMUL, TRANSFER, Fit, Form, fit
from executor.observe import Kind, Run, alone, tasks
from executor.probe import Probe
from executor.profile_of import NEEDED
from simulator.errors import InputError
from simulator.operations import OP, OPERATIONS
from simulator.policy import FloatArray

_FORMS = {"matmul": MATMUL, "attention": ATTENTION, "prompt_attention": ATTENTION}


def form_of(name: str) -> Form:
    """Give what is fitted to an operation."""
    return LOOKUP if name == "embed" else _FORMS.get(OPERATIONS[OP[name]].cost, TRANSFER)


def fit_all(runs: Sequence[tuple[Probe, Run]]) -> tuple[dict[Kind, Fit], list[str]]:
    """Fit every operation to tasks that had the machine to themselves, kernels to those without pauses.

    Returns:
        the fits, and the operations whose rates are not determined and can be done without.

    Raises:
        InputError: one that every plan needs is not determined.
    """
    copies = {kind: seen for kind, seen in alone(run for _, run in runs).items() if not kind[1]}
    steady = (run for one, run in runs if one.steady and not one.overlap)
    kernels = {kind: seen for kind, seen in alone(steady).items() if kind[1]}
    found, undetermined = {}, []
    for kind, seen in (kernels | copies).items():
        try:
            found[kind] = fit(kind[0], form_of(kind[0]), seen)
        except InputError:
            if kind[0] in NEEDED:
                raise
            undetermined.append(kind[0])
    return found, undetermined


def alone_seconds(runs: Sequence[Run], fits: Mapping[Kind, Fit]) -> dict[Kind, FloatArray]:
    """Give the time that each task would take alone, by operation, of all runs in order. [s]"""
    found = {}
    for kind, fitted in fits.items():
        parts = [form_of(kind[0]).formula(tasks(run, kind), fitted.constants) for run in runs]
        found[kind] = np.concatenate(parts) if parts else np.zeros(0)
    return found
