"""How little a network's output moves when its input is transformed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, ScalarLike

from gyri.numerics.transform import Transform


def _direction(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of norm 1, those of zeros as they are; no square leaves the range of the dtype."""
    divided = lambda x, size: x / jnp.where(size > 0, size, 1)
    x = divided(x, jnp.abs(x).max(1, keepdims=True))
    square = jnp.sum(x**2, 1, keepdims=True)
    return divided(x, jnp.sqrt(jnp.where(square > 0, square, 1)))


def _cosine_distance(a: Float[Array, "n d"], b: Float[Array, "n d"]) -> Float[Array, "n"]:
    return 1 - jnp.sum(_direction(a) * _direction(b), 1)


def invariance(
    fn: Callable[..., Array],
    x: Float[Any, "n *shape"],
    transform: Callable[..., Array],
    key: Key[Array, ""],
    *,
    eps: float | ScalarLike = 1e-8,
) -> Float[Array, "n"]:
    r"""Invariance of a function to a random transform, example by example.

    With :math:`d` one minus the cosine between two outputs, and :math:`x_\pi` another example at random,

    .. math:: \frac{d(f(x), f(x_\pi)) - d(f(x), f(T(x)))}{d(f(x), f(x_\pi)) + \epsilon}.

    Parameters
    ----------
    fn : callable
        ``fn(key, x)`` gives outputs, of shape (n, ...): a network, or its embedding.
    x : Array, shape (n, ...)
        At least two examples.
    transform : callable or Transform
        ``transform(key, x)`` gives transformed examples; a :class:`Transform` is applied at magnitude 1.
    key : PRNG key
        Source of randomness. The outputs before and after the transform use independent noise.
    eps : float
        :math:`\epsilon`.

    Returns
    -------
    Array, shape (n,)
        1 where the transform changes nothing, 0 where it changes as much as another example would; may be negative.

    Raises
    ------
    ValueError
        For less than two examples, among which there is no other one.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import invariance
    >>> x = jax.random.normal(jax.random.key(0), (5, 3))
    >>> invariance(lambda key, x: jnp.abs(x), x, lambda key, x: -x, jax.random.key(1)).round(3)
    Array([1., 1., 1., 1., 1.], dtype=float32)

    References
    ----------
    Rommel, Moreau, Gramfort (2022), after Bouchacourt, Ibrahim, Morcos (2021).
    """
    x = jnp.asarray(x)
    if x.ndim < 1 or len(x) < 2:
        raise ValueError(f"x: expected at least two examples, got shape {x.shape}")
    key_before, key_after, key_transform, key_order = jax.random.split(key, 4)
    moved = transform(key_transform, x, 1.0) if isinstance(transform, Transform) else transform(key_transform, x)
    before, after = (y.reshape(len(x), -1) for y in (fn(key_before, x), fn(key_after, moved)))
    # Each example's successor in a random cycle: a permutation that leaves none in its place.
    cycle = jax.random.permutation(key_order, len(x))
    other = jnp.zeros(len(x), int).at[cycle].set(jnp.roll(cycle, -1))
    reference = _cosine_distance(before, before[other])
    return (reference - _cosine_distance(before, after)) / (reference + eps)
