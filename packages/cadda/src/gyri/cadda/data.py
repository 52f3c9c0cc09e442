"""Windows of sleep: a simulator, Sleep-EDF through MNE, z-scoring, splits by subject."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, ScalarLike

from gyri.numerics.validation import as_key, check_array, check_positive_int, check_scalar, import_extra

STAGES = ("W", "N1", "N2", "N3", "R")
AMPLITUDES = {"W": 2.0, "N1": 1.0, "N2": 2.5, "N3": 4.0, "R": 1.5}  # peaks, relative to noise of unit deviation
SECOND_CHANNEL = 0.7
SKEWNESS = 2.0  # of the slow waves: exponent of a raised cosine
RISE = 0.85  # share of a sawtooth's period


def zscore(X: Float[Any, "... n_times"] | Any) -> np.ndarray:
    """Subtract the mean of each channel of each window and divide by its standard deviation.

    Parameters
    ----------
    X : array-like, shape (..., n_times)
        Windows; a constant channel becomes 0.

    Returns
    -------
    numpy.ndarray
        Like `X`, in its dtype.

    Raises
    ------
    ValueError
        Empty, NaN or infinite.

    Examples
    --------
    >>> from gyri.cadda import zscore
    >>> zscore([[[1.0, 3.0]]]).tolist()
    [[[-1.0, 1.0]]]
    """
    windows = np.asarray(check_array(X, "X"))
    if windows.ndim == 0:
        raise ValueError("X: expected shape (..., n_times), got ()")
    centred = windows - windows.mean(-1, keepdims=True, dtype=np.float64)
    scale = centred.std(-1, keepdims=True)
    return (centred / np.where(scale > 0, scale, 1)).astype(windows.dtype)


def pink_noise(rng: np.random.Generator, n_times: int, size: tuple[int, ...]) -> np.ndarray:
    """Noise of power 1/f and standard deviation 1 along the last axis, without a mean."""
    spectrum = np.fft.rfft(rng.standard_normal((*size, n_times)))
    gains = 1 / np.sqrt(np.maximum(np.arange(spectrum.shape[-1]), 1))
    gains[0] = 0
    noise = np.fft.irfft(spectrum * gains, n_times)
    return noise / np.sqrt(2 * np.sum(gains**2) / n_times)


def bursts(rng: np.random.Generator, t: np.ndarray, frequency: np.ndarray, n_bursts: int) -> np.ndarray:
    """Hann bursts of one to two seconds at random times, (n_windows, n_times)."""
    shape = (len(frequency), n_bursts, 1)
    length = rng.uniform(1, 2, shape)
    start = rng.uniform(0, np.maximum(t[-1] - length, 0), shape)
    inside = np.clip((t - start) / length, 0, 1)
    return np.sum(np.sin(np.pi * inside) ** 2 * np.sin(phases(rng, t, frequency, n_bursts)), 1)


def phases(rng: np.random.Generator, t: np.ndarray, frequency: np.ndarray, n: int = 1) -> np.ndarray:
    """Phases of oscillations that start anywhere, (n_windows, n, n_times), in radians."""
    return 2 * np.pi * (frequency[:, None, None] * t + rng.uniform(0, 1, (len(frequency), n, 1)))


def rhythm(rng: np.random.Generator, stage: str, t: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """What marks a stage, with peaks of 1: (n_windows, n_times). `offset`: the subject's shift in Hz of each window."""
    n = len(offset)
    band = {"W": (9, 11), "N1": (4.5, 6.5), "N2": (12, 14), "N3": (1, 1), "R": (3, 3)}[stage]
    # A subject far to the slow side would otherwise stand still.
    frequency = np.maximum(rng.uniform(*band, n) + offset, 0.3)
    if stage == "N2":
        return bursts(rng, t, frequency, max(1, round(4 * (t[-1] + t[1]) / 30)))
    angle = phases(rng, t, frequency)[:, 0]
    if stage == "N3":
        peaks = np.exp(SKEWNESS * (np.cos(angle) - 1))
        mean = np.exp(-SKEWNESS) * np.i0(SKEWNESS)
        return (peaks - mean) / (1 - mean)
    if stage == "R":
        turn = angle / (2 * np.pi) % 1
        return np.where(turn < RISE, 2 * turn / RISE - 1, 1 - 2 * (turn - RISE) / (1 - RISE))
    return np.sin(angle)


