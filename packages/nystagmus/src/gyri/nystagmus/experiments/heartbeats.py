"""A real recording that needs no download: heart beats are a pattern that repeats under a drifting baseline."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Data, Result, experiment

SFREQ, LENGTH = 360.0, 90
N_BEATS_APART = 0.5  # seconds: no two beats are closer at rest


def load_ecg() -> np.ndarray:
    """The electrocardiogram that comes with PyWavelets, shape (1024,)."""
    try:
        import pywt
    except ImportError as error:
        raise ImportError('load_ecg: the data come with PyWavelets: pip install "gyri-nystagmus[data]"') from error
    return np.asarray(pywt.data.ecg(), np.float64)


def find_beats(x: np.ndarray) -> np.ndarray:
    """Samples of the largest peaks by a rule that knows no atoms."""
    from scipy.signal import find_peaks

    height = np.median(x) + 0.5 * (x.max() - np.median(x))
    return find_peaks(x, height=height, distance=int(N_BEATS_APART * SFREQ))[0]


def locate(seed: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Samples of the peak of each strong activation, those of the beats, and the model."""
    from ..estimator import NystagmusCDL

    x = load_ecg()
    model = NystagmusCDL(
        1, n_times_atom=LENGTH, sfreq=SFREQ, reg=0.3, trend_reg=x.std(), max_iter=50, random_state=seed, n_restarts=5
    ).fit(x)
    codes = model.codes_[0, 0]
    strong = np.flatnonzero(codes > 0.5 * codes.max())
    return strong + int(np.argmax(np.abs(model.atoms_[0, 0]))), find_beats(x), model


@experiment(paper="nystagmus", figure="In addition", title="Heart beats: a real recording")
def heartbeats(scale: str, key: int, sweep: Any) -> Result:
    """One atom of a quarter of a second on 1024 samples of an electrocardiogram, from five keys.

    The peaks of the atom at its strong activations have to be the beats, as a plain peak finder sees them.

    Paper scale: the same as the quick one, about half a CPU minute.
    """
    runs = sweep(locate, [key + i for i in range(5)])
    missed, false = [], []
    for found, beats, _ in runs:
        whole = beats[(beats >= LENGTH) & (beats < 1024 - LENGTH)]  # atoms do not reach over the ends
        distance = np.abs(whole[:, None] - found[None])
        missed.append(np.mean(distance.min(1) > 5))
        false.append(np.mean(np.abs(found[:, None] - beats[None]).min(1) > 5))
    claims = [
        Claim.at_most("part of the beats without an activation within 5 samples", None, missed, 0.0),
        Claim.at_most("part of the strong activations without a beat within 5 samples", None, false, 0.0),
    ]
    figure = runs[0][2]
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 6), layout="constrained")
    from ..plot import plot_decomposition

    plot_decomposition(figure, ax=canvas.subplots(3, 1, sharex=True))
    captions = {"Heartbeats": "Electrocardiogram in parts: trend, repetitions of one atom, its activations."}
    return Result(claims, {"Heartbeats": canvas}, Data.real("electrocardiogram of PyWavelets"), captions)
