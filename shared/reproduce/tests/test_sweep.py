import operator
import os
import subprocess
import sys

import pytest

from gyri.reproduce import sweep
from gyri.reproduce.sweep import JoblibSweep, check_backend, connect, share_machine, start_cluster


def process(item):
    import time

    time.sleep(0.3)
    return os.getpid()


def threads(item):
    return os.environ["OMP_NUM_THREADS"], os.environ["NPROC"]


# Older joblib forks its helper process: JAX, if another test has started it, warns; nothing of JAX runs in the helper.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_come_in_order(n_jobs):
    # A function that a worker can import wherever this file lies.
    assert JoblibSweep("loky", n_jobs)(operator.neg, range(20)) == [-i for i in range(20)]


def test_one_job_stays_in_this_process():
    assert set(JoblibSweep("loky", 1)(process, range(2))) == {os.getpid()}


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    for variable in sweep._THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    limits = share_machine(3)
    assert limits["OMP_NUM_THREADS"] == limits["NPROC"] == "2"
    assert limits["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "MKL_NUM_THREADS" not in limits  # what the user set stays


def test_workers_of_a_sweep_get_the_limits():
    code = (
        "import importlib.util, sys\n"
        "from gyri.reproduce.sweep import JoblibSweep\n"
        f"spec = importlib.util.spec_from_file_location('test_sweep', {__file__!r})\n"
        "sys.modules['test_sweep'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert set(JoblibSweep('loky', 2)(module.threads, range(2))) == {('1', '1')}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "OMP_NUM_THREADS": "1", "NPROC": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="backend: expected one of"):
        check_backend("slurm")


def test_missing_backend_prints_the_pip_line(monkeypatch):
    monkeypatch.setitem(sweep._MODULES, "dask", "no_such_module_anywhere")
    with pytest.raises(ImportError, match=r'pip install "gyri-reproduce\[dask\]"'):
        check_backend("dask")


def test_no_cluster_for_loky():
    with start_cluster("loky", 2) as environment, connect("loky"):
        assert environment == {}


def test_the_users_cluster_is_left_alone(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://cluster:8786")
    with start_cluster("dask", 2) as environment:
        assert environment == {}
