"""The definition of a study: grids over machines, models, workloads and limits, read from YAML.

A grid is the product of its axes; a single cell is a grid whose axes have one value each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, StrictBool

from planner.choices import Quantize, ScheduleChoice
from planner.costs import Economics
from simulator.schema import Record, decode, read_yaml
from simulator.units import DURATION

T = TypeVar("T")


def _several(value: object) -> object:
    """Take one value as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


OneOrMore = Annotated[tuple[T, ...], Field(min_length=1), BeforeValidator(_several)]
#: A figure of a machine or a pinned variable, as text, or plain where it has no unit.
Value = str | StrictBool | int | float
Name = Annotated[str, Field(min_length=1, max_length=80)]
#: A name of something that ships, or a path.
Place = Annotated[str, Field(min_length=1, max_length=4096)]


def _limit(value: object) -> object:
    """Read a limit of time, or none."""
    return None if value in (None, "none") else DURATION.parse(value)


#: A limit such as "600 s", or none. [s]
Limit = Annotated[Annotated[float, Field(gt=0.0)] | None, BeforeValidator(_limit)]


def _named(key: str) -> BeforeValidator:
    """Take a text as a mapping that has only this key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class MachineChoice(Record):
    """A machine: a shipped profile or a file, changed or not, under a name of its own."""

    hw: Place
    name: Name | None = None
    set: dict[str, Value] = Field(default_factory=dict)


class Variant(Record):
    """Figures that are changed together, under a name."""

    name: Name
    set: dict[str, Value] = Field(default_factory=dict)


class WorkloadChoice(Record):
    """A workload: a preset, its lengths, or a file of lengths that is divided into so many parts."""

    name: Name | None = None
    preset: Place | None = None
    prompt_len: int | None = None
    gen_len: int | None = None
    shared_prefix: int = 0
    num_prompts: int | None = None
    lengths: str | None = None
    buckets: Annotated[int, Field(ge=1, le=64)] | None = None


class Grid(Record):
    """Axes whose product is planned.

    Attributes:
        machine: shipped profiles or files.
        set: figures that are changed in all cells.
        variant: groups of figures to change together, one group after the other.
        sweep: figures with the values that each takes in turn.
        model: names of the catalogue, or paths of a config.json.
        workload: presets, files of lengths, or lengths.
        runtime: engines.
        quantize: what may be stored in 4 bits.
        schedule: how the work may be traversed.
        max_latency: limits from admission to last token; None for no limit.
        fix: policy variables that are pinned.
    """

    machine: OneOrMore[Annotated[MachineChoice, _named("hw")]]
    set: dict[str, Value] = Field(default_factory=dict)
    variant: tuple[Variant, ...] = ()
    sweep: dict[str, OneOrMore[Value]] = Field(default_factory=dict)
    model: OneOrMore[Place]
    workload: OneOrMore[Annotated[WorkloadChoice, _named("preset")]] = (WorkloadChoice(preset="flexgen"),)
    runtime: OneOrMore[Name] = ("reference",)
    quantize: OneOrMore[Quantize] = ("none",)
    schedule: OneOrMore[ScheduleChoice] = ("auto",)
    max_latency: OneOrMore[Limit] = (None,)
    fix: dict[str, Value] = Field(default_factory=dict)


class ChartChoice(Record):
    """A chart of the study's table.

    Attributes:
        title: what it shows.
        kind: lines, points, bars or a heat map.
        x, y: columns; of a heat map both are axes and ``z`` is what is shown.
        series: columns that tell the lines (or groups of bars) apart.
        where: values of columns that rows must have.
        x_log, y_log: logarithmic axes.
        note: a sentence below it.
    """

    title: Name
    kind: Literal["line", "points", "bars", "heatmap"] = "line"
    x: Name
    y: Name = "tok_s"
    z: Name = "tok_s"
    series: OneOrMore[Name] | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    x_log: bool = False
    y_log: bool = False
    note: str = ""


class Study(Record):
    """A study: what is asked, of which cells, and the charts that answer it."""

    name: Name
    description: str = ""
    economics: Economics = Economics()
    grids: tuple[Grid, ...] = Field(min_length=1)
    charts: tuple[ChartChoice, ...] = ()


def read_study(path: Path) -> Study:
    """Read a study.

    Raises:
        InputError: the file cannot be read or is not a study; the message names the path in it.
    """
    return decode(Study, read_yaml(path), "study")
