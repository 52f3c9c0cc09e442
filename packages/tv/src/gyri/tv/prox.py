"""Proximal operators of total variation: exact in one dimension, by splitting in two."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from gyri.numerics import prox_tv1d as prox_tv1d
from gyri.numerics.validation import check_array, check_positive_int, check_scalar

from .problem import check_penalty


def prox_tv2d(
    x: Num[Any, "..."], lam: Any, *, max_iter: int = 50, tol: float | int = 1e-6
) -> Float[Array, "*batch height width"]:
    r"""Denoise images by anisotropic total variation.

    Solves :math:`\arg\min_u \tfrac12 \|u - x\|^2 + \lambda \sum_{ij} |u_{i+1,j} - u_{ij}| + |u_{i,j+1} - u_{ij}|` by
    splitting it into exact proximal operators along rows and along columns, each of a whole image (or batch of
    images) at once.

    Parameters
    ----------
    x : Array, shape (..., height, width)
        Images, float32 or float64; integers become floats.
    lam : float or Array, shape () or (...,)
        Penalty, one for all images or one for each, not negative.
    max_iter : int
        Most iterations, each of one pass over rows and one over columns.
    tol : float
        An image is done when an iteration changes it by at most this, relative to its norm about the mean.

    Returns
    -------
    Array, shape (..., height, width)
        The denoised images. Forward-mode derivatives only: the number of iterations depends on the data.

    Raises
    ------
    ValueError
        Fewer than two axes, empty, not finite, a negative penalty.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import prox_tv2d
    >>> prox_tv2d(jnp.array([[0.0, 0.0], [0.0, 4.0]]), 0.5).round(2)
    Array([[0.33, 0.33],
           [0.33, 3.  ]], dtype=float32)

    References
    ----------
    Boyle, Dykstra (1986); Combettes, Pesquet (2011), Proximal splitting methods in signal processing, algorithm
    10.18 for two functions.
    """
    image = jnp.asarray(check_array(x, "x"))
    if image.ndim < 2:
        raise ValueError(f"x: expected shape (..., height, width), got {image.shape}")
    batch = image.shape[:-2]
    penalty = jnp.asarray(check_penalty(lam, batch), image.dtype)[..., None, None]
    max_iter = check_positive_int(max_iter, "max_iter")
    return _splitting(image, penalty, max_iter, check_scalar(tol, "tol", minimum=0))


@jax.jit
def _splitting(x: Array, lam: Array, max_iter: Array, tol: Array) -> Array:
    # The mean stays what it is, and numbers about zero round less.
    mean = x.mean((-2, -1), keepdims=True)
    x = x - mean
    norm = lambda v: jnp.sqrt(jnp.square(v).sum((-2, -1), keepdims=True))
    limit = tol * norm(x)

    def body(state: tuple) -> tuple:
        i, u, p, q, done = state
        y = prox_tv1d(u + p, lam, axis=-1)
        p_new = u + p - y
        u_new = prox_tv1d(y + q, lam, axis=-2)
        q_new = y + q - u_new
        keep = lambda old, new: jnp.where(done, old, new)
        small = (norm(u_new - u) <= limit) & (norm(u_new - y) <= limit)
        return i + 1, keep(u, u_new), keep(p, p_new), keep(q, q_new), done | small

    zero = jnp.zeros_like(x)
    state = (0, x, zero, zero, jnp.zeros((*x.shape[:-2], 1, 1), bool))
    _, u, *_ = jax.lax.while_loop(lambda s: (s[0] < max_iter) & ~s[4].all(), body, state)
    return u + mean
