"""Reading models: Hugging Face ``config.json`` files and the catalogue that comes with the package.

A family is named by ``model_type``. Its record below lists the keys that decide shapes, with the defaults
that transformers gives to keys that may be absent; every other key is ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, StrictBool

from simulator.errors import InputError
from simulator.model import ModelSpec
from simulator.model_shape import Count, ModelDType, Positions, Size, Vocabulary
from simulator.schema import Record, decode, read_json

_SUPPORTED = "opt, llama (2, 3), mistral, qwen2 (and 2.5), qwen3 (dense)"
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


class _Config(Record):
    """The keys that all families share. Absent, ``dtype`` is float32, as in transformers."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Vocabulary
    max_position_embeddings: Positions
    dtype: ModelDType | None = None
    torch_dtype: ModelDType | None = None

    def shapes(self) -> dict[str, Any]:
        """Give the fields of `ModelSpec` that all families have in common."""
        return {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_hidden_layers,
            "num_heads": self.num_attention_heads,
            "vocab_size": self.vocab_size,
            "max_positions": self.max_position_embeddings,
            "dtype": self.dtype or self.torch_dtype or "float32",
        }

    def even_head_dim(self) -> int:
        """Divide the hidden size among the heads.

        Raises:
            InputError: it does not divide.
        """
        size, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest:
            raise InputError(
                f"model.num_attention_heads: {self.num_attention_heads} does not divide "
                f"hidden_size {self.hidden_size}; correct one, or add head_dim where the family has it"
            )
        return size


class _Opt(_Config):
    ffn_dim: Size
    word_embed_proj_dim: Size | None = None
    do_layer_norm_before: StrictBool = True
    remove_final_layer_norm: StrictBool = Field(default=False, alias="_remove_final_layer_norm")
    enable_bias: StrictBool = True
    layer_norm_elementwise_affine: StrictBool = True
    tie_word_embeddings: StrictBool = True

    def shapes(self) -> dict[str, Any]:
        """Give all fields of `ModelSpec` but the name."""
        if not self.layer_norm_elementwise_affine:
            raise InputError(
                "model.layer_norm_elementwise_affine: false (norms without weights) is not supported"
            )
        return super().shapes() | {
            "architecture": "opt",
            "ffn_size": self.ffn_dim,
            "num_kv_heads": self.num_attention_heads,
            "head_dim": self.even_head_dim(),
            "tied_embeddings": self.tie_word_embeddings,
            "embed_size": self.word_embed_proj_dim or self.hidden_size,
            "attention_bias": self.enable_bias,
            "output_bias": self.enable_bias,
            "mlp_bias": self.enable_bias,
            "post_norm": not self.do_layer_norm_before,
            "final_norm": self.do_layer_norm_before and not self.remove_final_layer_norm,
        }


class _Llama(_Config):
    intermediate_size: Size
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    attention_bias: StrictBool = False
    mlp_bias: StrictBool = False
    tie_word_embeddings: StrictBool = False

    def shapes(self) -> dict[str, Any]:
        """Give all fields of `ModelSpec` but the name."""
        return super().shapes() | {
            "architecture": "llama",
            "ffn_size": self.intermediate_size,
            "num_kv_heads": self.num_key_value_heads or self.num_attention_heads,
            "head_dim": self.head_dim or self.even_head_dim(),
            "tied_embeddings": self.tie_word_embeddings,
            "embed_size": self.hidden_size,
            **self.options(),
        }

    def options(self) -> dict[str, bool]:
        """Say which tensors exist besides the matrices."""
        bias = self.attention_bias
        return {"attention_bias": bias, "output_bias": bias, "mlp_bias": self.mlp_bias}


class _Mistral(_Llama):
    num_key_value_heads: Count | None = 8

    def options(self) -> dict[str, bool]:
        """Mistral has no biases, whatever the file says."""
        return {}


