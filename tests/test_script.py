"""Scripts: what the tasks of any schedule mean, and that nothing that they name is still in use.

Whether a task surely follows another one is asked of the vector clocks of the checker, which know waits and
lanes only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.script import Script
from simulator.check_order import WEIGHT_USERS
from simulator.check_slots import USES
from simulator.check_tasks import Index
from simulator.generate import generate
from simulator.layout import Placed, lay_out
from simulator.memory import BUFFERS, BufferName
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS
from simulator.runtime import load_runtime
from simulator.schedule import Schedule
from tests.strategies import layouts, models, policies, workloads
from tests.test_schedule import tiny_layout

Holder = tuple[int, ...]
small = settings(max_examples=30)


@st.composite
def plans(draw: st.DrawFn) -> Placed:
    """Draw a layout for the executor's own runtime, as it is or with other slots and lookahead."""
    if draw(st.booleans()):
        return draw(layouts(names=("reference",)))
    runtime, workload = load_runtime("reference"), draw(workloads())
    return lay_out(draw(models()), runtime, workload, draw(policies(runtime, workload)))


def read(placed: Placed) -> tuple[Schedule, Script]:
    """Generate a schedule and read it."""
    schedule = generate(placed)
    return schedule, Script.of(schedule, placed.model.num_layers + 1)


def numbers(mask: npt.NDArray[np.bool_]) -> list[int]:
    """List the tasks that are marked."""
    return [int(number) for number in np.nonzero(mask)[0]]


def holder(schedule: Schedule, script: Script, buffer: BufferName, number: int) -> Holder:
    """Name whose slot it is: a layer's, or a cell's, or that of one part of a cell's prompts."""
    place = (int(schedule.pass_index[number]), int(schedule.layer[number]))
    return place if USES[buffer].of_layer else (*place, int(schedule.group[number]), int(script.part[number]))


def users(schedule: Schedule, script: Script, buffer: BufferName) -> dict[Holder, list[int]]:
    """List the tasks that fill or use or free a slot, by holder."""
    names = (*USES[buffer].fills, *USES[buffer].users)
    here = np.isin(schedule.operation, [OP[name] for name in names])
    here |= (schedule.frees >> BUFFERS.index(buffer) & 1).astype(bool)
    found: dict[Holder, list[int]] = defaultdict(list)
    for number in numbers(here):
        found[holder(schedule, script, buffer, number)].append(number)
    return found


def takes(schedule: Schedule, buffer: BufferName) -> list[int]:
    """List the tasks that take a slot, in issue order."""
    return numbers(schedule.takes == BUFFERS.index(buffer))


@small
@given(plans())
def test_a_slot_is_never_taken_while_it_is_held(placed: Placed) -> None:
    """Every task that takes a slot surely follows all that used it for the holder before."""
    schedule, script = read(placed)
    index = Index.of(schedule)
    assert ((script.slot >= 0) == (schedule.takes >= 0)).all()
    for buffer in BUFFERS:
        used = users(schedule, script, buffer)
        last: dict[int, int] = {}
        for taker in takes(schedule, buffer):
            slot = int(script.slot[taker])
            assert 0 <= slot < schedule.slots[buffer]
            if slot in last:
                before = used[holder(schedule, script, buffer, last[slot])]
                assert all(index.before(user, taker) for user in before)
            last[slot] = taker


@small
@given(plans())
def test_parts_are_numbered(placed: Placed) -> None:
    """The parts of a load, and of a cell's prompts, are counted from 0 in the order of issue."""
    schedule, script = read(placed)
    found: dict[Holder, list[int]] = defaultdict(list)
    for number in range(len(schedule)):
        operation, group = int(schedule.operation[number]), int(schedule.group[number])
        of_layer = OPERATIONS[operation].name in LAYER_OPERATIONS
        place = (int(schedule.pass_index[number]), int(schedule.layer[number]), -1 if of_layer else group)
        found[operation, *place].append(number)
    prompts = placed.policy.gpu_batch // placed.policy.prompts_together
    for (operation, *_), tasks in found.items():
        assert script.part[tasks].tolist() == list(range(len(tasks)))
        assert set(script.parts[tasks].tolist()) == {len(tasks)}
        assert OPERATIONS[operation].name in LAYER_OPERATIONS or len(tasks) in {1, prompts}


@small
@given(plans())
def test_layers_take_turns_in_the_slots_of_weights(placed: Placed) -> None:
    """Layers count on over the passes; loads fill, and kernels find, what nothing else is using."""
    schedule, script = read(placed)
    index, slots = Index.of(schedule), schedule.slots["weights"]
    loads = np.isin(schedule.operation, [OP[name] for name in LAYER_OPERATIONS])
    use = loads | np.isin(schedule.operation, [OP[name] for name in WEIGHT_USERS])
    layers: dict[int, list[int]] = defaultdict(list)
    for number in numbers(use & (schedule.layer > 0)):
        count = (
            int(schedule.pass_index[number]) * (placed.model.num_layers + 1) + int(schedule.layer[number]) - 1
        )
        assert script.weights[number] == count % slots
        layers[count].append(number)
    for count, tasks in layers.items():
        filling = [
            number
            for number in tasks
            if loads[number] and OPERATIONS[schedule.operation[number]].lane == "h2d"
        ]
        assert all(index.before(user, load) for user in layers.get(count - slots, []) for load in filling)


