"""Exact simulation of the process given its drivers, in float64 on the host; two independent methods."""

from typing import Any

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import check_option, check_scalar

from . import kernels
from .init import generator
from .lags import check_drivers, check_window, most_in_window
from .model import Params, check_params, intensity, split


def simulate(
    key: Any,
    drivers: Any,
    params: Params,
    *,
    lower: float,
    upper: float,
    t_stop: float,
    t_start: float = 0.0,
    kernel: str = "truncated_gaussian",
    method: str = "cluster",
) -> Float[np.ndarray, " n_events"] | list[np.ndarray]:
    r"""Draw the events of one process, or of each of K.

    Parameters
    ----------
    key : int or PRNG key
        Source of randomness.
    drivers : array-like, list, dict or None
        Driver times in seconds, as for `lag_table`.
    params : Params
        Parameters, possibly with a leading axis ``K``.
    lower, upper : float
        Window of delays in seconds.
    t_stop, t_start : float
        Observation window in seconds.
    kernel : str
        Name of the kernel.
    method : {"cluster", "thinning"}
        Spontaneous events and the children of each driver event (exact and fast), or candidates at a bound of the
        intensity, accepted in proportion to it (the paper's, as a check).

    Returns
    -------
    np.ndarray of float64, shape (n_events,), or list of K of them
        Sorted event times in ``[t_start, t_stop]``.

    Raises
    ------
    ValueError
        If an argument is unknown, not finite, negative where it must not be, or has the wrong number of drivers.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), section 4.1. Thinning: Lewis and Shedler (1979).

    Examples
    --------
    >>> params = Params(0.0, np.array([1.0]), np.array([0.2]), np.array([0.01]))
    >>> events = simulate(0, np.arange(10.0), params, lower=0.0, upper=0.5, t_stop=10.0)
    >>> bool(np.all(np.abs(events % 1 - 0.2) < 0.1))
    True
    """
    check_option(method, "method", ("cluster", "thinning"))
    density = kernels.get(kernel)
    window = check_window(lower, upper)
    t_start, t_stop = check_scalar(t_start, "t_start"), check_scalar(t_stop, "t_stop")
    if not t_start < t_stop:
        raise ValueError(f"t_stop: expected more than t_start = {t_start:g}, got {t_stop:g}")
    driver_times, _ = check_drivers(drivers)
    check_params(params, len(driver_times))
    rng = generator(key)
    draw = _cluster if method == "cluster" else _thinning
    draws = [draw(rng, driver_times, one, density, window, t_start, t_stop) for one in split(params)]
    return draws if np.ndim(params.baseline) else draws[0]


def _cluster(
    rng: np.random.Generator,
    drivers: list[np.ndarray],
    params: Params,
    kernel: kernels.Kernel,
    window: tuple[float, float],
    t_start: float,
    t_stop: float,
) -> np.ndarray:
    duration = t_stop - t_start
    parts = [t_start + duration * rng.random(rng.poisson(params.baseline * duration))]
    for p, driver in enumerate(drivers):
        parents = np.repeat(driver, rng.poisson(params.alpha[p], driver.size))
        if parents.size:
            delays = kernels.on_host(kernel.ppf, rng.random(parents.size), params.m[p], params.sigma[p], *window)
            parts.append(parents + delays)
    events = np.concatenate(parts)
    return np.sort(events[(events >= t_start) & (events <= t_stop)])


def _thinning(
    rng: np.random.Generator,
    drivers: list[np.ndarray],
    params: Params,
    kernel: kernels.Kernel,
    window: tuple[float, float],
    t_start: float,
    t_stop: float,
) -> np.ndarray:
    bound = float(params.baseline)
    for p, driver in enumerate(drivers):
        # Unimodal in the window: largest at its location, or at the end that is nearest to it.
        places = np.array([window[0], np.clip(params.m[p], *window)])
        peak = kernels.on_host(kernel.pdf, places, params.m[p], params.sigma[p], *window).max()
        bound += float(params.alpha[p]) * peak * most_in_window(driver, *window)
    duration = t_stop - t_start
    candidates = np.sort(t_start + duration * rng.random(rng.poisson(bound * duration)))
    rate = intensity(candidates, drivers, params, lower=window[0], upper=window[1], kernel=kernel.name)
    return candidates[rng.random(candidates.size) * bound < rate]
