"""What the arithmetic of a model needs beyond its shapes, read from a checkpoint's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, StrictBool

from executor.rotary import Rotary, RotaryKind, yarn_scale
from executor.tensor_file import fault
from simulator.errors import InputError
from simulator.model import ModelSpec
from simulator.schema import Record, decode
from simulator.units import shortened

Activation = Literal["relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu"]
Token = Annotated[int, Field(strict=True, ge=0)]
Tokens = Token | tuple[Token, ...] | None

_LAYER_NORM_EPSILON = 1e-5  # torch's own, which OPT uses
_KINDS: tuple[RotaryKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class Facts:
    """A model as its arithmetic sees it.

    Attributes:
        model: dimensions, and which tensors there are.
        activation: of the MLP.
        norm_epsilon: what norms add to the variance.
        rotary: how positions turn queries and keys; None for learned positions.
        context_limit: tokens of a sequence, its generated ones included, up to which the arithmetic is that
            of the model: the table of learned positions, or a sliding window, which is not built. None
            where the arithmetic has no limit.
        end_tokens: tokens that end a text, if the checkpoint names any.
        begin_token: the one that texts begin with, if the checkpoint names it.
    """

    model: ModelSpec
    activation: Activation
    norm_epsilon: float
    rotary: Rotary | None
    context_limit: int | None
    end_tokens: frozenset[int] = frozenset()
    begin_token: int | None = None


class _Config(Record):
    """The keys that decide arithmetic, with the defaults that transformers gives to absent ones."""

    model_config = ConfigDict(extra="ignore")

    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    activation: Activation | None = Field(
        None, validation_alias=AliasChoices("activation_function", "hidden_act")
    )
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    rope_theta: Annotated[float, Field(gt=1)] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    original_max_position_embeddings: int | None = None
    sliding_window: Annotated[int, Field(ge=1)] | None = 4096
    use_sliding_window: StrictBool = False
    eos_token_id: Tokens = None
    bos_token_id: Token | None = None


class _Rope(Record):
    """The keys of ``rope_scaling`` or ``rope_parameters``."""

    model_config = ConfigDict(extra="ignore")

    kind: str = Field("default", validation_alias=AliasChoices("rope_type", "type"))
    rope_theta: Annotated[float, Field(gt=1)] | None = None
    factor: Annotated[float, Field(gt=0)] | None = None
    partial_rotary_factor: float = 1.0
    original_max_position_embeddings: Annotated[int, Field(ge=1)] | None = None
    low_freq_factor: Annotated[float, Field(gt=0)] | None = None
    high_freq_factor: Annotated[float, Field(gt=0)] | None = None
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    beta_fast: Annotated[float, Field(gt=0)] | None = None
    beta_slow: Annotated[float, Field(gt=0)] | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: StrictBool = True


class _Generation(Record):
    """What ``generation_config.json`` says; it counts before ``config.json``."""

    model_config = ConfigDict(extra="ignore")

    eos_token_id: Tokens = None
    bos_token_id: Token | None = None


def parse_facts(model: ModelSpec, data: dict[str, Any], generation: dict[str, Any]) -> Facts:
    """Build a model's facts from the content of ``config.json`` and, if any, ``generation_config.json``.

    Raises:
        InputError: a key is wrong, or asks for arithmetic that is not built; it names the key.
    """
    config = decode(_Config, data, "model")
    said = decode(_Generation, generation, "generation_config")
    opt = model.architecture == "opt"
    rotary = None if opt else _rotary(model, config)
    ends = config.eos_token_id if said.eos_token_id is None else said.eos_token_id
    return Facts(
        model=model,
        activation=config.activation or ("relu" if opt else "silu"),
        norm_epsilon=_LAYER_NORM_EPSILON if opt else config.rms_norm_eps,
        rotary=rotary,
        context_limit=_context_limit(model, config, rotary),
        end_tokens=frozenset([ends] if isinstance(ends, int) else ends or ()),
        begin_token=config.bos_token_id if said.bos_token_id is None else said.bos_token_id,
    )


def _context_limit(model: ModelSpec, config: _Config, rotary: Rotary | None) -> int | None:
    """Say up to how many tokens all of the context is attended to, and every position is known."""
    if rotary is None:
        return model.max_positions
    limits = [model.max_positions] if rotary.kind == "dynamic" else []
    family = config.model_type or " ".join(config.architectures or ())
    if ("mistral" in family.lower() or config.use_sliding_window) and config.sliding_window is not None:
        limits.append(config.sliding_window)
    return min(limits, default=None)


def _rotary(model: ModelSpec, config: _Config) -> Rotary:
    place = "rope_scaling" if config.rope_scaling else "rope_parameters"
    given = config.rope_scaling or config.rope_parameters or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise InputError(f"model.{place}: positions that differ between layers are not supported")
    rope = decode(_Rope, given, f"model.{place}")
    if rope.kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise fault(
            f"model.{place}.rope_type", f"{shortened(rope.kind)} is not supported; supported: {known}"
        )
    if min(rope.partial_rotary_factor, config.partial_rotary_factor) != 1.0:
        raise InputError("model.partial_rotary_factor: heads that are turned in part are not supported")
    original = config.original_max_position_embeddings or rope.original_max_position_embeddings
    plain = Rotary(
        kind=next(kind for kind in _KINDS if kind == rope.kind),
        theta=rope.rope_theta or config.rope_theta or 10_000.0,
        head_dim=model.head_dim,
        original_positions=original or model.max_positions,
    )
    return plain if plain.kind in ("default", "dynamic") else _scaled(plain, rope, model, f"model.{place}")


def _scaled(plain: Rotary, rope: _Rope, model: ModelSpec, where: str) -> Rotary:
    """Add what the variants need."""
    factor = rope.factor
    if plain.kind == "yarn" and factor is None:
        factor = model.max_positions / plain.original_positions
    given = {"factor": factor}
    if plain.kind == "llama3":
        given |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    for key, value in given.items():
        if value is None:
            raise InputError(f"{where}.{key}: this key is missing; {plain.kind} positions need it")
    low, high = rope.low_freq_factor or 1.0, rope.high_freq_factor or 1.0
    if plain.kind == "llama3" and low >= high:
        raise InputError(f"{where}.high_freq_factor: {high:g} must be above low_freq_factor {low:g}")
    scale = rope.attention_factor or yarn_scale(factor or 1.0, rope.mscale, rope.mscale_all_dim)
    return Rotary(
        kind=plain.kind,
        theta=plain.theta,
        head_dim=plain.head_dim,
        original_positions=plain.original_positions,
        factor=factor or 1.0,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=rope.beta_fast or 32.0,
        beta_slow=rope.beta_slow or 1.0,
        truncate=rope.truncate,
        scale=scale if plain.kind == "yarn" else 1.0,
    )
