"""A pipeline of servers over a network: each server one GPU with a span of blocks in its memory, no offload.

The client holds embedding and head. The activations of a request visit the servers in order, once for the
prompt and once for every further token. Requests of different clients are not batched together: a server
computes them one after the other and reads its weights again for each. See docs/pipeline.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from simulator.cost import Rates
from simulator.errors import InfeasibleError, InputError
from simulator.hardware import HardwareProfile
from simulator.kernel import recurrence
from simulator.layers import CellKind, Shape
from simulator.model import ModelSpec, Weight
from simulator.operations import OP, OPERATIONS, IntArray
from simulator.pipelines import Pipeline, PipelineRuntime
from simulator.policy import FloatArray, placed
from simulator.runtime import Overheads, Runtime, load_runtime
from simulator.units import GIB
from simulator.work import Cells, cell_work
from simulator.workload import Workload

_BLOCK = ("qkv", "attend_prompt", "attend", "mlp")
_ENDS = {"embed": CellKind.EMBED, "head": CellKind.HEAD}
_ON_GPU = placed(one=1, weights_gpu=1, cache_gpu=1, activations_gpu=1)
_CLIENTS = (1, 2, 4, 8, 16, 32)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class PipelinePrediction:
    """What a pipeline achieves.

    Attributes:
        pipeline: what was played.
        throughput: generated tokens of all requests over the time of the whole run. [tok/s]
        per_gpu: the same, for each server. [tok/s]
        latency: of a request, on average. [s]
        prefill: of it, until the first token is out. [s]
        decode: of it, the rest. [s]
        gpu_busy: share of the run in which a server computes, on average over servers.
        network_busy: share of the run in which a link transmits, on average over links and directions.
    """

    pipeline: Pipeline
    throughput: float
    per_gpu: float
    latency: float
    prefill: float
    decode: float
    gpu_busy: float
    network_busy: float


@dataclass(frozen=True)
class Swarm:
    """What a pipeline is made of and works on: an engine, a model, the machine of each server, requests."""

    engine: PipelineRuntime
    model: ModelSpec
    hardware: HardwareProfile
    workload: Workload

    def block_seconds(self, batch: int) -> FloatArray:
        """Give the time of a block at each position of a life: its kernels, or issuing them. [n] [s]"""
        return np.maximum(sum(self.kernels(batch, CellKind.BLOCK).values()), self.engine.host)

    def end_seconds(self, batch: int) -> FloatArray:
        """Give the time of embedding and head, on a GPU of the client's own. [n] [s]"""
        ends = [self.kernels(batch, kind)[name] for name, kind in _ENDS.items()]
        return np.asarray(sum(ends))

    def kernels(self, batch: int, kind: CellKind) -> dict[str, FloatArray]:
        """Give the time of each kernel of a layer at every position of a life, all on the GPU. [n] each [s]

        Products of blocks read quantised weights as they are, so many bytes less.
        """
        runtime = load_runtime("reference").model_copy(
            update={"fused_attention": self.engine.fused_attention}
        )
        rates, position = Rates(self.hardware, runtime, self.model.dtype), np.arange(self.workload.gen_len)
        prompt, ones = self.workload.prompt_len, np.ones(self.workload.gen_len)
        new, cached = np.where(position, 1.0, prompt), np.where(position, prompt + position - 1.0, 0.0)
        shared = np.zeros(len(ones))
        cells = Cells(
            np.full(len(ones), kind), batch * ones, new, cached, kept=new, judged=ones, prefix=shared
        )
        seconds = {}
        for name, work in cell_work(self.model, Shape(), runtime, cells).items():
            if name in (_BLOCK if kind == CellKind.BLOCK else _ENDS):
                flops, bytes_, slower = work.flops @ _ON_GPU, work.bytes @ _ON_GPU, 1.0
                if kind == CellKind.BLOCK and name in ("qkv", "mlp"):
                    bytes_, slower = bytes_ - self._saved(name), 1.0 / self.engine.product_share
                time = rates.seconds(OPERATIONS[OP[name]], flops, bytes_, work.kernels)
                seconds[name] = slower * time
        return seconds

    def _saved(self, name: str) -> float:
        layer = self.model.layer_weights()
        weights = [weight for weight in layer if (weight.stage == "qkv") == (name == "qkv")]
        return self.model.weight_bytes(weights) - self._stored(weights)

    def _stored(self, weights: Iterable[Weight]) -> float:
        """Give the bytes of weights of a block in GPU memory: each row of a matrix has its scale. [B]"""
        return self.model.weight_bytes(weights, self.engine.weight_bits, self.model.hidden_size)

    def memory(self, pipeline: Pipeline, blocks: int) -> float:
        """Give what a server of so many blocks needs: them, all clients' cache, scratch of one prompt. [B]"""
        model, workload = self.model, self.workload
        cache = pipeline.clients * pipeline.batch * workload.context_len * model.kv_bytes_per_token
        states = 2 * model.hidden_bytes + max(model.qkv_bytes + model.query_bytes, model.ffn_bytes)
        scores = 0.0 if self.engine.fused_attention else 4.0 * model.num_heads * workload.prompt_len
        scratch = pipeline.batch * workload.prompt_len * (states + scores)
        return blocks * (self._stored(model.layer_weights()) + cache) + scratch

    @property
    def _free(self) -> float:
        tier = self.hardware.tiers["gpu"]
        return tier.capacity - tier.reserve

    def fewest_servers(self, pipeline: Pipeline) -> int:
        """Give the fewest servers whose memory suffices, whatever ``pipeline.servers`` says.

        Raises:
            InfeasibleError: not even one block with the cache of all clients fits a GPU.
        """
        layers = self.model.num_layers
        for servers in range(1, layers + 1):
            if self.memory(pipeline, math.ceil(layers / servers)) <= self._free:
                return servers
        raise InfeasibleError(
            f"gpu: one block of {self.model.name} with the cache of {pipeline.clients} x {pipeline.batch} "
            f"sequences needs {self.memory(pipeline, 1) / GIB:.2f} GiB, and {self._free / GIB:.2f} GiB are "
            "free; take fewer clients, smaller batches, or GPUs with more memory"
        )

    def predict(self, pipeline: Pipeline) -> PipelinePrediction:
        """Play all requests of all clients; whether they fit in memory is asked of :meth:`fewest_servers`.

        Raises:
            InputError: there are more servers than blocks.
        """
        servers, clients, passes = (
            pipeline.servers,
            pipeline.clients,
            pipeline.requests * self.workload.gen_len,
        )
        lane, seconds = self._steps(pipeline)
        steps = len(lane)
        of_client = 3 * servers + np.arange(clients)[:, None]
        lanes = np.broadcast_to(np.where(lane < 0, of_client, lane), (passes, clients, steps)).reshape(-1)
        lasting = np.tile(seconds[:, None], (pipeline.requests, clients, 1)).reshape(-1)
        number = np.arange(len(lanes)).reshape(passes, clients, steps)
        before = number - 1
        before[:, :, 0] = number[:, :, -1] - clients * steps  # the end of the client's previous pass
        waits_for = np.maximum(before, -1).reshape(-1, 1).astype(np.int32)
        _, end = recurrence(lanes.astype(np.int32), waits_for, lasting, 3 * servers + clients)
        ends = end.reshape(pipeline.requests, -1, clients, steps)[..., -1]
        return _gather(pipeline, ends, np.bincount(lanes, lasting).astype(float))

    def _steps(self, pipeline: Pipeline) -> tuple[IntArray, FloatArray]:
        """List what a request goes through in a pass: lanes (-1 is the client's own), seconds. [S], [n, S]

        Lanes are the GPUs, then the links into the servers, then those out of them.
        """
        servers, layers = pipeline.servers, self.model.num_layers
        if servers > layers:
            raise InputError(f"pipeline.servers: {servers} servers cannot share {layers} blocks; take fewer")
        tokens = np.where(np.arange(self.workload.gen_len), 1, self.workload.prompt_len)
        size = pipeline.batch * tokens * self.model.hidden_bytes
        wire, flight = size / pipeline.bandwidth, pipeline.latency + stalls(pipeline, size)
        block = self.block_seconds(pipeline.batch)
        found = []
        for server in range(servers):
            found.append((-1, pipeline.overhead + flight))
            if self.engine.relayed or server == 0:
                found.append((servers + server, wire))
            found.append((server, block * len(range(server, layers, servers))))
            found.append((2 * servers + server, wire))
            if self.engine.relayed or server == servers - 1:
                found.append((-1, flight))
        found.append((-1, self.end_seconds(pipeline.batch)))
        return np.array([lane for lane, _ in found]), np.stack([seconds for _, seconds in found], axis=1)

    def best(self, network: Pipeline | None = None) -> PipelinePrediction:
        """Choose clients and batch, on the fewest servers that hold them, for the most throughput per GPU.

        Looks at powers of two, on up to twice the servers that one sequence needs.

        Raises:
            InfeasibleError: not even one sequence fits.
        """
        network = network or self.engine.default
        alone = network.model_copy(update={"clients": 1, "batch": 1})
        most = min(2 * self.fewest_servers(alone), self.model.num_layers)
        found = []
        for clients, batch in product(_CLIENTS, _BATCHES):
            one = network.model_copy(update={"clients": clients, "batch": batch, "servers": most})
            if self.memory(one, math.ceil(self.model.num_layers / most)) <= self._free:
                servers = self.fewest_servers(one)
                found.append(self.predict(one.model_copy(update={"servers": servers})))
        return max(found, key=lambda prediction: prediction.per_gpu)


