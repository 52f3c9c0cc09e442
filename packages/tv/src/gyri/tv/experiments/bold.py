"""Figure 5: deconvolution of fMRI; real BOLD series that nitime ships stand for the paper's recordings."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import hrf_operator
from ..networks import apply_network, constants_of, init_network
from ..operators import to_dense
from ..plot import plot_convergence, plot_signals
from ..problem import lambda_max, objective
from ..solvers import solve
from ..training import Data as Signals
from ..training import Stage, train

TR = 1.89  # seconds
LAM = 0.1
N_TIMES, HOP = 100, 25  # samples of a window, and between the starts of two
DEPTHS = {"quick": (0, 1, 2, 3, 5, 8), "paper": (0, 1, 2, 3, 5, 8, 13, 22, 40)}
N_DRAWS = {"quick": 3, "paper": 5}  # of the regions trained on
SHOWN = 3  # layers and iterations of the fits in the figure
NEEDS = 'the BOLD series that come with nitime: pip install "gyri-tv[data]"'


def load() -> np.ndarray | None:
    """Series of 28 regions at rest, shape (28, 250); None without nitime."""
    found = find_spec("nitime")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "data" / "fmri_timeseries.csv"
    return np.loadtxt(file, delimiter=",", skiprows=1)[:, 3:].T  # the first three are no regions


def windows(series: np.ndarray) -> np.ndarray:
    """Windows of series, each with mean 0 and standard deviation 1, shape (n_series, n_windows, N_TIMES)."""
    cut = np.lib.stride_tricks.sliding_window_view(series, N_TIMES, axis=1)[:, ::HOP]
    return (cut - cut.mean(-1, keepdims=True)) / cut.std(-1, keepdims=True)


def curves(setting: tuple[np.ndarray, int, int, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], tuple]:
    """Mean test suboptimality by depth, for (windows, seed, steps a depth, depths), and one test signal with fits."""
    cut, seed, n_steps, depths = setting
    order = np.random.default_rng(seed).permutation(len(cut))
    with jax.enable_x64(True):
        A = to_dense(hrf_operator(N_TIMES, TR), np.dtype(float))
        x = jnp.asarray(cut[order].reshape(-1, N_TIMES))
        x = x / lambda_max(x, A)[:, None]
        x, x_test = jnp.split(x, [len(cut) // 2 * cut.shape[1]])  # regions are in one half only
        exact = solve(x_test, A, LAM, solver="admm", max_iter=20_000, tol=1e-8, check_every=100)
        least = exact.objective.mean()
        found = {}
        for name in ("PGD", "APGD"):
            run = solve(x_test, A, LAM, solver=name.lower(), max_iter=depths[-1], check_every=1, tol=0, history=True)
            found[name] = np.asarray(run.history).mean(0)[list(depths)] - float(least)
        data = Signals(x, jnp.full((len(x), 1), LAM), jax.jit(constants_of)(A))
        params, values = init_network(A, depths[-1]), [found["PGD"][0]]
        for depth in depths[1:]:
            params = train(params, data, [Stage(depth, depth, n_steps)], network="lpgd_taut", n_inner=1).params
            u = apply_network(params, x_test, A, LAM, n_layers=depth)
            values.append(float(objective(u, x_test, A, LAM).mean() - least))
        found["LPGD-Taut"] = np.array(values)
        learned = apply_network(params, x_test[:1], A, LAM, n_layers=min(SHOWN, depths[-1]))[0]
        iterated = solve(x_test[0], A, LAM, max_iter=SHOWN, tol=0).u
        least_u = exact.u[0].round(5)  # ADMM's pieces are flat to its tolerance only
        return found, tuple(np.asarray(v) for v in (x_test[0], least_u @ A.T, least_u, learned, iterated))


@experiment(paper="tv", figure="Figure 5", title="fMRI: a few learned layers beat accelerated iterations")
def bold(scale: str, key: int, sweep: Any) -> Result:
    """Train on windows of half of the regions, drawn three times (paper: five), and deconvolve those of the others.

    Paper scale: about 20 CPU minutes (extrapolated from the quick run: 1.7 times the draws, 7.5 times
    the steps, layers that sum to 94 in place of 19).
    """
    series = load()
    text = "suboptimality of LPGD-Taut over that of APGD, depth"
    if series is None:
        return Result([Claim.not_run(f"{text} 5", "below 1")], {}, Data.missing(needs=NEEDS))
    n_steps, depths = {"quick": 40, "paper": 300}[scale], DEPTHS[scale]
    cut = windows(series)
    runs, fits = zip(*sweep(curves, [(cut, key + seed, n_steps, depths) for seed in range(N_DRAWS[scale])]))
    methods = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    claims = [
        Claim.at_most(f"{text} {depth}", "below 1", (methods["LPGD-Taut"] / methods["APGD"])[:, i], 1.0)
        for i, depth in enumerate(depths) if 1 <= depth <= 8
    ]  # fmt: skip
    figures = {"depth": _convergence(methods, depths), "signal": _signals(*fits[0])}
    captions = {
        "depth": f"Test suboptimality by depth, mean of {N_DRAWS[scale]} draws of regions, {n_steps} steps a depth.",
        "signal": f"One region's BOLD and the activity behind it: at the minimum, after {SHOWN} layers or iterations.",
    }
    used = "resting BOLD of 28 regions, nitime, in windows of 100 scans"
    return Result(claims, figures, Data.stand_in(for_="UK Biobank resting state", used=used), captions)


def _convergence(methods: dict[str, np.ndarray], depths: tuple[int, ...]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    plot_convergence(methods, depths=list(depths), ax=figure.subplots())
    return figure


def _signals(x: np.ndarray, fit: np.ndarray, exact: np.ndarray, learned: np.ndarray, iterated: np.ndarray) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    plot_signals({"BOLD": x, "fit at the minimum": fit}, sfreq=1 / TR, ax=above)
    above.set(xlabel="")
    activity = {"minimum": exact, f"LPGD-Taut, {SHOWN} layers": learned, f"APGD, {SHOWN} iterations": iterated}
    plot_signals(activity, sfreq=1 / TR, ax=below)
    return figure
