"""What ``planner run`` shows: speed and time left on a terminal, at the end what came out beside the plan."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from planner.plan import Plan
from planner.words import duration, size
from simulator.hardware import TIERS, TierName
from simulator.units import one_line


@dataclass(frozen=True)
class Report:
    """A run that is over, beside what its plan promised.

    Attributes:
        plan: the plan.
        device: what played the GPU's part.
        prompts: how many the file has.
        before: how many of them were answered before this run.
        out: the file of answers.
        seconds: time of generating; 0 if nothing was left to answer. [s]
        tokens: generated in it.
        memory: allocated by tier and use. [B]
        trace: the file of the measured trace, if one was written.
    """

    plan: Plan
    device: str
    prompts: int
    before: int
    out: Path
    seconds: float = 0.0
    tokens: int = 0
    memory: Mapping[TierName, Mapping[str, float]] = field(default_factory=dict)
    trace: Path | None = None

    @property
    def answers(self) -> int:
        """Answers that this run wrote."""
        return self.prompts - self.before

    @property
    def throughput(self) -> float | None:
        """Generated tokens over time; None if nothing was generated. [1/s]"""
        return self.tokens / self.seconds if self.seconds > 0 else None

    @property
    def ratio(self) -> float | None:
        """Throughput over the predicted one."""
        if self.throughput is None:
            return None
        return self.throughput / self.plan.predictions.throughput_tok_s

    def to_json(self) -> dict[str, Any]:
        """Give the outcome for programs. Bytes, seconds, tokens per second."""
        return {
            "prompts": self.prompts,
            "answered_before": self.before,
            "answers": self.answers,
            "device": self.device,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "throughput_tok_s": self.throughput,
            "predicted_tok_s": self.plan.predictions.throughput_tok_s,
            "ratio": self.ratio,
            "memory": {
                tier: {
                    "measured": self._used(tier),
                    "planned_peak": self.plan.memory[tier].peak,
                    "uses": dict(self.memory.get(tier, {})),
                }
                for tier in TIERS
            },
            "out": str(self.out),
            "trace": str(self.trace) if self.trace else None,
        }

    def text(self) -> str:
        """Write the outcome for people."""
        if not self.answers:
            return one_line(f"all {self.prompts} prompts are answered already in {self.out}") + "\n"
        before = f", {self.before} were answered before" if self.before else ""
        lines = [
            f"answers     {self.answers} of {self.prompts}{before}",
            f"generated   {self.tokens} tokens in {duration(self.seconds)} on {self.device}",
            *self._speed(),
            *(
                f"memory      {tier}: {size(self._used(tier))}, planned at most {size(planned.peak)}"
                for tier in TIERS
                if (planned := self.plan.memory[tier]).peak or self._used(tier)
            ),
            one_line(f"written: {self.out}"),
        ]
        if self.trace is not None:
            lines.append(one_line(f"written: {self.trace} (open it at https://ui.perfetto.dev)"))
        return "\n".join(lines) + "\n"

    def _used(self, tier: TierName) -> float:
        """Sum the uses of a tier. [B]"""
        return float(sum(self.memory.get(tier, {}).values()))

    def _speed(self) -> list[str]:
        if self.throughput is None:
            return []
        predicted = self.plan.predictions.throughput_tok_s
        return [
            f"throughput  {self.throughput:.4g} tok/s, {self.ratio:.3g} x the predicted {predicted:.4g} tok/s"
        ]


class Watch:
    """What a terminal shows meanwhile: tokens, speed, time left. Callable from any thread."""

    def __init__(self, tokens: int, plan: Plan) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(bar_width=12), _Speed(plan.predictions.throughput_tok_s))
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.progress.add_task("", total=tokens)
        self._total, self._lock = tokens, threading.Lock()

    def prepare(self, what: str, done: int, total: int) -> None:
        """Say what is done before the first token; time counts from the end of that."""
        self.progress.update(self._task, stage=f"{what}, {100 * done // max(1, total)} %")
        if done >= total:
            self.progress.reset(self._task, stage="")

    def advance(self, count: int) -> None:
        """Count tokens."""
        self.progress.advance(self._task, count)

    def spare(self, count: int) -> None:
        """Drop tokens that a finished answer did not need."""
        with self._lock:
            self._total -= count
            self.progress.update(self._task, total=self._total)


class _Speed(ProgressColumn):
    """Tokens done, their speed beside the predicted one, and the time left."""

    def __init__(self, predicted: float) -> None:
        self._predicted = predicted
        super().__init__()

    def render(self, task: Task) -> Text:
        """Write the numbers; time passes before the first token comes."""
        if task.fields.get("stage"):
            return Text(task.fields["stage"], no_wrap=True)
        total, speed = task.total or 0.0, task.completed / task.elapsed if task.elapsed else 0.0
        left = f", {duration((total - task.completed) / speed)} left" if speed else ""
        return Text(
            f"{task.completed:.0f}/{total:.0f} tokens, {speed:.4g} tok/s "
            f"(predicted {self._predicted:.4g}){left}",
            no_wrap=True,
        )
