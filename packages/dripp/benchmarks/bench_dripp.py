"""DriPP against a plain NumPy EM, and how its cost grows.

    python packages/dripp/benchmarks/bench_dripp.py [--quick] [--out FILE.json]

The peer is what one would write in an afternoon: a flat list of delays found by binary search, and 50 EM iterations
with `np.bincount`; nothing is merged, nothing compiled. Both run the paper's EM from the same start, in float64,
and have to agree on the negative log-likelihood before they are timed.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.special import log_ndtr

from gyri.dripp import Params, em, lag_table, simulate
from gyri.dripp.datasets import simulate_drivers
from gyri.dripp.init import initialize
from gyri.reproduce import bench

LOWER, UPPER, SFREQ = 0.03, 0.8, 150.0
WINDOW = {"lower": LOWER, "upper": UPPER}
TRUTH = Params(0.8, np.array([0.8, 0.8]), np.array([0.4, 0.4]), np.array([0.05, 0.2]))
N_ITER = 50
PAPER = {"max_iter": N_ITER, "tol": 0.0, "polish": False, "m_bounds": (-np.inf, np.inf), "sigma_min": 1e-5}
RATE = 1.62  # events/s in this setting

Data = tuple[np.ndarray, list[np.ndarray], float]


def make(n_events: int, on_grid: bool = True, seed: int = 0) -> Data:
    """Events, drivers and duration of the paper's synthetic setting, 60 % of the stimuli kept."""
    t_stop = np.ceil(n_events / RATE)
    drivers = [simulate_drivers(seed + 1 + p, t_stop, isi, keep=0.6) for p, isi in enumerate((1.4, 1.0))]
    events = simulate(seed, drivers, TRUTH, t_stop=t_stop, **WINDOW)
    if on_grid:
        events, *drivers = (np.rint(times * SFREQ) / SFREQ for times in (events, *drivers))
    return events, drivers, float(t_stop)


def sfreq_of(on_grid: bool) -> float | None:
    return SFREQ if on_grid else None


# --- the peer ---------------------------------------------------------------------------------------------------------


