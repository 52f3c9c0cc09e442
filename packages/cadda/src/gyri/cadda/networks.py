"""Networks for windows of EEG, as flax modules."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, ScalarLike
from scipy.fft import next_fast_len

from gyri.numerics.validation import check_positive_int, check_scalar


def convolve(x: Array, kernel: Array, pad: int) -> Array:
    """Cross-correlate (batch, times, in) with (width, in, out), `pad` zeros at both ends.

    On a CPU by FFT: XLA's gradient in long kernels of few channels takes ten times as long there.

    Examples
    --------
    >>> convolve(jnp.ones((1, 4, 1)), jnp.ones((3, 1, 1)), 1).ravel().round(4)
    Array([2., 3., 3., 2.], dtype=float32)
    """
    width, n_times = kernel.shape[0], x.shape[1] + 2 * pad
    size = next_fast_len(n_times, real=True)

    def by_fft(x: Array, kernel: Array) -> Array:
        spectrum = jnp.fft.rfft(jnp.pad(x, ((0, 0), (pad, size - n_times + pad), (0, 0))), axis=1)
        response = jnp.fft.rfft(kernel[::-1], size, axis=0)
        product = jnp.einsum("bfi,fio->bfo", spectrum, response)
        # What wraps around falls on the first width - 1 samples only.
        return jnp.fft.irfft(product, size, axis=1)[:, width - 1 : n_times]

    def direct(x: Array, kernel: Array) -> Array:
        layout = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, kernel, (1,), [(pad, pad)], dimension_numbers=layout)

    return jax.lax.platform_dependent(x, kernel, cpu=by_fft, default=direct)


def max_pool(x: Array, width: int) -> Array:
    """Maxima of consecutive stretches of (batch, times, channels); what is left over at the end is dropped.

    The gradient goes to the first maximum of a stretch. That of `jnp.max` is shared by all that equal the maximum, and
    is 0 / 0 where a compiler computes the maximum and what it is compared with in two ways that round differently.

    Examples
    --------
    >>> max_pool(jnp.arange(5.0).reshape(1, 5, 1), 2).ravel()
    Array([1., 3.], dtype=float32)
    """
    n_batch, n_times, n_channels = x.shape
    n_out = n_times // width
    stretches = x[:, : n_out * width].reshape(n_batch, n_out, width, n_channels)
    is_first = jnp.arange(width)[:, None] == stretches.argmax(2, keepdims=True)
    return jnp.where(is_first, stretches, 0).sum(2)


class TemporalBlock(nnx.Module):
    """Convolution in time, batch normalisation, ReLU, maxima of stretches: (batch, times, in) to (batch, less, out)."""

    def __init__(
        self, n_in: int, n_out: int, width: int, pool: int, *, batch_norm: bool, rngs: nnx.Rngs
    ) -> None:  # fmt: skip
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (width, n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out))
        self.norm = nnx.BatchNorm(n_out, momentum=0.9, epsilon=1e-5, rngs=rngs) if batch_norm else None
        self.pool = pool

    def n_times_out(self, n_times: int) -> int:
        """Samples after the block."""
        width = self.kernel.shape[0]
        return (n_times + 2 * (width // 2) - width + 1) // self.pool

    def __call__(self, x: Float[Array, "batch n_times n_in"]) -> Float[Array, "batch n_out n_filters"]:
        """Filtered signals."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        h = convolve(x, kernel, kernel.shape[0] // 2) + bias
        h = h if self.norm is None else self.norm(h)
        return max_pool(nnx.relu(h), self.pool)


