"""The page: one file, nothing from elsewhere, texts stay texts; and what readers do with it in a browser."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from planner.chart_page import PageData, page, row_words, safe_json
from planner.charts import Chart
from planner.make_plan import Request, make_plan
from planner.report import print_plan
from planner.table import Column
from planner.timeline import Span, Timeline, timeline
from tests.chart_samples import KINDS, TEXTS, charts, sample
from tests.problems import problem_of

NASTY = "</script><script>window.broken = 1</script><b>bold</b> & 'more'"
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(-1e9, 1e9), TEXTS)
_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


class Reader(HTMLParser):
    """Collects what elements a page has, and the text of its scripts and its title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "title": []}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.texts:
            self.texts[self._inside][-1] += data


def page_data(study: PageData) -> tuple[dict[str, Any], Reader]:
    """Write a page without plotly's JavaScript, and read its data back."""
    with mock.patch("plotly.offline.get_plotlyjs", return_value="/* plotly */"):
        reader = Reader(page(study))
    _, data, *_ = reader.texts["script"]
    return json.loads(data), reader


@given(
    st.recursive(st.one_of(_VALUES, st.text()), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))
)
def test_json_reads_back_and_ends_nothing(data: object) -> None:
    """Escaped JSON is the same data, and holds nothing that HTML or JavaScript would take for their own."""
    text = safe_json(data)
    assert json.loads(text) == data
    assert not set(text) & set("<>&\u2028\u2029\n")


@st.composite
def studies(draw: st.DrawFn) -> PageData:
    """Draw a study with any texts."""
    keys = ["name", "value", "reason"]
    row = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, _VALUES))
    rows = draw(st.lists(row, min_size=1, max_size=4))
    numbers = st.integers(0, len(rows) - 1)
    times = (st.floats(0, 1), st.floats(1, 2), st.integers(1, 9), st.none() | st.floats(0, 1))
    spans = st.builds(Span, st.integers(0, 1), TEXTS, *times)
    lines = st.builds(Timeline, lanes=st.just(("gpu", "cpu")), spans=st.lists(spans, max_size=3).map(tuple))
    return PageData(
        title=draw(TEXTS),
        description=draw(TEXTS),
        charts=tuple(draw(st.lists(charts(len(rows)), max_size=1))),
        columns=tuple(Column(key=key, title=draw(TEXTS), unit=draw(TEXTS)) for key in keys[:2]),
        rows=tuple(rows),
        plans=draw(st.dictionaries(numbers, TEXTS)),
        timelines=draw(st.dictionaries(numbers, lines)),
        notes=tuple(draw(st.lists(TEXTS, max_size=2))),
    )


@settings(max_examples=30)
@given(studies())
def test_the_data_reaches_the_page(study: PageData) -> None:
    """Rows, plans and texts read back from the page; no text becomes an element, whatever is in it."""
    data, reader = page_data(study)
    assert data["rows"] == [[row.get(column.key) for column in study.columns] for row in study.rows]
    assert data["notes"] == list(study.notes)
    assert len(data["charts"]) == len(study.charts)
    found = {
        attributes["id"]: json.loads(text)
        for (_, attributes), text in zip(
            (each for each in reader.elements if each[0] == "script"), reader.texts["script"], strict=True
        )
        if (attributes.get("id") or "").startswith("detail-")
    }
    assert set(found) == {f"detail-{row}" for row in {*study.plans, *study.timelines}}
    for row, plan in study.plans.items():
        assert found[f"detail-{row}"]["plan"] == plan
    plain = page_data(PageData(title="t", columns=(), rows=()))[1]
    extra = len(reader.elements) - len(plain.elements)
    assert extra == len(found)


