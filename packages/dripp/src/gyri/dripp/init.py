"""Starting values of the EM algorithm, computed on the host from the lag table alone."""

from typing import Any

import numpy as np
from jaxtyping import Float

from gyri.numerics.validation import as_key, check_option

from .kernels import Kernel, get
from .lags import LagTable
from .model import Params

METHODS = ("smart_start", "peaks", "random")
N_PEAKS = 3
_N_BINS = 64


def initialize(
    table: LagTable,
    method: str = "smart_start",
    *,
    key: Any = None,
    peak: int = 1,
    kernel: str = "truncated_gaussian",
    m_bounds: tuple[float, float] | None = None,
    sigma_min: float | None = None,
) -> Params:
    """Starting values for `em`.

    Parameters
    ----------
    table : LagTable
        From `lag_table`.
    method : {"smart_start", "peaks", "random"}
        Moments of the delays in excess of the baseline (the paper's); a peak of their histogram; or uniform draws.
    key : int or PRNG key
        Needed by ``"random"`` alone.
    peak : int
        For ``"peaks"``: 1 for the highest peak, 2 for the next.
    kernel : str
        Name of the kernel.
    m_bounds : pair of float, optional
        Bounds of `m` in seconds; the window by default.
    sigma_min : float, optional
        Lower bound of `sigma` in seconds.

    Returns
    -------
    Params
        NumPy arrays, within the bounds, ``alpha > 0`` wherever a driver has any event.

    Raises
    ------
    ValueError
        If `method` is unknown, or random without a key.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), appendix on the initialisation, for ``"smart_start"``; the excess count per driver
    event is compared with a baseline count over the whole window, not with a rate.

    Examples
    --------
    >>> from gyri.dripp import lag_table
    >>> table = lag_table([0.3, 0.9, 1.7], [0.1, 0.7], lower=0.0, upper=0.4, t_stop=2.0)
    >>> initialize(table, "smart_start").m.round(2)
    array([0.2], dtype=float32)
    """
    check_option(method, "init", METHODS)
    density = get(kernel)
    batched = table.n_atoms is not None
    if method == "random":
        if key is None:
            raise ValueError("key: expected an int or a PRNG key for init='random', got None")
        start = _random(table, key)
    else:
        start = _from_lags(table, density, None if method == "smart_start" else peak, sigma_floor(table, sigma_min))
    start = project(start, table, density, m_bounds, sigma_min)
    dtype = np.asarray(table.lag).dtype
    return Params(*((value if batched else value[0]).astype(dtype) for value in start))


def generator(key: Any) -> np.random.Generator:
    """NumPy generator seeded by an int or by a PRNG key of JAX."""
    import jax

    return np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))).ravel())


def sigma_floor(table: LagTable, sigma_min: float | None) -> float:
    """Lower bound of sigma: the likelihood is unbounded as sigma vanishes on a repeated delay."""
    width, sfreq = _window(table)[2], float(np.ravel(table.sfreq)[0])
    if sigma_min is None:
        sigma_min = max(1e-4 * width, 1 / (sfreq * np.sqrt(12)) if sfreq > 0 else 0.0)
    return min(float(sigma_min), width)


def project(
    start: Params, table: LagTable, kernel: Kernel, m_bounds: tuple[float, float] | None, sigma_min: float | None
) -> Params:
    """Move starting values into their bounds and away from the absorbing zeros of EM (batched NumPy arrays)."""
    lower, upper, width = _window(table)
    low, high = m_bounds if m_bounds is not None else (lower, upper)
    exposed = _atoms(table, table.n_exposed)
    rate = (_atoms(table, table.weight).sum(-1) + _atoms(table, table.n_outside)) / _atoms(table, table.duration)
    alpha = np.where(exposed > 0, np.maximum(start.alpha, 1 / np.maximum(exposed, 1)), 0)
    m = np.clip(start.m, low, high) if kernel.has_location else np.full_like(start.alpha, lower)
    sigma = np.clip(start.sigma, sigma_floor(table, sigma_min), width)
    return Params(np.maximum(start.baseline, 1e-6 * rate), alpha, m, sigma)


def default_location_scale(table: LagTable) -> tuple[float, float]:
    """M and sigma (seconds) that are reported when there is nothing to estimate them from."""
    lower, upper, width = _window(table)
    return (lower + upper) / 2, 0.95 * width / 4


