"""Runner: experiments in processes of their own, a few at a time, and a record of each as soon as it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO

from tqdm import tqdm

from .claims import Verdict
from .fork_server import AVAILABLE, Fork, ForkServer
from .machine import anonymous, find_versions
from .record import Record, Task, load_record, record_path, utc_now
from .registry import SCALES, BrokenEntryPoint, Experiment
from .sweep import check_backend, share_machine, start_cluster

POLL_SECONDS = 0.05
LOG_TAIL = 4000


def run_experiments(
    experiments: Iterable[Experiment],
    out: str | os.PathLike[str],
    *,
    scale: str = "quick",
    seed: int = 0,
    jobs: int = 1,
    backend: str = "loky",
    resume: bool = False,
    progress: bool = True,
) -> list[Record]:
    """Run experiments, each in a process of its own.

    Every record is written to ``out/results/PAPER/EXPERIMENT.json`` as soon as the experiment ends, its figures and the
    log of its output beside. An exception, or a process that dies, becomes a record too: the others go on. `jobs`
    processes work at a time: several experiments at once and, where there are more jobs than experiments left, several
    seeds of one. At quick scale, experiments that report no time are compiled with less optimisation. On an
    interruption the processes end, and what is written stays.

    Parameters
    ----------
    experiments : iterable of Experiment
        As `find_experiments` gives them.
    out : path
        Folder of the run, made where it does not exist.
    scale : {"quick", "paper"}
        Seconds to minutes, or the paper's sizes.
    seed : int
        Passed to the experiments as `key`.
    jobs : int
        Number of processes; -1 for one a core.
    backend : {"loky", "dask", "ray"}
        Where the sweeps inside the experiments run.
    resume : bool
        Keep the records that finished at this scale and seed with the installed versions.
    progress : bool
        Show a bar, and a line for every experiment that ends, on the standard error.

    Returns
    -------
    list of Record
        In the order of `experiments`.

    Raises
    ------
    ValueError
        If an argument is none of the above.
    ImportError
        If the backend is not installed.
    """
    from joblib import effective_n_jobs

    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {SCALES}, got {scale!r}")
    if jobs == 0 or jobs < -1:
        raise ValueError(f"jobs: expected a positive number or -1, got {jobs}")
    check_backend(backend)
    jobs, out, experiments = effective_n_jobs(jobs), Path(out), list(experiments)
    records: dict[str, Record] = {}
    if resume:
        versions = find_versions()
        records = {e.id: kept for e in experiments if (kept := _resumable(out, e, scale, seed, versions)) is not None}
    waiting = [e for e in experiments if e.id not in records]

    with (
        tqdm(
            total=len(experiments), initial=len(records), unit="experiment", disable=None if progress else True
        ) as bar,
        start_cluster(backend if waiting else "loky", jobs) as found,
    ):
        environment = {**os.environ, **share_machine(jobs), **found, "MPLBACKEND": "Agg"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        running: list[Worker] = []
        server = ForkServer(environment) if AVAILABLE and waiting else None
        start = server.start if server is not None else partial(spawn, environment)
        try:
            while waiting or running:
                free = jobs - sum(worker.share for worker in running)
                while waiting and free > 0:
                    share = max(1, free // len(waiting)) if backend == "loky" else 1
                    experiment = waiting.pop(0)
                    less = {} if experiment.timed or scale == "paper" else optimise_less(environment)
                    task = _task(experiment, scale, seed, backend)
                    running.append(Worker.start(task, share, out, start, less))
                    free -= share
                bar.set_postfix_str(", ".join(worker.task.name for worker in running), refresh=True)
                time.sleep(POLL_SECONDS)
                for worker in [worker for worker in running if worker.process.poll() is not None]:
                    running.remove(worker)
                    record = worker.collect(out)
                    records[record.id] = record
                    bar.update()
                    if progress:
                        tqdm.write(summarise(record), file=sys.stderr)
        finally:
            for worker in running:
                worker.stop()
            if server is not None:
                server.close()
    return [records[e.id] for e in experiments]


def optimise_less(environment: Mapping[str, str]) -> dict[str, str]:
    """What to change so that XLA compiles faster, to code that may be slower; what the user set stays.

    Examples
    --------
    >>> optimise_less({"XLA_FLAGS": "--xla_gpu_autotune_level=0"})["XLA_FLAGS"].split()[:2]
    ['--xla_gpu_autotune_level=0', '--xla_backend_optimization_level=1']
    """
    flags = environment.get("XLA_FLAGS", "").split()
    faster = {"--xla_backend_optimization_level": "1"}
    with contextlib.suppress(metadata.PackageNotFoundError):
        # Later ones have no other emitters, and end at a flag that they do not know.
        if metadata.version("jaxlib").startswith("0.10."):
            faster["--xla_cpu_use_fusion_emitters"] = "false"
    kept = {flag.partition("=")[0] for flag in flags}
    return {"XLA_FLAGS": " ".join([*flags, *(f"{name}={value}" for name, value in faster.items() if name not in kept)])}


def record_broken(
    broken: BrokenEntryPoint, out: str | os.PathLike[str], *, scale: str = "quick", seed: int = 0
) -> Record:
    """Record that a paper's experiments cannot be imported.

    The record's name is a keyword, so that it is no experiment's; `forget_broken` removes it.
    """
    record = Record(
        paper=broken.paper,
        name="import",
        figure="Import",
        title="the experiments cannot be imported",
        description="",
        status="crashed",
        scale=scale,
        seed=seed,
        backend="loky",
        jobs=1,
        started=utc_now(),
        seconds=0.0,
        error=anonymous(broken.error),
    )
    record.save(Path(out))
    return record


def forget_broken(paper: str, out: str | os.PathLike[str]) -> None:
    """Remove what `record_broken` wrote of a paper in an earlier run."""
    record_path(Path(out), paper, "import").unlink(missing_ok=True)


def summarise(record: Record) -> str:
    """One line on a record.

    Examples
    --------
    >>> record = record_broken(BrokenEntryPoint("shine", "No module"), getfixture("tmp_path"))
    >>> summarise(record)
    'shine/import: crashed (0.0 s)'
    """
    counts = ", ".join(f"{n} {verdict.value}" for verdict in Verdict if (n := record.count(verdict)))
    outcome = counts if record.status == "finished" and counts else record.status
    return f"{record.id}: {outcome} ({record.seconds:.1f} s)"


@dataclass(frozen=True)
class Worker:
    """A running process with its task, its share of the jobs, its log and the time it started."""

    process: subprocess.Popen[bytes] | Fork
    task: Task
    share: int
    log: IO[bytes]
    started: str
    clock: float

    @classmethod
    def start(
        cls,
        task: Task,
        share: int,
        out: Path,
        start: Callable[..., subprocess.Popen[bytes] | Fork],
        further: dict[str, str],
    ) -> "Worker":
        """Start a process on a task, by `ForkServer.start` or `spawn`, with further variables."""
        task = Task(**{**asdict(task), "jobs": share})
        record_path(out, task.paper, task.name).unlink(missing_ok=True)
        log_path = out / "logs" / task.paper / f"{task.name}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = log_path.open("w+b")
        started, clock = utc_now(), time.perf_counter()
        arguments = [json.dumps(asdict(task)), os.fspath(out)]
        return cls(start(task.module, arguments, log_path, further), task, share, log, started, clock)

    def collect(self, out: Path) -> Record:
        """Read the record of a process that ended, or write one if it died before it could."""
        path = record_path(out, self.task.paper, self.task.name)
        try:
            record = load_record(path)
        except (OSError, ValueError):
            code = self.process.wait()
            cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            self.log.seek(0)
            tail = self.log.read().decode(errors="replace")[-LOG_TAIL:]
            record = Record(
                **{name: value for name, value in vars(self.task).items() if name != "module"},
                status="crashed",
                started=self.started,
                seconds=time.perf_counter() - self.clock,
                error=anonymous(f"The process died ({cause}). The end of its output:\n{tail}"),
            )
            record.save(out)
        self.stop()
        return record

    def stop(self) -> None:
        """End the process and those that it started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGTERM)
        else:
            self.process.kill()  # on Windows, which knows no other end
        try:
            self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def spawn(
    environment: dict[str, str], module: str, arguments: list[str], log: Path, further: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start `worker.main(arguments)` as `ForkServer.start` does, in a process that imports `module` itself."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", f"{__package__}.worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | further,
            start_new_session=True,
        )


def _task(experiment: Experiment, scale: str, seed: int, backend: str) -> Task:
    return Task(
        module=experiment.function.__module__,
        paper=experiment.paper,
        name=experiment.name,
        figure=experiment.figure,
        title=experiment.title,
        description=experiment.description,
        scale=scale,
        seed=seed,
        backend=backend,
        jobs=1,
    )


def _resumable(out: Path, experiment: Experiment, scale: str, seed: int, versions: dict[str, str]) -> Record | None:
    """Find the record of a finished run whose numbers would be the same again."""
    try:
        record = load_record(record_path(out, experiment.paper, experiment.name))
    except (OSError, ValueError):
        return None
    packages = (f"gyri-{experiment.paper}", "gyri-numerics", "gyri-reproduce")
    same = all(record.versions.get(package) == versions.get(package) for package in packages)
    finished = record.status == "finished" and (record.scale, record.seed) == (scale, seed)
    return record if same and finished else None
