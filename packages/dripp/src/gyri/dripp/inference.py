"""What an estimate is worth: goodness of fit, likelihood-ratio tests, standard errors, bootstrap."""

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from . import init as starting
from . import kernels
from .lags import LagTable, Times, check_times, lag_table, stack
from .model import Params, compensator, nll, split, unbatched
from .optim import EMResult, em
from .simulation import simulate

_ENTRIES_AT_ONCE = 1 << 25  # slots of lag tables that are fitted together


class GoodnessOfFit(NamedTuple):
    """Result of `goodness_of_fit`; with a leading axis ``K``, `rescaled` a list, for K sequences of events.

    Attributes
    ----------
    statistic : float or np.ndarray
        Kolmogorov-Smirnov distance of the rescaled intervals to the uniform distribution.
    pvalue : float or np.ndarray
        Its p-value.
    rescaled : np.ndarray, shape (n_events,)
        ``1 - exp(-interval)`` of the rescaled intervals, in the order of the events; uniform under the true model.
    """

    statistic: Any
    pvalue: Any
    rescaled: Any


class LRTResult(NamedTuple):
    """Result of `likelihood_ratio_test`; with a leading axis ``K`` (the second of `null`) for K sequences of events.

    Attributes
    ----------
    statistic : np.ndarray, shape (n_drivers,)
        Twice the log-likelihood that each driver adds.
    pvalue : np.ndarray, shape (n_drivers,)
        Probability of as much without an effect.
    null : np.ndarray, shape (n_resamples, n_drivers)
        Statistics of the resamples; empty for ``method="chi2"``.
    """

    statistic: np.ndarray
    pvalue: np.ndarray
    null: np.ndarray


def goodness_of_fit(
    events: Any,
    drivers: Any,
    params: Params,
    *,
    lower: float,
    upper: float,
    t_stop: float,
    t_start: float = 0.0,
    kernel: str = "truncated_gaussian",
    sfreq: float | None = None,
    key: Any = None,
) -> GoodnessOfFit:
    r"""Time-rescaling test of a fitted process.

    Under the true model the compensator maps the events to a unit Poisson process, so that :math:`1 - e^{-\Delta}` of
    its intervals are independent and uniform. With parameters that were estimated from the same events the test is
    conservative.

    Parameters
    ----------
    events, drivers
        As for `lag_table`.
    params : Params
        With a leading axis ``K`` if `events` is a list of K.
    lower, upper, t_stop, t_start : float
        Windows in seconds.
    kernel : str
        Name of the kernel.
    sfreq : float, optional
        Sampling frequency in Hz of events on a grid: they are spread uniformly within their sample first, or ties
        would reject any model.
    key : int or PRNG key, optional
        For that spread; needed with `sfreq`.

    Returns
    -------
    GoodnessOfFit
        Kolmogorov-Smirnov statistic, p-value and the rescaled intervals; NaN without events.

    Raises
    ------
    ValueError
        As for `lag_table`, and if `key` is missing.

    Notes
    -----
    Brown, Barbieri, Ventura, Kass, Frank (2002), The time-rescaling theorem.

    Examples
    --------
    >>> from gyri.dripp import Params, simulate
    >>> params = Params(5.0, np.array([0.8]), np.array([0.2]), np.array([0.05]))
    >>> window = dict(lower=0.0, upper=0.5, t_stop=50.0)
    >>> events = simulate(0, np.arange(50.0), params, **window)
    >>> goodness_of_fit(events, np.arange(50.0), params, **window).pvalue > 0.01
    True
    """
    from scipy.stats import kstest

    times = check_times(events, drivers, lower=lower, upper=upper, t_stop=t_stop, t_start=t_start)
    parameters = split(params)
    if len(parameters) != len(times.events) or times.batched != (np.ndim(params.baseline) > 0):
        raise ValueError(f"params: expected those of {len(times.events)} sequences of events, got {len(parameters)}")
    if sfreq is not None:
        sfreq = check_scalar(sfreq, "sfreq", minimum=0, strict=True)
        if key is None:
            raise ValueError("key: expected an int or a PRNG key, to spread events within their samples, got None")
    rng = starting.generator(0 if key is None else key)
    results: list[tuple] = []
    for sequence, one in zip(times.events, parameters):
        if sfreq is not None:
            spread = sequence + rng.uniform(-0.5, 0.5, sequence.size) / sfreq
            sequence = np.sort(np.clip(spread, times.t_start, times.t_stop))
        integral = compensator(
            sequence, times.drivers, one, lower=times.lower, upper=times.upper, kernel=kernel, t_start=times.t_start
        )
        uniform = -np.expm1(-np.diff(integral, prepend=0.0))
        test = kstest(uniform, "uniform") if uniform.size else None
        results.append((test.statistic, test.pvalue, uniform) if test else (np.nan, np.nan, uniform))
    if not times.batched:
        return GoodnessOfFit(float(results[0][0]), float(results[0][1]), results[0][2])
    statistic, pvalue, rescaled = zip(*results)
    return GoodnessOfFit(np.array(statistic), np.array(pvalue), list(rescaled))


