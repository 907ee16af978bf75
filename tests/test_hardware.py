"""Machines: what is written reads back, shipped profiles are sound, a fault is one line with its path."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator import hardware, kernels
from simulator.errors import InputError
from simulator.hardware import HardwareProfile, Roofline
from simulator.profiles import load_profile, shipped_profiles
from simulator.schema import decode, parse_yaml, read_json, read_yaml
from simulator.units import BYTE_RATE, BYTES, DURATION, FLOP_RATE

PROFILES = {name: load_profile(name) for name in shipped_profiles()}
EXPECTED = "t4-16 a100-80 a100-40 h100-80 h200-141 l4-24 a10g-24 l40s-48 v100-32 rtx-3090 rtx-4090 cpu-only"
TEXT = PROFILES["t4-16"].to_yaml()
DATA = parse_yaml(TEXT)
Path_ = tuple[str, ...]


def leaves(data: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """List the values of nested mappings with their paths."""
    if not isinstance(data, dict):
        yield path, data
        return
    for key, value in data.items():
        yield from leaves(value, (*path, key))


def groups(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    """List the paths of nested mappings, the outermost first."""
    if isinstance(data, dict):
        yield path
        for key, value in data.items():
            yield from groups(value, (*path, key))


def at(data: Any, path: Path_) -> Any:
    """Follow a path into nested mappings."""
    for key in path:
        data = data[key]
    return data


def changed(path: Path_, value: object) -> dict[str, Any]:
    """Copy the t4-16 profile with one value changed or added."""
    data = copy.deepcopy(DATA)
    at(data, path[:-1])[path[-1]] = value
    return data


def message(data: object) -> str:
    """Decode what must be refused, and give the one line that says why."""
    with pytest.raises(InputError) as caught:
        decode(HardwareProfile, data, "hardware")
    return one_line(caught.value)


def one_line(error: InputError) -> str:
    """Check that an error is one printable line, and give it."""
    assert str(error).isprintable(), str(error)
    assert len(str(error)) < 600
    return str(error)


LEAVES = [path for path, _ in leaves(DATA)]
QUANTITIES = [path for path, _ in leaves(DATA) if path[-1] in ("flops", "bandwidth", "latency", "sharpness")]
GROUPS = list(groups(DATA))
FURTHER_RATES = ("expand", "staging", "stream", "cached")  # of engines and links that have them
KEYED_BY_USER = [("capacities",), ("sources",), ("capacities", "dram", "lanes")]  # any name will do there
OPTIONAL = {
    ("capacities", "dram"),
    ("capacities", "dram", "bandwidth"),  # or a share
    ("cost",),
    ("cost", "rent"),
    ("cost", "power"),
    ("capacities",),
    ("unified_memory",),
    *(
        (*path, key)
        for path in GROUPS
        for key in ("reserve", "pinnable", "latency", "piece", "sharpness", "url", "date", *FURTHER_RATES)
    ),
    *((*path, key) for path in [("capacities", "dram", "lanes")] for key in at(DATA, path)),
    ("engines", "gpu", "matmul", "float32"),
    ("engines", "gpu", "matmul", "float16"),
    ("engines", "gpu", "peak", "flops", "int8"),
}
REQUIRED = [
    (*path, key)
    for path in GROUPS
    for key in at(DATA, path)
    if (*path, key) not in OPTIONAL and path != ("sources",)
]


# What is written reads back.


@pytest.mark.parametrize("name", PROFILES)
def test_profile_text_profile_is_the_identity(name: str) -> None:
    """A profile written as YAML reads back into an equal profile with the same hash."""
    profile = PROFILES[name]
    again = decode(HardwareProfile, parse_yaml(profile.to_yaml()), "hardware")
    assert again == profile
    assert again.content_hash == profile.content_hash
    assert again.to_yaml() == profile.to_yaml()


@given(
    capacity=st.floats(1.0, 1e16),
    share=st.floats(0.0, 1.0),
    rate=st.floats(1e6, 1e12),
    sharpness=st.floats(1.0, 64.0),
    text=st.text(min_size=1, max_size=40),
)
def test_any_profile_reads_back(
    capacity: float, share: float, rate: float, sharpness: float, text: str
) -> None:
    """Whatever numbers and texts a profile holds, writing and reading gives them back."""
    data = changed(("tiers", "cpu", "capacity"), BYTES.format(capacity))
    data["tiers"]["cpu"]["reserve"] = BYTES.format(capacity * share)
    data["links"]["h2d"]["peak"] = BYTE_RATE.format(1e13)
    data["links"]["h2d"]["pinned"]["bandwidth"] = BYTE_RATE.format(rate)
    data["engines"]["gpu"]["matmul"]["float16"]["sharpness"] = sharpness
    data["description"] = data["name"] = text
    profile = decode(HardwareProfile, data, "hardware")
    assert decode(HardwareProfile, parse_yaml(profile.to_yaml()), "hardware") == profile
    assert profile.tiers["cpu"].usable == capacity - capacity * share


@given(path=st.sampled_from(QUANTITIES), factor=st.floats(0.1, 1.0))
def test_set_changes_just_that_number(path: Path_, factor: float) -> None:
    """An override changes the value it names and no other, in every shipped way of writing a profile."""
    for name in ("t4-16", "cpu-only"):
        before = PROFILES[name].model_dump()
        where = tuple("bfloat16" if part == "float16" and name == "cpu-only" else part for part in path)
        if where not in dict(leaves(before)) or where[-1] == "sharpness":
            continue
        kind = {"flops": FLOP_RATE, "bandwidth": BYTE_RATE, "latency": DURATION}[where[-1]]
        text = kind.format(max(kind.parse(at(before, where)) * factor, kind.low))
        after = load_profile(name, (f"{'.'.join(where)}={text}",)).model_dump()
        at(before, where[:-1])[where[-1]] = text
        assert after == before


def test_overrides_apply_in_order() -> None:
    """Several overrides work together, the last of two on the same key holds, and spaces do not matter."""
    profile = load_profile(
        "a100-80",
        ("tiers.cpu.capacity=1 TiB", " tiers.cpu.capacity = 512 GiB ", "tiers.cpu.pinnable=256 GiB"),
    )
    assert profile.tiers["cpu"].capacity == 512 * 2**30
    assert profile.tiers["cpu"].pinnable == 256 * 2**30
    assert profile.tiers["gpu"] == PROFILES["a100-80"].tiers["gpu"]


def test_an_optional_key_can_be_taken_away() -> None:
    """Setting an optional key to null removes it."""
    assert load_profile("t4-16", ("cost.rent=null",)).cost.rent is None  # type: ignore[union-attr]


def test_a_file_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    """A profile is named by its path, or by a shipped name with or without .yaml."""
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    assert load_profile(str(path)) == load_profile("t4-16") == load_profile("t4-16.yaml")


def test_dates_stay_text(tmp_path: Path) -> None:
    """A date needs no quotation marks."""
    path = tmp_path / "dated.yaml"
    path.write_text(TEXT + "    date: 2026-08-01\n")
    assert "2026-08-01" in [source.date for source in load_profile(str(path)).sources.values()]


def test_aliases_share_nothing(tmp_path: Path) -> None:
    """Changing a value that YAML wrote by alias leaves its twin alone."""
    memcpy = PROFILES["cpu-only"].links.h2d.pinned.bandwidth
    links = load_profile("cpu-only", ("links.h2d.pinned.bandwidth=1 GB/s",)).links
    assert links.h2d.pinned.bandwidth == 1e9
    assert links.h2d.pageable.bandwidth == links.d2h.pinned.bandwidth == memcpy


# Shipped machines.


def test_the_shipped_machines() -> None:
    """The machines that the documents name are there."""
    assert sorted(PROFILES) == sorted(EXPECTED.split())
    assert list(PROFILES) == sorted(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_is_sound(name: str) -> None:
    """Its name is its file's, achieved rates are positive and below their peaks, every source has a use."""
    profile = PROFILES[name]
    assert profile.name == name
    assert profile.cost is not None
    assert (profile.cost.rent is None) != (profile.cost.purchase is None)
    assert profile.cost.power
    for engine in profile.engines.values():
        lines = [*engine.matmul.values(), engine.attention.prefill, engine.attention.decode]
        assert all(0.0 < line.bandwidth < engine.peak.memory_bandwidth for line in lines)
        assert all(0.0 < line.flops < max(engine.peak.flops.values()) for line in lines)
        assert all(0.0 < line.flops < engine.peak.flops[dtype] for dtype, line in engine.matmul.items())
        assert all(line.latency > 0.0 for line in lines)
        assert 0.0 < engine.conversion.dequantize < engine.peak.memory_bandwidth
    links = profile.links
    for link in (links.h2d, links.d2h):
        assert 0.0 < link.pageable.bandwidth <= link.pinned.bandwidth < link.peak
    for disk in (links.disk_read, links.disk_write):
        assert 0.0 < disk.bandwidth < disk.peak
    assert 0.0 < profile.tiers["gpu"].usable < profile.tiers["gpu"].capacity
    assert 0.0 < profile.tiers["cpu"].usable < profile.tiers["cpu"].capacity
    used = {value for path, value in leaves(profile.model_dump()) if path[-1] == "source"}
    assert used == set(profile.sources)


