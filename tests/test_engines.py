"""Engines as data: what each mechanism of an engine does, worked by hand on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.check import check
from simulator.cost import Rates
from simulator.generate import generate
from simulator.layers import CellKind, layer_kinds, layer_weight_bytes
from simulator.layout import Placed, lay_out
from simulator.model import ModelSpec
from simulator.model_config import load_model, parse_config
from simulator.operations import LAYER_OPERATIONS, OP, OPERATIONS, Operation
from simulator.policy import CpuAttention, Policy, Split
from simulator.profiles import load_profile
from simulator.runtime import Runtime, load_runtime, runtime_names
from simulator.schedule import Schedule
from simulator.simulate import Simulation, capacity_draws, play, rates_of, task_seconds
from simulator.workload import Workload
from tests.strategies import ENGINES, layouts, machines, models, policies, workloads

GPU, CPU, DISK = (Split(gpu=a, cpu=b, disk=c) for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
MACHINE = load_profile("t4-16")
ROUNDING = 1e-9


def tiny() -> ModelSpec:
    """Make an OPT of two blocks: hidden 16, two heads of 8, MLP 64, vocabulary 64."""
    config = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 62, "dtype": "float16"}
    return parse_config(config, "tiny")


def tiny_run(engine: str, *, groups: int = 1, **changes: object) -> Placed:
    """Lay out groups of two prompts of 8 tokens, 3 tokens to come; everything on the GPU unless changed."""
    policy = Policy(gpu_batch=2, num_groups=groups, weights=GPU, cache=GPU, activations=GPU)
    workload = Workload(prompt_len=8, gen_len=3)
    return lay_out(tiny(), load_runtime(engine), workload, policy.model_copy(update=changes))


def named(name: str) -> Operation:
    """Find an operation."""
    return OPERATIONS[OP[name]]


def tasks(schedule: Schedule, name: str, **place: int) -> list[int]:
    """List the numbers of an operation's tasks, of a pass, layer or group if these are given."""
    chosen = schedule.where(name)
    for column, value in place.items():
        chosen = chosen & (getattr(schedule, column) == value)
    return np.nonzero(chosen)[0].tolist()


def played(placed: Placed) -> Simulation:
    """Play a layout on a T4 whose lanes do not disturb each other."""
    return play(generate(placed), rates_of(placed, MACHINE), shared=False)


# --- where tensors lie --------------------------------------------------------------------------------------


def on_gpu(share: float, model: ModelSpec) -> float:
    """Give the share of a block's bytes that FlexGen's rule puts on the GPU; the rest is for the CPU."""
    split = Split(gpu=share, cpu=1 - share, disk=0)
    policy = Policy(gpu_batch=1, num_groups=1, weights=split, cache=GPU, activations=GPU)
    placed = lay_out(model, load_runtime("flexgen"), Workload(prompt_len=8, gen_len=1), policy)
    kinds = np.array(layer_kinds(model, placed.runtime))
    halves = np.isin(kinds, (CellKind.ATTENTION, CellKind.MLP))
    held = placed.layer_bytes[halves].sum(axis=0)
    return float(held[0] / held.sum())


@pytest.mark.parametrize(
    ("shares", "result"),
    [
        ((0.0, 5.0, 12.4), 0.0),
        ((12.6, 20.0, 24.9), 8.34),
        ((25.1, 30.0, 37.4), 41.67),
        ((37.6, 50.0, 62.4), 50.0),
        ((62.6, 70.0, 74.9), 58.3),
        ((75.1, 80.0, 87.4), 91.7),
        ((87.6, 95.0, 100.0), 100.0),
    ],
)
def test_the_midpoint_rule_rounds_coarsely(shares: tuple[float, ...], result: float) -> None:
    """FlexGen with the share of the CPU as the rest: seven results, whatever is asked for.

    Attention has four equal matrices, a twelfth of a block each, with middles at 1/8, 3/8, 5/8 and 7/8 of
    it; the MLP two, a third each, with middles at 1/4 and 3/4. The CPU's share comes before the GPU's.
    """
    for share in shares:
        assert 100 * on_gpu(share / 100, load_model("opt-30b")) == pytest.approx(result, abs=0.05)


