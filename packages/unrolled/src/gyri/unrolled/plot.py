"""Figures of atoms and of the course of training. Needs matplotlib."""

from typing import Any

import numpy as np

from gyri.numerics.validation import import_extra

_MOST = 64  # atoms on one figure


def _pyplot() -> Any:
    return import_extra("matplotlib.pyplot", "gyri-unrolled[plot]", "to plot")


def plot_atoms(model: Any, info: Any = None) -> Any:
    """Draw the atoms of a fitted model, one panel each: the waveforms, the pictures, or topographies above waveforms.

    Parameters
    ----------
    model : DictionaryLearning, ConvDictionaryLearning or AnalysisPrior
        Fitted. Vectors whose length is a square number are drawn as pictures, as those of patches are.
    info : mne.Info, optional
        Sensors, for topographies of rank-one atoms; that of the model by default.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, with the first 64 atoms.

    Raises
    ------
    ValueError
        If the model is not fitted.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from gyri.unrolled import plot_atoms
    >>> len(plot_atoms(SimpleNamespace(components_=np.eye(4))).axes)
    4
    """
    atoms = getattr(model, "components_", getattr(model, "prior_", None))
    if atoms is None:
        raise ValueError("model: expected a fitted one, got one without components_ or prior_")
    atoms = np.asarray(atoms)[:_MOST]
    info = getattr(model, "info_", None) if info is None else info
    if hasattr(model, "spatial_"):
        return _plot_rank1(np.asarray(model.spatial_)[:_MOST], np.asarray(model.temporal_)[:_MOST], info)
    if hasattr(model, "prior_") and atoms.ndim > 2:
        atoms = atoms[:, None]
    side = round(atoms.shape[1] ** 0.5) if atoms.ndim == 2 else 0
    if side > 2 and side * side == atoms.shape[1]:
        atoms = atoms.reshape(len(atoms), 1, side, side)
    columns = int(np.ceil(np.sqrt(len(atoms)))) if atoms.ndim == 4 else min(len(atoms), 4)
    rows = -(-len(atoms) // columns)
    size = (0.9 * columns, 0.9 * rows) if atoms.ndim == 4 else (2.4 * columns, 1.3 * rows + 0.4)
    figure, axes = _pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for k, ax in enumerate(axes.flat):
        if k >= len(atoms):
            ax.remove()
        elif atoms.ndim == 4:
            _draw_picture(ax, atoms[k])
        else:
            ax.plot(np.atleast_2d(atoms[k]).T, linewidth=1)
            ax.set_title(f"atom {k}", fontsize="small")
            _clean(ax)
    return figure


def _draw_picture(ax: Any, atom: np.ndarray) -> None:
    limit = np.abs(atom).max() or 1.0
    if len(atom) == 3:
        ax.imshow(np.moveaxis(0.5 + 0.5 * atom / limit, 0, -1))
    else:
        ax.imshow(atom.mean(0), cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_axis_off()


def _plot_rank1(spatial: np.ndarray, temporal: np.ndarray, info: Any) -> Any:
    n = len(spatial)
    columns = min(n, 6)
    blocks = -(-n // columns)
    figure, axes = _pyplot().subplots(
        2 * blocks, columns, figsize=(1.9 * columns, 2.9 * blocks), layout="constrained", squeeze=False
    )
    times = np.arange(temporal.shape[1]) / (1.0 if info is None else info["sfreq"])
    for k in range(blocks * columns):
        top, bottom = axes[2 * (k // columns), k % columns], axes[2 * (k // columns) + 1, k % columns]
        if k >= n:
            top.remove()
            bottom.remove()
            continue
        if info is None:
            top.bar(np.arange(spatial.shape[1]), spatial[k], color="0.4")
            top.set_xlabel("channel", fontsize="small")
            _clean(top)
        else:
            import mne

            mne.viz.plot_topomap(spatial[k], info, axes=top, show=False)
        top.set_title(f"atom {k}", fontsize="small")
        bottom.plot(times, temporal[k], color="C0", linewidth=1.2)
        bottom.set_xlabel("sample" if info is None else "Time (s)", fontsize="small")
        _clean(bottom)
    return figure


def _clean(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")


def plot_history(model: Any) -> Any:
    """Draw the loss and the step sizes of the training against time.

    Parameters
    ----------
    model : DictionaryLearning, ConvDictionaryLearning or AnalysisPrior
        Fitted.

    Returns
    -------
    matplotlib.figure.Figure
        The figure: loss of each step, or minibatch, against the seconds since the start; step sizes.

    Raises
    ------
    ValueError
        If the model is not fitted.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from gyri.unrolled import plot_history
    >>> history = {"loss": np.array([3.0, 2.0]), "time": np.array([0.0, 1.0]), "step": np.array([0.0, 0.5])}
    >>> len(plot_history(SimpleNamespace(history_=history)).axes)
    2
    """
    history = getattr(model, "history_", None)
    if history is None:
        raise ValueError("model: expected a fitted one, got one without history_")
    figure, axes = _pyplot().subplots(1, 2, figsize=(8, 3), layout="constrained")
    axes[0].plot(history["time"], history["loss"], color="C0", linewidth=1.2)
    axes[0].set(xlabel="Time since the start (s)", ylabel="Loss")
    if np.all(history["loss"] > 0):
        axes[0].set_yscale("log")
    taken = history["step"] > 0
    axes[1].plot(np.flatnonzero(taken), history["step"][taken], ".", color="C1")
    axes[1].set(xlabel="Step", ylabel="Step size")
    if taken.any():
        axes[1].set_yscale("log")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure
