"""The model: parameters, intensity, compensator and likelihood of a Poisson process driven by stimuli.

Times enter through the lag table (`negative_log_likelihood`) or, for any times, through the same search (`intensity`,
`compensator`). Estimation is in `optim`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gyri.numerics.validation import check_array, check_scalar

from . import kernels
from .kernels import Kernel
from .lags import LagTable, check_drivers, check_window, count_older, delays

_BLOCK_ROWS = 1 << 13  # of two slots: the derivatives of a block stay in a core's cache
_UNROLLED_DRIVERS = 8  # up to so many, selects and masked sums beat gathers and scatters on a CPU


class Params(NamedTuple):
    """Parameters of one process, or of K of them with a leading axis.

    Attributes
    ----------
    baseline : Any, shape () or (K,)
        Rate of spontaneous events, events/s.
    alpha : Any, shape (P,) or (K, P)
        Expected number of events that one event of each driver triggers.
    m : Any, shape (P,) or (K, P)
        Location of the kernel in seconds (its peak, for the Gaussian).
    sigma : Any, shape (P,) or (K, P)
        Scale of the kernel in seconds.
    """

    baseline: Float[Any, "*atoms"]
    alpha: Float[Any, "*atoms n_drivers"]
    m: Float[Any, "*atoms n_drivers"]
    sigma: Float[Any, "*atoms n_drivers"]


def negative_log_likelihood(
    params: Params, table: LagTable, *, kernel: str = "truncated_gaussian"
) -> Float[Any, "*atoms"]:
    r"""Negative log-likelihood of the events in a lag table, in closed form.

    .. math:: \mu T + \sum_p \alpha_p E_p(m_p, \sigma_p) - \sum_t \log \lambda(t)

    where :math:`E_p` counts the events of driver p, those with a cut window in part.

    Parameters
    ----------
    params : Params
        With a leading axis ``K`` if the table has one.
    table : LagTable
        From `lag_table`.
    kernel : {"truncated_gaussian", "raised_cosine", "truncated_exponential"}
        Density of the delays.

    Returns
    -------
    Array, shape () or (K,)
        In nats, without the constant ``log(n_events!)``; ``inf`` if an event has intensity zero. Works under jit,
        vmap, grad.

    Raises
    ------
    ValueError
        If `kernel` is unknown, or the shapes are not those of the table.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), equation 4, with the exposure of cut windows in closed form.

    Examples
    --------
    >>> from gyri.dripp import Params, lag_table, negative_log_likelihood
    >>> table = lag_table([0.3, 0.9], [0.1, 0.6], lower=0.0, upper=0.5, t_stop=2.0)
    >>> float(negative_log_likelihood(Params(1.0, np.array([0.0]), np.array([0.2]), np.array([0.1])), table))
    2.0
    """
    density = kernels.get(kernel)
    params = Params(*(jnp.asarray(value) for value in params))
    check_shapes(params, table.weight.shape[:-1], table.n_drivers)
    if table.n_atoms is None:
        return nll(params, table, density)
    return jax.vmap(lambda p, t: nll(p, t, density))(params, unbatched(table))


def unbatched(table: LagTable) -> LagTable:
    """Relabel a batched table as that of one atom, for the inside of a `vmap`."""
    return replace(table, n_atoms=None)


# --- on the table, one atom -------------------------------------------------------------------------------------------


def of_slot(values: Float[Any, " n_drivers"], driver: Int[Any, "n_slots n_rows"]) -> Any:
    """Value of each slot's driver; whatever is finite in padded slots."""
    n_drivers = values.shape[0]
    if n_drivers > _UNROLLED_DRIVERS:
        return values[driver]
    selected = values[0]
    for p in range(1, n_drivers):
        selected = jnp.where(driver == p, values[p], selected)
    return selected


def by_driver(values: Float[Any, "n_slots n_rows"], driver: Int[Any, "n_slots n_rows"], n_drivers: int) -> Any:
    """Sum over the slots of each driver."""
    if n_drivers > _UNROLLED_DRIVERS:
        return jnp.zeros(n_drivers, values.dtype).at[driver].add(jnp.where(driver < 0, 0, values))
    # The barrier keeps XLA:CPU from fusing the sums into the stack and running them serially, 10 times slower.
    sums = [jnp.where(driver == p, values, 0).sum() for p in range(n_drivers)]
    return jnp.stack(jax.lax.optimization_barrier(sums))


def slot_rates(
    params: Params,
    lag: Float[Any, "n_slots n_rows"],
    driver: Int[Any, "n_slots n_rows"],
    lower: Float[Any, ""],
    kernel: Kernel,
    log_normalizer: Float[Any, " n_drivers"],
) -> Float[Any, "n_slots n_rows"]:
    """Return the rate that each slot's driver event adds to its row's intensity; 0 in padded slots."""
    log_scale = jnp.log(params.sigma) + log_normalizer
    m, sigma, log_scale, alpha = (of_slot(value, driver) for value in (params.m, params.sigma, log_scale, params.alpha))
    return jnp.where(driver >= 0, alpha * kernel.density(lag, m, sigma, lower, log_scale), 0)


