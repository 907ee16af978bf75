"""The run of a plan: the generator's schedule on a checkpoint, block by block, with lanes for all it uses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from executor.cache_steps import Step
from executor.cast import Cast
from executor.cells import Cell, Group
from executor.checkpoint import Checkpoint
from executor.lanes import Lanes, Played, split_threads
from executor.measured import joined, trace_of
from executor.memory import DTYPES, Memory
from executor.sampling import Request, Result
from executor.script import Script
from executor.steps import Steps
from planner.plan import Plan
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import TierName
from simulator.layout import Placed, lay_out
from simulator.operations import LAYER_OPERATIONS, OPERATIONS
from simulator.passes import Pass, Window, window
from simulator.trace import Trace

_OF_ALL = (*LAYER_OPERATIONS, "dequantize_weights")  # what is done for groups that come later too
_FIRST = Window((Pass(0, ((0, 0),)),), 1.0, 1.0)  # of one cohort alone, to count its tasks
_TASKS = 200_000  # of a schedule at most; a longer run is played in several


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        seconds: wall time from the first task to the last. [s]
        tokens: how many were generated.
        trace: what every task did, and when.
        memory: bytes that were allocated, by tier and use. [B]
    """

    seconds: float
    tokens: int
    trace: Trace
    memory: dict[TierName, dict[str, float]]


@dataclass(frozen=True)
class Listener:
    """Who hears how a run gets on; the functions are called from its threads.

    Attributes:
        finish: every result, with the index of its request, as soon as it is known.
        tokens: how many tokens a step generated.
        prepare: before the first of them: what is done, how much of it, and of how much.
    """

    finish: Callable[[int, Result], None]
    tokens: Callable[[int], None] = lambda _count: None
    prepare: Callable[[str, int, int], None] = lambda _what, _done, _total: None


def run(
    plan: Plan,
    checkpoint: Checkpoint,
    requests: Sequence[Request],
    *,
    device: str,
    scratch: Path,
    listener: Listener,
) -> Outcome:
    """Run a plan.

    Args:
        plan: what is run.
        checkpoint: the model that it is for.
        requests: prompts, none longer than the plan's.
        device: ``cpu``, or ``cuda`` with or without a number.
        scratch: a folder on the disk whose space the plan uses for cache and activations.
        listener: hears of results and progress.

    Raises:
        PlannerError: the run failed; results given before that stand.
        KeyboardInterrupt: the user interrupted; likewise.
    """
    return execute(
        _placed(plan, checkpoint), checkpoint, requests, torch.device(device), scratch, listener=listener
    )


def execute(
    placed: Placed,
    checkpoint: Checkpoint,
    requests: Sequence[Request],
    device: torch.device,
    scratch: Path,
    *,
    listener: Listener,
    logits: bool = False,
) -> Outcome:
    """Run a layout; see `run`. With ``logits``, results hold those of their tokens.

    Raises:
        InputError: the workload is one that can only be planned.
    """
    if placed.workload.scores:
        raise InputError("workload.gen_len: the engine only generates; take --gen-len 1 or more")
    if placed.workload.shared_prefix:
        raise InputError("workload.shared_prefix: the engine computes every prompt whole; take 0")
    memory = Memory(placed, checkpoint, device, scratch, partial(listener.prepare, "quantising blocks"))
    try:
        with torch.inference_mode():
            memory.weights.fill_homes(partial(listener.prepare, "loading weights"))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # lanes have streams of their own, which do not wait for this one
        return _Run(placed, memory, requests, listener, logits).play()
    finally:
        memory.close()


def _placed(plan: Plan, checkpoint: Checkpoint) -> Placed:
    """Lay the plan out again.

    Raises:
        InputError: the plan is not for this engine, or not for this checkpoint.
    """
    placed = lay_out(plan.model, plan.runtime, plan.workload, plan.policy)
    if placed.layout != plan.layout:
        raise InputError("plan: its layout is not that of this version's policy; make the plan again")
    wrong = next((t for t in checkpoint.tensors.values() if t.dtype != DTYPES[plan.model.dtype]), None)
    if wrong is not None:
        raise InputError(
            f"{wrong.file}: tensor {wrong.name} is {wrong.dtype}, config.json says {plan.model.dtype}; "
            "save all tensors in that type"
        )
    return placed


