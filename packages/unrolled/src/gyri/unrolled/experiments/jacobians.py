"""Figures 1 and 2: the Jacobian of unrolled iterations, unstable before the support is found."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..coding import sparse_code
from ..gradients import lasso_jacobian, unrolled_jacobians
from .setting import LAM, mark, new_figure, recipe

SIZES = {"quick": (8, 3000), "paper": (50, 10_000)}  # samples, iterations
DEPTHS = (20, 50, 200)
LARGEST = 1e5  # norm of the optimal Jacobian of a sample that counts


@jax.jit
def _run(x: Any, D: Any, target: Any, support: Any, steps: Any) -> tuple[Any, Any, Any]:
    """Distance of the Jacobian to its limit, and of supports, in each iteration, and the codes."""

    def trace(z: Any, J: Any) -> tuple:
        return jnp.linalg.norm((J - target).reshape(-1)), jnp.sum((z != 0) != support), z

    return unrolled_jacobians(x, D, LAM, steps, algorithm="ista", lipschitz="spectral", trace=trace)[2]


@jax.jit
def _truncated(x: Any, D: Any, target: Any, z: Any, depth_steps: Any) -> Any:
    """Distance after as many iterations as steps, from a code with a Jacobian of zero."""
    from ..coding import Measurement, dot, lipschitz_constant
    from ..gradients import _partial

    gram, inverse = dot(D, D.T), 1 / lipschitz_constant(D, Measurement(), "spectral")

    def body(state: tuple, step: Any) -> tuple:
        z, J = state
        residual = dot(z, D) - x
        u = z - step * inverse * dot(D, residual)
        new = jnp.sign(u) * jnp.maximum(jnp.abs(u) - LAM * step * inverse, 0)
        slope = _partial(D, z, residual) + dot(gram, J.reshape(len(z), -1)).reshape(J.shape)
        return (new, jnp.where((new != 0)[:, None, None], J - step * inverse * slope, 0)), None

    (_, J), _ = jax.lax.scan(body, (z, jnp.zeros_like(target)), depth_steps)
    return jnp.linalg.norm((J - target).reshape(-1))


def sample_curves(setting: tuple[int, int, int]) -> dict[str, Any] | None:
    """Errors of one sample along the iterations; None where its optimal Jacobian is too large to count."""
    seed, index, n_iter = setting
    with jax.enable_x64(True):
        X, _, D = recipe(seed, 30, 50, 100)
        x = X[index]
        solution = sparse_code(x[None], D, LAM, n_iter=20_000)[0]
        target = lasso_jacobian(x, D, solution)
        size = float(jnp.linalg.norm(target.reshape(-1)))
        if not size < LARGEST:
            return None
        errors, wrong, codes = _run(x, D, target, solution != 0, jnp.ones(n_iter))
        places = np.unique(np.geomspace(max(DEPTHS) + 1, n_iter, 8).astype(int))
        cut: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
        for n in places:
            for depth in DEPTHS:
                cut[depth].append(float(_truncated(x, D, target, codes[n - depth - 1], jnp.ones(depth))) / size)
    return {"errors": np.asarray(errors) / size, "wrong": np.asarray(wrong), "places": places, "cut": cut}


@experiment(paper="unrolled", figure="Figures 1 and 2", title="Jacobians of unrolled iterations")
def jacobians(scale: str, key: int, sweep: Any) -> Result:
    """ISTA on the recipe (30 features, 50 atoms, lam 0.1): distance of the codes' Jacobian to its limit.

    It rises first on some samples, as the support is still wrong, and falls at a linear rate once it is found.
    Truncated back-propagation starts from a Jacobian of zero some iterations before, and so skips the rise.

    Paper scale: about 10 CPU minutes (extrapolated from the quick run: 6 times the samples, 3 times the iterations).
    """
    n_samples, n_iter = SIZES[scale]
    found = [c for c in sweep(sample_curves, [(key, i, n_iter) for i in range(n_samples)]) if c is not None]
    rises = np.array([curve["errors"].max() / curve["errors"][0] for curve in found])
    settled = np.array([np.flatnonzero(curve["wrong"])[-1] + 1 if curve["wrong"].any() else 0 for curve in found])
    ends = [curve["errors"][-1] / curve["errors"][s] for curve, s in zip(found, settled) if s < n_iter // 2]
    worst = {d: max(max(curve["cut"][d]) for curve in found) for d in DEPTHS}
    claims = [
        Claim.between("part of the samples whose error rises first, by a tenth or more", "some", np.mean(rises > 1.1),
                      0.05, 0.95),
        Claim.at_most("error at the end over that when the support was found, median of samples", "linear rate",
                      float(np.median(ends)) if ends else float("nan"), 0.1),
        Claim.at_most("largest error with 20 iterations of back-propagation, over the largest with all",
                      "small depth removes the rise", worst[20] / max(curve["errors"].max() for curve in found), 1.0),
        Claim.info("iterations until the support is found, median", None, float(np.median(settled))),
        Claim.info("samples whose optimal Jacobian has a norm below 1e5", None, float(len(found))),
    ]  # fmt: skip
    captions = {
        "jacobians": "Relative error of the Jacobian along ISTA, one line a sample; wrong entries of the support."
    }
    data = Data.simulated(f"the paper's recipe, {n_samples} samples")
    return Result(claims, {"jacobians": draw(found)}, data, captions)


def draw(found: list[dict[str, Any]]) -> Any:
    """Errors with all and with truncated back-propagation, and wrong entries of the support."""
    figure, axes = new_figure(3)
    for i, curve in enumerate(found):
        x = np.arange(1, curve["errors"].size + 1)
        axes[0].loglog(x, curve["errors"], color=f"C{i % 10}", linewidth=1)
        axes[2].semilogx(x, curve["wrong"], color=f"C{i % 10}", linewidth=1)
    for j, depth in enumerate(DEPTHS):
        rows = np.array([curve["cut"][depth] for curve in found])
        axes[1].loglog(found[0]["places"], np.median(rows, 0), "o-", color=f"C{j}", label=f"depth {depth}")
        axes[1].fill_between(found[0]["places"], rows.min(0), rows.max(0), color=f"C{j}", alpha=0.15)
    mark(axes[1], found[0]["places"][[0, len(found[0]["places"]) // 2, -1]])
    axes[1].legend(frameon=False, fontsize="small")
    for ax, title in zip(axes, ("error of the Jacobian", "the same, truncated", "wrong entries of the support")):
        ax.set(xlabel="iterations", title=title)
    return figure
