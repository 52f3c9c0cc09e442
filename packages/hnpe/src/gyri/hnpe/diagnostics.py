"""Whether a posterior is calibrated: simulation-based calibration and coverage."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from gyri.numerics.validation import as_key, check_array, check_positive_int

from .plot import import_pyplot
from .posterior import HNPEPosterior
from .simulation import Simulations

_AT_ONCE = 64
LEVELS = np.linspace(0.05, 0.95, 19)


class SBCResult(NamedTuple):
    """Calibration of each parameter.

    Attributes
    ----------
    ranks : numpy.ndarray of int, shape (n, dim)
        Posterior draws below the truth, 0 to `n_samples`; uniform if calibrated.
    pvalues : numpy.ndarray, shape (dim,)
        Of a Kolmogorov-Smirnov test that the ranks are uniform.
    levels : numpy.ndarray, shape (n_levels,)
        Nominal coverage of central intervals.
    coverage : numpy.ndarray, shape (dim, n_levels)
        Share of truths inside.
    names : tuple of str
        Of the parameters.
    n_samples : int
        Draws for each truth.
    """

    ranks: Int[Any, "n dim"]
    pvalues: Any
    levels: Any
    coverage: Any
    names: tuple[str, ...]
    n_samples: int

    def plot(self, n_bins: int = 20) -> tuple[Any, Any]:
        """Histograms of the ranks, and coverage against its level.

        Parameters
        ----------
        n_bins : int
            Of the histograms.

        Returns
        -------
        figure, axes
            Matplotlib's; the last axes are those of the coverage.
        """
        plt = import_pyplot()
        dim = len(self.names)
        figure, axes = plt.subplots(1, dim + 1, figsize=(2.8 * (dim + 1), 2.8), layout="constrained")
        n = len(self.ranks)
        edges = np.linspace(0, self.n_samples, n_bins + 1)
        low, high = n / n_bins + np.array([-2, 2]) * np.sqrt(n / n_bins * (1 - 1 / n_bins))
        for i, (ax, name) in enumerate(zip(axes[:-1], self.names, strict=True)):
            ax.axhspan(low, high, color="0.9")
            ax.hist(self.ranks[:, i], edges, color=f"C{i}", alpha=0.8)
            ax.set(xlabel=f"rank of {name}", title=f"p = {self.pvalues[i]:.2g}")
            axes[-1].plot(self.levels, self.coverage[i], color=f"C{i}", label=name)
        axes[0].set_ylabel("simulations")
        axes[-1].plot([0, 1], [0, 1], color="0.7", linestyle=":")
        axes[-1].set(xlabel="nominal coverage", ylabel="coverage", xlim=(0, 1), ylim=(0, 1))
        axes[-1].legend(frameon=False)
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        return figure, axes


def sbc(
    key: Key[Array, ""] | Array | int, posterior: HNPEPosterior, sims: Simulations, n_samples: int = 500
) -> SBCResult:
    """Simulation-based calibration: where true parameters rank among draws from their posterior.

    Parameters
    ----------
    key : PRNG key or int
        Of the draws.
    posterior : HNPEPosterior
        Amortised.
    sims : Simulations
        Fresh, their parameters drawn from the prior; as many others as in training, or fewer.
    n_samples : int
        Draws for each.

    Returns
    -------
    SBCResult
        Ranks, p-values, coverage, and a method `plot`.

    Raises
    ------
    ValueError
        Wrong shapes, no simulations, values that are not finite.

    Examples
    --------
    >>> from gyri.hnpe import HNPE, ToyModel, sbc, simulate
    >>> model = ToyModel(noise=0.05)
    >>> posterior = HNPE(model.prior).fit(0, model, n_simulations=500, n_extra=(0, 3), max_epochs=3, progress=False)
    >>> sbc(1, posterior, simulate(2, model.prior, model, 50, 3), n_samples=99).ranks.shape
    (50, 2)

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian inference algorithms with simulation-based
    calibration, arXiv 1804.06788.
    """
    from scipy.stats import kstest

    n_samples = check_positive_int(n_samples, "n_samples")
    sims = Simulations(*sims)
    dtype, event, n_max = posterior.spec.dtype, posterior.spec.event_shape, posterior.spec.n_max
    theta = check_array(sims.theta, "sims.theta", shape=(None, posterior.prior.dim))
    n = len(theta)
    x = check_array(sims.x, "sims.x", shape=(n, *event))
    x_extra = check_array(sims.x_extra, "sims.x_extra", shape=(n, None, *event), allow_empty=True)
    if x_extra.shape[1] > n_max:
        raise ValueError(f"sims.x_extra: expected at most {n_max} others, as in training, got {x_extra.shape[1]}")
    mask = np.asarray(sims.mask)
    if mask.shape != x_extra.shape[:2]:
        raise ValueError(f"sims.mask: expected shape {x_extra.shape[:2]}, got {mask.shape}")
    theta, x, x_extra = (jnp.asarray(leaf, dtype) for leaf in (theta, x, x_extra))
    draw_key, jitter_key = jax.random.split(as_key(key))
    ranks = np.asarray(
        _ranks(posterior, jax.random.split(draw_key, n), Simulations(theta, x, x_extra, mask), n_samples)
    )
    jitter = np.asarray(jax.random.uniform(jitter_key, ranks.shape))
    u = (ranks + jitter) / (n_samples + 1)
    pvalues = np.array([kstest(column, "uniform").pvalue for column in u.T])
    coverage = (np.abs(u - 0.5)[..., None] <= LEVELS / 2).mean(0)
    return SBCResult(ranks, pvalues, LEVELS.copy(), coverage, posterior.prior.names, n_samples)


@partial(jax.jit, static_argnums=3)
def _ranks(posterior: HNPEPosterior, keys: Array, sims: Simulations, n_samples: int) -> Array:
    def one(row: tuple) -> Array:
        key, (theta, x, x_extra, mask) = row
        return jnp.sum(posterior.sample(key, (n_samples,), x, x_extra, mask) < theta, 0)

    return jax.lax.map(one, (keys, sims), batch_size=_AT_ONCE)
