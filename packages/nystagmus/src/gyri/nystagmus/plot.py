"""Figures of a decomposition and of its atoms. Needs matplotlib."""

from typing import Any

import numpy as np

from gyri.numerics.validation import check_array, check_scalar, import_extra


def _pyplot() -> Any:
    return import_extra("matplotlib.pyplot", "gyri-nystagmus[plot]", "to plot")


def plot_decomposition(model_or_parts: Any, t: Any = None, ax: Any = None, *, trial: int = 0, channel: int = 0) -> Any:
    """Draw a recording with its trend, the detrended recording with the patterns found, and the activations.

    Parameters
    ----------
    model_or_parts : NystagmusCDL or Decomposition
        A fitted model, or what its `decompose` returned.
    t : array-like, shape (n_times,), optional
        Times in seconds; from the model's sampling frequency by default, else in samples.
    ax : sequence of three matplotlib.axes.Axes, optional
        Where to draw; a new figure otherwise.
    trial, channel : int
        Which one.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        If `t` or `ax` do not fit.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> x = np.zeros((1, 1, 100))
    >>> parts = SimpleNamespace(trend=x, pattern=x, residual=x, codes=np.zeros((1, 2, 81)))
    >>> len(plot_decomposition(parts).axes)
    3
    """
    sfreq = getattr(model_or_parts, "sfreq_", None)
    parts = model_or_parts.decomposition_ if hasattr(model_or_parts, "decomposition_") else model_or_parts
    trend, pattern, residual = (
        np.asarray(part)[trial, channel] for part in (parts.trend, parts.pattern, parts.residual)
    )
    codes = np.asarray(parts.codes)[trial]
    if t is None:
        t = np.arange(trend.size) / (sfreq or 1.0)
    t = np.asarray(check_array(t, "t", shape=trend.shape, dtype=np.float64))
    axes = _three_axes(ax)
    axes[0].plot(t, trend + pattern + residual, color="0.6", linewidth=0.8, label="recording")
    axes[0].plot(t, trend, color="C3", linewidth=1.5, label="trend")
    axes[1].plot(t, pattern + residual, color="0.6", linewidth=0.8, label="detrended")
    axes[1].plot(t, pattern, color="C0", linewidth=1.2, label="patterns")
    for k, row in enumerate(codes):
        active = np.flatnonzero(row)
        axes[2].vlines(t[active], 0, row[active], color=f"C{k}", linewidth=1.2, label=f"atom {k}")
    axes[2].set_xlim(t[0], t[-1])
    for axis, name in zip(axes, ("Gaze (deg)", "Gaze (deg)", "Activation (deg)"), strict=True):
        axis.set_ylabel(name)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small", loc="upper right")
    axes[2].set_xlabel("Time (s)" if sfreq else "Time")
    return axes[0].figure


def _three_axes(ax: Any) -> Any:
    if ax is None:
        return _pyplot().subplots(3, 1, figsize=(8.0, 6.0), sharex=True, layout="constrained")[1]
    if np.size(ax) != 3:
        raise ValueError(f"ax: expected three axes, got {np.size(ax)}")
    return list(np.ravel(ax))


def plot_atoms(
    atoms: Any,
    sfreq: float | int | None = None,
    *,
    scale: Any = None,
    ch_names: Any = None,
    ax: Any = None,
) -> Any:
    """Draw the waveforms of atoms.

    Parameters
    ----------
    atoms : array-like, shape (n_atoms, n_channels, n_times_atom)
        The waveforms.
    sfreq : float, optional
        Sampling frequency in Hz; the axis is in milliseconds with it, else in samples.
    scale : array-like, shape (n_atoms,), optional
        Median activations: the waveforms are then drawn at their size in degrees.
    ch_names : sequence of str, optional
        Names of the channels.
    ax : sequence of matplotlib.axes.Axes, one an atom, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        If an argument has the wrong shape.

    Examples
    --------
    >>> len(plot_atoms(np.ones((2, 1, 50)), 500.0).axes)
    2
    """
    waves = np.asarray(check_array(atoms, "atoms", ndim=3))
    size = None if scale is None else np.asarray(check_array(scale, "scale", shape=(len(waves),)))
    if ax is None:
        width = min(3.2 * len(waves), 12.0)
        ax = _pyplot().subplots(1, len(waves), figsize=(width, 2.8), squeeze=False, layout="constrained")[1]
    axes = np.ravel(ax)
    if axes.size != len(waves):
        raise ValueError(f"ax: expected {len(waves)} axes, one an atom, got {axes.size}")
    t = np.arange(waves.shape[-1]) if sfreq is None else 1e3 * np.arange(waves.shape[-1]) / check_scalar(sfreq, "sfreq")
    for k, (axis, wave) in enumerate(zip(axes, waves, strict=True)):
        for p, channel in enumerate(wave):
            name = str(p) if ch_names is None else ch_names[p]
            axis.plot(t, channel if size is None else size[k] * channel, label=name)
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=f"Atom {k}", xlabel="Time (samples)" if sfreq is None else "Time (ms)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Waveform" if size is None else "Gaze (deg)")
    if waves.shape[1] > 1:
        axes[0].legend(frameon=False, fontsize="small")
    return axes[0].figure
