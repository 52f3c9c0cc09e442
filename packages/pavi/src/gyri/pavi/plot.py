"""Figures: how the ELBO rises while training, and marginals of a site over its copies. Needs matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gyri.numerics.validation import check_array, check_positive_int, check_scalar, import_extra


def _axes(ax: Any) -> Any:
    plt = import_extra("matplotlib.pyplot", "gyri-pavi[plot]", "to plot")
    return plt.subplots(figsize=(6.0, 3.6), layout="constrained")[1] if ax is None else ax


def _moving_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median of the last `width` values, from the first on."""
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), 1)


def plot_elbo(losses: Any, *, ax: Any = None, smooth: int = 50) -> Any:
    """Draw the ELBO of each step of one or several fits.

    Parameters
    ----------
    losses : array, shape (n_steps,), or dict of str to such arrays
        Losses as of `fit`: the negative ELBO. Several are drawn over each other, under their names.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.
    smooth : int
        The line is the median of so many steps up to each, and single steps are pale behind it; 1 draws the steps.

    Returns
    -------
    matplotlib.figure.Figure
        The figure. The first steps of a fit are often far below the rest, so that the axis begins at the twentieth part
        of the smoothed line.

    Raises
    ------
    ValueError
        Nothing to draw, a wrong shape, losses that are not finite.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.pavi import plot
    >>> steps = np.arange(1_000)
    >>> figure = plot.plot_elbo({"PAVI": 1 + np.exp(-steps / 100), "mean field": 2 + np.exp(-steps / 300)})
    """
    sets = dict(losses) if isinstance(losses, Mapping) else {"": losses}
    if not sets:
        raise ValueError("losses: expected at least one set, got none")
    sets = {name: np.asarray(check_array(v, f"losses {name}".strip(), ndim=1), float) for name, v in sets.items()}
    smooth = check_positive_int(smooth, "smooth")
    ax = _axes(ax)
    low, high = [], []
    for i, (name, values) in enumerate(sets.items()):
        lines = _moving_median(-values, min(smooth, len(values)))
        steps = np.arange(1, 1 + len(values))
        if smooth > 1:
            ax.plot(steps, -values, color=f"C{i % 10}", alpha=0.2, linewidth=0.5, rasterized=True)
        ax.plot(steps, lines, color=f"C{i % 10}", label=name or "_")
        low.append(np.quantile(lines, 0.05))
        high.append(lines.max())
    margin = 0.05 * (max(high) - min(low)) or 0.5
    ax.set(xlabel="step", ylabel="ELBO (nat)", ylim=(min(low) - margin, max(high) + margin))
    ax.spines[["top", "right"]].set_visible(False)
    if any(sets):
        ax.legend(frameon=False)
    return ax.figure


def plot_posterior(
    samples: Mapping[str, Any], site: str, *, ax: Any = None, event_index: int | None = 0, prob: float | int = 0.9
) -> Any:
    """Draw the median and a central interval of each copy of a site.

    Parameters
    ----------
    samples : dict of str to array, shape (n_draws, ...)
        Draws, as of `AutoPAVI.sample_posterior`: the batch, then the event.
    site : str
        Which site to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.
    event_index : int, optional
        Which entry of the last axis: events are taken to be vectors. None for a site of scalars, whose axes are all
        plates.
    prob : float
        Probability of the interval, in (0, 1).

    Returns
    -------
    matplotlib.figure.Figure
        The figure; copies are numbered in C order of their plates.

    Raises
    ------
    ValueError
        An unknown site, no such entry, a probability out of range, draws that are not finite.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.pavi import plot
    >>> draws = np.random.default_rng(0).normal(size=(500, 20, 1, 2)) + np.arange(20.0)[:, None, None]
    >>> figure = plot.plot_posterior({"theta": draws}, "theta")
    """
    if site not in samples:
        raise ValueError(f"site: expected one of {sorted(samples)}, got {site!r}")
    prob = check_scalar(prob, "prob", minimum=0, maximum=1)
    if not 0 < prob < 1:
        raise ValueError(f"prob: expected between 0 and 1, got {prob}")
    draws = np.asarray(check_array(samples[site], f"samples[{site!r}]"), float)
    if draws.ndim == 0:
        raise ValueError(f"samples[{site!r}]: expected shape (n_draws, ...), got ()")
    if event_index is None or draws.ndim == 1:
        draws, event_index = draws[..., None], 0
    if not 0 <= event_index < draws.shape[-1]:
        raise ValueError(f"event_index: expected 0 to {draws.shape[-1] - 1}, got {event_index}")
    draws = draws[..., event_index].reshape(len(draws), -1)
    low, median, high = np.quantile(draws, [(1 - prob) / 2, 0.5, (1 + prob) / 2], axis=0)
    ax = _axes(ax)
    copies = np.arange(draws.shape[1])
    many = len(copies) > 200
    if many:  # single intervals would run into each other
        ax.fill_between(copies, low, high, alpha=0.3, linewidth=0)
    else:
        ax.vlines(copies, low, high, color="C0", alpha=0.5)
    ax.plot(copies, median, "," if many else ".", color="C0")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="copy", ylabel=f"{site}: median and {100 * prob:g} % interval")
    ax.spines[["top", "right"]].set_visible(False)
    return ax.figure
