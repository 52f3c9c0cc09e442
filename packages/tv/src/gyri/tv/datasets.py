"""Simulated signals as in the paper, and the blur of fMRI."""

from functools import partial
from math import gamma
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gyri.numerics import LinearOperator
from gyri.numerics.linalg import convolution
from gyri.numerics.validation import as_key, check_array, check_positive_int, check_scalar

from .problem import lambda_max


def simulate(
    key: Any,
    n: int,
    *,
    A: Any = None,
    k: int = 8,
    m: int = 5,
    sparsity: float | int = 0.2,
    snr_db: float | int = 0.0,
) -> tuple[Float[Array, "n m"], Float[Array, "n k"], Float[Array, "n k"], Float[Array, "m k"]]:
    """Draw piecewise constant signals, seen through an operator and noise.

    Of each of the `n` signals ``int(sparsity * k)`` steps (at least one) are at places drawn with replacement and
    have Gaussian heights; `u` is their cumulative sum, and ``x = A u + noise``. All three are divided by
    `lambda_max` of `x`, so that one penalty in (0, 1) serves all signals.

    Parameters
    ----------
    key : PRNG key or int
        Source of randomness.
    n : int
        Number of signals.
    A : array-like, shape (m, k), optional
        The operator; None draws a Gaussian one with columns of unit norm.
    k, m : int
        Lengths of the unknown and of the observed signal, if `A` is None.
    sparsity : float
        Share of the samples with a step, in (0, 1].
    snr_db : float
        Squared norm of ``A u`` over that of the noise, in dB, exactly so for each signal.

    Returns
    -------
    x : Array, shape (n, m)
        Observed signals.
    u : Array, shape (n, k)
        Piecewise constant signals.
    z : Array, shape (n, k)
        Their steps, the first sample included: ``u = cumsum(z)``.
    A : Array, shape (m, k)
        The operator.

    Raises
    ------
    ValueError
        An argument out of range; the message names it.

    Examples
    --------
    >>> from gyri.tv import simulate
    >>> x, u, z, A = simulate(0, 100)
    >>> x.shape, u.shape, A.shape
    ((100, 5), (100, 8), (5, 8))

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), section 4.
    """
    n = check_positive_int(n, "n")
    share = check_scalar(sparsity, "sparsity", minimum=0, maximum=1)
    if share == 0:
        raise ValueError("sparsity: expected a share in (0, 1], got 0")
    snr = check_scalar(snr_db, "snr_db")
    key_a, *keys = jax.random.split(as_key(key), 4)
    if A is None:
        m, k = check_positive_int(m, "m", minimum=2), check_positive_int(k, "k", minimum=2)
        A = _gaussian_operator(key_a, m, k)
    A = jnp.asarray(check_array(A, "A", ndim=2))
    x, u, z = _draw(keys, A, snr, n, max(1, int(share * A.shape[1])))
    return x, u, z, A


@partial(jax.jit, static_argnums=(1, 2))
def _gaussian_operator(key: Array, m: int, k: int) -> Array:
    A = jax.random.normal(key, (m, k))
    return A / jnp.linalg.norm(A, axis=0)


@partial(jax.jit, static_argnums=(3, 4))
def _draw(keys: list[Array], A: Array, snr: Array, n: int, n_steps: int) -> tuple[Array, Array, Array]:
    key_place, key_height, key_noise = keys
    m, k = A.shape
    places = jax.random.randint(key_place, (n, n_steps), 0, k)
    steps = (places[:, :, None] == jnp.arange(k)).any(1)
    z = jnp.where(steps, jax.random.normal(key_height, (n, k), A.dtype), 0)
    u = jnp.cumsum(z, -1)
    clean = jnp.matmul(u, A.T, precision=jax.lax.Precision.HIGHEST)
    noise = jax.random.normal(key_noise, (n, m), A.dtype)
    norm = lambda v: jnp.linalg.norm(v, axis=-1, keepdims=True)
    x = clean + noise * (norm(clean) / norm(noise) * 10 ** (-snr / 20)).astype(A.dtype)
    scale = lambda_max(x, A)[:, None]
    scale = jnp.where(scale > 0, scale, 1)
    return x / scale, u / scale, z / scale


def hrf_operator(n_times: int, tr: float | int, *, duration: float | int = 24.0) -> LinearOperator:
    """Blur of a neural signal by the canonical haemodynamic response, as a full convolution.

    The response is the difference of two gamma densities with peaks near 5 and 15 s, ``g(t; 6) - g(t; 16) / 6``,
    sampled at every scan and scaled to a peak of 1.

    Parameters
    ----------
    n_times : int
        Samples of the observed signal.
    tr : float
        Time between two scans, in seconds.
    duration : float
        Length of the response, in seconds.

    Returns
    -------
    LinearOperator
        From ``n_times - n_hrf + 1`` samples to `n_times`, with ``n_hrf = ceil(duration / tr)``.

    Raises
    ------
    ValueError
        A recording shorter than the response, a response of fewer than two samples, an argument out of range.

    Examples
    --------
    >>> from gyri.tv import hrf_operator
    >>> hrf_operator(200, 0.735).shape
    (200, 168)

    References
    ----------
    Friston et al. (1998), Event-related fMRI: characterizing differential responses; SPM's canonical response.
    """
    n_times = check_positive_int(n_times, "n_times")
    tr = check_scalar(tr, "tr", minimum=0, strict=True)
    duration = check_scalar(duration, "duration", minimum=tr, strict=True)
    t = np.arange(int(np.ceil(duration / tr - 1e-9))) * tr  # 2.1 / 0.7 is above 3
    response = _gamma_density(t, 6) - _gamma_density(t, 16) / 6
    if response.max() <= 0:
        raise ValueError(f"duration: expected more than two scans of the response, got {duration} s at tr = {tr} s")
    if n_times < t.size + 1:
        raise ValueError(f"n_times: expected more than the response's {t.size} samples, got {n_times}")
    kernel = jnp.asarray(response / response.max(), jnp.result_type(float))
    return convolution(kernel, n_times - t.size + 1, "full")


def _gamma_density(t: np.ndarray, shape: int) -> np.ndarray:
    return t ** (shape - 1) * np.exp(-t) / gamma(shape)
