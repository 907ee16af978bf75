"""Pipelines of servers: laws, an example by hand, memory, and the published measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InfeasibleError, InputError
from simulator.hardware import HardwareProfile
from simulator.layers import CellKind
from simulator.model_config import load_model
from simulator.pipeline import Swarm, stalls
from simulator.pipelines import Pipeline, load_pipeline, pipeline_names
from simulator.profiles import load_profile
from simulator.workload import Workload
from tests.strategies import machines, models

PETALS = load_pipeline()
FREE = {"latency": 0.0, "bandwidth": 1e30, "overhead": 0.0}

EXAMPLES = 40  # of each law

#: Model, servers, prompt, measured tokens per second and GPU, error reached, fitted. FlexGen paper.
PUBLISHED = [
    ("opt-6.7b", 1, 512, 8.25, 0.03, True),
    ("opt-6.7b", 1, 1024, 6.56, 0.03, True),
    ("opt-30b", 4, 512, 2.84, 0.08, False),
    ("opt-30b", 4, 1024, 1.51, 0.16, False),
    ("opt-175b", 24, 512, 0.08, 0.15, False),
    ("opt-175b", 24, 1024, 0.06, 0.15, False),
]


def _pipeline(**changes: float) -> Pipeline:
    return PETALS.default.model_copy(update=changes)


@st.composite
def swarms(draw: st.DrawFn, **engine: object) -> Swarm:
    """Draw an engine, a small model, a machine and lengths."""
    drawn = {
        "host": draw(st.sampled_from([0.0, 1e-4, 5e-3])),
        "product_share": draw(st.sampled_from([0.3, 1.0])),
        "relayed": draw(st.booleans()),
        "weight_bits": draw(st.sampled_from([4, 8, 16])),
    }
    workload = Workload(prompt_len=draw(st.integers(1, 64)), gen_len=draw(st.integers(1, 5)))
    return Swarm(PETALS.model_copy(update=drawn | engine), draw(models()), draw(machines()), workload)


@st.composite
def pipelines(draw: st.DrawFn, swarm: Swarm) -> Pipeline:
    """Draw servers, clients and a network for a swarm."""
    return Pipeline.model_construct(
        servers=draw(st.integers(1, swarm.model.num_layers)),
        clients=draw(st.integers(1, 5)),
        batch=draw(st.integers(1, 3)),
        requests=draw(st.integers(1, 3)),
        latency=draw(st.sampled_from([0.0, 1e-4, 1e-2])),
        bandwidth=draw(st.sampled_from([1e5, 1e7, 1e9])),
        window=draw(st.sampled_from([100.0, 14600.0])),
        overhead=draw(st.sampled_from([0.0, 1e-3])),
    )


def _wire(swarm: Swarm, pipeline: Pipeline) -> float:
    """Seconds of one request on one link, in one direction."""
    tokens = swarm.workload.prompt_len + swarm.workload.gen_len - 1
    return pipeline.batch * tokens * swarm.model.hidden_bytes / pipeline.bandwidth


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_no_faster_than_one_gpu_and_one_link(data):
    """Throughput stays below what the longest span's GPU, and any link that is used, can do."""
    swarm = data.draw(swarms())
    pipeline = data.draw(pipelines(swarm))
    found = swarm.predict(pipeline)
    longest = math.ceil(swarm.model.num_layers / pipeline.servers)
    tokens = pipeline.batch * swarm.workload.gen_len
    bound = tokens / max(longest * swarm.block_seconds(pipeline.batch).sum(), _wire(swarm, pipeline))
    assert found.throughput <= bound * (1 + 1e-9)
    assert 0 <= found.gpu_busy <= 1 + 1e-9
    assert 0 < found.network_busy <= 1 + 1e-9
    assert found.latency == pytest.approx(found.prefill + found.decode)
    assert found.per_gpu == pytest.approx(found.throughput / pipeline.servers)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_latency_is_at_least_all_hops_and_kernels(data):
    """A request takes every hop of every pass, all blocks and the ends; alone, exactly that long."""
    swarm = data.draw(swarms())
    pipeline = data.draw(pipelines(swarm))
    visits, n = pipeline.servers, swarm.workload.gen_len
    hops = 2 * visits if swarm.engine.relayed else visits + 1
    tokens = np.array([swarm.workload.prompt_len, *[1] * (n - 1)])
    size = pipeline.batch * tokens * swarm.model.hidden_bytes
    least = n * (hops * pipeline.latency + visits * pipeline.overhead) + hops * _wire(swarm, pipeline)
    least += hops * stalls(pipeline, size).sum() + swarm.end_seconds(pipeline.batch).sum()
    least += swarm.model.num_layers * swarm.block_seconds(pipeline.batch).sum()
    assert swarm.predict(pipeline).latency >= least * (1 - 1e-9)
    alone = swarm.predict(pipeline.model_copy(update={"clients": 1}))
    assert alone.latency == pytest.approx(least)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_a_better_network_never_hurts(data):
    """With any number of clients: lanes keep their order, so every end is monotone in every duration."""
    swarm = data.draw(swarms())
    pipeline = data.draw(pipelines(swarm))
    name, factor = data.draw(st.sampled_from([("latency", 0.5), ("overhead", 0.0), ("bandwidth", 3.0)]))
    better = pipeline.model_copy(update={name: factor * getattr(pipeline, name)})
    assert swarm.predict(better).throughput >= swarm.predict(pipeline).throughput * (1 - 1e-9)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_more_clients_never_take_throughput(data):
    """One more request in flight fills waiting time; on one busy GPU it changes nothing."""
    swarm = data.draw(swarms())
    pipeline = data.draw(pipelines(swarm))
    more = pipeline.model_copy(update={"clients": pipeline.clients + 1})
    assert swarm.predict(more).throughput >= swarm.predict(pipeline).throughput * (1 - 1e-9)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_one_server_without_a_network_is_the_sum_of_kernels(data):
    """With one client, nothing to issue and products at full speed, time is that of the kernels."""
    swarm = data.draw(swarms(host=0.0, product_share=1.0))
    alone = swarm.predict(_pipeline(clients=1, batch=1, requests=1, **FREE))
    blocks = sum(kernel.sum() for kernel in swarm.kernels(1, CellKind.BLOCK).values())
    kernels = swarm.model.num_layers * blocks + swarm.end_seconds(1).sum()
    assert alone.latency == pytest.approx(kernels)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_chain_is_no_slower_than_relay_for_one_client(data):
    """Servers that pass activations on save a hop for each but the last."""
    swarm = data.draw(swarms(relayed=True))
    pipeline = data.draw(pipelines(swarm)).model_copy(update={"clients": 1})
    engine = swarm.engine.model_copy(update={"relayed": False})
    chain = Swarm(engine, swarm.model, swarm.hardware, swarm.workload)
    assert chain.predict(pipeline).throughput >= swarm.predict(pipeline).throughput * (1 - 1e-9)


