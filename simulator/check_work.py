"""What must happen: every sequence in flight, once in every layer of every pass, with all its work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simulator.check_tasks import Index, Place, Violation
from simulator.hardware import LANES
from simulator.layers import WORKING, CellKind, first_loaded, layer_kinds
from simulator.layout import Placed
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS
from simulator.policy import FloatArray
from simulator.schedule import Schedule
from simulator.work import Cells, cell_work, staged

_CLOSE = 1e-9

_WHAT = ("FLOPs", "bytes", "kernels", "steps", "blocks")
#: The same, of one task.
Amount = tuple[float, ...]


def work_violations(schedule: Schedule, placed: Placed, index: Index) -> Iterator[Violation]:
    """Compare the tasks of every operation with those that are due."""
    due = due_work(schedule, placed)
    last = max(0, len(schedule) - 1)
    for operation in OPERATIONS:
        name = operation.name
        if name in LAYER_OPERATIONS or operation.cost == "none":
            continue
        wanted, found = due[name], index.cells[name]
        for place in sorted(wanted.keys() - found.keys()):
            yield Violation("work", last, f"{name} is missing at {_show(place)}")
        for place, numbers in found.items():
            counted = operation.lane != "disk_read" or not _reads_together(placed)
            yield from _compare(schedule, name, place, numbers, wanted.get(place, []), counted=counted)
    yield from _layer_loads(schedule, placed, index)


def _reads_together(placed: Placed) -> bool:
    """Whether a read of a mapped file counts all tensors that are read at the same time."""
    return placed.runtime.disk_io == "mapped" and not placed.serial


def _compare(
    schedule: Schedule, name: str, place: Place, numbers: list[int], wanted: list[Amount], *, counted: bool
) -> Iterator[Violation]:
    if len(numbers) != len(wanted):
        message = f"{name} stands {len(numbers)} times at {_show(place)}; {len(wanted)} are due"
        yield Violation("work", numbers[-1], message)
        return
    for number, amounts in zip(numbers, wanted, strict=True):
        for what, column, amount in zip(_WHAT, schedule.work, amounts, strict=True):
            if what == "kernels" and not counted:
                continue
            if abs(column[number] - amount) > _CLOSE * max(amount, 1.0):
                message = f"{name} has {column[number]:.9g} {what}; {amount:.9g} are due"
                yield Violation("work", number, message)


def due_work(schedule: Schedule, placed: Placed) -> dict[str, dict[Place, list[Amount]]]:
    """List the work that is due at every place, one entry for each part of a prompt.

    Amounts are those of ``simulator.operations`` for a cell of its kind and position.
    """
    policy, model = placed.policy, placed.model
    per_cohort = policy.num_groups // policy.cohorts(placed.workload.passes)
    parts = policy.gpu_batch // policy.prompts_together
    amounts = _amounts(schedule, placed)
    due: dict[str, dict[Place, list[Amount]]] = {operation.name: {} for operation in OPERATIONS}
    for pass_index, one in enumerate(schedule.window.passes):
        for layer, kind in enumerate(layer_kinds(model, placed.runtime)):
            for cohort, position in one.cohorts:
                each = amounts[kind, position]
                for group in range(cohort * per_cohort, (cohort + 1) * per_cohort):
                    for name, amount in each.items():
                        count = parts if position == 0 else 1
                        due[name][pass_index, layer, group] = [amount] * count
    if placed.runtime.dequantize == "per_pass":
        due["dequantize_weights"] = _first_of_layers(schedule, due["dequantize_weights"])
    return due


def _amounts(schedule: Schedule, placed: Placed) -> dict[tuple[CellKind, int], dict[str, Amount]]:
    """Give the operations that are due in a cell of each kind and position, with their work."""
    positions = sorted({position for one in schedule.window.passes for _, position in one.cohorts})
    policy, workload = placed.policy, placed.workload
    places = [(kind, position) for kind in WORKING for position in positions]
    new = np.array([1.0 if t else float(workload.own_len) for _, t in places])
    cells = Cells(
        kind=np.array([int(kind) for kind, _ in places]),
        sequences=np.array([float(policy.gpu_batch if t else policy.prompts_together) for _, t in places]),
        new=new,
        cached=np.array([float(workload.own_len + t - 1 if t else 0) for _, t in places]),
        kept=np.zeros(len(places)) if workload.scores else new,
        judged=new if workload.scores else np.ones(len(places)),
        prefix=np.full(len(places), float(workload.shared_prefix)),
    )
    amounts: dict[tuple[CellKind, int], dict[str, Amount]] = {place: {} for place in places}
    for name, work in cell_work(placed.model, placed.shape, placed.runtime, cells).items():
        forms = (work.flops, work.bytes, work.blocks)
        flops, bytes_, blocks = (form @ placed.placement for form in forms)
        share = _table_share(name, placed)
        columns = (flops, bytes_ * share, work.kernels, work.steps, blocks * share)
        for row, place in enumerate(places):
            amount = tuple(float(column[row]) for column in columns)
            if amount[0] + amount[1] > 0:
                amounts[place][name] = amount
    return amounts


def _table_share(name: str, placed: Placed) -> float:
    """Correct embedding rows from the share of all weights on a tier to that of the table itself."""
    if name not in ("read_embeddings", "load_embeddings"):
        return 1.0
    tied = placed.model.tied_embeddings
    _, on_cpu, on_disk = placed.layer_bytes[-1 if tied else 0] / placed.layer_bytes[-1 if tied else 0].sum()
    weights = placed.layout.weights
    if name == "read_embeddings":
        return float(on_disk / weights.disk) if weights.disk else 0.0
    return float((on_cpu + on_disk) / (weights.cpu + weights.disk)) if weights.cpu + weights.disk else 0.0


def _first_of_layers(schedule: Schedule, due: dict[Place, list[Amount]]) -> dict[Place, list[Amount]]:
    """Keep what is due once a layer where its first cell is: the group whose kernels come first."""
    first: dict[tuple[int, int], Place] = {}
    begins = np.isin(schedule.operation, [OP[name] for name in ("embed", "qkv", "mlp", "head")])
    for number in np.nonzero(begins)[0].tolist():
        place = (int(schedule.pass_index[number]), int(schedule.layer[number]), int(schedule.group[number]))
        first.setdefault(place[:2], place)
    return {place: due[place][:1] for place in first.values() if place in due}


def _layer_loads(schedule: Schedule, placed: Placed, index: Index) -> Iterator[Violation]:
    """The bytes of every layer are read and loaded once in every pass; a layer on the GPU never."""
    sizes = _loaded(placed)
    last = max(0, len(schedule) - 1)
    for name in LAYER_OPERATIONS:
        for pass_index in range(len(schedule.window.passes)):
            for layer in range(len(placed.layer_bytes)):
                size = float(sizes[name][layer]) if layer >= first_loaded(placed.runtime) else 0.0
                numbers = index.layers[name].get((pass_index, layer), [])
                moved = float(schedule.bytes[numbers].sum())
                if abs(moved - size) > _CLOSE * max(size, 1.0):
                    message = f"{name} moves {moved:.9g} of {size:.9g} bytes of p{pass_index} l{layer}"
                    yield Violation("work", numbers[-1] if numbers else last, message)
                yield from _copies(schedule, placed, name, layer, numbers)


def _loaded(placed: Placed) -> dict[str, FloatArray]:
    """Give the bytes of every layer that each operation of a layer moves. [layers] each"""
    _, on_cpu, on_disk = placed.layer_bytes.T
    mapped = placed.runtime.disk_io == "mapped"
    return {
        "stage_weights": on_cpu * staged(placed.runtime, placed.shape, "weights"),
        "read_weights": on_disk,
        "load_weights": on_cpu + on_disk * (not mapped),
        "relay_weights": on_disk * mapped,
    }


def _tensors_moved(placed: Placed, name: str, layer: int) -> float:
    """Count the matrices of a layer, or parts of matrices, that an operation moves."""
    _, on_cpu, on_disk = placed.layer_tensors[layer].tolist()
    mapped = placed.runtime.disk_io == "mapped"
    of = {"stage_weights": on_cpu, "load_weights": on_cpu if mapped else on_cpu + on_disk}
    return float(of.get(name, on_disk))


def _copies(
    schedule: Schedule, placed: Placed, name: str, layer: int, numbers: list[int]
) -> Iterator[Violation]:
    """Loads compute nothing; they come in equal pieces, or in one burst tensor by tensor."""
    for number in numbers:
        if schedule.flops[number] or schedule.steps[number] or schedule.blocks[number]:
            yield Violation("work", number, f"{name} is a copy and computes nothing")
    if placed.runtime.weight_loads == "chunked":
        yield from _even_pieces(schedule, name, numbers)
    elif name != "read_weights" or not _reads_together(placed):
        due = _tensors_moved(placed, name, layer)
        for number in numbers:
            if schedule.kernels[number] != due:
                message = f"{name} has {schedule.kernels[number]:.9g} kernels; {due:.9g} are due"
                yield Violation("work", number, message)


def stream_violations(schedule: Schedule, placed: Placed) -> Iterator[Violation]:
    """Of mapped files every read counts the tensors of all reads between the same barriers, if it has any."""
    if placed.runtime.synchronization != "barrier" or not _reads_together(placed):
        return
    due = due_work(schedule, placed)
    reads = np.nonzero(schedule.lane == LANES.index("disk_read"))[0]
    row = np.cumsum(schedule.where("sync"))[reads]
    own = np.zeros(len(reads))
    for place, number in enumerate(reads.tolist()):
        task = schedule.task(number)
        if task.operation == "read_weights":
            own[place] = _tensors_moved(placed, task.operation, task.layer)
        else:
            own[place] = due[task.operation][task.pass_index, task.layer, task.group][0][2]
    together = np.bincount(row, own, minlength=1)[row] * (own > 0)
    for number, count in zip(reads.tolist(), together.tolist(), strict=True):
        if schedule.kernels[number] != count:
            message = f"{schedule.kernels[number]:.9g} tensors are read at once; {count:.9g} are due"
            yield Violation("work", number, message)


def _even_pieces(schedule: Schedule, name: str, numbers: list[int]) -> Iterator[Violation]:
    """Pieces of one layer are of equal size, and each is one copy."""
    for number in numbers:
        piece = schedule.bytes[numbers[0]]
        even = abs(schedule.bytes[number] - piece) <= _CLOSE * piece
        if not even or schedule.kernels[number] != 1:
            yield Violation("work", number, f"{name} is not one copy of an equal piece of its layer")


def _show(place: Place) -> str:
    return f"p{place[0]} l{place[1]} g{place[2]}"
