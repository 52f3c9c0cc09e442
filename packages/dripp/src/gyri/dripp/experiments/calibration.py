"""Ours, in addition: calibration of intervals and tests; ends of the recording, grids, kernels of the wrong shape."""

from typing import Any

import jax
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..inference import goodness_of_fit, likelihood_ratio_test, standard_errors, wald_intervals
from ..lags import stack
from ..model import Params
from ..optim import em
from ..simulation import simulate
from .setting import LOWER, NAMES, TRUTH, UPPER, Recording, fit_groups, record, relative

FIT: dict[str, Any] = {"init": "smart_start"}  # one start is enough for kernels as wide as here
FIELDS = ("baseline", "alpha", "m", "sigma")
ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0)
SIGMAS = (0.01, 0.05, 0.2)
WINDOW: dict[str, Any] = {"lower": LOWER, "upper": UPPER}


def covered(estimates: Params, errors: Params, truth: Params) -> np.ndarray:
    """Whether the 95 % Wald interval of each parameter holds the truth.

    Parameters
    ----------
    estimates, errors : Params
        Leading axis: simulations.
    truth : Params
        Of one atom.

    Returns
    -------
    np.ndarray, shape (n_simulations, 1 + 3 * n_drivers)
        1 or 0, NaN where there is no interval.
    """
    columns = []
    for field, ends in wald_intervals(estimates, errors).items():
        true = np.asarray(getattr(truth, field), np.float64)
        inside = (ends[..., 0] <= true) & (true <= ends[..., 1])
        inside = np.where(np.isnan(ends).any(-1), np.nan, inside)
        columns.append(inside.reshape(len(ends), -1))
    return np.concatenate(columns, 1)


def _part(params: Params, start: int, n: int) -> Params:
    """Estimates of `n` fits of a batch."""
    return Params(*(leaf[start : start + n] for leaf in params))