@pytest.mark.parametrize(
    ("share", "result"), [(25.0, 8.34), (37.5, 41.67), (62.5, 50.0), (75.0, 58.3), (87.5, 91.7)]
)
def test_the_midpoint_rule_at_its_steps(share: float, result: float) -> None:
    """Exactly at a step a matrix is not yet on the GPU: norms come last, so its middle is a little before."""
    assert 100 * on_gpu(share / 100, load_model("opt-30b")) == pytest.approx(result, abs=0.05)


def test_whole_layers_fill_tiers_in_order() -> None:
    """Accelerate: with 40 % for the GPU and 40 % for the CPU, layers go where the next one still fits.

    Bytes: embedding 2048 + 2048, blocks 6560 each, head 2112. Of 19328 the GPU may hold 7731, which is the
    embedding; the CPU as much again, to 15462, which the first block fits into (10656) and the second does
    not (17216).
    """
    placed = tiny_run("accelerate", weights=Split(gpu=0.4, cpu=0.4, disk=0.2))
    block = 2 * (12 * 16**2 + 13 * 16)  # matrices, then biases of 16, 16, 16, 16, 64, 16 and two norms of 32
    sizes = [2 * 64 * 16 + 2 * 64 * 16, block, block, 2 * (64 * 16 + 2 * 16)]
    assert [layer_weight_bytes(tiny(), placed.shape, placed.runtime, kind) for kind in (0, 1, 2)] == [
        sizes[0],
        sizes[1],
        sizes[3],
    ]
    assert np.argmax(placed.layer_bytes, axis=1).tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(placed.layer_bytes.sum(axis=1), sizes)
    assert set(placed.layout.tensors["fc1.weight"]) == {"c", "d"}


# --- one after the other ------------------------------------------------------------------------------------


def steps_of(schedule: Schedule) -> list[list[int]]:
    """Cut a run without overlap into steps: a task each, but one for all loads of a layer."""
    loads = {OP[name] for name in LAYER_OPERATIONS}
    steps: list[list[int]] = []
    before = None
    for number, task in enumerate(schedule.tasks()):
        place = (task.pass_index, task.layer) if OP[task.operation] in loads else None
        if place is not None and place == before:
            steps[-1].append(number)
        else:
            steps.append([number])
        before = place
    return steps


def test_a_serial_run_takes_the_sum_of_its_tasks() -> None:
    """With all weights on the CPU every step is one task: Accelerate takes exactly what all of them take."""
    placed = tiny_run("accelerate", weights=CPU)
    simulation = played(placed)
    schedule = simulation.schedule
    assert all(len(step) == 1 for step in steps_of(schedule))
    assert simulation.makespan == pytest.approx(simulation.seconds.sum())
    # Three passes of embedding, two blocks and head: every layer is loaded from pageable memory first.
    names = [task.operation for task in schedule.tasks() if task.pass_index == 1]
    block = ["load_weights", "qkv", "attend", "mlp"]
    assert names == ["load_weights", "embed", *block, *block, "load_weights", "head"]
    loads = tasks(schedule, "load_weights", pass_index=1, layer=1)
    pageable = MACHINE.links.h2d.pageable
    by_hand = 6 * pageable.latency + schedule.bytes[loads] / pageable.bandwidth  # six matrices
    assert simulation.seconds[loads] == pytest.approx(by_hand)


@given(st.data(), machines(shared=False))
def test_without_overlap_every_step_waits_for_the_one_before(data: st.DataObject, hardware: object) -> None:
    """Any engine without overlap, and a serial one always: steps follow each other without a gap."""
    drawn = data.draw(layouts())
    placed = replace(drawn, policy=drawn.policy.model_copy(update={"overlap": False}))
    simulation = play(generate(placed), rates_of(placed, hardware), shared=False)  # type: ignore[arg-type]
    end = 0.0
    for step in steps_of(simulation.schedule):
        assert simulation.start[step].min() == pytest.approx(end, rel=1e-9, abs=1e-15)
        end = simulation.end[step].max()
    assert simulation.makespan == end


