"""The exact proximal operator against compiled C, the cost of training, and how both grow.

    python packages/tv/benchmarks/bench_tv.py [--quick] [--out FILE.json]

Peers: condat-tv (one signal a call, or a matrix) and prox-tv (one signal a call); requirements.txt. prox-tv needs
Debian's liblapacke-dev to be built; without it its rows are left out. Both work in float64 and on one thread; so does
the process, which is bound to one CPU first. A child process then repeats our rows on two. Every timed call gets other
data than the call before (64 draws in turn): sequential algorithms branch on the data, and a processor learns the
branches of a small input by heart when it is given again and again. All have to agree on the first draw before they
are timed.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

# CPUs of this process, and those that it may give to its child; set before JAX starts its threads.
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
CPUS = [int(cpu) for cpu in os.environ.get("GYRI_BENCH_CPUS", str(ALLOWED[0])).split(",")]
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, CPUS)

import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from gyri.numerics import host  # noqa: E402
from gyri.reproduce import bench  # noqa: E402
from gyri.tv import apply_network, init_network, objective, prox_tv1d, simulate  # noqa: E402
from gyri.tv.networks import constants_of  # noqa: E402
from gyri.tv.training import Data, Stage, train  # noqa: E402

LAM = 1.0
N_DRAWS = 64
SHAPES = ((1000, 8), (1000, 250), (1, 10_000))


def draw(shape: tuple[int, int], n_draws: int, dtype: Any = np.float64) -> list[np.ndarray]:
    """Steps of height about 2, one in ten samples, in noise of 0.5."""
    rng = np.random.default_rng(0)
    steps = 2 * rng.standard_normal((n_draws, *shape)) * (rng.random((n_draws, *shape)) < 0.1)
    return list((np.cumsum(steps, -1) + 0.5 * rng.standard_normal(steps.shape)).astype(dtype))


# --- the proximal operator --------------------------------------------------------------------------------------------


def find_peers() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Peers that are installed, each a function of a matrix of signals."""
    peers: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    try:
        from condat_tv import tv_denoise, tv_denoise_matrix

        peers["condat matrix"] = lambda x: tv_denoise_matrix(x, LAM)
        peers["condat loop"] = lambda x: np.stack([tv_denoise(row, LAM) for row in x])
    except ImportError:
        print("# condat-tv is not installed: its rows are left out")
    try:
        from prox_tv import tv1_1d

        peers["prox_tv loop"] = lambda x: np.stack([tv1_1d(row, LAM) for row in x])
    except ImportError:
        print("# prox-tv is not installed (it needs Debian's liblapacke-dev): its rows are left out")
    return peers


def methods() -> dict[str, str]:
    """Name and `method` of our two on a CPU."""
    return ({"host kernel": "auto"} if host.available() else {}) | {"XLA scan": "scan"}


def in_turn(function: Callable, draws: list) -> Callable[[], Any]:
    """The function of no argument that goes on to the next draw at every call."""
    turn = cycle(draws)
    return lambda: function(next(turn))


def agree(rtol: float, ours: Any, peer: np.ndarray) -> bool:
    np.testing.assert_allclose(ours, peer, atol=rtol * np.abs(peer).max(), rtol=0)
    return True


def compare(table: bench.Table, quick: bool) -> None:
    """Every method of ours against every peer; in float32 against the peers' float64."""
    peers = find_peers()
    n_rounds = 5 if quick else 41
    for shape in SHAPES:
        draws = draw(shape, 8 if quick else N_DRAWS)
        for dtype, rtol in ((np.float64, 1e-10), (np.float32, 1e-5)):
            ours_draws = [jnp.asarray(x, dtype) for x in draws]
            for name, method in methods().items():
                prox = jax.jit(partial(prox_tv1d, lam=LAM, method=method))
                for peer_name, peer in peers.items():
                    row = bench.paired(
                        in_turn(prox, ours_draws), in_turn(peer, draws), check=partial(agree, rtol),
                        n_rounds=n_rounds, warmup=3,
                    )  # fmt: skip
                    label = f"{shape[0]} x {shape[1]}, {np.dtype(dtype).name}, {name} / {peer_name}"
                    table.add(label, row)


# --- one-sided: no peer, printed beside the table ---------------------------------------------------------------------


def say(name: str, value: float, unit: str = "ms") -> None:
    print(f"{name}: {value:.4g} {unit}", flush=True)


