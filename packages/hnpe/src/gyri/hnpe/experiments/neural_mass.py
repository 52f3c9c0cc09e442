"""The Jansen-Rit model: recordings that share the gain of the amplifier."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..jansen_rit import JansenRit
from ..metrics import dirac_distance
from ..plot import pairplot
from ..simulation import Simulations, simulate
from ..summaries import log_psd
from .setting import N_SEEDS, draw, draw_curves, first, fixed, train

NAMES = ("C", "mu", "sigma", "gain")
NOMINAL = (135.0, 220.0, 2000.0, 0.0)
# Short recordings at quick scale; simulations, epochs, largest number of others, test draws, simulations that they are
# the first of: more than a batch, so that the program of the training set serves them.
MODELS = {"quick": JansenRit(duration=2.0, burn_in=1.0), "paper": JansenRit()}
SIZES: dict[str, dict[str, Any]] = {
    "quick": {"n": 2_000, "epochs": 40, "most": 4, "numbers": (0, 1, 2, 4), "tests": 49, "drawn": 300},
    "paper": {"n": 50_000, "epochs": 200, "most": 40, "numbers": (0, 10, 20, 30, 40), "tests": 100, "drawn": 100},
}
MAF = (("density_estimator", "maf"),)


@lru_cache(maxsize=4)
def tests_of(scale: str, key: int, n_drawn: int, most: int) -> Simulations:
    """Draws from the prior that all networks are tested with."""
    return simulate(key, MODELS[scale].prior, MODELS[scale], n_drawn, most, summary=log_psd)


def posterior_of(scale: str, seed: int) -> Any:
    """Amortised over the number of others."""
    size = SIZES[scale]
    return train(MODELS[scale], log_psd, seed, size["n"], (0, size["most"]), size["epochs"], MAF)


# --- simulated recordings ---------------------------------------------------------------------------------------------


def widths_of(setting: tuple[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median posterior sd of each parameter and correlation of the gain's mean with the truth, for each N; draws."""
    scale, seed = setting
    size, model = SIZES[scale], MODELS[scale]
    posterior = posterior_of(scale, seed)
    sims = tests_of(scale, 555, size["drawn"], size["most"])
    truth = fixed(model, NOMINAL, 600 + seed, 1, size["most"], log_psd)
    sims = jax.tree.map(lambda s, t: jnp.concatenate([s[: size["tests"]], t]), sims, truth)  # drawn from in one call
    sd, correlation, draws = [], [], []
    for n in size["numbers"]:
        theta = draw(posterior, seed, first(sims, n))
        sd.append(np.median(theta[:-1].std(1), 0))
        correlation.append(np.corrcoef(theta[:-1, :, 3].mean(1), np.asarray(sims.theta[:-1, 3]))[0, 1])
        draws.append(theta[-1])
    return np.array(sd), np.array(correlation), np.array(draws)


@experiment(paper="hnpe", figure="Jansen-Rit", title="Jansen-Rit: the gain is known better with every recording")
def jansen_rit(scale: str, key: int, sweep: Any) -> Result:
    """Amortised posteriors given 0 and more other recordings of the same gain.

    Paper scale: about 2 CPU hours (extrapolated from the quick run: 200 times the steps; half of it is the simulation
    of 40 others of 8 s).
    """
    sd, correlation, draws = zip(*sweep(widths_of, [(scale, key + i) for i in range(N_SEEDS[scale])]), strict=True)
    widths, numbers = np.array(sd), SIZES[scale]["numbers"]
    gain = widths[..., 3]
    others = (widths[:, -1, :3] / widths[:, 0, :3]).mean(1)
    claims = [
        Claim.at_most(f"posterior sd of the gain, N = {numbers[-1]} over 0", "shrinks", gain[:, -1] / gain[:, 0], 0.6),
        Claim.at_most(f"mean sd of C, mu, sigma, N = {numbers[-1]} over 0", "shrinks", others, 1.0),
        Claim.at_least(f"correlation of the gain's mean with the truth, N = {numbers[-1]}", None,
                       [c[-1] for c in correlation], 0.98),
        Claim.info("posterior sd of the gain, N = 0", None, gain[:, 0], unit="dB"),
        Claim.info(f"posterior sd of the gain, N = {numbers[-1]}", None, gain[:, -1], unit="dB"),
    ]  # fmt: skip
    sets = {f"N = {n}": draws[0][i] for i, n in enumerate(numbers) if n in (numbers[0], numbers[-1])}
    prior = MODELS[scale].prior
    pairs, _ = pairplot(sets, NAMES, list(zip(*prior.bounds, strict=True)), np.array(NOMINAL))
    curves = {name: {"posterior sd": (numbers, widths[..., i])} for i, name in enumerate(NAMES)}
    captions = {
        "Pairs": "Draws at the nominal parameters, one seed.",
        "Widths": f"Median over test draws of the prior; median and range over {N_SEEDS[scale]} networks.",
    }
    figures = {"Pairs": pairs, "Widths": draw_curves(curves, "N", "posterior sd")}
    return Result(claims, figures, Data.simulated("Jansen-Rit model"), captions)


