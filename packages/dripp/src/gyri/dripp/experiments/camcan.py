"""The Cam-CAN data set (restricted access), with activations that the user has."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from .recordings import LEARNING, draw_intensities, find_activations, fit, get_drivers, has_mne, prepare

RECORDING_VARIABLE = "GYRI_DRIPP_CAMCAN_RECORDING"
VARIABLE = "GYRI_DRIPP_CAMCAN_ACTIVATIONS"
EVENT_ID = {"audio": (1, 2, 3, 5), "visual": (1, 2, 3, 6)}  # codes 1 to 3 are both at once
NOTCH = (50.0, 100.0)  # Hz
WINDOW = {"lower": 0.0, "upper": 0.9}
NEEDS = (
    'MNE (pip install "gyri-dripp[mne]"), a recording of Cam-CAN (restricted access: cam-can.org) in '
    f"the .fif file that {RECORDING_VARIABLE} names, and activations of 20 atoms of 0.5 s in the file that "
    f"{VARIABLE} names; {LEARNING}"
)


def load() -> Any:
    """Read the recording that the environment names; None if it names none, or MNE is missing.

    Returns
    -------
    mne.io.BaseRaw or None
        Loaded, as recorded.
    """
    path = Path(os.environ.get(RECORDING_VARIABLE) or ".")
    if not has_mne() or not path.is_file():
        return None
    import mne

    return mne.io.read_raw_fif(path, preload=True, verbose="error")


@experiment(paper="dripp", figure="Cam-CAN", title="Cam-CAN: atoms evoked by sounds and checkerboards")
def camcan(scale: str, key: int, sweep: Any) -> Result:
    """Gradiometers, notch 50 and 100 Hz, high pass 2 Hz, 150 Hz; sounds and images; window 0 to 0.9 s; threshold 0.

    The recording, a .fif file, is named by GYRI_DRIPP_CAMCAN_RECORDING; activations come from the file that
    GYRI_DRIPP_CAMCAN_ACTIVATIONS names: an .npz with ``z``, shape (20, n_times), and ``atoms``, shape (20, 75), as
    learnt from the recording preprocessed in this way (the paper: rank-1 convolutional dictionary learning,
    regularisation 0.2 of the largest).

    Paper scale: the same as the quick one, about 2 CPU minutes (guessed from mne_somato); needs a recording of Cam-CAN
    (restricted access) and its activations.
    """
    raw, activations = load(), find_activations(VARIABLE)
    wanted = ("atoms that answer to a stimulus (alpha / baseline above 2)", "some, and artifacts that do not")
    if raw is None or activations is None:
        return Result([Claim.not_run(*wanted)], {}, Data.missing(needs=NEEDS))
    prepared, events = prepare(raw, notch=NOTCH)
    model = fit(activations, get_drivers(prepared, events, EVENT_ID), threshold=0.0, max_iter=200, **WINDOW)
    ratio = np.asarray(model.ratio_).max(1)
    claims = [Claim.between(*wanted, float((ratio > 2).sum()), 1.0, len(ratio) - 1.0)]
    figure = draw_intensities(model, np.argsort(-ratio)[:3].tolist())
    return Result(claims, {"Intensities": figure}, Data.real("Cam-CAN, activations of the user"))
