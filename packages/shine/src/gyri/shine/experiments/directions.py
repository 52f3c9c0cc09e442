"""Section 2: how far each estimate is from the exact solution of the backward system, on a layer that is not normal."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from ..backward import Full, JacobianFree, Shine
from ..implicit import fixed_point
from ..solvers import AdjointBroyden, Broyden

STEPS = (0, 2, 5, 10)
GAINS = (0.5, 0.9, 1.5)
TIGHT: dict[str, Any] = {"max_steps": 60, "tol": 1e-10, "stop": "abs"}
# Median relative errors of w of a prototype, ||W|| = 1.5: d = 60 by the steps of refinement; d = 40 by the estimate.
REFINED = {
    "SHINE": (4.4e-1, 6.2e-2, 2.4e-3, 5.9e-6),
    "Jacobian-free": (5.1e-1, 1.4e-1, 1.9e-2, 3.4e-4),
}
ESTIMATES: dict[str, Any] = {
    "Broyden": Broyden(**TIGHT),
    "adjoint Broyden": AdjointBroyden(**TIGHT),
    "OPA, M = 5": AdjointBroyden(**TIGHT, opa_every=5),
    "OPA, M = 1": AdjointBroyden(**TIGHT, opa_every=1),
}
PUBLISHED = {
    "Broyden": (0.126, 0.209, 0.353), "adjoint Broyden": (0.112, 0.135, 0.140),
    "OPA, M = 5": (1.9e-3, 1.7e-3, 1.3e-3), "OPA, M = 1": (2.2e-9, 8.2e-9, 1.6e-8),
}  # fmt: skip


def draw(seed: int, d: int, gain: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights of a spectral norm, a bias, and a vector."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((d, d))
    W *= gain / np.linalg.norm(W, 2)
    return jnp.asarray(W), jnp.asarray(rng.standard_normal(d)), jnp.asarray(rng.standard_normal(d))


@partial(jax.jit, static_argnums=(0, 1, 2))
def error(solver: Any, backward: Any, outer: bool, W: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    """Relative error of w; v is the cotangent, or (outer) the target of ``|z - v|^2 / 2``."""
    f = lambda z, b: jnp.tanh(W @ z + b)
    outer_grad = (lambda z, b: z - v) if outer else None
    run = lambda b: fixed_point(f, jnp.zeros_like(b), b, solver=solver, backward=backward, outer_grad=outer_grad).value
    z, pull = jax.vjp(run, b)
    cotangent = z - v if outer else v
    slope = 1 - f(z, b) ** 2
    exact = -jnp.linalg.solve((slope[:, None] * W - jnp.eye(len(b))).T, cotangent)
    return jnp.linalg.norm(pull(cotangent)[0] / slope - exact) / jnp.linalg.norm(exact)


def refinement(setting: tuple[int, int]) -> dict[str, list[float]]:
    """Median errors by the number of refinement steps, for (seed, problems)."""
    seed, n = setting
    with jax.enable_x64(True):
        problems = [draw(seed + i, 60, 1.5) for i in range(n)]
        modes: dict[str, list[Any]] = {
            "SHINE": [Shine(refine_steps=k) for k in STEPS],
            "Jacobian-free": [JacobianFree(refine_steps=k) for k in STEPS],
            "zero": [Full(max_steps=k, tol=1e-14) for k in STEPS[1:]],
        }
        solver = ESTIMATES["Broyden"]
        median = lambda mode: float(np.median([error(solver, mode, False, *p) for p in problems]))
        found = {name: [median(mode) for mode in some] for name, some in modes.items()}
        return found | {"zero": [1.0, *found["zero"]]}


def estimates(setting: tuple[int, int]) -> dict[str, list[float]]:
    """Median errors of SHINE by the estimate, one for each gain, for (seed, problems)."""
    seed, n = setting
    with jax.enable_x64(True):
        return {
            name: [
                float(np.median([error(solver, Shine(), True, *draw(seed + i, 40, gain)) for i in range(n)]))
                for gain in GAINS
            ]
            for name, solver in ESTIMATES.items()
        }


@experiment(
    paper="shine", figure="Section 2", title="Transposed memory and outer-problem awareness lead to the exact gradient"
)
def directions(scale: str, key: int, sweep: Any) -> Result:
    """Layers ``tanh(W z + b)`` of given spectral norms, 20 draws each, against NumPy's linear solver.

    Paper scale: about 2 CPU minutes (extrapolated from the quick run: 10 times the draws; compilation stays).
    """
    from matplotlib.figure import Figure

    n = {"quick": 20, "paper": 200}[scale]
    refined = sweep(refinement, [(key, n)])[0]
    estimated = sweep(estimates, [(key, n)])[0]
    claims = []
    for name, published in REFINED.items():
        for i in (0, 2, 3):
            what = f"{name}, {STEPS[i]} refinement steps: relative error of w"
            bound = 5e-5 if (name, STEPS[i]) == ("SHINE", 10) else 2 * published[i]
            claims.append(Claim.at_most(what, published[i], refined[name][i], bound))
    for name, errors in PUBLISHED.items():
        for i, gain in enumerate(GAINS):
            what = f"{name}, ||W|| = {gain}: relative error of w"
            bound = 1e-6 if name == "OPA, M = 1" else 2 * errors[i]
            claims.append(Claim.at_most(what, errors[i], estimated[name][i], bound))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in refined.items():
        left.semilogy(STEPS, curve, "o-", label=f"from {name}")
    left.set(xlabel="refinement steps", ylabel="relative error of w", title="$\\|W\\| = 1.5$")
    for name, curve in estimated.items():
        right.semilogy(GAINS, curve, "o-", label=name)
    right.set(xlabel="$\\|W\\|$", ylabel="relative error of w", title="SHINE")
    left.legend()
    right.legend()
    note = f"Median of {n} draws: by the steps of refinement, and by the estimate."
    return Result(claims, {"errors": figure}, Data.simulated("dense layers with Gaussian weights"), {"errors": note})
