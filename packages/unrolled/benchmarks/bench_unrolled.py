"""Dictionary learning against scikit-learn, the cost of a step and of compilation, and how cost and memory grow.

    python packages/unrolled/benchmarks/bench_unrolled.py [--quick] [--out FILE.json]

The peer is scikit-learn's MiniBatchDictionaryLearning from the same start (its full-batch DictionaryLearning ignores a
start without codes). The authors' torch code is not on PyPI and needs CUDA for some of it; its figures, 95 ms a step at
N = 20 on a core of another machine, stand in the README. The process is bound to one CPU, as the peer works on one.
"""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import bench
from gyri.unrolled import ConvDictionaryLearning, DictionaryLearning, recovery_score, simulate, sparse_code
from gyri.unrolled.datasets import perturb, unit_rows

warnings.simplefilter("ignore")  # of scikit-learn's coordinate descent at loose tolerances


def say(name: str, value: float, unit: str = "") -> None:
    print(f"{name}: {value:.4g} {unit}", flush=True)


def draw(seed: int, n_samples: int = 1000) -> tuple[Any, Any, Any]:
    X, truth, _ = simulate(seed, n_samples)
    return np.asarray(X), np.asarray(truth), np.asarray(unit_rows(perturb(100 + seed, truth)))


def warm(function: Callable[[], Any], n: int = 5) -> tuple[float, float]:
    """Seconds of the first call, and the median of n more."""
    seconds = []
    for _ in range(n + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return seconds[0], float(np.median(seconds[1:]))


def peer(X: np.ndarray, D0: np.ndarray) -> Any:
    from sklearn.decomposition import MiniBatchDictionaryLearning

    return MiniBatchDictionaryLearning(
        50, alpha=0.1, batch_size=100, max_iter=10, fit_algorithm="cd", dict_init=D0, random_state=0, tol=0,
        max_no_improvement=None,
    ).fit(X.astype(np.float64))  # fmt: skip


def compare(table: bench.Table, quick: bool) -> None:
    """Fits from one start; each has to reach what is said before it is timed. The peer is faster in float64."""
    for seed in range(1 if quick else 3):
        X, truth, D0 = draw(seed)
        full = {"init": D0, "verbose": False}
        cases = {
            "full batch, N = 20": (full, 0.97),
            "minibatches, 2 passes": (full | {"batch_size": 100, "epochs": 2}, 0.953),
        }
        for name, (options, least) in cases.items():
            ours = lambda X=X, options=options: DictionaryLearning(50, **options).fit(X).components_
            scores = [recovery_score(ours(), truth), recovery_score(peer(X, D0).components_, truth)]
            check = lambda a, b, score=scores[0], least=least: score >= least
            theirs = lambda X=X, D0=D0: peer(X, D0).components_
            row = bench.paired(ours, theirs, check=check, n_rounds=3 if quick else 5)
            table.add(f"{name} / MiniBatch, seed {seed}: recovery {scores[0]:.3f} / {scores[1]:.3f}", row)


def time_steps() -> None:
    """Milliseconds an accepted step, trials included."""
    X, _, D0 = draw(0)
    for n_iter in (5, 20, 50):
        model = DictionaryLearning(50, n_iter=n_iter, init=D0, verbose=False)
        first, second = warm(lambda model=model: model.fit(X).components_, 3)
        say(f"full batch, N = {n_iter}: {model.n_steps_} steps, a step", 1e3 * second / model.n_steps_, "ms")
        say("    first fit, with what of it compiles", first, "s")


def first_fit() -> None:
    """A process of its own: the first fit, with all compilation."""
    code = (
        "import time, numpy as np\n"
        "from gyri.unrolled import DictionaryLearning, simulate\n"
        "from gyri.unrolled.datasets import perturb, unit_rows\n"
        "X, truth, _ = simulate(0)\n"
        "X, D0 = np.asarray(X), np.asarray(unit_rows(perturb(100, truth)))\n"
        "start = time.perf_counter()\n"
        "DictionaryLearning(50, init=D0, verbose=False).fit(X)\n"
        "print(time.perf_counter() - start)"
    )
    runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    say("fresh process: full-batch fit with compilation", float(np.median(runs)), "s")


def random_starts() -> None:
    X, truth, _ = draw(0)
    for seed in range(3):
        options = {"batch_size": 100, "epochs": 10, "iterations_per_epoch": 500, "random_state": seed}
        start = time.perf_counter()
        model = DictionaryLearning(50, init="random", verbose=False, **options).fit(X)
        say(f"random start {seed}, 5000 minibatches of 100: recovery", recovery_score(model.components_, truth))
        say("    time", time.perf_counter() - start, "s")


def time_recording(quick: bool) -> None:
    """A minibatch of the paper's MEG settings: 40 atoms of 150 samples, 203 channels, 20 windows of 1000."""
    X = np.random.default_rng(0).standard_normal((203, 20_000)).astype(np.float32)
    model = ConvDictionaryLearning(
        40, 150, lam=0.3, lam_is_ratio=True, rank1=True, n_iter=30, window_length=1000, epochs=1, verbose=False,
        iterations_per_epoch=1 if quick else 3,
    )  # fmt: skip
    first, second = warm(lambda: model.fit(X).components_, 1)
    say("minibatch of 20 windows, 40 rank-one atoms, 203 channels", second / model.iterations_per_epoch, "s")
    say("    first fit, with compilation", first, "s")


def growth(table: bench.Table, quick: bool) -> None:
    sizes = (1000, 4000) if quick else (1000, 4000, 16_000)
    made = {n: draw(0, n) for n in sizes}
    fit = lambda data: DictionaryLearning(50, init=data[2], max_steps=5, tol=0, verbose=False).fit(data[0])
    table.add("five steps, by samples", bench.slope(fit, sizes, setup=made.__getitem__))
    depths = (10, 40) if quick else (10, 40, 160)
    X, D = jnp.asarray(made[sizes[-1]][0]), jnp.asarray(made[sizes[-1]][2])
    code = lambda n: sparse_code(X, D, 0.1, n_iter=n)
    table.add("sparse coding, by iterations", bench.slope(code, depths))


def memory() -> None:
    """Largest memory of a process that learns; the data take 120 bytes a sample."""
    code = (
        "import sys, numpy as np\n"
        "from gyri.unrolled import DictionaryLearning\n"
        "n, batch = int(sys.argv[1]), int(sys.argv[2])\n"
        "X = np.random.default_rng(0).standard_normal((n, 30), 'f4')\n"
        "options = {'batch_size': batch, 'epochs': 1, 'iterations_per_epoch': 5} if batch else {'max_steps': 2}\n"
        "DictionaryLearning(50, verbose=False, **options).fit(X)\n"
        "high = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]\n"
        "print(int(high.split()[1]) / 1024)"  # what `resource` says is inherited from the parent
    )
    for batch, sizes in ((1000, (1000, 100_000, 1_000_000)), (0, (1000, 100_000))):
        for n in sizes:
            out = subprocess.check_output([sys.executable, "-c", code, str(n), str(batch)])
            kind = f"minibatches of {batch}" if batch else "full batch"
            say(f"memory of a process, {kind}, {n} samples of 30", float(out), "MiB")


def benchmark(table: bench.Table, quick: bool) -> None:
    compare(table, quick)
    time_steps()
    first_fit()
    random_starts()
    time_recording(quick)
    growth(table, quick)
    if not quick:
        memory()


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Dictionary learning, one CPU", peers=["scikit-learn"]))
