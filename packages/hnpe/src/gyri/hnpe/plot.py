"""Figures of posterior draws. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gyri.numerics.validation import check_array, import_extra

_N_DOTS = 2000


def import_pyplot() -> Any:
    """Matplotlib, or an error that says how to get it.

    Examples
    --------
    >>> from gyri.hnpe.plot import import_pyplot
    >>> import_pyplot().__name__
    'matplotlib.pyplot'
    """
    return import_extra("matplotlib.pyplot", "gyri-hnpe[plot]", "to plot")


def pairplot(
    samples: Any,
    names: Sequence[str] | None = None,
    limits: Any = None,
    points: Any = None,
) -> tuple[Any, Any]:
    """Draws of each parameter and each pair of them.

    Parameters
    ----------
    samples : array, shape (n, d), or mapping of str to such arrays
        Draws; several sets are drawn over each other, under their labels.
    names : sequence of str, optional
        Of the parameters.
    limits : sequence of (float, float), optional
        Ends of each axis; those of the draws by default.
    points : array, shape (d,), optional
        Marked by lines: the truth.

    Returns
    -------
    figure, axes
        Matplotlib's, axes of shape (d, d).

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        Wrong shapes, no draws, values that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.hnpe import pairplot
    >>> figure, axes = pairplot({"wide": np.random.default_rng(0).normal(size=(500, 2))}, names=["a", "b"])
    >>> axes.shape
    (2, 2)
    """
    sets = dict(samples) if isinstance(samples, Mapping) else {"": samples}
    if not sets:
        raise ValueError("samples: expected at least one set of draws, got none")
    sets = {label: np.asarray(check_array(draws, f"samples {label}".strip(), ndim=2)) for label, draws in sets.items()}
    dim = next(iter(sets.values())).shape[1]
    for label, draws in sets.items():
        if draws.shape[1] != dim:
            raise ValueError(f"samples {label}: expected {dim} parameters as in the first set, got shape {draws.shape}")
    names = [f"parameter {i}" for i in range(dim)] if names is None else list(names)
    for value, name in ((names, "names"), (limits, "limits")):
        if value is not None and len(value) != dim:
            raise ValueError(f"{name}: expected {dim}, one for each parameter, got {len(value)}")
    points = None if points is None else np.asarray(check_array(points, "points", shape=(dim,)))
    every = np.concatenate(list(sets.values()))
    limits = list(zip(every.min(0), every.max(0), strict=True)) if limits is None else list(limits)
    # A parameter that does not vary still gets an axis with a width.
    limits = [(low, high) if high > low else (low - 0.5, high + 0.5) for low, high in limits]
    plt = import_pyplot()
    figure, axes = plt.subplots(dim, dim, figsize=(2.2 * dim + 0.6,) * 2, layout="constrained", squeeze=False)
    for i in range(dim):
        for j in range(dim):
            _draw_cell(axes[i, j], i, j, sets, names, limits, points, dim)
    if any(sets):
        handles = [plt.Line2D([], [], color=f"C{k}") for k in range(len(sets))]
        figure.legend(handles, list(sets), loc="outside upper right", frameon=False, ncols=len(sets))
    return figure, axes


def _draw_cell(ax: Any, i: int, j: int, sets: dict, names: Any, limits: Any, points: Any, dim: int) -> None:
    """One cell of a pair plot: a histogram on the diagonal, dots below it, nothing above."""
    if j > i:
        ax.set_visible(False)
        return
    for k, draws in enumerate(sets.values()):
        if i == j:
            bins = np.linspace(limits[i][0], limits[i][1], 41)
            ax.hist(draws[:, i], bins, density=True, histtype="stepfilled", color=f"C{k}", alpha=0.4)
        else:
            dots = draws[:: max(1, len(draws) // _N_DOTS)]
            ax.plot(dots[:, j], dots[:, i], ".", markersize=2, color=f"C{k}", alpha=0.4, rasterized=True)
            ax.set_ylim(limits[i])
    if points is not None:
        ax.axvline(points[j], color="k", linewidth=0.8, linestyle="--")
        if i != j:
            ax.axhline(points[i], color="k", linewidth=0.8, linestyle="--")
    ax.set_xlim(limits[j])
    ax.spines[["top", "right"]].set_visible(False)
    if i == j:
        ax.set_yticks([])
    if i == dim - 1:
        ax.set_xlabel(names[j])
    else:
        ax.set_xticklabels([])
    if j == 0 and i > 0:
        ax.set_ylabel(names[i])
    elif i != j:
        ax.set_yticklabels([])
