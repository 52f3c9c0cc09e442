"""From what users pass to arrays: windows, labels, epochs of MNE."""

from typing import Any, NamedTuple

import numpy as np

from gyri.numerics.recordings import is_epochs
from gyri.numerics.validation import check_array

from .data import zscore


class Windows(NamedTuple):
    """Checked windows.

    Attributes
    ----------
    X : array, shape (n, n_channels, n_times)
        Windows.
    y : numpy.ndarray of int or None
        Labels from 0.
    sfreq : float or None
        Of MNE objects, their sampling frequency in Hz.
    ch_names : tuple of str or None
        Of MNE objects, the channels taken.
    """

    X: Any
    y: Any
    sfreq: float | None
    ch_names: tuple[str, ...] | None


def read_windows(X: Any, y: Any, name: str = "", n_classes: int | None = None) -> Windows:
    """Check windows and labels; `name` is appended to the arguments' names in messages.

    Epochs of MNE come without their bad channels and z-scored, as they are in volts. Without `y` their event codes,
    in increasing order, are the labels 0, 1, ...
    """
    sfreq = ch_names = None
    if is_epochs(X):
        X, codes, sfreq, ch_names = _read_epochs(X, f"X{name}")
        y = np.unique(codes, return_inverse=True)[1] if y is None else y
    X = check_array(X, f"X{name}", shape=("n", "n_channels", "n_times"))
    return Windows(X, check_labels(y, len(X), f"y{name}", n_classes), sfreq, ch_names)


def check_labels(y: Any, n: int, name: str, n_classes: int | None = None) -> np.ndarray:
    """Integer labels from 0, shape (n,)."""
    labels = np.asarray(y)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integer labels from 0, got dtype {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},) as there are {n} windows, got {labels.shape}")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or (n_classes is not None and most >= n_classes):
        above = "" if n_classes is None else f" and < {n_classes}"
        raise ValueError(f"{name}: expected labels >= 0{above}, got labels from {least} to {most}")
    return labels.astype(np.int32)


def _read_epochs(epochs: Any, name: str) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
    import mne

    picks = mne.pick_types(epochs.info, eeg=True, seeg=True, ecog=True, meg=False, exclude="bads")
    if not len(picks):
        raise ValueError(f"{name}: expected epochs with EEG channels, got none")
    names = tuple(epochs.ch_names[i] for i in picks)
    return zscore(epochs.get_data(picks=picks)), epochs.events[:, 2], float(epochs.info["sfreq"]), names
