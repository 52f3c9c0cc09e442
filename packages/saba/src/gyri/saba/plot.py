"""Figures: how fast solvers converge. Needs matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gyri.numerics.validation import check_option, import_extra

from .types import Result

LABELS = {"calls": "Oracle calls, inner and outer", "time_s": "Time (s)", "step": "Iterations"}


def plot_convergence(results: Mapping[str, Result], *, key: str, x: str = "calls", ax: Any = None) -> Any:
    """Draw a metric of several solvers against what it cost them, on a logarithmic axis.

    Parameters
    ----------
    results : dict of Result
        Under each solver's name.
    key : str
        A metric of their histories; positive numbers are drawn.
    x : {"calls", "time_s", "step"}
        What it costs.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        No result, an unknown `x`, or a metric that a history lacks.

    Examples
    --------
    >>> from gyri.saba import minimize, plot_convergence, problems, saba
    >>> problem = problems.quadratic(0, n=64, m=64, p=3, d=2)
    >>> result = minimize(
    ...     saba(problem.inner_fun, problem.outer_fun, batch_size=16),
    ...     *(problem.z0, problem.x0, problem.inner_data, problem.outer_data),
    ...     num_steps=100,
    ...     eval_every=20,
    ...     metrics=lambda z, v, x: {"gap": problem.value(x) - problem.value(problem.minimizer())},
    ... )
    >>> plot_convergence({"SABA": result}, key="gap").get_ylabel()
    'gap'
    """
    check_option(x, "x", LABELS)
    if not results:
        raise ValueError("results: expected at least one result, got none")
    for name, result in results.items():
        if key not in result.history:
            raise ValueError(f"key: expected one of {', '.join(result.history)} of {name}, got {key!r}")
    plt = import_extra("matplotlib.pyplot", "gyri-saba[plot]", "to plot")
    ax = plt.subplots(figsize=(6.0, 3.6), layout="constrained")[1] if ax is None else ax
    for name, result in results.items():
        history = result.history
        cost = history["calls_inner"] + history["calls_outer"] if x == "calls" else history[x]
        values = np.asarray(history[key], float)
        ax.plot(cost, np.where(values > 0, values, np.nan), label=name)
    ax.set(xlabel=LABELS[x], ylabel=key, yscale="log")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
