"""Figures: how fast hyper-parameters are found, and how good inverse estimates are. Needs matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gyri.numerics.validation import check_option, import_extra

LABELS = {
    "outer": "outer objective",
    "lam": "$\\lambda$",
    "hypergrad": "hypergradient",
    "time": "time (s)",
    "inner_evals": "inner gradients",
    "hvps": "Hessian products",
    "tol": "tolerance",
}


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    plt = import_extra("matplotlib.pyplot", "gyri-shine[plot]", "to plot")
    return plt.subplots(figsize=(6.0, 3.6), layout="constrained")[1]


def plot_hoag(results: Mapping[str, Any], ax: Any = None, y: str = "outer", x: str = "time") -> Any:
    """Draw the histories of searches for hyper-parameters.

    Parameters
    ----------
    results : dict of HoagResult
        Results under each method's name.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.
    y, x : str
        Names of entries of the history. For ``"outer"`` the best value so far is drawn, above the best of all, on a
        logarithmic axis.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        No result, or an entry that the history does not have.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import hoag, plot_hoag
    >>> inner = lambda x, lam: jnp.sum((x - 2.0) ** 2) + jnp.exp(lam) * jnp.sum(x**2)
    >>> result = hoag(inner, lambda x, lam: jnp.sum((x - 1.0) ** 2), jnp.zeros(2), jnp.array(2.0), max_iter=3)
    >>> figure = plot_hoag({"SHINE": result})
    """
    if not results:
        raise ValueError("results: expected at least one, got none")
    check_option(y, "y", tuple(LABELS))
    check_option(x, "x", tuple(LABELS))
    ax = _axes(ax)
    best = min(np.nanmin(result.history["outer"]) for result in results.values())
    for i, (name, result) in enumerate(results.items()):
        across, up = (np.asarray(result.history[key], float) for key in (x, y))
        if y == "outer":
            up = np.fmin.accumulate(up) - best
        for column in up.reshape(len(up), -1).T:
            ax.plot(across.reshape(len(across), -1)[:, 0], column, ".-", color=f"C{i % 10}", label=name)
            name = "_"
    if y == "outer":
        ax.set_yscale("symlog", linthresh=max(1e-6 * abs(best), 1e-12))
        ax.set_ylim(bottom=0)
    ax.set(xlabel=LABELS[x], ylabel="best outer objective, above the least" if y == "outer" else LABELS[y])
    ax.legend()
    return ax.figure


def plot_inverse_quality(qualities: Mapping[str, Any], ax: Any = None) -> Any:
    """Draw the cosine with the exact solution against the ratio of norms, one point a vector.

    Parameters
    ----------
    qualities : dict of (rel_error, norm_ratio, cosine)
        What `inverse_quality` returns, under each method's name.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; a perfect inverse is at (1, 1).

    Raises
    ------
    ValueError
        Nothing to draw, or other things than three arrays of one shape.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.shine import inverse_quality, plot_inverse_quality
    >>> exact = np.random.default_rng(0).standard_normal((20, 5))
    >>> figure = plot_inverse_quality({"noisy": inverse_quality(exact + 0.1, exact)})
    """
    if not qualities:
        raise ValueError("qualities: expected at least one, got none")
    drawn = {}
    for name, quality in qualities.items():
        parts = [np.ravel(np.asarray(part, float)) for part in quality]
        if len(parts) != 3 or len({part.shape for part in parts}) != 1:
            raise ValueError(f"qualities[{name!r}]: expected (rel_error, norm_ratio, cosine) of one shape")
        drawn[name] = parts
    ax = _axes(ax)
    ax.axhline(1, color="0.8", zorder=0)
    ax.axvline(1, color="0.8", zorder=0)
    for name, (_, ratio, cosine) in drawn.items():
        ax.plot(ratio, cosine, "o", markersize=4, alpha=0.6, markeredgewidth=0, label=name)
    ax.set(xlabel="ratio of norms", ylabel="cosine")
    ax.legend()
    return ax.figure
