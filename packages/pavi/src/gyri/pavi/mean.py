"""A mean shrunk towards zero: stands for the method until its first function is here."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def shrunk_mean(x: Float[Array, "n_samples *shape"], ridge: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    r"""Mean over the first axis under a quadratic penalty.

    Solves :math:`\arg\min_u \sum_i (x_i - u)^2 + r\,u^2` for every entry.

    Parameters
    ----------
    x : Array, shape (n_samples, ...)
        Samples, any real floating dtype; the result keeps it.
    ridge : Array or float
        :math:`r \ge 0`, in samples: how many zeros are added to those seen.

    Returns
    -------
    Array, shape (...)
        The minimiser.

    Raises
    ------
    ValueError
        If there is no sample.

    Examples
    --------
    >>> shrunk_mean(jnp.array([1.0, 2.0, 3.0]), 1.0)
    Array(1.5, dtype=float32)

    References
    ----------
    The paper, equation number.
    """
    if x.shape[0] == 0:
        raise ValueError(f"x: expected at least one sample, got shape {x.shape}")
    return jnp.sum(x, axis=0) / (x.shape[0] + ridge)
