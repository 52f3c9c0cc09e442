"""Losses of a Wasserstein critic with gradient penalty: how far augmented windows are from real ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from gyri.numerics.validation import as_key, check_array, check_scalar


def norms(x: Array) -> Array:
    """Euclidean norm over all axes but the first, with the gradient 0 at 0."""
    squares = jnp.sum(jnp.square(x), tuple(range(1, x.ndim)))
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def critic_losses(
    key: Any,
    critic: Callable,
    real: Float[Any, "batch ..."] | Any,
    fake: Float[Any, "batch ..."] | Any,
    *,
    gp_weight: ScalarLike | Array = 10.0,
) -> dict[str, Float[Array, ""]]:
    r"""Losses of a WGAN-GP critic D and of what it judges.

    Parameters
    ----------
    key : PRNG key or int
        Of the points between real and fake ones: :math:`\hat x = u x + (1 - u) x'`, one u ~ U(0, 1) an example.
    critic : callable
        ``critic(x) -> scores``, (batch, ...) to (batch,).
    real, fake : array-like, shape (batch, ...)
        Examples of equal shape; gradients flow through both.
    gp_weight : float
        Weight of the gradient penalty.

    Returns
    -------
    dict
        Scalars: ``"wasserstein"``, mean D(fake) - mean D(real); ``"gradient_penalty"``, the mean of
        :math:`(\|\nabla D(\hat x)\|_2 - 1)^2`, norms over all axes of an example, without its weight; ``"critic"``,
        the first plus `gp_weight` times the second: what the critic minimises; ``"generator"``, - mean D(fake).

    Raises
    ------
    ValueError
        Shapes that differ, empty, NaN or infinite, `gp_weight` negative, scores of another shape.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import critic_losses
    >>> losses = critic_losses(0, lambda x: 2 * x[:, 0], jnp.ones((3, 1)), jnp.zeros((3, 1)))
    >>> losses["wasserstein"], losses["gradient_penalty"], losses["critic"]
    (Array(-2., dtype=float32), Array(1., dtype=float32), Array(8., dtype=float32))

    References
    ----------
    Gulrajani et al. (2017), Improved training of Wasserstein GANs; Hataya et al. (2020), Faster AutoAugment.
    """
    real, fake = jnp.asarray(check_array(real, "real")), jnp.asarray(check_array(fake, "fake"))
    if real.shape != fake.shape or not real.ndim:
        raise ValueError(f"fake: expected the shape of real, {real.shape}, got {fake.shape}")
    gp_weight = check_scalar(gp_weight, "gp_weight", minimum=0)

    def score(x: Array) -> Array:
        scores = critic(x)
        if scores.shape != x.shape[:1]:
            raise ValueError(f"critic: expected scores of shape {x.shape[:1]}, got {scores.shape}")
        return scores

    u = jax.random.uniform(as_key(key), (len(real), *[1] * (real.ndim - 1)), real.dtype)
    slopes = jax.grad(lambda x: score(x).sum())(u * real + (1 - u) * fake)
    penalty = jnp.mean(jnp.square(norms(slopes) - 1))
    of_fake = score(fake).mean()
    wasserstein = of_fake - score(real).mean()
    return {
        "wasserstein": wasserstein, "gradient_penalty": penalty,
        "critic": wasserstein + gp_weight * penalty, "generator": -of_fake,
    }  # fmt: skip