@small
@given(plans())
def test_loads_come_through_what_the_first_read_took(placed: Placed) -> None:
    """All reads and loads of a layer name the same staging slot, that is not yet the next layer's."""
    schedule, script = read(placed)
    index = Index.of(schedule)
    use = np.isin(schedule.operation, [OP["read_weights"], OP["load_weights"]])
    layers: dict[Holder, list[int]] = defaultdict(list)
    for number in numbers(use):
        layers[holder(schedule, script, "weight_staging", number)].append(number)
    before: dict[int, list[int]] = {}
    for taker in takes(schedule, "weight_staging"):
        mine = layers[holder(schedule, script, "weight_staging", taker)]
        slot = int(script.slot[taker])
        assert set(script.staging[mine].tolist()) == {slot}
        assert taker == min(each for each in mine if schedule.operation[each] == OP["read_weights"])
        reads = [each for each in mine if schedule.operation[each] == OP["read_weights"]]
        assert all(index.before(old, each) for old in before.get(slot, []) for each in reads)
        before[slot] = mine


def ring(schedule: Schedule, script: Script, size: int) -> Iterator[tuple[Holder, Holder]]:
    """List pairs of cells with attention on the CPU that share a place of a ring: one, and the next there."""
    cells = [holder(schedule, script, "cache", number) for number in numbers(schedule.where("store_query"))]
    return zip(cells, cells[size:], strict=False)


@small
@given(plans())
def test_cells_take_turns_in_rings(placed: Placed) -> None:
    """Cells with attention on the CPU are counted; with a place more than run ahead none is overwritten.

    Queries are there until attention has read them, its outputs until they are loaded, the newest records
    until attention has them.
    """
    schedule, script = read(placed)
    index = Index.of(schedule)
    stores = numbers(schedule.where("store_query"))
    assert script.order[stores].tolist() == list(range(len(stores)))
    for one, two in ring(schedule, script, 1 + placed.ahead):

        def at(name: str, cell: Holder) -> list[int]:
            return index.at(name, (cell[0], cell[1], cell[2]))

        for filled, read_by in (
            ("store_query", "attend_cpu"),
            ("store_cache", "attend_cpu"),
            ("attend_cpu", "load_output"),
        ):
            for earlier in at(read_by, one):
                assert all(index.before(earlier, later) for later in at(filled, two))


def test_by_hand() -> None:
    """Two slots for two blocks and the head, in turns; the head reads nothing, so staging goes on."""
    schedule, script = read(tiny_layout())

    def found(operation: str) -> dict[tuple[int, int], list[tuple[int, int, int, int]]]:
        """List the parts of every layer: part, slot taken, slot of weights, slot of staging."""
        layers = defaultdict(list)
        columns = (script.part, script.slot, script.weights, script.staging)
        for number in numbers(schedule.where(operation)):
            part, slot, weights, staging = (int(column[number]) for column in columns)
            place = (int(schedule.pass_index[number]), int(schedule.layer[number]))
            layers[place].append((part, slot, weights, staging))
        return dict(layers)

    assert found("read_weights") == {
        (0, 1): [(0, 0, 0, 0)],  # before the first pass, in one go
        (0, 2): [(0, 1, 1, 1), (1, -1, 1, 1)],
        (1, 1): [(0, 0, 1, 0), (1, -1, 1, 0)],
        (1, 2): [(0, 1, 0, 1), (1, -1, 0, 1)],
    }
    assert found("load_weights") == {
        (0, 1): [(0, 0, 0, 0)],
        (0, 2): [(0, 1, 1, 1), (1, -1, 1, 1)],
        (0, 3): [(0, 0, 0, 0), (1, -1, 0, 0)],
        (1, 1): [(0, 1, 1, 0), (1, -1, 1, 0)],
        (1, 2): [(0, 0, 0, 1), (1, -1, 0, 1)],
        (1, 3): [(0, 1, 1, 0), (1, -1, 1, 0)],
    }


@pytest.mark.parametrize("prompt_batch", [None, 1])
def test_parts_of_prompts_by_hand(prompt_batch: int | None) -> None:
    """With one prompt at a time a group of two has two parts in the first pass, and one after it."""
    schedule, script = read(tiny_layout(prompt_batch=prompt_batch))
    here = schedule.where("qkv") & (schedule.layer == 1) & (schedule.group == 0)
    parts = [(int(schedule.pass_index[n]), int(script.part[n]), int(script.parts[n])) for n in numbers(here)]
    assert parts == ([(0, 0, 2), (0, 1, 2), (1, 0, 1)] if prompt_batch else [(0, 0, 1), (1, 0, 1)])
