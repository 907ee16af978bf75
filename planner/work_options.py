"""Options that say what the work is: a preset, a file of lengths, or lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from simulator.errors import InputError
from simulator.mix import Mix, find_mix, preset_names, single_mix
from simulator.schema import decode
from simulator.workload import Workload

Command = TypeVar("Command", bound=Callable[..., Any])

WORKLOAD = click.option(
    "--workload",
    metavar="NAME|FILE",
    help=f"Work by name ({', '.join(preset_names())}), or a .csv file of lengths.",
)
PROMPT_LEN = click.option(
    "--prompt-len", default="512", show_default=True, metavar="TOKENS", help="Tokens of a prompt."
)
SHARED_PREFIX = click.option(
    "--shared-prefix",
    default="0",
    show_default=True,
    metavar="TOKENS",
    help="Tokens that all prompts begin with; part of --prompt-len.",
)
GEN_LEN = click.option(
    "--gen-len",
    default="32",
    show_default=True,
    metavar="TOKENS",
    help="Tokens generated from each; 0 scores prompts.",
)
NUM_PROMPTS = click.option(
    "--num-prompts", metavar="COUNT", help="How many prompts wait  [default: a long queue]"
)


def work_options(command: Command) -> Command:
    """Give a command the options that say what the work is."""
    for option in (NUM_PROMPTS, GEN_LEN, SHARED_PREFIX, PROMPT_LEN, WORKLOAD):
        command = option(command)
    return command


_LENGTHS = ("prompt_len", "shared_prefix", "gen_len", "num_prompts")


def read_mix(workload: str | None, **lengths: str | None) -> Mix:
    """Read the work from the options.

    Args:
        workload: the name of a preset, or a file of lengths.
        lengths: ``prompt_len``, ``shared_prefix``, ``gen_len`` and ``num_prompts``, as text.

    Raises:
        InputError: both are given, or one is wrong.
    """
    if workload is None:
        return single_mix(read_workload(**lengths))
    context = click.get_current_context()
    for name in _LENGTHS:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = name.replace("_", "-")
            raise InputError(f"--{option}: workload {workload} has lengths of its own; drop one of the two")
    return find_mix(workload)


def read_single(workload: str | None, **lengths: str | None) -> Workload:
    """Read work of one shape from the options.

    Raises:
        InputError: it has several, or see :func:`read_mix`.
    """
    mix = read_mix(workload, **lengths)
    if mix.single is None:
        parts = ", ".join(f"{mix.name}/{part.name}" for part in mix.parts)
        raise InputError(
            f"--workload {workload}: it has {len(mix.parts)} parts with a plan each; take one of {parts}, or "
            "planner study for all"
        )
    return mix.single


def read_workload(**lengths: str | None) -> Workload:
    """Read lengths from the options.

    Raises:
        InputError: one is no whole number, or not plausible.
    """
    values = {name: _count(name, text) for name, text in lengths.items() if text is not None}
    return decode(Workload, values, "workload")


def _count(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        option = name.replace("_", "-")
        raise InputError(f"--{option}: expected a whole number such as 512; got {text!r}") from None
