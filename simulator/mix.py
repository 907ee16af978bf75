"""Mixes of work: presets by name, and distributions of lengths read from a file.

A mix is one or more parts, each prompts of one length from which as many tokens are generated. Parts are run
one after the other, each with the plan that is best for it: a queue that is sorted by length before it runs.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from simulator.errors import InputError
from simulator.hardware import Source
from simulator.length_buckets import Lengths, bucketed
from simulator.schema import Record, decode, read_text, read_yaml
from simulator.units import one_line, shortened
from simulator.workload import Workload

#: How many parts a distribution of lengths is divided into, unless the caller says otherwise.
BUCKETS = 4
_NAME = 80  # characters


class Part(Record):
    """Sequences of one shape in a mix.

    Attributes:
        name: what they are.
        count: how many of them there are for those of the other parts; for each turn, if the mix is serial.
        workload: their lengths, as they are run.
        tokens: what counts of the tokens of a sequence, where padding makes the lengths larger; None for all.
    """

    name: str = Field(min_length=1, max_length=_NAME)
    count: Annotated[float, Field(gt=0.0, le=1e12)] = 1.0
    workload: Workload
    tokens: Annotated[float, Field(gt=0.0)] | None = None

    @property
    def counted_tokens(self) -> float:
        """Tokens of a sequence that throughput counts."""
        return self.tokens if self.tokens is not None else float(self.workload.counted_tokens)


class Mix(Record):
    """Work of one or several shapes.

    With ``serial`` the parts are the calls of one chain, each waiting for the one before, so that its latency
    is that of all calls together.
    """

    name: str = Field(min_length=1, max_length=_NAME)
    description: str = ""
    source: Source | None = None
    serial: bool = False
    parts: tuple[Part, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [part.name for part in self.parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two parts are called {twice!r}; rename one")
        return self

    @property
    def single(self) -> Workload | None:
        """Give the workload, if there is only one."""
        return self.parts[0].workload if len(self.parts) == 1 else None

    @property
    def total_tokens(self) -> float:
        """Tokens that throughput counts, of all parts."""
        return sum(part.count * part.counted_tokens for part in self.parts)


def single_mix(workload: Workload) -> Mix:
    """Make a mix of one workload, named after its lengths.

    >>> single_mix(Workload(prompt_len=512, gen_len=32)).name
    '512/32'
    """
    queue = "" if workload.num_prompts is None else f" x {workload.num_prompts}"
    prefix = f" ({workload.shared_prefix} shared)" if workload.shared_prefix else ""
    name = f"{workload.prompt_len}{prefix}/{workload.gen_len}{queue}"
    return Mix(name=name, parts=(Part(name=name, workload=workload),))


def preset_names() -> list[str]:
    """List the presets that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _folder().iterdir())


def find_mix(name: str, beside: Path = Path()) -> Mix:
    """Read a preset by name, one part of it (``voyager/critic``), or a file of lengths.

    Args:
        name: of a preset, or the path of a CSV file with the columns ``prompt_len``, ``gen_len`` and, if
            wanted, ``count``.
        beside: the folder that a relative path starts from.

    Raises:
        InputError: there is no such preset, part or file, or the file is wrong.
    """
    if name.endswith(".csv"):
        return lengths_mix(beside / name)
    preset, slash, part = name.partition("/")
    known = preset_names()
    if preset not in known:
        near = difflib.get_close_matches(preset, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(known)}"
        raise InputError(one_line(f"workload: {shortened(name)} is neither a preset nor a .csv file; {hint}"))
    mix = decode(Mix, read_yaml(Path(str(_folder().joinpath(f"{preset}.yaml")))), f"workload {preset}")
    return _one_part(mix, part) if slash else mix


def _one_part(mix: Mix, name: str) -> Mix:
    found = [part for part in mix.parts if part.name == name]
    if not found:
        known = ", ".join(part.name for part in mix.parts)
        raise InputError(one_line(f"workload: {mix.name} has no part {shortened(name)}; parts: {known}"))
    return mix.model_copy(update={"name": f"{mix.name}/{name}", "parts": tuple(found), "serial": False})


def _folder() -> Any:
    return resources.files("simulator").joinpath("workloads")


def lengths_mix(path: Path, buckets: int = BUCKETS) -> Mix:
    """Divide the sequences of a file by length; those of a part are padded to its longest.

    Raises:
        InputError: the file cannot be read, or a row of it is wrong.
    """
    lengths = _read_lengths(path)
    parts = [
        Part(
            name=f"{prompt_len}/{gen_len}",
            count=count,
            workload=decode(Workload, {"prompt_len": prompt_len, "gen_len": gen_len}, f"{path}"),
            tokens=tokens,
        )
        for prompt_len, gen_len, count, tokens in bucketed(lengths, buckets)
    ]
    described = f"{sum(row.count for row in lengths):g} sequences of {path.name}, in {len(parts)} parts"
    return Mix(name=path.stem[:_NAME], description=described, parts=tuple(parts))


def _read_lengths(path: Path) -> list[Lengths]:
    text = read_text(path).removeprefix("\ufeff")
    try:
        return list(_lengths(csv.DictReader(io.StringIO(text)), path))
    except csv.Error as error:
        raise InputError(one_line(f"{path}: not a table ({error})")) from None


def _lengths(lines: csv.DictReader[str], path: Path) -> Iterator[Lengths]:
    columns = {"prompt_len", "gen_len", "count"}
    given = set(lines.fieldnames or ())
    if not {"prompt_len", "gen_len"} <= given or given - columns:
        raise InputError(
            one_line(f"{path}: the header must be prompt_len,gen_len or prompt_len,gen_len,count")
        )
    line = None
    for line in lines:
        data = {name: _number(value) for name, value in line.items() if name in columns and value}
        yield decode(Lengths, data, one_line(f"{path}: line {lines.line_num}"))
    if line is None:
        raise InputError(one_line(f"{path}: there is a header but no row below it; add rows"))


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text
