"""A prefix that all prompts share: its keys and values are part of each block, as weights are.

They are the same for every sequence and are only read, so they lie where weights lie: they have homes by the
same rules, are loaded with their layer, and count as the model's bytes. They are never quantised.
"""

from __future__ import annotations

from simulator.model import ModelSpec, Weight
from simulator.model_shape import Positions
from simulator.workload import Workload

#: The name of the tensor that holds a block's keys and values of the prefix.
PREFIX_TENSOR = "shared_prefix.kv"


class PrefixedModel(ModelSpec):
    """A model whose blocks hold keys and values of ``prefix_tokens`` that come before every prompt."""

    prefix_tokens: Positions

    def layer_weights(self) -> tuple[Weight, ...]:
        """List the tensors of one transformer block; those of the prefix come last."""
        size = (self.prefix_tokens, 2, self.num_kv_heads * self.head_dim)  # no matrix: it stays as it is
        return (*super().layer_weights(), Weight(name=PREFIX_TENSOR, shape=size, stage="prefix"))


def with_prefix(model: ModelSpec, workload: Workload) -> ModelSpec:
    """Give the model with the keys and values that a workload's prompts share, and no others."""
    tokens = workload.shared_prefix
    if tokens == (model.prefix_tokens if isinstance(model, PrefixedModel) else 0):
        return model
    plain = without_prefix(model)
    return PrefixedModel(**plain.model_dump(), prefix_tokens=tokens) if tokens else plain


def without_prefix(model: ModelSpec) -> ModelSpec:
    """Give the model itself."""
    if not isinstance(model, PrefixedModel):
        return model
    return ModelSpec(**model.model_dump(exclude={"prefix_tokens"}))
