"""The toy model: the ridge, distances to the exact posterior and to the truth."""

from typing import Any

import jax
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..baselines import lfvi, rejection_abc
from ..estimator import HNPE
from ..metrics import dirac_distance, sinkhorn_divergence
from ..simulation import Simulations, simulate
from ..simulators import ToyModel
from .setting import N_SEEDS, draw, draw_curves, draw_scatter, first, fixed, train

QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]

# --- the ridge --------------------------------------------------------------------------------------------------------

# Ranges of the number of others, a network for each: (simulations, epochs, numbers shown of each range).
RIDGE: dict[str, Any] = {
    "quick": (6_000, 40, {(0, 10): (0, 1, 5, 10)}),
    "paper": (10_000, 200, {(0, 10): (0, 1, 5, 10), (10, 100): (25, 50, 100), (100, 500): (250, 500)}),
}


def ridge_of_seed(setting: tuple[str, int]) -> dict[int, dict[str, Any]]:
    """Draws at theta* = (0.5, 0.5) for each number of others, and what is asked of them."""
    scale, seed = setting
    n_simulations, epochs, ranges = RIDGE[scale]
    model, found = ToyModel(), {}
    most = max(high for _, high in ranges)
    sims = fixed(model, [0.5, 0.5], 1000 + seed, 1, most)
    for n_range, numbers in ranges.items():
        posterior = train(model, None, seed, n_simulations, n_range, epochs)
        for n in numbers:
            theta = draw(posterior, seed, first(sims, n))[0]
            exact = np.asarray(model.posterior_sample(seed, (20_000,), sims.x[0], sims.x_extra[0, :n]))
            errors = np.quantile(theta[:, 1], QUANTILES) - np.quantile(exact[:, 1], QUANTILES)
            found[n] = {
                "draws": theta,
                "residual": float(np.sqrt(np.mean((theta.prod(1) - sims.x[0, 0]) ** 2))),
                "quantiles": float(np.abs(errors).mean()),
                "sd": float(theta[:, 1].std() / exact[:, 1].std()),
            }
    return found


SHARP = "one network serves N = 0 to 10, and rounds off the exact posterior, which is sharp without noise"


@experiment(paper="hnpe", figure="Toy, ridge", title="The ridge collapses as recordings are added")
def ridge(scale: str, key: int, sweep: Any) -> Result:
    """Noise-free toy model at (0.5, 0.5); posteriors given more and more recordings.

    Paper scale: about 2 CPU hours (extrapolated from the quick run: 15 networks of 8 times the steps in place of 3, for
    up to 500 others in place of 10).
    """
    seeds = sweep(ridge_of_seed, [(scale, key + i) for i in range(N_SEEDS[scale])])
    numbers = list(seeds[0])
    last = numbers[-1]
    claims = [
        Claim.at_most(
            f"rms distance of draws to alpha beta = x, N = {last}", "on it", [s[last]["residual"] for s in seeds], 0.02
        ),
        Claim.at_most(
            f"error of five quantiles of beta, N = {last}",
            "exact",
            [s[last]["quantiles"] for s in seeds],
            0.03,
            note=SHARP,
        ),
        Claim.between(
            f"sd of beta over the exact one, N = {last}", "1", [s[last]["sd"] for s in seeds], 0.75, 1.33, note=SHARP
        ),
    ]
    beta = np.linspace(0.25, 1, 100)
    sets = {f"N = {n}": seeds[0][n]["draws"] for n in numbers}
    figure = draw_scatter(sets, ("alpha", "beta"), ((0, 1), (0, 1)), (0.25 / beta, beta), (0.5, 0.5))
    caption = "Draws of one seed; grey: the product that one recording tells; cross: the truth."
    return Result(claims, {"Ridge": figure}, Data.simulated("toy model without noise"), {"Ridge": caption})


# --- learned against exact --------------------------------------------------------------------------------------------

# Simulations, of the raw mean too; epochs, numbers of others, test draws.
EXACT: dict[str, Any] = {
    "quick": ((1_000, 6_000), (6_000,), 40, (1, 10), 4),
    "paper": ((1_000, 10_000, 50_000), (1_000, 10_000, 50_000), 200, (1, 50, 100), 30),
}


def divergence_of(setting: tuple[str, int, str, int]) -> np.ndarray:
    """Mean Sinkhorn divergence to the exact posterior for each N."""
    scale, seed, aggregate, n_simulations = setting
    _, _, epochs, numbers, n_tests = EXACT[scale]
    model, n_max = ToyModel(), numbers[-1]
    options = () if aggregate == "deepset" else (("aggregate", aggregate),)
    posterior = train(model, None, seed, n_simulations, (0, n_max), epochs, options)
    sims = simulate(999, model.prior, model, n_tests, n_max)
    rows = []
    for n in numbers:
        found = draw(posterior, seed, first(sims, n))
        exact = jax.vmap(lambda k, x, e: model.posterior_sample(k, (500,), x, e))(
            jax.random.split(jax.random.key(seed), n_tests), sims.x, sims.x_extra[:, :n]
        )
        rows.append(np.mean(jax.vmap(sinkhorn_divergence)(found, exact)))
    return np.array(rows)


@experiment(paper="hnpe", figure="Toy, exact posterior", title="Learned against exact posteriors")
def learned_vs_exact(scale: str, key: int, sweep: Any) -> Result:
    """Noise-free toy model; Sinkhorn divergence over draws from the prior, learned features against the raw mean.

    Paper scale: about 2 CPU hours (extrapolated from the quick run: 70 times the steps, up to 100 others in place of
    10).
    """
    sizes, mean_sizes, _, numbers, _ = EXACT[scale]
    n_max = numbers[-1]
    kinds = [("deepset", n) for n in sizes] + [("mean", n) for n in mean_sizes]
    rows = sweep(divergence_of, [(scale, key + i, *kind) for kind in kinds for i in range(N_SEEDS[scale])])
    found = dict(zip(kinds, np.array(rows).reshape(len(kinds), N_SEEDS[scale], len(numbers)), strict=True))
    most, least = found["deepset", sizes[-1]][:, -1], found["deepset", sizes[0]][:, -1]
    claims = [
        Claim.at_least(
            f"divergence at N = {n_max}: {sizes[0]} over {sizes[-1]} simulations", "decreases", least / most, 1.0
        ),
        Claim.at_least(
            f"divergence at N = {n_max}: raw mean over learned features",
            None,
            found["mean", sizes[-1]][:, -1] / most,
            1.5,
        ),
        Claim.info(f"divergence at N = {n_max}, {sizes[-1]} simulations", None, most),
    ]
    curves = {f"{'learned features' if a == 'deepset' else 'raw mean'}, {n}": (numbers, found[a, n]) for a, n in kinds}
    figure = draw_curves({"To the exact posterior": curves}, "N", "Sinkhorn divergence", yscale="log")
    caption = f"Mean over test draws; median and range over {N_SEEDS[scale]} networks; numbers of simulations."
    return Result(claims, {"Divergence": figure}, Data.simulated("toy model without noise"), {"Divergence": caption})


# --- distance to the truth --------------------------------------------------------------------------------------------

TRUTHS = [
    (0.5, 0.5),
    (0.25, 0.75),
    (0.75, 0.25),
    (0.75, 0.75),
    (0.25, 0.25),
    (0.9, 0.5),
    (0.5, 0.1),
    (0.1, 0.5),
    (0.5, 0.9),
]
MANY = tuple(int(n) for n in np.unique(np.logspace(0, 3, 20).astype(int)))
# Numbers of others, the peers' numbers and noises, truths, simulations a round, rounds, epochs,
# simulations of ABC, steps of the variational method.
DISTANCE: dict[str, dict[str, Any]] = {
    "quick": {
        "numbers": (1, 10), "truths": TRUTHS[:3], "n": 4_000, "rounds": 1, "epochs": 20, "abc": 20_000, "steps": 60,
        "noises": (0.0, 0.05), "naive": 10, "peers": (10,), "peer_noises": (0.0,),
    },
    "paper": {
        "numbers": MANY, "truths": TRUTHS, "n": 10_000, "rounds": 5, "epochs": 200, "abc": 50_000, "steps": 1_000,
        "noises": (0.0, 0.05), "naive": None, "peers": MANY, "peer_noises": (0.0, 0.05),
    },
}  # fmt: skip
METHODS = ("HNPE", "naive", "h-ABC", "LFVI")


def draws_of(method: str, model: ToyModel, sims: Simulations, n: int, seed: int, size: dict[str, Any]) -> Any:
    """500 draws or so by a method, for one observation with n others."""
    x, x_extra = sims.x[0], sims.x_extra[0, :n]
    if method == "h-ABC":
        return rejection_abc(seed, model.prior, model, x, x_extra, n_simulations=size["abc"])
    if method == "LFVI":
        return lfvi(seed, model.prior, model, x, x_extra, n_steps=size["steps"], n_samples=500).samples
    naive = method == "naive"
    options: dict[str, Any] = {"factorized": False, "aggregate": "stack", "n_layers": size["naive"]} if naive else {}
    if size["rounds"] == 1:
        n_extra = n if naive else (0, max(size["numbers"]))
        return draw(
            train(model, None, seed, size["n"], n_extra, size["epochs"], tuple(options.items())), seed, first(sims, n)
        )[0]
    posterior = HNPE(model.prior, seed=seed, **options).fit(
        seed, model, n_simulations=size["n"], n_rounds=size["rounds"], n_extra=n, x_o=x, x_extra_o=x_extra,
        max_epochs=size["epochs"], progress=False,
    )  # fmt: skip
    return posterior.sample(seed, (500,))


