"""What several experiments share: posteriors that are trained once, and figures."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..estimator import HNPE
from ..posterior import HNPEPosterior
from ..simulation import Simulations, simulate

N_SEEDS = {"quick": 3, "paper": 5}


@lru_cache(maxsize=128)
def train(
    simulator: Any, summary: Any, seed: int, n_simulations: int, n_extra: Any, max_epochs: int, options: tuple = ()
) -> HNPEPosterior:
    """Amortised posterior of a simulator, kept for other experiments of the same process."""
    simulate_key, train_key = jax.random.split(jax.random.key(seed))
    sims = simulate(simulate_key, simulator.prior, simulator, n_simulations, n_extra, summary=summary)
    estimator = HNPE(simulator.prior, **dict(options), seed=seed).append_simulations(*sims)
    batch_size = min(100, max(20, n_simulations // 20))
    return estimator.train(train_key, max_epochs=max_epochs, batch_size=batch_size, progress=False).build_posterior()


@jax.jit
def _draw(posterior: HNPEPosterior, keys: Any, x: Any, x_extra: Any, mask: Any) -> Any:
    one = lambda row: posterior.sample(row[0], (500,), *row[1:])
    return jax.lax.map(one, (keys, x, x_extra, mask), batch_size=50)


def draw(posterior: HNPEPosterior, key: int, sims: Simulations) -> np.ndarray:
    """500 draws for each simulation, shape (n, 500, dim); sets are padded so that any number compiles once."""
    keys = jax.random.split(jax.random.key(key), len(sims.x))
    more = posterior.spec.n_max - sims.mask.shape[1]
    x_extra = jnp.pad(sims.x_extra, [(0, 0), (0, more), *[(0, 0)] * (sims.x.ndim - 1)])
    return np.asarray(_draw(posterior, keys, sims.x, x_extra, jnp.pad(sims.mask, [(0, 0), (0, more)])))


def first(sims: Simulations, n_extra: int) -> Simulations:
    """The same recordings with only the first of the others."""
    return sims._replace(x_extra=sims.x_extra[:, :n_extra], mask=sims.mask[:, :n_extra])


def fixed(simulator: Any, theta: Any, key: int, n: int, n_extra: int, summary: Any = None) -> Simulations:
    """Simulations at given parameters; the others' local ones come from the prior."""
    theta = jnp.asarray(theta, float)
    x, x_extra = _fixed(simulator, summary, theta, jax.random.split(jax.random.key(key), n), n_extra)
    return Simulations(jnp.tile(theta, (n, 1)), x, x_extra, jnp.ones((n, n_extra), bool))


@partial(jax.jit, static_argnums=(0, 1, 4))
def _fixed(simulator: Any, summary: Any, theta: Any, keys: Any, n_extra: int) -> tuple[Any, Any]:
    prior = simulator.prior
    shared = theta[prior.n_local :]

    def record(key: Any, theta: Any) -> Any:
        x = simulator(key, theta)
        return x if summary is None else summary(x)

    def one(key: Any) -> tuple[Any, Any]:
        x_key, local_key = jax.random.split(key)
        local = prior.sample_local(local_key, shared, (n_extra,))
        others = jnp.concatenate([local, jnp.tile(shared, (n_extra, 1))], 1)
        every = jnp.concatenate([theta[None], others])
        x = jax.vmap(record)(jax.random.split(x_key, 1 + n_extra), every)
        return x[0], x[1:]

    return jax.vmap(one)(keys)


def draw_curves(panels: Mapping[str, Mapping[str, tuple[Any, Any]]], xlabel: str, ylabel: str, **axes: Any) -> Any:
    """One panel a quantity, one curve a method: median and range over seeds of values (n_seeds, n_points)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels) + 1.2, 3.4), layout="constrained")
    for ax, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for k, (label, (x, values)) in enumerate(curves.items()):
            values = np.atleast_2d(values)
            ax.fill_between(x, values.min(0), values.max(0), color=f"C{k}", alpha=0.15, linewidth=0)
            ax.plot(x, np.median(values, 0), "o-", color=f"C{k}", label=label, markersize=4)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, **axes)
        ax.spines[["top", "right"]].set_visible(False)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right upper", frameon=False)
    return figure


def draw_scatter(
    sets: Mapping[str, Any], names: Any, limits: Any, curve: Any = None, truth: Any = None, columns: int = 4
) -> Any:
    """Draws of two parameters, a panel for each setting."""
    from matplotlib.figure import Figure

    columns = min(columns, len(sets))
    n_rows = -(-len(sets) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(sets) :]:
        ax.set_visible(False)
    for ax, (title, draws) in zip(axes.flat, sets.items(), strict=False):
        if curve is not None:
            ax.plot(*curve, color="0.7", linewidth=1)
        ax.plot(draws[:, 0], draws[:, 1], ".", markersize=2, alpha=0.5)
        if truth is not None:
            ax.plot(*truth, "k+", markersize=9)
        ax.set(title=title, xlim=limits[0], ylim=limits[1])
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel(names[0])
    for ax in axes[:, 0]:
        ax.set_ylabel(names[1])
    return figure