def cover_common(seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of all parameters, and the p-values of the true model, on recordings of the paper's setting, T = 3000 s.

    Parameters
    ----------
    seeds : list of int
        One recording each.

    Returns
    -------
    (np.ndarray, shape (n_seeds, 7), np.ndarray, shape (n_seeds, 2))
        Coverage; p-values of the true parameters and of a homogeneous process.
    """
    with jax.enable_x64(True):
        recordings = [record([seed, 20], 3000.0) for seed in seeds]
        table = stack([recording.table() for recording in recordings])
        params = em(table, **FIT).params
        inside = covered(params, standard_errors(params, table), TRUTH)
        pvalues = []
        for recording in recordings:
            flat = Params(recording.events.size / recording.t_stop, np.zeros(2), TRUTH.m, TRUTH.sigma)
            pvalues.append(
                [
                    goodness_of_fit(
                        recording.events, recording.drivers, params, t_stop=recording.t_stop, **WINDOW
                    ).pvalue
                    for params in (TRUTH, flat)
                ]
            )
    return inside, np.array(pvalues)


def cover_effects(seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of alpha and coverage over strengths and widths of one driver's effect, T = 1000 s.

    Parameters
    ----------
    seeds : list of int
        One recording each in every cell.

    Returns
    -------
    (np.ndarray, shape (n_alphas, n_sigmas, n_seeds), np.ndarray, shape (n_alphas, n_sigmas, n_seeds, 4))
        Estimates of alpha, and coverage of the four parameters.
    """
    truths = [Params(0.8, np.array([a]), np.array([0.4]), np.array([s])) for a in ALPHAS for s in SIGMAS]
    with jax.enable_x64(True):
        tables = [
            record([seed, 21, i], 1000.0, truth=truth, intervals=(1.0,)).table()
            for i, truth in enumerate(truths)
            for seed in seeds
        ]
        table = stack(tables)
        params = em(table, **FIT).params
        errors = standard_errors(params, table)
    params, errors = (Params(*(np.asarray(leaf) for leaf in values)) for values in (params, errors))
    n = len(seeds)
    inside = [covered(_part(params, i * n, n), _part(errors, i * n, n), truth) for i, truth in enumerate(truths)]
    shape = (len(ALPHAS), len(SIGMAS), n)
    return params.alpha[:, 0].reshape(shape), np.stack(inside).reshape(*shape, 4)


@experiment(
    paper="dripp", figure="In addition", title="95 % intervals cover, and the true model passes its goodness of fit"
)
def coverage(scale: str, key: int, sweep: Any) -> Result:
    """Wald intervals, in the paper's synthetic setting and over strengths and widths of an effect.

    Events are exact; a recording has 3000 s with 60 % of the stimuli (1000 s and one driver for the effects).
    Intervals of baseline, alpha and sigma are on the log scale. Goodness of fit: p-values of the true parameters
    have to be uniform.

    Paper scale: about 5 CPU minutes (extrapolated from the quick run: 8 to 10 times the recordings).
    """
    n, n_effects = (40, 12) if scale == "quick" else (400, 100)
    chunk = 20 if scale == "quick" else 50
    parts = sweep(cover_common, [list(range(key + i, key + i + chunk)) for i in range(0, n, chunk)])
    inside, pvalues = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    n_chunk = min(n_effects, 25)
    parts = sweep(cover_effects, [list(range(key + i, key + i + n_chunk)) for i in range(0, n_effects, n_chunk)])
    alpha, cover = (np.concatenate(columns, 2) for columns in zip(*parts, strict=True))

    from scipy.stats import kstest

    pooled = f"7 parameters, {n} simulations"
    claims = [Claim.between(f"coverage of 95 % intervals, {pooled}", None, np.nanmean(inside), 0.92, 0.98)]
    names = ["baseline"] + [f"{field} ({name})" for field in FIELDS[1:] for name in NAMES]
    for name, values in zip(names, inside.T, strict=True):
        measured, quantity = np.nanmean(values), f"coverage, {name}"
        if scale == "paper":
            claims.append(Claim.between(quantity, None, measured, 0.92, 0.98))
        else:
            claims.append(Claim.info(quantity, None, measured, note=f"standard error {np.sqrt(0.05 * 0.95 / n):.2f}"))
    uniform = kstest(pvalues[:, 0], "uniform").pvalue
    claims += [
        Claim.at_least("p-values of the true model are uniform: Kolmogorov-Smirnov p", None, uniform, 0.01),
        Claim.at_most("goodness of fit without drivers: p-value", None, pvalues[:, 1], 0.01),
        Claim.between("coverage at alpha >= 0.2, all widths", None, np.nanmean(cover[2:]), 0.92, 0.98),
        Claim.info("coverage at alpha = 0.1, all widths", None, np.nanmean(cover[1]), note="about 60 triggered events"),
    ]
    for a in (2, 3, 4):
        bias = np.abs(np.median(alpha[a], axis=1) - ALPHAS[a]).max()
        quantity = f"error of the median estimate of alpha = {ALPHAS[a]:g}, largest of the widths"
        claims.append(Claim.at_most(quantity, None, bias, 0.05))
    claims.append(Claim.info("alpha = 0: part of the estimates below 0.05", None, (alpha[0] < 0.05).mean()))
    figures = {
        "Coverage and error": _draw_coverage(alpha, cover),
        "Goodness of fit": _draw_pvalues(pvalues[:, 0]),
    }
    captions = {
        "Coverage and error": "Estimates of alpha (median, range), and coverage of the 95 % intervals.",
        "Goodness of fit": "p-values of the true model, sorted: on the diagonal if they are uniform.",
    }
    return Result(claims, figures, Data.simulated(f"{n} recordings of 3000 s, {alpha.size} of 1000 s"), captions)


def _draw_coverage(alpha: np.ndarray, cover: np.ndarray) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for s, sigma in enumerate(SIGMAS):
        shift = 0.016 * (s - 1)
        median = np.median(alpha[:, s], axis=1)
        spread = np.abs(np.stack([alpha[:, s].min(1), alpha[:, s].max(1)]) - median)
        label = f"sigma = {1e3 * sigma:g} ms"
        left.errorbar(np.array(ALPHAS) + shift, median, spread, fmt="o", capsize=3, label=label)
        measured = np.nanmean(cover[1:, s], axis=(1, 2))
        spread = np.sqrt(measured * (1 - measured) / np.isfinite(cover[1:, s]).sum((1, 2)))
        right.errorbar(np.array(ALPHAS[1:]) + shift, measured, spread, fmt="o-", capsize=3, label=label)
    left.axline((0, 0), slope=1, color="0.5", linestyle="--", linewidth=1, label="truth")
    left.set(xlabel="True alpha", ylabel="Estimated alpha (median, range)")
    right.axhline(0.95, color="0.5", linestyle="--", linewidth=1, label="95 %")
    right.set(xlabel="True alpha", ylabel="Coverage (mean, standard error)", ylim=(0.7, 1.01))
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize="small")
    right.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def _draw_pvalues(pvalues: np.ndarray) -> Any:
    from matplotlib.figure import Figure

    from ..plot import plot_qq

    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    ax = figure.subplots()
    plot_qq(np.sort(pvalues), ax=ax)
    ax.set(xlabel="Quantiles, uniform", ylabel="p-values of the true model, sorted")
    legend = ax.get_legend()
    if legend is not None:
        legend.remove()
    return figure


def run_tests(item: tuple[list[int], float, int]) -> np.ndarray:
    """P-values of the likelihood-ratio test of one driver.

    Parameters
    ----------
    item : (seeds, alpha, number of resamples)
        One recording of 240 s a seed, on a 150 Hz grid.

    Returns
    -------
    np.ndarray, shape (n_seeds,)
        P-values.
    """
    seeds, alpha, n_resamples = item
    truth = Params(0.8, np.array([alpha]), np.array([0.3]), np.array([0.03]))
    pvalues = []
    with jax.enable_x64(True):
        for seed in seeds:
            recording = record([seed, 30, round(100 * alpha)], 240.0, truth=truth, intervals=(1.0,)).round(150.0)
            test = likelihood_ratio_test(
                recording.events,
                recording.drivers,
                t_stop=240.0,
                sfreq=150.0,
                n_resamples=n_resamples,
                key=seed,
                **WINDOW,
                **FIT,
            )
            pvalues.append(test.pvalue[0])
    return np.array(pvalues)


@experiment(paper="dripp", figure="In addition", title="The test of a driver keeps its level and finds weak effects")
def significance(scale: str, key: int, sweep: Any) -> Result:
    """Likelihood-ratio test with circular shifts: recordings of 240 s and 140 stimuli, with and without an effect.

    A test at the level of 5 % has to reject 5 % of the recordings without an effect. With B shifts a p-value is a
    multiple of 1 / (B + 1), so that the level is exact with B = 19 already; more shifts add power.

    Paper scale: about 30 CPU minutes (extrapolated from the quick run: 10 times the recordings, 10 times the shifts in
    batches).
    """
    n_null, n_power, n_resamples, chunk = (40, 10, 19, 20) if scale == "quick" else (400, 100, 199, 25)
    alphas = (0.0, 0.05, 0.1, 0.2, 0.4)
    items = []
    for alpha in alphas:
        n = n_power if alpha else n_null
        items += [(list(range(key + i, key + min(i + chunk, n))), alpha, n_resamples) for i in range(0, n, chunk)]
    pvalues: dict[float, list[np.ndarray]] = {alpha: [] for alpha in alphas}
    for (_, alpha, _), values in zip(items, sweep(run_tests, items), strict=True):
        pvalues[alpha].append(values)
    rejected = np.array([(np.concatenate(values) <= 0.05 + 1e-9).mean() for values in pvalues.values()])

    error = np.sqrt(0.05 * 0.95 / n_null)
    low, high = (0.03, 0.07) if scale == "paper" else (max(0.0, 0.05 - 2 * error), 0.05 + 2 * error)
    note = f"{n_null} recordings: two standard errors are {2 * error:.3f}"
    claims = [Claim.between("size of the test at 5 %", None, rejected[0], low, high, note=note)]
    for alpha, power in zip(alphas[1:], rejected[1:], strict=True):
        claims.append(Claim.info(f"power at alpha = {alpha:g}", None, power))
    claims.append(Claim.at_least("power at alpha = 0.4, about 56 triggered events", None, rejected[-1], 0.95))
    figure = _draw_power(alphas, rejected, [n_null] + [n_power] * (len(alphas) - 1))
    caption = "Part of the recordings in which the test rejects at 5 %, with standard errors."
    data = Data.simulated(f"recordings of 240 s, {n_resamples} shifts each")
    return Result(claims, {"Power": figure}, data, {"Power": caption})


def _draw_power(alphas: Any, rejected: np.ndarray, counts: list[int]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    error = np.sqrt(rejected * (1 - rejected) / counts)
    ax.errorbar(alphas, rejected, error, fmt="o-", capsize=3, color="C0", label="likelihood-ratio test, shifts")
    ax.axhline(0.05, color="0.5", linestyle="--", linewidth=1, label="level, 5 %")
    ax.set(xlabel="True alpha (events per stimulus)", ylabel="Part rejected", ylim=(-0.02, 1.05))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="center right")
    return figure


SHORT = Params(0.585, np.array([1.16]), np.array([0.61]), np.array([0.3]))
SHORT_WINDOW: dict[str, Any] = {"lower": 0.0, "upper": 1.7}


def short_recording(seed: int) -> Recording:
    """Simulate a minute with 139 stimuli at any time, 13 of them in the last window: ends matter."""
    rng = np.random.default_rng([seed, 40])
    late = rng.uniform(60 - 1.7, 60, 13)
    driver = np.sort(np.concatenate([rng.uniform(0, 60 - 1.7, 126), late]))
    events: Any = simulate(int(rng.integers(2**31)), driver, SHORT, t_stop=60.0, **SHORT_WINDOW)
    return Recording(events, [driver], 60.0)


def fit_robustness(seeds: list[int]) -> dict[str, Params]:
    """Fit what tells how robust estimates are, by seed: ends, grid, kernels.

    Parameters
    ----------
    seeds : list of int
        One recording each.

    Returns
    -------
    dict of Params
        Estimates with a leading axis over the seeds.
    """
    with jax.enable_x64(True):
        short = [short_recording(seed) for seed in seeds]
        tables = [[one.table(edge=edge, **SHORT_WINDOW) for one in short] for edge in (True, False)]
        names = ["ends corrected", "ends ignored"]
        fits = [fit.params for fit in fit_groups(tables, **FIT)]
        same = [record([seed, 41], 300.0) for seed in seeds]
        cosine_truth = TRUTH._replace(sigma=np.array([0.14, 0.35]))
        cosine = [record([seed, 42], 300.0, truth=cosine_truth, kernel="raised_cosine") for seed in seeds]
        groups = [
            [one.table() for one in same],
            [one.round(150.0).table(sfreq=150.0) for one in same],
            [one.table() for one in cosine],
        ]
        names += ["exact", "grid", "gaussian of cosine"]
        fits += [fit.params for fit in fit_groups(groups, **FIT)]
        names += ["cosine of gaussian", "cosine of cosine"]
        fits += [fit.params for fit in fit_groups([groups[0], groups[2]], kernel="raised_cosine", **FIT)]
    return dict(zip(names, fits, strict=True))


