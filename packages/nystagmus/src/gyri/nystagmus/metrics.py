"""How well a pattern or a signal is recovered."""

from typing import Any

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import check_array


def pattern_correlation(pattern: Any, atoms: Any) -> Float[np.ndarray, " n_atoms"]:
    """How well atoms recover a periodic pattern: the paper's score.

    The largest absolute correlation over all places of the atom's start in the period. An atom longer than the period
    is compared with one period of it at a time, so that a perfect one scores 1 only where it holds a whole, unweighted
    period.

    Parameters
    ----------
    pattern : array-like, shape (n_times_pattern,)
        One period, zeros behind.
    atoms : array-like, shape (n_atoms, n_times_atom)
        Waveforms at the same sampling frequency, of any size and sign.

    Returns
    -------
    np.ndarray of float64, shape (n_atoms,)
        From 0 to 1; 0 for a constant.

    Raises
    ------
    ValueError
        If an argument has the wrong shape or is not finite.

    Notes
    -----
    Lalanne et al. (2020), recovery score: the pattern is centred, has unit norm and is tiled twice; the atom is centred
    and has unit norm; the maximum is taken over the start within the tiled pattern and over the lags of the valid
    correlation. That is a circular correlation with each window of the atom, here by FFT.

    Examples
    --------
    >>> period = np.sin(2 * np.pi * np.arange(50) / 50)
    >>> pattern_correlation(period, [-np.roll(period, 7), np.ones(50)]).round(3)
    array([1., 0.])
    """
    period = np.asarray(check_array(pattern, "pattern", ndim=1), np.float64)
    waves = np.asarray(check_array(atoms, "atoms", ndim=2), np.float64)
    support = np.flatnonzero(period)
    period = _standardise(period[: support[-1] + 1] if support.size else period)
    waves = _standardise(waves)
    n = period.size
    if waves.shape[1] < n:
        waves = np.pad(waves, ((0, 0), (0, n - waves.shape[1])))
    windows = np.lib.stride_tricks.sliding_window_view(waves, n, axis=1)
    spectra = np.fft.rfft(windows, axis=-1) * np.conj(np.fft.rfft(period))
    return np.abs(np.fft.irfft(spectra, n, axis=-1)).max((1, 2))


def _standardise(x: np.ndarray) -> np.ndarray:
    """Centre, and give unit norm; what is constant up to rounding becomes zero."""
    centred = x - x.mean(-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    floor = 1e-12 * np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > floor)


def relative_error(truth: Any, estimate: Any) -> float:
    """Norm of the error over the norm of the truth; the paper plots this as "R2", although lower is better.

    Parameters
    ----------
    truth, estimate : array-like, any shape
        Two signals of one shape; entries that are NaN in either are left out.

    Returns
    -------
    float
        0 for a perfect estimate, 1 for zeros.

    Raises
    ------
    ValueError
        If the shapes differ, nothing can be compared, or the truth is zero.

    Examples
    --------
    >>> relative_error([3.0, 4.0], [3.0, 3.5])
    0.1
    """
    true = np.asarray(check_array(truth, "truth", allow_nan=True), np.float64)
    guess = np.asarray(check_array(estimate, "estimate", allow_nan=True, shape=true.shape), np.float64)
    seen = ~(np.isnan(true) | np.isnan(guess))
    size = np.linalg.norm(true[seen])
    if size == 0:
        raise ValueError(f"truth: expected a signal with entries other than zero and NaN, got norm {size}")
    return float(np.linalg.norm(true[seen] - guess[seen]) / size)
