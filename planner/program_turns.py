"""Rows of the placement program for what an engine does in turn, not at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.hardware import LANES, LaneName

if TYPE_CHECKING:
    from planner.program import Program


def define_turns(program: Program) -> None:
    """What an engine does in turn takes the sum of the times: ``sum of lanes(x) - beside(x) <= T``.

    A single group waits for its own attention, of which only the GPU's part goes on meanwhile. With barriers
    that holds for every group, and kernels wait for what the host copies. A serial engine does everything in
    turn, but for the loads of a layer, of which the link's part counts.
    """
    kind = program.problem.runtime.synchronization
    if kind == "serial":
        _in_turn(program, "all lanes", LANES, ("gpu", "h2d"), beside=False)
    elif kind == "barrier":
        _in_turn(program, "gpu and cpu", ("gpu", "cpu"), ("gpu", "cpu"), beside=True)
    elif program.block == program.outer.gpu_batch:
        for variable, phase in zip(("admission", "others"), program.phases, strict=True):
            lanes = [LANES.index("gpu"), LANES.index("cpu")]
            per_sequence = phase.per_sequence[lanes].sum(axis=0) - phase.beside_cpu
            terms, constant = program.scaled(phase.per_pass[lanes].sum(axis=0), per_sequence)
            program.add(f"gpu and cpu in turn, {variable}", terms | {variable: -1.0}, -constant)


def _in_turn(
    program: Program, name: str, cells: tuple[LaneName, ...], loads: tuple[LaneName, ...], *, beside: bool
) -> None:
    """Add rows for lanes that never run together: those of cells, and those of the loads of layers."""
    of_cells, of_loads = ([LANES.index(lane) for lane in lanes] for lanes in (cells, loads))
    phases = [
        (
            phase.per_pass[of_loads].sum(axis=0),
            phase.per_sequence[of_cells].sum(axis=0) - beside * phase.beside_cpu,
            phase.carry[of_cells].sum(axis=0),
        )
        for phase in program.phases
    ]
    for variable, (per_pass, per_sequence, carry) in zip(("admission", "others"), phases, strict=True):
        terms, constant = program.demand(per_pass - carry, per_sequence)
        program.add(f"{name} in turn, {variable}", terms | {variable: -1.0}, -constant)
    whole = [sum(parts) for parts in zip(*phases, strict=True)]
    terms, constant = program.demand(whole[0], whole[1])
    program.add(f"{name} in turn, period", terms | {"admission": -1.0, "others": -1.0}, -constant)