def simulate_sleep(
    key_or_seed: Any,
    n_subjects: int = 4,
    n_windows: int = 200,
    *,
    n_channels: int = 2,
    sfreq: ScalarLike = 100.0,
    window_s: ScalarLike = 30.0,
) -> tuple[Float[np.ndarray, "n n_channels n_times"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    r"""Windows of five stages of sleep of which it is known what augmentations keep the label.

    Noise of power 1/f, and by stage: W an alpha rhythm of 9 to 11 Hz; N1 theta of 4.5 to 6.5 Hz; N2 bursts of 12 to
    14 Hz, four in 30 s; N3 slow waves of 1 Hz with sharp positive peaks; R sawteeth of 3 Hz that rise slowly and fall
    fast. Phases are random. A subject shifts all frequencies by :math:`N(0, 0.5)` Hz, scales all rhythms by a
    log-normal gain, and may turn those of W, N1 and N2 upside down. So a shift of frequency helps everybody, a flip of
    the sign leaves W, N1 and N2 as they are and spoils N3 and R, and reversed time spoils R only.

    Parameters
    ----------
    key_or_seed : int or PRNG key
        Same key, same windows.
    n_subjects, n_windows : int
        Subjects, and windows of each; stages are equally frequent within one up to rounding.
    n_channels : int
        The rhythm is 0.7 times as strong in a channel as in the one before.
    sfreq : float
        Sampling frequency in Hz.
    window_s : float
        Length of a window in seconds.

    Returns
    -------
    X : numpy.ndarray, shape (n_subjects * n_windows, n_channels, n_times)
        Windows, each channel z-scored, float32 (float64 where JAX runs in double precision).
    y : numpy.ndarray of int, shape (n_subjects * n_windows,)
        0 to 4: W, N1, N2, N3, R; in random order.
    subject : numpy.ndarray of int, shape (n_subjects * n_windows,)
        0 to n_subjects - 1, in order.

    Raises
    ------
    ValueError
        A size, frequency or length out of range.

    Examples
    --------
    >>> from gyri.cadda import simulate_sleep
    >>> X, y, subject = simulate_sleep(0, 2, 10, sfreq=50)
    >>> X.shape, sorted(y[:10].tolist()), subject[-1].item()
    ((20, 2, 1500), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], 1)
    """
    n_subjects, n_windows = check_positive_int(n_subjects, "n_subjects"), check_positive_int(n_windows, "n_windows")
    n_channels = check_positive_int(n_channels, "n_channels")
    sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
    n_times = round(sfreq * check_scalar(window_s, "window_s", minimum=0, strict=True))
    if n_times < 2:
        raise ValueError(f"window_s: expected two samples or more at {sfreq:g} Hz, got {window_s} s")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key_or_seed))))
    stages = np.arange(n_windows) % len(STAGES)
    y = np.concatenate([rng.permutation(stages) for _ in range(n_subjects)])
    subject = np.repeat(np.arange(n_subjects), n_windows)
    offset, gain = rng.normal(0, 0.5, n_subjects), np.exp(rng.normal(0, 0.2, n_subjects))
    polarity = rng.choice([-1, 1], n_subjects)
    t = np.arange(n_times) / sfreq
    signal = np.empty((len(y), n_times))
    for label, stage in enumerate(STAGES):
        who = subject[y == label]
        sign = polarity[who] if stage in ("W", "N1", "N2") else 1
        scale = AMPLITUDES[stage] * gain[who] * sign
        signal[y == label] = scale[:, None] * rhythm(rng, stage, t, offset[who])
    strength = SECOND_CHANNEL ** np.arange(n_channels)
    X = pink_noise(rng, n_times, (len(y), n_channels)) + strength[:, None] * signal[:, None]
    return zscore(X).astype(jax.dtypes.canonicalize_dtype(float)), y, subject