@given(layouts(), machines())
def test_overlap_never_hurts(placed: Placed, hardware: object) -> None:
    """The same layout with overlap takes no longer than without."""
    makespans = []
    for overlap in (True, False):
        policy = placed.policy.model_copy(update={"overlap": overlap})
        one = replace(placed, policy=policy)
        makespans.append(play(generate(one), rates_of(one, hardware)).makespan)  # type: ignore[arg-type]
    assert makespans[0] <= makespans[1] * (1 + ROUNDING)


# --- barriers -----------------------------------------------------------------------------------------------


def rows_of(schedule: Schedule) -> list[list[int]]:
    """List the tasks between two barriers."""
    rows: list[list[int]] = [[]]
    for number, code in enumerate(schedule.operation.tolist()):
        if code == OP["sync"]:
            rows.append([])
        else:
            rows[-1].append(number)
    return rows[:-1]


def test_kernels_wait_for_what_the_host_does_in_their_row() -> None:
    """FlexGen, pageable cache on the CPU, attention on the GPU: every launch waits for the host's copies."""
    placed = tiny_run("flexgen", groups=2, weights=CPU, cache=CPU, pinned=False)
    simulation = played(placed)
    schedule, found = simulation.schedule, set()
    for row in rows_of(schedule):
        names = [schedule.task(number).operation for number in row]
        host = [n for n, name in zip(row, names, strict=True) if name in ("stage_cache", "stage_weights")]
        kernels = [number for number in row if schedule.lane[number] == 0]
        if host and kernels:
            assert simulation.start[kernels].min() >= simulation.end[host].max()
            found.update(schedule.task(number).operation for number in host)
    assert found == {"stage_cache", "stage_weights"}


def test_a_row_takes_what_its_longest_lane_takes() -> None:
    """One row by hand: the host stages the next half's weights, then link and GPU work side by side."""
    placed = tiny_run("flexgen", groups=2, weights=CPU, pinned=False)
    simulation = played(placed)
    schedule, seconds = simulation.schedule, simulation.seconds
    row = next(
        row
        for row in rows_of(schedule)
        if {schedule.task(number).operation for number in row}
        == {"stage_weights", "qkv", "attend", "project", "load_weights"}
    )
    by_name = {schedule.task(number).operation: number for number in row}
    kernels = sum(seconds[by_name[name]] for name in ("qkv", "attend", "project"))
    took = simulation.end[row].max() - simulation.start[row].min()
    longest = seconds[by_name["stage_weights"]] + max(kernels, seconds[by_name["load_weights"]])
    assert took == pytest.approx(longest)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_next_half_is_loaded_beside_this_one(groups: int) -> None:
    """The MLP's weights come while the first group attends, and the next attention's beside its MLP."""
    placed = tiny_run("flexgen", groups=groups, weights=CPU)
    simulation = played(placed)
    schedule = simulation.schedule
    kinds = layer_kinds(placed.model, placed.runtime)
    rows = rows_of(schedule)
    for layer, kernel in ((1, "attend"), (2, "mlp"), (3, "attend")):
        load = tasks(schedule, "load_weights", pass_index=1, layer=layer + 1)
        beside = tasks(schedule, kernel, pass_index=1, layer=layer, group=0)
        assert kinds[layer] == (CellKind.ATTENTION if kernel == "attend" else CellKind.MLP)
        assert len(load) == len(beside) == 1
        assert any(load[0] in row and beside[0] in row for row in rows)
        first = min(n for row in rows if beside[0] in row for n in row if schedule.lane[n] == 0)
        assert simulation.start[load[0]] <= simulation.start[first]


# --- copies -------------------------------------------------------------------------------------------------


