r"""The trend of a recording: how strongly total variation smooths it.

Penalised by :math:`\mu \sum_t |B_{t+1} - B_t|`, a trend is piecewise constant: it follows saccades and slow movements,
and has to be kept from following the nystagmus itself. Section 2 of Lalanne et al. (2020).
"""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Bool, Float, ScalarLike

from gyri.numerics.csc.learning import Background
from gyri.numerics.prox import prox_tv1d
from gyri.numerics.validation import check_array, check_option, check_scalar

SCALES = ("absolute", "max_diff", "max_diff_legacy", "lambda_max")
_WELCH_S, _OVERLAP = 4.1, 0.75
_BAND_AROUND = (0.6, 1.6)  # of the frequency
_HARMONIC, _PROMINENT = 0.2, 3.0  # of the second harmonic, of the median around
_MAD_TO_STD = 1.4826
_NOTHING = 1e-4  # of a recording's range: an amplitude below is that of no oscillation
_ROUNDING = 64  # units in the last place: a smaller spread of velocities is none


class TVThreshold(NamedTuple):
    """Smoothing at which the trend no longer follows an oscillation, and the oscillation it was computed for.

    Attributes
    ----------
    mu : float
        Weight of the total variation, in the data's unit times samples.
    amplitude : float
        Zero to peak, in the data's unit.
    frequency : float
        Hz.
    """

    mu: float
    amplitude: float
    frequency: float


def tv_threshold(amplitude: Any, frequency: Any, sfreq: Any) -> Any:
    r"""Smallest weight of the total variation that flattens an oscillation.

    The running sum of a sine of amplitude A and frequency f at fs samples a second swings by
    :math:`\pm A f_s / (2 \pi f)`: a taut string within a tube of that radius passes straight through.

    Parameters
    ----------
    amplitude : float
        Zero to peak, in the data's unit.
    frequency : float
        Hz.
    sfreq : float
        Sampling frequency in Hz.

    Returns
    -------
    float
        mu, in the data's unit times samples.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Not in the paper, which tries several fractions of the largest step instead.

    Examples
    --------
    >>> round(tv_threshold(3.0, 5.0, 1000.0), 2)
    95.49
    """
    amplitude = check_scalar(amplitude, "amplitude", minimum=0)
    frequency = check_scalar(frequency, "frequency", minimum=0, strict=True)
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    return amplitude * sfreq / (2 * np.pi * frequency)


def estimate_tv_threshold(
    x: Any, sfreq: float | int, band: tuple[float | int, float | int] = (1, 12), *, mask: Any = None
) -> TVThreshold:
    """Guess frequency and amplitude of the nystagmus in recordings, and `tv_threshold` of these.

    The frequency is the peak of the spectrum of the eye's velocity without its saccades, or half of it if there is a
    peak too; the amplitude is read off the position, band-passed around it.

    Parameters
    ----------
    x : array-like, shape (n_times,) or (..., n_times)
        Recordings. All share one frequency; the amplitude is the median over trials of that of the strongest channel.
    sfreq : float
        Sampling frequency in Hz.
    band : pair of float
        Where the frequency is looked for, Hz.
    mask : array-like of bool, optional
        Broadcast to `x`; True where a sample is valid. Others count nowhere, and what gaps take from the amplitude is
        given back: it is measured relative to a sine of amplitude 1 with the same gaps.

    Returns
    -------
    TVThreshold
        mu, amplitude, frequency.

    Raises
    ------
    ValueError
        If an argument is out of range, or the recording is too short to resolve the band.

    Warns
    -----
    UserWarning
        If there is next to no oscillation although the recording varies: the trend would follow everything.

    Notes
    -----
    Not in the paper.

    Examples
    --------
    >>> t = np.arange(5000) / 500
    >>> found = estimate_tv_threshold(2 * np.sin(2 * np.pi * 4 * t) + (t > 5), 500.0)
    >>> round(found.frequency, 1), round(found.amplitude, 1)
    (4.0, 2.0)
    """
    given = np.asarray(check_array(x, "x", ndim=(1, 2, 3), allow_nan=mask is not None))
    x = given.astype(np.float64)
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    low, high = (check_scalar(edge, "band", minimum=0, strict=True) for edge in band)
    if not low < high < sfreq / 2:
        raise ValueError(f"band: expected two frequencies in Hz, rising and below sfreq / 2, got {band}")
    valid = np.ones(x.shape, bool) if mask is None else check_mask(mask, x.shape)
    x = fill_gaps(x, valid)
    moves = valid[..., 1:] & valid[..., :-1]
    if moves.sum(-1).max() < sfreq / low:
        needed, found = int(sfreq / low) + 1, f"{valid.sum(-1).max()} of {x.shape[-1]}"
        raise ValueError(f"x: expected at least {needed} valid samples, a period of the band, got {found}")
    largest = np.abs(x).max().astype(given.dtype if given.dtype.kind == "f" else np.float64)
    rounding, span = _ROUNDING * float(np.spacing(largest)), float(np.ptp(x, axis=-1).max())
    velocity = _clip_saccades(np.diff(x, axis=-1) * sfreq, moves, rounding * sfreq)
    frequency = _peak_frequency(velocity, sfreq, (low, high))
    amplitude = _amplitude(velocity, moves, frequency, sfreq)
    if amplitude.ndim == 2:  # trials, channels; a trial in which nothing is valid does not count
        amplitude = amplitude.max(-1)[moves.any((-2, -1))]
    size = float(np.median(amplitude) if x.ndim == 3 else amplitude.max())
    if size < _NOTHING * span and span > rounding:
        found = f"next to no oscillation from {low} to {high} Hz in a recording that varies"
        warnings.warn(f"{found}: its trend will follow all of it unless trend_reg is a number", stacklevel=2)
    return TVThreshold(tv_threshold(size, frequency, sfreq), size, frequency)


