"""The looks that the page and the pictures share: colours, markers, dashes; the colours of operations."""

from __future__ import annotations

from simulator.operations import OPERATIONS, Operation

#: Okabe and Ito's colours, which people with any colour vision can tell apart, without yellow and black:
#: these do not show on a white page or a dark one.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")

#: After each round of colours the marker and the dash change, so no two of the first 28 series look alike.
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"))
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))

#: Of heatmaps, as matplotlib and as plotly call it.
COLOR_SCALE = ("viridis", "Viridis")

#: A heatmap of more cells has no room for a number in each.
CELLS_WITH_NUMBERS = 150

# Of a family of operations, from the first of a lane on; a family is a class of tensors or a kind of work.
_FAMILIES = {
    "weights": ("#0072b2", "#56a5d8", "#8cc3e8", "#2b5c8a"),
    "cache": ("#d55e00", "#f08c3e", "#f4b183", "#a84300", "#ffa14f"),
    "activations": ("#009e73", "#4dbd9b", "#87d4bc", "#00735a", "#2f8f6f", "#a5dccb"),
    "attention": ("#8e5ea2", "#b389c4", "#6d3f82"),
    "matmul": ("#b8860b", "#e0ac2b", "#c9a14a", "#93700f", "#edc96a"),
    "other": ("#8c8c8c", "#b3b3b3", "#666666", "#a0a0a0"),
}


def color(index: int) -> str:
    """Give the colour of a series."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> tuple[str, str]:
    """Give the marker of a series, as matplotlib and as plotly call it."""
    return MARKERS[index // len(PALETTE) % len(MARKERS)]


def dash(index: int) -> tuple[str, str]:
    """Give the dash of a series, as matplotlib and as plotly call it."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


def operation_colors() -> dict[str, str]:
    """Give every operation its colour, the same in every timeline: a hue for what it moves or does."""
    seen: dict[str, int] = {}
    colors = {}
    for operation in OPERATIONS:
        family = _family(operation)
        shades = _FAMILIES[family]
        colors[operation.name] = shades[seen.get(family, 0) % len(shades)]
        seen[family] = seen.get(family, 0) + 1
    return colors


def _family(operation: Operation) -> str:
    if operation.of is not None:
        return operation.of
    if operation.cost in ("attention", "prompt_attention"):
        return "attention"
    return "matmul" if operation.cost == "matmul" else "other"
