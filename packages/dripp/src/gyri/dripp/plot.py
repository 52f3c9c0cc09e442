"""Figures of a fitted model: the rate after each driver, the QQ plot of rescaled intervals, atoms. Needs matplotlib."""

from typing import Any

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import import_extra

from . import kernels
from .model import Params


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    plt = import_extra("matplotlib.pyplot", "gyri-dripp[plot]", "to plot")
    return plt.subplots(figsize=(6.0, 3.6), layout="constrained")[1]


def plot_intensity(
    params: Params,
    names: tuple[str, ...],
    *,
    lower: float,
    upper: float,
    kernel: str = "truncated_gaussian",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Draw the rate of events after one event of each driver.

    Parameters
    ----------
    params : Params
        Of one atom.
    names : tuple of str
        Names of the drivers.
    lower, upper : float
        Window in seconds.
    kernel : str
        Name of the kernel.
    title : str
        Title of the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    ax = _axes(ax)
    margin = 0.05 * (upper - lower)
    x = np.linspace(lower - margin, upper + margin, 1001)
    density = kernels.get(kernel)
    baseline = float(params.baseline)
    ax.axhline(baseline, color="0.4", linestyle="--", linewidth=1.2, label=f"baseline {baseline:.3g}/s")
    for p, name in enumerate(names):
        alpha, m, sigma = (float(values[p]) for values in params[1:])
        rate = baseline + alpha * kernels.on_host(density.pdf, x, m, sigma, lower, upper)
        effect = f"alpha {alpha:.2g}, peak at {1e3 * np.clip(m, lower, upper):.3g} ms" if alpha > 0 else "no effect"
        ax.plot(x, rate, linewidth=2, color=f"C{p}", zorder=3 if alpha > 0 else 1, label=f"{name}: {effect}")
    ax.set(xlabel="Time after a driver event (s)", ylabel="Rate (events/s)", title=title, xlim=(x[0], x[-1]))
    ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax.figure


def plot_qq(
    rescaled: Float[np.ndarray, " n_events"], *, pvalue: float = np.nan, title: str = "", ax: Any = None
) -> Any:
    """Draw quantiles of rescaled intervals against those of the uniform distribution, with a simultaneous 95 % band.

    Parameters
    ----------
    rescaled : np.ndarray, shape (n_events,)
        From `goodness_of_fit`.
    pvalue : float
        Shown if it is not NaN.
    title : str
        Title of the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    from scipy.stats import kstwo

    ax = _axes(ax)
    n = rescaled.size
    uniform = (np.arange(n) + 0.5) / max(n, 1)
    if n:
        band = kstwo.ppf(0.95, n)
        ends = np.array([0.0, 1.0])
        ax.fill_between(
            ends, ends - band, ends + band, color="0.9", linewidth=0, label="95 % band (Kolmogorov-Smirnov)"
        )
        label = f"{n} events" + ("" if np.isnan(pvalue) else f", p = {pvalue:.2g}")
        ax.plot(uniform, np.sort(rescaled), linewidth=2, color="C0", label=label)
    ax.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1.2)
    ax.set(xlabel="Quantiles, uniform", ylabel="Quantiles, rescaled intervals", title=title, xlim=(0, 1), ylim=(0, 1))
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    if n:
        ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax.figure


def plot_atoms(
    spatial: Float[np.ndarray, "n_atoms n_channels"],
    temporal: Float[np.ndarray, "n_atoms n_times_atom"],
    sfreq: float,
    info: Any,
    names: list[str],
) -> Any:
    """Draw topographies above waveforms.

    Parameters
    ----------
    spatial : np.ndarray, shape (n_atoms, n_channels)
        Topographies.
    temporal : np.ndarray, shape (n_atoms, n_times_atom)
        Waveforms.
    sfreq : float
        Hz.
    info : mne.Info
        Of the channels. Those of the first type are drawn on the head by MNE; without positions, all as bars.
    names : list of str
        Titles.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    Figure = import_extra("matplotlib.figure", "gyri-dripp[plot]", "to plot").Figure
    n_atoms = len(temporal)
    figure = Figure(figsize=(max(2.2 * n_atoms, 3.0), 4.0), layout="constrained")
    axes = figure.subplots(2, n_atoms, squeeze=False, sharey="row", height_ratios=(1.4, 1))
    first = info.get_channel_types()[0]
    of_type = [i for i, kind in enumerate(info.get_channel_types()) if kind == first]
    placed = all(np.isfinite(info["chs"][i]["loc"][:3]).all() and info["chs"][i]["loc"][:3].any() for i in of_type)
    time = 1e3 * np.arange(temporal.shape[1]) / sfreq
    for column, name in enumerate(names):
        above, below = axes[:, column]
        if placed:
            import mne

            chosen = mne.pick_info(info, of_type, verbose="error")
            mne.viz.plot_topomap(spatial[column, of_type], chosen, axes=above, show=False, contours=4)
        else:
            above.bar(np.arange(spatial.shape[1]), spatial[column], color="0.4")
            above.set_xlabel("Channel")
        above.set_title(name, fontsize="small")
        below.plot(time, temporal[column], color="C0")
        below.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        below.set_xlabel("Time (ms)")
        below.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("Topography")
    axes[1, 0].set_ylabel("Waveform")
    return figure
