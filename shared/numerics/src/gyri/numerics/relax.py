"""Differentiable stand-ins for discrete draws: Bernoulli and categorical variables with gradients in their laws."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, ScalarLike, Shaped

_SMALLEST_P = 1e-6  # keeps the log-odds of certain events finite, in float32 too


@jax.custom_jvp
def _with_derivative_of(hard: Array, soft: Array) -> Array:
    return hard


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _with_derivative_of(*primals), tangents[1]  # itself, so that second derivatives are those of `soft`, too


def straight_through(hard: Shaped[Any, "..."], soft: Float[Any, "..."]) -> Float[Array, "..."]:
    """Give one value and another value's derivative.

    Parameters
    ----------
    hard : Array, shape (...)
        The value, given back bit for bit in the dtype of `soft`; booleans and integers are cast.
    soft : Array, shape (...)
        What the result is differentiated as, in forward and reverse mode.

    Returns
    -------
    Array, shape (...)
        `hard`, with the derivatives of `soft`, of any order, and none of its own.

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    ``soft + stop_gradient(hard - soft)`` has the same derivative, but rounds.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.relax import straight_through
    >>> jax.value_and_grad(lambda x: straight_through(jnp.round(x), 3 * x))(jnp.float32(0.8))
    (Array(1., dtype=float32), Array(3., dtype=float32))

    References
    ----------
    Bengio, Leonard, Courville (2013).
    """
    hard, soft = jnp.asarray(hard), jnp.asarray(soft)
    if hard.shape != soft.shape:
        raise ValueError(f"hard: expected the shape of soft, {soft.shape}, got {hard.shape}")
    return _with_derivative_of(jax.lax.stop_gradient(hard.astype(soft.dtype)), soft)


def relaxed_bernoulli(
    key: Key[Array, ""],
    p: Float[Any, "..."] | ScalarLike,
    shape: tuple[int, ...] | None = None,
    *,
    temperature: Float[Any, "..."] | ScalarLike = 0.05,
    hard: bool = False,
) -> Float[Array, "..."]:
    r"""Draw from Bernoulli laws, differentiably in their probabilities.

    With :math:`u \sim U(0, 1)` gives :math:`s = \sigma((\operatorname{logit} p + \operatorname{logit} u) / \tau)`,
    which tends to a Bernoulli variable as :math:`\tau \to 0`; :math:`s > 1/2` with probability :math:`p` at any
    :math:`\tau`.

    Parameters
    ----------
    key : PRNG key
        Source of randomness.
    p : Array or float
        Probabilities in [0, 1], broadcast to `shape`.
    shape : tuple of int, optional
        Shape of the draws; that of `p` by default.
    temperature : Array or float
        :math:`\tau > 0`, broadcast to `shape`.
    hard : bool
        Round to exactly 0 or 1, with the derivative of :math:`s`.

    Returns
    -------
    Array, shape `shape`
        Draws in [0, 1] in the dtype of `p`. The log-odds are those of `p` clipped to [1e-6, 1 - 1e-6], so certain
        events keep a finite derivative, that of their clipped neighbour.

    Examples
    --------
    >>> import jax
    >>> from gyri.numerics.relax import relaxed_bernoulli
    >>> relaxed_bernoulli(jax.random.key(0), 0.9, (5,), hard=True)
    Array([1., 1., 1., 1., 1.], dtype=float32)

    References
    ----------
    Maddison, Mnih, Teh (2017).
    """
    p = jnp.asarray(p, jnp.result_type(p, float) if jnp.result_type(p).kind in "iub" else None)
    dtype = jnp.promote_types(p.dtype, jnp.float32)
    kept = jnp.clip(p.astype(dtype), _SMALLEST_P, 1 - _SMALLEST_P)
    # The clip alone would cut the derivative where a projection left p at exactly 0 or 1.
    kept = straight_through(kept, p.astype(dtype))
    u = _open_uniform(key, p.shape if shape is None else shape, dtype)
    soft = jax.nn.sigmoid(
        (jax.scipy.special.logit(kept) + jax.scipy.special.logit(u)) / jnp.asarray(temperature, dtype)
    )
    return (straight_through(soft > 0.5, soft) if hard else soft).astype(p.dtype)


def relaxed_one_hot(
    key: Key[Array, ""],
    logits: Float[Any, "..."],
    *,
    temperature: Float[Any, "..."] | ScalarLike = 0.05,
    hard: bool = False,
    axis: int = -1,
) -> Float[Array, "..."]:
    r"""Draw from categorical laws, differentiably in their log-weights: the Gumbel-softmax.

    Gives :math:`\operatorname{softmax}((w + g) / \tau)` with standard Gumbel noise :math:`g`. Its largest entry is
    :math:`i` with probability :math:`\operatorname{softmax}(w)_i` at any :math:`\tau`.

    Parameters
    ----------
    key : PRNG key
        Source of randomness.
    logits : Array, shape (..., n)
        Log-weights :math:`w`, categories along `axis`, any real floating dtype; the result keeps it.
    temperature : Array or float
        :math:`\tau > 0`, broadcast against `logits`.
    hard : bool
        Exactly one 1 and else 0, with the derivative of the softmax.
    axis : int
        Axis of the categories.

    Returns
    -------
    Array, shape (..., n)
        Non-negative entries that sum to one along `axis`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.relax import relaxed_one_hot
    >>> relaxed_one_hot(jax.random.key(0), jnp.array([0.0, 5.0, 0.0]), hard=True)
    Array([0., 1., 0.], dtype=float32)

    References
    ----------
    Jang, Gu, Poole (2017); Maddison, Mnih, Teh (2017).
    """
    logits = jnp.asarray(logits)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    gumbel = -jnp.log(-jnp.log(_open_uniform(key, logits.shape, dtype)))
    soft = jax.nn.softmax((logits.astype(dtype) + gumbel) / jnp.asarray(temperature, dtype), axis=axis)
    if hard:
        first = jax.nn.one_hot(soft.argmax(axis), soft.shape[axis], axis=axis, dtype=dtype)
        soft = straight_through(first, soft)
    return soft.astype(logits.dtype)


def _open_uniform(key: Key[Array, ""], shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Uniform draws that are neither 0 nor 1, so that their logarithms are finite."""
    tiny = jnp.finfo(dtype).tiny
    return jax.random.uniform(key, shape, dtype, minval=tiny)
