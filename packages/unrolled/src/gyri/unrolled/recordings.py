"""From what users pass to arrays: samples by channels by space, with a mask; recordings and epochs of MNE too."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gyri.numerics.recordings import find_bad_samples, is_epochs, is_raw, pick_data
from gyri.numerics.validation import check_array

from .coding import check_mask


class Signals(NamedTuple):
    """Checked signals.

    Attributes
    ----------
    X : array, shape (n_samples, n_channels, ...)
        Zero where masked.
    mask : array of the same shape and dtype, or None
        1 where observed.
    info : mne.Info or None
        Of MNE objects, that of the channels taken.
    """

    X: Any
    mask: Any
    info: Any


def read_signals(X: Any, mask: Any, n_axes: int) -> Signals:
    """Check signals, as arrays or MNE objects.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_channels, ...) or (n_channels, ...), mne.io.BaseRaw or mne.BaseEpochs
        Signals with `n_axes` axes of space; without an axis of samples they are one.
    mask : array-like of the same shape, or None
        1 where observed; elsewhere anything may stand, NaN too. Of MNE objects, what annotations that begin with
        "bad" cover is masked as well.
    n_axes : int
        Number of axes of space.

    Returns
    -------
    Signals
        With an axis of samples.

    Raises
    ------
    ValueError
        Wrong number of axes, NaN where observed, infinity, no data channel, channels of several kinds.

    Examples
    --------
    >>> read_signals(np.zeros((2, 50)), None, 1).X.shape
    (1, 2, 50)
    """
    info = None
    if is_raw(X) or is_epochs(X):
        if n_axes != 1:
            raise ValueError(f"X: expected an array for atoms with {n_axes} axes, got {type(X).__name__}")
        X, annotated, info = _read_mne(X)
        given = None if mask is None else check_mask(mask, np.shape(X))
        if annotated is not None:
            mask = annotated if given is None else annotated * np.asarray(given)
    if np.ndim(X) not in (n_axes + 1, n_axes + 2):
        space = ", ".join(["n_times"] if n_axes == 1 else [f"n_{i + 1}" for i in range(n_axes)])
        raise ValueError(f"X: expected shape (n_samples, n_channels, {space}), or without samples, got {np.shape(X)}")
    checked = check_mask(mask, np.shape(X))
    if checked is not None:
        X = check_array(X, "X", allow_nan=True, allow_half=False)
        where = jnp.where if isinstance(X, jax.Array) else np.where
        X = where(np.asarray(checked) != 0, X, np.zeros((), X.dtype))
    X = check_array(X, "X", allow_half=False)
    if X.ndim == n_axes + 1:
        X, checked = X[None], None if checked is None else checked[None]
    return Signals(X, checked, info)


def _read_mne(inst: Any) -> tuple[np.ndarray, np.ndarray | None, Any]:
    """Data, mask and info of the data channels of a recording or epochs."""
    import mne

    picks = pick_data(inst.info)
    kinds = set(np.array(inst.get_channel_types())[picks])
    if len(kinds) != 1:
        found = "none" if not kinds else ", ".join(sorted(kinds))
        raise ValueError(f"X: expected data channels of one kind, such as after X.pick('grad'), got {found}")
    info = mne.pick_info(inst.info, picks)
    # Samples that annotations call bad become NaN.
    if is_epochs(inst):
        data = inst.get_data(picks=picks, copy=True)  # first: it drops the epochs that are rejected
        data = np.where(find_bad_samples(inst)[:, None], np.nan, data)
    else:
        data = inst.get_data(picks=picks, reject_by_annotation="NaN", verbose="error")
    bad = np.isnan(data)
    return np.where(bad, 0, data), (None if not bad.any() else (~bad).astype(float)), info
