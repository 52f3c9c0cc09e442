"""Sweep: the map over seeds and settings that the runner gives to an experiment, and the cluster behind it."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .registry import sequential

BACKENDS = ("loky", "dask", "ray")
_MODULES = {"loky": "joblib", "dask": "distributed", "ray": "ray"}
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",  # what XLA sizes its CPU thread pools by
)


@dataclass(frozen=True)
class JoblibSweep:
    """A sweep through joblib.

    Parameters
    ----------
    backend : {"loky", "dask", "ray"}
        Processes of this machine, or the cluster that `connect` found.
    n_jobs : int
        Number of processes of ``"loky"``; 1 is a plain loop. A cluster uses what it has.

    Examples
    --------
    >>> JoblibSweep("loky", 1)(abs, [-1, 2])
    [1, 2]
    """

    backend: str
    n_jobs: int

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Results of ``function(item)``, in the order of `items`."""
        if self.backend == "loky" and self.n_jobs == 1:
            return sequential(function, items)
        from joblib import Parallel, delayed, parallel_config

        n_jobs = self.n_jobs if self.backend == "loky" else -1
        with parallel_config(backend=self.backend, n_jobs=n_jobs):
            return list(Parallel()(delayed(function)(item) for item in items))


def check_backend(backend: str) -> None:
    """Check that a backend is known and installed.

    Raises
    ------
    ValueError
        If it is unknown.
    ImportError
        If it is not installed; the message has the pip line.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    if importlib.util.find_spec(_MODULES[backend]) is None:
        raise ImportError(f'backend {backend!r} is not installed: pip install "gyri-reproduce[{backend}]"')


def share_machine(jobs: int) -> dict[str, str]:
    """Environment with which `jobs` processes share cores and GPU memory: empty for one; what the user set stays.

    Examples
    --------
    >>> share_machine(1)
    {}
    """
    from joblib import cpu_count

    threads = str(max(1, cpu_count() // jobs))
    limits = dict.fromkeys(_THREAD_VARIABLES, threads) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {} if jobs == 1 else {variable: limit for variable, limit in limits.items() if variable not in os.environ}


@contextlib.contextmanager
def start_cluster(backend: str, jobs: int) -> Iterator[dict[str, str]]:
    """Find or start the cluster of a run; yield the environment with which `connect` finds it in another process.

    A cluster that the user runs is taken from DASK_SCHEDULER_ADDRESS or RAY_ADDRESS. Without one, `jobs` workers start
    on this machine and stop in the end.
    """
    variable = {"dask": "DASK_SCHEDULER_ADDRESS", "ray": "RAY_ADDRESS"}.get(backend)
    if variable is None or variable in os.environ:
        yield {}
    elif backend == "dask":
        from distributed import LocalCluster

        threads = share_machine(jobs)
        with LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None, env=threads) as cluster:
            yield {variable: cluster.scheduler_address}
    else:
        import ray

        ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False)
        try:
            yield {variable: ray.get_runtime_context().gcs_address}
        finally:
            ray.shutdown()


@contextlib.contextmanager
def connect(backend: str) -> Iterator[None]:
    """Connect this process to the cluster of `start_cluster`, for as long as the context lasts."""
    if backend == "dask":
        from distributed import Client

        with Client():  # the address is in the environment
            yield
    elif backend == "ray":
        import ray
        from ray.util.joblib import register_ray

        ray.init(log_to_driver=False)
        register_ray()
        try:
            yield
        finally:
            ray.shutdown()
    else:
        yield
