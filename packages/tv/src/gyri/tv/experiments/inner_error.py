"""Figure 4: how far the inner network of LPGD-LISTA is from the proximal operator, layer by layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gyri.numerics import prox_tv1d
from gyri.reproduce import Claim, Data, Result, experiment

from ..datasets import simulate
from ..networks import NETWORKS, constants_of, init_network
from ..problem import objective
from ..training import Data as Signals
from ..training import stages, train

LAM = 0.1
N_INNER = (20, 50)


@partial(jax.jit, static_argnames="n_inner")
def errors(params: Any, data: Signals, *, n_inner: int) -> jax.Array:
    """Mean excess of the proximal problem's objective at the inner network's output, of each layer."""
    x, lam, c = data
    start, step, _ = NETWORKS["lpgd_lista"].build(c, x, lam, n_inner, None)
    penalty = lam[:, 0] / c.rho

    def layer(u: jax.Array, w: dict) -> tuple[jax.Array, jax.Array]:
        y, near = u @ w["Wu"] + x @ w["Wx"], step(w, u)
        exact = prox_tv1d(y, penalty[:, None])
        excess = objective(near, y, None, penalty) - objective(exact, y, None, penalty)
        return near, excess.mean()

    return jax.lax.scan(layer, start, params["layers"])[1]


def curves(setting: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """Errors by layer before and after training, for (seed, signals, layers, steps in all)."""
    seed, n, n_layers, n_steps = setting
    found = {}
    with jax.enable_x64(True):
        x, _, _, A = simulate(seed, 2 * n)
        train_data, test_data = (Signals(part, jnp.full((n, 1), LAM), constants_of(A)) for part in (x[:n], x[n:]))
        for n_inner in N_INNER:
            params = init_network(A, n_layers, "lpgd_lista", n_inner=n_inner, inner="per_layer")
            found[f"{n_inner} inner layers, untrained"] = np.asarray(errors(params, test_data, n_inner=n_inner))
            plan = stages("recursive", n_layers, n_steps)
            params = train(params, train_data, plan, network="lpgd_lista", n_inner=n_inner).params
            found[f"{n_inner} inner layers, trained"] = np.asarray(errors(params, test_data, n_inner=n_inner))
    return found


@experiment(paper="tv", figure="Figure 4", title="An inner network approximates the proximal operator")
def inner_error(scale: str, key: int, sweep: Any) -> Result:
    """Train networks whose inner weights are each layer's own; compare with the exact operator on other signals.

    Paper scale: about 1 CPU hour (extrapolated from the quick run: 1.7 times the draws, 80 times the
    steps by layers, 10 times the signals).
    """
    from matplotlib.figure import Figure

    n, n_layers, n_steps, n_seeds = {"quick": (100, 5, 100, 3), "paper": (1000, 40, 1200, 5)}[scale]
    runs = sweep(curves, [(key + seed, n, n_layers, n_steps) for seed in range(n_seeds)])
    methods = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    ax, layers = figure.subplots(), np.arange(1, n_layers + 1)
    for name, values in methods.items():
        inner, state = name.split(" inner layers, ")
        style = {"color": f"C{N_INNER.index(int(inner))}", "linestyle": "-" if state == "trained" else "--"}
        ax.semilogy(layers, np.median(values, 0), marker="o", markersize=4, label=name, **style)
        ax.fill_between(layers, values.min(0), values.max(0), color=style["color"], alpha=0.1, linewidth=0)
    ax.set(xlabel="Layer", ylabel="Excess of the proximal problem's objective")
    ax.locator_params(axis="x", integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")

    total = {name: values.mean(1) for name, values in methods.items()}
    ratio = total["50 inner layers, untrained"] / total["20 inner layers, untrained"]
    claims = [
        Claim.at_most("untrained: error with 50 inner layers over that with 20, mean of the layers", None, ratio, 1)
    ]
    for n_inner in N_INNER:
        trained, untrained = (total[f"{n_inner} inner layers, {state}"] for state in ("trained", "untrained"))
        claims.append(
            Claim.info(f"{n_inner} inner layers: error after training over before", None, trained / untrained)
        )
    captions = {"error": f"Error of the inner network by layer: median and range of {n_seeds} seeds, lam = {LAM}."}
    return Result(claims, {"error": figure}, Data.simulated("Gaussian operators (5 x 8), one jump, 0 dB"), captions)
