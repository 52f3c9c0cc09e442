"""Experiments of the paper, for `gyri-reproduce run pavi`."""

import jax
import numpy as np
from matplotlib.figure import Figure

from gyri.reproduce import Claim, Data, Result, experiment
from gyri.reproduce.registry import Sweep

from ..mean import shrunk_mean

TRUTH, N_SAMPLES, RIDGE = 0.5, 5, 1.0


def error_ratio(setting: tuple[int, int]) -> float:
    """Mean squared error of the shrunk mean over that of the plain one, for one seed and number of draws."""
    seed, n_draws = setting
    x = TRUTH + jax.random.normal(jax.random.key(seed), (N_SAMPLES, n_draws))
    shrunk, plain = (np.mean((np.asarray(shrunk_mean(x, ridge)) - TRUTH) ** 2) for ridge in (RIDGE, 0.0))
    return float(shrunk / plain)


@experiment(paper="pavi", figure="Figure 1", title="Shrinking lowers the squared error of a small mean")
def shrinkage(scale: str, key: int, sweep: Sweep) -> Result:
    """Simulate means of five unit-variance samples about 0.5, on five seeds."""
    n_draws = {"quick": 1_000, "paper": 100_000}[scale]
    ratios = sweep(error_ratio, [(key + i, n_draws) for i in range(5)])
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(ratios, "o")
    axes.set(xlabel="seed", ylabel="error ratio", ylim=(0, 1.2))
    axes.axhline(1, color="0.7")
    claims = [Claim.at_most("squared error over that of the mean", None, ratios, 1.0)]
    captions = {"ratio": "Squared error of the shrunk mean over that of the plain mean, one point a seed."}
    return Result(claims, {"ratio": figure}, Data.simulated("Gaussian samples"), captions)
