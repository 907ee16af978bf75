"""Everything that a run allocates, once, before its first pass: homes, slots, rings and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from executor.activations import ActivationStore, Areas
from executor.arena import Arena, rounded
from executor.cache import CacheStore, Home, slot_bytes
from executor.cache_disk import CacheDisk, newest_bytes, staging_bytes, writing_bytes
from executor.checkpoint import Checkpoint
from executor.embeddings import Embeddings, tables_of
from executor.expanded import ExpandedCache, ExpandedWeights
from executor.homes import Share, activation_shares, cache_shares
from executor.pages import PagePool
from executor.quantized_weights import prepare
from executor.read_pool import ReadPool
from executor.records import RecordForm, cache_group
from executor.stored import Stored, plain
from executor.weights import Tensors, WeightStore
from simulator.hardware import TierName
from simulator.layout import Placed
from simulator.memory import BufferName, buffer_slots
from simulator.passes import peak_tokens

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Memory:
    """The memory of a run.

    Args:
        placed: the layout.
        checkpoint: the model.
        device: where the GPU's work is done.
        folder: for what the layout puts on the disk beside the weights.
        on_block: hears of every block that is quantised: how many are done, and of how many.

    Attributes:
        facts: the model.
        layers: weights as kernels use them.
        expanded: the quantised cache as kernels use it.
        arenas: what was taken of the GPU's and the CPU's memory.
        on_cpu_engine: the shares of the cache that the CPU attends to.
        queries: a ring of queries on the CPU [BK,G,D], one for each cell that may be in flight.
        outputs: likewise of attention's outputs.
    """

    def __init__(
        self,
        placed: Placed,
        checkpoint: Checkpoint,
        device: torch.device,
        folder: Path,
        on_block: Callable[[int, int], None] | None = None,
    ) -> None:
        self.placed, self.facts, self.device, self._folder = placed, checkpoint.config, device, folder
        self.dtype = DTYPES[placed.model.dtype]
        self.quantized_cache = placed.policy.cache_bits < 16
        pinned = device.type != "cpu" and placed.policy.pinned
        self.arenas: dict[TierName, Arena] = {
            "gpu": Arena("gpu", device),
            "cpu": Arena("cpu", torch.device("cpu"), pinned=pinned),
        }
        self._slots = buffer_slots(placed.runtime, placed.policy.prefetch, placed.ahead)
        self._pool = ReadPool()
        self.disk: CacheDisk | None = None
        try:
            self.weights = self._weights(checkpoint, on_block)
            tables, resident = tables_of(self.facts, self.weights, device)
            self.embeddings = Embeddings(self.facts, tables, device, resident, self.weights, self._pool)
            self.activations = self._activations()
            self.cache = self._cache()
            self._rings()
        except BaseException:
            self._pool.close()
            raise

    def close(self) -> None:
        """Close files and stop threads."""
        self._pool.close()
        self.weights.close()
        self.activations.close()
        if self.disk is not None:
            self.disk.close()

    def used(self) -> dict[TierName, dict[str, float]]:
        """Give the bytes taken, by tier and use. [B]"""
        disk = {
            "model weights": float(sum(run.nbytes for each in self.weights.on_disk for run in each.runs)),
            "KV cache": float(self.disk.file.nbytes) if self.disk is not None else 0.0,
            "activations": float(self.activations.disk_bytes),
        }
        found: dict[TierName, dict[str, float]] = {tier: each.used for tier, each in self.arenas.items()}
        return {**found, "disk": {name: size for name, size in disk.items() if size}}

    def _weights(self, checkpoint: Checkpoint, on_block: Callable[[int, int], None] | None) -> WeightStore:
        model, policy = self.placed.model, self.placed.policy
        blocks: dict[int, dict[str, Stored]] = {}
        if policy.weight_bits < 16:
            blocks = prepare(checkpoint, policy.weight_bits, policy.quant_group, on_block)
        else:
            for index in range(model.num_layers):
                blocks[index] = {name: plain(place) for name, place in checkpoint.block(index).items()}
        ends = [
            {weight.name: plain(checkpoint.tensors[weight.name]) for weight in weights}
            for weights in (model.embed_weights(), model.head_weights())
        ]
        layers = [
            Tensors(ends[0], None),
            *(Tensors(blocks[index], index) for index in range(model.num_layers)),
            Tensors(ends[1], None),
        ]
        slots = (self._slots["weights"], self._slots["weight_staging"])
        store = WeightStore(layers, self.placed.layout, self.arenas, slots, self._pool)
        quantised = blocks if policy.weight_bits < 16 else {}
        self.layers = ExpandedWeights(store, quantised, self.arenas["gpu"], 2 if self.placed.ahead else 1)
        return store

    def _activations(self) -> ActivationStore:
        placed, policy = self.placed, self.placed.policy
        cohorts = policy.cohorts(placed.workload.gen_len)
        together = policy.num_groups // cohorts
        areas = Areas(together, policy.num_groups if cohorts > 1 else 0, placed.workload.prompt_len)
        shares = activation_shares(placed)
        prompts = _most(shares, policy.prompts_together, policy.gpu_batch) * placed.workload.prompt_len
        off = sum(share.count for share in shares if share.tier != "gpu")
        slots = self._slots["activations"] if off else 0
        return ActivationStore(
            shares,
            areas,
            placed.model.hidden_size,
            self.dtype,
            self.arenas,
            (slots, max(prompts, off)),
            self._folder,
            self._pool,
        )

    def _cache(self) -> CacheStore:
        homes = [self._home(share) for share in cache_shares(self.placed)]
        rows = self.placed.workload.context_len
        streamed = [home for home in homes if home.share.tier != "gpu" and home.share.engine == "gpu"]
        on_disk = [home for home in homes if home.share.tier == "disk"]
        self.on_cpu_engine = [home for home in homes if home.share.engine == "cpu"]
        gpu, cpu = self.arenas["gpu"], self.arenas["cpu"]
        slots = self._take(gpu, "cache", slot_bytes(streamed, rows))
        new = self._take(gpu, "new_cache", self._new_bytes(homes))
        if on_disk:
            policy, heads = self.placed.policy, self.placed.model.num_kv_heads
            part, most = policy.prompts_together * heads, self.placed.workload.prompt_len
            writing = max(
                writing_bytes(on_disk, most, part), writing_bytes(on_disk, 1, policy.gpu_batch * heads)
            )
            newest = cpu.take("attention inputs", newest_bytes(on_disk) * (1 + self.placed.ahead))
            self.disk = CacheDisk(
                on_disk,
                self._folder,
                self._take(cpu, "cache_staging", staging_bytes(on_disk, rows)),
                self._take(cpu, "cache_writing", writing),
                list(newest.view(1 + self.placed.ahead, -1)),
                rows,
                self._pool,
            )
        self.expanded = ExpandedCache(homes if self.quantized_cache else [], rows, self.arenas)
        return CacheStore(homes, slots, new, rows)

    def _home(self, share: Share) -> Home:
        placed, policy = self.placed, self.placed.policy
        group = cache_group(placed.model.head_dim, policy.quant_group)
        form = RecordForm(share.count, placed.model.head_dim, self.dtype, policy.cache_bits, group)
        page_rows = placed.runtime.page_tokens or placed.workload.context_len
        tokens, _ = peak_tokens(placed.workload, policy.stagger, page_rows)
        pages = placed.model.num_layers * round(policy.num_groups * tokens / page_rows)
        pool = PagePool(f"{share.tier}", pages, page_rows)
        memory = None
        if share.tier != "disk":
            nbytes = pages * page_rows * form.nbytes
            memory = self.arenas[share.tier].take("KV cache", nbytes).view(-1, form.nbytes)
        return Home(share, form, pool, memory)

    def _new_bytes(self, homes: list[Home]) -> int:
        """Give the size of a slot for new records: of prompts of a part, or of one token of a group. [B]"""
        policy, heads = self.placed.policy, self.placed.model.num_kv_heads
        largest = 0
        for first in range(0, policy.gpu_batch, policy.prompts_together):
            stop = first + policy.prompts_together
            largest = max(
                largest, _packed(homes, range(first * heads, stop * heads), self.placed.workload.prompt_len)
            )
        return max(largest, _packed(homes, range(policy.gpu_batch * heads), 1))

    def _take(self, arena: Arena, name: BufferName, nbytes: int) -> list[torch.Tensor]:
        """Allocate the slots of a buffer."""
        return [arena.take(name, nbytes) for _ in range(self._slots[name])] if nbytes else []

    def _rings(self) -> None:
        model, count = self.placed.model, 1 + self.placed.ahead
        units = self.placed.policy.gpu_batch * model.num_kv_heads
        shape = (units, model.num_heads // model.num_kv_heads, model.head_dim)
        nbytes = units * shape[1] * shape[2] * self.dtype.itemsize

        def ring() -> list[torch.Tensor]:
            if not self.on_cpu_engine:
                return []
            taken = (self.arenas["cpu"].take("attention inputs", nbytes) for _ in range(count))
            return [each.view(self.dtype).view(shape) for each in taken]

        self.queries, self.outputs = ring(), ring()


def _most(shares: list[Share], part: int, batch: int) -> int:
    """Count the sequences outside the GPU of the part that has most."""
    parts = (range(first, first + part) for first in range(0, batch, part))
    return max(
        sum(len(share.within(one.start, one.stop)) for share in shares if share.tier != "gpu")
        for one in parts
    )


def _packed(homes: list[Home], units: range, rows: int) -> int:
    """Give the bytes of new records of some units. [B]"""
    total = 0
    for home in homes:
        count = len(home.share.within(units.start, units.stop))
        if home.share.tier != "gpu" and count:
            total += rounded(rows * replace(home.form, units=count).nbytes)
    return total
