"""From recordings to times: drivers out of MNE objects, events out of the activations of a convolutional dictionary.

MNE is imported only if an MNE object comes in.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import check_array, check_scalar, import_extra


def drivers_from_mne(
    source: Any, event_id: Mapping | None = None, *, sfreq: float | None = None, first_samp: int = 0
) -> dict[str, Float[np.ndarray, " n_times"]]:
    """Times of stimuli, by name, from what MNE knows of them.

    Parameters
    ----------
    source : array of int, shape (n_events, 3), or mne.Annotations, or mne.io.BaseRaw
        Events as ``mne.find_events`` returns them (needs `sfreq`); annotations; or a recording, from its stimulus
        channels if it has any, else from its annotations.
    event_id : dict, optional
        Name of each driver to one or several event codes (descriptions, for annotations). By default one driver for
        every code.
    sfreq : float, optional
        Sampling frequency in Hz of the samples that `source` counts; taken from a recording.
    first_samp : int
        Sample at which the recording starts; taken from a recording.

    Returns
    -------
    dict of np.ndarray
        Sorted times in seconds from the first sample.

    Raises
    ------
    ValueError
        If `source` is none of these, `sfreq` is missing, or a code does not occur.
    ImportError
        If `source` needs MNE and it is not installed.

    Examples
    --------
    >>> events = np.array([[150, 0, 1], [300, 0, 3], [450, 0, 2]])
    >>> drivers_from_mne(events, {"auditory": [1, 2], "visual": 3}, sfreq=150.0)
    {'auditory': array([1., 3.]), 'visual': array([2.])}
    """
    times, codes = _times_and_codes(source, sfreq, first_samp)
    if event_id is None:
        event_id = {str(code): code for code in np.unique(codes).tolist()}
    if not isinstance(event_id, Mapping):
        raise ValueError(f"event_id: expected a dict of names to codes, got {type(event_id).__name__}")
    known, drivers = set(codes.tolist()), {}
    for name, wanted in event_id.items():
        wanted = [wanted] if isinstance(wanted, str) or np.ndim(wanted) == 0 else list(wanted)
        missing = [code for code in wanted if code not in known]
        if missing or not wanted:
            raise ValueError(f"event_id[{name!r}]: expected codes among {sorted(known)}, got {missing or wanted}")
        drivers[str(name)] = np.sort(times[np.isin(codes, wanted)])
    return drivers


def _times_and_codes(source: Any, sfreq: float | None, first_samp: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(source, (np.ndarray, list, tuple)):
        events = np.asarray(source)
        if events.ndim != 2 or events.shape[1] != 3 or not np.issubdtype(events.dtype, np.integer):
            raise ValueError(f"source: expected integers of shape (n_events, 3), got {events.dtype} {events.shape}")
        if sfreq is None:
            raise ValueError("sfreq: expected the sampling frequency in Hz of an array of events, got None")
        return (events[:, 0] - first_samp) / check_scalar(sfreq, "sfreq", minimum=0, strict=True), events[:, 2]
    mne = import_extra("mne", "gyri-dripp[mne]", "for anything but an array of events")
    if isinstance(source, mne.io.BaseRaw):
        return _from_raw(source, mne)
    if isinstance(source, mne.Annotations):
        if first_samp and sfreq is None:
            raise ValueError(f"sfreq: expected the sampling frequency in Hz of first_samp = {first_samp}, got None")
        offset = first_samp / check_scalar(sfreq, "sfreq", minimum=0, strict=True) if first_samp else 0.0
        return np.asarray(source.onset, np.float64) - offset, np.asarray(source.description)
    raise ValueError(
        f"source: expected an array of events, mne.Annotations or mne.io.BaseRaw, got {type(source).__name__}"
    )


def _from_raw(raw: Any, mne: Any) -> tuple[np.ndarray, np.ndarray]:
    sfreq = raw.info["sfreq"]
    if "stim" in raw:
        events = mne.find_events(raw, shortest_event=1, verbose="error")
        return (events[:, 0] - raw.first_samp) / sfreq, events[:, 2]
    events, names = mne.events_from_annotations(raw, verbose="error")
    description = {code: name for name, code in names.items()}
    return (events[:, 0] - raw.first_samp) / sfreq, np.array([description[code] for code in events[:, 2]], dtype=str)


def events_from_activations(
    z: Float[np.ndarray, "n_atoms n_times"] | Float[np.ndarray, "1 n_atoms n_times"] | np.ndarray | jax.Array | list,
    sfreq: float,
    *,
    threshold: float = 0.0,
    percent: bool = False,
    per_atom: bool = True,
    min_distance: float = 0.01,
    atoms: Float[np.ndarray, "n_atoms n_times_atom"] | np.ndarray | list | None = None,
) -> list[Float[np.ndarray, " n_events"]]:
    """Times at which atoms occur, from the activations of any convolutional dictionary.

    Parameters
    ----------
    z : array, shape (n_atoms, n_times) or (1, n_atoms, n_times)
        Activations; those that are not positive are no events.
    sfreq : float
        Sampling frequency in Hz.
    threshold : float
        Activations must exceed it: absolute, or a percentile (0 to 100) of the positive activations with `percent`.
    percent : bool
        Whether `threshold` is a percentile, taken after the closer activations have been removed.
    per_atom : bool
        Take the percentile over each atom rather than over all together.
    min_distance : float
        Seconds within which only the largest activation of an atom is kept.
    atoms : array, shape (n_atoms, n_times_atom), optional
        Temporal patterns: activations are moved from an atom's start to its peak; those that would fall behind the end
        are dropped.

    Returns
    -------
    list of np.ndarray
        For each atom its event times in seconds from the first sample.

    Raises
    ------
    ValueError
        If an argument has the wrong shape, is not finite or out of range.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), section 4.2 and the authors' preprocessing.

    Examples
    --------
    >>> z = np.array([[0.0, 1.0, 0.0, 0.0, 3.0, 2.0, 0.0, 0.0]])
    >>> events_from_activations(z, 100.0, min_distance=0.02)
    [array([0.01, 0.04])]
    """
    from scipy.ndimage import maximum_filter1d

    values: np.ndarray = np.asarray(check_array(z, "z", ndim=(2, 3)))
    if values.ndim == 3:
        if values.shape[0] != 1:
            raise ValueError(f"z: expected shape (n_atoms, n_times) or (1, n_atoms, n_times), got {values.shape}")
        values = values[0]
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    threshold = check_scalar(threshold, "threshold", minimum=0, maximum=100 if percent else None)
    block = round(check_scalar(min_distance, "min_distance", minimum=0) * sfreq)
    if atoms is not None:
        values = _to_peak(values, np.asarray(check_array(atoms, "atoms", ndim=2)))
    if block >= 1:
        values = np.where(
            values == maximum_filter1d(values, 2 * block - 1, axis=-1, mode="constant", cval=-np.inf), values, 0
        )
    keep = values > 0
    if not percent:
        keep &= values > threshold
    elif not per_atom:
        keep &= values > (np.percentile(values[keep], threshold) if keep.any() else 0)
    else:
        for row, kept in zip(values, keep):
            if kept.any():
                kept &= row >= np.percentile(row[kept], threshold)
    return [np.flatnonzero(kept) / sfreq for kept in keep]


def _to_peak(z: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Delay each atom's activations by the sample at which the atom is largest."""
    if len(atoms) != len(z):
        raise ValueError(f"atoms: expected {len(z)} of them, as z has, got {len(atoms)}")
    shifted = np.zeros_like(z)
    for row, moved, delay in zip(z, shifted, np.abs(atoms).argmax(-1)):
        moved[delay:] = row[: max(row.size - delay, 0)]  # what would fall behind the end is dropped
    return shifted