def distances_of(setting: tuple[str, int, str, float]) -> np.ndarray:
    """Medians over truths of the distance of both parameters, shape (n_numbers, 2)."""
    scale, seed, method, noise = setting
    size, model = DISTANCE[scale], ToyModel(noise=noise)
    rows = []
    for n in size["numbers" if method == "HNPE" else "peers"]:
        each = []
        for i, theta in enumerate(size["truths"]):
            sims = fixed(model, theta, 77 + 100 * seed + i, 1, max(size["numbers"]))
            each.append(dirac_distance(draws_of(method, model, sims, n, seed, size), np.asarray(theta)))
        rows.append(np.median(each, 0))
    return np.array(rows)


def exact_slope(key: int, n_seeds: int) -> np.ndarray:
    """Slope of log distance of beta over log N under the exact noise-free posterior, for each seed."""
    model, numbers, slopes = ToyModel(), np.array([30, 100, 300, 1000]), []
    for seed in range(n_seeds):
        sims = fixed(model, [0.5, 0.5], 5000 + key + seed, 40, 1000)
        values = []
        for n in numbers:
            exact = jax.vmap(lambda x, e, s=seed: model.posterior_sample(s, (500,), x, e))(sims.x, sims.x_extra[:, :n])
            values.append(np.median(exact[..., 1].var(1) + (exact[..., 1].mean(1) - 0.5) ** 2))
        slopes.append(np.polyfit(np.log(numbers), np.log(values), 1)[0])
    return np.array(slopes)


@experiment(
    paper="hnpe", figure="Toy, distance to the truth", title="Distance to the truth against the number of recordings"
)
def distance_to_truth(scale: str, key: int, sweep: Any) -> Result:
    """Toy model with and without noise; HNPE, the naive network, rejection ABC, variational inference.

    Paper scale: about 40 CPU days (guessed from ridge: 1,600 sequential fits of 5 rounds, for 18 numbers of others up
    to 1,000 and 9 truths, and as many of each peer).
    """
    size = DISTANCE[scale]
    numbers = size["numbers"]
    kinds = [(m, noise) for noise in size["noises"] for m in METHODS if m == "HNPE" or noise in size["peer_noises"]]
    rows = sweep(distances_of, [(scale, key + i, m, noise) for m, noise in kinds for i in range(N_SEEDS[scale])])
    n_seeds = N_SEEDS[scale]
    found = {kind: np.array(rows[i * n_seeds : (i + 1) * n_seeds]) for i, kind in enumerate(kinds)}
    clean, noisy = (found["HNPE", noise] for noise in size["noises"])
    last, falls = numbers[-1], lambda rows: rows[:, -1, 1] / rows[:, 0, 1]
    slope = "exact posterior, no noise: slope of log distance of beta over log N"
    claims = [
        Claim.at_most(f"HNPE, no noise: distance of beta, N = {last} over 1", "decreases", falls(clean), 0.7),
        Claim.at_most(f"HNPE, noise 0.05: distance of beta, N = {last} over 1", "decreases", falls(noisy), 0.9),
        Claim.between(slope, "-2", exact_slope(key, n_seeds), -2.4, -1.6),
        *(
            Claim.info(f"no noise: distance of beta at N = {numbers[-1]}, {m} over HNPE", "above 1",
                       found[m, 0.0][:, -1, 1] / clean[:, -1, 1])
            for m in METHODS[1:]
        ),
    ]  # fmt: skip
    panels = {
        f"{name}, noise {noise:g}": {
            m: (numbers if m == "HNPE" else size["peers"], found[m, noise][..., i])
            for m in METHODS
            if (m, noise) in found
        }
        for noise in size["noises"]
        for i, name in enumerate(("alpha", "beta"))
    }
    figure = draw_curves(panels, "N", "distance to the truth", xscale="log", yscale="log")
    caption = f"Variance plus squared error, median over truths; median and range over {n_seeds} seeds."
    if scale == "quick":
        caption += f" The peers at N = {last} without noise only."
    return Result(claims, {"Distance": figure}, Data.simulated("toy model"), {"Distance": caption})
