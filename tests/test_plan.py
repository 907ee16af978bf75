"""The whole of planning: plan files, prediction and bounds in order, published policies, latency limits."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choices import Options
from planner.make_plan import Request, make_plan
from planner.pins import parse_pins
from planner.plan import Plan, read_plan
from simulator.errors import InfeasibleError, InputError
from simulator.hardware import LANES, TIERS
from tests.problems import problem_of, problems

PUBLISHED = Path(__file__).parents[2] / "shared" / "published" / "flexgen_t4.csv"
#: The paper's headline policies: model, pins, generated tokens per second on its own engine.
HEADLINES = [
    (
        "opt-6.7b",
        ("gpu_batch=2", "num_groups=1", "weights=100/0/0", "cache=100/0/0", "activations=100/0/0"),
        25.26,
    ),
    (
        "opt-30b",
        (
            *("gpu_batch=48", "num_groups=3", "weights=20/80/0", "cache=0/100/0"),
            *("activations=0/100/0", "cpu_attention=1"),
        ),
        7.32,
    ),
    (
        "opt-175b",
        (
            *("gpu_batch=32", "num_groups=8", "weights=0/50/50", "cache=0/0/100"),
            *("activations=0/100/0", "cpu_attention=1"),
        ),
        0.69,
    ),
]
CASES = [
    ("a100-80", "opt-175b", {}, "none"),
    ("a100-80", "opt-175b", {}, "auto"),
    ("a100-80", "opt-175b", {"num_prompts": 300}, "none"),
    ("t4-16", "opt-175b", {}, "none"),
    ("t4-16", "opt-30b", {"prompt_len": 64, "gen_len": 100}, "none"),
    ("t4-16", "opt-30b", {"num_prompts": 5}, "none"),
    ("t4-16", "opt-6.7b", {"num_prompts": 37}, "none"),
    ("t4-16", "opt-125m", {"gen_len": 1}, "none"),
    ("rtx-4090", "llama-3-70b", {}, "weights"),
    ("h100-80", "opt-30b", {"num_prompts": 1}, "none"),
    ("l4-24", "opt-30b", {"prompt_len": 2000, "gen_len": 4}, "none"),
    ("h200-141", "llama-3-70b", {}, "none"),
    ("cpu-only", "opt-30b", {"num_prompts": 40}, "none"),
]


@cache
def planned(hardware: str, model: str, work: tuple[tuple[str, int], ...], quantize: str = "none") -> Plan:
    """Plan, once per question."""
    problem = problem_of(hardware, model, **dict(work))
    return make_plan(Request(problem, Options(quantize=quantize)))  # type: ignore[arg-type]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([*case[:2], *map(str, case[2].values()), case[3]]))
def plan(request: pytest.FixtureRequest) -> Plan:
    """Give the plan of each case."""
    hardware, model, work, quantize = request.param
    return planned(hardware, model, tuple(work.items()), quantize)


def check_laws(plan: Plan) -> None:
    """Hold a plan against everything that must be true of any."""
    seen, bounds = plan.predictions, plan.bounds
    slack = 1 + 1e-6
    assert 0 < seen.throughput_tok_s <= bounds.lp_tok_s * slack
    assert bounds.lp_tok_s <= bounds.ceiling_tok_s * slack
    assert bounds.lp_tok_s <= bounds.search_tok_s * slack
    assert bounds.io_bytes >= bounds.io_lower_bound_bytes / slack
    assert bounds.io_lower_bound_bytes >= 0
    assert bounds.zigzag_factor >= 1
    for busy in (seen.busy, seen.prefill_busy, seen.decode_busy):
        assert set(busy) == set(LANES)
        assert all(0 <= share <= 1 for share in busy.values())
    assert seen.prefill_s > 0
    assert seen.latency_s >= seen.decode_s >= 0
    for memory in plan.memory.values():
        assert memory.peak <= memory.capacity + 1.0
        assert memory.peak == pytest.approx(sum(memory.uses.values()))
    for shares in plan.limits.values():
        assert not shares or sum(shares.values()) == pytest.approx(1)
    for other in plan.alternatives:
        assert other.reason
        if other.simulated_tok_s is not None and plan.workload.num_prompts is None:
            assert other.simulated_tok_s <= other.lp_tok_s * slack


def test_laws_hold(plan: Plan) -> None:
    """Simulated <= program <= ceiling, bytes >= the window bound, no lane above 100 %, memory kept."""
    check_laws(plan)


@settings(max_examples=12)
@given(problems(finite=None), st.sampled_from(["none", "auto"]))
def test_laws_hold_for_drawn_problems(problem: object, quantize: str) -> None:
    """The same for drawn models on drawn machines; where nothing fits, the message says what would."""
    try:
        plan = make_plan(Request(problem, Options(quantize=quantize)))  # type: ignore[arg-type]
    except InfeasibleError as error:
        message = str(error)
    else:
        check_laws(plan)
        message = "GiB"
    assert "GiB" in message


def test_the_winner_is_the_best_simulated(plan: Plan) -> None:
    """No alternative was simulated faster, but for what a longer simulation of the winner may show."""
    fastest = max((other.simulated_tok_s or 0.0 for other in plan.alternatives), default=0.0)
    assert plan.predictions.throughput_tok_s >= 0.99 * fastest


def test_reads_back(plan: Plan, tmp_path: Path) -> None:
    """A plan written to a file reads back into an equal plan, and writes the same text again."""
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json(), encoding="utf-8")
    again = read_plan(path)
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_two_runs_write_the_same_bytes() -> None:
    """The same question has the same JSON, byte for byte."""
    texts = {
        make_plan(Request(problem_of("t4-16", "opt-30b"), Options(quantize="auto"))).to_json()
        for _ in range(2)
    }
    assert len(texts) == 1


def test_everything_promised_is_in_the_file() -> None:
    """A plan file has every field that its readers were promised, with plain numbers."""
    data = json.loads(planned("a100-80", "opt-175b", ()).to_json())
    assert data["schema_version"] == 1
    assert data["hardware"]["name"] == "a100-80"
    assert len(data["hardware"]["content_hash"]) == 16
    assert data["model"]["name"] == "opt-175b"
    work = {"prompt_len": 512, "gen_len": 32, "num_prompts": None, "shared_prefix": 0}
    assert data["workload"] == work
    assert data["runtime"]["name"] == "reference"
    policy = {"gpu_batch", "num_groups", "weights", "cache", "activations", "cpu_attention", "weight_bits"}
    assert policy | {"cache_bits", "stagger", "prompt_batch", "pinned", "prefetch"} <= set(data["policy"])
    assert {"grain", "tensors", "rows"} <= set(data["layout"])
    assert {"throughput_tok_s", "prefill_s", "decode_s", "latency_s", "busy"} <= set(data["predictions"])
    assert set(data["predictions"]["busy"]) == set(LANES)
    bounds = {"lp_tok_s", "ceiling_tok_s", "io_bytes", "io_lower_bound_bytes", "zigzag_factor"}
    assert bounds <= set(data["bounds"])
    assert set(data["memory"]) == set(TIERS)
    assert all({"peak", "capacity"} <= set(each) for each in data["memory"].values())
    assert all({"resource", "unit", "tok_s_per_unit"} == set(each) for each in data["prices"])
    assert data["alternatives"]
    assert all(each["reason"] for each in data["alternatives"])
    assert data["search"]["linear_programs"] > 0


def test_the_hash_is_that_of_the_machine() -> None:
    """Two machines that differ in one figure have different hashes; the same machine has one."""
    one = planned("a100-80", "opt-175b", ()).hardware
    same = problem_of("a100-80", "opt-30b").hardware
    other = problem_of("a100-80", "opt-30b", sets=("tiers.cpu.capacity=300 GiB",)).hardware
    assert one.content_hash == same.content_hash
    assert other.content_hash != same.content_hash
    assert one.profile == same


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"policy": None}, {"extra": 1}, {"bounds": {}}])
def test_a_broken_plan_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    """A file that is not a plan of this version is an input error that names the key."""
    path = tmp_path / "plan.json"
    data = json.loads(planned("a100-80", "opt-175b", ()).to_json()) | change
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"plan.{next(iter(change))}"):
        read_plan(path)


def published_plan(model: str, texts: tuple[str, ...], **work: int) -> Plan:
    """Evaluate a policy on this project's own engine by pinning all of it."""
    problem = problem_of("t4-16", model, **work)
    return make_plan(Request(problem, Options(schedule="auto", pins=parse_pins(texts))))


