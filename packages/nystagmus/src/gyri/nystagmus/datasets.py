"""Eye movements to try the method on: simulated recordings, and readers of eye-tracker files."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import check_option, check_positive_int, check_scalar, import_extra

KINDS = ("pendular", "jerk_sf_up", "jerk_sf_down", "jerk_fs_up", "jerk_fs_down")
_WEIGHTS = np.array([4, 1, 1, 1, 1]) / 8
# Mean and standard deviation of a normal, and bounds.
_DRAWN = {
    "frequency": (5, 2, 3, 8),
    "curvature": (0.5, 0.25, 0, 1),
    "nystagmus_std": (3, 2, 1, np.inf),
    "saccade_std": (20, 10, 1, np.inf),
    "slow_std": (7, 3, 1, np.inf),
}
_QUICK_PHASE = 0.1  # of a period
_SACCADE_S, _SLOPE = 0.1, 120.0  # duration in seconds, steepness of the sigmoid in 1/s
_OVERSAMPLED_COLUMNS, _OVERSAMPLING = 7, 8


class NystagmusData(NamedTuple):
    """Simulated recordings of one eye and one direction, in degrees.

    Attributes
    ----------
    trend : np.ndarray, shape (n_trials, n_times)
        All that is no nystagmus: saccades, slow movements and white noise.
    nystagmus : np.ndarray, shape (n_trials, n_times)
        The periodic movement.
    pattern : np.ndarray, shape (n_trials, n_times_pattern)
        One period of it, zeros behind.
    kind : tuple of str
        Its waveform, one a trial.
    frequency : np.ndarray, shape (n_trials,)
        Hz.
    """

    trend: Float[np.ndarray, "n_trials n_times"]
    nystagmus: Float[np.ndarray, "n_trials n_times"]
    pattern: Float[np.ndarray, "n_trials n_times_pattern"]
    kind: tuple[str, ...]
    frequency: Float[np.ndarray, " n_trials"]

    @property
    def recording(self) -> Float[np.ndarray, "n_trials 1 n_times"]:
        """What an eye tracker would record, ``trend + nystagmus``, as trials of one channel."""
        return (self.trend + self.nystagmus)[:, None]


def simulate_nystagmus(
    rng: Any,
    n_trials: int = 1,
    n_times: int = 10_000,
    sfreq: float | int = 1000.0,
    *,
    kind: str | None = None,
    frequency: float | int | None = None,
    curvature: float | int | None = None,
    nystagmus_std: float | int | None = None,
    saccade_std: float | int | None = None,
    slow_std: float | int | None = None,
    noise_std: float | int = 0.3,
    legacy: bool = False,
) -> NystagmusData:
    """Recordings of an eye with nystagmus: the paper's simulation.

    What is not given is drawn for each trial.

    Parameters
    ----------
    rng : np.random.Generator or int
        Source of randomness, or its seed.
    n_trials, n_times : int
        How many recordings, of how many samples.
    sfreq : float
        Sampling frequency in Hz.
    kind : str, optional
        ``"pendular"``, or ``"jerk_sf_up"``, ``"jerk_sf_down"`` (a slow phase, then a fast one), ``"jerk_fs_up"``,
        ``"jerk_fs_down"`` (reversed in time). Half of those drawn are pendular.
    frequency : float, optional
        Hz; drawn: 5 +- 2 normal, within 3 and 8.
    curvature : float, optional
        Of a jerk's slow phase, from 0 (straight) to 1; drawn: 0.5 +- 0.25 normal.
    nystagmus_std, saccade_std, slow_std : float, optional
        Standard deviations in degrees over the recording; drawn: 3 +- 2, 20 +- 10 and 7 +- 3 normal, at least 1.
    noise_std : float
        Standard deviation of the white noise, degrees.
    legacy : bool
        Reproduce two peculiarities of the authors' code: all saccades share one sigmoid near sample 50, so that each
        one is a step at its start; and "down" waveforms are not flipped.

    Returns
    -------
    NystagmusData
        Trend and nystagmus apart, in float64.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Lalanne, Rateaux, Oudre, Robert, Moreau (2020), section on simulated data, and the authors' code.

    Examples
    --------
    >>> data = simulate_nystagmus(0, n_times=2000, kind="pendular", frequency=4.0, nystagmus_std=2.0)
    >>> data.pattern.shape, data.kind, round(float(data.nystagmus.std()), 6)
    ((1, 250), ('pendular',), 2.0)
    """
    rng = np.random.default_rng(rng)
    n_trials, n_times = check_positive_int(n_trials, "n_trials"), check_positive_int(n_times, "n_times", minimum=2)
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    if kind is not None:
        check_option(kind, "kind", KINDS)
    given = {
        "frequency": (frequency, 0, sfreq / 2),
        "curvature": (curvature, 0, 1),
        "nystagmus_std": (nystagmus_std, 0, None),
        "saccade_std": (saccade_std, 0, None),
        "slow_std": (slow_std, 0, None),
        "noise_std": (noise_std, 0, None),
    }
    for name, (value, low, high) in given.items():
        if value is not None:
            check_scalar(value, name, minimum=low, maximum=high)
    if frequency is not None:
        check_scalar(frequency, "frequency", minimum=0, strict=True)
    values = {name: value for name, (value, _, _) in given.items()}
    trials = [_simulate_trial(rng, n_times, sfreq, kind, values, legacy) for _ in range(n_trials)]
    trends, movements, patterns, kinds, frequencies = zip(*trials, strict=True)
    padded = np.zeros((n_trials, max(pattern.size for pattern in patterns)))
    for row, pattern in zip(padded, patterns, strict=True):
        row[: pattern.size] = pattern
    return NystagmusData(np.stack(trends), np.stack(movements), padded, kinds, np.array(frequencies))


def _simulate_trial(
    rng: np.random.Generator, n_times: int, sfreq: float, kind: str | None, given: dict[str, Any], legacy: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, float]:
    """Trend, nystagmus, pattern, kind and frequency of one recording."""
    # All is drawn, whether it is given or not, so that fixing one value leaves the others as they are.
    drawn_kind = str(rng.choice(KINDS, p=_WEIGHTS))
    drawn = {
        name: float(np.clip(mean + spread * rng.standard_normal(), low, high))
        for name, (mean, spread, low, high) in _DRAWN.items()
    }
    kind = drawn_kind if kind is None else kind
    chosen = drawn | {name: float(value) for name, value in given.items() if value is not None}
    frequency, curvature = chosen["frequency"], chosen["curvature"]
    movement = waveform(kind, np.arange(n_times) * frequency / sfreq, curvature, legacy=legacy)
    period = waveform(kind, np.arange(int(np.ceil(sfreq / frequency))) * frequency / sfreq, curvature, legacy=legacy)
    scale = chosen["nystagmus_std"] / movement.std()
    trend = _slow_movement(rng, n_times, sfreq, chosen["slow_std"])
    trend += _saccades(rng, n_times, sfreq, chosen["saccade_std"], legacy)
    trend += chosen["noise_std"] * rng.standard_normal(n_times)
    return trend, scale * movement, scale * period, kind, frequency


def waveform(
    kind: str, phase: Float[np.ndarray, " n_times"], curvature: float | int, *, legacy: bool = False
) -> Float[np.ndarray, " n_times"]:
    """Nystagmus of unit size as a function of phase.

    Parameters
    ----------
    kind : str
        As in `simulate_nystagmus`.
    phase : np.ndarray, shape (n_times,)
        Time in periods.
    curvature : float
        Of a jerk's slow phase.
    legacy : bool
        Do not flip "down" waveforms.

    Returns
    -------
    np.ndarray, shape (n_times,)
        From -1 to 1 if pendular, from -1/2 to 1/2 if jerk.

    Examples
    --------
    >>> waveform("jerk_sf_up", np.array([0.0, 0.225, 0.45, 0.675]), 0.0)
    array([-0.5 , -0.25,  0.  ,  0.25])
    """
    if kind == "pendular":
        return np.cos(2 * np.pi * phase)
    t = phase % 1.0
    if "_fs_" in kind:
        t = 1.0 - t
    u = t / (1 - _QUICK_PHASE)
    slow = curvature * u**2 + (1 - curvature) * u - 0.5
    quick = 0.5 - (t - (1 - _QUICK_PHASE)) / _QUICK_PHASE
    values = np.where(t < 1 - _QUICK_PHASE, slow, quick)
    return -values if kind.endswith("down") and not legacy else values


def _slow_movement(rng: np.random.Generator, n_times: int, sfreq: float, std: float) -> np.ndarray:
    """Random Fourier coefficients below half a hertz."""
    n = max(int(n_times / (2 * sfreq)), 2)  # shorter recordings: one oscillation, else there would be none
    coefficients = np.zeros(n_times // 2 + 1, complex)
    n = min(n, coefficients.size)
    coefficients[:n] = rng.standard_normal(n) + 1j * rng.standard_normal(n)
    movement = np.fft.irfft(coefficients, n_times)
    return _scale(movement - movement.mean(), std)


def _saccades(rng: np.random.Generator, n_times: int, sfreq: float, std: float, legacy: bool) -> np.ndarray:
    """Steps of random size at random times, each a sigmoid of a tenth of a second."""
    movement, time, start = np.zeros(n_times), np.arange(n_times), 0.0
    while True:
        start += rng.exponential(0.5)
        if start * sfreq >= n_times:
            break
        size = rng.choice((-1.0, 1.0)) * (1.5 + 0.5 * rng.standard_normal())
        # The authors' code takes the start, in seconds, off a number of samples.
        late = 1e-3 * (time - 50 - start) if legacy else time / sfreq - start - _SACCADE_S / 2
        with np.errstate(over="ignore"):
            movement += size / (1 + np.exp(-_SLOPE * late)) * (time > start * sfreq)
        start += _SACCADE_S
    return _scale(movement, std)


def _scale(movement: np.ndarray, std: float) -> np.ndarray:
    """Give a movement its standard deviation; a recording too short for a saccade has none."""
    spread = movement.std()
    return movement * (std / spread) if spread > 0 else movement


def load_eyefant(path: str | Path) -> Float[np.ndarray, "n_channels n_times"]:
    r"""Read a text file of the EyeFant eye tracker.

    Parameters
    ----------
    path : str or Path
        Tab-separated text in ISO-8859-1 with decimal commas, below a header that starts with the number of signals.

    Returns
    -------
    np.ndarray of float64, shape (n_channels, n_times)
        Gaze, in the device's arbitrary units. Files of seven columns hold each sample eight times: one is kept.

    Raises
    ------
    ValueError
        If the file is not of this format.

    Examples
    --------
    >>> header = ["Number of signals: 1", *6 * ["-"], "eye x", "time\tframe\tx"]
    >>> _ = Path("rec.txt").write_text("\n".join([*header, "0,0\t1\t2,5", "0,5\t2\t-3,5"]), encoding="latin-1")
    >>> load_eyefant("rec.txt")
    array([[ 2.5, -3.5]])
    """
    lines = Path(path).read_text(encoding="iso-8859-1").splitlines()
    found = re.match(r"\s*Number of signals:\s*(\d+)", lines[0]) if lines else None
    if found is None:
        raise ValueError(f"path: expected an EyeFant file, whose first line gives the number of signals, got {path}")
    rows = [line for line in lines[1 + 6 + int(found[1]) + 1 :] if line.strip()]
    try:
        table = np.array([[float(cell.replace(",", ".")) for cell in row.rstrip("\t").split("\t")] for row in rows])
    except ValueError as error:
        raise ValueError(f"path: expected rows of equally many numbers below the header of {path}: {error}") from error
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"path: expected rows of three or more columns in {path}, got an array of shape {table.shape}")
    if table.shape[1] == _OVERSAMPLED_COLUMNS:
        table = table[::_OVERSAMPLING, :-1]
    return np.ascontiguousarray(table[:, 2:].T)


def load_eyelink(path: str | Path | None = None) -> Any:
    """Read a recording of an EyeLink eye tracker through MNE.

    Parameters
    ----------
    path : str or Path, optional
        An ASCII file (.asc). By default the example of MNE (normal gaze with blinks, no nystagmus), which is downloaded
        once.

    Returns
    -------
    mne.io.Raw
        With its blinks as annotations ``BAD_blink``.

    Raises
    ------
    ImportError
        If MNE is not installed.
    """
    mne = import_extra("mne", "gyri-nystagmus[mne]", "to read the recording")
    if path is None:
        path = Path(mne.datasets.eyelink.data_path()) / "eeg-et" / "sub-01_task-plr_eyetrack.asc"
    return mne.io.read_raw_eyelink(path, create_annotations=["blinks"], verbose="error")
