"""FlexGen's placement rules, and the integer percentages that make them realise a layout.

FlexGen places a weight where the middle of its elements falls within its half of a block (or within the
input or output layer): disk first, then CPU, then GPU. So few shares exist, and the percentage to type is not
the share that results. Shares count matrices only: norms and biases are a ten-thousandth, and FlexGen orders
them differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from simulator.layout import Layout
from simulator.model import ModelSpec, Weight
from simulator.policy import Split

_SLACK = 1e-9


@dataclass(frozen=True)
class Group:
    """Tensors that FlexGen places together, in its order, and how many such groups the model has.

    Attributes:
        tensors: in the order in which their sizes are added up.
        copies: one for the input and the output layer, the number of blocks for their halves.
        last: whether a tensor that a layout lists several times is the last of them here, not the first.
    """

    tensors: tuple[Weight, ...]
    copies: int = 1
    last: bool = False


@dataclass(frozen=True)
class Percents:
    """Two integers to type, the shares on GPU, CPU and disk that result, and whether these are planned."""

    gpu: int
    cpu: int
    shares: tuple[float, float, float]
    exact: bool


def stored_groups(model: ModelSpec) -> tuple[Group, ...]:
    """List what FlexGen stores: input layer, halves of the blocks, output layer; a tied table twice."""
    block = model.layer_weights()
    head = model.head_weights()
    embed = model.embed_weights()
    if model.tied_embeddings:
        embed = (next(each for each in head if each.name == "lm_head.weight"), *embed)
    return (
        Group(embed),
        Group(_norms_last(each for each in block if each.stage != "mlp"), model.num_layers),
        Group(_norms_last(each for each in block if each.stage == "mlp"), model.num_layers),
        Group(head, last=True),
    )


def _norms_last(tensors: Iterable[Weight]) -> tuple[Weight, ...]:
    return tuple(sorted(tensors, key=lambda each: "layer_norm" in each.name))


def realised_share(groups: Iterable[Group], gpu: int, cpu: int) -> tuple[float, float, float]:
    """Give the shares of matrix elements on GPU, CPU and disk that FlexGen makes of two percentages.

    A tensor whose middle lies at ``m`` percent of its group is on disk if ``m < 100 - gpu - cpu``, otherwise
    on the CPU if ``m < 100 - gpu``, otherwise on the GPU.
    """
    held = [0.0, 0.0, 0.0]
    for group in groups:
        total = sum(tensor.numel for tensor in group.tensors)
        before = 0
        for tensor in group.tensors:
            middle = 100 * (before + tensor.numel / 2) / total
            before += tensor.numel
            if tensor.is_matrix:
                tier = 2 if middle < 100 - gpu - cpu else 1 if middle < 100 - gpu else 0
                held[tier] += group.copies * tensor.numel
    return _shares(held)


def laid_out_share(groups: Iterable[Group], layout: Layout) -> tuple[float, float, float]:
    """Give the same shares of a plan's layout, whose tied table may lie in one place."""
    held = [0.0, 0.0, 0.0]
    for group in groups:
        for tensor in group.tensors:
            if tensor.is_matrix:
                for tier, share in enumerate(_of_tensor(tensor, group, layout)):
                    held[tier] += share * tensor.numel
    return _shares(held)


def _of_tensor(tensor: Weight, group: Group, layout: Layout) -> list[float]:
    if layout.grain == "row":
        return [group.copies * share for share in layout.rows[tensor.name]]
    letters = layout.tensors[tensor.name]
    if group.copies == 1:
        letters = letters[-1] if group.last else letters[0]
    return [letters.count(letter) for letter in "gcd"]


def _shares(held: list[float]) -> tuple[float, float, float]:
    total = sum(held)
    return held[0] / total, held[1] / total, held[2] / total


def weight_percents(model: ModelSpec, layout: Layout, asked: Split) -> Percents:
    """Find percentages whose realised shares are the layout's.

    If none is exact: the largest share on the GPU that is not above the layout's, and with it the largest on
    GPU and CPU together that is not above the layout's. Of several percentages with these shares, the one
    nearest to ``asked``, which is what the policy says.
    """
    groups = stored_groups(model)
    target = laid_out_share(groups, layout)
    on_gpu = {gpu: realised_share(groups, gpu, 0)[0] for gpu in range(101)}
    gpu = _nearest(on_gpu, target[0], 100 * asked.gpu)
    on_both = {cpu: 1 - realised_share(groups, gpu, cpu)[2] for cpu in range(101 - gpu)}
    no_disk = target[2] < _SLACK
    cpu = 100 - gpu if no_disk else _nearest(on_both, target[0] + target[1], 100 * asked.cpu)
    return _percents(gpu, cpu, realised_share(groups, gpu, cpu), target)


def cache_percents(sequences: int, cache: Split, *, whole: bool) -> Percents:
    """Find percentages for the KV cache of a group, which FlexGen splits into whole sequences, rounded down.

    With ``whole`` (a compressed cache) it stays in one place: the slowest that the plan uses.
    """
    target = (cache.gpu, cache.cpu, cache.disk)
    if whole or max(target) > 1 - _SLACK:
        gpu, cpu = _in_one_place(cache)
        return _percents(gpu, cpu, (gpu / 100, cpu / 100, (100 - gpu - cpu) / 100), target)
    rounded = {each: sequences * each // 100 / sequences for each in range(101)}
    gpu = _nearest(rounded, cache.gpu, 100 * cache.gpu) if cache.gpu * sequences > 1 - _SLACK else 0
    if cache.disk < _SLACK:
        return _percents(gpu, 100 - gpu, (rounded[gpu], 1 - rounded[gpu], 0.0), target)
    below = {each: rounded[gpu] + rounded[each] for each in range(101 - gpu)}
    cpu = _nearest(below, cache.gpu + cache.cpu, 100 * cache.cpu)
    return _percents(gpu, cpu, (rounded[gpu], rounded[cpu], 1 - below[cpu]), target)


def activation_percents(activations: Split) -> Percents:
    """Find percentages for activations, which FlexGen keeps in one place: the slowest that the plan uses."""
    gpu, cpu = _in_one_place(activations)
    target = (activations.gpu, activations.cpu, activations.disk)
    return _percents(gpu, cpu, (gpu / 100, cpu / 100, (100 - gpu - cpu) / 100), target)


def _in_one_place(split: Split) -> tuple[int, int]:
    if split.disk > _SLACK:
        return 0, 0
    return (0, 100) if split.cpu > _SLACK else (100, 0)


def _nearest(realised: dict[int, float], target: float, asked: float) -> int:
    """Pick the percentage with the largest share that is not above the target, nearest to what was asked.

    Nothing and all are typed as 0 and 100.
    """
    best = max(share for share in realised.values() if share <= target + _SLACK)
    same = [each for each, share in realised.items() if math.isclose(share, best, abs_tol=_SLACK)]
    plain = round(100 * best)
    if best in (0.0, 1.0) and plain in same:
        return plain
    return min(same, key=lambda each: (abs(each - asked), each))


def _percents(
    gpu: int, cpu: int, shares: tuple[float, float, float], target: tuple[float, float, float]
) -> Percents:
    exact = all(abs(one - other) < _SLACK for one, other in zip(shares, target, strict=True))
    return Percents(gpu, cpu, shares, exact)