# --- is a driver needed? ----------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """One sequence of events with all that a refit needs."""

    times: Times
    sfreq: float | None
    edge: bool
    seed: int
    em_kwargs: dict

    def table(self, events: Any = None, drivers: Any = None) -> LagTable:
        times = self.times
        return lag_table(
            times.events[0] if events is None else events,
            times.drivers if drivers is None else drivers,
            lower=times.lower,
            upper=times.upper,
            t_stop=times.t_stop,
            t_start=times.t_start,
            sfreq=self.sfreq,
            edge=self.edge,
        )

    def fit(self, table: LagTable) -> EMResult:
        return em(table, key=self.seed, **self.em_kwargs)

    def simulate(self, rng: np.random.Generator, params: Params, drivers: list[np.ndarray]) -> np.ndarray:
        times = self.times
        events: Any = simulate(
            int(rng.integers(2**31)),
            drivers,
            params,
            lower=times.lower,
            upper=times.upper,
            t_stop=times.t_stop,
            t_start=times.t_start,
            kernel=self.em_kwargs.get("kernel", "truncated_gaussian"),
        )
        return self.on_grid(events)

    def on_grid(self, values: np.ndarray) -> np.ndarray:
        """Round times to the grid of the data, if there is one, and keep them in the recording."""
        if self.sfreq is None:
            return values
        times = self.times
        origin = next((t[0] for t in [*times.events, *times.drivers] if t.size), 0.0)
        ticks = np.rint((values - origin) * self.sfreq)
        low, high = np.ceil((times.t_start - origin) * self.sfreq), np.floor((times.t_stop - origin) * self.sfreq)
        # The last tick may lie a rounding error outside.
        return np.clip(np.sort(origin + np.clip(ticks, low, high) / self.sfreq), times.t_start, times.t_stop)


def likelihood_ratio_test(
    events: Any,
    drivers: Any,
    *,
    lower: float,
    upper: float,
    t_stop: float,
    t_start: float = 0.0,
    sfreq: float | None = None,
    edge: bool = True,
    method: str = "shift",
    n_resamples: int = 199,
    key: Any = 0,
    **em_kwargs: Any,
) -> LRTResult:
    r"""Test, for every driver, whether it triggers any event.

    Parameters
    ----------
    events, drivers, lower, upper, t_stop, t_start, sfreq, edge
        As for `lag_table`.
    method : {"shift", "bootstrap", "chi2"}
        Where the null distribution comes from: the driver's times, shifted circularly by a random amount; events
        simulated from the fit without the driver; or half a chi-squared with three degrees of freedom, an
        approximation (without an effect the kernel's parameters do not exist and alpha lies on its bound, so no
        chi-squared is right).
    n_resamples : int
        Number of resamples; the smallest p-value is ``1 / (n_resamples + 1)``.
    key : int or PRNG key
        Source of randomness.
    **em_kwargs
        Passed to `em`.

    Returns
    -------
    LRTResult
        Statistics, p-values and the null statistics.

    Raises
    ------
    ValueError
        As for `lag_table` and `em`.

    Notes
    -----
    All refits of a driver are one batch. On nuisance parameters that exist under the alternative only: Davies (1987).

    Examples
    --------
    >>> times = np.arange(0.5, 100.0)
    >>> test = likelihood_ratio_test(
    ...     times + 0.2 + 0.03 * np.sin(7 * times), times, lower=0.0, upper=0.5, t_stop=101.0, n_resamples=19
    ... )
    >>> test.pvalue
    array([0.05])
    """
    check_option(method, "method", ("shift", "bootstrap", "chi2"))
    n_resamples = check_positive_int(n_resamples, "n_resamples")
    times = check_times(events, drivers, lower=lower, upper=upper, t_stop=t_stop, t_start=t_start)
    rng, seed = _random_source(key, em_kwargs)
    results = [
        _test_one(_Problem(times._replace(events=[sequence]), sfreq, edge, seed, em_kwargs), method, n_resamples, rng)
        for sequence in times.events
    ]
    if not times.batched:
        return results[0]
    statistic, pvalue, null = zip(*results)
    return LRTResult(np.stack(statistic), np.stack(pvalue), np.stack(null, 1))


