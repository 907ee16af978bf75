"""Division of sequences of many lengths into few parts, such that little of the padding is left.

Sequences that are run together are padded to the longest prompt and the most generated tokens among them.
Parts are made by cutting in two, again and again, that part and at that place where it saves most padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from simulator.schema import Record

_Rows = npt.NDArray[np.float64]


class Lengths(Record):
    """Sequences of one length: tokens of the prompt, tokens generated, and how many there are."""

    prompt_len: Annotated[int, Field(ge=1, le=10_000_000)]
    gen_len: Annotated[int, Field(ge=0, le=1_000_000)]
    count: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1


def bucketed(lengths: Sequence[Lengths], most: int) -> Iterator[tuple[int, int, int, float]]:
    """Divide sequences into at most so many parts, from the shortest on.

    Those from which nothing is generated are kept apart from the others, since they are a prompt pass only.

    Yields:
        The longest prompt of a part, its most generated tokens, how many sequences it has, and the mean of
        the tokens that count: generated ones, or of prompts where nothing is generated.

    >>> rows = [Lengths(prompt_len=n, gen_len=8) for n in (10, 11, 100, 101)]
    >>> list(bucketed(rows, 2))
    [(11, 8, 2, 8.0), (101, 8, 2, 8.0)]
    """
    rows = np.array([(row.prompt_len, row.gen_len, row.count) for row in lengths], dtype=float)
    silent = rows[:, 1] == 0
    parts = [part for part in (rows[silent], rows[~silent]) if len(part)]
    while len(parts) < most:
        cuts = [_best_cut(part) for part in parts]
        index = max(range(len(parts)), key=lambda i: cuts[i][0])
        saved, first, second = cuts[index]
        if saved <= 0.0:
            break
        parts[index : index + 1] = [first, second]
    for part in sorted(parts, key=lambda each: (each[:, 0].max(), each[:, 1].max())):
        prompt_len, gen_len = part[:, 0].max(), part[:, 1].max()
        counted = part[:, 1] if gen_len else part[:, 0]
        tokens = float(counted @ part[:, 2] / part[:, 2].sum())
        yield int(prompt_len), int(gen_len), int(part[:, 2].sum()), tokens


def _best_cut(rows: _Rows) -> tuple[float, _Rows, _Rows]:
    """Find the cut along one of the two lengths that saves most padded tokens."""
    best = (0.0, rows, rows[:0])
    whole = rows[:, 2].sum() * (rows[:, 0].max() + rows[:, 1].max())
    for axis in (0, 1):
        ordered = rows[np.argsort(rows[:, axis], kind="stable")]
        below = _padded(ordered)[:-1]
        above = _padded(ordered[::-1])[::-1][1:]
        saved = np.where(np.diff(ordered[:, axis]) > 0, whole - below - above, 0.0)
        if len(saved) and saved.max() > best[0]:
            at = int(saved.argmax()) + 1
            best = (float(saved[at - 1]), ordered[:at], ordered[at:])
    return best


def _padded(rows: _Rows) -> _Rows:
    """Count the padded tokens of the first 1, 2, ... rows together."""
    longest = np.maximum.accumulate(rows[:, 0]) + np.maximum.accumulate(rows[:, 1])
    return np.asarray(np.cumsum(rows[:, 2]) * longest)