def test_by_hand():
    """Two clients, two servers, one token each: the second client is one service behind the first."""
    swarm = Swarm(
        PETALS.model_copy(update={"host": 1.0}),
        load_model("opt-125m"),
        load_profile("t4-16"),
        Workload(prompt_len=8, gen_len=2),
    )
    pipeline = _pipeline(servers=2, clients=2, batch=1, requests=1, **(FREE | {"latency": 0.5}))
    found = swarm.predict(pipeline)
    end = swarm.end_seconds(1)
    # Six blocks of a second on each server. Client 1: 0.5 s there, 6 s, 0.5 s back, twice: 14 s and the head.
    # Client 2 waits 6 s at the first server. Client 1 is back there at 14.5 s, when it is free.
    assert found.prefill == pytest.approx(14 + 3 + end[0])
    assert found.decode == pytest.approx(14 + end[1])
    assert found.throughput == pytest.approx(4 / (34 + end.sum()))
    assert found.gpu_busy == pytest.approx(24 / (34 + end.sum()))


def test_stalls_by_hand():
    """A window of 100 bytes and a round trip of 1 s at 1000 B/s: 100, 200, 400 bytes, then it is full."""
    pipeline = Pipeline.model_construct(latency=0.5, bandwidth=1000.0, window=100.0)
    waits = stalls(pipeline, np.array([100.0, 101.0, 301.0, 1e6]))
    assert waits == pytest.approx([0.0, 0.9, 0.9 + 0.8, 0.9 + 0.8 + 0.6 + 0.2])


@pytest.mark.parametrize(("model", "servers", "prompt", "measured", "error", "fitted"), PUBLISHED)
def test_published(model, servers, prompt, measured, error, fitted):
    """Two constants are fitted to one GPU; the rows with a network are predictions."""
    swarm = Swarm(PETALS, load_model(model), load_profile("t4-16"), Workload(prompt_len=prompt, gen_len=32))
    found = swarm.predict(_pipeline(servers=servers))
    assert found.per_gpu == pytest.approx(measured, rel=error)
    assert swarm.fewest_servers(found.pipeline) <= servers


def test_fewest_servers_fit():
    """Fewer do not fit, those do, and more clients never need fewer."""
    swarm = Swarm(PETALS, load_model("opt-30b"), load_profile("t4-16"), Workload())
    tier = swarm.hardware.tiers["gpu"]
    before = 0
    for clients in (1, 6, 24):
        pipeline = _pipeline(clients=clients)
        servers = swarm.fewest_servers(pipeline)
        need = [swarm.memory(pipeline, math.ceil(48 / (servers - less))) for less in (0, 1)]
        assert need[0] <= tier.capacity - tier.reserve < need[1]
        assert servers >= before
        before = servers


def test_best_is_no_worse_than_any_choice_that_fits():
    """Per GPU, on the fewest servers that hold it."""
    swarm = Swarm(PETALS, load_model("opt-6.7b"), load_profile("t4-16"), Workload(prompt_len=128, gen_len=4))
    found = swarm.best()
    assert found.pipeline.servers == swarm.fewest_servers(found.pipeline)
    for clients, batch in ((1, 1), (4, 4), (8, 2)):
        one = _pipeline(clients=clients, batch=batch)
        one = one.model_copy(update={"servers": swarm.fewest_servers(one)})
        assert found.per_gpu >= swarm.predict(one).per_gpu


def test_errors_say_what_is_short():
    """A block that fits no GPU, more servers than blocks, an engine that does not exist."""
    data = load_profile("t4-16").model_dump(mode="json", exclude_none=True)
    data["tiers"]["gpu"] = {"capacity": "2 GiB", "reserve": "0 B", "source": "assumed"}
    small = HardwareProfile.model_validate(data)
    swarm = Swarm(PETALS, load_model("opt-175b"), small, Workload())
    with pytest.raises(InfeasibleError, match=r"one block of opt-175b .* needs \d+\.\d\d GiB, and 2\.00 GiB"):
        swarm.fewest_servers(PETALS.default)
    with pytest.raises(InfeasibleError):
        Swarm(PETALS, load_model("opt-175b"), small, Workload(prompt_len=8192)).best()
    with pytest.raises(InputError, match="97 servers cannot share 96 blocks"):
        swarm.predict(_pipeline(servers=97))
    with pytest.raises(InputError, match="known: petals"):
        load_pipeline("flexgen")
    assert pipeline_names() == ["petals"]
