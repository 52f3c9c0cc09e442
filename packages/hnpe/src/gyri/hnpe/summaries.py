"""Summaries of recordings: spectra and correlations, and trainable embeddings."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import check_array, check_positive_int, check_scalar


def _windows(x: Array, width: int, hop: int) -> Array:
    """Overlapping windows along the last axis, shape (..., n_windows, width)."""
    n_times = x.shape[-1]
    if n_times < width:
        raise ValueError(f"x: expected at least {width} samples, got shape {x.shape}")
    starts = np.arange(0, n_times - width + 1, hop)
    return x[..., starts[:, None] + np.arange(width)]


def _check_signal(x: Any) -> Array:
    x = jnp.asarray(check_array(x, "x", allow_nan=True, allow_empty=True, allow_half=False))
    if x.ndim == 0:
        raise ValueError("x: expected shape (..., n_times), got ()")
    return x


def log_psd(x: Any, n_bins: int = 33, log: bool = True) -> Float[Array, "*n n_bins"]:
    """Power spectrum by averaging over half-overlapping rectangular windows of ``2 n_bins - 1`` samples.

    Neither detrended nor scaled. Multiplying a recording by ``10^(g / 10)`` adds 0.2 g in every bin.

    Parameters
    ----------
    x : array, shape (..., n_times)
        Recordings.
    n_bins : int
        Bins, at multiples of ``sfreq / (2 n_bins - 1)``.
    log : bool
        Decimal logarithm of the power.

    Returns
    -------
    Array, shape (..., n_bins)
        Power, or its logarithm.

    Raises
    ------
    ValueError
        If a recording is shorter than a window.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe import log_psd
    >>> x = jnp.sin(2 * jnp.pi * 10 * jnp.arange(1024) / 128)  # 10 Hz
    >>> int(jnp.argmax(log_psd(x))), 5 * round(128 / 65)
    (5, 10)

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021).
    """
    x, n_bins = _check_signal(x), check_positive_int(n_bins, "n_bins")
    width = 2 * n_bins - 1
    # A power of two, which costs no digit: the square of a recording in teslas may leave the range of float32.
    unit = jax.lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
    unit = jnp.exp2(jnp.floor(jnp.log2(jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1))))
    spectrum = jnp.fft.rfft(_windows(x / unit, width, max(width // 2, 1)), axis=-1)
    power = jnp.mean(spectrum.real**2 + spectrum.imag**2, -2)
    return jnp.log10(power) + 2 * jnp.log10(unit) if log else power * unit**2


def autocorr(x: Any, n_lags: int, *, unbiased: bool = False) -> Float[Array, "*n n_lags"]:
    """Autocorrelation at lags 1 to `n_lags`.

    Parameters
    ----------
    x : array, shape (..., n_times)
        Recordings; their mean is removed.
    n_lags : int
        How many lags, fewer than samples.
    unbiased : bool
        Divide by the number of products at each lag instead of the number of samples.

    Returns
    -------
    Array, shape (..., n_lags)
        Autocovariance over the variance.

    Raises
    ------
    ValueError
        If there are not more samples than lags.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.summaries import autocorr
    >>> autocorr(jnp.array([1.0, -1.0, 1.0, -1.0]), 2, unbiased=True)
    Array([-1.,  1.], dtype=float32)
    """
    x, n_lags = _check_signal(x), check_positive_int(n_lags, "n_lags")
    n = x.shape[-1]
    if n <= n_lags:
        raise ValueError(f"x: expected more than {n_lags} samples, got shape {x.shape}")
    x = x - x.mean(-1, keepdims=True)
    size = 2 ** int(np.ceil(np.log2(2 * n)))
    spectrum = jnp.fft.rfft(x, size, axis=-1)
    covariance = jnp.fft.irfft(spectrum.real**2 + spectrum.imag**2, size, axis=-1)
    ratio = covariance[..., 1 : n_lags + 1] / covariance[..., :1]
    return ratio * (n / (n - jnp.arange(1, n_lags + 1, dtype=x.dtype))) if unbiased else ratio


def welch(x: Any, sfreq: float | int = 1.0, *, nperseg: int = 256, log: bool = False) -> Float[Array, "*n n_bins"]:
    """Power spectral density by Welch's method, as SciPy has it: Hann windows, half overlap, mean removed.

    Parameters
    ----------
    x : array, shape (..., n_times)
        Recordings.
    sfreq : float
        Samples a second.
    nperseg : int
        Samples of a window.
    log : bool
        Decimal logarithm of the density.

    Returns
    -------
    Array, shape (..., nperseg // 2 + 1)
        One-sided density, squared units of x per Hz.

    Raises
    ------
    ValueError
        If a recording is shorter than a window.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.summaries import welch
    >>> welch(jnp.arange(512.0) % 4, 128.0, nperseg=128).shape
    (65,)
    """
    x, width = _check_signal(x), check_positive_int(nperseg, "nperseg", minimum=2)
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    segments = _windows(x, width, width - width // 2)
    segments = (segments - segments.mean(-1, keepdims=True)) * taper.astype(x.dtype)
    spectrum = jnp.fft.rfft(segments, axis=-1)
    density = jnp.mean(spectrum.real**2 + spectrum.imag**2, -2) / (sfreq * float(np.sum(taper**2)))
    doubled = np.full(width // 2 + 1, 2.0)
    doubled[0] = 1.0
    if width % 2 == 0:
        doubled[-1] = 1.0
    density = density * doubled.astype(x.dtype)
    return jnp.log10(density) if log else density


# --- trainable --------------------------------------------------------------------------------------------------------


def _mlp(key: Array, sizes: tuple[int, ...], activation: Callable = jax.nn.relu) -> eqx.nn.Sequential:
    layers: list[Any] = []
    for k, n_in, n_out in zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True):
        layers += [eqx.nn.Linear(n_in, n_out, key=k), eqx.nn.Lambda(activation)]
    return eqx.nn.Sequential(layers[:-1])


class ConvNet(eqx.Module):
    """Small convolutional embedding of a time series, for ``HNPE(embedding=...)``.

    Twice: eight filters of 64 samples, rectified, means over 16 samples; then dropout and a linear layer.

    Parameters
    ----------
    key : PRNG key
        Of the weights.
    n_times : int
        Samples of a recording, 256 or more.
    n_out : int
        Features.
    dropout : float
        Share of features dropped in training.

    Raises
    ------
    ValueError
        If the recording is too short for the two means.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.summaries import ConvNet
    >>> ConvNet(jax.random.key(0), 1024, 10)(jnp.ones(1024)).shape
    (10,)
    """

    first: eqx.nn.Conv1d
    second: eqx.nn.Conv1d
    pool: eqx.nn.AvgPool1d
    dropout: eqx.nn.Dropout
    linear: eqx.nn.Linear

    def __init__(self, key: Key[Array, ""], n_times: int, n_out: int, *, dropout: float = 0.5) -> None:
        n_left = check_positive_int(n_times, "n_times") // 256
        if n_left == 0:
            raise ValueError(f"n_times: expected at least 256 samples, got {n_times}")
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv1d(1, 8, 64, padding="SAME", key=keys[0])
        self.second = eqx.nn.Conv1d(8, 8, 64, padding="SAME", key=keys[1])
        self.pool = eqx.nn.AvgPool1d(16, 16)
        self.dropout = eqx.nn.Dropout(dropout)
        self.linear = eqx.nn.Linear(8 * n_left, n_out, key=keys[2])

    def __call__(self, x: Float[Array, "n_times"], *, key: Array | None = None) -> Float[Array, "n_out"]:
        """Features of a recording; without a key nothing is dropped."""
        x = self.pool(jax.nn.relu(self.first(x[None])))
        x = self.pool(jax.nn.relu(self.second(x)))
        return self.linear(self.dropout(x.reshape(-1), key=key, inference=key is None or self.dropout.inference))


class PartiallyExchangeable(eqx.Module):
    """Embedding of a Markov series of some order: a sum over its windows beside its first values.

    The sum is taken as a mean: recordings of one length differ by a constant factor, which the next layer holds.

    Parameters
    ----------
    key : PRNG key
        Of the weights.
    order : int
        How many past values the next one depends on.
    n_out : int
        Features.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.summaries import PartiallyExchangeable
    >>> PartiallyExchangeable(jax.random.key(0), 2, 10)(jnp.ones(100)).shape
    (10,)

    References
    ----------
    Wiqvist, Mattei, Picchini, Frellsen (2019), Partially exchangeable networks and architectures for learning summary
    statistics in approximate Bayesian computation, ICML.
    """

    inner: eqx.nn.Sequential
    outer: eqx.nn.Sequential
    order: int = eqx.field(static=True)

    def __init__(self, key: Key[Array, ""], order: int, n_out: int) -> None:
        self.order = check_positive_int(order, "order", minimum=0)
        inner_key, outer_key = jax.random.split(key)
        self.inner = _mlp(inner_key, (order + 1, 100, 50, 10))
        self.outer = _mlp(outer_key, (10 + order, 50, 50, 20, n_out))

    def __call__(self, x: Float[Array, "n_times"]) -> Float[Array, "n_out"]:
        """Features of a recording."""
        # A sum over thousands of windows would swamp the first layer; its scale carries no information here.
        pooled = jax.vmap(self.inner)(_windows(x, self.order + 1, 1)).mean(0)
        return self.outer(jnp.concatenate([pooled, x[: self.order]]))