@cache
def _runtime(fused: bool) -> Runtime:
    """Give a runtime whose kernels have no overheads of an offloading engine."""
    plain = {"fused_attention": fused, "overheads": Overheads()}
    return load_runtime("reference").model_copy(update=plain)


def stalls(pipeline: Pipeline, size: FloatArray) -> FloatArray:
    """Give how long a message waits for answers while the connection's window is small. [s]

    It sends ``window`` bytes, twice as many after the first round trip, and so on, so that all but the last
    piece take a round trip at least.
    """
    waits, sent, window = np.zeros(len(size)), 0.0, pipeline.window
    while sent + window < size.max() and window < 2 * pipeline.latency * pipeline.bandwidth:
        sent += window
        waits += np.where(size > sent, 2 * pipeline.latency - window / pipeline.bandwidth, 0.0)
        window *= 2
    return waits


def _gather(pipeline: Pipeline, ends: FloatArray, busy: FloatArray) -> PipelinePrediction:
    """Turn the ends of passes [requests, n, clients] and the work of lanes [s] into a prediction."""
    starts = np.concatenate([np.zeros((1, pipeline.clients)), ends[:-1, -1]])
    time, servers = float(ends.max()), pipeline.servers
    throughput = pipeline.batch * ends.size / time
    links = busy[servers : 3 * servers]
    return PipelinePrediction(
        pipeline=pipeline,
        throughput=throughput,
        per_gpu=throughput / servers,
        latency=float((ends[:, -1] - starts).mean()),
        prefill=float((ends[:, 0] - starts).mean()),
        decode=float((ends[:, -1] - ends[:, 0]).mean()),
        gpu_busy=float(busy[:servers].mean()) / time,
        network_busy=float(links[links > 0].mean()) / time,
    )