def _median(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Median over time, of some samples; 0 where there are none. Time keeps an axis."""
    rows = zip(x.reshape(-1, x.shape[-1]), where.reshape(-1, x.shape[-1]), strict=True)
    medians = [np.median(row[chosen]) if chosen.any() else 0.0 for row, chosen in rows]
    return np.reshape(medians, (*x.shape[:-1], 1))


def _clip_saccades(velocity: np.ndarray, moves: np.ndarray, rounding: float) -> np.ndarray:
    """Velocity within 3 standard deviations; in gaps its mean, so that they hold no oscillation and no step."""
    centre = _median(velocity, moves)
    # Trackers repeat samples, and round them: where most velocities are zero, these tell nothing about the others.
    mad = _median(np.abs(velocity - centre), moves & (velocity != 0))
    spread = np.where(mad > rounding, 3 * _MAD_TO_STD * mad, np.inf)
    velocity = np.clip(velocity, centre - spread, centre + spread)
    if moves.all():
        return velocity
    mean = np.where(moves, velocity, 0).sum(-1, keepdims=True) / np.maximum(moves.sum(-1, keepdims=True), 1)
    return np.where(moves, velocity, mean)


def _peak_frequency(velocity: np.ndarray, sfreq: float, band: tuple[float, float]) -> float:
    from scipy.signal import welch

    n = min(velocity.shape[-1], round(_WELCH_S * sfreq))
    frequencies, power = welch(velocity, sfreq, "hann", nperseg=n, noverlap=int(_OVERLAP * n))
    power = power.reshape(-1, frequencies.size).mean(0)
    inside = np.flatnonzero((frequencies >= band[0]) & (frequencies <= band[1]))
    peak = _fundamental(power, int(inside[power[inside].argmax()]), int(inside[0]))
    tiny = np.finfo(float).tiny
    before, at, after = np.log(np.maximum(power[[peak - 1, peak, min(peak + 1, frequencies.size - 1)]], tiny))
    bend = before - 2 * at + after
    # The vertex of a parabola through the logarithms: finer than the grid of a quarter of a hertz.
    offset = np.clip(0.5 * (before - after) / bend, -0.5, 0.5) if bend < 0 else 0.0
    return float(np.clip(frequencies[peak] + offset * frequencies[1], *band))


def _fundamental(power: np.ndarray, peak: int, lowest: int) -> int:
    """Half the peak's place if there is a peak too: the velocity of a jerk may be strongest at its second harmonic."""
    near = np.arange(max(peak // 2 - 1, lowest), peak // 2 + 3)
    if near.size == 0:
        return peak
    half = int(near[power[near].argmax()])
    around = power[max(half - 6, 1) : half + 7]
    is_peak = power[half] == power[max(half - 2, 0) : half + 3].max()
    strong = power[half] > _HARMONIC * power[peak] and power[half] > _PROMINENT * np.median(around)
    return half if is_peak and strong and half < peak - 2 else peak


def _amplitude(velocity: np.ndarray, moves: np.ndarray, frequency: float, sfreq: float) -> np.ndarray:
    from scipy.signal import butter, sosfiltfilt

    edges = [_BAND_AROUND[0] * frequency, min(_BAND_AROUND[1] * frequency, 0.99 * sfreq / 2)]
    sos = butter(2, edges, "bandpass", fs=sfreq, output="sos")

    def swing(velocity: np.ndarray) -> np.ndarray:
        position = np.cumsum(velocity - velocity.mean(-1, keepdims=True), axis=-1) / sfreq
        return np.abs(sosfiltfilt(sos, position, axis=-1))

    size = np.asarray(np.sqrt(2) * _median(swing(velocity), moves)[..., 0])
    if moves.all():
        return size
    turn = sfreq * np.diff(np.exp(2j * np.pi * frequency * np.arange(moves.shape[-1] + 1) / sfreq))
    sine = [swing(_clip_saccades(part * np.ones(moves.shape), moves, np.inf)) for part in (turn.real, turn.imag)]
    unit = np.sqrt(2) * _median(np.concatenate(sine, axis=-1), np.concatenate([moves, moves], axis=-1))[..., 0]
    return np.asarray(np.divide(size, unit, out=np.zeros_like(size), where=unit > 0))


def mu_max(x: Any, *, mask: Any = None) -> Float[np.ndarray, "*batch"]:
    r"""Smallest weight of the total variation that makes the trend constant.

    :math:`\max_t |\sum_{s \le t} (x_s - \bar x)|`, over the valid samples.

    Parameters
    ----------
    x : array-like, shape (..., n_times)
        Recordings.
    mask : array-like of bool, optional
        Broadcast to `x`; True where a sample is valid.

    Returns
    -------
    np.ndarray of float64, shape (...)
        One value a channel.

    Raises
    ------
    ValueError
        If an argument has the wrong shape or is not finite.

    Examples
    --------
    >>> mu_max([1.0, 1.0, 3.0, 3.0])
    array(2.)
    """
    x = np.asarray(check_array(x, "x", ndim=(1, 2, 3), allow_nan=mask is not None), np.float64)
    valid = np.ones(x.shape, bool) if mask is None else check_mask(mask, x.shape)
    x = np.where(valid, x, 0)
    mean = x.sum(-1, keepdims=True) / np.maximum(valid.sum(-1, keepdims=True), 1)
    return np.asarray(np.abs(np.cumsum(np.where(valid, x - mean, 0), axis=-1)).max(-1))


def trend_level(x: Any, reg: Any, scale: str = "absolute", *, sfreq: float | None = None, mask: Any = None) -> float:
    """Weight of the total variation in the data's unit, from what the user asks for.

    Parameters
    ----------
    x : array-like, shape (..., n_times)
        Recordings.
    reg : float or "auto"
        Weight or factor; "auto" takes `estimate_tv_threshold`, whatever the scale.
    scale : {"absolute", "max_diff", "max_diff_legacy", "lambda_max"}
        What `reg` multiplies: 1; the largest step between samples times the standard deviation of `x` (what the
        authors' code does when it learns trend and patterns jointly); the largest step (what it does in two steps);
        or `mu_max`, the largest over channels.
    sfreq : float, optional
        Sampling frequency in Hz; needed by "auto".
    mask : array-like of bool, optional
        Broadcast to `x`; True where a sample is valid.

    Returns
    -------
    float
        mu.

    Raises
    ------
    ValueError
        If `reg` is negative, an option is unknown or missing, or the recording is too short for "auto".

    Examples
    --------
    >>> trend_level([0.0, 0.0, 4.0, 4.0], 0.5, "max_diff")
    4.0
    """
    check_option(scale, "trend_scale", SCALES)
    if isinstance(reg, str):
        check_option(reg, "trend_reg", ("auto",))
        if sfreq is None:
            raise ValueError('sfreq: expected the sampling frequency in Hz for trend_reg="auto", got None')
        try:
            return estimate_tv_threshold(x, sfreq, mask=mask).mu
        except ValueError as error:
            raise ValueError(f'trend_reg: expected a number, since "auto" cannot be computed: {error}') from error
    factor = float(check_scalar(reg, "trend_reg", minimum=0))
    if scale == "absolute":
        return factor
    if scale == "lambda_max":
        return factor * float(mu_max(x, mask=mask).max())
    x = np.asarray(check_array(x, "x", ndim=(1, 2, 3), allow_nan=mask is not None), np.float64)
    valid = np.ones(x.shape, bool) if mask is None else check_mask(mask, x.shape)
    steps = np.abs(np.diff(np.where(valid, x, 0), axis=-1))[valid[..., 1:] & valid[..., :-1]]
    largest = float(steps.max(initial=0.0))
    return factor * largest * (float(x[valid].std()) if scale == "max_diff" else 1.0)


def check_mask(mask: Any, shape: tuple[int, ...]) -> Bool[np.ndarray, "*shape"]:
    """Check a mask of valid samples and broadcast it to the data.

    Parameters
    ----------
    mask : array-like of bool
        True where a sample is valid.
    shape : tuple of int
        Shape of the data.

    Returns
    -------
    np.ndarray of bool
        Of that shape.

    Raises
    ------
    ValueError
        If it is no bool array, cannot be broadcast, or leaves nothing.

    Examples
    --------
    >>> check_mask([True, False], (2, 2)).tolist()
    [[True, False], [True, False]]
    """
    given = np.asarray(mask)
    if given.dtype != bool:
        raise ValueError(f"mask: expected booleans, True where a sample is valid, got dtype {given.dtype}")
    try:
        full = np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(f"mask: expected a shape that broadcasts to {shape}, got {given.shape}") from None
    if not full.any():
        raise ValueError("mask: expected at least one valid sample, got False everywhere")
    return full


def fill_gaps(x: Float[np.ndarray, "*batch n_times"], mask: Bool[np.ndarray, "*batch n_times"]) -> np.ndarray:
    """Interpolate linearly over samples that are not valid; outside the first and last valid one, their values.

    Parameters
    ----------
    x : np.ndarray, shape (..., n_times)
        Recordings; what stands in invalid samples is not read.
    mask : np.ndarray of bool, same shape
        True where a sample is valid.

    Returns
    -------
    np.ndarray, same shape
        A copy; a channel without any valid sample becomes zero.

    Examples
    --------
    >>> fill_gaps(np.array([1.0, np.nan, 3.0, 9.0]), np.array([True, False, True, False]))
    array([1., 2., 3., 3.])
    """
    filled = np.where(mask, x, 0)
    time = np.arange(x.shape[-1])
    for row, valid in zip(filled.reshape(-1, time.size), mask.reshape(-1, time.size), strict=True):
        if valid.any() and not valid.all():
            row[~valid] = np.interp(time[~valid], time[valid], row[valid])
    return filled


def tv_background(mu: ScalarLike) -> Background:
    """Total variation as the background of `gyri.numerics.csc.learn_atoms`.

    Parameters
    ----------
    mu : float
        Weight; another one compiles nothing anew.

    Returns
    -------
    Background
        Proximal operator and value.

    Examples
    --------
    >>> background = tv_background(1.0)
    >>> background.prox(jnp.array([[[0.0, 0.0, 9.0, 9.0]]]), None)
    Array([[[0.5, 0.5, 8.5, 8.5]]], dtype=float32)
    >>> background.value(jnp.array([[[0.5, 0.5, 8.5, 8.5]]]))
    Array(8., dtype=float32)
    """
    return Background(Partial(_prox, mu), Partial(_value, mu))


def _prox(mu: Any, residual: Any, sample_weight: Any) -> Any:
    return prox_tv1d(residual, mu, sample_weight=sample_weight)


def _value(mu: Any, trend: Any) -> Any:
    return mu * jnp.sum(jnp.abs(jnp.diff(trend, axis=-1)))