def test_mapped_files_are_read_by_a_thread_each() -> None:
    """One file is read at ``stream``; two reach the disk's ``bandwidth``, which is less than two streams."""
    disk = MACHINE.links.disk_read
    assert disk.stream is not None
    assert disk.stream < disk.bandwidth < 2 * disk.stream
    rates = Rates(MACHINE, load_runtime("flexgen"))
    size = np.array([1e9])
    one, two = (float(rates.seconds(named("read_weights"), 0 * size, size, k)[0]) for k in (1.0, 2.0))
    assert one == pytest.approx(disk.latency + 1e9 / disk.stream)
    assert two == pytest.approx(disk.latency + 1e9 / disk.bandwidth)
    direct = Rates(MACHINE, load_runtime("zero-inference"))
    by_hand = 2 * disk.latency + 1e9 / disk.bandwidth  # a copy each, one after the other
    assert float(direct.seconds(named("read_weights"), 0 * size, size, 2.0)[0]) == pytest.approx(by_hand)


def test_reads_between_barriers_are_counted_together() -> None:
    """The MLP's two matrices and the cache's keys and values on the disk are four files at once."""
    for cache, together in ((GPU, 2), (DISK, 4)):
        placed = tiny_run("flexgen", groups=3, weights=DISK, cache=cache)
        schedule = generate(placed)
        check(schedule, placed)
        # Layer 1 is the first attention; the next layer, its MLP, is read beside its first group.
        (read,) = tasks(schedule, "read_weights", pass_index=1, layer=2)
        assert schedule.kernels[read] == together
    alone = tiny_run("accelerate", weights=DISK)
    schedule = generate(alone)
    (read,) = tasks(schedule, "read_weights", pass_index=1, layer=1)
    assert schedule.kernels[read] == 6  # a whole block, which nothing runs beside


def test_a_mapped_file_has_a_relay_of_its_own() -> None:
    """Disk weights are read, then relayed; the CPU's share is loaded beside them and waits for no read."""
    placed = tiny_run("flexgen", weights=Split(gpu=0, cpu=0.5, disk=0.5))
    simulation = played(placed)
    schedule = simulation.schedule
    read, load, relay = (
        tasks(schedule, name, pass_index=1, layer=2)[0]
        for name in ("read_weights", "load_weights", "relay_weights")
    )
    assert schedule.bytes[[read, load, relay]].tolist() == placed.layer_bytes[2, [2, 1, 2]].tolist()
    assert simulation.start[relay] >= simulation.end[read]
    assert read not in schedule.waits_for[load]


@pytest.mark.parametrize(("engine", "staged"), [("flexgen", True), ("zero-inference", False)])
def test_pageable_weights(engine: str, staged: bool) -> None:
    """FlexGen's own thread copies pageable weights to pinned memory first; elsewhere the driver does."""
    link, rate = MACHINE.links.h2d, 1.0
    placed = tiny_run(engine, weights=CPU, pinned=False)
    simulation = played(placed)
    schedule = simulation.schedule
    (load,) = tasks(schedule, "load_weights", pass_index=1, layer=1)
    own, matrices = placed.runtime.overheads, placed.layer_tensors[1, 1]
    if staged:
        (stage,) = tasks(schedule, "stage_weights", pass_index=1, layer=1)
        assert link.staging is not None
        assert simulation.seconds[stage] == pytest.approx(schedule.bytes[load] / link.staging)
        assert simulation.start[load] >= simulation.end[stage]
        rate = link.pinned.bandwidth
    else:
        assert not tasks(schedule, "stage_weights")
        rate = link.pageable.bandwidth * own.link_share
    by_hand = matrices * (link.pageable.latency + own.load_weights) + schedule.bytes[load] / rate
    assert simulation.seconds[load] == pytest.approx(by_hand)


@pytest.mark.parametrize("engine", ["flexgen", "zero-inference"])
def test_pinned_weights(engine: str) -> None:
    """Pinned weights go by DMA alone, at the pinned rate."""
    link = MACHINE.links.h2d
    placed = tiny_run(engine, weights=CPU, pinned=True)
    simulation = played(placed)
    schedule, own = simulation.schedule, placed.runtime.overheads
    assert not tasks(schedule, "stage_weights")
    (load,) = tasks(schedule, "load_weights", pass_index=1, layer=1)
    by_hand = placed.layer_tensors[1, 1] * (link.pinned.latency + own.load_weights)
    by_hand += schedule.bytes[load] / (link.pinned.bandwidth * own.link_share)
    assert simulation.seconds[load] == pytest.approx(by_hand)


