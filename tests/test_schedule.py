"""Schedules: how they read, what they contain in all, and one printed in full."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from simulator.check import check
from simulator.errors import InputError
from simulator.generate import generate
from simulator.hardware import LANES
from simulator.layout import lay_out
from simulator.memory import BUFFERS
from simulator.model_config import parse_config
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS
from simulator.policy import CpuAttention, Policy, Split
from simulator.runtime import Runtime, load_runtime
from simulator.schedule import Task
from simulator.schema import decode
from simulator.workload import Workload
from tests.strategies import layouts

GOLDEN = Path(__file__).parent / "golden"


def tiny():
    """Make a model of two layers with round sizes: hidden 16, two heads, vocabulary 64."""
    config = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 62, "dtype": "float16"}
    return parse_config(config, "tiny")


def tiny_layout(runtime="reference", **changes):
    """Lay out two layers, two groups of two sequences and two passes, with something on every tier."""
    policy = Policy(
        gpu_batch=2,
        num_groups=2,
        weights=Split(gpu=0.25, cpu=0.25, disk=0.5),
        cache=Split(gpu=0, cpu=0.5, disk=0.5),
        activations=Split(gpu=0, cpu=1, disk=0),
        cpu_attention=CpuAttention(cpu=1, disk=0),
    )
    workload = Workload(prompt_len=8, gen_len=2)
    return lay_out(tiny(), load_runtime(runtime), workload, policy.model_copy(update=changes))


# --- printed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["reference", "flexgen"])
def test_golden_schedule(runtime, regen):
    """2 layers x 2 groups x 2 passes, printed. Rewrite with: pytest tests/test_schedule.py --regen."""
    placed = tiny_layout(runtime)
    schedule = generate(placed)
    check(schedule, placed)
    text = "\n".join(map(str, schedule.tasks())) + "\n"
    path = GOLDEN / f"schedule_2x2x2{'' if runtime == 'reference' else '_' + runtime}.txt"
    if regen:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_task_prints_on_one_line():
    """The line has number, lane, operation, place, work, waits and slots."""
    work = (0.0, 1024.0, 1.0, 0.0, 0.0)  # FLOPs, bytes, kernels, steps, blocks
    task = Task(12, "load_weights", "h2d", 1, 3, 0, *work, (4, 9), "weights", ("weight_staging",))
    expected = "12 h2d load_weights p1 l3 g0 flops=0 bytes=1024 waits 4,9 takes weights frees weight_staging"
    assert str(task) == expected


def test_columns_and_tasks_agree():
    """A task is a row of the columns."""
    schedule = generate(tiny_layout())
    for number, task in enumerate(schedule.tasks()):
        assert task.number == number
        assert task.operation == OPERATIONS[schedule.operation[number]].name
        assert task.lane == LANES[schedule.lane[number]]
        work = (task.flops, task.bytes, task.kernels, task.steps, task.blocks)
        assert work == tuple(column[number] for column in schedule.work)
        assert [BUFFERS.index(name) for name in task.frees] == [
            bit for bit in range(len(BUFFERS)) if schedule.frees[number] >> bit & 1
        ]
        assert schedule.where(task.operation)[number]


# --- contents -----------------------------------------------------------------------------------------------


def test_everything_on_the_gpu_needs_no_copies():
    """All weights, cache and activations on the GPU: nothing but its kernels, seven a cell at most."""
    gpu = Split(gpu=1, cpu=0, disk=0)
    schedule = generate(tiny_layout(weights=gpu, cache=gpu, activations=gpu, num_groups=1))
    names = [(task.operation, task.pass_index, task.layer) for task in schedule.tasks()]
    assert names == [
        ("embed", 0, 0),
        ("qkv", 0, 1),
        ("attend_prompt", 0, 1),
        ("mlp", 0, 1),
        ("qkv", 0, 2),
        ("attend_prompt", 0, 2),
        ("mlp", 0, 2),
        ("head", 0, 3),
        ("embed", 1, 0),
        ("qkv", 1, 1),
        ("attend", 1, 1),
        ("mlp", 1, 1),
        ("qkv", 1, 2),
        ("attend", 1, 2),
        ("mlp", 1, 2),
        ("head", 1, 3),
    ]
    assert (schedule.takes == -1).all()
    assert (schedule.frees == 0).all()


def test_bytes_by_hand():
    """Every byte of the tiny run, from its sizes: 4 sequences, 8 tokens in, 2 out, 2 layers, hidden 16."""
    placed = tiny_layout()
    schedule = generate(placed)
    moved = {
        operation.name: schedule.bytes[schedule.where(operation.name)].sum()
        for operation in OPERATIONS
        if operation.cost == "copy"
    }
    kv = 2 * 16 * 2  # keys and values of a token in one layer, 16 bits
    hidden = 16 * 2
    assert moved["store_cache"] == 4 * 9 * 2 * kv  # 8 prompt tokens and 1 more, all off the GPU
    assert moved["write_cache"] == moved["store_cache"] / 2
    assert moved["read_cache"] == 4 * 8 * 2 * kv / 2  # the disk half, streamed to the GPU
    assert moved["load_cache"] == moved["read_cache"]
    assert moved["store_query"] == moved["load_output"] == 4 * 1 * 2 * hidden / 2  # the CPU's half
    assert moved["store_activations"] == (4 * 8 + 4) * 3 * hidden  # out of the embedding and both blocks
    assert moved["load_activations"] == (4 * 8 + 4) * 2 * hidden + 4 * 2 * hidden  # blocks; head: last tokens
    assert moved["read_activations"] == moved["write_activations"] == 0
    assert moved["read_weights"] == 2 * placed.layer_bytes[1:, 2].sum()
    assert moved["load_weights"] == 2 * placed.layer_bytes[1:, 1:].sum()


@given(layouts(finite=False))
def test_tokens_are_conserved(placed):
    """Law 5 of physics: every token of every sequence is computed once in every layer, every logit once.

    Counted in FLOPs over a whole period: prompts and n - 1 further tokens go through the blocks, attention
    sees all pairs, also those with a shared prefix, and the head turns out n tokens a sequence, or scores the
    prompt's.
    """
    schedule, model, workload = generate(placed, None), placed.model, placed.workload
    counted = np.array([one.weight for one in schedule.window.passes])[schedule.pass_index]

    def flops(*names):
        return sum((schedule.flops * counted)[schedule.where(name)].sum() for name in names)

    sequences = schedule.window.sequences
    tokens = workload.own_len + workload.passes - 1
    through = sequences * model.num_layers * tokens
    assert flops("qkv") == pytest.approx(through * model.linear_flops("qkv"))
    after = model.linear_flops("project") + model.linear_flops("mlp")
    assert flops("project") + flops("mlp") == pytest.approx(through * after)
    assert flops("head") == pytest.approx(sequences * workload.counted_tokens * model.linear_flops("head"))
    a_pair = sequences * model.num_layers * 4 * model.num_heads * model.head_dim
    pairs = tokens * (tokens + 1) / 2
    assert flops("attend_prompt", "attend", "attend_cpu") == pytest.approx(a_pair * pairs)
    assert flops("attend_prefix") == pytest.approx(a_pair * tokens * workload.shared_prefix)


@given(layouts(finite=False))
def test_cache_bytes_are_conserved(placed):
    """What is stored is the cache of every token; what is loaded, that of all tokens before each one."""
    schedule, model, workload = generate(placed, None), placed.model, placed.workload
    counted = np.array([one.weight for one in schedule.window.passes])[schedule.pass_index]

    def moved(name):
        return (schedule.bytes * counted)[schedule.where(name)].sum()

    cache, share = placed.layout.cache, placed.layout.cpu_attention
    token = model.num_layers * model.kv_bytes(placed.policy.cache_bits, placed.policy.quant_group)
    stored = schedule.window.sequences * workload.context_len * token
    earlier = sum(workload.own_len + t - 1 for t in range(1, workload.gen_len))
    used = schedule.window.sequences * earlier * token
    streamed = cache.cpu * (1 - share.cpu) + cache.disk * (1 - share.disk)
    tiny_share = 1e-6 * (stored + used)
    assert moved("store_cache") == pytest.approx(stored * (cache.cpu + cache.disk), abs=tiny_share)
    assert moved("write_cache") == pytest.approx(stored * cache.disk, abs=tiny_share)
    assert moved("read_cache") == pytest.approx(used * cache.disk, abs=tiny_share)
    assert moved("load_cache") == pytest.approx(used * streamed, abs=tiny_share)


@given(layouts())
def test_generation_is_deterministic(placed):
    """The same layout gives the same schedule."""
    one, two = generate(placed), generate(placed)
    assert all(map(np.array_equal, vars(one).values(), vars(two).values()))


@given(layouts())
def test_every_task_has_work_and_waits_are_earlier(placed):
    """No task without work but barriers; no wait for a later task.

    Every task is one launch or copy at least, but for loads of nothing but vectors, which are not counted.
    """
    schedule = generate(placed)
    works = schedule.operation != OP["sync"]
    assert ((schedule.flops + schedule.bytes)[works] > 0).all()
    loads = np.isin(schedule.operation, [OP[name] for name in LAYER_OPERATIONS])
    assert (schedule.kernels[works & ~loads] >= 1).all()
    assert (schedule.kernels[loads] >= (placed.runtime.weight_loads == "chunked")).all()
    assert (schedule.waits_for < np.arange(len(schedule))[:, None]).all()


def test_a_barrier_follows_every_cell():
    """FlexGen's loop: a device-wide barrier for each of (4 halves + 2) layers x 2 groups x 2 passes."""
    schedule = generate(tiny_layout("flexgen"))
    cells = Counter(
        (int(schedule.pass_index[t]), int(schedule.layer[t]), int(schedule.group[t]))
        for t in np.nonzero(schedule.where("sync"))[0]
    )
    assert len([cell for cell in cells if cell[1] >= 0]) == 24


