"""Small checkpoints with random weights, written by transformers, and what it computes with them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from executor.checkpoint import Checkpoint

_DIMENSIONS: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA = {"model_type": "llama", "intermediate_size": 48, "num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

#: Every architecture and variant of the arithmetic, as changes of a small configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "ffn_dim": 64},
    "opt-350m": {
        "model_type": "opt",
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "opt-bare": {
        "model_type": "opt",
        "ffn_dim": 48,
        "enable_bias": False,
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    },
    "opt-no-final-norm": {"model_type": "opt", "ffn_dim": 64, "_remove_final_layer_norm": True},
    "llama": _LLAMA,
    "llama-tied": _LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama-biased": _LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "llama3": _LLAMA | {"rope_scaling": _LLAMA3, "rope_theta": 100.0, "tie_word_embeddings": True},
    "llama-linear": _LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama-dynamic": _LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama-yarn": _LLAMA | {"rope_scaling": _YARN, "rope_theta": 1000.0},
    "llama-head-dim": _LLAMA | {"head_dim": 16, "rms_norm_eps": 1e-3},
    "mistral": _LLAMA | {"model_type": "mistral", "sliding_window": None},
    "mistral-window": _LLAMA | {"model_type": "mistral", "sliding_window": 32},
    "qwen2": _LLAMA | {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen3": _LLAMA | {"model_type": "qwen3", "head_dim": 16},
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: for small tensors several spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(changes: dict[str, Any], seed: int = 0) -> Any:
    """Build a model whose tensors are all random, norms and biases too, so that none can be forgotten."""
    changes = _DIMENSIONS | changes
    config = transformers.AutoConfig.for_model(changes["model_type"], **without(changes, "model_type"))
    config.dtype = "float32"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                spread = 0.3 if tensor.dim() == 1 else tensor.shape[1] ** -0.5
                tensor.copy_(centre + spread * torch.randn(tensor.shape))
    return model


def without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Leave keys out of a table."""
    return {key: value for key, value in table.items() if key not in keys}


def save(model: Any, folder: Path, **options: Any) -> Checkpoint:
    """Save a model and open it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|huggingface_hub")
        model.save_pretrained(folder, **options)
    return Checkpoint.open(folder)


def reload(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Let transformers load a checkpoint: `to` would round the frequencies of rotary positions too."""
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=dtype).eval()


def change_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file; ``...`` removes one."""
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def next_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Let transformers compute the logits of every position [T,V] of one sequence, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float()


def greedy(model: Any, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Let transformers generate the most likely tokens for one prompt."""
    tokens = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(tokens[0, len(prompt) :].tolist())