def flat_delays(events: np.ndarray, driver: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the event and delay of every pair in the window, by two binary searches."""
    guard = 1e-9  # times on a grid: a delay that equals an end may be rounded past it
    low = np.searchsorted(driver, events - UPPER - guard, side="left")
    high = np.searchsorted(driver, events - LOWER + guard, side="right")
    count = high - low
    event = np.repeat(np.arange(events.size), count)
    first = np.repeat(low - (np.cumsum(count) - count), count)
    return event, events[event] - driver[first + np.arange(event.size)]


def peer_lists(data: Data) -> list[tuple[np.ndarray, np.ndarray]]:
    return [flat_delays(data[0], driver) for driver in data[1]]


def peer_em(data: Data, lists: list[tuple[np.ndarray, np.ndarray]], start: Params) -> tuple[Params, float]:
    """The paper's EM, without any correction at the ends, and the negative log-likelihood at its end."""
    events, drivers, t_stop = data
    mu, alpha, m, sigma = (np.array(value, np.float64) for value in start)

    def rates() -> tuple[list[np.ndarray], np.ndarray]:
        parts, total = [], np.full(events.size, mu)
        for p, (event, lag) in enumerate(lists):
            z = np.sort([(LOWER - m[p]) / sigma[p], (UPPER - m[p]) / sigma[p]])
            mass = np.exp(log_ndtr(z[1])) - np.exp(log_ndtr(z[0]))
            part = alpha[p] * np.exp(-0.5 * ((lag - m[p]) / sigma[p]) ** 2) / (np.sqrt(2 * np.pi) * sigma[p] * mass)
            parts.append(part)
            total += np.bincount(event, part, events.size)
        return parts, total

    for _ in range(N_ITER):
        parts, total = rates()
        mu = (mu / total).sum() / t_stop
        for p, (event, lag) in enumerate(lists):
            label = parts[p] / total[event]
            count, mean = label.sum(), label @ lag
            second = label @ (lag - m[p]) ** 2
            za, zb = (LOWER - m[p]) / sigma[p], (UPPER - m[p]) / sigma[p]
            mass = np.exp(log_ndtr(zb)) - np.exp(log_ndtr(za))
            c = sigma[p] * np.sqrt(2 * np.pi) * mass
            c_m = np.exp(-0.5 * za**2) - np.exp(-0.5 * zb**2)
            c_s = za * np.exp(-0.5 * za**2) - zb * np.exp(-0.5 * zb**2) + c / sigma[p]
            alpha[p] = count / drivers[p].size
            m[p], sigma[p] = mean / count - sigma[p] ** 2 * c_m / c, np.cbrt(c / c_s * second / count)
    total = rates()[1]
    compensator = mu * t_stop + sum(a * driver.size for a, driver in zip(alpha, drivers))
    return Params(mu, alpha, m, sigma), float(compensator - np.log(total).sum())


# --- ours -------------------------------------------------------------------------------------------------------------


def our_table(data: Data, on_grid: bool) -> Any:
    events, drivers, t_stop = data
    return lag_table(events, drivers, t_stop=t_stop, sfreq=sfreq_of(on_grid), edge=False, **WINDOW)


def our_em(table: Any, start: Params) -> tuple[Params, float]:
    result = em(table, start, **PAPER)
    return result.params, float(result.nll)


def agree(ours: tuple[Params, float], peer: tuple[Params, float]) -> bool:
    np.testing.assert_allclose(ours[1], peer[1], rtol=1e-9)
    for a, b in zip(ours[0], peer[0]):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return True


def as_good(ours: Any, peer: tuple[Params, float]) -> bool:
    """Whether the converged fit is at least as likely as the peer's."""
    return bool(ours.converged) and float(ours.nll) <= peer[1] + 1e-9 * abs(peer[1])


def compare(table: bench.Table, n_events: int, on_grid: bool) -> None:
    """Delays and EM, then EM alone, against the peer from the same start; off the grid the converged fit as well."""
    data = make(n_events, on_grid)
    ready = our_table(data, on_grid)
    start = initialize(ready, "smart_start")
    name = f"{data[0].size:.3g} events, {'150 Hz grid' if on_grid else 'exact times'}"
    print(f"# {name}: {ready.n_rows} rows", flush=True)

    def whole_peer() -> tuple[Params, float]:
        return peer_em(data, peer_lists(data), start)

    lists = peer_lists(data)
    whole = bench.paired(lambda: our_em(our_table(data, on_grid), start), whole_peer, check=agree)
    table.add(f"{name}: delays and {N_ITER} EM iterations", whole)
    alone = bench.paired(lambda: our_em(ready, start), lambda: peer_em(data, lists, start), check=agree)
    table.add(f"{name}: {N_ITER} EM iterations alone", alone)
    if not on_grid:
        converged = bench.paired(lambda: em(our_table(data, on_grid), "smart_start"), whole_peer, check=as_good)
        table.add(f"{name}: delays and converged fit (peer: {N_ITER} iterations)", converged)


# --- one-sided: no peer, printed beside the table ---------------------------------------------------------------------


def median_of(function: Callable[[], Any], n: int = 5) -> float:
    """Median seconds of n warm calls."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def say(name: str, value: float, unit: str = "s") -> None:
    print(f"{name}: {value:.4g} {unit}", flush=True)


def time_sizes(quick: bool) -> None:
    """Bars on the grid and off it, for the default fit as well as for the paper's EM."""
    for n_events in (10_000,) if quick else (97_169, 10_000_000):
        data = make(n_events)
        ready = our_table(data, True)
        start = initialize(ready, "smart_start")
        name = f"{data[0].size:.3g} events on a grid"
        n = 5 if n_events < 1_000_000 else 3
        say(
            f"{name}, delays and {N_ITER} EM iterations",
            median_of(lambda d=data, s=start: our_em(our_table(d, True), s), n),
        )
        say(f"{name}, {N_ITER} EM iterations alone", median_of(lambda t=ready, s=start: our_em(t, s)))
    data = make(20_000 if quick else 1_600_000, on_grid=False)
    ready = our_table(data, False)
    name = f"{data[0].size:.3g} events off the grid ({ready.n_rows:.3g} rows)"
    say(
        f"{name}, delays and converged fit from the smart start",
        median_of(lambda: em(our_table(data, False), "smart_start"), 3),
    )
    say(f"{name}, delays and converged fit, default start", median_of(lambda: em(our_table(data, False)), 3))
    n_lags = int((np.asarray(ready.driver) >= 0).sum())
    n_bytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(ready))
    say(f"{name}, table", n_bytes / n_lags, "bytes a lag")
    say(f"{name}, peak while it is built", peak_bytes(data) / n_lags, "bytes a lag, beyond the input")


