"""Transforms of multichannel signals, differentiable in their strengths: spectra, noise, masks, sensors on a sphere.

Signals have shape (..., n_channels, n_times), sampled at `sfreq` hertz. Every other number may be traced, and is one
scalar for all examples or one for each, of shape (...): an example is what the leading axes index. Randomness is drawn
for each example apart. The result has the shape and the dtype of the signals; half precision is computed in single.
What draws takes the key first, as the functions of `jax.random` do; the others are deterministic.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, ScalarLike

from .relax import relaxed_bernoulli
from .validation import check_option, import_extra

Signals = Float[Any, "*batch n_channels n_times"]  # NumPy's or JAX's; results are JAX's
PerExample = Float[Any, "..."] | ScalarLike

_HIGHEST = jax.lax.Precision.HIGHEST  # interpolation weights in TensorFloat-32 would leave three digits


def _checked(x: Any) -> Array:
    x = jnp.asarray(x)
    if x.ndim < 2 or x.size == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected real floating signals (..., n_channels, n_times), got {x.dtype}{list(x.shape)}")
    return x


def _working(x: Any) -> Array:
    """Signals in at least single precision, as FFTs and random draws need."""
    x = _checked(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _per_example(value: Any, x: Array, name: str) -> Array:
    """A scalar, or one number an example with axes of channels and times added."""
    value = jnp.asarray(value, x.dtype)
    if value.ndim and value.shape != x.shape[:-2]:
        raise ValueError(f"{name}: expected one number, or one an example {x.shape[:-2]}, got shape {value.shape}")
    return value[..., None, None] if value.ndim else value


@functools.cache
def _turn_series() -> tuple[np.ndarray, np.ndarray]:
    """Polynomials in r**2 for cos(2 pi r) and sin(2 pi r) / r within half a turn, below single precision's rounding."""
    fit = functools.partial(np.polynomial.Chebyshev.interpolate, deg=7, domain=[0, 0.25])
    cosine = fit(lambda q: np.cos(2 * np.pi * np.sqrt(q)))
    sine = fit(lambda q: 2 * np.pi * np.sinc(2 * np.sqrt(q)))
    plain = np.polynomial.Polynomial
    return cosine.convert(kind=plain).coef, sine.convert(kind=plain).coef


@jax.custom_jvp
def _turn(turns: Array) -> tuple[Array, Array]:
    """Cosine and sine of angles in turns of 2 pi.

    Whole turns go before the multiplication by 2 pi, which would magnify their rounding in single precision; there
    the two polynomials take a thirtieth of the time of the library's cosine and sine on a CPU.
    """
    r = turns - jnp.round(turns)
    if r.dtype != jnp.float32:
        return jnp.cos(2 * math.pi * r), jnp.sin(2 * math.pi * r)
    cosine, sine = (functools.reduce(lambda total, c: total * r**2 + c, series[::-1]) for series in _turn_series())
    return cosine, r * sine


@_turn.defjvp
def _turn_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    cosine, sine = _turn(*primals)
    rate = 2 * math.pi * tangents[0]
    return (cosine, sine), (-sine * rate, cosine * rate)


def identity(x: Signals) -> Signals:
    """Leave the signals as they are.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        `x`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> eeg.identity(jnp.ones((2, 1, 8))).shape
    (2, 1, 8)
    """
    return _checked(x)


def time_reverse(x: Signals) -> Signals:
    """Play the signals backwards.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Reversed along time.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> eeg.time_reverse(jnp.arange(4.0)[None])
    Array([[3., 2., 1., 0.]], dtype=float32)
    """
    return _checked(x)[..., ::-1]


def sign_flip(x: Signals) -> Signals:
    """Turn the polarity around.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Minus `x`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> eeg.sign_flip(jnp.arange(1.0, 4.0)[None])
    Array([[-1., -2., -3.]], dtype=float32)
    """
    return -_checked(x)


