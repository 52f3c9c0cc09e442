"""Simulated signals: the paper's recipe."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from gyri.numerics.validation import as_key, check_positive_int, check_scalar


class Simulation(NamedTuple):
    """What `simulate` returns.

    Attributes
    ----------
    X : Array, shape (n_samples, n_features)
        Noisy signals.
    components : Array, shape (n_components, n_features)
        True atoms, of norm 1.
    codes : Array, shape (n_samples, n_components)
        True codes.
    """

    X: Float[Array, "n_samples n_features"]
    components: Float[Array, "n_components n_features"]
    codes: Float[Array, "n_samples n_components"]


def unit_rows(x: Array) -> Array:
    """Rows (all axes but the first) divided by their norm; a row of zeros stays."""
    axes = tuple(range(1, x.ndim))
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def simulate(
    key: Any,
    n_samples: int = 1000,
    n_features: int = 30,
    n_components: int = 50,
    sparsity: ScalarLike = 0.3,
    noise: ScalarLike = 0.1,
) -> Simulation:
    """Signals that are sparse in a random dictionary.

    Gaussian atoms of norm 1, codes that are standard normal with probability `sparsity` and else 0, white noise.

    Parameters
    ----------
    key : int or PRNG key
        Same key, same signals.
    n_samples, n_features, n_components : int
        Numbers of signals, of their entries, and of atoms.
    sparsity : float
        Probability, in [0, 1], that an entry of a code is not zero.
    noise : float
        Standard deviation of the noise.

    Returns
    -------
    Simulation
        `X`, `components`, `codes`, in JAX's default float.

    Raises
    ------
    ValueError
        An argument out of range.

    Examples
    --------
    >>> from gyri.unrolled import simulate
    >>> X, components, codes = simulate(0, 100)
    >>> X.shape, components.shape, codes.shape
    ((100, 30), (50, 30), (100, 50))

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), section 4.
    """
    n_samples, n_features = check_positive_int(n_samples, "n_samples"), check_positive_int(n_features, "n_features")
    n_components = check_positive_int(n_components, "n_components")
    sparsity = check_scalar(sparsity, "sparsity", minimum=0, maximum=1)
    noise = check_scalar(noise, "noise", minimum=0)
    atoms, on, values, errors = jax.random.split(as_key(key), 4)
    components = unit_rows(jax.random.normal(atoms, (n_components, n_features)))
    shape = (n_samples, n_components)
    codes = jax.random.bernoulli(on, sparsity, shape) * jax.random.normal(values, shape)
    X = jnp.matmul(codes, components, precision="highest") + noise * jax.random.normal(errors, (n_samples, n_features))
    return Simulation(X, components, codes)


def perturb(key: Any, components: Array, scale: ScalarLike = 0.5) -> Array:
    """Start of the paper's experiments: the truth plus normal noise of `scale` times its standard deviation.

    Examples
    --------
    >>> perturb(0, jnp.eye(3)).shape
    (3, 3)
    """
    noise = jax.random.normal(as_key(key), components.shape, components.dtype)
    return components + scale * jnp.std(components) * noise