def peak_bytes(data: Data) -> int:
    """Largest memory that NumPy holds while a table is built."""
    import tracemalloc

    tracemalloc.start()
    our_table(data, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def time_batch(quick: bool) -> None:
    """Many atoms at once on a grid, equal to as many single fits."""
    n_atoms, n_events = (10, 1000) if quick else (200, 10_000)
    t_stop = np.ceil(n_events / RATE)
    drivers = [
        np.rint(simulate_drivers(1 + p, t_stop, isi, keep=0.6) * SFREQ) / SFREQ for p, isi in enumerate((1.4, 1.0))
    ]
    events = [np.rint(simulate(k, drivers, TRUTH, t_stop=t_stop, **WINDOW) * SFREQ) / SFREQ for k in range(n_atoms)]
    build = partial(lag_table, drivers=drivers, t_stop=t_stop, sfreq=SFREQ, **WINDOW)
    say(f"{n_atoms} atoms x {n_events:.0g} events, delays and default fit", median_of(lambda: em(build(events)), 3))
    together = em(build(events)).params
    worst = 0.0
    for k in range(0, n_atoms, max(n_atoms // 20, 1)):
        one = em(build(events[k])).params
        worst = max(worst, *(float(np.max(np.abs(a[k] - b) / np.abs(b))) for a, b in zip(together, one)))
    say(f"{n_atoms} atoms, largest relative difference to single fits (every {max(n_atoms // 20, 1)}th)", worst, "")


def time_first_call() -> None:
    """A process of its own: import, then the first fit, with all that it compiles."""
    code = (
        "import time; start = time.perf_counter()\n"
        "import jax, numpy as np\nfrom gyri.dripp import DriPP\n"
        "imported = time.perf_counter()\n"
        "rng = np.random.default_rng(0)\n"
        "drivers = np.arange(2, 900.0, 1.5)\n"
        "evoked = drivers[::2] + rng.normal(0.1, 0.01, drivers[::2].size)\n"
        "events = np.sort(np.concatenate([rng.uniform(0, 900, 700), evoked]))\n"
        "events, drivers = (np.rint(150 * x) / 150 for x in (events, drivers))\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "begin = time.perf_counter()\n"
        "jax.block_until_ready(DriPP({init}sfreq=150.0).fit(events, [drivers, drivers + 0.5], t_stop=900.0).params_)\n"
        "print(imported - start, time.perf_counter() - begin)"
    )
    for name, init in (("default start", ""), ("smart start", "init='smart_start', ")):
        runs = [
            [float(x) for x in subprocess.check_output([sys.executable, "-c", code.replace("{init}", init)]).split()]
            for _ in range(3)
        ]
        imported, first = np.median(runs, axis=0)
        say(f"fresh process, {name}: import", imported)
        say(f"fresh process, {name}: first fit with compilation", first)


def benchmark(table: bench.Table, quick: bool) -> None:
    with jax.enable_x64(True):
        compare(table, 10_000 if quick else 1_000_000, on_grid=True)
        compare(table, 10_000 if quick else 1_000_000, on_grid=False)
        sizes = (2_000, 20_000) if quick else (100_000, 1_000_000)
        for on_grid in (True, False):
            function = lambda data, on_grid=on_grid: em(our_table(data, on_grid), "smart_start", **PAPER)
            row = bench.slope(function, sizes, setup=partial(make, on_grid=on_grid), n_rounds=5)
            table.add(f"table and {N_ITER} EM iterations, {'150 Hz grid' if on_grid else 'exact times'}", row)
        time_sizes(quick)
        time_batch(quick)
        t_stop = (10_000 if quick else 1_000_000) / RATE
        drivers = [simulate_drivers(1 + p, t_stop, isi, keep=0.6) for p, isi in enumerate((1.4, 1.0))]
        say(
            f"simulation of {t_stop * RATE:.0g} events",
            median_of(lambda: simulate(0, drivers, TRUTH, t_stop=t_stop, **WINDOW)),
        )
    time_first_call()


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="DriPP against a NumPy EM", peers=["scipy"]))
