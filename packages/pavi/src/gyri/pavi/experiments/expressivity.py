"""What richer flows gain where the posterior is no Gaussian: mixtures, and a model that is not conjugate."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np
from numpyro.infer.autoguide import AutoIAFNormal, AutoNormal

from gyri.reproduce import Claim, Data, Result, experiment

from .. import models
from ..autoguide import AutoPAVI
from ..baselines import AutoCascadingFlow
from ..bound import elbo
from ..train import fit
from .setting import Peer

# Models, methods, seeds, steps.
QUICK = ("PAVI-F affine", "PAVI-F maf", "PAVI-F spline", "mean field")
ALL = (*QUICK, "PAVI-E affine", "PAVI-E maf", "PAVI-E spline", "cascading", "whole-space flow")
SIZES: dict[str, Any] = {"quick": (QUICK, 3, 2_000), "paper": (ALL, 20, 20_000)}
MODELS: dict[str, Any] = {
    "GM": (models.gaussian_mixture, models.simulate_gaussian_mixture),
    "NC": (models.non_conjugate, models.simulate_non_conjugate),
}
OPTIMA = {"GM": "mixtures have many optima, tens of nats apart, and a richer flow may end in a worse one", "NC": ""}
GUIDES: dict[str, Any] = {"mean field": AutoNormal, "cascading": AutoCascadingFlow, "whole-space flow": AutoIAFNormal}


@lru_cache(maxsize=16)
def shared_guide(name: str, method: str) -> AutoPAVI:
    """One guide for all seeds, compiled once."""
    kind, flow = method.split()
    return AutoPAVI(MODELS[name][0], encoding="free" if kind == "PAVI-F" else "data", encoding_size=16, flow=flow)


@lru_cache(maxsize=16)
def peer(name: str, method: str, steps: int) -> Peer:
    """The same of a peer."""
    return Peer(GUIDES[method](MODELS[name][0]), steps)


def bound_of(setting: tuple[str, str, str, int]) -> float:
    """The ELBO that a method reaches on a simulated data set."""
    scale, name, method, seed = setting
    simulate = MODELS[name][1]
    steps = SIZES[scale][2]
    _, x = simulate(1000 + seed)
    key = jax.random.key(seed)
    if method not in GUIDES:
        guide = shared_guide(name, method)
        params = fit(guide, key, steps, x, progress_bar=False).params
        return float(elbo(key, params, guide, x, num_particles=500, full=True))
    return peer(name, method, steps).fit(x, seed, n_particles=500)["bound"]


@experiment(paper="pavi", figure="Expressivity", title="Richer flows where the posterior is no Gaussian")
def expressivity(scale: str, key: int, sweep: Any) -> Result:
    """ELBOs on data sets drawn from the model, each method on the same ones.

    Paper scale: about 1 CPU hour (extrapolated from the quick run: 9 methods in place of 4, 7 times the seeds, 10
    times the steps).
    """
    methods, n_seeds, _ = SIZES[scale]
    settings = [(scale, name, method, key + i) for name in MODELS for method in methods for i in range(n_seeds)]
    values = np.array(sweep(bound_of, settings)).reshape(len(MODELS), len(methods), n_seeds)
    found = {name: dict(zip(methods, rows, strict=True)) for name, rows in zip(MODELS, values, strict=True)}
    claims = []
    for name, rows in found.items():
        for method in ("PAVI-F maf", "PAVI-F spline"):
            gain = rows[method] - rows["PAVI-F affine"]
            claims.append(
                Claim.at_least(f"{name}: ELBO of {method} over affine", None, gain, -0.5, unit="nat", note=OPTIMA[name])
            )
        best = np.max([rows[m] for m in methods if m.startswith("PAVI")], 0)
        claims.append(
            Claim.at_least(f"{name}: best PAVI over mean field", None, best - rows["mean field"], 0.0, unit="nat")
        )
    claims += [Claim.info(f"NC: ELBO of {m}", None, v, unit="nat") for m, v in found["NC"].items()]
    figure = draw_bounds(found)
    caption = f"ELBO less that of mean field, a point a data set ({n_seeds} of them)."
    return Result(claims, {"Bounds": figure}, Data.simulated("GM and NC of the paper"), {"Bounds": caption})


def draw_bounds(found: dict[str, dict[str, np.ndarray]]) -> Any:
    """Differences to mean field, a column a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    for ax, (name, rows) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        others = [method for method in rows if method != "mean field"]
        for k, method in enumerate(others):
            gain = rows[method] - rows["mean field"]
            ax.plot(np.full(len(gain), k), gain, "o", alpha=0.5, markersize=4)
            ax.plot([k - 0.3, k + 0.3], [np.median(gain)] * 2, color="k")
        ax.axhline(0, color="0.7", linestyle=":")
        ax.set_xticks(range(len(others)), others, rotation=30, ha="right")
        ax.set(title=name, ylabel="ELBO over mean field (nat)")
        if max(np.ptp(rows[method]) for method in rows) > 10:
            ax.set_yscale("symlog")
        ax.spines[["top", "right"]].set_visible(False)
    return figure
