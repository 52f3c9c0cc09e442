"""Parcellation of the cortex, with label probabilities of each vertex of each subject."""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import init_to_value
from scipy.cluster.vq import kmeans
from scipy.optimize import linear_sum_assignment

from gyri.reproduce import Claim, Data, Result, experiment

from ..autoguide import AutoPAVI
from ..models import NARROW, ms_hbm, ms_hbm_labels, simulate_ms_hbm
from ..train import fit
from .setting import N_SEEDS, n_weights

# (Subjects, sessions, vertices, dimensions), networks, subjects a step, steps.
SIZES: dict[str, Any] = {
    "quick": ((10, 2, 100, 8), 4, 4, 1_000),
    "paper": ((100, 2, 1_000, 16), 7, 10, 20_000),
}


def match(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Order of the found networks, one a row, that is closest to the true ones."""
    return linear_sum_assignment(((truth[:, None] - found[None]) ** 2).sum(-1))[1]


def start_at_clusters(x: np.ndarray, n_networks: int, seed: int) -> Any:
    """Start the networks, and those of each subject and session, at the clusters of all profiles (best of 10 runs)."""
    centres = kmeans(x.reshape(-1, x.shape[-1]).astype(float), n_networks, iter=10, seed=seed)[0]
    centres = jnp.asarray(centres[:, None, None, None], x.dtype)
    return init_to_value(values=dict.fromkeys(("mu", "mu_subject", "mu_session"), centres))


def new_guide(n_networks: int, b: int, **options: Any) -> AutoPAVI:
    """A guide of the parcellation."""
    model = partial(ms_hbm, n_networks=n_networks, labels="free", log_ranges=NARROW)
    return AutoPAVI(model, encoding_size=16, subsample_sizes={"subjects": b}, **options)


shared_guide = lru_cache(maxsize=4)(new_guide)  # one for all seeds, compiled once


def parcellate(setting: tuple[str, int]) -> dict[str, Any]:
    """Recovery of networks and labels for one simulated data set."""
    scale, seed = setting
    sizes, n_networks, b, steps = SIZES[scale]
    latents, x, labels = simulate_ms_hbm(seed, *sizes, n_networks=n_networks, labels="free")
    guide = shared_guide(n_networks, b)
    at_clusters = new_guide(n_networks, b, init_loc_fn=start_at_clusters(np.asarray(x), n_networks, seed))
    start = fit(at_clusters, jax.random.key(seed), 0, x, progress_bar=False).params
    result = fit(guide, jax.random.key(seed), steps, x, init_params=start, progress_bar=False)
    draws = guide.sample_posterior(jax.random.key(seed), result.params, x, sample_shape=(20,))
    truth, found = np.asarray(latents["mu"])[:, 0, 0, 0], np.asarray(draws["mu"].mean(0))[:, 0, 0, 0]
    order = match(truth, found)
    own = np.asarray(ms_hbm_labels(draws, x))[..., order].argmax(-1)
    pi, mean_pi = np.asarray(latents["pi"])[:, 0], np.asarray(draws["pi"].mean(0))[:, 0][..., order]
    best = np.asarray(ms_hbm_labels(jax.tree.map(lambda v: v[None], latents), x)).argmax(-1)
    return {
        "accuracy": float((own == np.asarray(labels)).mean()),
        "best": float((best == np.asarray(labels)).mean()),
        "error": float(np.sqrt(((found[order] - truth) ** 2).mean()) / truth.std()),
        "correlation": float(np.corrcoef(pi.ravel(), mean_pi.ravel())[0, 1]),
        "weights": n_weights(result.params),
        "latents": sum(np.size(value) for value in latents.values()),
        "truth": truth,
        "found": found[order],
    }


@experiment(paper="pavi", figure="Parcellation", title="Networks and labels of a simulated cortex")
def parcellation(scale: str, key: int, sweep: Any) -> Result:
    """MS-HBM with free labels, subjects drawn at random while training; networks are matched to the true ones.

    Paper scale: about 12 CPU hours (extrapolated from the quick run: 1.7 times the seeds, 20 times the steps, some 90
    times the work a step).
    """
    (_, _, _, dim), n_networks, _, _ = SIZES[scale]
    runs = sweep(parcellate, [(scale, key + i) for i in range(N_SEEDS[scale])])
    claims = [
        Claim.at_least("label accuracy", None, [run["accuracy"] for run in runs], 0.95),
        Claim.info("label accuracy of the true latents", None, [run["best"] for run in runs]),
        Claim.at_most("rms error of the networks over their spread", None, [run["error"] for run in runs], 0.3),
        Claim.info("correlation of label probabilities with the truth", None, [run["correlation"] for run in runs]),
        Claim.info("latent numbers", "400 million", runs[0]["latents"]),
        Claim.info("weights", None, runs[0]["weights"]),
        Claim.not_run("1,000 subjects, 59,412 vertices, 7 networks: hours of training", "under 5"),
    ]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot(runs[0]["truth"].ravel(), runs[0]["found"].ravel(), ".")
    ends = [runs[0]["truth"].min(), runs[0]["truth"].max()]
    ax.plot(ends, ends, color="0.7", linestyle=":")
    ax.set(xlabel="true profile", ylabel="posterior mean")
    ax.spines[["top", "right"]].set_visible(False)
    caption = {"Networks": f"Entries of the {n_networks} networks' profiles of {dim} dimensions, one seed."}
    return Result(claims, {"Networks": figure}, Data.simulated("MS-HBM with free labels"), caption)
