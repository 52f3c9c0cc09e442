"""What several experiments share: training, ours and NumPyro's, the gap to the evidence, and figures."""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoGuide

from ..autoguide import AutoPAVI
from ..bound import elbo
from ..models import gre, gre_log_evidence, simulate_gre
from ..train import fit

N_SEEDS = {"quick": 3, "paper": 5}


def n_weights(params: Any) -> int:
    """Number of trained numbers."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(params))


@lru_cache(maxsize=32)
def gre_guide(sizes: tuple[int, int, int], groups: int, options: tuple) -> AutoPAVI:
    """One guide for all seeds: its programs are compiled once for data of these sizes."""
    return AutoPAVI(gre, subsample_sizes={"groups": groups}, **dict(options))


def fit_gre(
    seed: int, sizes: tuple[int, int, int], groups: int, options: Mapping[str, Any], steps: int
) -> dict[str, float | int]:
    """Train on Gaussian random effects: gap to the evidence per group, seconds without compilation, weights."""
    _, x = simulate_gre(1000 + seed, *sizes)
    guide = gre_guide(sizes, groups, tuple(options.items()))
    fit(guide, 0, 1, x, progress_bar=False)  # compiles
    started = time.process_time()
    result = fit(guide, jax.random.key(seed), steps, x, progress_bar=False)
    seconds = time.process_time() - started
    bound = elbo(jax.random.key(seed), result.params, guide, x, num_particles=64, full=True)
    gap = (float(gre_log_evidence(x)) - float(bound)) / sizes[0]
    return {"gap": gap, "seconds": seconds, "weights": n_weights(result.params)}


class Peer:
    """One of NumPyro's guides, whose training is compiled once for data of one shape.

    Adam, a cosine from `rate` to a hundredth of it, 8 draws a step. `whole`: the same guide without subsampling, which
    is measured; the guide itself by default.
    """

    def __init__(self, guide: AutoGuide, steps: int, *, rate: float = 1e-2, whole: AutoGuide | None = None) -> None:
        self.svi = SVI(guide.model, guide, optax.adam(optax.cosine_decay_schedule(rate, steps, 0.01)), Trace_ELBO(8))
        self.whole, self.steps = whole or guide, steps
        loss = lambda key, params, x, n: Trace_ELBO(n).loss(key, params, guide.model, self.whole, x)
        self.init, self.loss = jax.jit(self.svi.init), jax.jit(loss, static_argnums=3)
        self.program: Any = None

    def fit(self, x: Any, seed: int, n_particles: int = 64) -> dict[str, float | int]:
        """Train on data: the bound on all of them, CPU seconds without compilation, weights, temporary bytes."""
        key = jax.random.key(seed)
        state = self.init(key, x)
        if self.program is None:
            update = lambda state, x: jax.lax.scan(lambda s, _: self.svi.update(s, x), state, length=self.steps)[0]
            self.program = jax.jit(update).lower(state, x).compile()
            if self.whole is not self.svi.guide:  # it learns the model's sites at its first call
                jax.jit(SVI(self.svi.model, self.whole, optax.adam(1e-2), Trace_ELBO()).init)(key, x)
        started = time.process_time()
        params = self.svi.get_params(jax.block_until_ready(self.program(state, x)))
        seconds = time.process_time() - started
        bound = -float(self.loss(key, params, x, n_particles))
        temporary = self.program.memory_analysis().temp_size_in_bytes
        return {"bound": bound, "seconds": seconds, "weights": n_weights(params), "bytes": temporary}


def draw_curves(curves: Mapping[str, tuple[Any, Any]], xlabel: str, ylabel: str, **axes: Any) -> Any:
    """One curve a method: median and range over seeds of values (n_seeds, n_points)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    ax = figure.subplots()
    for k, (label, (x, values)) in enumerate(curves.items()):
        values = np.atleast_2d(values)
        ax.fill_between(x, values.min(0), values.max(0), color=f"C{k}", alpha=0.15, linewidth=0)
        ax.plot(x, np.median(values, 0), "o-", color=f"C{k}", label=label, markersize=4)
    ax.set(xlabel=xlabel, ylabel=ylabel, **axes)
    places = sorted({place for x, _ in curves.values() for place in x})
    ax.set_xticks(places, [f"{place:,}" for place in places])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure
