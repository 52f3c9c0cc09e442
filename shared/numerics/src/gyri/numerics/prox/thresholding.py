"""Proximal operators of norms that act entry by entry."""

import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike


def soft_threshold(
    x: Float[Array, "*shape"], threshold: Float[Array, "..."] | ScalarLike, *, positive: bool = False
) -> Float[Array, "*shape"]:
    r"""Proximal operator of the (non-negative) l1 norm.

    Solves :math:`\arg\min_u \tfrac12 (u - x)^2 + t\,|u|` for every entry, with :math:`u \ge 0` if `positive`.

    Parameters
    ----------
    x : Array, shape (...)
        Input, any real floating dtype; the result keeps it.
    threshold : Array or float
        :math:`t \ge 0`, broadcast to the shape of `x`.
    positive : bool
        Restrict the solution to non-negative values.

    Returns
    -------
    Array, shape (...)
        The minimiser. Where it is non-zero its derivative is 1 in `x` and minus its sign in `threshold`; elsewhere
        both are 0. Exactly on the kink, where there is no derivative, JAX's convention for ties applies.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import soft_threshold
    >>> soft_threshold(jnp.array([-2.0, 0.5, 3.0]), 1.0)
    Array([-1.,  0.,  2.], dtype=float32)

    References
    ----------
    Daubechies, Defrise, De Mol (2004), equation 2.4.
    """
    t = jnp.asarray(threshold, x.dtype)
    # The difference to the clipped input is one fused pass and exact zero inside the threshold.
    return jnp.maximum(x - t, 0) if positive else x - jnp.clip(x, -t, t)