def milliseconds(function: Callable[[], Any], n: int) -> tuple[float, float]:
    """Milliseconds of the first call, and the median of n more."""
    seconds = []
    for _ in range(n + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return 1e3 * seconds[0], 1e3 * float(np.median(seconds[1:]))


def time_prox(quick: bool) -> None:
    """Our rows alone: first call, and median."""
    for shape in SHAPES:
        for dtype in (np.float64, np.float32):
            draws = [jnp.asarray(x) for x in draw(shape, 8 if quick else N_DRAWS, dtype)]
            for name, method in methods().items():
                prox = jax.jit(partial(prox_tv1d, lam=LAM, method=method))
                first, warm = milliseconds(in_turn(prox, draws), 5 if quick else 41)
                say(f"{len(CPUS)} CPUs, {shape[0]} x {shape[1]}, {np.dtype(dtype).name}, {name}", warm)
                say("    first call, with compilation", first)


def time_gradient(quick: bool) -> None:
    """The loss of ten layers and its gradient; the authors' torch code took 2.51 s and 1.05 s on a loaded core."""
    for n, k, m in ((1000, 8, 5), (100, 100, 100)):
        x, _, _, A = simulate(0, n, k=k, m=m)
        constants, params = constants_of(A), init_network(A, 10)
        jax.block_until_ready(constants)
        loss = lambda p, x: objective(apply_network(p, x, A, 0.1), x, A, 0.1).mean()  # noqa: B023
        function = jax.jit(jax.value_and_grad(loss))
        draws = [x * (1 + 0.1 * i) for i in range(4 if quick else 16)]
        first, warm = milliseconds(in_turn(partial(function, params), draws), 5 if quick else 20)
        say(f"value and gradient through 10 layers, n = {n}, k = {k}, m = {m}", warm)
        say("    first call, with compilation", first)


def time_training(quick: bool) -> None:
    """Depths 1, 2, 3, 5, 8 in turn, 40 steps each, on 100 signals; the authors' code took 376 s on a loaded core."""
    x, _, _, A = simulate(42, 100)
    start = time.perf_counter()
    params = init_network(A, 8)
    data = Data(x, jnp.full((100, 1), 0.1), constants_of(A))
    for depth in (1, 2, 3, 5, 8):
        stage = Stage(depth, depth, 4 if quick else 40)
        params = train(params, data, [stage], network="lpgd_taut", n_inner=1).params
    jax.block_until_ready(params)
    say("training at depths 1, 2, 3, 5, 8, compilation included", time.perf_counter() - start, "s")


def growth(table: bench.Table, quick: bool) -> None:
    """Time as the signals get longer, and more, at a fixed density of jumps; bytes that XLA sets aside."""
    lengths = (250, 500) if quick else (250, 500, 1000, 2000, 4000)
    for name, method in methods().items():
        prox = jax.jit(partial(prox_tv1d, lam=LAM, method=method))
        call = lambda draws, prox=prox: draws(prox)
        for axis, make in {
            "samples a signal (100 signals)": lambda n: draw((100, n), 16),
            "signals (of 250 samples)": lambda n: draw((n, 250), 16),
        }.items():
            setup = lambda n, make=make: (lambda turn: lambda f: f(next(turn)))(
                cycle([jnp.asarray(x) for x in make(n)])
            )
            table.add(f"{name}, {axis}", bench.slope(call, lengths, setup=setup, n_rounds=5 if quick else 21))
        for shape in ((1000, 250), (1000, 500), (2000, 250)):
            memory = prox.lower(jax.ShapeDtypeStruct(shape, np.float64)).compile().memory_analysis()
            say(
                f"{name}, {shape[0]} x {shape[1]}: temporaries of XLA",
                memory.temp_size_in_bytes / np.prod(shape),
                "bytes a sample",
            )


def benchmark(table: bench.Table, quick: bool) -> None:
    with jax.enable_x64(True):
        if len(CPUS) > 1:
            time_prox(quick)
            return
        compare(table, quick)
        time_prox(quick)
        time_gradient(quick)
        time_training(quick)
        growth(table, quick)
    if len(ALLOWED) > 1:
        again = [sys.executable, __file__, *(["--quick"] if quick else [])]
        subprocess.run(again, env=os.environ | {"GYRI_BENCH_CPUS": ",".join(map(str, ALLOWED[:2]))}, check=True)


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Total variation against C", peers=["condat-tv", "prox-tv"]))
