"""What a clinician reads off a nystagmus: amplitude, frequency, slow-phase velocity, jerkiness, foveation."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import check_array, check_scalar

_STRONG = 0.2  # of the largest activation: what counts when intervals are measured
_QUANTILE = 0.95
FOVEATION_SPEED = 4.0  # degrees a second


class Waveform(NamedTuple):
    """Measures of one atom; NaN where there are too few activations to tell.

    Attributes
    ----------
    amplitude_deg : float
        Peak to peak of the atom times the median size of a strong activation.
    frequency_hz : float
        Inverse of the median interval between strong activations (those over 20 % of the largest).
    slow_phase_velocity : float
        Median speed in the slower of the two directions, degrees a second.
    jerkiness : float
        From 0 (both directions equally fast) to 1.
    foveation_ms : float
        Longest time in a cycle during which the eye moves by less than 4 degrees a second.
    """

    amplitude_deg: float
    frequency_hz: float
    slow_phase_velocity: float
    jerkiness: float
    foveation_ms: float


def measure_waveform(atom: Any, codes: Any, sfreq: float | int) -> Waveform:
    """Measure the waveform of an atom with its activations.

    Speeds are those of one cycle: atoms are longer than a period, so that their repetitions overlap and add up.

    Parameters
    ----------
    atom : array-like, shape (n_channels, n_times_atom)
        Waveform; several channels (two directions of gaze, two eyes) are measured along the direction in which
        the atom moves most.
    codes : array-like, shape (n_trials, n_times_valid)
        Activations, in degrees; of signed ones, the size counts.
    sfreq : float
        Sampling frequency in Hz.

    Returns
    -------
    Waveform
        The measures.

    Raises
    ------
    ValueError
        If an argument has the wrong shape or is out of range.

    Notes
    -----
    Not in the paper.

    Examples
    --------
    >>> codes = np.zeros((1, 1000)); codes[0, ::200] = 3.0
    >>> t = np.arange(200) / 200
    >>> measured = measure_waveform(np.sin(2 * np.pi * t)[None], codes, 1000.0)
    >>> round(measured.amplitude_deg, 2), measured.frequency_hz
    (6.0, 5.0)
    """
    atom = np.asarray(check_array(atom, "atom", ndim=2), np.float64)
    codes = np.asarray(check_array(codes, "codes", ndim=2), np.float64)
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    from scipy.ndimage import maximum_filter1d

    movement = atom - atom.mean(1, keepdims=True)  # where the gaze rests is no direction in which it moves
    direction = np.linalg.svd(movement, full_matrices=False)[0][:, 0]
    wave = direction @ atom if len(atom) > 1 else atom[0]
    size = np.abs(codes)
    # A smooth atom may be split into neighbours: only the largest within a third of its length counts.
    reach = atom.shape[1] // 3
    largest = maximum_filter1d(size, 2 * reach + 1, axis=-1)
    strong = (size > _STRONG * size.max()) & (size == largest)
    if not strong.any():
        return Waveform(*[float("nan")] * 5)
    starts = [_first_of_ties(np.flatnonzero(row), reach) for row in strong]
    wave = wave * np.median(np.concatenate([row[places] for row, places in zip(size, starts, strict=True)]))
    intervals = np.concatenate([np.diff(places) for places in starts])
    period = float(np.median(intervals)) if intervals.size else float("nan")
    cycle = _fold(wave, round(period)) if intervals.size else wave
    velocity = sfreq * (np.roll(cycle, -1) - np.roll(cycle, 1)) / 2 if intervals.size else sfreq * np.gradient(wave)
    forth, back = (max(np.quantile(sign * velocity, _QUANTILE), 0.0) for sign in (1, -1))
    slow = -np.sign(forth - back) * velocity if forth != back else np.abs(velocity)
    return Waveform(
        amplitude_deg=float(np.ptp(wave)),
        frequency_hz=sfreq / period,
        slow_phase_velocity=float(np.median(slow[slow > 0])) if np.any(slow > 0) else 0.0,
        jerkiness=float(1 - min(forth, back) / max(forth, back)) if max(forth, back) > 0 else 0.0,
        foveation_ms=1e3 / sfreq * _longest_run(np.abs(velocity) < FOVEATION_SPEED, cyclic=bool(intervals.size)),
    )


def _first_of_ties(places: np.ndarray, reach: int) -> np.ndarray:
    """Places that are further than `reach` behind the last one kept: equal neighbours are all the largest around."""
    kept: list[int] = []
    for place in places:
        if not kept or place - kept[-1] > reach:
            kept.append(int(place))
    return np.array(kept, int)


def _fold(wave: Float[np.ndarray, " n_times"], period: int) -> Float[np.ndarray, " period"]:
    """One cycle of the sum of a wave's repetitions."""
    n = -(-wave.size // period) * period
    return np.pad(wave, (0, n - wave.size)).reshape(-1, period).sum(0)


def _longest_run(condition: np.ndarray, cyclic: bool) -> int:
    """Length of the longest run of True; in a cycle it may go on from the end to the beginning."""
    if condition.all():
        return condition.size
    if cyclic:
        condition = np.roll(condition, -int(np.argmin(condition)))
    ends = np.flatnonzero(np.diff(np.concatenate([[False], condition, [False]]).astype(int)))
    return int((ends[1::2] - ends[::2]).max(initial=0))
