"""Play a plan's schedule task by task, hold it against the plan, and write its timeline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from planner.evaluate import passes_within
from planner.plan import Plan
from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.layout import Placed, lay_out
from simulator.profiles import load_profile, override_profile
from simulator.simulate import Prediction, Simulation, simulate
from simulator.trace import Trace, from_simulation, write_trace
from simulator.units import GIB

#: More tasks than this are sampled by passes unless the user says how many passes to play.
MAX_TASKS = 4_000_000


@dataclass(frozen=True)
class Replay:
    """A plan as played: what the plan promised, what came out, and the timeline's file if one was written."""

    plan: Plan
    prediction: Prediction
    tasks: int
    passes: int
    sampled: bool
    high_water: dict[str, float]
    written: Path | None

    def to_json(self) -> str:
        """Write the outcome for programs. Bytes, seconds, tokens per second."""
        return (
            json.dumps(
                {
                    "planned_tok_s": self.plan.predictions.throughput_tok_s,
                    "predictions": self.prediction.model_dump(mode="json"),
                    "tasks": self.tasks,
                    "passes": self.passes,
                    "sampled": self.sampled,
                    "memory_high_water": self.high_water,
                    "memory_bound": {tier: memory.peak for tier, memory in self.plan.memory.items()},
                    "trace": str(self.written) if self.written else None,
                },
                indent=2,
            )
            + "\n"
        )

    def text(self) -> str:
        """Write the outcome for people."""
        seen, promised = self.prediction, self.plan.predictions.throughput_tok_s
        how = "a sample of the passes" if self.sampled else "every pass of the window"
        lines = [
            f"{self.plan.model.name} on {self.plan.hardware.name}: "
            f"{self.tasks} tasks in {self.passes} passes, {how}",
            f"throughput  {seen.throughput_tok_s:.4g} tok/s (the plan says {promised:.4g})",
            f"latency     {seen.latency_s:.4g} s, "
            f"of which {seen.prefill_s:.4g} s in the pass with the prompt",
            "busy        " + ", ".join(f"{lane} {100 * share:.1f} %" for lane, share in seen.busy.items()),
            "memory      "
            + ", ".join(
                f"{tier} {used / GIB:.4g} of at most {self.plan.memory[tier].peak / GIB:.4g} GiB"  # type: ignore[index]
                for tier, used in self.high_water.items()
            ),
        ]
        if self.written is not None:
            lines.append(f"written: {self.written} (open it at https://ui.perfetto.dev)")
        return "\n".join(lines) + "\n"


def replay(
    plan: Plan,
    hardware: str | None = None,
    overrides: tuple[str, ...] = (),
    passes: int | None = None,
    trace_file: Path | None = None,
) -> Replay:
    """Play a plan on its own machine or another one.

    Raises:
        InputError: the plan's layout is not what its policy makes, or the trace cannot be written.
    """
    profile = load_profile(hardware) if hardware is not None else plan.hardware.profile
    profile = override_profile(profile, overrides)
    placed = lay_out(plan.model, plan.runtime, plan.workload, plan.policy)
    if placed.layout != plan.layout:
        raise InputError(
            "plan.layout: not the layout of plan.policy; make the plan again instead of editing it"
        )
    limit = passes if passes is not None else _limit(placed)
    prediction, simulation = simulate(placed, profile, limit)
    trace = from_simulation(simulation, placed, _metadata(plan, profile))
    if trace_file is not None:
        _write(trace, trace_file)
    return Replay(
        plan=plan,
        prediction=prediction,
        tasks=len(simulation.schedule),
        passes=len(simulation.schedule.window.passes),
        sampled=_is_sampled(simulation),
        high_water={tier: float(size) for tier, size in trace.high_water().items()},
        written=trace_file,
    )


def _limit(placed: Placed) -> int | None:
    """Play all passes unless that takes too many tasks."""
    within = passes_within(placed.model.num_layers, placed.workload.passes, placed.policy, MAX_TASKS)
    return None if within >= placed.workload.passes else within


def _is_sampled(simulation: Simulation) -> bool:
    return any(one.weight > 1.0 for one in simulation.schedule.window.passes)


def _metadata(plan: Plan, profile: HardwareProfile) -> dict[str, str]:
    return {
        "model": plan.model.name,
        "hardware": profile.name,
        "hardware_hash": profile.content_hash,
        "runtime": plan.runtime.name,
        "schedule": plan.schedule,
        "planner_version": plan.planner_version,
    }


def _write(trace: Trace, path: Path) -> None:
    try:
        write_trace(trace, path)
    except OSError as error:
        raise InputError(
            f"--trace {path}: cannot be written ({(error.strerror or 'unknown').lower()})"
        ) from None
