"""Figure 3: errors of the three gradient estimates along the iterations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import unit_rows
from ..gradients import dictionary_gradient
from ..image import centre_patches, extract_patches
from .setting import LAM, new_figure, photograph, recipe

DEPTHS = {"quick": (5, 20, 100, 500), "paper": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)}
ESTIMATES = {"g1": ("g1", None), "g2, 20": ("g2", 20), "g2": ("g2", None), "g3": ("g3", None)}
N_SEEDS = {"quick": 3, "paper": 10}
EXACT = {"recipe": 3000, "patches": 1500}  # iterations of the reference, in the quick scale; ten times as many else
# Measured with an independent implementation on one draw, double precision.
TABLE = {20: (0.0757, 0.0596), 100: (5.1e-3, 3.3e-3), 500: (1.7e-4, 4.0e-5)}


def errors_of(setting: tuple[str, int, tuple[int, ...], int, int]) -> dict[str, list[float]]:
    """Relative errors by estimate, at each number of iterations, for (data, seed, numbers, reference, samples)."""
    kind, seed, depths, exact_iter, n_samples = setting
    with jax.enable_x64(True):
        if kind == "recipe":
            X, _, D = recipe(seed, 30, 50, n_samples)
        else:
            X, D = patches(seed, n_samples)
        exact = dictionary_gradient(X, D, LAM, estimator="g1", n_iter=exact_iter)[1]
        size = float(jnp.linalg.norm(exact))
        found: dict[str, list[float]] = {name: [] for name in ESTIMATES}
        for n_iter in depths:
            for name, (estimator, depth) in ESTIMATES.items():
                if depth is not None and depth >= n_iter:
                    found[name].append(float("nan"))  # that of all iterations
                    continue
                g = dictionary_gradient(X, D, LAM, estimator=estimator, n_iter=n_iter, backprop_depth=depth)[1]
                found[name].append(float(jnp.linalg.norm(g - exact)) / size)
    return found


def patches(seed: int, n_patches: int, n_atoms: int = 128) -> tuple[Any, Any]:
    """Patches of 10 x 10 of a noisy photograph, each less its mean; the first ones are the atoms."""
    image = photograph(128)
    rng = np.random.default_rng([seed, 5])
    noisy = image + 0.1 * rng.standard_normal(image.shape)
    rows = centre_patches(extract_patches(noisy, 10), None)[0]
    return jnp.asarray(rows[rng.permutation(len(rows))[:n_patches]]), unit_rows(jnp.asarray(rows[:n_atoms]))


@experiment(paper="unrolled", figure="Figure 3", title="Errors of the gradient estimates")
def gradients(scale: str, key: int, sweep: Any) -> Result:
    """The recipe with 30 features, 50 atoms, in double precision, on several draws; patches on one.

    g1 holds the codes fixed, g2 differentiates the iterations (all, or the last 20), g3 takes the Jacobian of an
    optimum. Relative error against the gradient of codes solved by many more iterations.

    Paper scale: about 15 CPU minutes (extrapolated from the quick run: 10 seeds in place of 3, 6 times the iterations,
    2.5 times the samples).
    """
    depths = DEPTHS[scale]
    most = {kind: n * (1 if scale == "quick" else 10) for kind, n in EXACT.items()}
    n_samples = 1000 if scale == "paper" else 400
    simulated = sweep(
        errors_of, [("recipe", key + i, depths, most["recipe"], n_samples) for i in range(N_SEEDS[scale])]
    )
    photo = sweep(errors_of, [("patches", key, depths[:-1], most["patches"], n_samples // 2)])[0]
    at = lambda name, n: np.array([run[name][depths.index(n)] for run in simulated])
    claims = []
    for n, (g1, g2) in TABLE.items():
        claims += [
            Claim.between(f"error of g1, N = {n}", g1, at("g1", n), 0.7 * g1, 1.4 * g1, note="other draws"),
            Claim.between(f"error of g2, N = {n}", g2, at("g2", n), 0.5 * g2, 2 * g2, note="other draws"),
            Claim.at_most(f"error of g2 over that of g1, N = {n}", "below 1", at("g2", n) / at("g1", n), 1.0),
        ]
    claims += [
        Claim.at_least("error of g2 over that of g1, N = 5", "above 1", at("g2", 5) / at("g1", 5), 1.0),
        Claim.at_most("error of g3 over that of g1, N = 500", 9.4e-7 / 1.7e-4, at("g3", 500) / at("g1", 500), 0.1),
        Claim.at_least("error of g3 over that of g1, N = 20: without the support it fails", "above 1",
                       at("g3", 20) / at("g1", 20), 1.0),
        Claim.info("patches of a photograph: error of g2 over that of g1, N = 100", None,
                   photo["g2"][depths.index(100)] / photo["g1"][depths.index(100)]),
    ]  # fmt: skip
    captions = {"gradients": "Relative errors; lines are medians over draws, bands their range. Right: one draw."}
    data = Data.simulated("the paper's recipe; beside it patches of scikit-learn's photograph of a flower")
    return Result(claims, {"gradients": draw(depths, simulated, photo)}, data, captions)


def draw(depths: tuple[int, ...], simulated: list, photo: dict) -> Any:
    """Two panels, one line an estimate."""
    figure, axes = new_figure(2, 4.2)
    for i, name in enumerate(ESTIMATES):
        rows = np.array([run[name] for run in simulated])
        axes[0].loglog(depths, np.median(rows, 0), "o-", color=f"C{i}", label=name)
        axes[0].fill_between(depths, rows.min(0), rows.max(0), color=f"C{i}", alpha=0.15)
        axes[1].loglog(depths[: len(photo[name])], photo[name], "o-", color=f"C{i}", label=name)
    for ax, title in zip(axes, ("simulated", "patches of a photograph")):
        ax.set(xlabel="iterations N", ylabel="relative error", title=title, ylim=(1e-7, 1e1))
    axes[0].legend(frameon=False, fontsize="small")
    return figure