def test_cohorts_must_be_equal():
    """Five groups cannot be admitted in two equal cohorts; the message says what would do."""
    placed = tiny_layout(num_groups=5, stagger=1)
    with pytest.raises(InputError, match=r"num_groups: 5 groups .* multiple of 2"):
        generate(placed)


@pytest.mark.parametrize(
    ("buffer", "least"), [("cache", 2), ("cache_staging", 2), ("new_cache", 2), ("activations", 3)]
)
def test_barriers_need_slots(buffer, least):
    """With fewer slots than its barriers need, a runtime would stand still; it is refused when it is read."""
    data = load_runtime("flexgen").model_dump()
    for slots in (least, least - 1):
        data["slots"][buffer] = slots
        if slots == least:
            assert decode(Runtime, data, "runtime").slots.model_dump()[buffer] == least
        else:
            with pytest.raises(InputError, match=rf"slots\.{buffer}: .* at least {least}"):
                decode(Runtime, data, "runtime")


def test_lookahead_overlaps_cpu_attention():
    """The next group's projection is issued before this group's attention output is awaited."""
    placed = tiny_layout()
    schedule = generate(placed)
    here = (schedule.pass_index == 1) & (schedule.layer == 1)
    mlp = np.nonzero(here & schedule.where("mlp"))[0]
    qkv = np.nonzero(here & schedule.where("qkv"))[0]
    assert placed.ahead == 1
    assert qkv[1] < mlp[0]


