"""Figure 1: how much worse conditioned the synthesis form is than the analysis form."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

# Means of 30 draws of a k x k Gaussian operator, measured once by another program.
PUBLISHED = {5: 4.7, 10: 13.5, 20: 49.0, 50: 286.0, 100: 1071.0}


def ratio(setting: tuple[int, int, int]) -> float:
    """``||A L||^2 / ||A||^2`` of one draw: (seed, draw, k)."""
    seed, draw, k = setting
    A = np.random.default_rng([seed, draw, k]).standard_normal((k, k))
    total = np.cumsum(A[:, ::-1], 1)[:, ::-1]
    return float((np.linalg.norm(total, 2) / np.linalg.norm(A, 2)) ** 2)


@experiment(paper="tv", figure="Figure 1", title="The synthesis form's constant grows with the square of the length")
def conditioning(scale: str, key: int, sweep: Any) -> Result:
    """Draw Gaussian operators of each size and compare the mean ratio with the bound and the conjecture.

    Paper scale: about 10 CPU seconds (extrapolated from the quick run: 10 times the draws; the import stays).
    """
    from matplotlib.figure import Figure

    n_draws = {"quick": 30, "paper": 300}[scale]
    sizes = np.array(list(PUBLISHED))
    settings = [(key, draw, int(k)) for k in sizes for draw in range(n_draws)]
    ratios = np.array(sweep(ratio, settings)).reshape(sizes.size, n_draws)
    mean, error = ratios.mean(1), ratios.std(1, ddof=1) * np.sqrt(1 / n_draws + 1 / 30)
    slope = np.polyfit(np.log(sizes[1:]), np.log(mean[1:]), 1)[0]
    bound = (sizes + 0.5) / np.pi**2
    asymptotic = (2 * sizes + 1) ** 2 / (4 * np.pi**2)
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(sizes, ratios.min(1), ratios.max(1), color="C0", alpha=0.2, linewidth=0, label="range of the draws")
    ax.loglog(sizes, mean, "o-", label="mean of the draws")
    ax.loglog(sizes, bound, "--", color="0.4", label="bound of the paper")
    ax.loglog(
        sizes, 1 / (4 * np.sin(np.pi / (4 * sizes + 2)) ** 2) / 8, ":", color="C1", label="conjecture, ||L||^2 / 8"
    )
    ax.set(xlabel="k", ylabel="||AL||^2 / ||A||^2")
    ax.legend(frameon=False, fontsize="small")
    claims = [
        Claim.at_most(f"k = {k}: distance of the mean ratio from {PUBLISHED[int(k)]}, in standard errors", None, d, 3.0)
        for k, d in zip(sizes, np.abs(mean - list(PUBLISHED.values())) / error)
    ]
    claims += [
        Claim.between("log-log slope of the mean ratio, k = 10 to 100", 2, float(slope), 1.7, 2.1),
        Claim.at_least("mean ratio over the paper's bound, smallest of the sizes", 1, float((mean / bound).min()), 1.0),
        Claim.between("mean ratio over (2k+1)^2 / (4 pi^2), k = 100", None, float(mean[-1] / asymptotic[-1]), 0.9, 1.2),
    ]  # fmt: skip
    captions = {"ratio": f"Squared norm ratio, {n_draws} Gaussian operators of each size."}
    return Result(claims, {"ratio": figure}, Data.simulated("Gaussian operators"), captions)
