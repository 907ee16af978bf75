"""Print how block schedules compare with exact optima, and the closed forms: the tables of docs/bounds.md.

    python -m tools.bounds_table --instances 2500 --jobs 2

Every number is a schedule's cost over the exact optimum of the same random instance, found by search
(``tests/bounds_oracle.py``). The same seed gives the same tables; 2500 instances take some minutes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import statistics
from collections.abc import Callable, Iterable, Sequence

from planner import bounds
from tests.bounds_oracle import (
    Instance,
    best_diagonal,
    best_steady_diagonal,
    diagonal_loads,
    diagonal_order,
    furthest_use_reads,
    optimal_loads,
    optimal_rate,
    optimal_reads,
    squares_in,
)

Result = dict[str, float]
Case = tuple[int, bool, int]  # seed, freeing rule, number


def draw_rng(case: Case) -> random.Random:
    """Return the random numbers of one instance."""
    return random.Random("/".join(map(str, case)))  # noqa: S311 - not for secrets


def draw_instance(rng: random.Random, lean: bool, shapes: Sequence[range], most: float) -> Instance:
    """Draw layers, prompt, generated tokens, and a capacity of one to ``most`` row peaks."""
    layers, prompt_len, gen_len = (rng.choice(shape) for shape in shapes)
    peak = Instance(layers, prompt_len, gen_len, 0, lean).peak
    return Instance(layers, prompt_len, gen_len, rng.randint(peak, int(most * peak)), lean)


def finite(case: Case) -> Result:
    """Compare layer loads of a finite queue with the optimum."""
    rng, lean = draw_rng(case), case[1]
    num_rows = rng.randint(2, 7)
    instance = draw_instance(rng, lean, (range(2, 4), range(1, 17), range(2, 7)), num_rows)
    best = optimal_loads(instance, num_rows)
    reads, steps = num_rows * instance.k_row, instance.gen_len
    zigzag = bounds.zigzag_loads(num_rows, instance.block, steps, instance.layers)
    below = [
        instance.per_load_bound(num_rows),
        bounds.layer_loads_bound(reads, instance.capacity, steps, instance.layers),
        bounds.weight_window_bound(reads, instance.layers, 1, instance.capacity, steps),
    ]
    return {
        "row by row": num_rows * instance.end / best,
        "zig-zag, best B": zigzag / best,
        "diagonal, best g and stagger": best_diagonal(instance, num_rows) / best,
        "violated: lower bounds": max(below) > best,
        "violated: corrected factor": zigzag > best * bounds.zigzag_factor(instance.block, num_rows),
        "violated: literal factor 2": zigzag > 2 * best,
        "violated: the paper's lower bound": instance.paper_bound(num_rows) > best,
    }


def steady(case: Case) -> Result:
    """Compare layer loads per row with the optimum when rows always wait."""
    instance = draw_instance(draw_rng(case), case[1], (range(2, 3), (1, 2, 4, 16), range(2, 6)), 2.5)
    best = optimal_rate(instance)
    zigzag = instance.end / instance.block / best
    diagonal = best_steady_diagonal(instance) / best
    return {
        "row by row": float(instance.end / best),
        "zig-zag, best B": float(zigzag),
        "diagonal, best g and stagger": float(diagonal),
        "violated: lower bounds": best * instance.capacity < instance.layers * instance.k_row,
        "violated: corrected factor": zigzag > bounds.zigzag_factor(instance.block) + 1e-9,
        "violated: literal factor 2": zigzag > 2,
    }


def reads(case: Case) -> Result:
    """Compare units read, weights and KV competing for fast memory, with the optimum."""
    rng = draw_rng(case)
    layers, gen_len, num_rows = rng.choice([(2, 2, 2), (2, 2, 3), (3, 2, 2), (2, 3, 2)])
    shapes = (range(layers, layers + 1), range(1, 3), range(gen_len, gen_len + 1))
    instance = draw_instance(rng, True, shapes, num_rows)
    prompt_len, width = instance.prompt_len, rng.randint(2, 5)
    fast = width + prompt_len + gen_len - 2 + rng.randint(0, 1)
    rows = [(prompt_len, gen_len)] * num_rows

    def cost(group: int, stagger: int) -> int:
        order = diagonal_order(num_rows, layers, gen_len, group, stagger)
        return furthest_use_reads(squares_in(order, rows, [width] * layers), fast)

    tries = itertools.product(range(1, num_rows + 1), range(1, gen_len + 1))
    fitting = [plan for plan in tries if diagonal_loads(instance, num_rows, *plan) is not None]
    best = optimal_reads(instance, num_rows, width, fast)
    block = min(instance.block, num_rows)
    bound = bounds.window_bound(num_rows * instance.k_row, layers * width, fast, instance.capacity, gen_len)
    return {
        "row by row": cost(1, gen_len) / best,
        "zig-zag, best B": min(cost(group, gen_len) for group in range(1, block + 1)) / best,
        "diagonal, best g and stagger": min(cost(*plan) for plan in fitting) / best,
        "optimum / window bound": best / bound,
        "violated: lower bounds": bound > best,
    }


def row(name: str, cells: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join([name, *cells]) + " |"


def table(title: str, study: Callable[[Case], Result], cases: list[Case], jobs: int) -> Iterable[str]:
    """Run a study over all cases and yield its table."""
    with multiprocessing.Pool(jobs) as pool:
        results = pool.map(study, cases, chunksize=4)
    yield f"\n{title} ({len(cases)} instances)\n"
    yield row("cost / optimum", ["mean", "p50", "p90", "p99", "max", "optimal in"])
    yield row("---", ["---"] * 6)
    for name in results[0]:
        values = sorted(result[name] for result in results)
        if name.startswith("violated"):
            continue
        cuts = [values[int(share * (len(values) - 1))] for share in (0.5, 0.9, 0.99, 1.0)]
        optimal = sum(value < 1 + 1e-9 for value in values) / len(values)
        cells = [f"{value:.3f}" for value in (statistics.fmean(values), *cuts)]
        yield row(name, [*cells, f"{optimal:.0%}"])
    for name in results[0]:
        if name.startswith("violated"):
            yield f"{name}: {sum(result[name] for result in results):.0f}"


def closed_forms() -> Iterable[str]:
    """Yield the factors that need no search."""
    yield "\nZig-zag's weight loads over the optimum's, many rows in large blocks\n"
    yield row("prompt, generated", ["ratio", "diagonal / zig-zag peak, 8 groups", "... 1 group a pass"])
    yield row("---", ["---"] * 3)
    for prompt_len, gen_len in [(512, 32), (512, 128), (128, 512), (32, 1024), (1, 64)]:
        peak = bounds.zigzag_peak_tokens(prompt_len, gen_len)
        held = [bounds.diagonal_peak_tokens(prompt_len, gen_len, groups) / peak for groups in (8, gen_len)]
        ratio = bounds.zigzag_ratio_limit(prompt_len, gen_len)
        yield row(f"{prompt_len}, {gen_len}", [f"{value:.3f}" for value in (ratio, *held)])
    yield "\nThe proven factor 2 (1 + 1/B) (1 + B/N)\n"
    yield row("B", ["N = 2 B", "N = 4 B", "N = 20 B", "N infinite", "2 + 1/B (attained)"])
    yield row("---", ["---"] * 5)
    for block in (1, 2, 5, 20, 100):
        factors = [bounds.zigzag_factor(block, times * block) for times in (2, 4, 20, float("inf"))]
        yield row(str(block), [f"{value:.3f}" for value in (*factors, 2 + 1 / block)])


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=2500, help="random instances per table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    for lean in (True, False):
        cases = [(options.seed, lean, number) for number in range(options.instances)]
        rule = "lean" if lean else "paper"
        print(*table(f"Layer loads, finite queue, {rule} rule", finite, cases, options.jobs), sep="\n")
        print(*table(f"Layer loads, steady state, {rule} rule", steady, cases, options.jobs), sep="\n")
    cases = [(options.seed, True, number) for number in range(options.instances)]
    print(*table("Units read, weights and KV", reads, cases, options.jobs), sep="\n")
    print(*closed_forms(), sep="\n")


if __name__ == "__main__":
    main()
