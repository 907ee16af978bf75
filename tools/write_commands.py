"""Write docs/commands.md from the help of the commands: ``python tools/write_commands.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from planner.cli import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
WIDTH = 100

_HEAD = """\
# Commands

This page is what the commands say with `--help`, written by `tools/write_commands.py`. A test compares
the two. For a walk through them see [the tour](tour.md).

Exit codes: 0 for success, 1 when no plan fits the machine or the limits, 2 for bad input. An error is one
line on standard error; `planner --debug COMMAND ...` shows the traceback too.
"""


def walk(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[click.Context]:
    """Go through a command and all that lie below it, each in the context that the shell would give it."""
    settings = command.context_settings | {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=above, **settings)
    yield context
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from walk(command.commands[below], below, context)


def page() -> str:
    """Make the text of the page."""
    parts = [_HEAD]
    for context in walk(cli, "planner"):
        text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
        parts.append(f"## {context.command_path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
