"""What rewards wide augmentation."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gyri.numerics.validation import check_option

KINDS = ("selective", "magnitude", "width", "width_safe")
SAFE_WIDTH = 10.0  # a width beyond which Augerino's safe penalty pays nothing


def _norm(x: Float[Array, "n"]) -> Float[Array, ""]:
    """Euclidean norm whose derivative at 0 is 0."""
    square = jnp.sum(x**2)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def invariance_penalty(model: Any, *, kind: str = "selective") -> Float[Array, ""]:
    r"""Size of the learned augmentation, to be rewarded: the loss is the cross-entropy minus a factor times it.

    Parameters
    ----------
    model : AugNet, AugmentationLayer, Augerino or pair of Array
        What was learned; a pair holds weights and magnitudes, both of shape (n,).
    kind : {"selective", "magnitude", "width", "width_safe"}
        :math:`\|w \odot \mu\|_2`, which pays a magnitude only as much as its transform is used; :math:`\|\mu\|_2`;
        the norm :math:`\|r\|_2` of Augerino's widths; or that as long as all of them are below 10, and else 0.

    Returns
    -------
    Array, shape ()
        The norm over all layers, not its square; its derivative at 0 is 0.

    Raises
    ------
    ValueError
        For an unknown kind, or one that needs what the model does not have.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import invariance_penalty
    >>> invariance_penalty((jnp.array([0.6, 0.4]), jnp.array([0.5, 1.0])))
    Array(0.5, dtype=float32)

    References
    ----------
    Rommel, Moreau, Gramfort (2022); Benton et al. (2020) for the widths.
    """
    check_option(kind, "kind", KINDS)
    if kind.startswith("width"):
        widths = [part.width for part in (model, *getattr(model, "layers", ())) if hasattr(part, "width")]
        if not widths:
            raise ValueError(f"kind: expected 'selective' or 'magnitude' for a model without an Augerino, got {kind!r}")
        width = jnp.concatenate(widths)
        norm = _norm(width)
        return norm if kind == "width" else jnp.where((width < SAFE_WIDTH).all(), norm, 0)
    if isinstance(model, tuple | list):
        weights, magnitudes = (jnp.asarray(part) for part in model)
    elif hasattr(model, "layers"):
        weights, magnitudes = model.weights, model.magnitudes
    else:
        weights, magnitudes = getattr(model, "weights", jnp.zeros(0)), getattr(model, "magnitude", jnp.zeros(0))[...]
    if not magnitudes.size or weights.shape != magnitudes.shape:
        raise ValueError(f"model: expected weights and magnitudes, got shapes {weights.shape} and {magnitudes.shape}")
    return _norm(weights * magnitudes if kind == "selective" else magnitudes)
