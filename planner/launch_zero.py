"""The configuration with which DeepSpeed's ZeRO-Inference runs a plan.

Keys and units are those of DeepSpeed's configuration reference: sizes count elements, not bytes.
"""

from __future__ import annotations

import json
from typing import Any

from planner.launch_parts import Launch, Wanted, hub_name, not_on_hub, percent

_FILE = "ds_config.json"
_NVME = "/local_nvme"


def zero_inference(plan: Wanted) -> Launch:
    """Write the configuration and the script that uses it."""
    return Launch(
        engine=plan.engine,
        title="ZeRO-Inference: start with `deepspeed --num_gpus 1 run.py`",
        text=_script(plan),
        file="run.py",
        files={_FILE: json.dumps(deepspeed_config(plan), indent=2) + "\n"},
        notes=tuple(_notes(plan)),
    )


def deepspeed_config(plan: Wanted) -> dict[str, Any]:
    """Give the configuration: stage 3 with weights on CPU or NVMe, buffers as large as the model's layers."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.policy.gpu_batch,  # asked for, though nothing is trained
        "fp16": {"enabled": plan.dtype == "float16"},
        "bf16": {"enabled": plan.dtype == "bfloat16"},
        "zero_optimization": _zero(plan),
    }
    if plan.layout.weights.disk > 0:
        config["aio"] = {
            "block_size": 2**20,
            "queue_depth": 8,
            "thread_count": 1,
            "single_submit": False,
            "overlap_events": True,
        }
    if plan.policy.weight_bits < 16:
        config["weight_quantization"] = {
            "quantized_initialization": {
                "num_bits": plan.policy.weight_bits,
                "group_size": plan.policy.quant_group,
                "group_dim": 1,
                "symmetric": False,
            }
        }
    return config


def _zero(plan: Wanted) -> dict[str, Any]:
    """Give the stage-3 part.

    A layer is fetched whole while the one before it is computed, so the prefetch bucket holds ``prefetch``
    layers and as many more than one are alive; a table larger than that must be alive at once too. Biases and
    norms, up to the longest, stay on the GPU.
    """
    block, largest, ahead = (
        _block_elements(plan),
        _largest(plan),
        plan.policy.prefetch if plan.overlaps else 0,
    )
    found: dict[str, Any] = {
        "stage": 3,
        "stage3_prefetch_bucket_size": ahead * block,
        "stage3_max_live_parameters": max((1 + ahead) * block, largest),
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": _longest_vector(plan),
    }
    weights = plan.layout.weights
    if weights.disk > 0:
        found["offload_param"] = {
            "device": "nvme",
            "nvme_path": _NVME,
            "pin_memory": plan.policy.pinned,
            "buffer_count": sum(weight.is_matrix for weight in plan.model.layer_weights()),
            "buffer_size": largest,
            "max_in_cpu": int(weights.cpu * plan.model.num_parameters),
        }
    elif weights.gpu < 1:
        found["offload_param"] = {"device": "cpu", "pin_memory": plan.policy.pinned}
    return found


def _block_elements(plan: Wanted) -> int:
    return sum(weight.numel for weight in plan.model.layer_weights())


def _largest(plan: Wanted) -> int:
    model = plan.model
    return max(w.numel for w in (*model.embed_weights(), *model.layer_weights(), *model.head_weights()))


def _longest_vector(plan: Wanted) -> int:
    weights = (*plan.model.layer_weights(), *plan.model.head_weights())
    return max((weight.numel for weight in weights if not weight.is_matrix), default=0)


def _script(plan: Wanted) -> str:
    work = plan.workload
    return f"""\
import json
from pathlib import Path

import deepspeed
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

config = json.loads(Path("{_FILE}").read_text())
alive = HfDeepSpeedConfig(config)  # before the model is made, and for as long as it lives
model = AutoModelForCausalLM.from_pretrained("{hub_name(plan.model)}", dtype=torch.{plan.dtype})
model = deepspeed.initialize(model=model, config=config)[0].module.eval()
# {plan.prompts} in a batch:
# model.generate(input_ids, max_new_tokens={work.gen_len}, do_sample=False)
"""


def _notes(plan: Wanted) -> list[str]:
    policy, layout = plan.policy, plan.layout
    notes = [f"The batch is {plan.prompts}."]
    if policy.num_groups > 1:
        notes.append(f"One batch runs after the other: {policy.num_groups} of them are a block of the plan.")
    if layout.weights.disk > 0:
        notes.append(f"Put the path of your disk in place of {_NVME}.")
    if 0 < layout.weights.gpu < 1:
        notes.append(
            "ZeRO-Inference streams all matrices, but the plan keeps "
            f"{percent(layout.weights.gpu)} of the weights on the GPU."
        )
    if layout.cache.gpu < 1:
        notes.append(
            "For the cache off the GPU take the changed models of DeepSpeedExamples (inference/huggingface/"
            f"zero_inference): model.set_kv_cache_offload(True, {plan.workload.gen_len}, False, False)."
        )
    if policy.cache_bits < 16:
        notes.append("ZeRO-Inference does not quantise the KV cache; the plan does.")
    return [*notes, *not_on_hub(plan.model)]