def channels_symmetry(x: Signals, permutation: Int[Any, "..."] | Sequence[int]) -> Signals:
    """Swap the channels of the left and the right half of the head.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.
    permutation : array of int, shape (n_channels,)
        Channel that each channel is taken from, such as :func:`symmetry_permutation` gives.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Channels in the new order.

    Raises
    ------
    ValueError
        If the number of channels differs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> order = eeg.symmetry_permutation(["C3", "Cz", "C4"])
    >>> eeg.channels_symmetry(jnp.array([[3.0], [0.0], [4.0]]), order).ravel()
    Array([4., 0., 3.], dtype=float32)
    """
    x, permutation = _checked(x), jnp.asarray(permutation)
    if permutation.shape != x.shape[-2:-1]:
        raise ValueError(f"permutation: expected {x.shape[-2]} channels as in x, got shape {permutation.shape}")
    return jnp.take(x, permutation, axis=-2)


def shift_phases(x: Signals, phases: Float[Any, "..."]) -> Signals:
    r"""Add an angle to the phase of every frequency.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.
    phases : Array, shape (..., n_channels or 1, n_times // 2 + 1)
        Angles in radians at the frequencies of `rfft`. Those of the constant and of Nyquist's frequency, which have no
        phase, are ignored.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Signals with the same power spectrum.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> wave = jnp.cos(2 * jnp.pi * jnp.arange(8) / 8)[None]
    >>> jnp.allclose(eeg.shift_phases(wave, jnp.full((1, 5), jnp.pi)), -wave, atol=1e-6)
    Array(True, dtype=bool)

    References
    ----------
    Schwabedal et al. (2018).
    """
    dtype, x = jnp.result_type(x), _working(x)
    n_frequencies = x.shape[-1] // 2 + 1
    phases = jnp.asarray(phases, x.dtype)
    if phases.ndim < 2 or phases.shape[-1] != n_frequencies or phases.shape[-2] not in (1, x.shape[-2]):
        expected = f"(..., {x.shape[-2]} or 1, {n_frequencies})"
        raise ValueError(f"phases: expected shape {expected}, got {phases.shape}")
    return _turn_phases(x, phases / (2 * math.pi)).astype(dtype)


