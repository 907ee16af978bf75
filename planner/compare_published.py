"""Published throughputs of engines on one machine, beside what the simulator says about those runs."""

from __future__ import annotations

from collections.abc import Callable

from planner.choices import Options, allowed_shapes
from planner.engine_rows import predict_row
from planner.launch import limited
from planner.measurements import Measurement, PipelineMeasurement, shipped_pipelines, shipped_suites
from simulator.errors import PlannerError
from simulator.hardware import HardwareProfile
from simulator.model_config import load_model
from simulator.pipeline import Swarm
from simulator.pipelines import load_pipeline
from simulator.profiles import load_profile
from simulator.schema import Record
from simulator.workload import Workload

_PETALS = "petals"


class Published(Record):
    """The best published run of an engine.

    Attributes:
        engine: which one.
        id: of the row among the shipped measurements.
        policy: groups x sequences of the run; of servers, clients x sequences of a request, and servers.
        tok_s: as published, for each GPU.
        simulated_tok_s: what the simulator says of the same run; None if it cannot play it.
        fitted: whether constants were fitted to the row.
        source: where it stands.
    """

    engine: str
    id: str
    policy: str
    tok_s: float
    simulated_tok_s: float | None
    fitted: bool
    source: str


def published_runs(
    hardware: HardwareProfile, model: str, workload: Workload, options: Options
) -> list[Published]:
    """List the best published run of every engine, fastest first.

    Only runs on exactly this machine, with this model and these lengths, and in a form (16 or 4 bits) that
    the options allow the engine.
    """
    suites = [row for rows in shipped_suites().values() for row in rows if _allowed(row, options)]
    alike = alike_to(hardware, model, workload)
    found = [_offloading(row, hardware) for row in suites if alike(row)]
    found += [_pipeline(row, hardware) for row in shipped_pipelines() if alike(row)]
    best: dict[str, Published] = {}
    for run in sorted(found, key=lambda each: -each.tok_s):
        best.setdefault(run.engine, run)
    return list(best.values())


def alike_to(
    hardware: HardwareProfile, model: str, workload: Workload
) -> Callable[[Measurement | PipelineMeasurement], bool]:
    """Make the question whether a run is of this machine, model and lengths; a changed machine is another."""
    asked = (model, workload.prompt_len, workload.gen_len)

    def alike(row: Measurement | PipelineMeasurement) -> bool:
        return (
            (row.model, row.prompt_len, row.gen_len) == asked
            and not workload.shared_prefix
            and row.hardware == hardware.name
            and load_profile(row.hardware).content_hash == hardware.content_hash
        )

    return alike


def _allowed(row: Measurement, options: Options) -> bool:
    shapes = allowed_shapes(limited(options, row.system))
    return any((row.weight_bits, row.cache_bits) == (each.weight_bits, each.cache_bits) for each in shapes)


def _offloading(row: Measurement, hardware: HardwareProfile) -> Published:
    return Published(
        engine=row.system,
        id=row.id,
        policy=f"{row.num_gpu_batches} x {row.gpu_batch}",
        tok_s=row.throughput_tok_s,
        simulated_tok_s=_or_none(lambda: predict_row(row, hardware).throughput_tok_s),
        fitted=row.fitted,
        source=row.source,
    )


def _pipeline(row: PipelineMeasurement, hardware: HardwareProfile) -> Published:
    engine = load_pipeline(_PETALS)
    chosen = {"servers": row.servers, "clients": row.clients, "batch": row.batch}
    workload = Workload(prompt_len=row.prompt_len, gen_len=row.gen_len)

    def simulated() -> float:
        swarm = Swarm(engine, load_model(row.model), hardware, workload)
        return swarm.predict(engine.default.model_copy(update=chosen)).per_gpu

    return Published(
        engine=_PETALS,
        id=row.id,
        policy=f"{row.clients} x {row.batch}, {row.servers} server{'s' * (row.servers > 1)}",
        tok_s=row.tok_s_per_gpu,
        simulated_tok_s=_or_none(simulated),
        fitted=row.fitted,
        source=row.source,
    )


def _or_none(predict: Callable[[], float]) -> float | None:
    try:
        return predict()
    except PlannerError:
        return None
