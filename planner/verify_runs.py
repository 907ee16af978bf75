"""The runs of a proof: each case in every round, kept as soon as it is there, so that a proof can go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.resident import peak_beyond
from planner.verify import Outcome, operation_times
from planner.verify_cases import Case
from simulator.errors import InputError
from simulator.hardware import TIERS, TierName
from simulator.layout import lay_out
from simulator.schema import Record, decode, read_json
from simulator.simulate import simulate
from simulator.trace import from_simulation, read_trace, write_trace
from simulator.trace_pair import pair_traces
from simulator.units import one_line

if TYPE_CHECKING:
    from executor.checkpoint import Checkpoint


class Ran(Record):
    """A run that is over: its time [s], tokens, bytes allocated by tier, and the most it really took [B]."""

    seconds: float
    tokens: int
    memory: dict[TierName, float]
    resident: float | None

    @property
    def rate(self) -> float:
        """Generated tokens over time. [tok/s]"""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Where:
    """What plays the GPU's part, where the disk tier goes, and where outcomes are kept."""

    device: str
    scratch: Path
    out: Path


def make_folder(folder: Path) -> None:
    """Make a folder for what is found.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        raise InputError(one_line(f"--out {folder}: cannot be made ({reason})")) from None


class Proof:
    """Runs cases and gathers what came of them. A folder for each case holds its plan, runs and traces.

    Args:
        cases: what is run. What a folder has of another plan is thrown away.
        checkpoint: the model.
        where: it runs.
    """

    def __init__(self, cases: Sequence[Case], checkpoint: Checkpoint, where: Where) -> None:
        self._cases, self._checkpoint, self._where = cases, checkpoint, where
        for number, case in enumerate(cases):
            folder, text = self._folder(number), case.plan.to_json()
            make_folder(folder)
            plan = folder / "plan.json"
            if not plan.is_file() or plan.read_text(encoding="utf-8") != text:
                for old in folder.glob("*.json"):
                    old.unlink()
                plan.write_text(text, encoding="utf-8")

    def run(self, number: int, turn: int) -> None:
        """Run a case once, unless that was done before."""
        folder, case = self._folder(number), self._cases[number]
        kept = folder / f"run-{turn + 1}.json"
        if kept.is_file():
            return
        from executor.engine import Listener, run  # noqa: PLC0415 - needs torch
        from executor.probe import full_requests  # noqa: PLC0415

        requests = full_requests(case.plan.workload, case.plan.model)
        nobody = Listener(lambda _index, _result: None)
        where = {"device": self._where.device, "scratch": self._where.scratch}
        outcome, resident = peak_beyond(
            lambda: run(case.plan, self._checkpoint, requests, **where, listener=nobody)  # type: ignore[arg-type]
        )
        used = {tier: sum(outcome.memory.get(tier, {}).values()) for tier in TIERS}
        write_trace(outcome.trace, folder / f"measured-{turn + 1}.json")
        ran = Ran(seconds=outcome.seconds, tokens=outcome.tokens, memory=used, resident=resident)
        kept.write_text(ran.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def outcomes(self, repeats: int) -> list[Outcome]:
        """Gather all cases that were run so many times."""
        return [self._outcome(number, repeats) for number in range(len(self._cases))]

    def _folder(self, number: int) -> Path:
        return self._where.out / f"{number + 1:02d}"

    def _outcome(self, number: int, repeats: int) -> Outcome:
        """Lay the median run beside its prediction."""
        folder, case = self._folder(number), self._cases[number]
        files = [folder / f"run-{turn + 1}.json" for turn in range(repeats)]
        ran = [decode(Ran, read_json(file), str(file)) for file in files]
        rates = [one.rate for one in ran]
        middle = int(np.argsort(rates)[len(rates) // 2])
        plan = case.plan
        placed = lay_out(plan.model, plan.runtime, plan.workload, plan.policy)
        _, simulation = simulate(placed, plan.hardware.profile, None)
        predicted = from_simulation(simulation, placed)
        write_trace(predicted, folder / "predicted.json")
        measured = read_trace(folder / f"measured-{middle + 1}.json")
        sure = plan.throughput_range
        return Outcome(
            kind=case.kind,
            schedule=plan.schedule,
            batch=plan.policy.gpu_batch,
            groups=plan.policy.num_groups,
            prompt_len=plan.workload.prompt_len,
            gen_len=plan.workload.gen_len,
            predicted=plan.predictions.throughput_tok_s,
            low=sure.low_tok_s if sure else None,
            high=sure.high_tok_s if sure else None,
            measured=float(np.median(rates)),
            repeats=tuple(rates),
            memory={tier: (plan.memory[tier].peak, ran[middle].memory[tier]) for tier in TIERS},
            resident=ran[middle].resident if self._where.device == "cpu" else None,
            operations=operation_times(pair_traces(predicted, measured)),
        )