# --- ablation ---------------------------------------------------------------------------------------------------------

VARIANTS = {
    "naive": (("factorized", False), ("aggregate", "stack"), *MAF),
    "aggregated": (("factorized", False), ("aggregate", "mean"), *MAF),
    "HNPE": (("aggregate", "mean"), *MAF),
}
ABLATION = {"quick": (1_000, 30, (0, 4), 50, 300), "paper": (50_000, 200, (0, 10, 20, 30, 40), 100, 100)}
PAPER = {"naive": (0.787, 0.629), "aggregated": (0.793, 0.465), "HNPE": (0.723, 0.392)}


def ablation_of(setting: tuple[str, int, str]) -> np.ndarray:
    """Distance to the truth over the posterior's sd, for each N, test draw and parameter."""
    scale, seed, variant = setting
    n_simulations, epochs, numbers, n_tests, n_drawn = ABLATION[scale]
    model = MODELS[scale]
    sims = jax.tree.map(lambda leaf: leaf[:n_tests], tests_of(scale, 777, n_drawn, max(numbers)))
    rows = []
    for n in numbers:  # each number of others has a network of its own, as in the paper
        options = VARIANTS["aggregated" if n == 0 and variant == "naive" else variant]  # the same network
        posterior = train(model, log_psd, seed, n_simulations, n, epochs, options)
        draws = draw(posterior, seed, first(sims, n))
        rows.append([dirac_distance(d, t, normalize=True) for d, t in zip(draws, np.asarray(sims.theta), strict=True)])
    return np.array(rows)


@experiment(paper="hnpe", figure="Jansen-Rit ablation", title="Jansen-Rit: ablation of factors and aggregation")
def ablation(scale: str, key: int, sweep: Any) -> Result:
    """Networks of fixed N on one round of simulations; distances in units of their spread over methods and draws.

    Paper scale: about 10 CPU hours (extrapolated from the quick run: 70 networks in place of 15, each 170 times the
    steps and up to 400 times the simulations).
    """
    numbers = ABLATION[scale][2]
    rows = sweep(ablation_of, [(scale, key + i, v) for v in VARIANTS for i in range(N_SEEDS[scale])])
    values = np.array(rows).reshape(len(VARIANTS), N_SEEDS[scale], len(numbers), -1, 4)
    unit = values.std(axis=(0, 2, 3), keepdims=True)
    scores = np.median(values / unit, axis=3).mean(-1)  # (variants, seeds, numbers)
    claims = []
    for i, name in enumerate(VARIANTS):
        for j, (n, paper) in enumerate(zip((numbers[0], numbers[-1]), PAPER[name], strict=True)):
            claims.append(
                Claim.info(f"{name}, N = {n}" + ("" if n in (0, 40) else " (paper: 40)"), paper, scores[i, :, -j])
            )
    ratio = scores[2, :, -1] / scores[2, :, 0]
    bound = {"quick": 0.9, "paper": 0.65}[scale]  # four others of 2 s tell less than forty of 8 s
    claims.append(Claim.at_most(f"HNPE: distance at N = {numbers[-1]} over N = 0", 0.54, ratio, bound))
    best = scores[2, :, -1] / np.minimum(scores[0, :, -1], scores[1, :, -1])
    claims.append(Claim.info(f"HNPE over the better of the others, N = {numbers[-1]}", 0.84, best))
    curves = {name: (numbers, scores[i]) for i, name in enumerate(VARIANTS)}
    figure = draw_curves({"Ablation": curves}, "N", "normalised distance to the truth")
    caption = f"Median over test draws, mean over parameters; median and range over {N_SEEDS[scale]} seeds."
    return Result(claims, {"Ablation": figure}, Data.simulated("Jansen-Rit model"), {"Ablation": caption})


