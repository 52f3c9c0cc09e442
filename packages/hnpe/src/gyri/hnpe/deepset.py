"""Functions of a set: they depend neither on the order of its elements nor on what fills the missing ones."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(features: Float[Any, "n_extra d"], mask: Bool[Any, "n_extra"]) -> Float[Array, "d"]:
    """Mean over the elements that there are; zero if there are none.

    Parameters
    ----------
    features : array, shape (N_max, d)
        Of each element; anything, NaN included, where there is none.
    mask : array of bool, shape (N_max,)
        Which there are.

    Returns
    -------
    Array, shape (d,)
        The mean.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.deepset import masked_mean
    >>> masked_mean(jnp.array([[1.0], [3.0], [jnp.nan]]), jnp.array([True, True, False]))
    Array([2.], dtype=float32)
    """
    # `where`, not a product: NaN times zero is NaN.
    total = jnp.sum(jnp.where(mask[:, None], features, 0), 0)
    return total / jnp.maximum(mask.sum(), 1).astype(total.dtype)


def count_feature(mask: Bool[Any, "n_extra"], dtype: Any) -> Float[Array, "1"]:
    """How many there are, between 0 and 1 on a logarithmic scale: a mean does not tell how sure it is.

    Parameters
    ----------
    mask : array of bool, shape (N_max,)
        Which there are, of one or more.
    dtype : dtype
        Of the result.

    Returns
    -------
    Array, shape (1,)
        ``log1p(N) / log1p(N_max)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.deepset import count_feature
    >>> count_feature(jnp.array([True, True]), jnp.float32)
    Array([1.], dtype=float32)
    """
    return (jnp.log1p(mask.sum().astype(dtype)) / jnp.log1p(jnp.asarray(len(mask), dtype)))[None]
