"""What this project is measured against: other engines, and the limits of the machine.

    python -m benchmarks.contenders accelerate   CHECKPOINT [--resident-layers N] [--batch B] ...
    python -m benchmarks.contenders transformers CHECKPOINT [--batch B] ...
    python -m benchmarks.contenders limits       CHECKPOINT [--batch B] [--groups G] ...

``accelerate`` is disk offload of Hugging Face Accelerate without a GPU: the first layers, the embedding and
the head stay in memory, all other layers are read from the checkpoint's own safetensors files whenever they
are used. ``transformers`` holds the whole model. Both generate greedily in bfloat16, all prompts together.

What "stays in memory" is a choice too: safetensors maps files, so that resident weights are page cache, which
the kernel evicts first when memory is limited (``--resident mapped``); a copy stays (``--resident copied``).

``limits`` runs this project's own parts alone: direct reads of all layers into three rotating buffers without
any arithmetic, and the arithmetic of all layers on what these buffers hold without any reads. No engine made
of the same parts, on the same machine, runs a pass faster than the slower of the two.

Each run is a process of its own, best under `benchmarks.memory_limit`. Set OMP_WAIT_POLICY=PASSIVE: threads
that spin while they wait for each other take the cores from whatever else runs, by far the most in short
passes. Prints one line of JSON; keys end in their unit. Not counted: loading, and a pass over one token
before, which brings in what is loaded lazily.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from executor import layers
from executor.aligned import PAGE, aligned, padded
from executor.checkpoint import Checkpoint
from executor.direct_io import DirectFile
from executor.read_pool import ReadPool
from executor.tensor_file import TensorPlace, read
from simulator.errors import PlannerError

DTYPE = torch.bfloat16
BUFFERS = 3

Cache = list[list[tuple[torch.Tensor, torch.Tensor]]]  # of each layer, of each group: keys and values


def generated(given: argparse.Namespace) -> dict[str, object]:
    """Load a model with transformers, wholly or with layers on the disk, and time its generation."""
    start = time.perf_counter()
    model = load_offloaded(given) if given.engine == "accelerate" else load_whole(given)
    loading = time.perf_counter() - start
    prompts = torch.randint(
        model.config.vocab_size, (given.batch, given.prompt_len), generator=torch.Generator().manual_seed(0)
    )
    timed_generation(model, prompts[:1, :1], 1)
    seconds = timed_generation(model, prompts, given.new_tokens)
    return {
        "load_s": loading,
        "generate_s": sum(seconds),
        "tokens_per_s": given.batch * given.new_tokens / sum(seconds),
        "prefill_s": seconds[0],
        "step_s": statistics.median(seconds[1:]) if seconds[1:] else None,
        "steps_s": seconds[1:],
    }


def load_offloaded(given: argparse.Namespace) -> Any:
    """Let Accelerate keep embedding, head and the first layers in memory, and the rest on the disk."""
    count = Checkpoint.open(given.checkpoint).model.num_layers
    resident = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places = {f"model.layers.{i}": "cpu" if i < given.resident_layers else "disk" for i in range(count)}
    return load_whole(given, device_map=resident | places, offload_folder=given.offload_folder)


def load_whole(given: argparse.Namespace, **options: Any) -> Any:
    """Let transformers load a model in bfloat16."""
    import transformers  # noqa: PLC0415 - slow to import, and not needed for the limits

    library: Any = transformers  # its types are incomplete
    library.utils.logging.disable_progress_bar()
    model = library.AutoModelForCausalLM.from_pretrained(given.checkpoint, dtype=DTYPE, **options).eval()
    if given.resident == "copied":
        for tensor in model.parameters():
            if tensor.device.type != "meta":  # those are on the disk
                tensor.data = tensor.data.clone()
    return model


def timed_generation(model: Any, prompts: torch.Tensor, count: int) -> list[float]:
    """Generate greedily; give the seconds [s] until the first token and from each token to the next."""
    ends: list[float] = []

    def tick(tokens: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        ends.append(time.perf_counter())
        return torch.zeros(len(tokens), dtype=torch.bool)  # nothing ends early

    start = time.perf_counter()
    with torch.inference_mode():
        answers = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[tick],
        )
    assert answers.shape[1] == prompts.shape[1] + count
    return [end - begin for begin, end in itertools.pairwise([start, *ends])]


@dataclass(frozen=True)
class Run:
    """Bytes of a layer that follow each other in a file, and where they go in a buffer of whole pages [B]."""

    file: Path
    offset: int
    nbytes: int
    position: int
    places: dict[str, TensorPlace]

    def tensors(self, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Give the tensors of the run, as they lie in a buffer."""
        begin = self.position + self.offset % PAGE
        for name, place in self.places.items():
            start = begin + place.offset - self.offset
            yield name, buffer[start : start + place.nbytes].view(place.dtype).view(place.shape)


def runs_of(places: dict[str, TensorPlace]) -> list[Run]:
    """Join tensors that are neighbours in a file, so that a layer is few reads."""
    found: list[Run] = []
    for name, place in sorted(places.items(), key=lambda item: (item[1].file, item[1].offset)):
        last = found[-1] if found else None
        if last and last.file == place.file and last.offset + last.nbytes == place.offset:
            joined = last.places | {name: place}
            found[-1] = Run(last.file, last.offset, last.nbytes + place.nbytes, last.position, joined)
        else:
            position = last.position + padded(last.offset, last.nbytes) if last else 0
            found.append(Run(place.file, place.offset, place.nbytes, position, {name: place}))
    return found