@experiment(paper="dripp", figure="In addition", title="Ends of the recording, sampling grids and wrong kernels")
def robustness(scale: str, key: int, sweep: Any) -> Result:
    """Show what the paper leaves open: windows cut by the end, times rounded to 150 Hz, kernels of another shape.

    Ends: a minute with 139 stimuli at random, 13 in the last 1.7 s window (baseline 0.585, alpha 1.16, m 0.61 s);
    counting each as seen whole is biased. Grid: the same events, exact and rounded to 150 Hz. Kernels: raised
    cosines fitted by a Gaussian, and the other way round; alpha and the latency are what one reads from a fit.
    These are recordings of 300 s.

    Paper scale: about 5 CPU minutes (extrapolated from the quick run: 17 times the recordings; compilation stays).
    """
    n_seeds, chunk = (12, 12) if scale == "quick" else (200, 50)
    parts = sweep(fit_robustness, [list(range(key + i, key + i + chunk)) for i in range(0, n_seeds, chunk)])
    fits = {
        name: Params(*(np.concatenate(leaves) for leaves in zip(*(part[name] for part in parts), strict=True)))
        for name in parts[0]
    }
    claims = []
    examples = {"baseline": (0.585, 1.34), "alpha": (1.16, 0.80), "m": (0.61, 0.40)}
    for field, (true, biased) in examples.items():
        for name, paper in (("ends corrected", true), ("ends ignored", f"{biased} on one draw")):
            values = np.ravel(getattr(fits[name], field))
            quantity = f"{field}, {name}, truth {true}"
            if name == "ends corrected":
                error = 1.253 * values.std(ddof=1) / np.sqrt(n_seeds)
                note = "within three standard errors of the median"
                claims.append(Claim.close(quantity, paper, values, atol=3 * error, note=note))
            else:
                claims.append(Claim.info(quantity, paper, values))
    exact, grid = fits["exact"], fits["grid"]
    for field in FIELDS:
        difference = relative(*(np.reshape(getattr(fit, field), (n_seeds, -1)) for fit in (grid, exact)))
        # A kernel of 50 ms on samples of 7 ms: rounding adds 0.07 % to its variance.
        claims.append(
            Claim.at_most(f"{field}, 150 Hz grid and exact times: relative difference", None, difference, 0.02)
        )
    for name, words in (
        ("gaussian of cosine", "raised cosines fitted by a Gaussian"),
        ("cosine of gaussian", "the reverse"),
    ):
        for field, true in (("alpha", 0.8), ("m", 0.4)):
            error = np.abs(np.median(getattr(fits[name], field), axis=0) / true - 1).max()
            quantity = f"{field}, {words}: relative error of the median, larger of the drivers"
            claims.append(Claim.at_most(quantity, None, error, 0.1))
    figure = _draw_robustness(fits)
    captions = {
        "Robustness": "Estimates of each seed; dashed: truth. Left: one driver. Right: both drivers, sharp and wide."
    }
    return Result(claims, {"Robustness": figure}, Data.simulated(f"{n_seeds} seeds"), captions)


def _draw_robustness(fits: dict[str, Params]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rng = np.random.default_rng(0)
    for i, name in enumerate(("ends corrected", "ends ignored")):
        for j, (field, true) in enumerate((("baseline", 0.585), ("alpha", 1.16), ("m", 0.61))):
            values = np.ravel(getattr(fits[name], field))
            place = j + 0.3 * (i - 0.5) + rng.uniform(-0.06, 0.06, values.size)
            left.plot(place, values, ".", color=f"C{i}", alpha=0.7, label=name if j == 0 else None)
            left.hlines(true, j - 0.35, j + 0.35, color="0.3", linestyle="--", linewidth=1)
    left.set_xticks(range(3), ["baseline (1/s)", "alpha", "m (s)"])
    left.set(ylabel="Estimate", title="Ends of a short recording")
    left.set_ylim(0, 1.15 * left.get_ylim()[1])
    kinds = ("exact", "grid", "gaussian of cosine", "cosine of gaussian", "cosine of cosine")
    for i, name in enumerate(kinds):
        for p, kernel in enumerate(NAMES):
            values = fits[name].alpha[:, p]
            place = i + 0.3 * (p - 0.5) + rng.uniform(-0.06, 0.06, values.size)
            right.plot(place, values, ".", color=f"C{p + 2}", alpha=0.7, label=f"{kernel} kernel" if i == 0 else None)
    right.axhline(0.8, color="0.3", linestyle="--", linewidth=1)
    ticks = ["exact", "150 Hz\ngrid", "Gaussian fit\nof cosine", "cosine fit\nof Gaussian", "cosine fit\nof cosine"]
    right.set_xticks(range(len(kinds)), ticks, fontsize="small")
    right.set(ylabel="Estimate of alpha", title="Grid and shape of the kernel")
    right.set_ylim(top=right.get_ylim()[1] + 0.12)  # room for the legend
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small")
    return figure
