"""What several experiments share: simulated eyes, fits that compile once, scores."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.signal.windows import tukey

from ..datasets import NystagmusData, simulate_nystagmus
from ..metrics import pattern_correlation, relative_error
from ..trend import estimate_tv_threshold

SFREQ = 1000.0
PERIODS = 1.5  # length of the atoms, as in the paper
LONGEST = 500  # samples: one and a half periods at 3 Hz
BLINK = 200  # samples


class Score(NamedTuple):
    """How well one fit recovers one simulated nystagmus.

    Attributes
    ----------
    correlation : float
        The paper's score of the pattern.
    detrending : float
        Relative error of the detrended recording, up to its mean, without an atom's length at each end.
    pattern : float
        Relative error of the pattern's signal, up to its mean.
    """

    correlation: float
    detrending: float
    pattern: float


def length_of(pattern: Float[np.ndarray, " n_times"]) -> int:
    """Number of samples of the paper's atoms: one and a half true patterns.

    Examples
    --------
    >>> length_of(np.array([1.0, 2.0, 1.0, 3.0, 1.0, 0.0]))
    6
    """
    return int(PERIODS * np.flatnonzero(pattern)[-1])


def make_window(length: int) -> Float[np.ndarray, " n_times_atom"]:
    """Tukey window of an atom's length, zeros behind: atoms of all lengths then have one shape, and one compilation.

    Examples
    --------
    >>> window = make_window(300)
    >>> window.shape, float(window[150]), float(window[299:].max())
    ((500,), 1.0, 1e-09)
    """
    window = np.zeros(LONGEST)
    window[:length] = tukey(length, 0.5)
    window[[0, length - 1]] = 1e-9
    return window


def score_fit(data: NystagmusData, model: Any) -> Score:
    """Compare a fit of one recording with the truth."""
    length = length_of(data.pattern[0])
    truth, inside = data.nystagmus[0] - data.nystagmus[0].mean(), slice(length, -length)
    detrended = model.detrended_[0, 0]
    error = relative_error(data.nystagmus[0, inside] - data.nystagmus[0, inside].mean(), centred(detrended[inside]))
    return Score(
        float(pattern_correlation(data.pattern[0], model.atoms_[:, 0, :length]).max()),
        error,
        relative_error(truth, centred(model.pattern_signal_[0, 0])),
    )


def centred(x: Float[np.ndarray, " n_times"]) -> Float[np.ndarray, " n_times"]:
    """Less its mean, NaN left out.

    Examples
    --------
    >>> centred(np.array([1.0, np.nan, 3.0]))
    array([-1., nan,  1.])
    """
    return x - np.nanmean(x)


def draw_eye(seed: int, n_times: int, *, min_std: float = 0.0, legacy: bool = False) -> NystagmusData:
    """One recording of the paper's simulation; draws again until the nystagmus is large enough."""
    rng = np.random.default_rng([seed, 2020])
    while True:
        data = simulate_nystagmus(rng, n_times=n_times, sfreq=SFREQ, legacy=legacy)
        if data.nystagmus.std() >= min_std - 1e-9:
            return data


def fit_eye(data: NystagmusData, mu: float | None, mask: Any = None, **options: Any) -> Any:
    """Fit one atom of the paper's length to one recording."""
    from ..estimator import NystagmusCDL

    window = make_window(length_of(data.pattern[0]))
    options = {"n_times_atom": LONGEST, "sfreq": SFREQ, "window": window, "trend_reg": mu, **options}
    return NystagmusCDL(1, **options).fit(data.recording, mask)


def blinks(seed: int, n_times: int, fraction: float = 0.1) -> np.ndarray:
    """Mask of valid samples: blinks of a fifth of a second cover about this part of the recording.

    Examples
    --------
    >>> bool(0.07 < 1 - blinks(0, 10_000).mean() <= 0.1)
    True
    """
    rng = np.random.default_rng([seed, 7])
    mask = np.ones(n_times, bool)
    for start in rng.choice(n_times - BLINK, round(fraction * n_times / BLINK), replace=False):
        mask[start : start + BLINK] = False
    return mask


class Comparison(NamedTuple):
    """Scores of one recording.

    Attributes
    ----------
    joint, two_step, joint_half, two_step_half, masked, no_trend : Score
        Trend and pattern together and one after the other, with the automatic level of the trend and half of it; a
        tenth of the recording masked; and without a trend.
    frequency : float
        Estimated over true.
    objective_rises : float
        Largest relative rise of the joint objective in an iteration.
    """

    joint: Score
    two_step: Score
    joint_half: Score
    two_step_half: Score
    masked: Score
    no_trend: Score
    frequency: float
    objective_rises: float


def compare(setting: tuple[int, int, int, float]) -> Comparison:
    """Fit one recording in all ways; setting: seed, samples, iterations, smallest standard deviation."""
    seed, n_times, max_iter, min_std = setting
    data = draw_eye(seed, n_times, min_std=min_std)
    found = estimate_tv_threshold(data.recording, SFREQ)
    options: dict[str, Any] = {"max_iter": max_iter}
    joint = fit_eye(data, found.mu, **options)
    return Comparison(
        score_fit(data, joint),
        score_fit(data, fit_eye(data, found.mu, joint=False, **options)),
        score_fit(data, fit_eye(data, 0.5 * found.mu, **options)),
        score_fit(data, fit_eye(data, 0.5 * found.mu, joint=False, **options)),
        score_fit(data, fit_eye(data, found.mu, blinks(seed, n_times), **options)),
        score_fit(data, fit_eye(data, None, **options)),
        found.frequency / float(data.frequency[0]),
        float(np.max(np.diff(joint.objective_) / np.abs(joint.objective_[:-1]))),
    )
