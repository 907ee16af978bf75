"""Studies: what their files mean, which cells they have, how cells are answered and written into a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planner.costs import Economics, running_cost
from planner.make_plan import Request, make_plan
from planner.problem import Problem
from planner.study import ChartChoice, Study, read_study
from planner.study_answer import Answer, answer, answer_family, families, latency
from planner.study_cells import Cell, cell_key, expand
from planner.study_charts import chart_of, slug, study_charts
from planner.study_figures import Planned, figures
from planner.study_files import Findings, check_format, make_folder, read_findings, write_findings
from planner.table import Column, Entry, Table
from simulator.errors import InputError, PlannerError
from simulator.mix import Part
from simulator.profiles import find_profile, load_profile, override_profile
from simulator.runtime import load_runtime
from simulator.schema import read_yaml
from simulator.units import BUDGET, PURCHASE, multiplied
from simulator.workload import Workload
from tests.chart_samples import TEXTS
from tests.study_cases import (
    LIMITED_WORK,
    SHORT,
    cell,
    complaint,
    made_up,
    made_up_answer,
    mix,
    planned,
    run,
    table_of,
)

SMALL: dict[str, Any] = {"machine": "rtx-4090", "model": "opt-1.3b", "workload": SHORT}


def study(**grid: Any) -> Study:
    """Make a study of one grid."""
    return Study.model_validate({"name": "small", "grids": [SMALL | grid]})


def write(folder: Path, **changes: Any) -> Path:
    """Write the file of a study of one grid."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "grids": [SMALL | changes.pop("grid", {})]} | changes))
    return path


# Definition and cells.

AXES = {
    "machine": st.sampled_from(["t4-16", "rtx-4090", {"hw": "l4-24", "name": "mine"}]),
    "model": st.sampled_from(["opt-1.3b", "opt-6.7b"]),
    "workload": st.sampled_from(["alpaca", "voyager", SHORT]),
    "runtime": st.sampled_from(["reference", "flexgen"]),
    "quantize": st.sampled_from(["none", "auto"]),
    "schedule": st.sampled_from(["auto", "zigzag"]),
    "max_latency": st.sampled_from(["none", None, "60 s", "1 s"]),
}


@given(st.data())
def test_a_grid_is_the_product_of_its_axes(data: st.DataObject) -> None:
    """There is a cell for every combination, of swept figures too; a single value is a list of one."""
    grid: dict[str, Any] = {}
    number = 1
    for name, values in AXES.items():
        several = data.draw(st.lists(values, min_size=1, max_size=2))
        number *= len(several)
        grid[name] = several[0] if len(several) == 1 and data.draw(st.booleans()) else several
    sweeps = {"tiers.cpu.capacity": ["x0.5", "64 GiB"], "links.h2d.pinned.bandwidth": ["x0.5"]}
    grid["sweep"] = {name: sweeps[name] for name in data.draw(st.sets(st.sampled_from(sorted(sweeps))))}
    for values in grid["sweep"].values():
        number *= len(values)
    grid["variant"] = data.draw(st.sampled_from([[], [{"name": "a"}, {"name": "b"}]]))
    number *= len(grid["variant"]) or 1
    assert len(expand(study(**grid), Path())) == number


def test_cells_come_in_order_with_their_overrides() -> None:
    """Later changes win: of the grid, then of the machine, of the variant, and swept ones."""
    grid = {
        "machine": [{"hw": "t4-16", "name": "mine", "set": {"tiers.cpu.capacity": "64 GiB"}}, "rtx-4090"],
        "set": {"tiers.cpu.capacity": "32 GiB", "unified_memory": False, "links.h2d.peak": "x2"},
        "variant": [{"name": "slow disk", "set": {"links.disk_read.bandwidth": "1 GB/s"}}],
        "sweep": {"tiers.cpu.reserve": ["1 GiB", "2 GiB"]},
        "max_latency": ["none", "60 s"],
        "fix": {"gpu_batch": 4, "pinned": True},
    }
    cells = expand(study(**grid), Path())
    assert [one.machine for one in cells] == ["mine"] * 4 + ["rtx-4090"] * 4
    assert [one.max_latency for one in cells] == [None, 60.0] * 4
    assert [one.swept["tiers.cpu.reserve"] for one in cells[::2]] == ["1 GiB", "2 GiB"] * 2
    first, last = cells[0], cells[-1]
    assert first.hardware.tiers["cpu"].capacity == 64 * 2**30
    assert last.hardware.tiers["cpu"].capacity == 32 * 2**30
    assert last.hardware.tiers["cpu"].reserve == 2 * 2**30
    assert first.hardware.links.disk_read.bandwidth == 1e9
    assert first.hardware.links.h2d.peak == 2 * load_profile("t4-16").links.h2d.peak
    assert first.variant == "slow disk"
    assert first.fixed == ("gpu_batch=4", "pinned=true")
    assert first.hardware == load_profile("t4-16", first.overrides)
    assert first.options.pins.get("gpu_batch") == 4


