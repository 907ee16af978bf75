"""How reports write times, sizes, counts and lengths."""

from __future__ import annotations

from planner.uncertainty import NOISE
from simulator.policy import Split
from simulator.units import GIB
from simulator.workload import Workload

#: Lanes and resources as people say them.
LANE_WORDS = {
    "gpu": "GPU kernels",
    "cpu": "CPU work",
    "h2d": "CPU to GPU",
    "d2h": "GPU to CPU",
    "disk_read": "disk reads",
    "disk_write": "disk writes",
}


def resource(name: str) -> str:
    """Name a lane or a resource as people do.

    >>> resource("h2d"), resource("cpu memory")
    ('CPU to GPU', 'cpu memory')
    """
    return LANE_WORDS.get(name, name)


def duration(seconds: float) -> str:
    """Write a time as people say it.

    >>> duration(75.0), duration(8000.0), duration(0.5), duration(539.9), duration(7199.0)
    ('1 min 15 s', '2 h 13 min', '0.5 s', '9 min 0 s', '2 h 0 min')
    """
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 86400:.1f} days"


def size(bytes_: float) -> str:
    """Write an amount of memory in GiB, or MiB when it is small."""
    return f"{bytes_ / GIB:.4g} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.3g} MiB"


def counted(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def lengths(work: Workload) -> str:
    """Say what goes in and comes out.

    >>> lengths(Workload(prompt_len=512, gen_len=32)), lengths(Workload(prompt_len=512, gen_len=0))
    ('512 tokens in, 32 out', '512 tokens in, no output (scored)')
    """
    out = "no output (scored)" if work.scores else f"{work.gen_len} out"
    shared = f" ({work.shared_prefix} of them shared)" if work.shared_prefix else ""
    return f"{work.prompt_len} tokens in{shared}, {out}"


def split(where: Split, bits: int) -> str:
    """Write a placement as ``--fix`` takes it, and how it is stored unless in 16 bits.

    >>> split(Split(gpu=0.2, cpu=0.8, disk=0.0), 16), split(Split(gpu=1.0, cpu=0.0, disk=0.0), 4)
    ('20/80/0', '100/0/0 4b')
    """
    shares = "/".join(f"{100 * share:.0f}" for share in (where.gpu, where.cpu, where.disk))
    return shares if bits == 16 else f"{shares} {bits}b"


def constant(path: str) -> str:
    """Name a constant of the profile as people do.

    >>> constant("operations.kernels.float16.qkv.flops"), constant("capacities.cores.lanes.disk_read")
    ('qkv flops', 'disk reads on cores')
    """
    if path == NOISE:
        return "noise of the machine"
    part, *keys = path.split(".")
    if part == "operations":
        return " ".join(keys[-2:]).replace("_", " ")
    if part == "capacities" and keys[-1] in LANE_WORDS:
        return f"{LANE_WORDS[keys[-1]]} on {keys[0]}"
    return " ".join(resource(key) for key in keys)