def limits(given: argparse.Namespace) -> dict[str, object]:
    """Time passes of reads alone, and of arithmetic alone. [s]"""
    checkpoint = Checkpoint.open(given.checkpoint)
    plan = [runs_of(checkpoint.block(i)) for i in range(checkpoint.model.num_layers)]
    last = [runs[-1] for runs in plan]
    size = max(run.position + padded(run.offset, run.nbytes) for run in last)
    buffers = [aligned(size).fill_(0) for _ in range(BUFFERS)]
    nbytes = sum(run.nbytes for runs in plan for run in runs)
    files = {run.file: DirectFile(run.file) for runs in plan for run in runs}
    with ReadPool(given.readers) as pool:
        passes = [timed(lambda: read_all(pool, files, plan, buffers)) for _ in range(given.repeats)]
    held = [dict(t for run in plan[i] for t in run.tensors(buffers[i % BUFFERS])) for i in _left(len(plan))]
    prompt, decode = compute(checkpoint, held, given)
    read_s = statistics.median(wall for wall, _ in passes)
    return {
        "direct": all(file.direct for file in files.values()),
        "layers_bytes": nbytes,
        "read_s": read_s,
        "read_bytes_per_s": nbytes / read_s,
        "reads_s": [wall for wall, _ in passes],
        "reads_processor_s": [processor for _, processor in passes],
        "prompt_s": statistics.median(prompt),
        "prompts_s": prompt,
        "decode_s": statistics.median(decode),
        "decodes_s": decode,
    }


def _left(num_layers: int) -> range:
    """Say which layers the buffers hold after a pass: the last ones."""
    return range(max(num_layers - BUFFERS, 0), num_layers)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Give the seconds that something takes: wall and processor. [s]"""
    start = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def read_all(
    pool: ReadPool, files: dict[Path, DirectFile], plan: list[list[Run]], buffers: list[torch.Tensor]
) -> None:
    """Read all layers, each into the next buffer as soon as the layer there has arrived."""
    pending: list[list[Future[torch.Tensor]]] = [[] for _ in buffers]
    for number, runs in enumerate(plan):
        slot = number % len(buffers)
        for future in pending[slot]:
            future.result()
        pending[slot] = [
            pool.submit(files[run.file], buffers[slot][run.position :], run.offset, run.nbytes)
            for run in runs
        ]
    for future in itertools.chain(*pending):
        future.result()


def compute(
    checkpoint: Checkpoint, held: list[dict[str, torch.Tensor]], given: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Time passes of all groups over prompts, and over one token each. [s]

    The layers held take turns, as in an engine's buffers: a single one might stay in the processor's cache.
    """
    spec, generator = checkpoint.model, torch.Generator().manual_seed(0)
    ends = {name: read(place).to(DTYPE) for name, place in (checkpoint.embed | checkpoint.head).items()}
    shape = (given.batch, given.prompt_len + given.repeats, spec.num_kv_heads, spec.head_dim)
    cache = [
        [(torch.zeros(shape, dtype=DTYPE), torch.zeros(shape, dtype=DTYPE)) for _ in range(given.groups)]
        for _ in range(spec.num_layers)
    ]

    def one(start: int, new: int) -> float:
        size = (given.groups, given.batch, new)
        tokens = torch.randint(spec.vocab_size, size, generator=generator)
        return timed(lambda: run_pass(checkpoint, ends, held, cache, tokens, start))[0]

    with torch.inference_mode():
        one(0, given.prompt_len)  # touches the cache, and lets kernels be prepared
        prompts = [one(0, given.prompt_len) for _ in range(given.repeats)]
        return prompts, [one(given.prompt_len + i, 1) for i in range(given.repeats)]


def run_pass(
    checkpoint: Checkpoint,
    ends: dict[str, torch.Tensor],
    held: list[dict[str, torch.Tensor]],
    cache: Cache,
    tokens: torch.Tensor,
    start: int,
) -> list[torch.Tensor]:
    """Run tokens [G,B,T], which begin at position ``start``, through all layers, one group after another.

    Returns:
        The logits [B,V] of each group's last tokens.
    """
    facts, (_, batch, new) = checkpoint.config, tokens.shape
    stop = start + new
    at = torch.arange(start, stop).expand(batch, new)
    hidden = [layers.embed(facts, group, at, ends) for group in tokens]
    for number, of_layer in enumerate(cache):
        weights = held[number % len(held)]
        for group, (keys, values) in enumerate(of_layer):
            q, k, v = layers.project_qkv(facts, hidden[group], at, weights)
            keys[:, start:stop], values[:, start:stop] = k, v
            attention = layers.attend(q, keys[:, :stop], values[:, :stop])
            hidden[group] = layers.project_out(facts, attention, hidden[group], weights)
            hidden[group] = layers.mlp(facts, hidden[group], weights)
    return [layers.head(facts, group[:, -1], ends) for group in hidden]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=("accelerate", "transformers", "limits"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="sequences; for limits: of a group")
    parser.add_argument("--groups", type=int, default=1, help="limits: groups that share a layer's weights")
    parser.add_argument("--prompt-len", type=int, default=128, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="of the arithmetic")
    parser.add_argument("--readers", type=int, default=4, help="limits: reads in flight")
    parser.add_argument("--repeats", type=int, default=3, help="limits: passes of each kind")
    parser.add_argument("--resident-layers", type=int, default=0, help="accelerate: layers kept in memory")
    parser.add_argument("--resident", choices=("copied", "mapped"), default="copied", help="see above")
    parser.add_argument("--offload-folder", type=Path, help="accelerate: for weights that need a copy")
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    given = arguments()
    torch.set_num_threads(given.threads)
    try:
        found = limits(given) if given.engine == "limits" else generated(given)
    except PlannerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    waiting = os.environ.get("OMP_WAIT_POLICY")
    print(json.dumps(asked | {"omp_wait_policy": waiting} | found | {"peak_resident_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
