"""What a model consists of: its dimensions, and the shapes of all its tensors.

Tensors have the names that transformers gives them, so that an executor finds them in a checkpoint.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, model_validator

from simulator.schema import Record

ModelDType = Literal["float16", "bfloat16", "float32"]
Stage = Literal["qkv", "project", "mlp", "embed", "head", "prefix"]

Size = Annotated[int, Field(strict=True, ge=1, le=2**20)]
Count = Annotated[int, Field(strict=True, ge=1, le=2**14)]
Vocabulary = Annotated[int, Field(strict=True, ge=1, le=2**24)]
Positions = Annotated[int, Field(strict=True, ge=1, le=2**30)]
_MODELS = 64  # whose tensors are kept: a search asks for them thousands of times


class Weight(Record):
    """A tensor: its Hugging Face name, its shape, and the operation it is used with.

    The name of a block's tensor is the one inside the block (``self_attn.q_proj.weight``); the others
    have the name that the loaded model gives them (``model.norm.weight``).
    """

    name: str
    shape: tuple[int, ...]
    stage: Stage

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it has two dimensions; only these are quantised."""
        return len(self.shape) == 2


class ModelShape(Record):
    """A decoder-only transformer, as far as its cost depends on it.

    ``opt`` has LayerNorm, learned positions and a plain MLP; ``llama`` (Llama, Mistral, Qwen2 and the dense
    Qwen3) has RMSNorm, rotary positions, a gated MLP and grouped-query attention. ``embed_size`` is the
    width of the token table (OPT-350m projects it to ``hidden_size``). With ``post_norm`` the norms follow
    attention and MLP instead of preceding them. ``dtype`` is that of the checkpoint.

    Not modelled: a sliding attention window (all of the context is attended to), mixture of experts.
    """

    name: str = Field(min_length=1)
    architecture: Literal["opt", "llama"]
    hidden_size: Size
    ffn_size: Size
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Vocabulary
    max_positions: Positions
    tied_embeddings: StrictBool
    dtype: ModelDType
    embed_size: Size
    attention_bias: StrictBool = False
    output_bias: StrictBool = False
    mlp_bias: StrictBool = False
    qk_norm: StrictBool = False
    post_norm: StrictBool = False
    final_norm: StrictBool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key/value heads evenly; "
                "correct num_attention_heads or num_key_value_heads"
            )
        if self.architecture == "opt":
            self._check_opt()
        else:
            self._check_llama()
        return self

    def _check_opt(self) -> None:
        if self.num_heads * self.head_dim != self.hidden_size or self.num_kv_heads != self.num_heads:
            raise ValueError("an opt model has heads x head_dim = hidden_size and as many key/value heads")
        if self.qk_norm:
            raise ValueError("an opt model has no norms of queries and keys; set qk_norm to false")

    def _check_llama(self) -> None:
        if self.post_norm or not self.final_norm or self.embed_size != self.hidden_size:
            raise ValueError("a llama model has norms before its operations and embeddings of hidden_size")
        if self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs; head_dim {self.head_dim} must be even")

    def layer_weights(self) -> tuple[Weight, ...]:
        """List the tensors of one transformer block, in the order in which they are used."""
        return _layer_weights(self)

    def embed_weights(self) -> tuple[Weight, ...]:
        """List what turns token numbers into hidden states: tables and their projection.

        With tied embeddings the token table is missing here: it is ``lm_head.weight`` of `head_weights`,
        so that sums count it once, and the lookup reads rows of that matrix.
        """
        return _embed_weights(self)

    def head_weights(self) -> tuple[Weight, ...]:
        """List what turns hidden states into logits: the final norm, a projection, and the output matrix."""
        return _head_weights(self)

    @property
    def num_parameters(self) -> int:
        """The exact number of parameters: every block, the embeddings, the head; a tied table once."""
        layer = sum(weight.numel for weight in self.layer_weights())
        ends = sum(weight.numel for weight in (*self.embed_weights(), *self.head_weights()))
        return self.num_layers * layer + ends


