"""How much depends on the smoothing of the trend: joint learning against two steps over a grid of mu."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..trend import tv_threshold
from .setting import SFREQ, draw_eye, fit_eye, score_fit

SIZES = {"quick": (3, 5000, 40), "paper": (20, 10_000, 100)}
FACTORS = np.geomspace(0.05, 5, 7)  # of the threshold of the true nystagmus


def scan_smoothing(setting: tuple[int, int, int]) -> np.ndarray:
    """Scores of one recording, shape (2 methods, n_factors, 3 scores)."""
    seed, n_times, max_iter = setting
    data = draw_eye(seed, n_times, min_std=2.0)
    level = tv_threshold(float(np.ptp(data.nystagmus)) / 2, float(data.frequency[0]), SFREQ)
    return np.array(
        [
            [score_fit(data, fit_eye(data, factor * level, joint=joint, max_iter=max_iter)) for factor in FACTORS]
            for joint in (True, False)
        ]
    )


@experiment(paper="nystagmus", figure="In addition", title="How much depends on the smoothing of the trend")
def smoothing(scale: str, key: int, sweep: Any) -> Result:
    """Correlation and detrending error from a twentieth to five times the level that flattens the true nystagmus.

    Paper scale: about 4 CPU minutes (a part of the 11 that the README has for all four: 7 times the recordings, 5 times
    the work of each).
    """
    n_signals, n_times, max_iter = SIZES[scale]
    scores = np.array(sweep(scan_smoothing, [(key + i, n_times, max_iter) for i in range(n_signals)]))
    detrending = scores[..., 1]
    best = detrending.min(2)
    at_rule = detrending[:, 0, np.abs(np.log(FACTORS)).argmin()]
    below = FACTORS < 0.4
    ratio = (detrending[:, 0, below] / detrending[:, 1, below]).mean(1)
    claims = [
        Claim.at_most("detrending error below 0.4 of the level, joint over two steps", None, ratio, 0.95),
        Claim.at_most(
            "detrending error at the level over the smallest on the grid, joint", None, at_rule / best[:, 0], 2.0
        ),
        Claim.info("smallest detrending error on the grid, joint", None, best[:, 0]),
        Claim.info("smallest detrending error on the grid, two steps", None, best[:, 1]),
    ]
    caption = f"Median and range over {n_signals} recordings; the line is the level that flattens the true nystagmus."
    data = Data.simulated(f"the paper's simulation with its two slips corrected, {n_signals} recordings")
    return Result(claims, {"Smoothing": draw(scores)}, data, {"Smoothing": caption})


def draw(scores: np.ndarray) -> Any:
    """Correlation and detrending error over the grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = ("Correlation of the pattern", "Detrending error")
    for i, (ax, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for j, name in enumerate(("joint", "two steps")):
            values = scores[:, j, :, i]
            ax.fill_between(FACTORS, values.min(0), values.max(0), color=f"C{j}", alpha=0.15, linewidth=0)
            ax.plot(FACTORS, np.median(values, 0), "o-", color=f"C{j}", label=name)
        ax.axvline(1, color="0.5", linewidth=1)
        ax.set(xscale="log", xlabel="mu over the level of the true nystagmus", title=title)
        ax.set_ylim(0, 1 if i == 0 else min(float(scores[..., 1].max()), 1.5))
        ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure
