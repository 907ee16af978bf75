"""What the writers of launch commands share: the record they return, and what they read of a plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import Field

from planner.plan import Plan
from simulator.hardware import TierName
from simulator.layout import Layout
from simulator.model import ModelSpec
from simulator.model_config import catalogue_names, read_config
from simulator.policy import Policy
from simulator.schema import Record, read_json
from simulator.workload import Workload

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Launch(Record):
    """What the user of an engine types to run a plan.

    Attributes:
        engine: the runtime's name.
        title: what the text is, in one line.
        text: what is pasted; empty when the engine cannot run the plan, and then the first note says why.
        file: the name under which the text is written to a folder.
        files: further files that the text reads, by name.
        notes: where the engine differs from the plan, and what the user must know; full sentences.
    """

    engine: str
    title: str
    text: str
    file: str = "command.txt"
    files: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The parts of a plan that decide how an engine is started; capacities are what a plan may fill. [B]

    ``overlaps`` says whether copies run beside computation.
    """

    engine: str
    model: ModelSpec
    workload: Workload
    policy: Policy
    layout: Layout
    capacity: dict[TierName, float]
    overlaps: bool = True

    @property
    def dtype(self) -> str:
        """The type that is computed in: the checkpoint's."""
        return self.model.dtype

    @property
    def prompts(self) -> str:
        """The prompts of a batch, in words."""
        one = self.policy.gpu_batch == 1
        return (
            f"{self.policy.gpu_batch} {'prompt' if one else 'prompts'} of {self.workload.prompt_len} tokens"
        )


def wanted(plan: Plan) -> Wanted:
    """Extract the parts from a plan."""
    capacity = {tier: memory.capacity for tier, memory in plan.memory.items()}
    return Wanted(
        engine=plan.runtime.name,
        model=plan.model,
        workload=plan.workload,
        policy=plan.policy,
        layout=plan.layout,
        capacity=capacity,
        overlaps=plan.policy.overlap and plan.runtime.synchronization != "serial",
    )


def cannot(engine: str, reason: str) -> Launch:
    """Say that an engine cannot run the plan."""
    return Launch(engine=engine, title=f"{engine} cannot run this plan", text="", notes=(reason,))


def percent(share: float) -> str:
    """Write a share for people.

    >>> percent(1 / 12)
    '8.33 %'
    """
    return f"{100 * share:.3g} %"


def hub_name(model: ModelSpec) -> str:
    """Name the model as on the Hugging Face hub; one from the user's own file keeps the user's name."""
    config = _catalogued(model)
    found = str(config["_name_or_path"]) if config else ""
    return found if _HUB_NAME.fullmatch(found) else model.name


def not_on_hub(model: ModelSpec) -> list[str]:
    """Say what to put in place of a name that the hub does not have."""
    name = hub_name(model)
    return [] if "/" in name else [f'Put the folder of your checkpoint in place of "{name}".']


def is_catalogued(model: ModelSpec) -> bool:
    """Whether the model is the one of the catalogue, not another one of the same name."""
    return _catalogued(model) is not None


def model_type(model: ModelSpec) -> str | None:
    """Name the family as transformers does; None for a Llama-like model from the user's own file."""
    if model.architecture == "opt":
        return "opt"
    config = _catalogued(model)
    return str(config["model_type"]) if config else None


def _catalogued(model: ModelSpec) -> dict[str, object] | None:
    """Read the catalogue's entry of this name, if its shapes are the model's."""
    if model.name not in catalogue_names():
        return None
    path = Path(str(resources.files("simulator").joinpath("models", f"{model.name}.json")))
    return read_json(path) if read_config(path) == model else None