class _Qwen2(_Llama):
    num_key_value_heads: Count | None = 32

    def options(self) -> dict[str, bool]:
        """Qwen2 always has biases for queries, keys and values, and no others."""
        return {"attention_bias": True}


class _Qwen3(_Llama):
    num_key_value_heads: Count | None = 32
    head_dim: Count = 128

    def options(self) -> dict[str, bool]:
        """Qwen3 normalises queries and keys."""
        return {"attention_bias": self.attention_bias, "output_bias": self.attention_bias, "qk_norm": True}


_FAMILIES: dict[str, type[_Opt | _Llama]] = {
    "opt": _Opt,
    "llama": _Llama,
    "mistral": _Mistral,
    "qwen2": _Qwen2,
    "qwen3": _Qwen3,
}
_CLASSES = {
    "OPTForCausalLM": "opt",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def read_config(path: str | Path) -> ModelSpec:
    """Read a model from a Hugging Face ``config.json``, or from the checkpoint folder that holds it.

    The model is named after the folder, or after the file where that is not called ``config.json``.

    Raises:
        InputError: the file cannot be read, or does not describe a supported model.
    """
    file = Path(path)
    if _is(file.is_dir):
        file = file / "config.json"
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return parse_config(read_json(file), name or "model")


def parse_config(data: dict[str, Any], name: str) -> ModelSpec:
    """Build a model from the content of a ``config.json``.

    Raises:
        InputError: a key is missing or wrong, or the model is not supported; it names the key.
    """
    family = _family(data)
    _refuse_unsupported(data)
    config = decode(_FAMILIES[family], data, "model")
    if config.dtype and config.torch_dtype and config.dtype != config.torch_dtype:
        raise InputError(f"model.dtype: {config.dtype} differs from torch_dtype {config.torch_dtype}")
    return decode(ModelSpec, {"name": name, **config.shapes()}, "model")


def _family(data: dict[str, Any]) -> str:
    family = data.get("model_type")
    if family is None:
        classes = data.get("architectures")
        named = classes[0] if isinstance(classes, list) and classes else None
        family = _CLASSES.get(named) if isinstance(named, str) else None
        if family is None:
            raise InputError(f"model.model_type: this key is missing; add one of: {_SUPPORTED}")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise InputError(f"model.model_type: {family!r:.60} is not supported; supported: {_SUPPORTED}")
    return family


def _refuse_unsupported(data: dict[str, Any]) -> None:
    if data.get("quantization_config") is not None:
        raise InputError(
            "model.quantization_config: checkpoints that are already quantised are not supported; "
            "take the 16-bit one, and let the plan choose the bits"
        )
    for key in _EXPERTS:
        if data.get(key):
            raise InputError(
                f"model.{key}: mixture-of-experts models are not supported; supported: {_SUPPORTED}"
            )


def catalogue_names() -> list[str]:
    """List the models that come with the package."""
    folder = resources.files("simulator").joinpath("models")
    return sorted(item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json"))


def load_model(name_or_path: str | Path) -> ModelSpec:
    """Read a model by the path of its file or folder, or by its name in the catalogue in any case.

    A path wins over a name of the catalogue, if it holds a ``config.json``.

    Raises:
        InputError: neither of them, or the file is wrong.
    """
    path, name = Path(name_or_path), str(name_or_path).lower()
    if _is(path.is_file) or _is((path / "config.json").is_file):
        return read_config(path)
    known = catalogue_names()
    if name in known:
        return read_config(Path(str(resources.files("simulator").joinpath(f"models/{name}.json"))))
    shown = f"{str(name_or_path)!r:.200}"
    if name and _is(path.is_dir):
        raise InputError(f"model: the folder {shown} holds no config.json; give a checkpoint's folder")
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the catalogue has: {', '.join(known)}"
    raise InputError(f"model: {shown} is neither a file nor a known model; {hint}")


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a name too long for a file
        return False