def _has_phase(n_times: int) -> np.ndarray:
    """Which frequencies of `rfft` are neither the constant nor Nyquist's."""
    place = np.arange(n_times // 2 + 1)
    return (place > 0) & (2 * place < n_times)


def _turn_phases(x: Array, turns: Array) -> Array:
    n_times = x.shape[-1]
    turned = jax.lax.complex(*_turn(jnp.where(_has_phase(n_times), turns, 0)))
    return jnp.fft.irfft(jnp.fft.rfft(x) * turned, n_times)


def ft_surrogate(
    key: Key[Array, ""], x: Signals, magnitude: PerExample = 1.0, *, channel_indep: bool = False
) -> Signals:
    r"""Fourier surrogate: give every frequency a random phase, and keep its power.

    Parameters
    ----------
    key : PRNG key
        Source of randomness.
    x : Array, shape (..., n_channels, n_times)
        Signals.
    magnitude : Array or float
        Factor in [0, 1] of the phases :math:`\varphi_k \sim U(0, 2\pi)`.
    channel_indep : bool
        Draw phases for each channel, which destroys what the channels share; otherwise once an example.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Surrogates.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> x = jax.random.normal(jax.random.key(0), (4, 2, 100))
    >>> y = eeg.ft_surrogate(jax.random.key(1), x)
    >>> jnp.allclose(jnp.abs(jnp.fft.rfft(x)), jnp.abs(jnp.fft.rfft(y)), atol=1e-3)
    Array(True, dtype=bool)

    References
    ----------
    Schwabedal et al. (2018); Rommel et al. (2022).
    """
    dtype, x = jnp.result_type(x), _working(x)
    n_phases = x.shape[-2] if channel_indep else 1
    shape = (*x.shape[:-2], n_phases, x.shape[-1] // 2 + 1)
    turns = jax.random.uniform(key, shape, x.dtype)
    return _turn_phases(x, _per_example(magnitude, x, "magnitude") * turns).astype(dtype)


def frequency_shift(x: Signals, delta_hz: PerExample, sfreq: ScalarLike) -> Signals:
    r"""Move every frequency by the same number of hertz.

    The real part of the analytic signal times :math:`e^{2 i \pi \Delta t}`. The analytic signal is that of `x` padded
    with zeros to the next power of two, which settles what happens at its ends.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.
    delta_hz : Array or float
        Shift :math:`\Delta` in hertz.
    sfreq : float
        Sampling frequency in hertz.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Shifted signals.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> t = jnp.arange(512) / 100.0
    >>> y = eeg.frequency_shift(jnp.sin(2 * jnp.pi * 10 * t)[None], 5.0, 100.0)
    >>> jnp.fft.rfftfreq(512, 0.01)[jnp.abs(jnp.fft.rfft(y[0])).argmax()].round()
    Array(15., dtype=float32)

    References
    ----------
    Rommel et al. (2022), appendix on the transforms.
    """
    dtype, x = jnp.result_type(x), _working(x)
    n_times = x.shape[-1]
    n_padded = 2 ** math.ceil(math.log2(n_times))
    spectrum = jnp.fft.rfft(x, n_padded)
    turned = jax.lax.complex(spectrum.imag, -spectrum.real)  # times -i: a quarter of a period later
    quadrature = jnp.fft.irfft(jnp.where(_has_phase(n_padded), turned, 0), n_padded)[..., :n_times]
    turns = _per_example(delta_hz, x, "delta_hz") * (jnp.arange(n_times, dtype=x.dtype) / jnp.asarray(sfreq, x.dtype))
    cosine, sine = _turn(turns)
    return (x * cosine - quadrature * sine).astype(dtype)


def bandstop_filter(x: Signals, center_hz: PerExample, sfreq: ScalarLike, bandwidth: PerExample = 1.0) -> Signals:
    r"""Remove a band of frequencies, with edges of 1 Hz in the shape of a raised cosine.

    The gain is 0 within :math:`b / 2` of the centre, 1 from :math:`b / 2 + 1` Hz on.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.
    center_hz : Array or float
        Centre of the band in hertz.
    sfreq : float
        Sampling frequency in hertz.
    bandwidth : Array or float
        Width :math:`b \ge 0` of the removed band in hertz. At 0 the signals come back bit for bit: a jump, since the
        edges alone remove something as soon as :math:`b > 0`.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Filtered signals, without delay; the filter is circular in time.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> t = jnp.arange(1000) / 100.0
    >>> x = (jnp.sin(2 * jnp.pi * 10 * t) + jnp.sin(2 * jnp.pi * 20 * t))[None]
    >>> y = eeg.bandstop_filter(x, 20.0, 100.0)
    >>> jnp.allclose(y, jnp.sin(2 * jnp.pi * 10 * t), atol=1e-3)
    Array(True, dtype=bool)

    References
    ----------
    Cheng et al. (2020) for the transform; the gain's shape is ours, since FIR filters of a traced width do not exist.
    """
    dtype, x = jnp.result_type(x), _working(x)
    n_times = x.shape[-1]
    frequency = jnp.arange(n_times // 2 + 1, dtype=x.dtype) * (jnp.asarray(sfreq, x.dtype) / n_times)
    width = _per_example(bandwidth, x, "bandwidth")
    beyond = jnp.abs(frequency - _per_example(center_hz, x, "center_hz")) - width / 2
    gain = 0.5 * (1 - _turn(jnp.clip(beyond, 0, 1) / 2)[0])
    filtered = jnp.fft.irfft(jnp.fft.rfft(x) * gain, n_times)
    return jnp.where(width == 0, x, filtered).astype(dtype)


def gaussian_noise(key: Key[Array, ""], x: Signals, std: PerExample) -> Signals:
    """Add white noise.

    Parameters
    ----------
    key : PRNG key
        Source of randomness.
    x : Array, shape (..., n_channels, n_times)
        Signals.
    std : Array or float
        Standard deviation of the noise, in the unit of `x`.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Noisy signals.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> y = eeg.gaussian_noise(jax.random.key(0), jnp.zeros((1, 2, 5000)), 0.1)
    >>> f"{jnp.std(y):.2f}"
    '0.10'
    """
    dtype, x = jnp.result_type(x), _working(x)
    return (x + _per_example(std, x, "std") * jax.random.normal(key, x.shape, x.dtype)).astype(dtype)


def smooth_time_mask(x: Signals, start: PerExample, length: PerExample) -> Signals:
    r"""Silence a stretch of time, with soft edges so that its place and length have derivatives.

    Multiplies sample :math:`t` by :math:`\sigma(k (t_0 - t)) + \sigma(k (t - t_0 - L))`, where
    :math:`k = 1000 / n_{times}` a sample.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals.
    start : Array or float
        First silent sample :math:`t_0`, any real number.
    length : Array or float
        Length :math:`L` in samples; 0 leaves the signals as they are.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Masked signals.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> eeg.smooth_time_mask(jnp.ones((1, 8)), 1.5, 4.0).round()
    Array([[1., 1., 0., 0., 0., 0., 1., 1.]], dtype=float32)

    References
    ----------
    Mohsenvand, Izadi, Maes (2020) for the mask; Rommel et al. (2022) for its soft edges.
    """
    dtype, x = jnp.result_type(x), _working(x)
    t, steepness = jnp.arange(x.shape[-1], dtype=x.dtype), 1000 / x.shape[-1]
    since_start = steepness * (t - _per_example(start, x, "start"))
    since_end = since_start - steepness * _per_example(length, x, "length")
    return (x * (jax.nn.sigmoid(-since_start) + jax.nn.sigmoid(since_end))).astype(dtype)


def _select_channels(key: Key[Array, ""], x: Array, probability: PerExample, name: str) -> Array:
    """Ones where a channel is selected, as (..., n_channels), with a derivative in the probability."""
    p = _per_example(probability, x, name)
    return relaxed_bernoulli(key, p[..., 0] if p.ndim else p, x.shape[:-1], hard=True)


def channels_dropout(key: Key[Array, ""], x: Signals, p_drop: PerExample) -> Signals:
    """Silence some of the channels.

    Parameters
    ----------
    key : PRNG key
        Source of randomness.
    x : Array, shape (..., n_channels, n_times)
        Signals.
    p_drop : Array or float
        Probability in [0, 1] that a channel is silenced, channels and examples independent. Its derivative is that of
        :func:`gyri.numerics.relax.relaxed_bernoulli`.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Signals of which some channels are 0.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> eeg.channels_dropout(jax.random.key(0), jnp.ones((1000, 4, 1)), 0.3).mean().round(1)
    Array(0.7, dtype=float32)

    References
    ----------
    Saeed et al. (2021).
    """
    dtype, x = jnp.result_type(x), _working(x)
    return (x * (1 - _select_channels(key, x, p_drop, "p_drop"))[..., None]).astype(dtype)


def channels_shuffle(key: Key[Array, ""], x: Signals, p_shuffle: PerExample) -> Signals:
    """Permute some of the channels.

    Parameters
    ----------
    key : PRNG key
        Source of randomness.
    x : Array, shape (..., n_channels, n_times)
        Signals.
    p_shuffle : Array or float
        Probability in [0, 1] that a channel is selected; the selected ones are permuted uniformly among themselves.
        Its derivative is that of mixing a channel with the one that takes its place.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Signals with some channels exchanged.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> x = jnp.arange(5.0)[:, None]
    >>> eeg.channels_shuffle(jax.random.key(0), x, 1.0).ravel().sort()
    Array([0., 1., 2., 3., 4.], dtype=float32)

    References
    ----------
    Saeed et al. (2021).
    """
    dtype, x = jnp.result_type(x), _working(x)
    key_select, key_order = jax.random.split(key)
    selected = _select_channels(key_select, x, p_shuffle, "p_shuffle")
    chosen = selected > 0.5
    # The j-th selected channel takes the one that is j-th in a random order of the selected ones, which come first in
    # `order`; the others follow in their own order, so that each of them takes itself.
    rank = jnp.where(chosen, jax.random.uniform(key_order, chosen.shape), 1 + jnp.arange(x.shape[-2]))
    order = jnp.argsort(rank, axis=-1)
    place = jnp.where(chosen, chosen.cumsum(-1) - 1, chosen.sum(-1, keepdims=True) + (~chosen).cumsum(-1) - 1)
    source = jnp.take_along_axis(order, place, axis=-1)
    moved = jnp.take_along_axis(x, source[..., None], axis=-2)
    return (x + selected[..., None] * (moved - x)).astype(dtype)


# Sensors on a sphere

_ALPHA, _STIFFNESS, _N_TERMS = 1e-5, 4, 50  # of the splines, as in MNE-Python


def _series(n_terms: int, stiffness: int) -> np.ndarray:
    """Legendre coefficients of the spherical spline's kernel (Perrin et al. 1989)."""
    n = np.arange(1.0, n_terms + 1)
    return np.concatenate([[0.0], (2 * n + 1) / (4 * np.pi * (n * (n + 1)) ** stiffness)])


def _on_sphere(positions: np.ndarray, name: str) -> np.ndarray:
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise ValueError(f"{name}: expected shape (n_channels, 3), got {positions.shape}")
    norms = np.linalg.norm(positions, axis=1, keepdims=True)
    if not np.all(np.isfinite(positions)) or not np.all(norms > 0):
        raise ValueError(f"{name}: expected finite positions away from the origin")
    return positions / norms


def _host(positions: Any, name: str) -> np.ndarray:
    if isinstance(positions, jax.core.Tracer):
        raise ValueError(f"{name}: expected concrete positions, which are factored on the host; got a traced array")
    return np.asarray(positions, np.float64)


def _inverse(points: np.ndarray, coefficients: np.ndarray, alpha: float) -> np.ndarray:
    """Map from values at unit points to the weights of kernels around them and of the constant, (n + 1, n)."""
    n = len(points)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = np.polynomial.legendre.legval(points @ points.T, coefficients) + alpha * np.eye(n)
    system[n, n] = 0.0
    return np.linalg.inv(system)[:, :n]


def _legendre_series(c: Array, coefficients: np.ndarray) -> Array:
    """Value of a Legendre series at traced points, by Clenshaw's recurrence."""
    n = np.arange(len(coefficients) - 1.0, -1.0, -1.0)
    rows = jnp.asarray(np.stack([coefficients[::-1], (2 * n + 1) / (n + 1), (n + 1) / (n + 2)], axis=1), c.dtype)

    def step(carry: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
        b1, b2 = carry
        return (row[0] + row[1] * c * b1 - row[2] * b2, b1), None

    return jax.lax.scan(step, (jnp.zeros_like(c), jnp.zeros_like(c)), rows)[0][0]


def spline_matrix(
    pos_from: Float[Any, "..."],
    pos_to: Float[Any, "..."],
    *,
    alpha: float = _ALPHA,
    stiffness: int = _STIFFNESS,
    n_terms: int = _N_TERMS,
) -> Float[Array, "n_to n_from"]:
    """Weights that interpolate values between sensors by spherical splines.

    Parameters
    ----------
    pos_from : array, shape (n_from, 3)
        Where values are known, in any unit; scaled to the unit sphere about the origin. Concrete, as the system of
        equations is solved on the host in double precision.
    pos_to : array, shape (n_to, 3)
        Where they are wanted; may be traced.
    alpha : float
        Ridge on the kernel: the splines pass near the values, not through them. On eight sensors the weights at the
        sensors themselves differ from the identity by some hundredths.
    stiffness : int
        Order of the splines.
    n_terms : int
        Terms of the kernel's Legendre series.

    Returns
    -------
    Array, shape (n_to, n_from)
        Weights in the dtype of `pos_to`; each row sums to one. For traced positions in single precision they are off
        by some 1e-4, since the system's inverse has entries near 3e4; concrete ones lose nothing.

    Raises
    ------
    ValueError
        For a wrong shape, positions that are not finite or at the origin, or a traced `pos_from`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import eeg
    >>> sensors = jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    >>> eeg.spline_matrix(sensors, jnp.array([[1.0, 1.0, 0.0]])).sum().round(4)
    Array(1., dtype=float32)

    References
    ----------
    Perrin, Pernier, Bertrand, Echallier (1989).
    """
    points, coefficients = _on_sphere(_host(pos_from, "pos_from"), "pos_from"), _series(n_terms, stiffness)
    inverse = _inverse(points, coefficients, alpha)
    dtype = jnp.result_type(pos_to)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    if isinstance(pos_to, jax.core.Tracer):
        if pos_to.ndim != 2 or pos_to.shape[1] != 3:
            raise ValueError(f"pos_to: expected shape (n_channels, 3), got {pos_to.shape}")
        to = pos_to / jnp.linalg.norm(pos_to, axis=1, keepdims=True)
        kernel = _legendre_series(jnp.matmul(to, jnp.asarray(points.T, dtype), precision=_HIGHEST), coefficients)
        weights = jnp.matmul(kernel, jnp.asarray(inverse[:-1], dtype), precision=_HIGHEST)
        return weights + jnp.asarray(inverse[-1], dtype)
    to = _on_sphere(_host(pos_to, "pos_to"), "pos_to")
    return jnp.asarray(np.polynomial.legendre.legval(to @ points.T, coefficients) @ inverse[:-1] + inverse[-1], dtype)


_AXES = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}  # the plane that turns, first axis towards second


@functools.lru_cache(maxsize=32)
def _rotation_harmonics(positions: bytes, axis: str) -> np.ndarray:
    """Fourier coefficients in the angle of the interpolation between rotated sensors, (2 _N_TERMS + 1, n, n).

    The kernel is a polynomial of degree _N_TERMS in cosines between sensors, which are trigonometric in the angle, so
    the whole matrix is a trigonometric polynomial: exact from enough angles, and as well conditioned as its values.
    """
    points = _on_sphere(np.frombuffer(positions).reshape(3, -1).T, "positions")
    coefficients = _series(_N_TERMS, _STIFFNESS)
    inverse = _inverse(points, coefficients, _ALPHA)
    n_angles = 2 * _N_TERMS + 1
    first, second = _AXES[axis]
    matrices = []
    for angle in 2 * np.pi * np.arange(n_angles) / n_angles:
        turned = points.copy()
        turned[:, first] = np.cos(angle) * points[:, first] - np.sin(angle) * points[:, second]
        turned[:, second] = np.sin(angle) * points[:, first] + np.cos(angle) * points[:, second]
        matrices.append(np.polynomial.legendre.legval(turned @ points.T, coefficients) @ inverse[:-1] + inverse[-1])
    spectrum = np.fft.rfft(matrices, axis=0) * (np.r_[1, np.full(_N_TERMS, 2)] / n_angles)[:, None, None]
    return np.concatenate([spectrum.real, -spectrum.imag[1:]])


def sensors_rotation(x: Signals, positions: Float[Any, "..."], degrees: PerExample, axis: str = "z") -> Signals:
    """Turn the sensors about an axis of the head and interpolate what they would record.

    Parameters
    ----------
    x : Array, shape (..., n_channels, n_times)
        Signals of at least two channels.
    positions : array, shape (3, n_channels)
        Sensors in the head's coordinates (x to the right, y to the nose, z up), in any unit. Concrete: the spherical
        splines between them are prepared on the host in double precision, once for all angles.
    degrees : Array or float
        Angle in degrees, counter-clockwise seen from the axis's tip. No angle gives exactly the signals themselves,
        see the ridge of :func:`spline_matrix`.
    axis : {"x", "y", "z"}
        Axis of the rotation.

    Returns
    -------
    Array, shape (..., n_channels, n_times)
        Interpolated signals.

    Raises
    ------
    ValueError
        If there is one channel only, or `positions` does not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from gyri.numerics import eeg
    >>> sensors = np.array([[1.0, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, 0]])
    >>> eeg.sensors_rotation(jnp.ones((2, 4, 8)), sensors, jnp.array([0.0, 30.0])).shape
    (2, 4, 8)

    References
    ----------
    Krell, Kim (2017); Perrin et al. (1989).
    """
    dtype, x = jnp.result_type(x), _working(x)
    axis = check_option(axis, "axis", tuple(_AXES))
    places = _host(positions, "positions")
    if x.shape[-2] < 2 or places.shape != (3, x.shape[-2]):
        raise ValueError(
            f"positions: expected shape (3, n_channels), n_channels = {x.shape[-2]} at least 2, got {places.shape}"
        )
    harmonics = jnp.asarray(_rotation_harmonics(np.ascontiguousarray(places).tobytes(), axis), x.dtype)
    orders = jnp.arange(1, len(harmonics) // 2 + 1, dtype=x.dtype)
    turns = _per_example(degrees, x, "degrees") / 360
    turns = turns[..., 0] if turns.ndim else turns[None]
    cosine, sine = _turn(turns * orders)
    basis = jnp.concatenate([jnp.ones_like(turns), cosine, sine], axis=-1)
    matrices = jnp.einsum("...k,kij->...ij", basis, harmonics, precision=_HIGHEST)
    return jnp.matmul(matrices, x, precision=_HIGHEST).astype(dtype)


def symmetry_permutation(ch_names: Sequence[str]) -> np.ndarray:
    """Find the channel across the midline for each channel of the 10-20 system and its refinements.

    Parameters
    ----------
    ch_names : sequence of str
        Names. An odd number becomes the even one above it and the other way round, so F3 and F4 are partners.

    Returns
    -------
    numpy.ndarray of int, shape (n_channels,)
        Place of the partner; of the channel itself where it has no number or the partner is not there.

    Raises
    ------
    ValueError
        If a name comes twice.

    Examples
    --------
    >>> from gyri.numerics import eeg
    >>> eeg.symmetry_permutation(["Fz", "F3", "F4", "O1"])
    array([0, 2, 1, 3])
    """
    names = _names(ch_names)
    places = {name: place for place, name in enumerate(names)}

    def mirrored(match: re.Match) -> str:
        number = int(match[0])
        return str(number - 1 if number % 2 == 0 else number + 1)

    return np.array([places.get(re.sub(r"\d+", mirrored, name), place) for name, place in places.items()])


def standard_positions(ch_names: Sequence[str]) -> np.ndarray:
    """Find the places of channels in MNE-Python's template of the 10-20 system.

    Parameters
    ----------
    ch_names : sequence of str
        Names of the template; capitals do not matter.

    Returns
    -------
    numpy.ndarray, shape (3, n_channels)
        Positions in metres, float64.

    Raises
    ------
    ValueError
        If a name is not in the template or comes twice.
    ImportError
        Without the extra `gyri-numerics[mne]`.

    Examples
    --------
    >>> from gyri.numerics import eeg
    >>> eeg.standard_positions(["Cz", "O1"]).shape  # doctest: +SKIP
    (3, 2)
    """
    names, known = _names(ch_names), _template()
    missing = [name for name in names if name.lower() not in known]
    if missing:
        raise ValueError(f"ch_names: expected names of the 10-20 system, got {', '.join(map(repr, missing))}")
    return np.stack([known[name.lower()] for name in names], axis=1)


def _names(ch_names: Sequence[str]) -> list[str]:
    if isinstance(ch_names, str):
        raise ValueError(f"ch_names: expected a sequence of names, got the string {ch_names!r}")
    names = list(ch_names)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"ch_names: expected different names, got {names}")
    return names


@functools.cache
def _template() -> dict[str, np.ndarray]:
    mne = import_extra("mne", "gyri-numerics[mne]", "for the positions of sensors")
    new, old = "colin27_1020", "standard_1020"  # renamed in MNE 1.14
    name = new if new in mne.channels.get_builtin_montages() else old
    montage = mne.channels.make_standard_montage(name)
    return {channel.lower(): place for channel, place in montage.get_positions()["ch_pos"].items()}