# --- interrupted --------------------------------------------------------------------------------------------


def profiled(seen):
    """Make a schedule while a function hears the place of every call of a Python function."""
    placed = tiny_layout("flexgen")

    def hear(frame, event, _):
        if event == "call":
            code, caller = frame.f_code, frame.f_back  # compiled functions have none
            seen((code.co_filename, code.co_name, caller and (caller.f_code.co_filename, caller.f_lineno)))

    gc.disable()  # what is raised while garbage is collected is lost by design
    sys.setprofile(hear)
    try:
        return generate(placed)
    finally:
        sys.setprofile(None)
        gc.enable()


def test_an_interrupt_is_never_swallowed():
    """Whichever function is called when the user interrupts: no schedule comes out.

    C code that looks for something may drop what Python code raises meanwhile.
    """
    generate(tiny_layout("flexgen"))  # later calls find what the first one keeps
    places = []
    profiled(places.append)
    assert len(set(places)) > 100
    swallowed = []
    for place in dict.fromkeys(places):
        raised = []

        def interrupt(here, place=place, raised=raised):
            if here == place and not raised:
                raised.append(here)
                sys.setprofile(None)
                raise KeyboardInterrupt

        try:
            profiled(interrupt)
        except (KeyboardInterrupt, SystemError):  # numba reports one error with another
            continue
        swallowed += raised
    assert not swallowed