@lru_cache(_MODELS)
def _layer_weights(model: ModelShape) -> tuple[Weight, ...]:
    return tuple(_opt_layer(model) if model.architecture == "opt" else _llama_layer(model))


@lru_cache(_MODELS)
def _embed_weights(model: ModelShape) -> tuple[Weight, ...]:
    path = _prefix(model) + "embed_tokens"
    found = [] if model.tied_embeddings else [_tensor(path, "embed", model.vocab_size, model.embed_size)]
    if model.architecture == "opt":  # positions count from row 2
        path = _prefix(model) + "embed_positions"
        found.append(_tensor(path, "embed", model.max_positions + 2, model.hidden_size))
    if model.embed_size != model.hidden_size:
        found.append(_tensor(_prefix(model) + "project_in", "embed", model.hidden_size, model.embed_size))
    return tuple(found)


@lru_cache(_MODELS)
def _head_weights(model: ModelShape) -> tuple[Weight, ...]:
    norm = "final_layer_norm" if model.architecture == "opt" else "norm"
    found = _norm(model, _prefix(model) + norm, "head") if model.final_norm else []
    if model.embed_size != model.hidden_size:
        found.append(_tensor(_prefix(model) + "project_out", "head", model.embed_size, model.hidden_size))
    found.append(_tensor("lm_head", "head", model.vocab_size, model.embed_size))
    return tuple(found)


def _prefix(model: ModelShape) -> str:
    return "model.decoder." if model.architecture == "opt" else "model."


def _tensor(path: str, stage: Stage, *shape: int) -> Weight:
    return Weight(name=f"{path}.weight", shape=shape, stage=stage)


def _linear(path: str, stage: Stage, rows: int, columns: int, bias: bool) -> list[Weight]:
    matrix = _tensor(path, stage, rows, columns)
    return [matrix, Weight(name=f"{path}.bias", shape=(rows,), stage=stage)] if bias else [matrix]


def _norm(model: ModelShape, path: str, stage: Stage) -> list[Weight]:
    """LayerNorm has a weight and a bias; RMSNorm has a weight."""
    names = ("weight", "bias") if model.architecture == "opt" else ("weight",)
    return [Weight(name=f"{path}.{name}", shape=(model.hidden_size,), stage=stage) for name in names]


def _projections(model: ModelShape) -> list[Weight]:
    found: list[Weight] = []
    for name, heads in (("q", model.num_heads), ("k", model.num_kv_heads), ("v", model.num_kv_heads)):
        path, rows = f"self_attn.{name}_proj", heads * model.head_dim
        found += _linear(path, "qkv", rows, model.hidden_size, model.attention_bias)
    return found


def _opt_layer(model: ModelShape) -> list[Weight]:
    hidden, ffn = model.hidden_size, model.ffn_size
    norm = _norm(model, "self_attn_layer_norm", "project" if model.post_norm else "qkv")
    output = _linear("self_attn.out_proj", "project", hidden, hidden, model.output_bias)
    up = _linear("fc1", "mlp", ffn, hidden, model.mlp_bias)
    down = _linear("fc2", "mlp", hidden, ffn, model.mlp_bias)
    last = _norm(model, "final_layer_norm", "mlp")
    if model.post_norm:
        return [*_projections(model), *output, *norm, *up, *down, *last]
    return [*norm, *_projections(model), *output, *last, *up, *down]


def _llama_layer(model: ModelShape) -> list[Weight]:
    hidden, ffn = model.hidden_size, model.ffn_size
    norms = [_tensor(f"self_attn.{name}_norm", "qkv", model.head_dim) for name in ("q", "k") if model.qk_norm]
    return [
        *_norm(model, "input_layernorm", "qkv"),
        *_projections(model),
        *norms,
        *_linear("self_attn.o_proj", "project", hidden, model.num_heads * model.head_dim, model.output_bias),
        *_norm(model, "post_attention_layernorm", "mlp"),
        *_linear("mlp.gate_proj", "mlp", ffn, hidden, model.mlp_bias),
        *_linear("mlp.up_proj", "mlp", ffn, hidden, model.mlp_bias),
        *_linear("mlp.down_proj", "mlp", hidden, ffn, model.mlp_bias),
    ]