def _window(table: LagTable) -> tuple[float, float, float]:
    lower, upper = (float(np.ravel(x)[0]) for x in (table.lower, table.upper))
    return lower, upper, upper - lower


def _atoms(table: LagTable, values: Any) -> Float[np.ndarray, "..."]:
    """Float64 on the host, with an atom axis."""
    values = np.asarray(values, np.float64)
    return values if table.n_atoms is not None else values[None]


def _random(table: LagTable, key: Any) -> Params:
    lower, upper, _ = _window(table)
    n_atoms, rng = table.n_atoms or 1, generator(key)
    shape = (n_atoms, table.n_drivers)
    left = max(lower, 0.1) if upper > 0.1 else lower
    return Params(
        rng.uniform(0.15, 1, n_atoms),
        rng.uniform(0.15, 1, shape),
        rng.uniform(left, upper, shape),
        rng.uniform(0.05, 1, shape),
    )


def _from_lags(table: LagTable, kernel: Kernel, peak: int | None, sigma_min: float) -> Params:
    lower, _, width = _window(table)
    lag, driver, weight = _atoms(table, table.lag), np.asarray(table.driver), _atoms(table, table.weight)
    driver = driver if table.n_atoms is not None else driver[None]
    n_outside, exposed = _atoms(table, table.n_outside), _atoms(table, table.n_exposed)
    duration, covered = _atoms(table, table.duration), _atoms(table, table.covered)
    n_atoms, n_drivers = exposed.shape

    # One pass over all slots: the (atom, driver) cell and the weight of every delay.
    used = (driver >= 0) & (weight[:, None] > 0)
    atom, slot, row = np.nonzero(used)
    cell = atom * n_drivers + driver[atom, slot, row]
    x, w, n_cells = lag[atom, slot, row], weight[atom, row], n_atoms * n_drivers

    rate = (weight.sum(-1) + n_outside) / duration
    free = duration - covered
    baseline = np.where(free < 1e-9 * duration, rate / 2, n_outside / np.where(free < 1e-9 * duration, 1, free))
    baseline = np.maximum(baseline, 0.05 * rate)
    per_driver = np.maximum(exposed, 1)
    shape = (n_atoms, n_drivers)
    middle, scale = default_location_scale(table)
    count = np.bincount(cell, w, n_cells).reshape(shape)
    some = count > 0
    if peak is None:
        mean = np.where(some, np.bincount(cell, w * x, n_cells).reshape(shape) / np.where(some, count, 1), middle)
        square = np.bincount(cell, w * (x - mean.ravel()[cell]) ** 2, n_cells).reshape(shape) / np.where(some, count, 1)
        sigma = np.where(some, np.sqrt(square) * kernel.scale_from_std, scale)
        excess = count / per_driver - baseline[:, None] * width
        return Params(baseline, np.maximum(excess, 1 / per_driver), mean, np.maximum(sigma, 2 * sigma_min))
    bins = np.clip(((x - lower) * (_N_BINS / width)).astype(np.int64), 0, _N_BINS - 1)
    histogram = np.bincount(cell * _N_BINS + bins, w, n_cells * _N_BINS).reshape(-1, _N_BINS).astype(np.float64)
    background = np.median(histogram, axis=-1)
    centre, each = _peak_bin(histogram, peak), np.arange(n_cells)
    around = sum(
        histogram[each, np.clip(centre + j, 0, _N_BINS - 1)] * ((centre + j >= 0) & (centre + j < _N_BINS))
        for j in (-1, 0, 1)
    )
    excess = np.maximum(around - 3 * background, 1).reshape(shape)
    location = (lower + (centre + 0.5) * width / _N_BINS).reshape(shape)
    sigma = np.full(shape, 1.5 * width / _N_BINS * kernel.scale_from_std)
    return Params(baseline, excess / per_driver, np.where(some, location, middle), np.maximum(sigma, 2 * sigma_min))


def _peak_bin(histogram: Float[np.ndarray, "cells bins"], peak: int) -> np.ndarray:
    """Bin of the j-th highest peak, bins within two of a higher one excluded."""
    left = histogram.copy()
    for _ in range(peak - 1):
        top = left.argmax(-1)
        near = np.abs(np.arange(_N_BINS) - top[:, None]) <= 2
        left[near] = -1
    return left.argmax(-1)
