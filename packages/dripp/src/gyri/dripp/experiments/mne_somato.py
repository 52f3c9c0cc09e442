"""Figures 5, A.3 and A.4: the MNE somatosensory data set, with activations that the user has."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

from .recordings import LEARNING, draw_intensities, find_activations, fit, get_drivers, has_mne, prepare

VARIABLE = "GYRI_DRIPP_SOMATO_ACTIVATIONS"
EVENT_ID = {"somatosensory": (1,)}
NOTCH = (50.0, 100.0)  # Hz
THRESHOLD = 1e-10
WINDOW = {"lower": 0.0, "upper": 2.0}
NEEDS = (
    'MNE (pip install "gyri-dripp[mne]"), its somato data set (mne.datasets.somato.data_path()), and activations of '
    f"20 atoms of 80 samples in the file that {VARIABLE} names; {LEARNING}"
)


def load() -> Any:
    """Read the recording if the data set is on this machine; None if it, or MNE, is not.

    Returns
    -------
    mne.io.BaseRaw or None
        Loaded, as recorded.
    """
    if not has_mne():
        return None
    import mne

    folder = mne.datasets.somato.data_path(download=False, verbose="error")
    file = folder / "sub-01" / "meg" / "sub-01_task-somato_meg.fif" if str(folder) else None
    if file is None or not file.is_file():
        return None
    return mne.io.read_raw_fif(file, preload=True, verbose="error")


@experiment(
    paper="dripp",
    figure="Figures 5, A.3 and A.4",
    title="MNE somato: an evoked atom, and rhythms that rebound after a second",
)
def mne_somato(scale: str, key: int, sweep: Any) -> Result:
    """Gradiometers, notch 50 and 100 Hz, high pass 2 Hz, 150 Hz; window 0 to 2 s; threshold 1e-10.

    Activations come from the file that GYRI_DRIPP_SOMATO_ACTIVATIONS names: an .npz with ``z``, shape (20,
    n_times), in the recording's unit, and ``atoms``, shape (20, 80), as learnt from the recording preprocessed in
    this way (the paper: rank-1 greedy convolutional dictionary learning, regularisation 0.2 of the largest).

    Paper scale: the same as the quick one, about 1 CPU minute (guessed: filters, and the fit of synthetic_meg for 20
    atoms); needs the MNE somato data and their activations.
    """
    raw, activations = load(), find_activations(VARIABLE)
    wanted = (
        ("latency of the atom with the largest alpha / baseline", "evoked: well below 0.5 s"),
        ("atoms that answer between 0.5 and 1.5 s", "mu-shaped atoms, about 1 s"),
    )
    if raw is None or activations is None:
        return Result([Claim.not_run(*claim) for claim in wanted], {}, Data.missing(needs=NEEDS))
    prepared, events = prepare(raw, notch=NOTCH)
    model = fit(activations, get_drivers(prepared, events, EVENT_ID), threshold=THRESHOLD, max_iter=400, **WINDOW)
    ratio, m, alpha = (np.asarray(x)[:, 0] for x in (model.ratio_, model.m_, model.alpha_))
    order = np.argsort(-ratio)
    late = (alpha > 0.1) & (m > 0.5) & (m < 1.5)
    claims = [
        Claim.at_most(*wanted[0], float(m[order[0]]), 0.5, unit="s"),
        Claim.at_least(*wanted[1], float(late.sum()), 1.0),
    ]
    figure = draw_intensities(model, order[:3].tolist())
    return Result(claims, {"Figure 5": figure}, Data.real("MNE somato, activations of the user"))
