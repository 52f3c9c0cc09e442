"""Comparison of two dictionaries, blind to the order, shift and sign of their atoms."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .operators import Shaped, check_atoms, fft_shape


@jax.jit
def normalized_correlations(atoms: Array, reference: Array) -> Array:
    """Cosine of each reference and each atom at each circular shift, long enough that nothing wraps."""
    axes = tuple(range(2, atoms.ndim))
    length = fft_shape([a + b - 1 for a, b in zip(atoms.shape[2:], reference.shape[2:], strict=True)])

    def spectrum(x: Array) -> Array:
        peak = jnp.max(jnp.abs(x), tuple(range(1, x.ndim)), keepdims=True)
        x = x / jnp.where(peak > 0, peak, 1)
        size = jnp.sqrt(jnp.sum(jnp.square(x), tuple(range(1, x.ndim)), keepdims=True))
        return jnp.fft.rfftn(x / jnp.where(size > 0, size, 1), length, axes)

    product = jnp.einsum("jp...,kp...->jk...", spectrum(reference), jnp.conj(spectrum(atoms)), precision="highest")
    return jnp.fft.irfftn(product, length, axes)


def align_atoms(
    atoms: Shaped, reference: Shaped
) -> tuple[
    Int[np.ndarray, " n_reference"],
    Int[np.ndarray, "n_reference *n_axes"],
    Int[np.ndarray, " n_reference"],
    Float[np.ndarray, " n_reference"],
]:
    """Match atoms to those of a reference dictionary: which, how far shifted, with what sign, and how alike.

    Each pair is scored by the largest absolute cosine over all shifts, the atoms being zero outside their support;
    the assignment of the largest sum of scores is found by the Hungarian method. For tests and figures; on the host.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Atoms, at least as many as references.
    reference : Array, shape (n_reference, n_channels, n_times_reference, ...)
        Reference, such as the truth of a simulation; its atoms may have another length.

    Returns
    -------
    order : ndarray of int, shape (n_reference,)
        ``atoms[order]`` are the matches of `reference`.
    shift : ndarray of int, shape (n_reference,), or (n_reference, n_axes) for several axes
        Samples by which the match is moved to later times to lie on its reference.
    sign : ndarray of int, shape (n_reference,)
        1 or -1, by which the match is multiplied.
    correlation : ndarray, shape (n_reference,)
        Absolute cosine, 0 to 1.

    Raises
    ------
    ValueError
        Fewer atoms than references, other numbers of channels or axes, non-finite values.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.numerics.csc import align_atoms
    >>> reference = np.array([[[0.0, 1.0, 2.0]], [[1.0, -1.0, 0.0]]], np.float32)
    >>> atoms = np.array([[[0.0, -1.0, 1.0]], [[1.0, 2.0, 0.0]]], np.float32)
    >>> order, shift, sign, correlation = align_atoms(atoms, reference)
    >>> order, shift, sign, correlation.round(3)
    (array([1, 0]), array([ 1, -1]), array([ 1, -1]), array([1., 1.], dtype=float32))

    References
    ----------
    Kuhn (1955), The Hungarian method for the assignment problem.
    """
    from scipy.optimize import linear_sum_assignment

    atoms = check_atoms(atoms)
    try:
        reference = check_atoms(reference)
    except ValueError as error:
        raise ValueError(str(error).replace("atoms:", "reference:", 1)) from None
    if reference.ndim != atoms.ndim or reference.shape[1] != atoms.shape[1] or reference.shape[0] > atoms.shape[0]:
        raise ValueError(
            f"reference: expected as many channels and axes as atoms, of shape {atoms.shape}, and at most as many "
            f"atoms, got {reference.shape}"
        )
    values = np.asarray(normalized_correlations(jnp.asarray(atoms), jnp.asarray(reference)))
    length = values.shape[2:]
    flat = values.reshape(*values.shape[:2], -1)
    best = np.abs(flat).argmax(-1)
    cosine = np.take_along_axis(flat, best[..., None], -1)[..., 0]
    rows, order = linear_sum_assignment(np.abs(cosine), maximize=True)
    place = np.stack(np.unravel_index(best[rows, order], length), -1)
    # The second half of the circle are negative shifts; a match is moved forward by less than the reference's length.
    shift = np.where(place >= np.array(reference.shape[2:]), place - np.array(length), place)
    chosen = cosine[rows, order]
    sign = np.where(chosen < 0, -1, 1)
    return order, shift[:, 0] if len(length) == 1 else shift, sign, np.minimum(np.abs(chosen), 1)
