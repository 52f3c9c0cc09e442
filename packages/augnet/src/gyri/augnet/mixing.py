"""A choice among transforms: their convex mixture, which is differentiable, or one drawn at random."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, ScalarLike

from gyri.numerics.relax import relaxed_bernoulli
from gyri.numerics.transform import Transform

# One transform with its strength: (key, x) -> x.
_Applied = Callable[[Key[Array, ""], Array], Array]


def _each(
    transforms: Sequence[Transform], magnitude: Array, temperature: Any, exact: bool
) -> list[Callable[[Key[Array, ""], Array], Array]]:
    """The transforms at their magnitudes; those without a range are applied with their magnitude as probability.

    Transform i gets ``fold_in(key, i)``; n draws the choice among them, n + 1 whether they are applied.
    """

    def applied(i: int, transform: Transform, mu: Array) -> _Applied:
        def fn(key: Key[Array, ""], x: Array) -> Array:
            y = transform(jax.random.fold_in(key, i), x, mu).astype(x.dtype)
            if transform.range is not None:
                return y
            key_apply = jax.random.fold_in(jax.random.fold_in(key, len(transforms) + 1), i)
            share = relaxed_bernoulli(key_apply, mu, x.shape[:1], temperature=temperature, hard=exact)
            return x + jnp.expand_dims(share, range(1, x.ndim)).astype(x.dtype) * (y - x)

        return fn

    return [applied(i, transform, magnitude[i]) for i, transform in enumerate(transforms)]


def _checked(logits: Any, magnitude: Any, transforms: Sequence[Transform], x: Any) -> tuple[Array, Array, Array]:
    logits, magnitude, x = jnp.asarray(logits), jnp.asarray(magnitude), jnp.asarray(x)
    for name, array in (("logits", logits), ("magnitude", magnitude)):
        if array.shape != (len(transforms),):
            raise ValueError(f"{name}: expected shape ({len(transforms)},), one a transform, got {array.shape}")
    if not isinstance(magnitude, jax.core.Tracer):
        values = np.asarray(magnitude)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"magnitude: expected values in [0, 1], got {values}")
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected a floating batch (n, ...), got {x.dtype}{list(x.shape)}")
    return logits, magnitude, x


def has_hash(x: Any) -> bool:
    """Whether a program can be kept under an object.

    Parameters
    ----------
    x : object
        Anything.

    Returns
    -------
    bool
        False for, say, a tuple with a dict in it.

    Examples
    --------
    >>> has_hash((1, "a")), has_hash(({},))
    (True, False)
    """
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _draw(
    transforms: tuple[Transform, ...], key: Any, logits: Array, magnitude: Array, x: Array, temperature: Any, apply: Any
) -> Array:
    """One transform for the batch."""
    fns = _each(transforms, magnitude, apply, exact=True)
    chosen = jax.random.categorical(jax.random.fold_in(key, len(fns)), logits / temperature)
    return jax.lax.switch(chosen, [lambda x, fn=fn: fn(key, x) for fn in fns], x)


# A program of its own, kept under the transforms: `switch` alone would compile branches that are made anew, anew.
_compiled_draw = jax.jit(_draw, static_argnums=0)


def mix(
    key: Key[Array, ""],
    logits: Float[Any, "..."],
    magnitude: Float[Any, "..."],
    transforms: Sequence[Transform],
    x: Float[Any, "n *shape"],
    *,
    temperature: Float[Any, ""] | ScalarLike = 0.01,
    apply_temperature: Float[Any, ""] | ScalarLike = 0.05,
    relaxed: bool = True,
) -> Float[Array, "n *shape"]:
    r"""Apply a layer of transforms: the functional core of :class:`AugmentationLayer`.

    Relaxed, gives :math:`\sum_i w_i O_i(x; \mu_i)` with :math:`w = \operatorname{softmax}(u / T)`: all transforms are
    evaluated. Otherwise draws one transform :math:`i \sim w` for the whole batch and evaluates that one only. Each
    draws its own noise, for each example.

    Parameters
    ----------
    key : PRNG key
        Source of randomness; transform i gets ``fold_in(key, i)``.
    logits : Array, shape (n_transforms,)
        :math:`u`.
    magnitude : Array, shape (n_transforms,)
        :math:`\mu` in [0, 1]. A transform without a range is applied with this probability, by a relaxed Bernoulli
        draw for each example if relaxed, else by an exact one.
    transforms : sequence of Transform
        :math:`O`; they keep the shape of `x`. Where one is drawn, they are compiled once, so their functions must be
        pure.
    x : Array, shape (n, ...)
        Batch.
    temperature : float
        :math:`T > 0`.
    apply_temperature : float
        Temperature of the relaxed Bernoulli draws.
    relaxed : bool
        Mixture, or one transform.

    Returns
    -------
    Array, shape (n, ...)
        Augmented batch in the dtype of `x`.

    Raises
    ------
    ValueError
        If there is not one logit and one magnitude for each transform, or for magnitudes outside [0, 1] (which are not
        looked at under `jit` and `vmap`).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import eeg_transforms, mix
    >>> transforms = eeg_transforms(100.0, include=("sign_flip", "gaussian_noise"))
    >>> x = jnp.ones((4, 2, 50))
    >>> mix(jax.random.key(0), jnp.array([2.0, 1.0]), jnp.ones(2), transforms, x).mean().round(3)
    Array(-1., dtype=float32)

    References
    ----------
    Rommel, Moreau, Gramfort (2022).
    """
    logits, magnitude, x = _checked(logits, magnitude, transforms, x)
    if not relaxed:
        transforms = tuple(transforms)
        draw = _compiled_draw if has_hash(transforms) else _draw
        return draw(transforms, key, logits, magnitude, x, temperature, apply_temperature)
    weights = jax.nn.softmax(logits / temperature).astype(x.dtype)
    fns = _each(transforms, magnitude, apply_temperature, exact=False)
    return sum((w * fn(key, x) for w, fn in zip(weights, fns)), jnp.zeros_like(x))


def choose_for_each(
    key: Key[Array, ""],
    logits: Float[Any, "..."],
    magnitude: Float[Any, "..."],
    transforms: Sequence[Transform],
    x: Float[Any, "n *shape"],
    *,
    temperature: Float[Any, ""] | ScalarLike = 0.01,
) -> Float[Array, "n *shape"]:
    """Draw one transform for each example; all are evaluated.

    Parameters
    ----------
    key, logits, magnitude, transforms, x, temperature
        As in :func:`mix`.

    Returns
    -------
    Array, shape (n, ...)
        Augmented batch in the dtype of `x`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import eeg_transforms
    >>> from gyri.augnet.mixing import choose_for_each
    >>> transforms = eeg_transforms(100.0, include=("identity", "sign_flip"))
    >>> y = choose_for_each(jax.random.key(0), jnp.ones(2), jnp.ones(2), transforms, jnp.ones((1000, 1, 1)))
    >>> bool(abs(y.mean()) < 0.1)
    True
    """
    logits, magnitude, x = _checked(logits, magnitude, transforms, x)
    fns = _each(transforms, magnitude, 1.0, exact=True)
    chosen = jax.random.categorical(jax.random.fold_in(key, len(fns)), logits / temperature, shape=x.shape[:1])
    chosen = jnp.expand_dims(chosen, range(1, x.ndim))
    out = x
    for i, fn in enumerate(fns):
        out = jnp.where(chosen == i, fn(key, x), out)
    return out
