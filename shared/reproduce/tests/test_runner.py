import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from gyri.reproduce import find_experiments, runner
from gyri.reproduce.record import load_record, load_records, record_path
from gyri.reproduce.runner import run_experiments
from gyri.reproduce.worker import run_task


def by_name(records):
    return {record.name: record for record in records}


def run(out, *papers, **options):
    return by_name(run_experiments(find_experiments(papers), out, progress=False, **options))


@pytest.mark.parametrize("fork", [True, False])
def test_every_outcome_is_recorded_and_none_hides_another(papers, tmp_path, monkeypatch, fork):
    if not fork:
        monkeypatch.setattr(runner, "AVAILABLE", False)
    records = run(tmp_path / "out", "good/squares", "bad", jobs=2)
    status = {name: record.status for name, record in records.items()}
    assert status == {
        "squares": "finished",
        "missed": "finished",
        "raises": "crashed",
        "dies": "crashed",
        "lacks": "not run",
        "returns_a_number": "crashed",
    }
    assert "RuntimeError: no such thing as <b>" in records["raises"].error
    assert "SIGKILL" in records["dies"].error
    assert "last words" in records["dies"].error
    assert "expected a gyri.reproduce.Result, got int" in records["returns_a_number"].error
    assert str(records["lacks"].data) == "not run: needs Cam-CAN"

    squares = records["squares"]
    assert [claim.verdict.value for claim in squares.claims] == ["met", "met", "reported"]
    assert squares.claims[0].median_range == (0.0, 16.0)
    assert math.isnan(squares.claims[2].measured)
    assert squares.versions["gyri-good"] == "0.3.0"
    assert squares.figures[0].caption == "One <line>."
    assert (tmp_path / "out" / squares.figures[0].png).read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / squares.figures[0].svg).read_text()

    assert {repr(record) for record in load_records(tmp_path / "out")} == {repr(record) for record in records.values()}
    for path in (tmp_path / "out").glob("results/*/*.json"):
        assert str(tmp_path) not in path.read_text()
        assert str(Path.home()) + os.sep not in path.read_text()
    assert not list((tmp_path / "out").rglob("*.part"))


def test_jobs_spread_over_the_seeds_of_one_experiment(papers, tmp_path):
    record = run(tmp_path, "good/processes", jobs=2)["processes"]
    assert record.jobs == 2
    assert record.claims[0].measured == 2


def test_process_of_a_sweep_that_dies_is_a_crash_of_its_experiment(papers, tmp_path):
    record = run(tmp_path, "slow/sweep_dies", jobs=2)["sweep_dies"]
    assert record.status == "crashed"
    assert "TerminatedWorkerError" in record.error


def test_one_job_runs_in_one_process(papers, tmp_path):
    record = run(tmp_path, "good/processes")["processes"]
    assert record.claims[0].measured == 1


@pytest.mark.parametrize(("jaxlib", "emitters"), [("0.10.2", True), ("0.12.0", False), (None, False)])
def test_quick_experiments_that_report_no_time_are_optimised_less(papers, tmp_path, monkeypatch, jaxlib, emitters):
    def version(name):
        if jaxlib is None:
            raise PackageNotFoundError(name)
        return jaxlib

    monkeypatch.setattr(runner, "metadata", SimpleNamespace(version=version, PackageNotFoundError=PackageNotFoundError))

    def flags(**options):
        return {name: record.data.name for name, record in run(tmp_path, "flags", **options).items()}

    monkeypatch.setenv("XLA_FLAGS", "--xla_of_user")
    found = flags()
    assert found["plain"].startswith("--xla_of_user --xla_backend_optimization_level=1")
    assert ("--xla_cpu_use_fusion_emitters=false" in found["plain"]) == emitters
    assert found["timed"] == "--xla_of_user"
    assert set(flags(scale="paper").values()) == {"--xla_of_user"}
    mine = "--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"
    monkeypatch.setenv("XLA_FLAGS", mine)
    assert set(flags().values()) == {mine}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_same_call_runs_on_a_local_cluster_of_two_workers(papers, tmp_path, backend):
    pytest.importorskip({"dask": "distributed", "ray": "ray"}[backend])
    code = (
        "import sys\n"
        "from gyri.reproduce import find_experiments\n"
        "from gyri.reproduce.runner import run_experiments\n"
        "if __name__ == '__main__':\n"
        f"    found = find_experiments(['good/processes', 'good/squares'])\n"
        f"    run_experiments(found, {str(tmp_path)!r}, jobs=2, backend={backend!r}, progress=False)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.fspath(papers)}
    subprocess.run([sys.executable, os.fspath(script)], check=True, env=environment, timeout=100)
    records = by_name(load_records(tmp_path))
    assert records["processes"].error == ""
    assert records["processes"].claims[0].measured == 2
    assert records["processes"].backend == backend
    assert records["squares"].claims[0].verdict.value == "met"


def test_resume_keeps_what_finished_at_the_same_scale_seed_and_version(papers, tmp_path):
    first = run(tmp_path, "bad/missed", "bad/lacks", jobs=2)
    again = run(tmp_path, "bad/missed", "bad/lacks", resume=True)
    assert again["missed"].seconds == first["missed"].seconds
    assert again["lacks"].seconds != first["lacks"].seconds  # the data may have come


@pytest.mark.parametrize("change", [{"seed": 1}, {"scale": "paper"}, {"versions": {"gyri-reproduce": "0.0.1"}}, None])
def test_resume_runs_again_what_differs_or_is_damaged(papers, tmp_path, change):
    run(tmp_path, "bad/missed")
    path = record_path(tmp_path, "bad", "missed")
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change | {"seconds": -1.0}))
    assert run(tmp_path, "bad/missed", resume=True)["missed"].seconds > 0


def test_seed_and_scale_reach_the_experiment(papers, tmp_path):
    record = run(tmp_path, "good/squares", seed=2, scale="paper")["squares"]
    assert record.claims[0].median_range == (4.0, 36.0)
    assert (record.seed, record.scale) == (2, "paper")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs: expected"),
        ({"scale": "huge"}, "scale: expected"),
        ({"backend": "slurm"}, "backend: expected"),
    ],
)
def test_bad_option_names_the_argument(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_experiments([], tmp_path, **options)


def test_progress_off_is_silent(papers, tmp_path, capfd):
    run(tmp_path, "good/squares")
    assert capfd.readouterr() == ("", "")


def test_interruption_keeps_what_ended_and_stops_the_rest(papers, tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.fspath(papers)}
    command = [sys.executable, "-m", "gyri.reproduce.cli", "run", "slow/first", "slow/second", "--out", os.fspath(out)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = out / "logs" / "slow" / "second.log"
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "--resume" in errors
    assert load_record(record_path(out, "slow", "first")).status == "finished"
    assert not record_path(out, "slow", "second").exists()
    assert (out / "report.html").exists()


def test_exception_in_the_workers_own_process_becomes_a_record(papers, tmp_path):
    from gyri.reproduce.runner import _task

    entry = find_experiments(["bad/raises"]).experiments[0]
    record = run_task(_task(entry, "quick", 0, "loky"), tmp_path)
    assert record.status == "crashed"
    assert record.seconds > 0


def test_figures_of_an_earlier_run_go(papers, tmp_path):
    stale = tmp_path / "figures" / "good" / "squares" / "9-stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    run(tmp_path, "good/squares")
    assert not stale.exists()