@pytest.mark.parametrize("name", PROFILES)
def test_memory_traffic_is_shared(name: str) -> None:
    """Host memory is a capacity below the processor's peak, and no lane alone needs more of it."""
    dram, links = PROFILES[name].capacities["dram"], PROFILES[name].links
    assert {"h2d", "d2h", "disk_read", "disk_write", "cpu"} <= set(dram.lanes)
    assert dram.bandwidth is not None
    assert dram.bandwidth < PROFILES[name].engines["cpu"].peak.memory_bandwidth
    rates = {lane: getattr(links, lane).pinned.bandwidth for lane in ("h2d", "d2h")}
    rates |= {lane: getattr(links, lane).bandwidth for lane in ("disk_read", "disk_write")}
    rates["cpu"] = PROFILES[name].engines["cpu"].attention.decode.bandwidth
    assert all(dram.lanes[lane] * rate <= dram.bandwidth for lane, rate in rates.items())  # type: ignore[index]


def test_the_cpu_only_machine_shares_its_cores() -> None:
    """Without a GPU both engines are the same cores, and a copy reads and writes the same memory."""
    capacities = PROFILES["cpu-only"].capacities
    assert capacities["cores"].share == 1.0
    assert capacities["cores"].lanes == {"gpu": 1.0, "cpu": 1.0}
    assert capacities["dram"].lanes["h2d"] == capacities["dram"].lanes["d2h"] == 2.0