def _random_source(key: Any, em_kwargs: dict) -> tuple[np.random.Generator, int]:
    """Return the generator of resamples and a seed for their random starts."""
    if isinstance(em_kwargs.get("init"), Params):
        raise ValueError("init: expected the name of a method, since each resample starts afresh, got Params")
    rng = starting.generator(key)
    return rng, int(rng.integers(2**31))


def _test_one(problem: _Problem, method: str, n_resamples: int, rng: np.random.Generator) -> LRTResult:
    drivers = problem.times.drivers
    n = len(drivers)
    # A model without a driver is one with that driver empty: all tables have one layout, and all fits are one batch.
    without = [problem.table(drivers=_replaced(drivers, p, np.empty(0))) for p in range(n)]
    shifted = (
        problem.table(drivers=_replaced(drivers, p, _shift(drivers[p], problem, rng)))
        for p in range(n)
        for _ in range(n_resamples if method == "shift" else 0)
    )
    nll, params = _fit_all(problem, chain([problem.table()], without, shifted))
    # The full model contains the reduced one: a negative difference is the optimiser's, not the data's.
    statistic = np.maximum(2 * (nll[1 : n + 1] - nll[0]), 0)
    null = np.zeros((0 if method == "chi2" else n_resamples, n))
    if method == "shift":
        null = 2 * (nll[1 : n + 1] - nll[n + 1 :].reshape(n, n_resamples).T)
    elif method == "bootstrap":
        tables = (
            problem.table(draw, given)
            for p in range(n)
            for draw in (problem.simulate(rng, params[p + 1], drivers) for _ in range(n_resamples))
            for given in (drivers, _replaced(drivers, p, np.empty(0)))
        )
        refitted = _fit_all(problem, tables)[0].reshape(n, n_resamples, 2)
        null = 2 * (refitted[..., 1] - refitted[..., 0]).T
    return LRTResult(statistic, _pvalue(statistic, np.maximum(null, 0)), np.maximum(null, 0))


def _replaced(drivers: list[np.ndarray], p: int, other: np.ndarray) -> list[np.ndarray]:
    return [*drivers[:p], other, *drivers[p + 1 :]]


