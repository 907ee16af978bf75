"""A cluster for tests: prints its address, and runs until its standard input ends.

``python cluster_head.py ray|dask WORKERS``
"""

from __future__ import annotations

import sys


def start_dask(workers: int) -> None:
    """Run a cluster of dask on this machine."""
    from dask.distributed import LocalCluster  # noqa: PLC0415 - only one of the two need be there

    with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()


def start_ray(workers: int) -> None:
    """Run a cluster of ray on this machine."""
    import ray  # noqa: PLC0415 - only one of the two need be there

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    {"dask": start_dask, "ray": start_ray}[sys.argv[1]](int(sys.argv[2]))