def test_fitted_figures_say_so() -> None:
    """The machines whose kernels were measured name the tables and the licence."""
    for name in ("a100-80", "a100-40", "h100-80", "h200-141", "l40s-48"):
        source = PROFILES[name].sources[PROFILES[name].engines["gpu"].matmul["bfloat16"].source]
        assert source.kind == "fitted"
        assert "aiconfigurator" in source.title
        assert "Apache-2.0" in source.title


# The page about profiles.

PAGE = Path(__file__).parents[1] / "docs" / "hardware-profiles.md"


def test_the_examples_on_the_page_run() -> None:
    """What the page shows is what happens."""
    assert doctest.testfile(str(PAGE), module_relative=False).failed == 0


@pytest.mark.parametrize("name", PROFILES)
def test_the_page_lists_the_machine(name: str) -> None:
    """The table's figures are those of the shipped profile."""
    profile = PROFILES[name]
    row = next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` ")
    )
    disk, links = profile.tiers["disk"].capacity / 1e12, profile.links
    assert [cell.strip() for cell in row.split("|")][4:-1] == [
        f"{profile.tiers['gpu'].capacity / 2**30:.0f} GiB",
        f"{profile.tiers['cpu'].capacity / 2**30:.0f} GiB",
        f"{disk:g} TB, {links.disk_read.bandwidth / 1e9:g} GB/s",
        f"{links.h2d.pinned.bandwidth / 1e9:g} GB/s",
        f"{profile.cost.rent:g} USD/h" if profile.cost.rent else f"{profile.cost.purchase:g} USD",
    ]


def test_the_page_names_every_key() -> None:
    """No key of a profile is missing from the page."""
    page = PAGE.read_text(encoding="utf-8")
    keys = {key for path, _ in leaves(DATA) for key in path if path[0] != "sources"}
    keys |= {"pinnable", "share", "kind", "title", "url", "date", "peak.cache"}
    keys |= {f"*`{key}`*" for key in ("tail", "split", "grain", "cached")}
    assert {key for key in keys if key not in page} == set()


@pytest.mark.parametrize(
    ("name", "table"), [("a100-80", "a100_sxm"), ("h100-80", "h100_sxm"), ("l40s-48", "l40s")]
)
def test_the_page_shows_the_fitted_constants(name: str, table: str) -> None:
    """The constants of a fitted machine are those of the output that the page shows."""
    output = PAGE.read_text(encoding="utf-8").partition(f"{table}_gemm_perf.csv.gz: ")[2].splitlines()
    shown = [parse_yaml(line) for line in output if line.strip().endswith("source: fit}")][:3]
    engine = PROFILES[name].engines["gpu"]
    assert Roofline.model_validate(shown[0]["bfloat16"]) == engine.matmul["bfloat16"]
    assert Roofline.model_validate(shown[1]["prefill"]) == engine.attention.prefill
    assert Roofline.model_validate(shown[2]["decode"]) == engine.attention.decode


# The roofline.

rates = st.floats(1e9, 1e15)
works = st.floats(0.0, 1e18)
depths = st.floats(0.0, 1e6)
lines = st.builds(
    lambda flops, bandwidth, latency, sharpness, further: Roofline(
        flops=FLOP_RATE.format(flops),
        bandwidth=BYTE_RATE.format(bandwidth),
        latency=DURATION.format(latency),
        sharpness=sharpness,
        source="drawn",
        **further,
    ),
    *(rates, rates, st.floats(0.0, 1.0), st.floats(1.0, 64.0)),
    st.one_of(
        st.just({}),
        st.builds(lambda tail: {"tail": DURATION.format(tail)}, st.floats(0.0, 1e-3)),
        st.builds(
            lambda tail, split, grain: {
                "tail": DURATION.format(tail),
                "split": split,
                "grain": BYTES.format(grain),
            },
            *(st.floats(0.0, 1e-3), st.floats(1.0, 1e6), st.floats(0.0, 1e9)),
        ),
    ),
)


@given(line=lines, flops=works, bytes_=works, kernels=st.integers(0, 100), depth=depths, blocks=depths)
def test_a_kernel_is_never_faster_than_the_roofline(
    line: Roofline, flops: float, bytes_: float, kernels: int, depth: float, blocks: float
) -> None:
    """The time is at least that of the FLOPs and that of the bytes, and at most the sum of all parts."""
    seconds = float(line.seconds(flops, bytes_, kernels, depth, blocks))
    compute, memory = flops / line.flops, bytes_ / line.bandwidth
    assert seconds >= max(compute, memory)
    least = blocks * (line.grain or 0.0) / line.bandwidth
    chain = line.latency + (line.tail or 0.0) * depth
    assert seconds <= (kernels * chain + compute + memory + least) * (1.0 + 1e-12)


@given(line=lines, flops=works, bytes_=works, blocks=depths, depth=depths, scale=st.floats(1e-3, 1e3))
def test_time_is_homogeneous_in_work(
    line: Roofline, flops: float, bytes_: float, blocks: float, depth: float, scale: float
) -> None:
    """Without latency, twice the work takes twice the time."""
    once = float(line.seconds(flops, bytes_, 0.0, depth, blocks))
    again = float(line.seconds(scale * flops, scale * bytes_, 0.0, depth, scale * blocks))
    assert again == pytest.approx(scale * once, rel=1e-9)


@given(line=lines, flops=works, bytes_=works, kernels=st.integers(0, 100), depth=depths, blocks=depths)
def test_further_constants_change_nothing_unless_given(
    line: Roofline, flops: float, bytes_: float, kernels: int, depth: float, blocks: float
) -> None:
    """Without tail and grain, depth and blocks do not matter; without depth and blocks, tail and grain."""
    plain = line.model_copy(update=dict.fromkeys(("tail", "split", "grain", "cached")))
    seconds = float(plain.seconds(flops, bytes_, kernels))
    assert float(plain.seconds(flops, bytes_, kernels, depth, blocks)) == seconds
    assert float(line.seconds(flops, bytes_, kernels)) == seconds


@given(line=lines, flops=works, bytes_=works, more=works, kernels=st.integers(0, 100), depth=depths)
def test_time_is_monotone(
    line: Roofline, flops: float, bytes_: float, more: float, kernels: int, depth: float
) -> None:
    """More FLOPs, bytes, kernels, depth or blocks never take less time."""
    seconds = float(line.seconds(flops, bytes_, kernels, depth, 1.0)) * (1.0 - 1e-12)
    assert float(line.seconds(flops + more, bytes_, kernels, depth, 1.0)) >= seconds
    assert float(line.seconds(flops, bytes_ + more, kernels, depth, 1.0)) >= seconds
    assert float(line.seconds(flops, bytes_, kernels + 1, depth, 1.0)) >= seconds
    assert float(line.seconds(flops, bytes_, kernels, depth + more, 1.0)) >= seconds
    assert float(line.seconds(flops, bytes_, kernels, depth, 1.0 + more)) >= seconds


@given(line=lines, works=st.lists(st.tuples(works, works, st.integers(0, 9)), min_size=1, max_size=8))
def test_times_are_elementwise(line: Roofline, works: list[tuple[float, float, int]]) -> None:
    """An array of work gives the times of its elements."""
    flops, bytes_, kernels = (np.array(column) for column in zip(*works, strict=True))
    expected = [float(line.seconds(*work)) for work in works]
    assert line.seconds(flops, bytes_, kernels).tolist() == pytest.approx(expected, rel=1e-14)


def test_known_kernel() -> None:
    """A sharp roofline is the larger of the two times, a blunt one their sum."""
    values = {"flops": "10 TFLOP/s", "bandwidth": "1 TB/s", "latency": "5 us", "source": "made up"}
    assert float(Roofline(**values, sharpness=64).seconds(1e12, 1e10)) == pytest.approx(0.1 + 5e-6)  # type: ignore[arg-type]
    assert float(Roofline(**values, sharpness=1).seconds(1e12, 1e10, 2)) == pytest.approx(0.11 + 1e-5)  # type: ignore[arg-type]
    assert float(Roofline(**values).seconds(0.0, 0.0, 0)) == 0.0  # type: ignore[arg-type]


def test_a_tail_ends_where_kernels_are_split() -> None:
    """A tail grows with depth; with a split it ends at the tail of so many steps, and is half of it there."""
    values = {"flops": "10 TFLOP/s", "bandwidth": "1 TB/s", "source": "made up", "tail": "1 us"}
    plain, split = (Roofline.model_validate(values | further) for further in ({}, {"split": 1000.0}))
    assert float(plain.seconds(0.0, 0.0, 2, 1000.0)) == pytest.approx(2e-3)
    assert float(split.seconds(0.0, 0.0, 2, 1000.0)) == pytest.approx(1e-3)
    assert float(split.seconds(0.0, 0.0, 2, 1e12)) == pytest.approx(2e-3)


def test_a_grain_is_the_least_that_blocks_cost() -> None:
    """Blocks with little to move cost their grain, and those with much what they move."""
    values = {"flops": "10 TFLOP/s", "bandwidth": "1 TB/s", "grain": "100 kB", "source": "made up"}
    line = Roofline.model_validate(values)
    assert float(line.seconds(0.0, 1e5, 0, 0.0, 1000.0)) == pytest.approx(1e-4)
    assert float(line.seconds(0.0, 1e10, 0, 0.0, 1000.0)) == pytest.approx(1e-2)


def test_the_examples_in_the_modules_run() -> None:
    """The doctests of the hardware and kernel modules hold."""
    assert doctest.testmod(hardware).failed == 0
    assert doctest.testmod(kernels).failed == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("split", 100.0, "add tail"),
        ("cached", "1 GB/s", "cached is below bandwidth"),
        ("cached", "2 TB/s", "add peak.cache"),
    ],
)
def test_constants_that_need_another_say_so(key: str, value: object, said: str) -> None:
    """A split without a tail, a cache slower than the memory or without a size is refused with the remedy."""
    assert said in message(changed(("engines", "gpu", "matmul", "float16", key), value))


# Faults: one line each, with the path.


@given(st.sampled_from(REQUIRED))
def test_a_missing_key_is_named(path: Path_) -> None:
    """Whatever required key is dropped, the error names it."""
    data = copy.deepcopy(DATA)
    del at(data, path[:-1])[path[-1]]
    text = message(data)
    assert ".".join(path) in text or f"peak.flops.{path[-1]}" in text or "at least 1 item" in text


@given(st.sampled_from(sorted({value for path, value in leaves(DATA) if path[-1] == "source"})))
def test_a_missing_source_is_named(source: str) -> None:
    """A figure whose source is not listed is refused by the name of the source."""
    data = copy.deepcopy(DATA)
    del data["sources"][source]
    assert message(data).endswith(f"add sources.{source}")


@given(path=st.sampled_from([path for path in GROUPS if path not in KEYED_BY_USER]), drop=st.data())
def test_a_misspelt_key_is_named(path: Path_, drop: st.DataObject) -> None:
    """A key with a letter too few is an unknown key at its own path."""
    data = copy.deepcopy(DATA)
    group = at(data, path)
    key = drop.draw(st.sampled_from(sorted(group)))
    cut = drop.draw(st.integers(0, len(key) - 1))
    wrong = key[:cut] + key[cut + 1 :] + "x" * (path == ("tiers",))
    if wrong not in group:
        group[wrong] = group.pop(key)
        assert "hardware" in message(data)


@given(path=st.sampled_from(GROUPS), key=st.text(min_size=1) | st.integers() | st.none())
def test_an_unknown_key_is_refused_anywhere(path: Path_, key: object) -> None:
    """A key that means nothing is refused wherever it stands, with its path."""
    data = copy.deepcopy(DATA)
    group = at(data, path)
    if path == ("sources",) or key in group:
        return
    group[key] = 3
    assert ".".join(("hardware", *path)) in message(data)


@given(
    path=st.sampled_from(LEAVES),
    value=st.none()
    | st.booleans()
    | st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1e9])
    | st.just([])
    | st.just([1, 2])
    | st.just({"a": {"b": 1}})
    | st.binary(),
)
def test_a_wrong_type_is_refused_anywhere(path: Path_, value: object) -> None:
    """No, true, nan, inf, a list, a mapping or bytes in place of a value is refused at its path."""
    if path in OPTIONAL and value is None:
        return
    if path == ("schema_version",) and value == 1:
        return
    if path == ("unified_memory",) and isinstance(value, bool):
        return
    if isinstance(value, bytes) and path[-1] in {"title", "url", "date", "name", "description", "source"}:
        return  # bytes that are text pass as text; YAML's !!binary is no way to write a number
    assert ".".join(("hardware", *path)) in message(changed(path, value))


BAD_QUANTITIES = (
    "12.9|12.9 GB|-1 GB/s|nan GB/s|inf GB/s|1e99 GB/s|1e999 GB/s|0 B/s|GB/s|12,9 GB/s|12.9 gb/s||1 GB /s"
)


@pytest.mark.parametrize("text", BAD_QUANTITIES.split("|"))
@pytest.mark.parametrize("link", ["h2d.pinned", "d2h.pageable", "disk_read", "disk_write"])
def test_a_wrong_rate_is_refused(link: str, text: str) -> None:
    """A bare number, a wrong unit, a negative, an endless or an absurd rate is refused with its path."""
    path = ("links", *link.split("."), "bandwidth")
    assert message(changed(path, text)).startswith(f"hardware.{'.'.join(path)}: ")


FAULTS: dict[str, tuple[str, object, str]] = {
    "a tier that is no tier": ("tiers.tape", {"capacity": "1 TB", "source": "machine"}, "tiers.tape"),
    "a lane that is no lane": ("capacities.dram.lanes.nvlink", 1, "capacities.dram.lanes.nvlink"),
    "an engine that is no engine": ("engines.tpu", {}, "engines.tpu"),
    "a dtype that is no dtype": ("engines.gpu.peak.flops.fp16", "65 TFLOP/s", "engines.gpu.peak.flops.fp16"),
    "a link that is no link": ("links.nvlink", {}, "links.nvlink"),
    "no lanes": ("capacities.dram.lanes", {}, "capacities.dram.lanes"),
    "no sources": ("sources", {}, "sources"),
    "no matmul": ("engines.gpu.matmul", {}, "engines.gpu.matmul"),
    "a matmul without a peak": (
        "engines.gpu.matmul.bfloat16",
        {"flops": "1 TFLOP/s", "bandwidth": "1 GB/s", "source": "fit"},
        "peak.flops.bfloat16",
    ),
    "a reserve above the capacity": ("tiers.gpu.reserve", "16 GiB", "tiers.gpu"),
    "more pinnable than there is": ("tiers.cpu.pinnable", "209 GiB", "tiers.cpu"),
    "a matmul faster than its peak": (
        "engines.gpu.matmul.float16.flops",
        "66 TFLOP/s",
        "matmul.float16.flops",
    ),
    "memory faster than its peak": ("engines.gpu.attention.decode.bandwidth", "321 GB/s", "decode.bandwidth"),
    "a copy faster than its link": ("links.h2d.pinned.bandwidth", "16 GB/s", "pinned.bandwidth"),
    "a disk faster than its peak": ("links.disk_read.bandwidth", "3.3 GB/s", "links.disk_read"),
    "a capacity of both kinds": ("capacities.dram.share", 1.0, "capacities.dram"),
    "a share of nothing": (
        "capacities.cores",
        {"share": 0, "lanes": {"cpu": 1}, "source": "fit"},
        "cores.share",
    ),
    "a share without end": (
        "capacities.cores",
        {"share": 65, "lanes": {"cpu": 1}, "source": "fit"},
        "cores.share",
    ),
    "a capacity of no kind": ("capacities.cores", {"lanes": {"cpu": 1}, "source": "fit"}, "capacities.cores"),
    "a factor below zero": ("capacities.dram.lanes.h2d", -1, "capacities.dram.lanes.h2d"),
    "a factor in quotes": ("capacities.dram.lanes.h2d", "1", "capacities.dram.lanes.h2d"),
    "a blunt roofline": ("engines.gpu.matmul.float16.sharpness", 0.5, "engines.gpu.matmul.float16.sharpness"),
    "another version": ("schema_version", 2, "schema_version"),
    "a version in quotes": ("schema_version", "1", "schema_version"),
    "a kind of source that is none": ("sources.fit.kind", "guessed", "sources.fit.kind"),
    "a source without a title": ("sources.fit.title", "", "sources.fit.title"),
    "a source that is not listed": ("cost.source", "nowhere", "cost.source"),
    "no name": ("name", "", "name"),
    "a name without end": ("name", "x" * 65, "name"),
    "free of charge": ("cost.rent", "0 USD/h", "cost.rent"),
    "time that runs backwards": ("links.h2d.pinned.latency", "-1 us", "links.h2d.pinned.latency"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    """Each fault is refused in one line that names where it is."""
    path, value, named = FAULTS[fault]
    text = message(changed(tuple(path.split(".")), value))
    assert text.startswith("hardware")
    assert named in text


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
FILES: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n \n",
    "only a comment": b"# nothing\n",
    "a list": b"- a\n- b\n",
    "a word": b"profile\n",
    "a number": b"3\n",
    "null": b"null\n",
    "an empty mapping": b"{}\n",
    "not closed": b"a: [1, 2\n",
    "wrong indentation": b"a: 1\n  b: 2\n c: 3\n",
    "a tab": b"a:\n\t- 1\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "an unknown alias": b"a: *nowhere\n",
    "a cycle": b"a: &a\n  b: *a\n",
    "a cycle of lists": b"a: &a [*a]\n",
    "a cycle through a merge": b"a: &a\n  <<: *a\n",
    "a bomb of aliases": BOMB.encode(),
    "a key given twice": b"name: a\nname: b\n",
    "a deep key given twice": b"tiers: {gpu: {source: a, source: b}}\n",
    "a mapping as a key": b"? {a: 1}\n: 2\n",
    "a Python object": b"a: !!python/object/apply:os.getcwd []\n",
    "an unknown tag": b"a: !mine 3\n",
    "deep lists": b"a: " + b"[" * 100_000,
    "deep mappings": b"a: " + b"{a: " * 100_000,
    "deep blocks": b"- " * 100_000 + b"a",
    "a number of many digits": b"a: " + b"9" * 10_000,
    "not UTF-8": b"name: \xff\xfe\n",
    "UTF-16": "name: a\n".encode("utf-16"),
    "zero bytes": b"\x00" * 100,
    "binary": bytes(range(256)) * 10,
    "an image": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "JSON of something else": b'{"plan": 1}',
    "a long line": b"x" * 100_000,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_profile_is_refused(kind: str, tmp_path: Path) -> None:
    """A file of any other content is refused in one line that names the file or the key."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(FILES[kind])
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    text = one_line(caught.value)
    assert text.startswith((str(path), "hardware."))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No content whatsoever makes the reader fail in another way."""
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_bytes(content)
    for read in (read_yaml, read_json, lambda path: load_profile(str(path))):
        try:
            read(path)
        except InputError as error:
            one_line(error)


@given(cut=st.integers(0, len(TEXT) - 1), junk=st.text(max_size=3))
def test_a_damaged_profile_is_refused_or_sound(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: str
) -> None:
    """A profile with some characters overwritten still reads, or is refused in one line."""
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(TEXT[:cut] + junk + TEXT[cut + len(junk) :], encoding="utf-8", errors="replace")
    try:
        assert load_profile(str(path)).schema_version == 1
    except InputError as error:
        one_line(error)


@pytest.mark.parametrize(
    "name", ["", ".", "nowhere", "nowhere.yaml", "t4", "x" * 5000, "a\0b", "a\nb", "/", "~"]
)
def test_a_name_that_is_no_profile_is_refused(name: str) -> None:
    """A name of nothing, of a folder or of no possible file is refused with the names there are or a hint."""
    with pytest.raises(InputError) as caught:
        load_profile(name)
    text = str(caught.value)
    assert text.isprintable()
    assert "a100-80" in text or "did you mean" in text


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder, and a file that vanished, are refused in one line with the path."""
    for read in (read_yaml, read_json):
        for path in (tmp_path, tmp_path / "gone.yaml"):
            with pytest.raises(InputError, match="cannot be read") as caught:
                read(path)
            assert one_line(caught.value).startswith(str(path))


OVERRIDES = {
    "nothing": "",
    "no value": "tiers.cpu.capacity",
    "an empty value": "tiers.cpu.capacity=",
    "an empty path": "=3",
    "a bare number": "tiers.cpu.capacity=512",
    "a wrong unit": "tiers.cpu.capacity=512 GB/s",
    "a misspelt group": "tiers.cpuu.capacity=1 GB",
    "a misspelt key": "tiers.cpu.capacty=1 GB",
    "a group": "tiers.cpu=1 GB",
    "a path through a value": "tiers.cpu.capacity.more=1",
    "dots alone": "...=1",
    "not a value": "tiers.cpu.capacity=[1",
    "a mapping": "tiers.cpu.capacity={a: 1}",
    "a negative": "tiers.cpu.capacity=-1 GB",
    "more than the peak": "links.h2d.pinned.bandwidth=1 TB/s",
    "two lines": "tiers.cpu.cap\nacity=1 GB",
    "two lines of value": "tiers.cpu.capacity=1\n GB: 2: 3",
    "a number as a key": "1.2=3",
    "a new source for nothing": "sources.mine=3",
}


@pytest.mark.parametrize("kind", OVERRIDES)
def test_a_wrong_override_is_refused(kind: str) -> None:
    """An override that cannot be applied is refused in one line that names it or the key."""
    with pytest.raises(InputError) as caught:
        load_profile("t4-16", (OVERRIDES[kind],))
    assert one_line(caught.value).startswith(("--set", "hardware."))


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override_is_applied_or_refused(path: str, value: str) -> None:
    """No override whatsoever makes the reader fail in another way."""
    try:
        load_profile("t4-16", (f"{path}={value}",))
    except InputError as error:
        one_line(error)


def test_hints() -> None:
    """A near miss is answered with the name that was meant."""
    with pytest.raises(InputError, match=r"did you mean t4-16\?"):
        load_profile("t4_16")
    with pytest.raises(InputError, match="did you mean 'capacity'"):
        load_profile("t4-16", ("tiers.cpu.capacty=1 GB",))
    with pytest.raises(InputError, match=r"no key 'tier' at the top level; did you mean 'tiers'"):
        load_profile("t4-16", ("tier.cpu.capacity=1 GB",))
    assert "(and 1 more)" in message(changed(("tiers", "cpu"), {"capacity": "1", "source": 3}))


def test_profiles_are_plain_yaml() -> None:
    """What is written is YAML that any reader understands, quantities as text with units."""
    data = yaml.safe_load(TEXT)
    assert data["tiers"]["gpu"]["capacity"] == "15 GiB"
    assert data["links"]["h2d"]["peak"] == "15.75 GB/s"
