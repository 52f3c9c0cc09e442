"""What the augmentations became in the course of training. Needs matplotlib."""

from typing import Any

import numpy as np

from gyri.numerics.validation import import_extra


def _pyplot() -> Any:
    return import_extra("matplotlib.pyplot", "gyri-augnet[plot]", "to plot")


def plot_augmentations(history_or_classifier: Any, ax: Any = None) -> Any:
    """Draw the weights (solid) and the magnitudes (dashed) of the transforms against the epoch.

    Parameters
    ----------
    history_or_classifier : dict or AugNetClassifier
        `history_` of a fitted classifier, or the classifier, which has the names of its transforms, too.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure when None.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.

    Raises
    ------
    ValueError
        If there is no complete epoch to draw.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.augnet import plot_augmentations
    >>> history = {"weights": np.full((3, 2), 0.5), "magnitudes": np.linspace(0, 1, 6).reshape(3, 2)}
    >>> len(plot_augmentations(history).axes[0].lines)
    4
    """
    history = history_or_classifier
    names = None
    if not isinstance(history, dict):
        history = getattr(history, "history_", {})
        rows = history_or_classifier.model_.describe() if history else []
        several = len({row["layer"] for row in rows}) > 1
        names = [f"{row['operation']} ({row['layer'] + 1})" if several else row["operation"] for row in rows]
    weights, magnitudes = (np.asarray(history.get(name, [])) for name in ("weights", "magnitudes"))
    if weights.ndim != 2 or weights.shape != magnitudes.shape or not weights.size:
        raise ValueError("history_or_classifier: expected at least one epoch of weights and magnitudes")
    if names is None or len(names) != weights.shape[1]:
        names = [f"transform {i + 1}" for i in range(weights.shape[1])]
    figure = None
    if ax is None:
        figure, ax = _pyplot().subplots(figsize=(6.4, 3.6), layout="constrained")
    epochs = np.arange(1, len(weights) + 1)
    # The transforms that matter in the end have strong colours, the others are gray.
    share = (weights * magnitudes)[-1]
    strong = np.argsort(-share)[:8]
    for i, name in enumerate(names):
        colour = f"C{list(strong).index(i)}" if i in strong and (len(names) <= 8 or share[i] > 0.01) else "0.8"
        ax.plot(epochs, weights[:, i], color=colour, label=name if colour != "0.8" else None)
        ax.plot(epochs, magnitudes[:, i], color=colour, linestyle="--")
    ax.set(xlabel="epoch", ylabel="weight (solid), magnitude (dashed)", ylim=(-0.02, 1.02))
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax.figure if figure is None else figure
