"""M/EEG recordings with activations of a dictionary that was learnt elsewhere: what the experiments on real data share.

A file of activations is an .npz with ``z``, shape (n_atoms, n_times), and ``atoms``, the waveforms, shape (n_atoms,
n_times_atom), or an .npy with ``z`` alone. Its path is in an environment variable that each experiment names.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ..estimator import DriPP
from ..events import drivers_from_mne, events_from_activations

SFREQ = 150.0  # Hz, of all the paper's recordings
LEARNING = "gyri.dripp.events_from_raw learns such a dictionary from the recording"


class Activations(NamedTuple):
    """Activations ``z``, and the waveforms if they are known."""

    z: Float[np.ndarray, "n_atoms n_times"]
    atoms: Float[np.ndarray, "n_atoms n_times_atom"] | None


def read_activations(path: str | os.PathLike[str]) -> Activations:
    """Read activations from a file.

    Parameters
    ----------
    path : path
        An .npz with ``z`` and, if known, ``atoms``; or an .npy with ``z``.

    Returns
    -------
    Activations
        `z` without the axis of trials, if there is one.

    Raises
    ------
    ValueError
        If the file holds no ``z``, or its shape is wrong.
    """
    content = np.load(path, allow_pickle=False)
    named = isinstance(content, Mapping)
    if named and "z" not in content:
        raise ValueError(f"path: expected an array z in {Path(path).name}, got {sorted(content)}")
    z = np.asarray(content["z"] if named else content, np.float64)
    atoms = np.asarray(content["atoms"], np.float64) if named and "atoms" in content else None
    if z.ndim == 3 and z.shape[0] == 1:
        z = z[0]
    if z.ndim != 2 or (atoms is not None and (atoms.ndim != 2 or len(atoms) != len(z))):
        shapes = z.shape, None if atoms is None else atoms.shape
        raise ValueError(f"path: expected z (n_atoms, n_times) and atoms (n_atoms, n_times_atom), got {shapes}")
    return Activations(z, atoms)


def find_activations(variable: str) -> Activations | None:
    """Activations from the file that an environment variable names; None where it names none."""
    path = Path(os.environ.get(variable) or ".")
    return read_activations(path) if path.is_file() else None


def has_mne() -> bool:
    """Whether MNE is installed; without an import."""
    return find_spec("mne") is not None


def prepare(
    raw: Any, *, notch: Sequence[float], high_pass: float = 2.0, sfreq: float = SFREQ
) -> tuple[Any, np.ndarray]:
    """Preprocess a recording as the paper does before it learns a dictionary.

    Gradiometers alone, notch filters at the mains and its harmonics, a high pass, then a lower sampling frequency;
    stimuli are found before that, and moved to the new samples.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        Loaded; not modified.
    notch : sequence of float
        Hz.
    high_pass : float
        Hz.
    sfreq : float
        Hz, after resampling.

    Returns
    -------
    (mne.io.BaseRaw, np.ndarray of int, shape (n_events, 3))
        The recording, from which a dictionary can be learnt, and its stimuli in samples.
    """
    import mne

    events = mne.find_events(raw, shortest_event=1, verbose="error")
    raw = raw.copy().pick("grad", verbose="error")
    raw = raw.notch_filter(notch, verbose="error").filter(high_pass, None, verbose="error")
    return raw.resample(sfreq, events=events, verbose="error")


def get_drivers(raw: Any, events: np.ndarray, event_id: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Stimuli of `prepare` in seconds from the first sample."""
    return drivers_from_mne(events, event_id, sfreq=raw.info["sfreq"], first_samp=raw.first_samp)


def fit(
    activations: Activations,
    drivers: Mapping[str, np.ndarray],
    *,
    threshold: float,
    lower: float,
    upper: float,
    max_iter: int,
    sfreq: float = SFREQ,
) -> DriPP:
    """Fit the driven process to activations: shift to the peak, one event within 10 ms, threshold, all atoms at once.

    Parameters
    ----------
    activations : Activations
        On the samples of `prepare`.
    drivers : dict of np.ndarray
        Stimuli in seconds.
    threshold : float
        Of the activations, absolute.
    lower, upper : float
        Window in seconds.
    max_iter : int
        EM iterations.
    sfreq : float
        Hz.

    Returns
    -------
    DriPP
        Fitted.
    """
    z, atoms = activations
    events = events_from_activations(z, sfreq, threshold=threshold, min_distance=0.01, atoms=atoms)
    t_stop = z.shape[1] / sfreq
    return fit_events(events, drivers, t_stop=t_stop, lower=lower, upper=upper, max_iter=max_iter, sfreq=sfreq)


def fit_events(
    events: list[np.ndarray],
    drivers: Mapping[str, np.ndarray],
    *,
    t_stop: float,
    lower: float,
    upper: float,
    max_iter: int,
    sfreq: float = SFREQ,
) -> DriPP:
    """Fit the driven process to the events of all atoms at once, in double precision; `fit` says what the rest is."""
    with jax.enable_x64(True):
        return DriPP(lower, upper, max_iter=max_iter, sfreq=sfreq).fit(events, dict(drivers), t_stop=t_stop)


def draw_intensities(model: DriPP, atoms: Sequence[int]) -> Any:
    """Rate after a stimulus, of some atoms side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(atoms), 3.2), layout="constrained")
    for ax, atom in zip(np.ravel(figure.subplots(1, len(atoms))), atoms, strict=True):
        model.plot_intensity(atom, ax=ax)
    return figure
