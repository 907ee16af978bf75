"""Refresh the tables and outputs of docs/engines.md: ``python tools/write_engines.py``.

What stands between markers comes from the descriptions of engines and from the commands themselves; all else
on the page is written by hand.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from planner.cli import cli
from simulator.runtime import Runtime, load_runtime, runtime_names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engines.md"
WIDTH = 110
_SECTION = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)

#: Rows of the table: what the reader is told, and how it is read off a description.
_ROWS: dict[str, Callable[[Runtime], object]] = {
    "after a (layer, group)": lambda engine: {
        "dependency": "lanes run ahead as slots allow",
        "barrier": "all lanes wait for all",
        "serial": "one task at a time",
    }[engine.synchronization],
    "schedules": lambda engine: ", ".join(engine.schedules),
    "a layer is": lambda engine: {"block": "a block", "half": "attention or MLP"}[engine.layers],
    "weights are loaded": lambda engine: {"chunked": "a piece a group", "burst": "a layer at once"}[
        engine.weight_loads
    ],
    "weight buffers": lambda engine: engine.slots.weight_staging,
    "weights are placed": lambda engine: {
        "even": "evenly over layers",
        "midpoint": "by the middle of a tensor's bytes",
        "in_order": "whole layers, GPU first",
    }[engine.placement],
    "KV cache lies": lambda engine: _homes(engine, "cache"),
    "activations lie": lambda engine: _homes(engine, "activations"),
    "weights lie": lambda engine: _homes(engine, "weights"),
    "cache is held": lambda engine: "once" if engine.cache_copies == 1 else "twice: a step copies it",
    "pages of the cache": lambda engine: (
        f"{engine.page_tokens} tokens" if engine.page_tokens else "contiguous"
    ),
    "4-bit weights are expanded": lambda engine: {"per_pass": "once a pass", "per_group": "for every group"}[
        engine.dequantize
    ],
    "scores of a prompt": lambda engine: "never materialised" if engine.fused_attention else "materialised",
    "pinned": lambda engine: ", ".join(_pinned(engine)) or "nothing",
    "disk": lambda engine: {"direct": "direct", "mapped": "memory-mapped files"}[engine.disk_io],
    "CPU attends to": lambda engine: {"stored": "the cache as stored", "float32": "a float32 copy"}[
        engine.cpu_attention_dtype
    ],
    "what a phase has no use for": lambda engine: "freed" if engine.frees_buffers else "kept",
    "memory it takes for itself": lambda engine: f"{engine.relay / 2**30:g} GiB" if engine.relay else "-",
    "a (layer, group) costs": lambda engine: _milliseconds(engine.overheads.cell),
    "a tensor loaded costs": lambda engine: _milliseconds(engine.overheads.load_weights),
    "loads reach, of the link": lambda engine: f"{100 * engine.overheads.link_share:g} %",
}


def _homes(engine: Runtime, name: str) -> str:
    homes = engine.homes.get(name)  # type: ignore[call-overload]
    return f"whole, on {' or '.join(homes)}" if homes else "anywhere, in parts"


def _pinned(engine: Runtime) -> list[str]:
    words = {True: "", "policy": " (if planned)"}
    classes = engine.pinned.model_dump()
    return [f"{name}{words[how]}" for name, how in classes.items() if how]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:g} ms" if seconds else "-"


def descriptions() -> str:
    """Make the table of what descriptions say: a row for each fact, a column for each engine."""
    names = sorted(runtime_names(), key=lambda name: (name != "reference", name))
    engines = [load_runtime(name) for name in names]
    lines = [["", *names], ["---"] * (1 + len(names))]
    lines += [[fact, *(str(read(engine)) for engine in engines)] for fact, read in _ROWS.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def output(command: str) -> str:
    """Run a command of ``planner`` and show it with what it prints."""
    arguments = shlex.split(command)[1:]
    result = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(cli, arguments)
    if result.exit_code:
        raise SystemExit(f"{command}: {result.output}")
    text = "\n".join(line.rstrip() for line in result.stdout.rstrip().splitlines())
    return f"```sh\n{command}\n```\n\n```text\n{text}\n```\n"


def section(name: str) -> str:
    """Make the text of a section: the table of descriptions, or the command that the marker names."""
    return descriptions() if name == "descriptions" else output(name)


def refreshed(page: str) -> str:
    """Put new sections between the markers of a page."""
    return _SECTION.sub(lambda found: f"{found[1]}{section(found[2])}{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