def sum_over_rows(part: Callable, table: LagTable) -> Any:
    """Add up ``part(lag, driver, weight)``, a pytree of sums over rows; a long table in blocks that stay in the cache.

    The blocks also bound the memory of derivatives, which keep nothing of a block but its sums.
    """
    n_rows = table.weight.shape[-1]
    size = math.gcd(n_rows, _BLOCK_ROWS)
    if n_rows <= 2 * _BLOCK_ROWS or size < _BLOCK_ROWS // 8:
        return part(table.lag, table.driver, table.weight)
    columns = table.lag, table.driver, table.weight

    @jax.checkpoint
    def one(start: Any) -> Any:
        return part(*(jax.lax.dynamic_slice_in_dim(column, start, size, -1) for column in columns))

    starts = jnp.arange(0, n_rows, size)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, starts[0]))
    return jax.lax.scan(lambda sums, start: (jax.tree.map(jnp.add, sums, one(start)), None), zero, starts)[0]


def exposure(
    params: Params, table: LagTable, kernel: Kernel, log_normalizer: Float[Any, " n_drivers"]
) -> Float[Any, " n_drivers"]:
    """Return the expected number of seen children per unit of alpha: the driver events, cut windows counted in part."""
    if table.cut.shape[-2] == 0:
        return jnp.asarray(table.n_full)
    left, right = table.cut[..., 0], table.cut[..., 1]
    seen = kernel.mass(left, right, params.m[:, None], params.sigma[:, None], table.lower, log_normalizer[:, None])
    return table.n_full + jnp.where(right > left, seen, 0).sum(-1)


def nll(params: Params, table: LagTable, kernel: Kernel) -> Float[Any, ""]:
    """Negative log-likelihood of one atom."""
    if table.n_drivers == 0:
        return nll_of_sums(params, table, jnp.zeros(0, table.lag.dtype), jnp.zeros((), table.lag.dtype))
    log_normalizer = kernel.log_normalizer(params.m, params.sigma, table.lower, table.upper)

    def log_rate(lag: Any, driver: Any, weight: Any) -> Any:
        return weighted_log(
            weight, params.baseline + slot_rates(params, lag, driver, table.lower, kernel, log_normalizer).sum(0)
        )

    return nll_of_sums(params, table, exposure(params, table, kernel, log_normalizer), sum_over_rows(log_rate, table))


def weighted_log(weight: Float[Any, " n_rows"], row_rate: Float[Any, " n_rows"]) -> Float[Any, ""]:
    """Sum of weight * log(rate) over the rows that are not padding."""
    return (weight * jnp.log(jnp.where(weight > 0, row_rate, 1))).sum()


def nll_of_sums(
    params: Params, table: LagTable, exposed: Float[Any, " n_drivers"], log_rate: Float[Any, ""]
) -> Float[Any, ""]:
    """Negative log-likelihood of one atom from its exposures and the summed log-intensity of its rows."""
    outside = table.n_outside * jnp.log(jnp.where(table.n_outside > 0, params.baseline, 1))
    return params.baseline * table.duration + (params.alpha * exposed).sum() - outside - log_rate


# --- at any time ------------------------------------------------------------------------------------------------------


def intensity(
    t: Float[Any, " n_times"] | np.ndarray | list,
    drivers: Any,
    params: Params,
    *,
    lower: float,
    upper: float,
    kernel: str = "truncated_gaussian",
) -> Float[np.ndarray, "*atoms n_times"]:
    r"""Intensity :math:`\lambda(t) = \mu + \sum_p \alpha_p \sum_s \kappa_p(t - s)` at any times.

    Parameters
    ----------
    t : array-like, shape (n_times,)
        Times in seconds, in any order.
    drivers : array-like, list, dict or None
        Driver times in seconds, as for `lag_table`.
    params : Params
        Parameters; with a leading axis ``K`` the result has one.
    lower, upper : float
        Window in seconds.
    kernel : str
        Name of the kernel.

    Returns
    -------
    np.ndarray of float64, shape (n_times,) or (K, n_times)
        Events/s.

    Raises
    ------
    ValueError
        If an argument is not finite, has the wrong shape or number of drivers.

    Examples
    --------
    >>> params = Params(0.5, np.array([1.0]), np.array([0.2]), np.array([0.05]))
    >>> intensity([0.0, 1.2], [1.0], params, lower=0.0, upper=0.5).round(2)
    array([0.5 , 8.48])
    """
    times, driver_times, window = _check(t, drivers, params, lower, upper)
    density = kernels.get(kernel)
    rates = [
        float(one.baseline) + _sum_over_drivers(times, driver_times, one, window, density.pdf, after=0.0)
        for one in split(params)
    ]
    return np.stack(rates) if np.ndim(params.baseline) else rates[0]


