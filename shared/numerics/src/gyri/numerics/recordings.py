"""Recordings and epochs of MNE, told and read without importing MNE where it is not in use."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Bool, Int


def is_raw(x: object) -> bool:
    """Whether something is a continuous recording of MNE.

    Parameters
    ----------
    x : object
        Anything.

    Returns
    -------
    bool
        True for an `mne.io.BaseRaw`.

    Examples
    --------
    >>> from gyri.numerics.recordings import is_raw
    >>> is_raw([1.0, 2.0])
    False
    """
    mne = sys.modules.get("mne")
    return mne is not None and isinstance(x, mne.io.BaseRaw)


def is_epochs(x: object) -> bool:
    """Whether something is epochs of MNE.

    Parameters
    ----------
    x : object
        Anything.

    Returns
    -------
    bool
        True for an `mne.BaseEpochs`.

    Examples
    --------
    >>> from gyri.numerics.recordings import is_epochs
    >>> is_epochs([1.0, 2.0])
    False
    """
    mne = sys.modules.get("mne")
    return mne is not None and isinstance(x, mne.BaseEpochs)


def pick_data(info: Any) -> Int[np.ndarray, " n_picked"]:
    """Pick the channels of data (MEG, EEG, sEEG, ECoG, ...) that are not marked bad.

    To MNE 1.10 and older, "data" includes gaze and pupils; here they never are.

    Parameters
    ----------
    info : mne.Info
        Of a recording or epochs.

    Returns
    -------
    array of int, shape (n_picked,)
        Indices of the channels, without MEG references.

    Examples
    --------
    >>> import mne
    >>> from gyri.numerics.recordings import pick_data
    >>> pick_data(mne.create_info(3, 100.0, ["eeg", "stim", "eeg"]))
    array([0, 2])
    """
    import mne

    kinds = dict.fromkeys(("meg", "eeg", "csd", "seeg", "ecog", "dbs", "fnirs"), True)
    return mne.pick_types(info, **kinds, ref_meg=False, exclude="bads")


def find_bad_samples(epochs: Any) -> Bool[np.ndarray, "n_epochs n_times"]:
    """Find what annotations that begin with "bad" cover in epochs.

    Continuous recordings have ``get_data(reject_by_annotation="NaN")``, epochs no such option; the samples are the
    same.

    Parameters
    ----------
    epochs : mne.Epochs
        Epochs whose data were read, so that those they reject are dropped.

    Returns
    -------
    array of bool, shape (n_epochs, n_times)
        True where bad.

    Raises
    ------
    RuntimeError
        Neither loaded nor read.

    Examples
    --------
    >>> import mne
    >>> import numpy as np
    >>> from gyri.numerics.recordings import find_bad_samples
    >>> epochs = mne.EpochsArray(np.zeros((2, 1, 5)), mne.create_info(1, 10.0), verbose="error")
    >>> find_bad_samples(epochs).any()
    np.False_
    """
    half, times = 0.5 / epochs.info["sfreq"], epochs.times
    bad = np.zeros((len(epochs), len(times)), bool)
    for row, annotations in zip(bad, epochs.get_annotations_per_epoch(), strict=True):
        for onset, duration, description, *_ in annotations:
            if description.lower().startswith("bad"):
                row[(times > onset - half) & (times < onset + duration - half)] = True
    return bad