@settings(max_examples=20)
@given(studies())
def test_a_study_gives_the_same_page_twice(study: PageData) -> None:
    """The same study, written to JSON and read back, gives the same page."""
    with mock.patch("plotly.offline.get_plotlyjs", return_value=""):
        assert page(study) == page(PageData.model_validate_json(study.model_dump_json()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": {7: "text"}}, "plans: there is no row 7 among 4"),
        ({"charts": (sample("line", rows=True),), "rows": ()}, "chart sample-line: there is no row 0"),
        ({"charts": (sample("line"), sample("line"))}, "two charts have the same key"),
        ({"columns": (Column(key="a", title="A"), Column(key="a", title="B"))}, "two columns"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    """Rows that do not exist and keys that are taken."""
    study = {"title": "t", "columns": (), "rows": ({},) * 4, **change}
    with pytest.raises(ValidationError, match=message):
        PageData(**study)


def test_points_say_what_is_in_their_row(study: PageData) -> None:
    """A row in words has the titles and units of its columns, and why it has no plan."""
    assert row_words(study, 3).splitlines() == [
        "row 3",
        f"Machine: {NASTY}",
        "Prompt: 4096 tokens",
        "too small",
    ]
    hover = page_data(study)[0]["charts"][0]["figure"]["data"][0]["hovertext"][1]
    assert "Throughput: " in hover
    assert "<b>" not in hover


@pytest.fixture(scope="module")
def study() -> PageData:
    """A study of a real plan and made-up rows, of all kinds of charts."""
    plan = make_plan(Request(problem_of("rtx-4090", "opt-30b", prompt_len=512, gen_len=32)))
    text = io.StringIO()
    print_plan(plan, Console(file=text, width=100))
    rows: list[dict[str, Any]] = [
        {"machine": "rtx-4090", "prompt": 512, "tok_s": plan.predictions.throughput_tok_s},
        {"machine": "a100-80", "prompt": 64, "tok_s": 1234.5},
        {"machine": "h100-80", "prompt": 1024, "tok_s": 9.5},
        {"machine": NASTY, "prompt": 4096, "reason": "too small"},
    ]
    return PageData(
        title=f"A study {NASTY}",
        description="What it is about.\n\nA second paragraph.",
        charts=tuple(sample(kind, rows=True) for kind in KINDS),
        columns=(
            Column(key="machine", title="Machine"),
            Column(key="prompt", title="Prompt", unit="tokens", kind="number"),
            Column(key="tok_s", title="Throughput", unit="tok/s", kind="number"),
        ),
        rows=tuple(rows),
        plans={0: text.getvalue(), 1: f"made up {NASTY}"},
        timelines={0: timeline(plan, 300)},
        notes=("A note.",),
    )


@pytest.fixture(scope="module")
def address(study: PageData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the page into a file."""
    path = tmp_path_factory.mktemp("page") / "study.html"
    path.write_text(page(study), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a browser without a screen."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which is not installed")
    if not (_BROWSER and _DRIVER):
        pytest.skip("needs chromium and chromedriver, which are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for name in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "window-size=1280,900"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Any, address: str) -> Iterator[Any]:
    """Open the page; afterwards nothing was complained of and nothing fetched."""
    show(started, address)
    yield started
    assert [entry for entry in started.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert (
        started.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
        == []
    )
    assert started.execute_script("return window.broken") is None


def show(driver: Any, address: str) -> None:
    """Load an address anew and wait until all charts stand."""
    driver.get("about:blank")
    driver.get(address)
    wait_for(lambda: count(driver, ".plot[data-ready]") == len(KINDS))


def wait_for(holds: Callable[[], bool]) -> None:
    """Wait until something holds, at most for a while."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def count(driver: Any, selector: str) -> int:
    """Count the elements that a selector finds."""
    return int(driver.execute_script("return document.querySelectorAll(arguments[0]).length", selector))


def find(driver: Any, selector: str) -> Any:
    """Give the first element that a selector finds."""
    return driver.find_element("css selector", selector)


def shown_rows(driver: Any) -> list[int]:
    """List the rows of the table in the order in which they are shown."""
    script = "return [...document.querySelectorAll('tbody tr:not([hidden])')].map((row) => +row.id.slice(4))"
    return [int(row) for row in driver.execute_script(script)]


def test_the_table_sorts_both_ways(browser: Any) -> None:
    """A click on a heading sorts upwards, a second one downwards; what is missing stays last."""
    heading = find(browser, "th[data-column='2']")
    for direction, order in (("ascending", [2, 0, 1, 3]), ("descending", [1, 0, 2, 3])):
        find(browser, "th[data-column='2'] button").click()
        assert shown_rows(browser) == order
        assert heading.get_attribute("aria-sort") == direction
    find(browser, "th[data-column='1'] button").click()
    assert shown_rows(browser) == [1, 0, 2, 3]
    assert heading.get_attribute("aria-sort") == "none"


def test_the_table_is_filtered_and_chosen_by_keyboard(browser: Any) -> None:
    """All words must occur in a row; Enter chooses the row that has the focus; names stay text."""
    find(browser, "#filter").send_keys("80 100")
    assert shown_rows(browser) == [1, 2]
    assert find(browser, "#count").text == "2 of 4 rows"
    browser.execute_script("document.getElementById('row-1').focus()")
    browser.switch_to.active_element.send_keys("\ue007")
    assert find(browser, "#detail pre").text == f"made up {NASTY}"
    assert browser.current_url.endswith("#row-1")
    find(browser, "#filter").clear()
    find(browser, "#filter").send_keys("too small")
    assert find(browser, "tr.failed td:nth-child(2)").text == NASTY
    assert find(browser, "tr.failed .reason").text == "too small"
    assert find(browser, "h1").text == f"A study {NASTY}"


def test_a_click_on_a_point_shows_its_plan(browser: Any, tmp_path: Path, study: PageData) -> None:
    """The row of the point is marked, its report and its timeline appear, and hovering says what it is."""
    from selenium.webdriver import ActionChains  # noqa: PLC0415 - not installed everywhere

    place = find(browser, "#chart-sample-line")
    x, y = browser.execute_script(
        """const [plot, box] = [arguments[0], arguments[0].getBoundingClientRect()];
        const { xaxis, yaxis } = plot._fullLayout;
        const x = xaxis.d2p(plot.data[0].x[0]) + xaxis._offset;
        const y = yaxis.d2p(plot.data[0].y[0]) + yaxis._offset;
        return [x - box.width / 2, y - box.height / 2];""",
        place,
    )
    point = ActionChains(browser).move_to_element_with_offset(place, round(x), round(y)).pause(0.4)
    point.perform()
    hover = browser.execute_script("return document.querySelector('.hoverlayer').textContent")
    assert "what is varied: 1" in hover
    assert "Machine: rtx-4090" in hover
    point.click().perform()
    wait_for(lambda: count(browser, "#detail .gantt[data-ready]") == 1)
    assert find(browser, "#detail h2").text == "Row 0"
    assert find(browser, "tr.chosen").get_attribute("id") == "row-0"
    assert find(browser, "#detail pre").get_attribute("textContent") == study.plans[0]
    assert count(browser, "#detail .gantt .bars .point") == len(study.timelines[0].spans)
    picture = tmp_path / "page.png"
    browser.save_screenshot(str(picture))
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_an_address_chooses_a_row(browser: Any, address: str) -> None:
    """``#row-3`` shows row 3 at once, and a change of the address another."""
    show(browser, f"{address}#row-3")
    assert find(browser, "tr.chosen").get_attribute("id") == "row-3"
    assert find(browser, "#detail .failure").text == "too small"
    browser.execute_script("location.hash = '#row-1'")
    wait_for(lambda: find(browser, "#detail h2").text == "Row 1")
    browser.execute_script("location.hash = '#row-99'")
    assert find(browser, "#detail h2").text == "Row 1"


def test_hovering_shows_names_as_text(started: Any, study: PageData, tmp_path: Path) -> None:
    """A name that looks like HTML is written out in legends, on axes and where a point says what it is."""
    chart = sample("bars").model_dump()
    chart["series"][0]["name"] = chart["x_label"] = NASTY
    path = tmp_path / "names.html"
    path.write_text(
        page(study.model_copy(update={"charts": (Chart.model_validate(chart),)})), encoding="utf-8"
    )
    started.get(path.as_uri())
    wait_for(lambda: count(started, ".plot[data-ready]") == 1)
    started.execute_script("Plotly.Fx.hover('chart-sample-bars', [{ curveNumber: 0, pointNumber: 0 }])")
    for part in (".legendtext", ".xtitle", ".hoverlayer"):
        texts = started.execute_script(f"return document.querySelector('.plot {part}').textContent")
        assert "<b>bold</b>" in texts, part


def test_it_fits_a_narrow_screen_and_a_dark_one(browser: Any, address: str) -> None:
    """At 400 px nothing sticks out sideways, and the colours follow the reader's choice."""
    metrics = {"width": 400, "height": 850, "deviceScaleFactor": 1, "mobile": False}
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        show(browser, f"{address}#row-0")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        ground = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        assert max(browser.execute_script(ground)) < 60
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