SLEEP_EDF = {"Sleep stage W": 0, "Sleep stage 1": 1, "Sleep stage 2": 2, "Sleep stage 3": 3, "Sleep stage 4": 3,
             "Sleep stage R": 4}  # fmt: skip
SLEEP_EDF_SUBJECTS = tuple(i for i in range(83) if i not in (39, 68, 69, 78, 79))
SLEEP_EDF_CHANNELS = ("EEG Fpz-Cz", "EEG Pz-Oz")


def load_sleep_physionet(
    subjects: Sequence[int],
    *,
    recordings: Sequence[int] = (1, 2),
    path: str | Path | None = None,
    h_freq: ScalarLike | None = 30.0,
    max_wake_min: ScalarLike = 30,
) -> tuple[Float[np.ndarray, "n 2 3000"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Windows of 30 s of Sleep-EDF expanded (sleep cassette), downloaded through MNE where they are not at hand.

    Channels Fpz-Cz and Pz-Oz at 100 Hz, in microvolt, low-passed, then z-scored in each window; stages 3 and 4 are
    one.

    Parameters
    ----------
    subjects : sequence of int
        Of 0 to 82 without 39, 68, 69, 78 and 79, which have no recordings.
    recordings : sequence of int
        Nights, 1 and 2. Subjects 13, 36 and 52 miss one, which is left out.
    path : path-like, optional
        Folder of the files; that of MNE's settings otherwise.
    h_freq : float, optional
        Cut-off of the low-pass filter in Hz; None for none.
    max_wake_min : float
        Minutes of wake kept before the first and after the last sleep.

    Returns
    -------
    X : numpy.ndarray of float32, shape (n, 2, 3000)
        Windows.
    y : numpy.ndarray of int, shape (n,)
        0 to 4: W, N1, N2, N3, R.
    subject : numpy.ndarray of int, shape (n,)
        Number of the subject.

    Raises
    ------
    ImportError
        MNE is not installed.
    ValueError
        Subjects or recordings that there are not.

    Examples
    --------
    >>> from gyri.cadda import load_sleep_physionet
    >>> X, y, subject = load_sleep_physionet([0, 1])  # doctest: +SKIP

    References
    ----------
    Kemp et al. (2000); Goldberger et al. (2000), PhysioNet.
    """
    wrong = sorted(set(subjects) - set(SLEEP_EDF_SUBJECTS))
    if not len(subjects) or wrong:
        raise ValueError(f"subjects: expected some of 0 to 82 without 39, 68, 69, 78, 79, got {wrong or subjects}")
    if not set(recordings) or set(recordings) - {1, 2}:
        raise ValueError(f"recordings: expected 1, 2 or both, got {recordings}")
    kept_min = float(check_scalar(max_wake_min, "max_wake_min", minimum=0))
    fetch_data = import_extra("mne.datasets.sleep_physionet.age", "gyri-cadda[mne]", "to read Sleep-EDF").fetch_data
    files = fetch_data(list(subjects), list(recordings), path=path, on_missing="warn", verbose="error")
    parts = [read_night(recording, hypnogram, h_freq, kept_min) for recording, hypnogram in files]
    # SC4<two digits of the subject><night>...
    who = [np.full(len(y), int(Path(pair[0]).name[3:5])) for pair, (_, y) in zip(files, parts)]
    return np.concatenate([X for X, _ in parts]), np.concatenate([y for _, y in parts]), np.concatenate(who)


def read_night(recording: str, hypnogram: str, h_freq: Any, max_wake_min: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows and stages of one night of Sleep-EDF, from its two files."""
    import mne

    raw = mne.io.read_raw_edf(recording, include=SLEEP_EDF_CHANNELS, preload=True, verbose="error")
    raw.set_annotations(mne.read_annotations(hypnogram), emit_warning=False)
    if h_freq is not None:
        raw.filter(None, h_freq, picks="eeg", verbose="error")
    return cut_night(raw, max_wake_min)


def cut_night(raw: Any, max_wake_min: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows of 30 s and their stages of an annotated recording, long wake at both ends left out."""
    import mne

    known = {name: code for name, code in SLEEP_EDF.items() if name in set(raw.annotations.description)}
    events, _ = mne.events_from_annotations(raw, known, chunk_duration=30.0, verbose="error")
    asleep = np.flatnonzero(events[:, 2] != 0)
    if len(asleep):
        kept = round(2 * max_wake_min)
        events = events[max(0, asleep[0] - kept) : asleep[-1] + 1 + kept]
    epochs = mne.Epochs(
        raw, events, event_id=sorted(set(events[:, 2])), tmin=0.0, tmax=30.0 - 1 / raw.info["sfreq"], baseline=None,
        preload=True, verbose="error",
    )  # fmt: skip
    return zscore(1e6 * epochs.get_data(copy=False)).astype(np.float32), epochs.events[:, 2].astype(int)


def split_subjects(
    subject: Int[Any, " n"] | Any, fractions: Sequence[float | int], *, random_state: Any = 0
) -> list[Int[np.ndarray, " ..."]]:
    """Split windows so that no subject is in two parts.

    Parameters
    ----------
    subject : array-like of int, shape (n,)
        Subject of each window.
    fractions : sequence of float
        Share of the subjects in each part; they sum to 1. A part gets one subject at least.
    random_state : int or PRNG key
        Who goes where.

    Returns
    -------
    list of numpy.ndarray of int
        Indices of the windows of each part, in order.

    Raises
    ------
    ValueError
        Fewer subjects than parts, or fractions that are not positive or do not sum to 1.

    Examples
    --------
    >>> from gyri.cadda import split_subjects
    >>> [rows.tolist() for rows in split_subjects([3, 3, 5, 5, 5], [0.5, 0.5])]
    [[0, 1], [2, 3, 4]]
    """
    subject = _check_subjects(subject)
    shares = np.asarray(check_array(fractions, "fractions", ndim=1), float)
    if np.any(shares <= 0) or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions: expected positive numbers that sum to 1, got {list(fractions)}")
    order = _shuffled(subject, random_state)
    n, k = len(order), len(shares)
    if n < k:
        raise ValueError(f"subject: expected {k} subjects or more for {k} parts, got {n}")
    ends = np.round(np.cumsum(shares) * n).astype(int)
    # At least one subject a part: first push the ends up, then back down from the last.
    ends = np.maximum.accumulate(np.maximum(ends, np.arange(1, k + 1)) - np.arange(k)) + np.arange(k)
    ends = np.minimum(ends, n - k + np.arange(1, k + 1))
    return [np.flatnonzero(np.isin(subject, part)) for part in np.split(order, ends[:-1])]


def subject_folds(
    subject: Int[Any, " n"] | Any, n_folds: int = 10, *, random_state: Any = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation by subject.

    Parameters
    ----------
    subject : array-like of int, shape (n,)
        Subject of each window.
    n_folds : int
        Number of folds, two or more; no more than subjects.
    random_state : int or PRNG key
        Who goes where.

    Yields
    ------
    train, test : numpy.ndarray of int
        Indices of windows; each subject is in one test part.

    Raises
    ------
    ValueError
        More folds than subjects.

    Examples
    --------
    >>> from gyri.cadda import subject_folds
    >>> sorted(test.tolist() for _, test in subject_folds([0, 0, 1, 2], 3))
    [[0, 1], [2], [3]]
    """
    subject, n_folds = _check_subjects(subject), check_positive_int(n_folds, "n_folds", minimum=2)
    order = _shuffled(subject, random_state)
    if n_folds > len(order):
        raise ValueError(f"n_folds: expected as many as there are subjects, {len(order)}, or fewer, got {n_folds}")
    return _folds(subject, np.array_split(order, n_folds))


def _folds(subject: np.ndarray, parts: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in parts:
        held_out = np.isin(subject, part)
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check_subjects(subject: Any) -> np.ndarray:
    subject = np.asarray(subject)
    if subject.ndim != 1 or not subject.size or subject.dtype.kind not in "iuUS":
        raise ValueError(f"subject: expected integers, shape (n,), got {subject.dtype} of shape {subject.shape}")
    return subject


def _shuffled(subject: np.ndarray, random_state: Any) -> np.ndarray:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(random_state))))
    return rng.permutation(np.unique(subject))
