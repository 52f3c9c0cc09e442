"""From what users pass to what the algorithms take: trials by channels by times, a mask, and scales out of the data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from gyri.numerics.recordings import is_epochs, is_raw
from gyri.numerics.validation import check_array

from .mne_io import read_signal
from .trend import check_mask


class Recording(NamedTuple):
    """Checked data.

    Attributes
    ----------
    data : np.ndarray, shape (n_trials, n_channels, n_times)
        Zero where masked.
    mask : np.ndarray of bool, same shape, or None
        True where valid; None if all are.
    sfreq : float or None
        Hz, where known.
    ch_names : tuple of str or None
        Where known.
    """

    data: Float[np.ndarray, "n_trials n_channels n_times"]
    mask: Bool[np.ndarray, "n_trials n_channels n_times"] | None
    sfreq: float | None
    ch_names: tuple[str, ...] | None

    def unmasked(self, x: np.ndarray) -> np.ndarray:
        """Put NaN where this recording is masked."""
        return x if self.mask is None else np.where(self.mask, x, np.nan)


class Scaling(NamedTuple):
    """How data become what the algorithms see: ``(data - offset) / scale``.

    Attributes
    ----------
    offset : np.ndarray, shape (n_trials, n_channels, 1)
        In the data's unit.
    scale : np.ndarray, shape (n_trials, 1, 1)
        In the data's unit; the same for all trials unless each is normalised.
    """

    offset: Float[np.ndarray, "n_trials n_channels 1"]
    scale: Float[np.ndarray, "n_trials 1 1"]


def read_recording(X: Any, mask: Any = None, picks: Any = None) -> Recording:
    """Check what a user passed as data.

    Parameters
    ----------
    X : array-like, or mne.io.Raw, mne.Epochs
        Recordings, shape (n_times,), (n_channels, n_times) or (n_trials, n_channels, n_times).
    mask : array-like of bool, optional
        Broadcast to `X`; True where valid. With it, NaN is allowed where it is False.
    picks : str, list or None
        Channels of an MNE object.

    Returns
    -------
    Recording
        The data with three axes.

    Raises
    ------
    ValueError
        If `X` is empty, complex, not finite in valid samples or has the wrong number of axes, or the mask does not fit.

    Examples
    --------
    >>> read_recording([0.0, 1.0, 4.0]).data.shape
    (1, 1, 3)
    """
    if is_raw(X) or is_epochs(X):
        signal = read_signal(X, picks)
        data, valid, sfreq, names = signal.data, signal.mask, signal.sfreq, signal.ch_names
        valid = valid if mask is None else valid & check_mask(_three_axes(np.asarray(mask)), data.shape)
    else:
        if picks is not None:
            raise ValueError(f"picks: expected None, since X is an array and no object of MNE, got {picks!r}")
        data = np.asarray(check_array(X, "X", ndim=(1, 2, 3), allow_nan=True, allow_half=False))
        if mask is None and (n_missing := int(np.isnan(data).sum())):
            hint = "or a mask that is False where samples are missing"
            raise ValueError(f"X: expected finite values, {hint}, got {n_missing} of {data.size} that are NaN")
        data, sfreq, names = _three_axes(data), None, None
        valid = np.ones(data.shape, bool) if mask is None else check_mask(_three_axes(np.asarray(mask)), data.shape)
    if not valid.any():
        raise ValueError("X: expected at least one valid sample, got only NaN and samples annotated as bad")
    if valid.all():
        return Recording(np.asarray(check_array(data, "X", allow_half=False)), None, sfreq, names)
    return Recording(np.asarray(check_array(np.where(valid, data, 0), "X", allow_half=False)), valid, sfreq, names)


def _three_axes(x: np.ndarray) -> np.ndarray:
    return x.reshape((1,) * (3 - x.ndim) + x.shape)


def find_scaling(recording: Recording, *, centre: bool, normalize: str | None) -> Scaling:
    """Offsets and scales of a recording, over its valid samples.

    Parameters
    ----------
    recording : Recording
        The data.
    centre : bool
        Take off the mean of each channel.
    normalize : None or "l2"
        Divide all by the standard deviation, or each trial by its norm after its channels are centred.

    Returns
    -------
    Scaling
        Scale 0 where nothing varies.

    Examples
    --------
    >>> find_scaling(read_recording([1.0, 3.0]), centre=True, normalize=None).scale
    array([[[1.]]])
    """
    data = recording.data.astype(np.float64)
    valid = np.ones(data.shape, bool) if recording.mask is None else recording.mask
    count = np.maximum(valid.sum(-1, keepdims=True), 1)
    mean = np.where(valid, data, 0).sum(-1, keepdims=True) / count
    deviation = np.where(valid, data - mean, 0)
    floor = 1e-12 * float(np.abs(data).max())
    if normalize == "l2":
        scale = np.sqrt(np.square(deviation).sum((1, 2), keepdims=True))
        scale = np.where(scale > floor, scale, 0.0)
        return Scaling(mean, scale)
    spread = float(np.sqrt(np.square(deviation).sum() / valid.sum()))
    scale = np.full((len(data), 1, 1), spread if spread > floor else 0.0)
    return Scaling(mean if centre else np.zeros_like(mean), scale)


def device_dtype(recording: Recording) -> Any:
    """Precision in which JAX works on a recording.

    Examples
    --------
    >>> device_dtype(read_recording(np.zeros(3)))  # without jax_enable_x64
    dtype('float32')
    """
    return jax.dtypes.canonicalize_dtype(recording.data.dtype)


def apply_scaling(recording: Recording, scaling: Scaling) -> Any:
    """Data as the algorithms take them, in JAX's precision; masked samples stay zero.

    Examples
    --------
    >>> recording = read_recording([1.0, 3.0])
    >>> apply_scaling(recording, find_scaling(recording, centre=True, normalize=None))
    Array([[[-1.,  1.]]], dtype=float32)
    """
    data = recording.data.astype(np.float64) - scaling.offset
    scaled = np.divide(data, scaling.scale, out=np.zeros_like(data), where=scaling.scale > 0)
    if recording.mask is not None:
        scaled = np.where(recording.mask, scaled, 0)
    # Centred and divided in double precision, then rounded: the offset costs no digits.
    return jnp.asarray(scaled, device_dtype(recording))
