"""What the experiments share: the recipe's data, a photograph, axes."""

from typing import Any

import jax
import numpy as np

from ..datasets import perturb, simulate, unit_rows

LAM = 0.1


def recipe(seed: int, n_features: int, n_components: int, n_samples: int) -> tuple[Any, Any, Any]:
    """Signals, true atoms, and the start of the paper's experiments: the truth with noise.

    Examples
    --------
    >>> [a.shape for a in recipe(0, 5, 8, 20)]
    [(20, 5), (8, 5), (8, 5)]
    """
    X, truth, _ = simulate(seed, n_samples, n_features, n_components)
    return X, truth, unit_rows(perturb(jax.random.fold_in(jax.random.key(seed), 1), truth))


def photograph(size: int) -> np.ndarray:
    """Middle of a photograph of a flower that scikit-learn ships, grey, in [0, 1], averaged down to a square."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("flower.jpg").mean(-1) / 255
    side = min(grey.shape) // size * size
    top, left = (grey.shape[0] - side) // 2, (grey.shape[1] - side) // 2
    square = grey[top : top + side, left : left + side]
    n = side // size
    return square.reshape(size, n, size, n).mean((1, 3)).astype(np.float32)


def new_figure(n_panels: int, width: float = 3.6, height: float = 3.2) -> tuple[Any, Any]:
    """A figure of panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n_panels, height), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def mark(ax: Any, places: Any) -> None:
    """Ticks at these places of a logarithmic axis, and no others, whose labels would run into each other."""
    places = [float(place) for place in places]
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.minorticks_off()


def show_images(images: dict[str, np.ndarray], columns: int = 4) -> Any:
    """Pictures under their titles."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, (title, image) in zip(axes, images.items()):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize="small")
    for ax in figure.axes:
        ax.set_axis_off()
    return figure
