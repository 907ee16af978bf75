"""Charts and pages for tests: drawn ones, and a sample of every kind."""

from __future__ import annotations

from hypothesis import strategies as st

from planner.charts import Chart, ChartKind, Series

KINDS: tuple[ChartKind, ...] = ("line", "points", "bars", "heatmap", "tornado")
_NUMBERS = st.floats(1e-6, 1e9)
_VALUES = st.one_of(st.none(), _NUMBERS)
#: Texts of all sorts, and some that a page or a picture could take for something else.
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["</script>", "<b>bold</b>", "<!--", "$x", "$5 and $6", "_hidden", "a\nb", "&lt;"]),
)


def sample(kind: ChartKind, *, rows: bool = False) -> Chart:
    """Give a chart of a kind; with ``rows`` its points stand for the first three rows of a table."""
    names = kind in ("bars", "heatmap", "tornado")
    x: tuple[float | str, ...] = ("one", "two", "three") if names else (1.0, 10.0, 400.0)
    values: tuple[tuple[float | None, ...], ...] = ((2.0, 3.5, 90.0), (5.0, None, 0.7))
    ranges = kind in ("line", "points", "bars")
    series = [
        Series(
            name=f"series {number}",
            x=x,
            y=y,
            cells=(0, 1, 2) if rows else (),
            low=tuple(each and 0.8 * each for each in y) if ranges else (),
            high=tuple(each and 1.3 * each for each in y) if ranges else (),
        )
        for number, y in enumerate(values)
    ]
    return Chart(
        key=f"sample-{kind}",
        title=f"A sample: {kind}",
        kind=kind,
        x_label="what is varied",
        y_label="what comes out [s]",
        z_label="a colour [s]",
        x_log=not names,
        y_log=kind in ("line", "bars"),
        series=tuple(series),
        note="One sentence.",
        base=3.0 if kind == "tornado" else None,
    )


@st.composite
def charts(draw: st.DrawFn, rows: int = 0) -> Chart:
    """Draw a chart of any kind with any texts; ``rows`` is how many rows its points may stand for."""
    kind = draw(st.sampled_from(KINDS))
    names = kind in ("bars", "heatmap", "tornado")
    categories = st.lists(TEXTS if names else _NUMBERS, min_size=1, max_size=4, unique=True)
    shared = tuple(draw(categories)) if kind == "heatmap" else None
    return Chart(
        key="drawn",
        title=draw(TEXTS),
        kind=kind,
        x_label=draw(TEXTS),
        y_label=draw(TEXTS),
        z_label=draw(TEXTS),
        x_log=not names and draw(st.booleans()),
        y_log=draw(st.booleans()),
        series=tuple(
            draw(_series(shared or tuple(draw(categories)), rows)) for _ in range(draw(st.integers(0, 9)))
        ),
        base=draw(_NUMBERS) if kind == "tornado" else None,
    )


@st.composite
def _series(draw: st.DrawFn, x: tuple[float | str, ...], rows: int) -> Series:
    def column(values: st.SearchStrategy[object]) -> tuple[object, ...]:
        return tuple(draw(values) for _ in x)

    ranged, cells = draw(st.booleans()), rows and draw(st.booleans())
    return Series(
        name=draw(TEXTS),
        x=x,
        y=column(_VALUES),
        cells=column(st.one_of(st.none(), st.integers(0, rows - 1))) if cells else (),
        labels=column(TEXTS) if draw(st.booleans()) else (),
        low=column(_VALUES) if ranged else (),
        high=column(_VALUES) if ranged else (),
    )
