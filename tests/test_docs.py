"""The documents: examples run, the page of commands is current, everything has help, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from planner.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _writer() -> ModuleType:
    """Load the tool that writes the page of commands."""
    spec = importlib.util.spec_from_file_location("write_commands", ROOT / "tools" / "write_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _anchors(page: Path) -> set[str]:
    """List the anchors that a forge gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+\s+(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_examples_give_what_they_show(page):
    """Every ``>>>`` of a page runs and prints what stands below it; a page's examples share their names."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    examples = doctest.DocTestParser().get_doctest(text, {}, _name(page), str(page), 0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=_FLAGS).run(examples, out=report.append)
    assert not report, "".join(report)


def test_the_page_of_commands_is_current():
    """The page is what the commands say; write it again with ``python tools/write_commands.py``."""
    writer = _writer()
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page()


def test_every_command_and_option_has_help():
    """A command says what it does, and so does each of its options."""
    for context in _writer().walk(cli, "planner"):
        assert context.command.help, context.command_path
        for parameter in context.command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{context.command_path} {parameter.opts[0]}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    """A relative link names a file that exists and, after ``#``, one of its headings."""
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in _anchors(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_a_page_names_exist(page):
    """A file of the project that a page names by its path is there."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:simulator|planner|executor|tests|tools)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_no_page_names_a_place_on_one_machine():
    """Documents are for readers who do not have the machine that they were written on."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(^|[\s`\"'(])/(tmp|home|work|root)/", text), _name(page)