def _fit_all(problem: _Problem, tables: Iterable[LagTable]) -> tuple[np.ndarray, list[Params]]:
    """Fit many tables of one atom, as many at a time as memory allows: their likelihoods and estimates."""
    values: list[np.ndarray] = []
    params: list[Params] = []
    group: list[LagTable] = []

    def fit_group(size: int) -> None:
        # The last group is filled up with copies, so that it needs no program of its own.
        result = problem.fit(stack(group + group[-1:] * (size - len(group))))
        values.append(np.asarray(result.nll, np.float64)[: len(group)])
        params.extend(split(result.params)[: len(group)])
        group.clear()

    size = 0
    for table in tables:
        size = size or max(_ENTRIES_AT_ONCE // table.lag.size, 1)
        group.append(table)
        if len(group) == size:
            fit_group(size)
    if group:
        fit_group(size if values else len(group))
    return np.concatenate([np.empty(0), *values]), params


def _pvalue(statistic: np.ndarray, null: np.ndarray) -> np.ndarray:
    if len(null) == 0:
        from scipy.stats import chi2

        return np.where(statistic > 0, 0.5 * chi2.sf(statistic, 3), 1.0)
    # The same data give the same statistic but for rounding: ties count against the driver.
    close = 1e-9 * (1 + np.abs(statistic))
    return (1 + (null >= statistic - close).sum(0)) / (1 + len(null))


def _shift(driver: np.ndarray, problem: _Problem, rng: np.random.Generator) -> np.ndarray:
    """Shift a driver circularly within the recording, by more than a window either way where it is long enough."""
    times = problem.times
    period, width = times.t_stop - times.t_start, times.upper - times.lower
    low, high = (width, period - width) if period > 2 * width else (0.0, period)
    offset = rng.uniform(low, high)
    if problem.sfreq is not None:
        period = np.floor(period * problem.sfreq + 1e-6) / problem.sfreq
        offset = np.rint(offset * problem.sfreq) / problem.sfreq
    return np.sort(times.t_start + (driver - times.t_start + offset) % period)


# --- error bars -------------------------------------------------------------------------------------------------------


def standard_errors(
    params: Params,
    table: LagTable,
    kernel: str = "truncated_gaussian",
    *,
    m_bounds: tuple[float, float] | None = None,
    sigma_min: float | None = None,
) -> Params:
    """Standard errors from the inverse of the observed information.

    Parameters
    ----------
    params : Params
        Maximum-likelihood estimates.
    table : LagTable
        The table that they were fitted on.
    kernel, m_bounds, sigma_min
        As for `em`, to tell which estimates lie on a bound.

    Returns
    -------
    Params
        Standard errors as float64 NumPy arrays; NaN for parameters on a bound, of idle drivers, and in directions in
        which the likelihood is flat (two drivers at identical times).

    Raises
    ------
    ValueError
        If `kernel` is unknown.

    Examples
    --------
    >>> from gyri.dripp import em, lag_table
    >>> table = lag_table([0.1, 0.5, 0.7], None, lower=0.0, upper=0.5, t_stop=1.0)
    >>> round(float(standard_errors(em(table).params, table).baseline), 3)
    1.732
    """
    density = kernels.get(kernel)
    batched = table.n_atoms is not None
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64) if np.issubdtype(np.asarray(leaf).dtype, np.floating) else leaf,
            table,
        )
        theta = np.concatenate(
            [
                np.asarray(p, np.float64)[..., None] if i == 0 else np.asarray(p, np.float64)
                for i, p in enumerate(params)
            ],
            -1,
        )
        information = np.asarray(_information(theta, wide, kernel))
    free = _free(params, table, density, m_bounds, sigma_min)
    if not batched:
        theta, information, free = theta[None], information[None], free[None]
    errors = np.stack([_errors(*one) for one in zip(theta, information, free)])
    n = table.n_drivers
    result = Params(errors[:, 0], errors[:, 1 : n + 1], errors[:, n + 1 : 2 * n + 1], errors[:, 2 * n + 1 :])
    return result if batched else Params(*(leaf[0] for leaf in result))


@partial(jax.jit, static_argnames="kernel")
def _information(theta: Any, table: LagTable, kernel: str) -> Any:
    density, n = kernels.get(kernel), table.n_drivers

    def value(theta: Any, table: LagTable) -> Any:
        return nll(Params(theta[0], theta[1 : n + 1], theta[n + 1 : 2 * n + 1], theta[2 * n + 1 :]), table, density)

    hessian = jax.hessian(value)
    return hessian(theta, table) if table.n_atoms is None else jax.vmap(hessian)(theta, unbatched(table))


def _free(
    params: Params,
    table: LagTable,
    kernel: kernels.Kernel,
    m_bounds: tuple[float, float] | None,
    sigma_min: float | None,
) -> np.ndarray:
    """Which of (baseline, alpha, m, sigma), flattened, lie inside their bounds and matter."""
    baseline, alpha, m, sigma = (np.asarray(value, np.float64) for value in params)
    lower, upper = (float(np.ravel(x)[0]) for x in (table.lower, table.upper))
    low, high = (lower, upper) if m_bounds is None else m_bounds
    near = 1e-6 * (upper - lower)  # as close to a bound as float32 resolves
    active = alpha > 0
    floor = starting.sigma_floor(table, sigma_min)
    inside_m = active & (m > low + near) & (m < high - near) & kernel.has_location
    inside_sigma = active & (sigma > floor * (1 + 1e-6)) & (sigma < upper - lower - near)
    return np.concatenate([baseline[..., None] > 0, active, inside_m, inside_sigma], -1)


def _errors(theta: np.ndarray, information: np.ndarray, free: np.ndarray) -> np.ndarray:
    errors = np.full(theta.size, np.nan)
    where = np.flatnonzero(free)
    if where.size == 0:
        return errors
    hessian = information[np.ix_(where, where)]
    if not np.all(np.isfinite(hessian)):
        return errors
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), np.finfo(float).tiny))
    curvature, basis = np.linalg.eigh(hessian * scale * scale[:, None])
    flat = curvature <= 1e-10 * curvature.max()
    variance = (basis[:, ~flat] ** 2 / curvature[~flat]).sum(1) * scale**2
    variance[(basis[:, flat] ** 2).sum(1) > 1e-6] = np.nan
    errors[where] = np.sqrt(variance)
    return errors


