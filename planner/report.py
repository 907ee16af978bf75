"""Reports for people: what to do, what to expect, what limits it, what it would take to go faster."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.plan import Plan, TierMemory
from planner.words import LANE_WORDS, constant, counted, duration, lengths, resource, size
from simulator.hardware import LANES, TIERS
from simulator.units import GB

_BAR = 24


def print_plan(plan: Plan, console: Console) -> None:
    """Print the whole report."""
    console.print(Group(*_sections(plan)))


def _sections(plan: Plan) -> list[RenderableType]:
    return [
        _heading(plan),
        Text(),
        *_section("What to do", _policy(plan)),
        *_section("What to expect", _expectations(plan)),
        *_section("How busy each lane is", _lanes(plan)),
        *_section("Memory", _memory(plan)),
        *_section("What it would take to go faster", _prices(plan)),
        *_section("What else was considered", _alternatives(plan)),
        _footer(plan),
    ]


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(title, style="bold"), Padding(body, (0, 0, 1, 2), expand=False)]


def _heading(plan: Plan) -> Text:
    work = plan.workload
    queue = "a long queue of prompts" if work.num_prompts is None else counted(work.num_prompts, "prompt")
    sure = f", {_range(plan)} in 19 of 20 runs by the profile's intervals" if plan.throughput_range else ""
    return Text.assemble(
        (f"{plan.model.name} on {plan.hardware.name}", "bold"),
        f"   {queue}, {lengths(work)}, runtime {plan.runtime.name}\n",
        (f"{plan.predictions.throughput_tok_s:.4g} tok/s", "bold green"),
        f"{' of prompts scored,' * work.scores} simulated{sure}; "
        f"at most {plan.bounds.lp_tok_s:.4g} by the placement program for this block, "
        f"{plan.bounds.ceiling_tok_s:.4g} for any schedule whatsoever",
    )


def _range(plan: Plan) -> str:
    found = plan.throughput_range
    return f"{found.low_tok_s:.4g} to {found.high_tok_s:.4g}" if found else ""


def _grid(*justify: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for each in justify:
        table.add_column(justify=each)  # type: ignore[arg-type]
    return table


def _policy(plan: Plan) -> Table:
    policy = plan.policy
    table = _grid("left", "left")
    table.add_row("schedule", _schedule_words(plan))
    together = (
        f", prompts {policy.prompts_together} at a time"
        if policy.prompts_together != policy.gpu_batch
        else ""
    )
    table.add_row(
        "block",
        f"{counted(policy.block, 'sequence')}: "
        f"{counted(policy.num_groups, 'group')} of {policy.gpu_batch}{together}",
    )
    table.add_row("weights", f"{_where(plan.policy.weights)}{_bits(policy.weight_bits)}")
    kept = "none is kept" if plan.workload.scores else f"{_where(policy.cache)}{_bits(policy.cache_bits)}"
    table.add_row("KV cache", kept)
    if plan.workload.shared_prefix:
        tokens = plan.workload.shared_prefix
        held = size(tokens * plan.model.num_layers * plan.model.kv_bytes_per_token)
        table.add_row("prefix", f"{tokens} tokens computed once; {held} of keys and values among the weights")
    table.add_row("activations", _where(policy.activations))
    table.add_row("attention", _attention(plan))
    memory = "pinned" if policy.pinned else "pageable"
    table.add_row("transfers", f"{memory} host memory, weights loaded {policy.prefetch} layer ahead")
    return table


def _schedule_words(plan: Plan) -> str:
    policy = plan.policy
    if plan.schedule == "diagonal":
        cohorts = policy.cohorts(plan.workload.passes)
        cohort = policy.block // cohorts
        every = "every pass" if policy.stagger == 1 else f"every {policy.stagger} passes"
        return f"diagonal: admit {cohort} sequences {every} ({cohorts} cohorts in flight)"
    if plan.schedule == "row":
        return "row by row: one group at a time"
    return "zig-zag: admit a whole block, finish it, admit the next"


def _where(split: object) -> str:
    words = {"gpu": "GPU", "cpu": "CPU", "disk": "disk"}
    parts = [f"{100 * share:.3g} % {words[tier]}" for tier in TIERS if (share := getattr(split, tier)) > 5e-5]
    return ", ".join(parts)


def _bits(bits: int) -> str:
    return "" if bits == 16 else f", in {bits} bits"


def _attention(plan: Plan) -> str:
    if plan.workload.scores:
        return "of prompts, on the GPU"
    cache, share = plan.policy.cache, plan.policy.cpu_attention
    on_cpu = cache.cpu * share.cpu + cache.disk * share.disk
    if on_cpu < 5e-5:
        return "of generated tokens on the GPU"
    if on_cpu > 1 - 5e-5:
        return "of generated tokens on the CPU"
    return f"of generated tokens {100 * on_cpu:.3g} % on the CPU, the rest on the GPU"


def _expectations(plan: Plan) -> Table:
    seen, bounds = plan.predictions, plan.bounds
    table = _grid("left", "right", "left")
    table.add_row("throughput", f"{seen.throughput_tok_s:.4g} tok/s", "simulated, transfer by transfer")
    if plan.throughput_range:
        table.add_row("in 19 of 20 runs", f"{_range(plan)} tok/s", "by the profile's intervals")
        mostly = ", ".join(constant(cause.path) for cause in plan.throughput_range.mainly())
        if mostly:
            table.add_row("", "", f"mostly: {mostly}")
    gap = 100 * (bounds.lp_tok_s / seen.throughput_tok_s - 1)
    table.add_row(
        "program's answer", f"{bounds.lp_tok_s:.4g} tok/s", f"this block, perfect overlap: {gap:.1f} % above"
    )
    gap = 100 * (bounds.ceiling_tok_s / seen.throughput_tok_s - 1)
    table.add_row(
        "certified ceiling",
        f"{bounds.ceiling_tok_s:.4g} tok/s",
        f"any schedule, set by {resource(bounds.ceiling_bound_by)}: {gap:.1f} % above",
    )
    if plan.workload.num_prompts is not None:
        whole = plan.workload.num_prompts * plan.workload.counted_tokens / seen.throughput_tok_s
        table.add_row("whole queue", duration(whole), counted(plan.workload.num_prompts, "prompt"))
    if plan.workload.scores:
        table.add_row("latency", duration(seen.latency_s), "of a block of prompts, admission to last score")
    else:
        table.add_row("latency", duration(seen.latency_s), "of a sequence, admission to last token")
        admission = "prompts of a block" if plan.schedule != "diagonal" else "a pass that admits prompts"
        table.add_row("first token", duration(seen.prefill_s), admission)
    if bounds.io_lower_bound_bytes > 0:
        ratio = bounds.io_bytes / bounds.io_lower_bound_bytes
        least = _gb(bounds.io_lower_bound_bytes)
        note = f"to the GPU; {ratio:.3g} x the least that any schedule reads ({least})"
    else:
        note = "to the GPU; the bound is zero, as everything could stay there"
    table.add_row("bytes per sequence", _gb(bounds.io_bytes), note)
    for phase, words in (("prefill", "prompt passes"), ("decode", "other passes")):
        if plan.limits.get(phase):
            parts = [
                f"{resource(name)} {100 * share:.0f} %"
                for name, share in plan.limits[phase].items()
                if share > 0.005
            ]
            table.add_row(f"limit, {words}", "", ", ".join(parts))
    return table


def _gb(bytes_: float) -> str:
    return f"{bytes_ / GB:.4g} GB"


def _lanes(plan: Plan) -> Table:
    table = _grid("left", "left", "right")
    for lane in LANES:
        share = plan.predictions.busy.get(lane, 0.0)
        filled = round(share * _BAR)
        bar = Text("█" * filled, style="cyan") + Text("░" * (_BAR - filled), style="dim")
        table.add_row(LANE_WORDS[lane], bar, f"{100 * share:.1f} %")
    return table


def _memory(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name, justify in (("tier", "left"), ("peak", "right"), ("of", "right"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=bool(name))  # type: ignore[arg-type]
    for tier in TIERS:
        memory = plan.memory[tier]
        table.add_row(tier, size(memory.peak), size(memory.capacity), _uses(memory))
    return table


def _uses(memory: TierMemory) -> str:
    largest = sorted(memory.uses.items(), key=lambda item: -item[1])
    names = {"weights": "weight buffers", "cache": "cache buffers", "new_cache": "new cache buffers"}
    return ", ".join(
        f"{names.get(name, name.replace('_', ' '))} {size(value)}"
        for name, value in largest
        if value > 0.002 * memory.peak
    )


def _prices(plan: Plan) -> RenderableType:
    base = plan.predictions.throughput_tok_s
    worth = [price for price in plan.prices if price.tok_s_per_unit > 5e-6 * base]
    if not worth:
        return Text("no single resource of the machine is worth more")
    table = _grid("left", "right", "right")
    for price in sorted(worth, key=lambda each: -each.tok_s_per_unit):
        gain = 100 * price.tok_s_per_unit / base
        table.add_row(
            f"one more {price.unit} of {resource(price.resource)}",
            f"+{price.tok_s_per_unit:.3g} tok/s",
            f"+{gain:.2g} %",
        )
    return table


def _alternatives(plan: Plan) -> RenderableType:
    if not plan.alternatives:
        return Text("nothing: every variable was pinned, or nothing else came near")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in ("schedule", "groups", "bits w/kv", "tok/s", "why not"):
        table.add_column(name, justify="right" if name == "tok/s" else "left", no_wrap=name != "why not")
    for other in plan.alternatives[:6]:
        policy = other.policy
        speed = (
            f"{other.simulated_tok_s:.4g}" if other.simulated_tok_s is not None else f"<{other.lp_tok_s:.4g}"
        )
        stagger = f" /{policy.stagger}" if other.schedule == "diagonal" else ""
        table.add_row(
            f"{other.schedule}{stagger}",
            f"{policy.num_groups} x {policy.gpu_batch}",
            f"{policy.weight_bits}/{policy.cache_bits}",
            speed,
            other.reason,
        )
    return table


def _footer(plan: Plan) -> Text:
    kinds = ", ".join(plan.hardware.rests_on)
    note = f"The machine's figures are: {kinds}. " if kinds else ""
    found = (
        f"Found with {plan.search.linear_programs} linear programs and {plan.search.simulated} simulations."
    )
    return Text(note + found, style="dim")
