"""Exact optima by search, for instances small enough, and the schedules they are compared with.

Words as in docs/bounds.md: a row is a sequence, a square is one layer of one step of one row, and a row that
has done ``a`` squares is at layer ``a % l`` of step ``a // l``. One unit of KV is one token at one layer.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Self

import numpy as np

State = tuple[int, ...]


@dataclass(frozen=True)
class Instance:
    """Equal rows, a capacity for live KV, and the rule by which KV is freed.

    Lean frees layer j's KV once the last step has passed layer j; otherwise, as in the FlexGen paper's
    section 4.1, a row's KV is freed when its last square is done.
    """

    layers: int
    prompt_len: int
    gen_len: int
    capacity: int
    lean: bool

    @property
    def end(self) -> int:
        """The number of squares of a row."""
        return self.layers * self.gen_len

    @cached_property
    def held(self) -> list[int]:
        """Live KV of a row that has done a squares, for a = 0 .. end."""
        return [self._held(done) for done in range(self.end)] + [0]

    def _held(self, done: int) -> int:
        step, layer = divmod(done, self.layers)
        ahead = self.prompt_len + step - 1 if step else 0
        behind = 0 if self.lean and step == self.gen_len - 1 else self.prompt_len + step
        return layer * behind + (self.layers - layer) * ahead

    @property
    def peak(self) -> int:
        """The most KV one row holds at any time."""
        return max(self.held)

    @property
    def block(self) -> int:
        """The largest zig-zag block: the rows that fit at their peak."""
        return self.capacity // self.peak

    @property
    def k_row(self) -> int:
        """KV units one row reads."""
        return self.layers * sum(self.prompt_len + step - 1 for step in range(1, self.gen_len))

    def per_load_bound(self, num_rows: int) -> int:
        """Layer loads of any schedule: the rows a load serves are all live just before and just after it."""
        loads = 0
        for layer in range(self.layers):
            visits = range(layer, self.end, self.layers)
            before = sum(self.held[done] for done in visits)
            after = sum(self.held[done + 1] for done in visits)
            loads += max(self.gen_len, -(-num_rows * max(before, after) // self.capacity))
        return loads

    def paper_bound(self, num_rows: int) -> int:
        """The lower bound as the paper's proof charges it: every square of token i costs l (s + i - 1)."""
        memory = sum(self.layers * (self.prompt_len + token) for token in range(self.gen_len))
        return self.layers * -(-num_rows * memory // self.capacity)


def loads_after(instance: Instance, state: State, waiting: int) -> Iterator[tuple[State, int]]:
    """Yield what one layer load can make of the rows in flight: (their sorted progress, rows admitted).

    A load serves each row at most once (l >= 2). Rows whose KV does not grow are always advanced, which
    never hurts; of the others, every choice that fits is tried.
    """
    held = instance.held
    for layer in range(instance.layers):
        fixed, growing = _split(instance, state, layer)
        if layer == 0 and waiting:
            growing[0] = waiting
        room = instance.capacity - sum(held[done] for done in fixed)
        room -= sum(held[done] * count for done, count in growing.items())
        for chosen in _choices(list(growing.items()), held, room):
            rows = list(fixed)
            for (done, count), advance in zip(growing.items(), chosen, strict=True):
                rows += [done + 1] * advance + [done] * (count - advance if done else 0)
            after = tuple(sorted(rows))
            if after != state:
                yield after, chosen[list(growing).index(0)] if 0 in growing else 0


def _split(instance: Instance, state: State, layer: int) -> tuple[list[int], dict[int, int]]:
    """Return the rows a load leaves no choice about, and those whose KV would grow: (progress: count)."""
    fixed: list[int] = []
    growing: dict[int, int] = {}
    for done in state:
        if done % instance.layers != layer:
            fixed.append(done)
        elif instance.held[done + 1] > instance.held[done]:
            growing[done] = growing.get(done, 0) + 1
        elif done + 1 < instance.end:
            fixed.append(done + 1)
    return fixed, growing


def _choices(classes: list[tuple[int, int]], held: Sequence[int], room: int) -> Iterator[tuple[int, ...]]:
    """Yield how many rows of each class advance, in all ways that fit into ``room``."""
    if not classes:
        yield ()
        return
    (done, count), *rest = classes
    growth = held[done + 1] - held[done]
    for advance in range(min(count, room // growth) + 1):
        for others in _choices(rest, held, room - advance * growth):
            yield advance, *others


def optimal_loads(instance: Instance, num_rows: int) -> int:
    """Return the fewest layer loads of any schedule, by breadth-first search over loads."""
    frontier: set[tuple[int, State]] = {(num_rows, ())}
    seen = set(frontier)
    for loads in itertools.count():
        if (0, ()) in frontier:
            return loads
        reached = {
            (waiting - admitted, after)
            for waiting, state in frontier
            for after, admitted in loads_after(instance, state, waiting)
        }
        frontier = reached - seen
        seen |= frontier
        assert frontier, "the capacity is below one row's peak"
    raise AssertionError


def brute_force_loads(instance: Instance, num_rows: int) -> int:
    """Return the fewest layer loads, by 0-1 search by single squares on (progress, loaded layer)."""
    held, end = instance.held, instance.end
    start = ((0,) * num_rows, -1)
    best = {start: 0}
    queue = deque([start])
    while queue:
        rows, loaded = queue.popleft()
        cost = best[rows, loaded]
        for row, done in enumerate(rows):
            if done == end:
                continue
            after = (*rows[:row], done + 1, *rows[row + 1 :])
            if sum(held[done] for done in after) > instance.capacity:
                continue
            layer = done % instance.layers
            step = int(layer != loaded)
            if cost + step < best.get((after, layer), math.inf):
                best[after, layer] = cost + step
                (queue.append if step else queue.appendleft)((after, layer))
    return min(cost for (rows, _), cost in best.items() if set(rows) == {end})


def diagonal_loads(instance: Instance, num_rows: int, group: int, stagger: int) -> int | None:
    """Return the layer loads of admitting ``group`` rows every ``stagger`` passes; None if it does not fit.

    Within a layer the rows that end go first and the admitted ones last.
    """
    progress: list[int] = []
    passes = 0
    while passes == 0 or any(done < instance.end for done in progress) or len(progress) < num_rows:
        if passes % stagger == 0:
            progress += [0] * min(group, num_rows - len(progress))
        for _ in range(instance.layers):
            for row, done in enumerate(progress):
                if done < instance.end:
                    progress[row] += 1
                    if sum(instance.held[done] for done in progress) > instance.capacity:
                        return None
        passes += 1
    return passes * instance.layers


def best_diagonal(instance: Instance, num_rows: int) -> int:
    """Return the fewest layer loads over all group sizes and staggers; zig-zag is the stagger n."""
    tries = itertools.product(range(1, num_rows + 1), range(1, instance.gen_len + 1))
    loads = (diagonal_loads(instance, num_rows, group, stagger) for group, stagger in tries)
    return min(found for found in loads if found is not None)


def best_steady_diagonal(instance: Instance) -> Fraction:
    """Return the fewest layer loads per row in steady state over all group sizes and staggers."""
    rates = {}
    most = instance.capacity // min(instance.held[1:-1])
    for stagger in range(1, instance.gen_len + 1):
        for group in range(1, most + 1):
            rows = group * (2 * instance.gen_len // stagger + 2)  # filled, and once around
            if diagonal_loads(instance, rows, group, stagger) is None:
                break
            rates[group, stagger] = Fraction(instance.layers * stagger, group)
    return min(rates.values())


def optimal_rate(instance: Instance) -> Fraction:
    """Return the fewest layer loads per row in steady state: the cheapest cycle of the state graph.

    Newton's method on the ratio: at the current ratio, look for a cycle that is cheaper, and take its own.
    """
    graph = SteadyGraph.of(instance)
    ratio = Fraction(instance.end)
    while (cheaper := graph.cheaper_cycle(ratio)) is not None:
        ratio = cheaper
    return ratio


@dataclass(frozen=True)
class SteadyGraph:
    """The states of rows in flight while further rows always wait; an edge is a layer load.

    Edges are sorted by their target. ``squares`` is what an edge computes, ``end`` the squares of a row: over
    a cycle, squares / end is the number of rows finished.
    """

    source: np.ndarray
    target: np.ndarray
    squares: np.ndarray
    end: int

    @classmethod
    def of(cls, instance: Instance) -> Self:
        """Explore the states from the empty one."""
        number: dict[State, int] = {(): 0}
        edges: list[tuple[int, int, int]] = []
        todo: list[State] = [()]
        for state in todo:
            before = sum(state)
            for after, admitted in loads_after(instance, state, instance.capacity):
                if after not in number:
                    number[after] = len(todo)
                    todo.append(after)
                ended = len(state) + admitted - len(after)
                squares = sum(after) + ended * instance.end - before
                edges.append((number[after], number[state], squares))
        target, source, squares = np.array(sorted(edges), dtype=np.int64).T
        return cls(source, target, squares, instance.end)

    def cheaper_cycle(self, ratio: Fraction) -> Fraction | None:
        """Return loads per row of a cycle that costs less than ``ratio``, by Bellman-Ford, or None."""
        cost = ratio.denominator * self.end - ratio.numerator * self.squares
        first_in = np.flatnonzero(np.diff(self.target, prepend=-1))
        reached = self.target[first_in]
        distance = np.zeros(self.target.max() + 1, dtype=np.int64)
        parent = np.full(distance.shape, -1)  # the edge by which a state was last improved
        for sweep in itertools.count(1):
            through = distance[self.source] + cost
            best = np.minimum.reduceat(through, first_in)
            improved = np.zeros(distance.shape, dtype=bool)
            improved[reached] = best < distance[reached]
            if not improved.any():
                return None
            distance[reached] = np.minimum(best, distance[reached])
            chosen = np.flatnonzero(improved[self.target] & (through == distance[self.target]))
            parent[self.target[chosen]] = chosen
            if sweep % 8 == 0 and (cycle := self._cycle(parent)):
                return Fraction(len(cycle) * self.end, int(self.squares[cycle].sum()))
        raise AssertionError

    def _cycle(self, parent: np.ndarray) -> list[int]:
        """Return the edges of a cycle among the parent edges; empty if there is none."""
        checked = np.zeros(parent.shape, dtype=bool)
        for start in range(len(parent)):
            path: dict[int, int] = {}  # edges by the state they end in, in order
            state = start
            while parent[state] >= 0 and not checked[state] and state not in path:
                path[state] = int(parent[state])
                state = int(self.source[parent[state]])
            if state in path:
                return list(path.values())[list(path).index(state) :]
            checked[list(path)] = True
        return []


@dataclass(frozen=True)
class Residency:
    """Units in fast memory: of each layer's weights, and of each row's KV at each layer."""

    weights: tuple[int, ...]
    rows: tuple[tuple[int, tuple[int, ...]], ...]  # (squares done, KV units per layer), sorted

    def units(self) -> tuple[int, ...]:
        """All resident units in a fixed order: weights first, then row by row."""
        return self.weights + tuple(itertools.chain.from_iterable(kv for _, kv in self.rows))


def optimal_reads(instance: Instance, num_rows: int, layer_units: int, fast: int) -> int:
    """Return the fewest units read into fast memory by any schedule with any residency (lean rule).

    Dijkstra on (progress, units resident of every tensor). A square needs its layer's weights and the row's
    KV at that layer, in full; what it appends may stay or not. Eviction is by unit, only when room is needed.
    """
    layers = instance.layers
    start = Residency((0,) * layers, ((0, (0,) * layers),) * num_rows)
    best = {start: 0}
    serial = itertools.count()
    queue = [(0, next(serial), start)]
    while queue:
        cost, _, state = heapq.heappop(queue)
        if all(done == instance.end for done, _ in state.rows):
            return cost
        if cost > best[state]:
            continue
        for reads, after in _squares(instance, state, layer_units, fast):
            if cost + reads < best.get(after, math.inf):
                best[after] = cost + reads
                heapq.heappush(queue, (cost + reads, next(serial), after))
    raise AssertionError("the fast memory or the capacity is below one square's need")


def _squares(
    instance: Instance, state: Residency, layer_units: int, fast: int
) -> Iterator[tuple[int, Residency]]:
    """Yield every square that may come next, with the units it reads and every state it may leave."""
    layers, steps, prompt = instance.layers, instance.gen_len, instance.prompt_len
    live = sum(instance.held[done] for done, _ in state.rows)
    for row, (done, _) in enumerate(state.rows):
        if done == instance.end or state.rows[row] in state.rows[:row]:
            continue
        if live - instance.held[done] + instance.held[done + 1] > instance.capacity:
            continue
        step, layer = divmod(done, layers)
        cached = prompt + step - 1 if step else 0
        units = list(state.units())
        w_at, kv_at = layer, layers + row * layers + layer
        reads = layer_units - units[w_at] + cached - units[kv_at]
        units[w_at] = units[kv_at] = 0
        appended = 0 if step == steps - 1 else 1 if step else prompt
        for others in _evictions(units, sum(units) + layer_units + cached - fast):
            full = list(others)
            full[w_at], full[kv_at] = layer_units, 0 if step == steps - 1 else cached + appended
            for kept in _evictions(full, sum(full) - fast):
                yield reads, _residency(instance, state, row, kept)


def _residency(instance: Instance, state: Residency, row: int, kept: Sequence[int]) -> Residency:
    """Put units back into a state in which one row has done one more square; equal rows are sorted."""
    layers = instance.layers
    rows = [
        (done + (index == row), tuple(kept[layers * (index + 1) : layers * (index + 2)]))
        for index, (done, _) in enumerate(state.rows)
    ]
    return Residency(tuple(kept[:layers]), tuple(sorted(rows)))


def _evictions(units: Sequence[int], excess: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to take ``excess`` units away (none if it is negative)."""
    if excess <= 0:
        yield tuple(units)
        return
    if not units or excess > sum(units):
        return
    first, *rest = units
    for gone in range(min(first, excess) + 1):
        for others in _evictions(rest, excess - gone):
            yield first - gone, *others


@dataclass(frozen=True)
class Square:
    """What a square uses and what it appends; a unit is ("w", layer, i) or ("kv", row, layer, token)."""

    needs: tuple[tuple[object, ...], ...]
    appends: tuple[tuple[object, ...], ...]


def squares_in(order: Sequence[int], rows: Sequence[tuple[int, int]], widths: Sequence[int]) -> list[Square]:
    """Return the squares of rows (prompt, generated) done in ``order`` on layers of the given widths.

    Each entry of ``order`` names the row that does its next square. The last token's KV is not stored.
    """
    layers = len(widths)
    done = [0] * len(rows)
    squares = []
    for row in order:
        (prompt, gen), (step, layer) = rows[row], divmod(done[row], layers)
        done[row] += 1
        cached = prompt + step - 1 if step else 0
        stored = cached if step == gen - 1 else prompt + step
        kv = tuple(("kv", row, layer, token) for token in range(stored))
        weights = tuple(("w", layer, unit) for unit in range(widths[layer]))
        squares.append(Square(weights + kv[:cached], kv[cached:]))
    return squares


def live_peak(squares: Sequence[Square]) -> int:
    """Return the most KV units that are live (produced, and still to be read) between two squares."""
    last_read = {unit: at for at, square in enumerate(squares) for unit in square.needs}
    live: set[tuple[object, ...]] = set()
    peak = 0
    for at, square in enumerate(squares):
        live |= {unit for unit in square.appends if last_read.get(unit, -1) > at}
        live -= {unit for unit in square.needs if last_read[unit] == at}
        peak = max(peak, len(live))
    return peak


def furthest_use_reads(squares: Sequence[Square], fast: int, preload: bool = False) -> int:
    """Return the fewest reads for squares in this order: whatever is needed last is evicted first.

    All that a square needs must be resident at once; what it appends may stay if it is worth its place.
    With ``preload``, fast memory begins full of the weights that are best to have.
    """
    upcoming: dict[tuple[object, ...], deque[int]] = {}
    for at, square in enumerate(squares):
        for unit in square.needs:
            upcoming.setdefault(unit, deque()).append(at)
    resident = {unit for unit in upcoming if preload and unit[0] == "w"}
    reads = 0

    def keep(room: int) -> None:
        alive = sorted((unit for unit in resident if upcoming.get(unit)), key=lambda unit: upcoming[unit][0])
        resident.intersection_update(alive[:room])

    keep(fast)
    for square in squares:
        assert len(square.needs) <= fast, "a square does not fit"
        reads += sum(unit not in resident for unit in square.needs)
        resident.difference_update(square.needs)
        keep(fast - len(square.needs))
        resident.update(square.needs, square.appends)
        for unit in square.needs:
            upcoming[unit].popleft()
        keep(fast)
    return reads


def streamed(squares: Sequence[Square]) -> list[Square]:
    """Split every square so that its units need not be in fast memory together."""
    return [
        Square((unit,), square.appends if unit == square.needs[-1] else ())
        for square in squares
        for unit in square.needs
    ]


def diagonal_order(num_rows: int, layers: int, gen_len: int, group: int, stagger: int) -> list[int]:
    """Return the order of squares (as row numbers) of a diagonal schedule; stagger = gen_len is zig-zag."""
    admitted = [row // group * stagger for row in range(num_rows)]
    return [
        row
        for now in range(admitted[-1] + gen_len)
        for _ in range(layers)
        for row in range(num_rows)
        if admitted[row] <= now < admitted[row] + gen_len
    ]