# --- sensitivity ------------------------------------------------------------------------------------------------------

STUDY = [
    (135, 220, 2000, 0), (135, 220, 2000, -10), (135, 220, 2000, 10), (270, 220, 2000, 0), (270, 220, 2000, 10),
    (68, 220, 2000, 0), (68, 220, 2000, 10), (135, 110, 2000, 0), (135, 110, 1000, 0), (135, 220, 1000, 0),
]  # fmt: skip


def sensitivity_of(setting: tuple[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of the posterior of each parameter at each point of the study with the most others."""
    scale, seed = setting
    model, most = MODELS[scale], SIZES[scale]["most"]
    posterior, rows = posterior_of(scale, seed), []
    for i, theta in enumerate(STUDY):
        draws = draw(posterior, seed, fixed(model, theta, 900 + 50 * seed + i, 1, most, log_psd))[0]
        rows.append((draws.mean(0), draws.std(0)))
    means, sds = zip(*rows, strict=True)
    return np.array(means), np.array(sds)


@experiment(paper="hnpe", figure="Jansen-Rit sensitivity", title="Jansen-Rit: sensitivity to each parameter")
def sensitivity(scale: str, key: int, sweep: Any) -> Result:
    """Posteriors at ten points; two have C = 270, outside the prior: there the posterior has to press to the end.

    Paper scale: about 2 CPU hours (extrapolated from the quick run: 200 times the steps; half of it is the simulation
    of 40 others of 8 s).
    """
    means, sds = (
        np.array(v) for v in zip(*sweep(sensitivity_of, [(scale, key + i) for i in range(N_SEEDS[scale])]), strict=True)
    )
    truth = np.array(STUDY, float)
    inside = truth[:, 0] <= 250
    gain_error = np.median(np.abs(means[:, inside, 3] - truth[inside, 3]), axis=1)
    z = np.abs(means - truth)[:, inside] / sds[:, inside]
    claims = [
        Claim.at_most("median error of the gain's mean", "small", gain_error, 2.5, unit="dB"),
        Claim.at_least(
            "change of the gain's mean from -10 to 10 dB", 20.0, means[:, 2, 3] - means[:, 1, 3], 15.0, unit="dB"
        ),
        Claim.at_most("median of |error| / sd, all parameters", "about 0.67", np.median(z, axis=(1, 2)), 1.3),
        Claim.at_least("posterior mean of C at C = 68 over 135, below 1", None, means[:, 0, 0] / means[:, 5, 0], 1.0),
    ]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    for i, ax in enumerate(figure.subplots(1, 4)):
        ax.errorbar(truth[:, i] + 0 * means[0, :, i], means[0, :, i], sds[0, :, i], fmt="o", markersize=4)
        ends = [truth[:, i].min(), truth[:, i].max()]
        ax.plot(ends, ends, color="0.7", linestyle=":")
        ax.set(xlabel=f"true {NAMES[i]}", ylabel="posterior mean and sd" if i == 0 else "")
        ax.spines[["top", "right"]].set_visible(False)
    caption = {"Sensitivity": "Posterior mean and sd at the ten points of the study, one seed."}
    return Result(claims, {"Sensitivity": figure}, Data.simulated("Jansen-Rit model"), caption)
