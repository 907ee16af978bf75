"""Data is there before it is used: what each operation needs, and weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from simulator.check_tasks import Index, Place, Violation
from simulator.layers import first_loaded
from simulator.layout import Placed
from simulator.schedule import Schedule

Relation = Literal["own", "above", "before", "token"]

_CPU = ("dequantize_cache_cpu", "attend_cpu")
_ATTENDED = ("attend_prefix", "attend_prompt", "attend")

#: (operation, what must have ended before it starts, where): in its ``own`` cell; for the same sequences in
#: the layer ``above``; for the group in the same layer of the pass ``before``; the ``token`` that the pass
#: before chose. Of these, what a layout does not need does not stand in the schedule.
NEEDS: tuple[tuple[str, str, Relation], ...] = (
    ("read_embeddings", "head", "token"),
    ("load_embeddings", "head", "token"),
    ("load_embeddings", "read_embeddings", "own"),
    ("embed", "head", "token"),
    ("embed", "load_embeddings", "own"),
    ("read_activations", "write_activations", "above"),
    ("load_activations", "read_activations", "own"),
    ("load_activations", "store_activations", "above"),
    ("qkv", "load_activations", "own"),
    ("qkv", "dequantize_weights", "own"),
    ("qkv", "embed", "above"),
    ("qkv", "mlp", "above"),
    ("quantize_cache", "qkv", "own"),
    ("store_query", "qkv", "own"),
    ("store_cache", "qkv", "own"),
    ("store_cache", "quantize_cache", "own"),
    ("write_cache", "store_cache", "own"),
    ("read_cache", "write_cache", "before"),
    ("load_cache", "read_cache", "own"),
    ("load_cache", "store_cache", "before"),
    ("load_cache", "stage_cache", "own"),
    ("stage_cache", "store_cache", "before"),
    ("expand_cache", "store_cache", "before"),
    *((operation, "store_cache", "before") for operation in _CPU),
    *((operation, "read_cache", "own") for operation in _CPU),
    ("attend_cpu", "dequantize_cache_cpu", "own"),
    ("attend_cpu", "expand_cache", "own"),
    ("attend_cpu", "store_query", "own"),
    ("attend_cpu", "store_cache", "own"),
    ("load_output", "attend_cpu", "own"),
    ("dequantize_cache", "load_cache", "own"),
    ("attend_prompt", "qkv", "own"),
    ("attend", "qkv", "own"),
    ("attend_prefix", "qkv", "own"),
    ("attend", "load_cache", "own"),
    ("attend", "dequantize_cache", "own"),
    *(("project", need, "own") for need in ("qkv", *_ATTENDED, "load_output")),
    *((kernel, "dequantize_weights", "own") for kernel in ("embed", "mlp", "head")),
    ("mlp", "project", "above"),
    ("mlp", "load_activations", "own"),
    ("mlp", "qkv", "own"),
    *(("mlp", need, "own") for need in _ATTENDED),
    ("mlp", "load_output", "own"),
    ("head", "load_activations", "own"),
    ("head", "mlp", "above"),
    ("store_activations", "embed", "own"),
    ("store_activations", "project", "own"),
    ("store_activations", "mlp", "own"),
    ("write_activations", "store_activations", "own"),
)

#: Operations that use a layer's weights; the first may expand them for the others.
WEIGHT_USERS = ("dequantize_weights", "embed", "qkv", "attend_prefix", "project", "mlp", "head")

_CLOSE = 1e-9


def order_violations(index: Index) -> Iterator[Violation]:
    """Everything that an operation needs has ended before it starts."""
    head_layer = max((layer for _, layer, _ in index.cells["head"]), default=-1)
    for name, need, relation in NEEDS:
        if not index.cells[need]:
            continue
        for place, numbers in index.cells[name].items():
            for part, number in enumerate(numbers):
                for other in _needed(index, need, relation, place, part, head_layer):
                    if not index.before(other, number):
                        message = f"{name} needs {need}, task {other}, which need not have ended"
                        yield Violation("order", number, message)


def _needed(
    index: Index, need: str, relation: Relation, place: Place, part: int, head_layer: int
) -> list[int]:
    """Find the tasks that a relation names; part k of a prompt needs part k of its own sequences."""
    pass_index, layer, group = place
    if relation in ("own", "above"):
        found = index.at(need, place if relation == "own" else (pass_index, layer - 1, group))
        return found[part : part + 1]
    if pass_index == 0:
        return []
    return index.at(need, (pass_index - 1, head_layer if relation == "token" else layer, group))


def weight_violations(schedule: Schedule, placed: Placed, index: Index) -> Iterator[Violation]:
    """Weights: complete before their first use, their disk share before their load, not too far ahead."""
    mapped = placed.runtime.disk_io == "mapped"
    from_disk = index.layers["relay_weights" if mapped else "load_weights"]
    for (pass_index, layer), loads in loads_of_layers(index).items():
        for name in WEIGHT_USERS:
            for user in index.layers[name].get((pass_index, layer), []):
                late = [load for load in loads if not index.before(load, user)]
                if late:
                    message = f"{name} uses weights that need not be loaded (task {late[0]})"
                    yield Violation("weights", user, message)
        for need, loading in (("read_weights", from_disk), ("stage_weights", index.layers["load_weights"])):
            reads = index.layers[need].get((pass_index, layer), [])
            if reads:
                yield from _read_first(schedule, index, loading[pass_index, layer], reads)
        yield from _not_too_early(placed, index, (pass_index, layer), loads)
    yield from _expanded(index)


def loads_of_layers(index: Index) -> dict[tuple[int, int], list[int]]:
    """List the tasks that bring a layer's weights to the GPU, by pass and layer, in issue order."""
    found: dict[tuple[int, int], list[int]] = {}
    for name in ("load_weights", "relay_weights"):
        for place, numbers in index.layers[name].items():
            found[place] = sorted([*found.get(place, []), *numbers])
    return found


def _read_first(schedule: Schedule, index: Index, loads: list[int], reads: list[int]) -> Iterator[Violation]:
    """As much of a layer's disk share has been read as of the layer is loaded."""
    read_in_all, loaded_in_all = schedule.bytes[reads].sum(), schedule.bytes[loads].sum()
    loaded = 0.0
    for load in loads:
        loaded += schedule.bytes[load]
        read = sum(schedule.bytes[other] for other in reads if index.before(other, load))
        if read / read_in_all < loaded / loaded_in_all - _CLOSE:
            message = "it loads weights that need not have been read, or staged, before"
            yield Violation("weights", load, message)


def _not_too_early(
    placed: Placed, index: Index, place: tuple[int, int], loads: list[int]
) -> Iterator[Violation]:
    """A layer is loaded when the one ``prefetch`` + 1 before it, in this pass or the last, is done."""
    first = first_loaded(placed.runtime)
    layers = len(placed.layer_bytes) - first
    number = place[0] * layers + place[1] - first - (placed.policy.prefetch + 1)
    if number < 0:
        return
    before = (number // layers, number % layers + first)
    for name in WEIGHT_USERS:
        for user in index.layers[name].get(before, []):
            if not index.before(user, loads[0]):
                message = f"it loads more than {placed.policy.prefetch} layers ahead of task {user}"
                yield Violation("prefetch", loads[0], message)
                return


def _expanded(index: Index) -> Iterator[Violation]:
    """Quantised weights that are expanded once for a layer are expanded before any cell uses them."""
    for place, expanding in index.layers["dequantize_weights"].items():
        for name in WEIGHT_USERS[1:]:
            for user in index.layers[name].get(place, []):
                if not index.before(expanding[0], user):
                    yield Violation("order", user, f"weights are expanded later, by task {expanding[0]}")
