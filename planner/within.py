"""Plans that keep a limit of latency in the simulation, not only by the program.

The program overlaps everything perfectly. It fills the limit with the block that it would finish in time,
which takes longer in truth, the more so the smaller the groups are. So around the kinds of plans that the
search prefers, blocks are fitted to the limit by simulation, for one group size after the other, as long as
that helps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from planner.blocks import Solver
from planner.choices import group_sizes, known_groups, unit_of
from planner.evaluate import Evaluated, evaluate_block
from planner.finalists import SIMULATED, simulated
from planner.problem import Outer
from planner.search import FAMILY_RANGE, SearchResult, search
from simulator.simulate import Prediction

#: Kinds of plans (bits, schedule, homes) that are fitted.
_KINDS = 2
#: Blocks that are simulated for one group size.
_STEPS = 4
#: An estimate that misses the next whole block by this share of it is worth a try of that.
_NEARLY = 0.2
#: A block that uses this much of the limit is not made larger.
_FULL = 0.98
#: A plan that takes less than this much of a limit is not held up by it.
_LOOSE = 0.9


def fitted_to(limit: float, result: SearchResult, tried: list[Evaluated]) -> list[Evaluated]:
    """Fit blocks to a limit by simulation, unless the limit plainly does not bind the best that there is.

    Near the least latency the program promises more of staggered admissions than they keep, and the search
    has not pursued zig-zag then; so that is tried too. Gives everything that was simulated.
    """
    best = max(tried, key=lambda one: one.prediction.throughput_tok_s)
    if best.prediction.latency_s <= _LOOSE * limit:
        return []
    problem, options = result.solver.problem, result.solver.options
    solver = Solver(replace(problem, max_latency=None), options)
    fitting = Fitting(solver, limit)
    fitting.around(tried)
    free = options.schedule == "auto" and options.pins.get("stagger") is None
    if free and "zigzag" in problem.runtime.schedules and fitting.best < FAMILY_RANGE * result.bound_tok_s:
        zigzag = search(problem, replace(options, schedule="zigzag"))
        some = simulated(zigzag.solver, zigzag.candidates[:SIMULATED])
        fitting.around(some)
        fitting.found += some
        solver.programs += zigzag.solver.programs
    result.solver.programs += solver.programs
    return fitting.found


@dataclass
class Fitting:
    """Fits blocks to a limit of latency.

    Attributes:
        solver: of the problem without the limit.
        limit: from admission to last token. [s]
        found: everything that was simulated.
        slope: of latency over the block, as far as it is known. [s]
    """

    solver: Solver
    limit: float
    found: list[Evaluated] = field(default_factory=list)
    slope: float = 0.0

    @property
    def best(self) -> float:
        """Give the best throughput within the limit so far, 0 for none. [tok/s]"""
        kept = (one.prediction for one in self.found if one.prediction.latency_s <= self.limit)
        return max((seen.throughput_tok_s for seen in kept), default=0.0)

    def around(self, tried: list[Evaluated]) -> None:
        """Fit plans like those that were tried, the most promising kinds first."""
        kinds: dict[object, Evaluated] = {}
        for one in sorted(tried, key=self._promise, reverse=True):
            outer = one.candidate.outer
            kinds.setdefault((outer.shape, outer.stagger, outer.pins), one)
        for one in list(kinds.values())[:_KINDS]:
            if one.candidate.effective_tok_s > self.best:  # of its kind no plan within the limit is faster
                self._climb(one)

    def _promise(self, one: Evaluated) -> float:
        """Estimate the throughput of a plan whose block is made as small as the limit asks. [tok/s]"""
        seen = one.prediction
        return seen.throughput_tok_s * min(1.0, self.limit / seen.latency_s)

    def _climb(self, start: Evaluated) -> None:
        """Try larger group sizes than a plan's, or else smaller ones, while they are better."""
        outer, policy = start.candidate.outer, start.placed.policy
        sizes = group_sizes(self.solver.problem, self.solver.options, outer)
        at = min(range(len(sizes)), key=lambda i: abs(sizes[i] - policy.gpu_batch))
        best, block = self._fitted(outer, policy.gpu_batch, policy.block, start.prediction)
        for step in (1, -1):
            index, top = at + step, best
            while 0 <= index < len(sizes):
                value, fitted = self._fitted(outer, sizes[index], block)
                # Where nothing keeps the limit yet, smaller groups may.
                if value <= best and not (value == best == 0.0 and step < 0):
                    break
                best, block, index = value, fitted, index + step
            if best > top:  # it has one peak
                break

    def _fitted(
        self, outer: Outer, size: int, block: int, seen: Prediction | None = None
    ) -> tuple[float, int]:
        """Fit the block for one group size, by the secant through what was played.

        ``seen`` is what the simulation said of the given block, if it was played. Gives the best throughput
        within the limit and its block; 0 and the given one if there is none.
        """
        outer = replace(outer, gpu_batch=size, smallest_batch=None)
        best = (0.0, block)
        played: dict[int, float] = {}
        if seen is not None:
            played[block] = seen.latency_s
            best = (seen.throughput_tok_s if seen.latency_s <= self.limit else 0.0, block)
        for aim in self._blocks(outer, block, played):
            one = evaluate_block(self.solver, outer, aim, "fitted to the latency limit")
            if one is None:
                break
            played[one.placed.policy.block] = one.prediction.latency_s
            self.found.append(one)
            if one.prediction.latency_s <= self.limit:
                best = max(best, (one.prediction.throughput_tok_s, one.placed.policy.block))
        return best

    def _blocks(self, outer: Outer, block: int, played: dict[int, float]) -> Iterator[int]:
        """Say which block to play next, given the latencies of those that were."""
        unit = unit_of(self.solver.problem, outer)
        groups = known_groups(self.solver.problem, self.solver.options)
        if groups is not None:
            if not played:
                yield outer.gpu_batch * groups
            return
        prompts = self.solver.problem.workload.num_prompts
        most = prompts // unit if prompts is not None else sys.maxsize
        aim = max(1, min(block // unit, most)) * unit
        for _ in range(_STEPS):
            if aim not in played:
                yield aim
            if not played:
                return
            aim = max(1, min(int(self._crossing(played) / unit + _NEARLY), most)) * unit
            longest = max((size for size, time in played.items() if time <= self.limit), default=0)
            if aim in played or aim < longest or played.get(longest, 0.0) > _FULL * self.limit:
                return

    def _crossing(self, played: dict[int, float]) -> float:
        """Estimate the block that just keeps the limit: latency is about linear in the block."""
        (last, time), *others = reversed(played.items())
        if others and others[0][0] != last:
            self.slope = max(0.0, (time - others[0][1]) / (last - others[0][0]))
        # Of another group size the slope is about the same.
        return last + (self.limit - time) / self.slope if self.slope else last * self.limit / time
