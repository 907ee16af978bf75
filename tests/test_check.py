"""The checker: it accepts every generated schedule and catches every single mutation of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.check import ScheduleError, check, violations
from simulator.check_tasks import Index
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.layout import Placed, lay_out
from simulator.memory import BUFFERS
from simulator.model_config import parse_config
from simulator.operations import LAYER_OPERATIONS, OP
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import load_runtime
from simulator.schedule import Schedule
from simulator.workload import Workload
from tests.strategies import layouts

WORK = ("flops", "bytes", "kernels", "steps", "blocks")
COLUMNS = ("operation", "lane", "pass_index", "layer", "group", *WORK, "takes", "frees")
KERNELS = ("dequantize_weights", "qkv", "quantize_cache", "dequantize_cache", "attend", "mlp")


def small(runtime: str = "reference", **changes: object) -> Placed:
    """Lay out two layers, two groups and two passes that use every tier for everything."""
    model = parse_config(
        {
            "model_type": "opt",
            "hidden_size": 16,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 64,
            "max_position_embeddings": 64,
            "dtype": "float16",
        },
        "tiny",
    )
    policy = Policy(
        gpu_batch=4,
        num_groups=2,
        weights=Split(gpu=0.25, cpu=0.25, disk=0.5),
        cache=Split(gpu=0.25, cpu=0.25, disk=0.5),
        activations=Split(gpu=0, cpu=0.5, disk=0.5),
        cpu_attention=CpuAttention(cpu=0.5, disk=0.5),
        weight_bits=4,
        cache_bits=8,
    )
    workload = Workload(prompt_len=8, gen_len=2)
    return lay_out(model, load_runtime(runtime), workload, policy.model_copy(update=changes))


def rearranged(schedule: Schedule, numbers: list[int]) -> Schedule:
    """Keep only these tasks, in this order; waits for others are dropped."""
    new = np.full(len(schedule) + 1, -1, dtype=np.int32)
    new[numbers] = np.arange(len(numbers))
    columns = {name: getattr(schedule, name)[numbers] for name in COLUMNS}
    return replace(schedule, waits_for=new[schedule.waits_for[numbers]], **columns)


def changed(schedule: Schedule, column: str, at: object, value: object) -> Schedule:
    """Change single entries of a column."""
    entries = getattr(schedule, column).copy()
    entries[at] = value
    return replace(schedule, **{column: entries})


def drawn(data: st.DataObject, most: int = 700) -> tuple[Placed, Schedule]:
    """Draw a layout with its schedule."""
    placed = data.draw(layouts())
    schedule = generate(placed, data.draw(st.sampled_from([None, 3])))
    assume(len(schedule) <= most)
    return placed, schedule


@given(layouts(), st.sampled_from([None, 3, 4]))
def test_every_generated_schedule_is_legal(placed, max_passes):
    """Law 1: what the generator makes obeys the rules, for every traversal, runtime and placement."""
    check(generate(placed, max_passes), placed)


@given(st.data())
def test_dropping_a_wait_is_caught(data):
    """Law 1: without a wait that no other waits and lanes imply, some rule is broken."""
    placed, schedule = drawn(data)
    edges = np.argwhere(schedule.waits_for >= 0).tolist()
    assume(edges)
    for task, column in data.draw(st.lists(st.sampled_from(edges), min_size=1, max_size=5)):
        other = int(schedule.waits_for[task, column])
        mutant = changed(schedule, "waits_for", (task, column), -1)
        if not Index.of(mutant).before(other, task):
            assert violations(mutant, placed), f"{schedule.task(task)} without its wait for {other}"


@given(st.data())
def test_dropping_a_task_is_caught(data):
    """Law 1: a schedule without one of its loads, stores or kernels is not accepted."""
    placed, schedule = drawn(data)
    works = np.nonzero(schedule.operation != OP["sync"])[0].tolist()
    dropped = data.draw(st.sampled_from(works))
    mutant = rearranged(schedule, [number for number in range(len(schedule)) if number != dropped])
    assert {one.rule for one in violations(mutant, placed)} == {"work"}


@given(st.data())
def test_repeating_a_task_is_caught(data):
    """Law 1: a schedule that does something twice is not accepted."""
    placed, schedule = drawn(data)
    works = np.nonzero(schedule.operation != OP["sync"])[0].tolist()
    twice = data.draw(st.sampled_from(works))
    numbers = sorted([*range(len(schedule)), twice])
    new = np.append(np.searchsorted(numbers, np.arange(len(schedule))), -1).astype(np.int32)
    columns = {name: getattr(schedule, name)[numbers] for name in COLUMNS}
    mutant = replace(schedule, waits_for=new[schedule.waits_for[numbers]], **columns)
    assert {one.rule for one in violations(mutant, placed)} == {"work"}


@given(st.data(), st.sampled_from(WORK))
def test_changing_work_is_caught(data, column):
    """Law 1: FLOPs, bytes, kernels, steps and blocks of every task are those of the cost model."""
    placed, schedule = drawn(data)
    works = np.nonzero(schedule.operation != OP["sync"])[0].tolist()
    task = data.draw(st.sampled_from(works))
    value = getattr(schedule, column)[task] * 1.01 + 1.0
    found = violations(changed(schedule, column, task, value), placed)
    assert {one.rule for one in found} == {"work"}
    if schedule.operation[task] not in [OP[name] for name in LAYER_OPERATIONS]:
        assert [one.task for one in found] == [task]


@given(st.data())
def test_swapping_dependent_tasks_is_caught(data):
    """Law 1: two tasks of one lane of which one waits for the other, however far, cannot change places."""
    placed, schedule = drawn(data)
    later = data.draw(st.sampled_from(range(len(schedule))))
    needed, open_ = set(), [later]
    while open_:  # all that it follows by waits alone
        others = [int(other) for other in schedule.waits_for[open_.pop()] if other >= 0]
        open_ += [other for other in others if other not in needed]
        needed.update(others)
    same = sorted(other for other in needed if schedule.lane[other] == schedule.lane[later])
    assume(same)
    earlier = data.draw(st.sampled_from(same))
    numbers = list(range(len(schedule)))
    numbers[earlier], numbers[later] = later, earlier
    assert violations(rearranged(schedule, numbers), placed)


@pytest.mark.parametrize("first", range(len(KERNELS) - 1))
def test_swapping_kernels_of_one_cell_is_caught(first):
    """Kernels that only their lane keeps in order cannot change places."""
    placed = small()
    schedule = generate(placed)
    cell = (schedule.pass_index == 1) & (schedule.layer == 1) & (schedule.group == 0)
    here = {
        name: int(np.nonzero(cell & schedule.where(name))[0][0])
        for name in KERNELS
        if (cell & schedule.where(name)).any()
    }
    earlier, later = sorted(here.values())[first : first + 2]
    between = (schedule.lane[earlier:later] == LANES.index("gpu")).sum()
    numbers = list(range(len(schedule)))
    numbers[earlier], numbers[later] = later, earlier
    assert len(here) == len(KERNELS)
    names = {schedule.task(number).operation for number in (earlier, later)}
    if names != {"quantize_cache", "dequantize_cache"}:  # these two do not depend on each other
        assert between >= 1
        assert violations(rearranged(schedule, numbers), placed)


@given(st.data())
def test_one_slot_less_is_caught(data):
    """Law 1: fewer slots than a run can hold at once break the rule of slots, whatever memory says."""
    placed, schedule = drawn(data)
    held = {buffer: most_held(schedule, buffer) for buffer in BUFFERS}
    assume(max(held.values()) > 1)
    buffer = data.draw(st.sampled_from([buffer for buffer in BUFFERS if held[buffer] > 1]))
    mutant = replace(schedule, slots=schedule.slots | {buffer: held[buffer] - 1})
    assert "slots held" in {one.rule for one in violations(mutant, placed)}


def most_held(schedule: Schedule, buffer: str) -> int:
    """Play the tasks with every lane as early as it may run, and count the slots held at most."""
    number = BUFFERS.index(buffer)
    end = np.zeros(len(schedule))
    free = np.zeros(len(LANES))
    rng = np.random.default_rng(len(schedule))
    changes = []
    for task in range(len(schedule)):
        others = schedule.waits_for[task]
        start = max([free[schedule.lane[task]], *end[others[others >= 0]]])
        end[task] = free[schedule.lane[task]] = start + rng.integers(1, 100)
        if schedule.takes[task] == number:
            changes.append((start, 1))
        if schedule.frees[task] >> number & 1:
            changes.append((end[task], -1))
    return max(np.cumsum([change for _, change in sorted(changes)]), default=0)


@given(layouts())
def test_no_buffer_overflows(placed):
    """Whatever tasks take, no more slots are held than a buffer has, and all are given back."""
    schedule = generate(placed)
    for buffer, slots in schedule.slots.items():
        assert most_held(schedule, buffer) <= slots
    for number in range(len(BUFFERS)):
        assert (schedule.takes == number).sum() == (schedule.frees >> number & 1).sum()


@pytest.mark.parametrize(("column", "value"), [("takes", -1), ("frees", 0)])
def test_a_forgotten_slot_is_caught(column, value):
    """Every task that takes or frees a slot must say so."""
    placed = small()
    schedule = generate(placed)
    for task in np.nonzero(getattr(schedule, column) != value)[0].tolist():
        found = violations(changed(schedule, column, task, value), placed)
        assert {one.rule for one in found} == {"slots"}, schedule.task(task)


def test_slots_must_be_those_that_memory_holds():
    """A schedule that counts on more slots than the memory items have is not accepted."""
    placed = small()
    schedule = generate(placed)
    for buffer in BUFFERS:
        mutant = replace(schedule, slots=schedule.slots | {buffer: schedule.slots[buffer] + 1})
        assert "slots" in {one.rule for one in violations(mutant, placed)}


def test_a_wrong_graph_is_caught():
    """Waits for later tasks, wrong lanes, and operations that do not exist are found before all else."""
    placed = small()
    schedule = generate(placed)
    for column, at, value in [
        ("waits_for", (5, 0), 5),
        ("waits_for", (5, 0), 6),
        ("lane", 5, (schedule.lane[5] + 1) % len(LANES)),
        ("lane", 5, 17),
        ("operation", 5, 99),
        ("pass_index", 5, 2),
        ("pass_index", 5, -1),
    ]:
        found = violations(changed(schedule, column, at, value), placed)
        assert [(one.rule, one.task) for one in found] == [("graph", 5)], (column, value)


def test_a_missing_barrier_is_caught():
    """Where the runtime synchronises, a barrier stands after every cell."""
    placed = small("flexgen", weight_bits=16)
    schedule = generate(placed)
    check(schedule, placed)
    barriers = np.nonzero(schedule.where("sync") & (schedule.layer >= 0))[0].tolist()
    for dropped in barriers[:-2]:
        mutant = rearranged(schedule, [number for number in range(len(schedule)) if number != dropped])
        assert "barrier" in {one.rule for one in violations(mutant, placed)}


def test_passes_in_the_wrong_order_are_caught():
    """Two independent groups may not be computed layer by layer each on its own."""
    placed = small(cache=Split(gpu=1, cpu=0, disk=0), activations=Split(gpu=1, cpu=0, disk=0))
    schedule = generate(placed)
    keys = np.lexsort((np.arange(len(schedule)), schedule.group))
    found = violations(rearranged(schedule, keys.tolist()), placed)
    assert found


def test_the_error_shows_the_schedule_around_the_fault():
    """The message names rule and task, and prints the tasks around it."""
    placed = small()
    schedule = generate(placed)
    task = int(np.nonzero(schedule.where("mlp"))[0][0])
    with pytest.raises(ScheduleError) as caught:
        check(changed(schedule, "bytes", task, 1.0), placed)
    first, *around = str(caught.value).splitlines()
    assert first.startswith(f"the schedule breaks the rule 'work' at task {task}: mlp has 1 bytes; ")
    assert len(around) == 7
    assert around[3].startswith(f"> {task} gpu mlp p0 l1 g0")


def test_a_schedule_without_tasks_is_not_legal():
    """Nothing at all is not a run."""
    placed = small()
    with pytest.raises(ScheduleError, match="it has no tasks"):
        check(rearranged(generate(placed), []), placed)


@settings(max_examples=20)
@given(layouts())
def test_checking_changes_nothing(placed):
    """The checker reads; the same schedule gives the same answer again."""
    schedule = generate(placed)
    before = schedule.bytes.copy()
    assert violations(schedule, placed) == violations(schedule, placed) == []
    assert (schedule.bytes == before).all()