def test_files_lie_beside_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of machines, models and lengths start from the study's folder, wherever one works."""
    folder = tmp_path / "a folder with a name that is so long that its path has more than eighty characters"
    (folder / "model").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    profile = load_profile("t4-16").model_copy(update={"name": "own"})
    (folder / "machine.yaml").write_text(profile.to_yaml())
    config = {
        "model_type": "opt",
        "hidden_size": 64,
        "ffn_dim": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 126,
    }
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "calls.csv").write_text("prompt_len,gen_len\n16,4\n17,4\n64,4\n")
    absolute = str(folder / "machine.yaml")
    grid = {
        "machine": ["machine.yaml", {"hw": absolute}],
        "model": ["model", "model/config.json", str(folder / "model")],
        "workload": ["calls.csv", {"lengths": "calls.csv", "buckets": 1, "name": "one"}],
    }
    cells = expand(read_study(write(folder, grid=grid)), folder)
    assert len(cells) == 12
    assert {one.machine for one in cells} == {"own"}
    assert {one.model.num_layers for one in cells} == {2}
    assert [(one.mix.name, len(one.mix.parts)) for one in cells[:2]] == [("calls", 3), ("one", 1)]


def test_lengths_by_hand() -> None:
    """Lengths that are not given have their usual values; a name may be given to any workload."""
    choices = [{"prompt_len": 9}, {"gen_len": 0, "name": "scores"}, {"preset": "voyager/critic", "name": "c"}]
    first, second, third = (one.mix for one in expand(study(workload=choices), Path()))
    assert first.single == Workload(prompt_len=9)
    assert (second.single, second.name) == (Workload(gen_len=0), "scores")
    assert (third.name, third.total_tokens) == ("c", 100)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"machin": "t4-16"}, "study.grids.0.machin: unknown key; did you mean 'machine'?"),
    "unknown key of a machine": (
        {"machine": {"hw": "t4-16", "nam": "x"}},
        "study.grids.0.machine.0.nam: unknown key; did you mean 'name'?",
    ),
    "unknown key of a workload": (
        {"workload": {"promt_len": 3}},
        "study.grids.0.workload.0.promt_len: unknown key; did you mean 'prompt_len'?",
    ),
    "no machine": ({"machine": []}, "study.grids.0.machine"),
    "unknown machine": ({"machine": "t4-61"}, "study.grids.0: hardware: 't4-61'"),
    "unknown model": ({"model": "opt-1.3"}, "study.grids.0: model: 'opt-1.3'"),
    "long model": ({"model": "m" * 1000}, "study.grids.0: model: "),
    "unknown workload": ({"workload": "alpacca"}, "study.grids.0: workload: 'alpacca'"),
    "no workload": ({"workload": {}}, "study.grids.0: workload: give one of"),
    "two workloads": (
        {"workload": {"preset": "alpaca", "gen_len": 3}},
        "study.grids.0: workload: give one of",
    ),
    "prompt of nothing": ({"workload": {"prompt_len": 0}}, "study.grids.0: workload.prompt_len"),
    "text for tokens": ({"workload": {"prompt_len": "many"}}, "study.grids.0.workload.0.prompt_len"),
    "parts of a preset": ({"workload": {"preset": "alpaca", "buckets": 2}}, "workload.buckets"),
    "no part": ({"workload": {"lengths": "x.csv", "buckets": 0}}, "study.grids.0.workload.0.buckets"),
    "unknown engine": ({"runtime": "vllm"}, "study.grids.0: runtime"),
    "unknown bits": ({"quantize": "some"}, "study.grids.0.quantize.0"),
    "limit without unit": ({"max_latency": 60}, "study.grids.0.max_latency.0: expected a time"),
    "no time": ({"max_latency": "0 s"}, "study.grids.0.max_latency.0"),
    "set of an unknown path": ({"set": {"tiers.cpu.size": "1 GiB"}}, "tiers.cpu"),
    "set of no value": ({"set": {"tiers.cpu.capacity": "much"}}, "hardware.tiers.cpu.capacity"),
    "factor on text": ({"set": {"name": "x2"}}, "--set name: "),
    "factor on nothing": ({"set": {"cost.rent": "x2"}}, "--set cost.rent: "),
    "fix of an unknown variable": ({"fix": {"batch": 4}}, "study.grids.0: --fix batch"),
    "variant without name": ({"variant": [{"set": {}}]}, "study.grids.0.variant.0.name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study(case: str, tmp_path: Path) -> None:
    """A fault in a study is told in one line that names its path, before anything is written."""
    grid, said = WRONG[case]
    assert said in complaint(run("study", str(write(tmp_path, grid=grid)), "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


CHARTS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt column": ({"x": "latencys"}, "no column 'latencys'; did you mean latency_s?"),
    "misspelt series": ({"x": "latency_s", "series": "machin"}, "did you mean machine?"),
    "misspelt condition": ({"x": "latency_s", "where": {"modle": "a"}}, "did you mean model?"),
    "misspelt colour": ({"x": "model", "y": "machine", "kind": "heatmap", "z": "toks"}, "no column 'toks'"),
    "unknown kind": ({"x": "latency_s", "kind": "pie"}, "study.charts.0.kind"),
    "no axis": ({}, "study.charts.0.x"),
}


@pytest.mark.parametrize("case", CHARTS)
def test_a_wrong_chart(case: str, tmp_path: Path) -> None:
    """A chart of what is not there is refused before any cell is planned."""
    chart, said = CHARTS[case]
    path = write(tmp_path, charts=[{"title": "a chart"} | chart])
    with mock.patch("planner.study_command.answered", side_effect=AssertionError("planned")):
        assert said in complaint(run("study", str(path)))


@pytest.mark.parametrize(
    "content", ["", "[]", "name: x", "name: x\ngrids: []", "name: [", "grids: 3\nname: x"]
)
def test_what_is_no_study(content: str, tmp_path: Path) -> None:
    """Files without a grid are refused in one line."""
    path = tmp_path / "study.yaml"
    path.write_text(content)
    complaint(run("study", str(path)))


# Overrides by a factor.


def figures_of(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """List the paths of all numbers and quantities in a profile's data."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from figures_of(value, (*path, key))
    elif not isinstance(node, bool) and path[0] != "schema_version":
        try:
            multiplied(str(node), "2")
        except ValueError:
            return
        yield path


PROFILES = {name: load_profile(name) for name in ("t4-16", "rtx-4090", "h200-141")}
FIGURES = [(name, path) for name in PROFILES for path in figures_of(read_yaml(find_profile(name)))]


@given(figure=st.sampled_from(FIGURES), factor=st.sampled_from(["0.5", "1", "0.97", "0.125", "2", "1.5"]))
def test_a_factor_multiplies_any_figure(figure: tuple[str, tuple[str, ...]], factor: str) -> None:
    """``path=xF`` is the figure times F, as if that had been typed; or both are refused, as beyond a peak."""
    name, path = figure
    node: Any = PROFILES[name]
    for key in path:
        node = node[key] if isinstance(node, dict) else getattr(node, key)
    text: Any = read_yaml(find_profile(name))
    for key in path:
        text = text[key]
    where = ".".join(path)
    try:
        changed = load_profile(name, (f"{where}=x{factor}",))
    except InputError:
        with pytest.raises(InputError):
            load_profile(name, (f"{where}={multiplied(str(text), factor)}",))
        return
    assert changed == load_profile(name, (f"{where}={multiplied(str(text), factor)}",))
    assert changed == override_profile(PROFILES[name], (f"{where}= x {factor}",))
    value: Any = changed
    for key in path:
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    assert value == pytest.approx(node * float(factor), rel=1e-12)


@pytest.mark.parametrize(
    "path", ["name", "description", "tiers.gpu.source", "unified_memory", "cost.purchase"]
)
def test_a_factor_needs_a_number(path: str) -> None:
    """Text, truth and what is not there cannot be multiplied."""
    with pytest.raises(InputError, match=f"--set {path}: only a number"):
        load_profile("t4-16", (f"{path}=x2",))


def test_products_by_hand() -> None:
    """Products are decimal, in the unit that was written; budgets and purchases have units of their own."""
    assert multiplied("12.9 GB/s", "0.1") == "1.29 GB/s"
    assert multiplied("3", "2.5") == "7.5"
    assert BUDGET.parse("10 USD/h") == 240.0
    assert BUDGET.parse("365.25 USD/month") == pytest.approx(12.0)
    assert PURCHASE.parse("3.5 kUSD") == 3500.0
    for text in ("GB/s", "", "x", "None"):
        with pytest.raises(ValueError, match="not a number"):
            multiplied(text, "2")


# Keys.

KEYED = {
    "machine": {"hardware": load_profile("t4-16")},
    "figure": {"hardware": load_profile("rtx-4090", ("tiers.cpu.capacity=x0.5",))},
    "model": {"model": cell("rtx-4090", "opt-125m").model},
    "workload": {"mix": mix(Workload(**SHORT | {"gen_len": 5}))},
    "counts": {"mix": mix(Workload(**SHORT), counts=[2.0])},
    "chain": {"mix": mix(Workload(**SHORT), serial=True)},
    "engine": {"runtime": cell().runtime.model_copy(update={"page_tokens": 1})},
    "bits": {"quantize": "auto"},
    "schedule": {"schedule": "zigzag"},
    "pins": {"fixed": ("gpu_batch=4",)},
    "limit": {"max_latency": 60.0},
}


def test_keys_tell_questions_apart() -> None:
    """Whatever the answer depends on changes the key, each in another way."""
    cells = [cell(), *(cell(**changes) for changes in KEYED.values())]
    cells.append(cell(mix=mix(Workload(**SHORT))))
    assert len({cell_key(one) for one in cells}) == len(cells)


@given(name=st.text(min_size=1, max_size=9), changes=st.sampled_from([{}, *KEYED.values()]))
def test_labels_do_not_count(name: str, changes: dict[str, Any]) -> None:
    """Cells of equal content have one key, whatever they, their machines and their workloads are called."""
    one = cell(**changes)
    labels = {"name": name, "description": name}
    other = one.model_copy(
        update={
            "machine": name,
            "variant": name,
            "swept": {name: name},
            "mix": one.mix.model_copy(update=labels),
        }
    )
    assert cell_key(one) == cell_key(other)


def test_keys_are_of_this_program() -> None:
    """Another version of the program has other keys."""
    before = cell_key(cell())
    with mock.patch("planner.study_cells.program_hash", return_value="another"):
        assert cell_key(cell()) != before


# Answers.


def reply_of(found: Any, key: str) -> tuple[Answer, bool]:
    """Read one of the answers that a worker found, and whether it is kept."""
    texts = {name: (text, keep) for name, text, keep in found.answers}
    text, keep = texts[key]
    return Answer.model_validate_json(text), keep


def family(base: Cell, *limits: float | None) -> dict[float | None, tuple[Answer, bool]]:
    """Answer a cell under several limits, together."""
    cells = {cell_key(one): one for one in (base.model_copy(update={"max_latency": each}) for each in limits)}
    assert [list(each) for each in families(cells)] == [list(cells)]
    found = answer_family(cells)
    return {one.max_latency: reply_of(found, key) for key, one in cells.items()}


def test_a_plan_is_that_of_the_command() -> None:
    """A cell of one part has the plan that ``planner plan`` finds, and reads back from its JSON."""
    one = cell()
    problem = Problem(one.hardware, one.model, Workload(**SHORT), one.runtime)
    assert planned().plans[0].plan == make_plan(Request(problem))
    assert Answer.model_validate_json(planned().to_json()) == planned()


LIMITED = cell("t4-16", "opt-6.7b", work=LIMITED_WORK)


def test_a_family_answers_as_each_alone() -> None:
    """Together, limits have the status that they have alone; plans keep them; what binds is slower."""
    limits = (1000.0, None, 20.0, 0.001, 380.0, 0.002)
    together = family(LIMITED, *limits)
    for limit in (None, 20.0, 0.002):
        alone = answer(LIMITED.model_copy(update={"max_latency": limit}))
        reply, keep = together[limit]
        assert keep
        assert reply.status == alone.status
        assert [one.plan.policy for one in reply.plans] == [one.plan.policy for one in alone.plans]
    unlimited = together[None][0]
    assert latency(unlimited.plans, serial=False) < 380.0
    assert together[380.0][0] == together[1000.0][0] == unlimited
    kept = together[20.0][0]
    assert kept.plans[0].plan.predictions.latency_s <= 20.0
    assert (
        kept.plans[0].plan.predictions.throughput_tok_s < unlimited.plans[0].plan.predictions.throughput_tok_s
    )
    for limit in (0.001, 0.002):
        reply, keep = together[limit]
        assert (reply.status, reply.plans, keep) == ("infeasible", (), True)
        assert reply.reason


def test_what_does_not_fit_fits_under_no_limit() -> None:
    """A machine that is too small is so under any limit; the search is asked once."""
    small = cell("t4-16", "opt-175b", sets=("tiers.disk.capacity=1 GiB", "tiers.cpu.capacity=16 GiB"))
    with mock.patch("planner.study_answer.make_plan", side_effect=make_plan) as asked:
        found = family(small, None, 60.0, 1.0)
    assert asked.call_count == 1
    assert {reply.status for reply, _ in found.values()} == {"infeasible"}
    assert {keep for _, keep in found.values()} == {True}


def test_a_chain_keeps_its_limit_as_a_whole() -> None:
    """Calls that wait for each other keep a limit together, alone each would; parallel parts keep it each."""
    work = Workload(prompt_len=16, gen_len=4, num_prompts=1)
    chain = cell(mix=mix(work, work.model_copy(update={"gen_len": 5}), serial=True, counts=[3.0, 1.0]))
    unlimited = answer(chain)
    times = [one.plan.predictions.latency_s for one in unlimited.plans]
    whole = 3 * times[0] + times[1]
    assert latency(unlimited.plans, serial=True) == pytest.approx(whole)
    assert latency(unlimited.plans, serial=False) == max(times)
    limits = (None, whole * 1.001, whole * 0.9)
    found = {limit: reply for limit, (reply, _) in family(chain, *limits).items()}
    assert [found[limit].status for limit in limits] == ["planned", "planned", "infeasible"]
    assert "chain" in str(found[limits[2]].reason)
    beside = chain.model_copy(update={"mix": chain.mix.model_copy(update={"serial": False})})
    assert answer(beside.model_copy(update={"max_latency": whole * 0.9})).status == "planned"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"work": {"prompt_len": 4000}}, "positions of opt-1.3b"),
        ({"work": {"gen_len": 0}, "runtime": load_runtime("flexgen")}, "runtime flexgen only generates"),
        ({"fixed": ("gpu_batch=4", "prompt_batch=3")}, "prompt_batch"),
    ],
)
def test_what_cannot_be_asked_failed(changes: dict[str, Any], said: str) -> None:
    """A question that is wrong is an answer with the reason; a mix names the part."""
    one = cell(**changes)
    reply, keep = family(one, None, 5.0)[5.0]
    assert (reply.status, reply.plans, keep) == ("failed", (), True)
    assert said in str(reply.reason)


def test_the_reason_names_the_part() -> None:
    """Where one of several parts has no plan, the answer has none, and says which."""
    two = cell(mix=mix(Workload(**SHORT), Workload(prompt_len=4000)))
    reply = answer(two)
    assert (reply.status, reply.plans) == ("failed", ())
    assert str(reply.reason).startswith("part 1: ")


@pytest.mark.parametrize("fault", [ZeroDivisionError("x"), PlannerError("internal error: out of order")])
def test_a_fault_of_the_program_is_not_kept(fault: Exception) -> None:
    """A fault is an answer that says so, and is tried again; the limits beside it are planned nonetheless."""
    plan = planned().plans[0].plan

    def faulty(request: Request) -> Any:
        if request.problem.max_latency is None:
            raise fault
        return plan

    with mock.patch("planner.study_answer.make_plan", faulty):
        found = family(cell(), None, 1000.0)
    reply, keep = found[None]
    assert (reply.status, keep) == ("failed", False)
    assert "internal error" in str(reply.reason)
    assert (found[1000.0][0].status, found[1000.0][1]) == ("planned", True)


def test_workers_import_nothing_heavy() -> None:
    """What answers a cell imports no library that draws, writes tables or runs models."""
    code = (
        "import sys, json\n"
        "from planner.study_answer import answer_family\n"
        "from planner.study_cells import Cell\n"
        "one = Cell.model_validate_json(sys.stdin.read())\n"
        "found = answer_family({'key': one})\n"
        "heavy = {'matplotlib', 'pandas', 'torch', 'rich', 'plotly', 'pyarrow', 'ray', 'dask'}\n"
        "print(json.loads(found.answers[0][1])['status'], sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=cell().model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split(maxsplit=1) == ["planned", "[]\n"]


# Tables.


def test_a_mix_by_hand() -> None:
    """10 x 4 tokens at 20 tok/s take 2 s, 2 x 16 tokens at 4 tok/s take 8 s: 72 tokens in 10 s.

    The second takes most of the time. A chain of calls takes 10 x 1 s and 2 x 3 s.
    """
    works = (Workload(prompt_len=8, gen_len=4), Workload(prompt_len=16, gen_len=0))
    both = mix(*works, counts=[10.0, 2.0])
    plans = (made_up(both.parts[0], 20.0, 1.0, 40.0), made_up(both.parts[1], 4.0, 3.0, 5.0))
    rented = running_cost(load_profile("t4-16", ("cost.rent=3.6 USD/h",)).cost, Economics())
    found = Planned(plans, rented)
    assert found.seconds == [2.0, 8.0]
    assert found.tok_s == pytest.approx(7.2)
    assert found.main is plans[1].plan
    assert (found.latency, Planned(plans, rented, serial=True).latency) == (3.0, 16.0)
    assert found.rate(lambda plan: plan.bounds.ceiling_tok_s) == pytest.approx(72 / (1.0 + 6.4))
    row = {figure.key: figure.read(found) for figure in figures()}
    assert row["tok_s"] == found.tok_s
    assert row["usd_per_million_tokens"] == pytest.approx(3.6 / 3600 / 7.2 * 1e6)
    assert row["parts"] == 2


def test_padding_is_time_and_no_tokens() -> None:
    """Of 4 tokens of which 2 count, half the throughput is left."""
    part = Part(name="padded", workload=Workload(**SHORT), tokens=2.0)
    assert Planned((made_up(part, 20.0),), running_cost(None, Economics())).tok_s == pytest.approx(10.0)


def test_every_figure_is_that_of_the_plan() -> None:
    """The columns of a cell of one part are the numbers in its plan's JSON."""
    one, data = cell(), json.loads(planned().plans[0].plan.to_json())
    (row,) = table_of([one], [planned()]).rows
    predictions, policy, bounds = data["predictions"], data["policy"], data["bounds"]
    expected = {
        "tok_s": predictions["throughput_tok_s"],
        "latency_s": predictions["latency_s"],
        "first_token_s": predictions["prefill_s"],
        "program_tok_s": bounds["lp_tok_s"],
        "ceiling_tok_s": bounds["ceiling_tok_s"],
        "ceiling_bound_by": bounds["ceiling_bound_by"],
        "io_gb": bounds["io_bytes"] / 1e9,
        "io_least_gb": bounds["io_lower_bound_bytes"] / 1e9,
        "plan_schedule": data["schedule"],
        "block": policy["gpu_batch"] * policy["num_groups"],
        "attention_on_cpu": policy["cache"]["cpu"] * policy["cpu_attention"]["cpu"]
        + policy["cache"]["disk"] * policy["cpu_attention"]["disk"],
        "pinned": "pinned" if policy["pinned"] else "pageable",
    }
    for name in ("gpu_batch", "num_groups", "stagger", "weight_bits", "cache_bits"):
        expected[name] = policy[name]
    for name in ("weights", "cache", "activations"):
        expected |= {f"{name}_{tier}": policy[name][tier] for tier in ("gpu", "cpu", "disk")}
    expected |= {f"busy_{lane}": share for lane, share in predictions["busy"].items()}
    expected |= {f"{tier}_peak_gib": of["peak"] / 2**30 for tier, of in data["memory"].items()}
    prices = {each["resource"].removesuffix(" (pinned)"): each for each in data["prices"]}
    for name, price in prices.items():
        expected[f"price_{name.replace(' ', '_')}"] = price["tok_s_per_unit"]
    shares = {}
    for phase, seconds in (("prefill", predictions["prefill_s"]), ("decode", predictions["decode_s"])):
        for name, share in data["limits"][phase].items():
            shares[name] = shares.get(name, 0.0) + share * seconds
    expected["bound_by"] = max(shares, key=lambda name: shares[name])
    assert set(expected) <= set(row)
    for key, value in expected.items():
        assert row[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
    assert sum(1 for key in row if key.startswith("price_") and row[key] is not None) == len(prices)


def test_rows_without_a_plan() -> None:
    """A cell without a plan has its row, with what was asked and the reason; its figures are empty."""
    cells = [cell(max_latency=5.0), cell("t4-16")]
    table = table_of(cells, [Answer(status="infeasible", reason="too small"), planned()])
    assert [row["cell"] for row in table.rows] == [0, 1]
    assert [row["status"] for row in table.rows] == ["infeasible", "planned"]
    assert table.rows[0]["reason"] == "too small"
    assert table.rows[0]["max_latency_s"] == 5.0
    assert "tok_s" not in table.rows[0]


def test_swept_figures_are_numbers_where_they_have_one_unit() -> None:
    """Equal units and factors become numbers; mixed units, words and versions stay text."""
    sweeps = {
        "a": ["512 GiB", "1 GiB", "2.5 GiB"],
        "b": ["512 GiB", "1 TiB", "1 GiB"],
        "c": ["x2", "x0.5", "x1"],
        "d": ["1.2.3", "1.2", "1"],
        "e": ["true", "false", "fast"],
        "f": ["1e999", "1", "2"],
    }
    cells = [cell(swept={key: values[n] for key, values in sweeps.items()}) for n in range(3)]
    table = table_of(cells, [planned()] * 3)
    told = {column.key: (column.kind, column.unit) for column in table.columns}
    assert told["a"] == ("number", "GiB")
    assert told["b"] == ("text", "")
    assert told["c"] == ("number", "times")
    assert {told[key] for key in "def"} == {("text", "")}
    assert [row["a"] for row in table.rows] == [512.0, 1.0, 2.5]
    assert [row["d"] for row in table.rows] == sweeps["d"]


ENTRIES = {
    "text": st.one_of(st.none(), st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1)),
    "number": st.one_of(
        st.none(), st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False)
    ),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@given(data=st.data())
def test_tables_read_back(kind: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both formats give back all rows as they were: texts, numbers to the last digit, and what is missing."""
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    columns = tuple(
        Column(key=f"c{n}", title="t", kind=data.draw(st.sampled_from(["text", "number"]))) for n in range(3)
    )
    rows: list[dict[str, Entry]] = [
        {column.key: data.draw(ENTRIES[column.kind]) for column in columns}
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    folder = tmp_path_factory.mktemp("table")
    findings = Findings(title="t", description="", charts=(), columns=columns)
    write_findings(findings, rows, folder, kind)
    assert read_findings(folder) == (findings, rows)


def test_the_newest_table_counts(tmp_path: Path) -> None:
    """Writing the other format removes the table of the first."""
    pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    column = Column(key="a", title="t", kind="number")
    findings = Findings(title="t", description="", charts=(), columns=(column,))
    for kind, number in (("csv", 1), ("parquet", 2), ("csv", 3)):
        write_findings(findings, [{"a": number}], tmp_path, kind)  # type: ignore[arg-type]
        assert read_findings(tmp_path)[1] == [{"a": number}]


def test_what_is_no_folder_of_a_study(tmp_path: Path) -> None:
    """A folder without a table, a table without its words, and one of other columns are told in one line."""
    with pytest.raises(InputError, match="there is no table of a study"):
        read_findings(tmp_path)
    (tmp_path / "cells.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"findings\.json"):
        read_findings(tmp_path)
    findings = Findings(title="t", description="", charts=(), columns=(Column(key="b", title="t"),))
    (tmp_path / "findings.json").write_text(findings.model_dump_json())
    with pytest.raises(InputError, match="not the table of a study"):
        read_findings(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make_folder(tmp_path / "file" / "below")


def test_parquet_needs_its_library() -> None:
    """Without pyarrow the user is told so, before anything is planned."""
    with mock.patch("importlib.util.find_spec", return_value=None):
        check_format("csv")
        with pytest.raises(InputError, match=r"offload-planner\[parquet\]"):
            check_format("parquet")


# Charts from a table.

KEYS = ("cell", "machine", "model", "max_latency_s", "tiers.cpu.capacity", "status", "tok_s", "latency_s")
NUMBERS = ("cell", "max_latency_s", "tiers.cpu.capacity", "tok_s", "latency_s")
COLUMNS = tuple(Column(key=key, title=key, kind="number" if key in NUMBERS else "text") for key in KEYS)


def sample() -> Table:
    """Two machines with three sizes of memory; the smallest of the first has no plan."""
    rows = []
    for machine, speed in (("small", 1.0), ("large", 10.0)):
        for size in (64.0, 16.0, 32.0):
            fits = (machine, size) != ("small", 16.0)
            found = {"tok_s": speed * size, "latency_s": 100.0 / speed} if fits else {}
            asked = {"cell": len(rows), "machine": machine, "model": "m", "tiers.cpu.capacity": size}
            rows.append(asked | {"status": "planned" if fits else "infeasible"} | found)
    return Table(COLUMNS, tuple(rows))


def test_lines_by_hand() -> None:
    """What varies and is on no axis tells lines apart; points are in the order of x and know their rows."""
    chart = chart_of(ChartChoice(title="Memory pays", x="tiers.cpu.capacity"), sample())
    assert chart.key == "memory-pays"
    assert [one.name for one in chart.series] == ["small", "large"]
    assert [one.x for one in chart.series] == [(32.0, 64.0), (16.0, 32.0, 64.0)]
    assert [one.y for one in chart.series] == [(32.0, 64.0), (160.0, 320.0, 640.0)]
    assert [one.cells for one in chart.series] == [(2, 0), (4, 5, 3)]


def test_conditions_and_series_by_hand() -> None:
    """Conditions take rows out; a series named by a number says what it is."""
    choice = ChartChoice(
        title="t",
        kind="bars",
        x="machine",
        series=("tiers.cpu.capacity",),
        where={"tiers.cpu.capacity": [16, 64]},
    )
    chart = chart_of(choice, sample())
    assert {one.name: one.y for one in chart.series} == {
        "tiers.cpu.capacity 64": (64.0, 640.0),
        "tiers.cpu.capacity 16": (None, 160.0),
    }
    none = chart_of(choice.model_copy(update={"where": {"machine": "huge"}}), sample())
    assert none.series == ()


def test_a_heat_map_by_hand() -> None:
    """Both axes are columns; of rows at one place the best counts, and what has no plan is empty."""
    choice = ChartChoice(title="t", kind="heatmap", x="tiers.cpu.capacity", y="machine")
    chart = chart_of(choice, sample())
    assert [(one.name, one.x, one.y, one.cells) for one in chart.series] == [
        ("small", ("64", "16", "32"), (64.0, None, 32.0), (0, 1, 2)),
        ("large", ("64", "16", "32"), (640.0, 160.0, 320.0), (3, 4, 5)),
    ]
    both = chart_of(choice.model_copy(update={"x": "model"}), sample())
    assert [one.y for one in both.series] == [(64.0,), (640.0,)]
    placed = chart_of(choice.model_copy(update={"y": "latency_s"}), sample())
    assert [one.name for one in placed.series] == ["100", "10"]


def test_what_cannot_be_drawn() -> None:
    """Names on a line's axis, values of nothing on a logarithmic one and twice a bar are told in one line."""
    for choice in (
        ChartChoice(title="t", kind="line", x="machine"),
        ChartChoice(title="t", kind="bars", x="model"),
        ChartChoice(title="t", kind="points", x="cell", x_log=True),
        ChartChoice(title="t", x="tok_z"),
    ):
        with pytest.raises(InputError, match=r"^charts: "):
            chart_of(choice.model_copy(update={"series": ()}), sample())


def test_suggested_charts() -> None:
    """Without a definition throughput is drawn over latency, over every swept figure, and cost by machine."""
    cells = [cell(one, swept={"tiers.cpu.capacity": "x1"}) for one in ("rtx-4090", "t4-16")]
    table = table_of(cells, [made_up_answer(cells[0], 5.0), made_up_answer(cells[1], 3.0)])
    charts = study_charts(study(), table)
    assert [chart.kind for chart in charts] == ["points", "line", "bars"]
    assert [chart.x_label for chart in charts] == ["latency [s]", "tiers.cpu.capacity [times]", "machine"]


@given(title=TEXTS)
def test_slugs_name_files(title: str) -> None:
    """Whatever the title is, its slug is a plain name."""
    assert slug(title).replace("-", "a").isalnum()
    assert slug(title).isascii()


# The command.


def test_the_whole_way(tmp_path: Path) -> None:
    """Three cells: a table with a row each in order, charts, answers in files; and the same as Parquet."""
    pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    charts = [{"title": "Speed", "x": "latency_s", "kind": "points"}, {"title": "m", "x": "max_latency_s"}]
    grid = {"max_latency": ["none", "1 us"], "machine": ["rtx-4090", {"hw": "rtx-4090", "name": "[/b]twin"}]}
    path = write(tmp_path, grid=grid, charts=charts, economics={"years": 1, "usd_per_kwh": 0})
    shown = run("study", str(path), "--jobs", "1")
    assert shown.exit_code == 0, shown.output
    assert "small: 4 cells, 2 planned" in shown.stdout
    assert "[/b]twin" in shown.stdout
    folder = tmp_path / "study"
    assert (folder / "study.yaml").read_text() == path.read_text()
    findings, rows = read_findings(folder)
    assert [row["cell"] for row in rows] == [0, 1, 2, 3]
    assert [row["status"] for row in rows] == ["planned", "infeasible"] * 2
    assert [chart.key for chart in findings.charts] == ["speed", "m"]
    assert rows[0]["usd_per_hour"] == pytest.approx(4200 / 8766)
    assert len(list((folder / "answers").iterdir())) == 2
    as_json = run("study", str(path), "--jobs", "1", "--table", "parquet", "--format", "json")
    assert as_json.stderr == ""
    again = json.loads(as_json.stdout)
    assert again["table"] == str(folder / "cells.parquet")
    assert read_findings(folder) == (findings, rows)
    dense = [{key: value for key, value in row.items() if value is not None} for row in rows]
    told = [{key: value for key, value in row.items() if value is not None} for row in again["rows"]]
    assert dense == told


def test_charts_of_nothing(tmp_path: Path) -> None:
    """A study in which nothing fits has its table all the same, and empty charts."""
    charts = [{"title": "cost", "x": "max_latency_s", "y": "usd_per_million_tokens"}]
    path = write(tmp_path, grid={"max_latency": "1 us"}, charts=charts)
    shown = run("study", str(path), "--jobs", "1", "--out", str(tmp_path / "out"))
    assert shown.exit_code == 0, shown.output
    assert "1 without a plan, such as cell 0" in shown.stdout
    findings, (row,) = read_findings(tmp_path / "out")
    assert row["tok_s"] is None
    assert findings.charts[0].series[0].x == ()