def test_a_float32_copy_of_the_cache() -> None:
    """FlexGen copies the cache to float32 before the CPU attends to it, and then reads twice the bytes."""
    placed = tiny_run("flexgen", cache=CPU, cpu_attention=CpuAttention(cpu=1))
    simulation = played(placed)
    schedule = simulation.schedule
    (expand,) = tasks(schedule, "expand_cache", pass_index=1, layer=1)
    cached = 2 * 8 * placed.model.kv_bytes_per_token  # two sequences of 8 tokens in 16 bits
    rate = MACHINE.engines["cpu"].conversion.expand
    assert rate is not None
    assert schedule.bytes[expand] == cached
    assert simulation.seconds[expand] == pytest.approx(cached / rate)
    (attend,) = tasks(schedule, "attend_cpu", pass_index=1, layer=1)
    assert simulation.start[attend] >= simulation.end[expand]
    stored = replace(placed, runtime=placed.runtime.model_copy(update={"cpu_attention_dtype": "stored"}))
    plain = generate(stored)
    (narrow,) = tasks(plain, "attend_cpu", pass_index=1, layer=1)
    assert schedule.bytes[attend] == 2 * plain.bytes[narrow]
    assert not tasks(plain, "expand_cache")


@pytest.mark.parametrize(
    ("name", "factor", "changes"),
    [
        ("stage_cache", 2, {"cache": CPU}),
        ("stage_weights", 2, {"weights": CPU}),
        ("expand_cache", 3, {"cache": CPU, "cpu_attention": CpuAttention(cpu=1)}),
        ("attend_cpu", 1, {"cache": CPU, "cpu_attention": CpuAttention(cpu=1)}),
        ("load_cache", 1, {"cache": CPU}),
    ],
)
def test_traffic_in_host_memory(name: str, factor: int, changes: dict[str, object]) -> None:
    """Staging reads and writes what it copies; a float32 copy reads it and writes twice as much."""
    placed = tiny_run("flexgen", pinned=False, **changes)
    rates, schedule = rates_of(placed, MACHINE), generate(placed)
    draws, _ = capacity_draws(schedule, rates, task_seconds(schedule, rates))
    chosen = schedule.where(name)
    assert chosen.any()
    dram = list(MACHINE.capacities).index("dram")
    np.testing.assert_allclose(draws[chosen, dram], factor * schedule.bytes[chosen])


# --- the page and the files ---------------------------------------------------------------------------------


def test_the_page_names_every_key_of_every_engine() -> None:
    """The table of engines in docs/schedule.md has a row for every key and says what the files say."""
    page = (Path(__file__).parent.parent / "docs" / "schedule.md").read_text(encoding="utf-8")
    lines = page.partition("## Engines as data")[2].partition("\n## ")[0].splitlines()
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    head, rows = cells[0], {row[0]: row[1:6] for row in cells[2:]}
    assert sorted(head[1:6]) == runtime_names()
    assert rows.keys() == Runtime.model_fields.keys() - {"name", "description"}
    words = {"per_pass": "pass", "per_group": "group", "True": "yes", "False": "no"}
    for place, engine in enumerate(head[1:6]):
        runtime = load_runtime(engine)
        for key, value in rows.items():
            known = getattr(runtime, key)
            if isinstance(known, str | bool | int):
                assert value[place] == words.get(str(known), str(known)), (engine, key)
            if key == "schedules":
                assert value[place] == ", ".join(known)


# --- every engine as it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@given(data=st.data())
def test_every_engine_as_shipped_makes_legal_schedules(engine: str, data: st.DataObject) -> None:
    """Law 1 for the engines as they are: any model, workload and policy that they can run."""
    runtime = load_runtime(engine)
    workload = data.draw(workloads(runtime=runtime))
    policy = data.draw(policies(runtime, workload, homes=True))
    assert policy.schedule(workload.passes) in (*runtime.schedules, "row")
    placed = lay_out(data.draw(models()), runtime, workload, policy)
    check(generate(placed), placed)
