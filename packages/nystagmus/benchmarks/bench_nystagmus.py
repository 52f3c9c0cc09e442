"""How long fits take, and how that grows with the recording.

    python packages/nystagmus/benchmarks/bench_nystagmus.py [--quick] [--out FILE.json]

No other package learns a trend and patterns jointly, so that there is no peer to alternate with: the authors' code
needs more than 100 s for the first row, on another machine. Compilation is shown apart.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gyri.nystagmus import NystagmusCDL, simulate_nystagmus
from gyri.reproduce import bench

LENGTH, SFREQ = 250, 1000.0


def make(n_times: int) -> np.ndarray:
    return simulate_nystagmus(0, n_times=n_times, kind="jerk_sf_up", frequency=6.0, nystagmus_std=3.0).recording


def fit(x: np.ndarray, **options: Any) -> NystagmusCDL:
    # eps=0: all iterations are made.
    return NystagmusCDL(n_times_atom=LENGTH, sfreq=SFREQ, eps=0.0, **options).fit(x)


def seconds(function: Callable[[], Any], n: int = 5) -> float:
    """Median of n calls after one that compiles."""
    function()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def say(name: str, value: float, unit: str = "s") -> None:
    print(f"{name}: {value:.3g} {unit}", flush=True)


def time_fits(quick: bool) -> None:
    x = make(2_000 if quick else 10_000)
    name = f"joint fit, {x.size} samples, atom of {LENGTH}"
    for reg in (0.5, 0.1):
        say(f"{name}, 25 iterations, reg {reg}", seconds(lambda reg=reg: fit(x, reg=reg, max_iter=25)))
    one = seconds(lambda: fit(x, max_iter=100))
    say(f"{name}, 100 iterations", one)
    say("4 starts over 4 times one", seconds(lambda: fit(x, max_iter=100, n_restarts=4)) / (4 * one), "")


def time_first_fit() -> None:
    """A process of its own: import, then the first fit with all that it compiles."""
    code = (
        "import time; start = time.perf_counter()\n"
        "from gyri.nystagmus import NystagmusCDL, simulate_nystagmus\n"
        "imported = time.perf_counter()\n"
        "x = simulate_nystagmus(0, n_times=10_000, frequency=6.0).recording\n"
        "begin = time.perf_counter()\n"
        "NystagmusCDL(n_times_atom=250, sfreq=1000.0, max_iter=25).fit(x)\n"
        "print(imported - start, time.perf_counter() - begin)"
    )
    runs = [[float(word) for word in subprocess.check_output([sys.executable, "-c", code]).split()] for _ in range(3)]
    imported, first = np.median(runs, axis=0)
    say("fresh process: import", imported)
    say("fresh process: first fit with compilation", first)


def benchmark(table: bench.Table, quick: bool) -> None:
    sizes = (2_000, 8_000) if quick else (20_000, 80_000)
    table.add("fit of 20 iterations", bench.slope(lambda x: fit(x, max_iter=20), sizes, setup=make, n_rounds=5))
    time_fits(quick)
    time_first_fit()


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Nystagmus: joint fits", peers=["scipy", "numba"]))
