"""The paper's synthetic setting, and what several experiments share: recordings, batches of fits, errors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ..datasets import simulate_drivers
from ..kernels import get
from ..lags import LagTable, lag_table, stack
from ..model import Params
from ..optim import EMResult, em
from ..simulation import simulate

LOWER, UPPER = 0.03, 0.8  # seconds
INTERVALS = (1.4, 1.0)  # between stimuli, seconds
FRACTIONS = (0.1, 0.3, 0.6)  # of the stimuli that are kept
NAMES = ("sharp", "wide")
TRUTH = Params(0.8, np.array([0.8, 0.8]), np.array([0.4, 0.4]), np.array([0.05, 0.2]))
# The EM of the paper: a fixed number of iterations from one start, no bound on m, no correction at the ends.
PAPER_EM: dict[str, Any] = {
    "init": "smart_start",
    "max_iter": 50,
    "polish": False,
    "m_bounds": (-np.inf, np.inf),
    "sigma_min": 1e-5,
}


class Recording(NamedTuple):
    """Events of one atom and driver times, in seconds, observed from 0 to `t_stop`."""

    events: Float[np.ndarray, " n_events"]
    drivers: list[Float[np.ndarray, " n_driver_events"]]
    t_stop: float

    def crop(self, t_stop: float) -> "Recording":
        """Keep what lies before `t_stop` seconds, of events and of drivers, as the paper does."""
        events, drivers = self.events, self.drivers
        return Recording(events[events <= t_stop], [driver[driver <= t_stop] for driver in drivers], t_stop)

    def round(self, sfreq: float) -> "Recording":
        """Move all times to the nearest sample of `sfreq` Hz."""
        last = np.floor(self.t_stop * sfreq)
        events = np.sort(np.minimum(np.rint(self.events * sfreq), last) / sfreq)
        return self._replace(events=events, drivers=[np.rint(driver * sfreq) / sfreq for driver in self.drivers])

    def table(self, *, lower: float = LOWER, upper: float = UPPER, **options: Any) -> LagTable:
        """Lag table of the recording; `options` are those of `lag_table`."""
        return lag_table(self.events, self.drivers, lower=lower, upper=upper, t_stop=self.t_stop, **options)


def record(
    seed: Sequence[int],
    t_stop: float,
    fraction: float = 0.6,
    *,
    truth: Params = TRUTH,
    intervals: Sequence[float] = INTERVALS,
    lower: float = LOWER,
    upper: float = UPPER,
    kernel: str = "truncated_gaussian",
) -> Recording:
    """Simulate a recording: a random part of regular stimuli, and the events of one atom.

    Parameters
    ----------
    seed : sequence of int
        Seed of everything random.
    t_stop : float
        Duration in seconds.
    fraction : float
        Part of the stimuli that is kept.
    truth : Params
        Parameters of the atom.
    intervals : sequence of float
        Seconds between stimuli, by driver.
    lower, upper : float
        Window of delays in seconds.
    kernel : str
        Name of the kernel.

    Returns
    -------
    Recording
        Events and drivers.

    Examples
    --------
    >>> recording = record([0, 1], 100.0)
    >>> len(recording.drivers), bool(recording.events.max() <= 100)
    (2, True)
    """
    *keys, key = (int(word) for word in np.random.SeedSequence(seed).generate_state(len(intervals) + 1) >> 1)
    drivers = [simulate_drivers(k, t_stop, isi, keep=fraction) for k, isi in zip(keys, intervals, strict=True)]
    events: Any = simulate(key, drivers, truth, lower=lower, upper=upper, t_stop=t_stop, kernel=kernel)
    return Recording(events, drivers, t_stop)


def fit_groups(groups: Sequence[Sequence[LagTable]], **options: Any) -> list[EMResult]:
    """Fit groups of tables; all groups share one shape, so that the fit is compiled once.

    Parameters
    ----------
    groups : sequence of sequences of LagTable
        Tables of one atom each. Within a group the window and the grid are the same.
    **options
        Passed to `em`.

    Returns
    -------
    list of EMResult
        Of each group, as NumPy arrays with a leading axis over its tables.
    """
    size = max(len(group) for group in groups)
    # Shorter groups repeat their last table, then leave the repetitions out.
    table = stack([group[min(i, len(group) - 1)] for group in groups for i in range(size)])
    results = []
    for g, group in enumerate(groups):
        part = jax.tree.map(lambda leaf, g=g: np.asarray(leaf)[g * size : (g + 1) * size], table)
        result = em(replace(part, n_atoms=size), **options)
        n_tables = len(group)
        results.append(jax.tree.map(lambda leaf, n=n_tables: np.asarray(leaf)[:n], result))
    return results


@jax.jit
def _rates(x: Any, params: Params, lower: Any, upper: Any) -> Any:
    baseline, alpha, m, sigma = params
    kernel = get("truncated_gaussian").pdf(x, m[..., None], sigma[..., None], lower, upper)
    return baseline[..., None, None] + alpha[..., None] * kernel


def rates(x: Any, params: Params, lower: float = LOWER, upper: float = UPPER) -> np.ndarray:
    """Rate after one event of each driver, baseline included, of Gaussian kernels.

    Parameters
    ----------
    x : array-like, shape (n,)
        Delays in seconds.
    params : Params
        With any leading axes.
    lower, upper : float
        Window in seconds.

    Returns
    -------
    np.ndarray of float64, shape (..., n_drivers, n)
        Events/s.
    """
    with jax.enable_x64(True):
        wide = Params(*(np.asarray(leaf, np.float64) for leaf in params))
        return np.asarray(_rates(np.asarray(x, np.float64), wide, lower, upper))


def kernel_errors(estimates: Params, truth: Params = TRUTH) -> np.ndarray:
    """Largest difference of the estimated rate to the true one, over the largest true rate; the paper's error.

    Parameters
    ----------
    estimates : Params
        With any leading axes.
    truth : Params
        Of one atom.

    Returns
    -------
    np.ndarray, shape (..., n_drivers)
        Relative errors.

    Examples
    --------
    >>> kernel_errors(TRUTH)
    array([0., 0.])
    """
    x = np.linspace(LOWER - 1, UPPER + 1, round(800 * (UPPER - LOWER + 2)) + 1)
    true = rates(x, truth)
    return np.abs(rates(x, estimates) - true).max(-1) / true.max(-1)


def relative(measured: Any, reference: Any) -> np.ndarray:
    """Largest relative difference over the last axis."""
    measured, reference = np.asarray(measured, np.float64), np.asarray(reference, np.float64)
    return np.max(np.abs(measured - reference) / np.maximum(np.abs(reference), 1e-12), axis=-1)