@pytest.mark.parametrize(("model", "texts", "measured"), HEADLINES, ids=[case[0] for case in HEADLINES])
def test_no_slower_than_the_headline_policies(model: str, texts: tuple[str, ...], measured: float) -> None:
    """For each of the paper's models the plan is at least as fast as the paper's policy here."""
    ours = planned("t4-16", model, ())
    theirs = published_plan(model, (*texts, "prefetch=1"))
    assert (theirs.policy.gpu_batch, theirs.policy.num_groups) == tuple(
        int(text.split("=")[1]) for text in texts[:2]
    )
    assert ours.predictions.throughput_tok_s >= theirs.predictions.throughput_tok_s * (1 - 1e-6)
    assert ours.predictions.throughput_tok_s > measured


def rows() -> list[dict[str, str]]:
    """Read FlexGen's published rows; none where the table is absent."""
    if not PUBLISHED.exists():
        return []
    with PUBLISHED.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["system"] == "flexgen"]


def pins_of(row: dict[str, str]) -> tuple[str, ...]:
    """Write a published row as pins; what is not on GPU or CPU is on the disk."""

    def split(prefix: str) -> str:
        gpu, cpu = float(row[f"{prefix}g"]), float(row[f"{prefix}c"])
        return f"{gpu:g}/{cpu:g}/{100 - gpu - cpu:g}"

    return (
        f"gpu_batch={row['gpu_batch']}",
        f"num_groups={row['num_gpu_batches']}",
        f"weights={split('w')}",
        f"cache={split('c')}",
        f"activations={split('h')}",
        f"cpu_attention={row['cpu_attention']}",
        f"weight_bits={row['weight_bits']}",
        f"cache_bits={row['cache_bits']}",
    )


@pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the table of published measurements is not beside the checkout"
)
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["id"])
def test_no_slower_than_any_published_policy(row: dict[str, str]) -> None:
    """The plan is at least as fast as every published policy that fits this project's account of memory."""
    work = {"prompt_len": int(row["prompt_len"]), "gen_len": int(row["gen_len"])}
    quantised = int(row["weight_bits"]) < 16 or int(row["cache_bits"]) < 16
    try:
        theirs = published_plan(row["model"], pins_of(row), **work)
    except InfeasibleError as error:
        pytest.skip(f"does not fit here: {error}")
    ours = planned("t4-16", row["model"], tuple(work.items()), "auto" if quantised else "none")
    assert ours.predictions.throughput_tok_s >= theirs.predictions.throughput_tok_s * (1 - 1e-6)


def test_a_latency_limit_is_kept_and_costs() -> None:
    """The simulated latency keeps the limit, and a tighter limit never makes the plan faster."""
    free = planned("t4-16", "opt-30b", ())
    speeds = [free.predictions.throughput_tok_s]
    for share in (0.8, 0.5, 0.35):
        limit = share * free.predictions.latency_s
        problem = replace(problem_of("t4-16", "opt-30b"), max_latency=limit)
        plan = make_plan(Request(problem))
        assert plan.predictions.latency_s <= limit * (1 + 1e-9)
        check_laws(plan)
        speeds.append(plan.predictions.throughput_tok_s)
    for looser, tighter in itertools.pairwise(speeds):
        assert tighter <= looser * 1.01
    assert speeds[-1] < 0.9 * speeds[0]


def test_an_impossible_latency_says_what_is_possible() -> None:
    """A limit that no block keeps is infeasible, and the message gives one that is kept."""
    problem = problem_of("t4-16", "opt-175b")
    with pytest.raises(InfeasibleError, match="raise --max-latency") as caught:
        make_plan(Request(replace(problem, max_latency=1.0)))
    least = float(str(caught.value).partition("takes ")[2].removeprefix("at least ").split()[0])
    assert least > 1.0
    plan = make_plan(Request(replace(problem, max_latency=1.3 * least)))
    assert plan.predictions.latency_s <= 1.3 * least


@pytest.mark.parametrize(
    ("hardware", "model", "sets"),
    [
        ("t4-16", "opt-175b", ("tiers.disk.capacity=1 GiB",)),
        ("t4-16", "opt-175b", ("tiers.gpu.capacity=4 GiB",)),
        ("t4-16", "opt-30b", ("tiers.disk.capacity=0 B", "tiers.cpu.capacity=30 GiB")),
        ("t4-16", "opt-30b", ("tiers.disk.capacity=0 B", "tiers.cpu.capacity=9 GiB")),
        ("a100-80", "opt-175b", ("tiers.disk.capacity=10 GB",)),
    ],
)
def test_the_remedy_works(hardware: str, model: str, sets: tuple[str, ...]) -> None:
    """Where nothing fits, adding to one tier what the message says makes the problem feasible."""
    problem = problem_of(hardware, model, sets=sets)
    with pytest.raises(InfeasibleError) as caught:
        make_plan(Request(problem))
    message = str(caught.value)
    assert "memory is short by" in message
    remedies = message.partition("it would fit with ")[2].split(" or ")
    for remedy in remedies:
        amount, _, _, tier, _ = f"{remedy} ".split(" ", 4)
        size = problem.hardware.tiers[tier].capacity + float(amount) * 2**30  # type: ignore[index]
        changed = problem_of(hardware, model, sets=(*sets, f"tiers.{tier}.capacity={size:.0f} B"))
        assert make_plan(Request(changed)).predictions.throughput_tok_s > 0


def test_pins_that_do_not_fit_say_so() -> None:
    """A pinned policy too large for the machine is infeasible with the tier and the amount."""
    with pytest.raises(InfeasibleError, match=r"gpu memory .*GiB"):
        published_plan("opt-30b", ("weights=100/0/0",))
    with pytest.raises(InfeasibleError, match=r"memory .*GiB"):
        published_plan("opt-175b", ("gpu_batch=512", "num_groups=64", "cache=0/100/0", "weights=0/50/50"))


def test_another_engine_is_no_faster() -> None:
    """The engine with barriers is never faster than the one that waits only for what it needs."""
    slower = make_plan(Request(problem_of("t4-16", "opt-30b", runtime="flexgen")))
    check_laws(slower)
    assert slower.predictions.throughput_tok_s < planned("t4-16", "opt-30b", ()).predictions.throughput_tok_s


def test_prices_point_the_right_way() -> None:
    """More of what limits is worth something; nothing is worth less than nothing."""
    plan = planned("t4-16", "opt-175b", ())
    worth = {price.resource: price.tok_s_per_unit for price in plan.prices}
    assert worth["disk_read"] > 0.1
    assert all(value >= -1e-9 and math.isfinite(value) for value in worth.values())
