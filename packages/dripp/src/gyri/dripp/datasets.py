"""Data to try the method on: simulated drivers, and a real recording that ships with a package."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import check_option, check_scalar

from .init import generator


class Recording(NamedTuple):
    """A recorded point process.

    Attributes
    ----------
    events, drivers : np.ndarray of float64
        Times in seconds.
    t_stop : float
        Duration in seconds.
    """

    events: Float[np.ndarray, " n_events"]
    drivers: Float[np.ndarray, " n_drivers"]
    t_stop: float


def simulate_drivers(
    key: Any, t_stop: float, isi: float, *, keep: float | int = 1.0, jitter: bool = False, t_start: float = 0.0
) -> Float[np.ndarray, " n_drivers"]:
    """Stimulus times on a regular grid, of which a random part is kept.

    Parameters
    ----------
    key : int or PRNG key
        Source of randomness.
    t_stop, t_start : float
        Recording in seconds; the grid begins and ends two intervals within it.
    isi : float
        Interval between stimuli in seconds.
    keep : float or int
        Fraction of the grid that is kept, up to 1.0, or, as an int, how many.
    jitter : bool
        Move each stimulus uniformly within 0.4 intervals.

    Returns
    -------
    np.ndarray of float64
        Sorted times in seconds.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> simulate_drivers(0, 8.0, 1.0)
    array([2., 3., 4., 5.])
    """
    isi = check_scalar(isi, "isi", minimum=0, strict=True)
    t_start, t_stop = check_scalar(t_start, "t_start"), check_scalar(t_stop, "t_stop")
    grid = np.arange(t_start + 2 * isi, t_stop - 2 * isi - 1e-9 * isi, isi)
    rng = generator(key)
    if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool):
        if not 0 <= keep <= grid.size:
            raise ValueError(f"keep: expected a count from 0 to {grid.size}, or a fraction as a float, got {keep}")
        count = int(keep)
    else:
        count = int(check_scalar(keep, "keep", minimum=0, maximum=1) * grid.size)
    times = rng.choice(grid, count, replace=False)
    if jitter:
        times = times + rng.uniform(-0.4, 0.4, count) * isi
    return np.sort(times)


def grasshopper(recording: int = 1, threshold: float = 1.0) -> Recording:
    """Spikes of a grasshopper's auditory receptor and the onsets of loud sound that drive them; 10 seconds, real data.

    Parameters
    ----------
    recording : {1, 2}
        The sound's random envelope has frequencies up to 200 Hz (1) or 800 Hz (2).
    threshold : float
        An onset is an up-crossing of this many standard deviations above the mean of the sound's envelope.

    Returns
    -------
    Recording
        Spike times, onset times, duration.

    Raises
    ------
    ImportError
        If nitime, which ships the data, is not installed.
    ValueError
        If there is no such recording.

    Notes
    -----
    Rokem, Watzl, Gollisch, Stemmler, Herz, Samengo (2006), Spike-timing precision underlies the coding efficiency of
    auditory receptor neurons. Distributed with nitime (BSD).

    Examples
    --------
    >>> data = grasshopper()
    >>> data.events.size, data.drivers.size
    (929, 566)
    """
    check_option(recording, "recording", (1, 2))
    threshold = check_scalar(threshold, "threshold")
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec("nitime")
    if found is None or found.origin is None:
        raise ImportError('grasshopper: the data come with nitime: pip install "gyri-dripp[data]"')
    folder = Path(found.origin).parent / "data"
    spikes = np.loadtxt(folder / f"grasshopper_spike_times{recording}.txt") * 1e-6
    time, sound = np.loadtxt(folder / f"grasshopper_stimulus{recording}.txt", unpack=True)
    loud = (sound - sound.mean()) / sound.std() > threshold
    onsets = time[1:][loud[1:] & ~loud[:-1]] * 1e-6
    t_stop = 10.0
    return Recording(spikes[spikes <= t_stop], onsets, t_stop)