def wald_intervals(params: Params, errors: Params, level: float = 0.95) -> dict[str, np.ndarray]:
    """Confidence intervals from standard errors; on the log scale, but for m, so that they stay positive.

    Parameters
    ----------
    params, errors : Params
        Estimates and their standard errors.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    dict of np.ndarray, shape (..., 2)
        Ends of the intervals by field of `Params`; NaN where the standard error is.
    """
    from scipy.stats import norm

    quantile = norm.ppf(0.5 + _check_level(level) / 2)
    intervals = {}
    for name, value, error in zip(Params._fields, params, errors):
        value, error = np.asarray(value, np.float64), np.asarray(error, np.float64)
        if name == "m":
            low, high = value - quantile * error, value + quantile * error
        else:
            positive = np.where(value > 0, value, np.nan)
            with np.errstate(over="ignore"):  # nothing is known above: the interval ends at infinity
                factor = np.exp(quantile * error / positive)
            low, high = positive / factor, positive * factor
        intervals[name] = np.stack([low, high], -1)
    return intervals


def bootstrap_intervals(
    events: Any,
    drivers: Any,
    params: Params,
    *,
    lower: float,
    upper: float,
    t_stop: float,
    t_start: float = 0.0,
    sfreq: float | None = None,
    edge: bool = True,
    level: float = 0.95,
    n_resamples: int = 200,
    key: Any = 0,
    subsample: float | None = None,
    **em_kwargs: Any,
) -> dict[str, np.ndarray]:
    """Percentile intervals of refits.

    Parameters
    ----------
    events, drivers, lower, upper, t_stop, t_start, sfreq, edge
        As for `lag_table`.
    params : Params
        Fit from which events are simulated.
    level : float
        Coverage, in (0, 1).
    n_resamples : int
        Number of refits.
    key : int or PRNG key
        Source of randomness.
    subsample : float, optional
        Instead of simulating events, keep this fraction of each driver's events at random, as the paper's code does.
        The children of the others then count as spontaneous: the baseline's interval is biased upwards.
    **em_kwargs
        Passed to `em`.

    Returns
    -------
    dict of np.ndarray, shape (..., 2)
        Ends of the intervals by field of `Params`; a driver that was dropped in a refit counts with alpha = 0 and
        without m, sigma.
    """
    n_resamples, level = check_positive_int(n_resamples, "n_resamples"), _check_level(level)
    if subsample is not None:
        subsample = check_scalar(subsample, "subsample", minimum=0, maximum=1, strict=True)
    times = check_times(events, drivers, lower=lower, upper=upper, t_stop=t_stop, t_start=t_start)
    rng, seed = _random_source(key, em_kwargs)
    per_atom = []
    for sequence, one in zip(times.events, split(params)):
        problem = _Problem(times._replace(events=[sequence]), sfreq, edge, seed, em_kwargs)
        if subsample is None:
            draws = (problem.simulate(rng, one, times.drivers) for _ in range(n_resamples))
            tables = (problem.table(draw) for draw in draws)
        else:
            parts = ([_subset(rng, d, subsample) for d in times.drivers] for _ in range(n_resamples))
            tables = (problem.table(drivers=part) for part in parts)
        fits = _fit_all(problem, tables)[1]
        refits = Params(*(np.stack(leaves) for leaves in zip(*fits)))
        idle = refits.alpha <= 0
        refits = refits._replace(m=np.where(idle, np.nan, refits.m), sigma=np.where(idle, np.nan, refits.sigma))
        per_atom.append([_percentiles(leaf, level) for leaf in refits])
    stacked = [np.stack(leaves) for leaves in zip(*per_atom)]
    return dict(zip(Params._fields, stacked if times.batched else [leaf[0] for leaf in stacked]))


def _percentiles(values: np.ndarray, level: float) -> np.ndarray:
    """Ends of the central interval over the first axis, NaN left out; NaN where nothing is left."""
    ends = np.full((*values.shape[1:], 2), np.nan)
    if ends.size == 0:
        return ends
    some = ~np.all(np.isnan(values), axis=0)
    quantiles = [0.5 - level / 2, 0.5 + level / 2]
    if values.ndim == 1:
        return np.nanquantile(values, quantiles) if some else ends
    ends[some] = np.nanquantile(values[:, some], quantiles, axis=0).T
    return ends


def _subset(rng: np.random.Generator, driver: np.ndarray, fraction: float) -> np.ndarray:
    return np.sort(rng.choice(driver, int(fraction * driver.size), replace=False))


def _check_level(level: float) -> float:
    return check_scalar(level, "level", minimum=0.0, maximum=1.0, strict=True)