class SleepStager(nnx.Module):
    """Network of Chambon et al. for scoring sleep.

    A linear mix of the channels, then two blocks (convolution of half a second, batch normalisation, ReLU, maxima over
    an eighth of a second) that each mixed channel goes through by itself, dropout, and a linear layer.

    Parameters
    ----------
    n_channels : int
        Channels of a window; with one there is no mix.
    n_classes : int
        Classes.
    n_times : int
        Samples of a window.
    sfreq : float
        Sampling frequency in Hz.
    n_filters : int
        Filters of each convolution.
    dropout : float
        Share of the features dropped in training, in [0, 1).
    batch_norm : bool
        Whether to normalise.
    rngs : nnx.Rngs
        Of the weights and the dropout.

    Raises
    ------
    ValueError
        A size or rate out of range, or windows too short for the two blocks.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gyri.cadda import SleepStager
    >>> network = SleepStager(2, rngs=nnx.Rngs(0))
    >>> network(jnp.zeros((4, 2, 3000))).shape, network.embed(jnp.zeros((4, 2, 3000))).shape
    ((4, 5), (4, 272))

    References
    ----------
    Chambon, Galtier, Arnal, Wainrib, Gramfort (2018), A deep learning architecture for temporal sleep stage
    classification using multivariate and multimodal time series.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int = 5,
        n_times: int = 3000,
        sfreq: ScalarLike = 100.0,
        *,
        n_filters: int = 8,
        dropout: ScalarLike = 0.25,
        batch_norm: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.n_channels = check_positive_int(n_channels, "n_channels")
        self.n_times = check_positive_int(n_times, "n_times")
        n_classes, n_filters = check_positive_int(n_classes, "n_classes"), check_positive_int(n_filters, "n_filters")
        rate = check_scalar(dropout, "dropout", minimum=0, maximum=1)
        if rate == 1:
            raise ValueError(f"dropout: expected a number >= 0 and < 1, got {dropout}")
        rate_hz = float(check_scalar(sfreq, "sfreq", minimum=0, strict=True))
        width, pool = max(1, round(0.5 * rate_hz)), math.ceil(0.125 * rate_hz)
        self.mix = nnx.Linear(n_channels, n_channels, rngs=rngs) if n_channels > 1 else None
        self.first = TemporalBlock(1, n_filters, width, pool, batch_norm=batch_norm, rngs=rngs)
        self.second = TemporalBlock(n_filters, n_filters, width, pool, batch_norm=batch_norm, rngs=rngs)
        n_left = self.second.n_times_out(self.first.n_times_out(self.n_times))
        if n_left < 1:
            raise ValueError(f"n_times: expected some {pool**2} samples or more at {rate_hz:g} Hz, got {n_times}")
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.dense = nnx.Linear(n_channels * n_left * n_filters, n_classes, rngs=rngs)

    def embed(self, x: Float[Any, "batch n_channels n_times"]) -> Float[Array, "batch n_features"]:
        """Features before dropout and the last layer.

        Parameters
        ----------
        x : Array, shape (batch, n_channels, n_times)
            Windows.

        Returns
        -------
        Array, shape (batch, n_features)
            Features of all channels, one after the other.

        Raises
        ------
        ValueError
            Windows of another shape than the network's.
        """
        if x.shape[1:] != (self.n_channels, self.n_times):
            raise ValueError(f"x: expected shape (batch, {self.n_channels}, {self.n_times}), got {x.shape}")
        x = jnp.asarray(x)
        mixed = x if self.mix is None else self.mix(x.swapaxes(1, 2)).swapaxes(1, 2)
        h = self.second(self.first(mixed.reshape(-1, self.n_times, 1)))
        return h.reshape(len(x), -1)

    def classify(self, features: Float[Array, "batch n_features"]) -> Float[Array, "batch n_classes"]:
        """Logits of features, dropout in training."""
        return self.dense(self.dropout(features))

    def __call__(self, x: Float[Any, "batch n_channels n_times"]) -> Float[Array, "batch n_classes"]:
        """Logits of windows."""
        return self.classify(self.embed(x))


def n_parameters(network: Any) -> int:
    """Number of trainable parameters of a flax module.

    Examples
    --------
    >>> n_parameters(SleepStager(2, rngs=nnx.Rngs(0)))
    5019
    """
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
