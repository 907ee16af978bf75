"""Attention over pieces: softmax by the book in float64, wherever the rows lie and whichever are hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.attention import attend_rows
from executor.records import Pair

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
ALL_BUT_NOTHING = 1 - 1e-9  # a share that takes the other path and leaves nothing out

some = settings(max_examples=50)


@dataclass(frozen=True)
class Question:
    """Queries [U,G,D], keys and values [S,U,D], and what is hidden [U,S]."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor | None
    pieces: list[Pair]

    @property
    def answer(self) -> torch.Tensor:
        """Compute it as it is defined: [U,G,D], float64."""
        scores = torch.einsum("ugd,sud->ugs", self.queries.double(), self.keys.double())
        scores /= math.sqrt(self.queries.shape[-1])
        if self.hidden is not None:
            scores[self.hidden[:, None].expand(scores.shape)] = -math.inf
        return torch.einsum("ugs,sud->ugd", scores.softmax(-1), self.values.double())

    def close(self, found: torch.Tensor) -> bool:
        """Compare with the answer, in the precision of the inputs."""
        off = (found.double() - self.answer).abs().max()
        return bool(off <= TOLERANCE[found.dtype] * self.values.double().abs().max().clamp(min=1))


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Draw what is asked; the last row, the token's own, is never hidden. Pieces may be empty or all."""
    units, heads, rows = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    width, dtype = draw(st.sampled_from([8, 16, 80])), draw(st.sampled_from(list(TOLERANCE)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    queries = torch.randn(units, heads, width, generator=random).to(dtype)
    keys, values = (torch.randn(rows, units, width, generator=random).to(dtype) for _ in range(2))
    hidden = None
    if draw(st.booleans()):
        hidden = torch.rand(units, rows, generator=random) < draw(st.sampled_from([0.2, 0.9, 1.0]))
        hidden[:, -1] = False
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=4)))
    ends = list(zip([0, *cuts], [*cuts, rows], strict=True))
    pieces = [(keys[first:stop], values[first:stop]) for first, stop in ends]
    return Question(queries, keys, values, hidden, pieces)


@some
@given(questions())
def test_pieces_are_as_one(question: Question) -> None:
    """The answer is softmax attention over all rows that are not hidden, however they are cut."""
    found = attend_rows(question.queries, question.pieces, question.hidden)
    assert found.shape == question.queries.shape
    assert found.dtype == question.queries.dtype
    assert question.close(found)


@some
@given(questions())
def test_all_rows_of_the_heaviest_are_all(question: Question) -> None:
    """A share of the rows that leaves none out gives the same."""
    assert question.close(
        attend_rows(question.queries, question.pieces, question.hidden, top=ALL_BUT_NOTHING)
    )


@some
@given(questions(), st.sampled_from([1.0, 0.5]))
def test_hidden_rows_do_not_matter(question: Question, top: float) -> None:
    """Whatever stands in a hidden row, no bit of the result depends on it."""
    if question.hidden is None:
        return
    before = attend_rows(question.queries, question.pieces, question.hidden, top)
    away = question.hidden.T[:, :, None].expand(question.keys.shape)
    question.keys[away], question.values[away] = 77.0, -1000.0  # the pieces are views of them
    assert torch.equal(attend_rows(question.queries, question.pieces, question.hidden, top), before)


@pytest.mark.parametrize("room", [0, 1000, 3000])
@pytest.mark.parametrize("masked", [False, True])
def test_gathering_some_units_at_a_time_is_as_all(
    room: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces are brought together for as many units as spare memory allows, one at least."""
    monkeypatch.setattr("executor.attention._GATHERED", {"cpu": room})
    random = torch.Generator().manual_seed(1)
    queries = torch.randn(7, 2, 8, generator=random)
    keys, values = (torch.randn(9, 7, 8, generator=random) for _ in range(2))
    hidden = torch.rand(7, 9, generator=random) < 0.5 if masked else None
    if hidden is not None:
        hidden[:, -1] = False
    pieces = [(keys[:4], values[:4]), (keys[4:], values[4:])]
    question = Question(queries, keys, values, hidden, pieces)
    assert question.close(attend_rows(queries, pieces, hidden))


def by_weights(weights: list[float], values: list[float], top: float, hidden: list[bool]) -> float:
    """Attend with one unit and elements of size one, whose softmax weights are as given if none is hidden."""
    rows = len(weights)
    keys = torch.tensor(weights).log().view(rows, 1, 1)
    pair = (keys, torch.tensor(values, dtype=torch.float32).view(rows, 1, 1))
    mask = torch.tensor([hidden]) if any(hidden) else None
    pieces = [(pair[0][:1], pair[1][:1]), (pair[0][1:], pair[1][1:])]
    return attend_rows(torch.ones(1, 1, 1), pieces, mask, top).item()


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (1.0, 0.1 * 1 + 0.4 * 10 + 0.3 * 100 + 0.2 * 1000),
        (0.75, 0.4 * 10 + 0.3 * 100 + 0.2 * 1000),
        (0.5, 0.4 * 10 + 0.3 * 100),
        (0.25, 0.4 * 10),
        (0.01, 0.4 * 10),  # one row at least
    ],
)
def test_the_heaviest_rows_by_hand(top: float, expected: float) -> None:
    """Of four rows with weights 0.1 to 0.4 the heaviest are summed, with the weights that they had."""
    found = by_weights([0.1, 0.4, 0.3, 0.2], [1, 10, 100, 1000], top, [False] * 4)
    assert found == pytest.approx(expected, rel=1e-5)


def test_hidden_rows_are_not_among_the_heaviest() -> None:
    """With the heaviest row hidden the others share its weight: 1/6, 3/6, 2/6; two of four rows are used."""
    found = by_weights([0.1, 0.4, 0.3, 0.2], [1, 10, 100, 1000], 0.5, [False, True, False, False])
    assert found == pytest.approx(3 / 6 * 100 + 2 / 6 * 1000, rel=1e-5)


def test_every_query_head_has_its_own_heaviest() -> None:
    """Two query heads of one unit look the other way: each uses the row that it likes."""
    queries = torch.tensor([[[5.0], [-5.0]]])
    keys, values = torch.tensor([[[2.0]], [[-2.0]]]), torch.tensor([[[10.0]], [[20.0]]])
    found = attend_rows(queries, [(keys, values)], None, top=0.5)
    assert found.flatten().tolist() == pytest.approx([10, 20], rel=1e-5)
