"""The executor against its own limits, and against the engines that people use, on a model that does not fit.

    python -m benchmarks.make_checkpoint DIR --shape llama-7b
    python -m benchmarks.bench_engine overlap  DIR [--rounds 3]
    python -m benchmarks.bench_engine contest  DIR [--rounds 3] [--limit "8 GB"]

``overlap`` plans four groups twice, once so that the disk is the bottleneck and once the processor, and runs
each plan whole, without its arithmetic, and without its reads: overlap efficiency is the slower of the latter
two over the first, of decode passes (disk) or of the prompt pass (processor).

``contest`` gives this project's executor and disk offload of Hugging Face Accelerate the same hard memory
limit, page cache included, the same checkpoint, prompts, batch and number type.

Machines are shared and noisy: runs are interleaved, every ratio is of runs next to each other, and medians
are given with the least and the largest. One line of JSON for each run goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory_limit import forget, run_limited
from simulator.errors import PlannerError
from simulator.units import BYTES

_HERE = Path(__file__).parent
_MACHINE = _HERE / "cpu-2core.yaml"
_RUNTIME = _HERE / "one-staging.yaml"
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
_OWN = 650e6  # bytes that Python, torch and its kernels take beside the plan's memory

_STAGING = 460e6  # bytes of the layer that is on its way from the disk

#: Plans of which one part is the bottleneck: options of `planner plan`, what is timed, memory of the GPU. [B]
_OVERLAP = {
    "disk": ("--prompt-len 16 --gen-len 7 --fix gpu_batch=4", "steps_s", 2.2e9),
    "processor": ("--prompt-len 96 --gen-len 2 --fix gpu_batch=8", "prefill_s", 6e9),
}


def plan(checkpoint: Path, out: Path, gpu: float, options: str) -> None:
    """Make a plan for so many bytes of the GPU tier."""
    command = [sys.executable, "-m", "planner.cli", "plan", "--hw", str(_MACHINE), "--model", str(checkpoint)]
    command += ["--runtime", str(_RUNTIME), "--set", f"tiers.gpu.capacity={gpu / 1e9:.3f} GB"]
    command += ["--set", f"tiers.cpu.capacity={_STAGING / 1e9:.3f} GB"]
    command += ["--set", "tiers.gpu.reserve=0 GiB", "--set", "tiers.cpu.reserve=0 GiB"]
    command += ["--fix", "cache=100/0/0", "--fix", "activations=100/0/0", *options.split(), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlannerError(done.stderr.strip())


def run(module: str, arguments: Sequence[str], limit: float | None, checkpoint: Path) -> dict[str, Any]:
    """Run one contender; give what it prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    forget([checkpoint])
    done = run_limited(command, int(limit or 1e12), env={**os.environ, **_ENVIRONMENT}, timeout=1200)
    if done.returncode:
        reason = "killed for memory" if done.out_of_memory else done.stderr.strip()[-300:]
        raise PlannerError(f"{' '.join(command[2:])}: {reason}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    found["limited_peak_bytes"] = done.peak_bytes
    print(json.dumps({"run": [module, *arguments], **found}), file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """Write a median with the least and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def seconds(found: dict[str, Any], key: str) -> float:
    """Give the time of the prompt pass, or the median of the others. [s]"""
    value = found[key]
    return statistics.median(value) if isinstance(value, list) else float(value)


def overlap(given: argparse.Namespace, folder: Path) -> None:
    """Print the overlap efficiency of both plans."""
    print("bottleneck  whole, s               no compute, s          no reads, s            efficiency")
    for name, (options, key, gpu) in _OVERLAP.items():
        file = folder / f"{name}.json"
        plan(given.checkpoint, file, gpu, f"{options} --fix num_groups=4 --schedule zigzag")
        columns: list[list[float]] = [[], [], [], []]
        for _ in range(given.rounds):
            times = []
            for without in ([], ["--without", "compute"], ["--without", "reads"]):
                arguments = [str(file), "--checkpoint", str(given.checkpoint), *without]
                arguments += ["--scratch", str(given.scratch)]
                times.append(seconds(run("engine_run", arguments, None, given.checkpoint), key))
            for column, value in zip(columns, [*times, max(times[1:]) / times[0]], strict=True):
                column.append(value)
        print(f"{name:10s}  " + " ".join(f"{spread(column):22s}" for column in columns), flush=True)


def contest(given: argparse.Namespace, folder: Path) -> None:
    """Print throughput of both engines under the limit, at the same batch and each at its best."""
    limit = BYTES.parse(given.limit)
    file = folder / "contest.json"
    work = f"--prompt-len {given.prompt_len} --gen-len {given.new_tokens}"
    batch = f"--fix gpu_batch={given.batch} --fix num_groups={given.groups}"
    plan(given.checkpoint, file, limit - _OWN - _STAGING, f"{work} {batch}")
    theirs = ["accelerate", str(given.checkpoint), "--batch", str(given.their_batch)]
    theirs += ["--prompt-len", str(given.prompt_len), "--new-tokens", str(given.new_tokens)]
    theirs += ["--resident-layers", str(given.resident_layers)]
    ours = [str(file), "--checkpoint", str(given.checkpoint), "--scratch", str(given.scratch)]
    ratios, rates = [], [[], []]  # type: ignore[var-annotated]
    for _ in range(given.rounds):
        own = run("engine_run", ours, limit, given.checkpoint)["tokens_per_s"]
        other = run("contenders", theirs, limit, given.checkpoint)["tokens_per_s"]
        rates[0].append(own)
        rates[1].append(other)
        ratios.append(own / other)
    print(f"executor    {spread(rates[0])} tok/s at batch {given.batch * given.groups}")
    print(f"accelerate  {spread(rates[1])} tok/s at batch {given.their_batch}")
    print(f"ratio       {spread(ratios)}")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overlap", "contest"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", default="8 GB")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a group of the executor")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--their-batch", type=int, default=16)
    parser.add_argument("--resident-layers", type=int, default=13, help="that Accelerate keeps in memory")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (overlap if given.what == "overlap" else contest)(given, Path(folder))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlannerError as error:
        sys.exit(f"error: {error}")