class _Run:
    """A run in progress: which groups there are, and what has been generated."""

    def __init__(
        self,
        placed: Placed,
        memory: Memory,
        requests: Sequence[Request],
        listener: Listener,
        keep: bool,
    ) -> None:
        self._placed, self._memory, self._requests = placed, memory, requests
        self._listener, self._keep = listener, keep
        self._steps = Steps(memory, self._accept, placed.policy.attention_top)
        self._lanes = Lanes(memory.device, split_threads(memory.device, os.cpu_count() or 1))
        self._size = placed.policy.gpu_batch
        # The longest prompts come first, so that those of a group need little padding.
        by_length = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt))
        self._queue = by_length
        self._groups: dict[int, Group | None] = {}
        self._left = 0
        self._tokens = 0
        work = placed.workload
        self._full = all(len(each.prompt) == work.prompt_len for each in requests)
        self._playing: Played | None = None

    def play(self) -> Outcome:
        """Play all blocks."""
        zero = time.perf_counter()
        parts: list[Trace] = []
        starts = []
        for queue, windows in self._blocks():
            starts.append(sum(map(len, parts)))
            self._groups.clear()
            self._left = len(queue)
            for one in windows:
                parts.append(self._play(one, queue, zero))
                if not self._left:
                    break
            self._memory.cache.forget()
        seconds = time.perf_counter() - zero
        used = self._memory.used()
        return Outcome(seconds, self._tokens, joined(parts, used, self._about(starts)), used)

    def _blocks(self) -> Iterator[tuple[list[int], list[Window]]]:
        """List what is played: the requests of a block, or of the whole run, and the passes."""
        placed, block = self._placed, self._placed.policy.block
        cohorts = placed.policy.cohorts(placed.workload.gen_len)
        steady = cohorts > 1
        per_pass = max(1, len(generate(placed, played=_FIRST)) * cohorts)
        for start in range(0, len(self._queue), len(self._queue) if steady else block):
            queue = self._queue[start:] if steady else self._queue[start : start + block]
            workload = placed.workload.model_copy(update={"num_prompts": len(queue)})
            passes = window(placed.policy, workload, None).passes
            step = max(1, _TASKS // per_pass)
            windows = [
                Window(passes[first : first + step], len(queue), 1.0) for first in range(0, len(passes), step)
            ]
            yield queue, windows

    def _play(self, played: Window, queue: list[int], zero: float) -> Trace:
        """Play some passes of a block."""
        schedule = generate(self._placed, played=played)
        script = Script.of(schedule, self._placed.model.num_layers + 1)
        moved = schedule.bytes.copy()
        cast = Cast(self._placed, played, lambda number: self._group(number, queue))
        number_of_pass = self._placed.model.num_layers + 1
        names = [OPERATIONS[code].name for code in schedule.operation.tolist()]

        def perform(number: int) -> None:
            name = names[number]
            cell = cast.cell(schedule, script, number)
            if name not in _OF_ALL and (cell.group is None or cell.group.idle or not cell.sequences):
                moved[number] = 0.0
                self._steps.skip(name, cell, int(schedule.layer[number]))
                return
            layer = int(schedule.layer[number])
            step = Step(
                cell,
                layer,
                int(script.part[number]),
                int(script.parts[number]),
                int(script.weights[number]),
                int(script.staging[number]),
                int(schedule.pass_index[number]) * number_of_pass + layer,
            )
            nbytes = self._steps.perform(name, step)
            moved[number] = nbytes or moved[number]

        self._playing = Played(schedule, self._lanes.streams, zero)
        self._lanes.play(self._playing, perform)
        return trace_of(self._playing, moved)

    def _group(self, number: int, queue: list[int]) -> Group | None:
        """Give a group by its number, made of the next requests when it is first met."""
        if number not in self._groups:
            members = queue[number * self._size : (number + 1) * self._size]
            ends = self._memory.facts.end_tokens
            asked = [self._requests[index] for index in members]
            stops = [ends if request.stop is None else request.stop for request in asked]
            made = Group(number, members, asked, stops) if members else None
            self._groups.setdefault(number, made)  # several lanes may meet a group first: they share one
        return self._groups[number]

    def _accept(self, cell: Cell, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        """Add chosen tokens to their sequences; tell of those that are finished."""
        group = cell.group
        assert group is not None
        count = 0
        for row, (index, token) in enumerate(zip(cell.sequences, tokens.tolist(), strict=True)):
            if not group.active[index]:
                continue
            count += 1
            if self._keep:
                group.logits[index].append(logits[row].float().cpu())
            result = group.accept(index, token)
            if result is not None:
                self._left -= 1
                self._full &= len(result.tokens) == self._placed.workload.gen_len
                self._listener.finish(group.members[index], result)
        self._tokens += count
        self._listener.tokens(count)
        if not self._left and self._playing is not None:
            self._playing.stop()

    def _about(self, starts: list[int]) -> dict[str, str]:
        """Say what was run, on what, and where blocks begin in the trace."""
        device = self._memory.device
        return {
            "model": self._placed.model.name,
            "runtime": self._placed.runtime.name,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "dtype": self._placed.model.dtype,
            "full_length": "yes" if self._full else "no",
            "block_starts": ",".join(map(str, starts)),
        }
