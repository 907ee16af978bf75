"""Running a study: the answers that are not known yet, on all cores or a cluster, each kept as it comes.

Answers lie in files named after the content of their cells, so that a study that was interrupted goes on
where it was, and a changed one computes what is new.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner.study_answer import Answer, Found, answer_family, families
from planner.study_cells import Cell, cell_key, program_hash
from simulator.errors import InputError, PlannerError
from simulator.schema import decode, read_json
from simulator.units import one_line

BackendName = Literal["local", "ray", "dask"]
_ANSWERS = "answers"
#: How often work is given out again after a worker died, with no answer in between.
_TRIES = 3
#: Jobs that are given out at once where answers only come back together.
_ROUND = 4
_PORTS = 65535
_PATIENCE = 10.0  # for a cluster to answer [s]


@dataclass(frozen=True)
class Backend:
    """Where cells are planned: processes of this machine, or a cluster of ray or dask.

    Attributes:
        name: which.
        address: of the cluster; None for one that is started here.
        jobs: processes; None for all cores, or all that the cluster has.
    """

    name: BackendName = "local"
    address: str | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class Store:
    """A folder of answers."""

    folder: Path

    def path(self, key: str) -> Path:
        """Name the file of an answer."""
        return self.folder / _ANSWERS / f"{key}.json"

    def has(self, key: str) -> bool:
        """Tell whether an answer is there and whole."""
        try:
            self.read(key)
        except InputError:
            return False
        return True

    def read(self, key: str) -> Answer:
        """Read an answer.

        Raises:
            InputError: it is not there, or no answer.
        """
        return decode(Answer, read_json(self.path(key)), f"answer {key}")

    def answers(self, cells: Iterable[Cell], passing: Mapping[str, Answer]) -> Iterator[Answer]:
        """Read the answers to cells, one by one, but for those that are not kept.

        Raises:
            InputError: one is not there.
        """
        for key in map(cell_key, cells):
            yield passing[key] if key in passing else self.read(key)

    def write(self, key: str, text: str) -> None:
        """Keep an answer: whole or not at all, whoever else writes it.

        Raises:
            InputError: the folder cannot be written to.
        """
        path = self.path(key)
        beside = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            reason = (error.strerror or "unknown").lower()
            raise InputError(one_line(f"{path}: cannot be written ({reason})")) from None


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    backend: Backend = Backend(),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Answer]:
    """Answer cells, those that are not known yet; an answer that failed for a fault is not kept.

    Args:
        cells: the questions; equal ones are answered once.
        store: where answers are kept.
        backend: where they are computed.
        progress: is told how many different cells have an answer, of how many.

    Returns:
        The answers that are not kept, by key.

    Raises:
        InputError: the backend is not there, or the store cannot be written to.
        PlannerError: workers died again and again.
    """
    wanted = {cell_key(cell): cell for cell in cells}
    missing = {key: cell for key, cell in wanted.items() if not store.has(key)}
    passing: dict[str, Answer] = {}
    fruitless = 0
    progress(len(wanted) - len(missing), len(wanted))
    while missing:
        before = len(missing)
        try:
            with contextlib.closing(_computed(families(missing), backend)) as answers:
                for found in answers:
                    _take(found, missing, passing, store)
                    progress(len(wanted) - len(missing), len(wanted))
        except PlannerError:
            raise
        except Exception as error:
            fruitless = fruitless + 1 if len(missing) == before else 0
            if fruitless == _TRIES:
                raise PlannerError(
                    one_line(
                        f"study: {_TRIES} times workers died without an answer ({error!r}); {len(missing)} "
                        "cells are left: run the same command again, with fewer --jobs if memory is short"
                    )
                ) from error
    return passing


def _take(found: Found, missing: dict[str, Cell], passing: dict[str, Answer], store: Store) -> None:
    """Keep what came back from a worker.

    Raises:
        PlannerError: the worker runs another version of this program.
    """
    if found.program != program_hash():
        raise PlannerError("study: the workers run another version of offload-planner; install the same one")
    for key, text, keep in found.answers:
        if keep:
            store.write(key, text)
        else:
            passing[key] = Answer.model_validate_json(text)
        missing.pop(key, None)


def _computed(jobs: list[dict[str, Cell]], backend: Backend) -> Generator[Found, None, None]:
    """Compute families of cells, each as it is done."""
    import joblib  # noqa: PLC0415 - only studies need it

    work = [joblib.delayed(answer_family)(job) for job in jobs]
    with contextlib.ExitStack() as stack:
        processes = _connected(backend, stack)
        if backend.name != "ray":
            yield from joblib.Parallel(processes, batch_size=1, return_as="generator_unordered")(work)
            return
        at_once = _ROUND * processes
        for start in range(0, len(work), at_once):
            yield from joblib.Parallel(processes, batch_size=1)(work[start : start + at_once])


def _connected(backend: Backend, stack: contextlib.ExitStack) -> int:
    """Tell joblib where to compute, until the stack is left, and say how many processes to use.

    Raises:
        InputError: the library is not installed, or nothing answers at the address.
    """
    import joblib  # noqa: PLC0415 - only studies need it

    if backend.name == "local":
        stack.push(_kill_if_interrupted)
        stack.enter_context(joblib.parallel_config(backend="loky", inner_max_num_threads=1))
        return backend.jobs or int(joblib.cpu_count())
    connect = {"ray": _ray, "dask": _dask}[backend.name]
    try:
        processes = stack.enter_context(connect(backend))
    except ImportError:
        raise InputError(
            f"--backend {backend.name}: it is not installed; pip install 'offload-planner[{backend.name}]'"
        ) from None
    except (OSError, ValueError) as error:
        where = f" at {backend.address}" if backend.address else ""
        raise InputError(
            one_line(f"--backend {backend.name}: no cluster answers{where} ({error}); check --address")
        ) from None
    stack.enter_context(joblib.parallel_config(backend=backend.name))
    return processes


def _kill_if_interrupted(kind: type[BaseException] | None, *_: object) -> None:
    """End the processes of this machine when nobody waits for them: leaving would wait for ever."""
    if kind is not None and not issubclass(kind, Exception):
        from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415 - only studies need it

        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _ray(backend: Backend) -> Iterator[int]:
    import ray  # noqa: PLC0415 - only this backend needs it
    from ray.util.joblib import register_ray  # noqa: PLC0415

    if backend.address not in (None, "auto", "local"):
        _reach(backend.address or "")
    register_ray()
    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {"num_cpus": backend.jobs} if backend.jobs else {}
        where = {"address": backend.address} if backend.address else local
        ray.init(include_dashboard=None if backend.address else False, log_to_driver=False, **where)
    try:
        yield backend.jobs or int(ray.cluster_resources().get("CPU", 1))
    finally:
        if started:
            ray.shutdown()


def _reach(address: str) -> None:
    """Try to connect: where nobody listens, ray itself goes on trying for minutes.

    Raises:
        OSError: nobody answers.
        ValueError: no address.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal() or int(port) > _PORTS:
        raise ValueError("expected HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


@contextlib.contextmanager
def _dask(backend: Backend) -> Iterator[int]:
    from dask.distributed import Client, LocalCluster  # noqa: PLC0415 - only this backend needs it

    with contextlib.ExitStack() as stack:
        address: Any = backend.address
        if address is None:
            local = LocalCluster(n_workers=backend.jobs, threads_per_worker=1, dashboard_address=None)
            address = stack.enter_context(local)
        client = stack.enter_context(Client(address, timeout=_PATIENCE))
        yield backend.jobs or sum(client.nthreads().values())