def compensator(
    t: Float[Any, " n_times"] | np.ndarray | list,
    drivers: Any,
    params: Params,
    *,
    lower: float,
    upper: float,
    kernel: str = "truncated_gaussian",
    t_start: float = 0.0,
) -> Float[np.ndarray, "*atoms n_times"]:
    r"""Integrated intensity :math:`\Lambda(t) = \int_{t_0}^t \lambda`, in closed form.

    Parameters
    ----------
    t : array-like, shape (n_times,)
        Times in seconds, at least `t_start`, in any order.
    drivers, params, lower, upper, kernel
        As for `intensity`.
    t_start : float
        Start of the recording in seconds.

    Returns
    -------
    np.ndarray of float64, shape (n_times,) or (K, n_times)
        Expected number of events in ``[t_start, t]``.

    Raises
    ------
    ValueError
        As for `intensity`, and if a time lies before `t_start`.

    Examples
    --------
    >>> params = Params(0.5, np.array([2.0]), np.array([0.2]), np.array([0.05]))
    >>> compensator([1.0, 3.0], [1.0], params, lower=0.0, upper=0.5)
    array([0.5, 3.5])
    """
    times, driver_times, window = _check(t, drivers, params, lower, upper)
    t_start = check_scalar(t_start, "t_start")
    if times.size and times.min() < t_start:
        raise ValueError(f"t: expected times of at least t_start = {t_start:g} s, got {times.min():g}")
    density = kernels.get(kernel)
    integrals = []
    for one in split(params):
        seen = _sum_over_drivers(np.append(times, t_start), driver_times, one, window, density.cdf, after=1.0)
        integrals.append(float(one.baseline) * (times - t_start) + seen[:-1] - seen[-1])
    return np.stack(integrals) if np.ndim(params.baseline) else integrals[0]


def split(params: Params) -> list[Params]:
    """Parameters of each atom, in float64 on the host."""
    host = Params(*(np.asarray(value, np.float64) for value in params))
    if host.baseline.ndim == 0:
        return [host]
    return [Params(*(value[k] for value in host)) for k in range(len(host.baseline))]


def _check(
    t: Any, drivers: Any, params: Params, lower: float, upper: float
) -> tuple[np.ndarray, list, tuple[float, float]]:
    t = np.asarray(t) if isinstance(t, jax.Array) else t  # before JAX rounds it to float32
    times = np.asarray(check_array(t, "t", ndim=1, dtype=np.float64, allow_empty=True))
    driver_times, _ = check_drivers(drivers)
    check_params(params, len(driver_times))
    return times, driver_times, check_window(lower, upper)


def check_shapes(params: Params, atoms: tuple[int, ...], n_drivers: int, name: str = "params") -> None:
    """Raise a ValueError that names the field whose shape is wrong."""
    for field, value in zip(Params._fields, params):
        shape = atoms if field == "baseline" else (*atoms, n_drivers)
        if np.shape(value) != shape:
            raise ValueError(f"{name}.{field}: expected shape {shape} with {n_drivers} drivers, got {np.shape(value)}")


def check_params(params: Params, n_drivers: int, name: str = "params") -> None:
    """Raise a ValueError that names the field if parameters are not finite, in range and of matching shapes."""
    check_shapes(params, np.shape(params.baseline)[:1], n_drivers, name)
    for field, value in zip(Params._fields, params):
        value = np.asarray(value)
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{name}.{field}: expected finite values, got {value}")
        if field == "sigma" and np.any(value <= 0):
            raise ValueError(f"{name}.sigma: expected positive values, got {value}")
        if field in ("baseline", "alpha") and np.any(value < 0):
            raise ValueError(f"{name}.{field}: expected values of at least 0, got {value}")


def _sum_over_drivers(
    times: np.ndarray, drivers: list, params: Params, window: tuple[float, float], function: Callable, *, after: float
) -> np.ndarray:
    """Sum alpha * function(delay) over the driver events before each time; `after`: its value past the window."""
    order = np.argsort(times, kind="stable")
    ordered, sums = times[order], np.zeros(times.size)
    for p, driver in enumerate(drivers):
        found = list(delays(ordered, driver, *window))
        if found:
            row, delay = (np.concatenate([part[i] for part in found]) for i in (1, 2))
            values = kernels.on_host(function, delay, params.m[p], params.sigma[p], *window)
            sums += params.alpha[p] * np.bincount(row, values, minlength=times.size)
        if after:
            past = count_older(ordered, driver, window[0])  # everything that old, but what is in the window
            for part in found:
                past[part[1]] -= 1
            sums += after * params.alpha[p] * past
    result = np.empty(times.size)
    result[order] = sums
    return result
