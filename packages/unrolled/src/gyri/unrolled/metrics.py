"""How well patterns were recovered, blind to order and sign (and shift), and how well images were."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gyri.numerics.csc import align_atoms
from gyri.numerics.validation import check_array, check_scalar


def recovery_score(components: Float[Any, "..."], reference: Float[Any, "..."]) -> float:
    """How alike two dictionaries are: mean absolute cosine of atoms matched one to one, 1 for the same patterns.

    Atoms are divided by their norms and matched by the Hungarian method; order and sign play no role. Convolutional
    atoms are compared at the best shift, too.

    Parameters
    ----------
    components : array-like, shape (n_components, n_features) or (n_components, n_channels, ...)
        Learned atoms, which are not all zero.
    reference : array-like, of as many axes
        True ones; their number may differ (the mean is over the smaller of the two), as may their kernel.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.unrolled import recovery_score
    >>> recovery_score(np.eye(3)[::-1], -2.0 * np.eye(3)[:2])
    1.0

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), section 4; Kuhn (1955), The Hungarian method for the assignment problem.
    """
    components, reference = check_array(components, "components"), check_array(reference, "reference")
    if components.ndim < 2:
        raise ValueError(f"components: expected shape (n_components, n_features, ...), got {components.shape}")
    if components.ndim != reference.ndim or (components.ndim == 2 and components.shape[1] != reference.shape[1]):
        raise ValueError(
            f"reference: expected atoms like those of components {components.shape}, got {reference.shape}"
        )
    if components.ndim > 2:
        few, many = sorted((components, reference), key=len)
        # Whichever are fewer are each matched.
        return float(np.mean(align_atoms(jnp.asarray(many), jnp.asarray(few))[3]))
    cosines = np.abs(_unit(reference) @ _unit(components).T)
    from scipy.optimize import linear_sum_assignment  # takes longer to import than all of this package

    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return float(min(cosines[rows, columns].mean(), 1.0))


def _unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def psnr(image: Any, reference: Any, data_range: float | int = 1.0) -> float:
    """Peak signal to noise ratio in decibels, infinite for equal images.

    Parameters
    ----------
    image, reference : array-like, of one shape
        Restored and true image.
    data_range : float
        Range of the values, positive.

    Returns
    -------
    float
        ``10 log10(data_range^2 / mean squared error)``.

    Raises
    ------
    ValueError
        Shapes that differ, NaN or infinity.

    Examples
    --------
    >>> round(psnr(np.full((4, 4), 0.6), np.full((4, 4), 0.5)), 3)
    20.0
    """
    image = check_array(image, "image")
    reference = check_array(reference, "reference", shape=image.shape)
    data_range = check_scalar(data_range, "data_range", minimum=0, strict=True)
    error = np.mean(np.square(np.asarray(image, np.float64) - np.asarray(reference, np.float64)))
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")
