"""Figures: how fast solvers and networks converge, and what signals look like. Needs matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gyri.numerics.validation import check_array, import_extra


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    plt = import_extra("matplotlib.pyplot", "gyri-tv[plot]", "to plot")
    return plt.subplots(figsize=(6.0, 3.6), layout="constrained")[1]


def plot_convergence(
    curves: Mapping[str, Any],
    *,
    depths: Any = None,
    optimum: Any = 0.0,
    xlabel: str = "Layers or iterations",
    title: str = "",
    markers: bool = True,
    ax: Any = None,
) -> Any:
    """Draw suboptimality against depth, both on logarithmic axes.

    Parameters
    ----------
    curves : dict of array-like, shape (n_depths,) or (n, n_depths)
        Objective by depth under each method's name; one row a signal, whose mean is drawn (such as
        `Solution.history`).
    depths : array-like of shape (n_depths,), or dict of them, optional
        Depths of all curves, or of each; 0, 1, 2... by default. Depth 0 is drawn at the left edge.
    optimum : float or array-like, shape (n,)
        Least value, one or one a signal; suboptimality is what is above it.
    xlabel, title : str
        Texts.
    markers : bool
        Whether each depth is marked.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        No curve, or shapes that do not fit.

    Examples
    --------
    >>> from gyri.tv import plot_convergence
    >>> figure = plot_convergence({"PGD": [1.0, 0.5, 0.2], "APGD": [1.0, 0.4, 0.1]})
    """
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    least = np.asarray(check_array(optimum, "optimum", ndim=(0, 1)), float)
    drawn = {}
    for name, curve in curves.items():
        values = np.asarray(check_array(curve, f"curves[{name!r}]", ndim=(1, 2)), float)
        rows = np.atleast_2d(values)
        if least.ndim and len(rows) != least.size:
            raise ValueError(f"curves[{name!r}]: expected {least.size} rows as in optimum, got shape {values.shape}")
        y = (rows - least[..., None]).mean(0)
        own = depths.get(name) if isinstance(depths, Mapping) else depths
        x = np.arange(y.size) if own is None else np.asarray(check_array(own, "depths", ndim=1), float)
        if x.size != y.size:
            raise ValueError(f"depths: expected {y.size} for {name!r}, got {x.size}")
        drawn[name] = x, y
    ax = _axes(ax)
    for i, (name, (x, y)) in enumerate(drawn.items()):
        style = {"marker": "o" if markers else "", "markersize": 3.5, "linewidth": 1.8, "color": f"C{i % 10}"}
        ax.plot(x, np.maximum(y, 0), label=name, **style)
    ax.set_xscale("symlog", linthresh=1.0)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel="Mean suboptimality", title=title)
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax.figure


def plot_signals(
    signals: Mapping[str, Any], *, sfreq: float | int | None = None, title: str = "", ax: Any = None
) -> Any:
    """Draw signals over time: piecewise constant ones as steps.

    Parameters
    ----------
    signals : dict of array-like, shape (n_times,)
        Signals under their names; lengths may differ.
    sfreq : float, optional
        Samples a second; the axis shows samples when None.
    title : str
        Title of the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        No signal, or one that is no finite array with one axis.

    Examples
    --------
    >>> from gyri.tv import plot_signals
    >>> figure = plot_signals({"noisy": [0.1, -0.1, 1.2, 0.9], "TV": [0.0, 0.0, 1.0, 1.0]})
    """
    if not signals:
        raise ValueError("signals: expected at least one, got none")
    checked = {name: np.asarray(check_array(s, f"signals[{name!r}]", ndim=1), float) for name, s in signals.items()}
    ax = _axes(ax)
    for i, (name, signal) in enumerate(checked.items()):
        t = np.arange(signal.size) / (sfreq or 1)
        flat = np.mean(np.diff(signal) == 0) > 0.5 if signal.size > 1 else True
        style = {"drawstyle": "steps-mid", "linewidth": 2.0, "zorder": 3} if flat else {"linewidth": 1.0, "alpha": 0.8}
        ax.plot(t, signal, color=f"C{i % 10}", label=name, **style)
    ax.set(xlabel="Sample" if sfreq is None else "Time (s)", title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax.figure
