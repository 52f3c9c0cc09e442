r"""Estimation: expectation-maximisation on the lag table, its safeguard, Newton polish and pruning of idle drivers.

One atom at a time in the mathematics, a `vmap` over atoms and starts around it. Starting values are made in `init`,
the likelihood in `model`. Labels: an event is spontaneous or was triggered by one driver event; an unseen child is an
event that a driver event with a cut window would have triggered outside the recording.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from gyri.numerics.optim import damped_newton
from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from . import init as starting
from . import kernels
from .kernels import Kernel, log_interval, normal_ratio
from .lags import LagTable, coarsen
from .model import (
    Params,
    by_driver,
    check_params,
    check_shapes,
    exposure,
    negative_log_likelihood,
    nll,
    nll_of_sums,
    of_slot,
    slot_rates,
    sum_over_rows,
    unbatched,
    weighted_log,
)

M_STEPS = ("fixed_point", "exact")
_BLOCK = 50  # EM iterations between two polishes
_WARM_UP = 20  # EM iterations by which the starts are compared
_NEWTON_STEPS = 30
_HALVINGS = 10
_LARGE = 50_000  # rows from which a fit starts on rounded delays
_COARSE_BINS = 2048  # steps of the window to which they are rounded


class EMResult(NamedTuple):
    """What `em` found; with a leading axis ``K`` for a batched table.

    Attributes
    ----------
    params : Params
        Maximum-likelihood estimates.
    nll : Any, shape ()
        Negative log-likelihood there.
    n_iter : Any of int, shape ()
        EM iterations, without those of pruning.
    converged : Any of bool, shape ()
        Whether the tolerance was met.
    history : Any, shape (max_iter + 1,)
        Negative log-likelihood at the start and after each EM iteration; NaN after the last.
    """

    params: Params
    nll: Any
    n_iter: Any
    converged: Any
    history: Any


class Bounds(NamedTuple):
    """Box of the kernel's parameters, seconds."""

    m_low: Any
    m_high: Any
    sigma_low: Any
    sigma_high: Any


class Statistics(NamedTuple):
    """Of one E-step: the likelihood, expected counts of events, and moments of the triggered ones about m.

    `seen` is what one event/s of baseline would be expected to make of the table's events. Moments are those of the
    truncated Gaussian's M-step and include the unseen children; `log_normalizer` is the kernels'.
    """

    nll: Float[Any, ""]
    seen: Float[Any, ""]
    expected: Float[Any, " n_drivers"]
    first: Float[Any, " n_drivers"]
    second: Float[Any, " n_drivers"]
    log_normalizer: Float[Any, " n_drivers"]


# --- E-step -----------------------------------------------------------------------------------------------------------


def expectation(params: Params, table: LagTable, kernel: Kernel) -> Statistics:
    """Expected labels of the events, summed over the table, and the negative log-likelihood at the same parameters."""
    log_normalizer = kernel.log_normalizer(params.m, params.sigma, table.lower, table.upper)

    def sums(lag: Any, driver: Any, weight: Any) -> tuple[Any, ...]:
        label, row_rate, seen = _labels(params, lag, driver, weight, table.lower, kernel, log_normalizer)
        offset = lag - of_slot(params.m, driver)
        moments = (by_driver(x, driver, table.n_drivers) for x in (label, label * offset, label * offset**2))
        return weighted_log(weight, row_rate), seen.sum(), *moments

    log_rate, seen, count, first, second = sum_over_rows(sums, table)
    if kernel.name == "truncated_gaussian" and table.cut.shape[-2]:
        hidden = _unseen_moments(params, table, log_normalizer)
        exposed = table.n_exposed - hidden[0]
        count, first, second = (s + params.alpha * h for s, h in zip((count, first, second), hidden))
    else:
        exposed = exposure(params, table, kernel, log_normalizer)
    value = nll_of_sums(params, table, exposed, log_rate)
    return Statistics(value, seen, count, first, second, log_normalizer)


def _labels(
    params: Params, lag: Any, driver: Any, weight: Any, lower: Any, kernel: Kernel, log_normalizer: Any
) -> tuple[Any, Any, Any]:
    """Events that each slot is expected to have triggered; rate of each row; weight over rate (0 where that is 0)."""
    rates = slot_rates(params, lag, driver, lower, kernel, log_normalizer)
    row_rate = params.baseline + rates.sum(0)
    used = (weight > 0) & (row_rate > 0)
    seen = jnp.where(used, weight / jnp.where(used, row_rate, 1), 0)
    return rates * seen, row_rate, seen


def _unseen_moments(params: Params, table: LagTable, log_normalizer: Any) -> tuple[Any, Any, Any]:
    """Mass and moments about m of the delays that the recording's ends hide, per unit of alpha (Gaussian)."""
    first, last = table.cut[..., 0], table.cut[..., 1]
    left = jnp.stack([jnp.broadcast_to(table.lower, first.shape), last])  # before the recording and after it
    right = jnp.stack([first, jnp.broadcast_to(table.upper, last.shape)])
    hidden = (last > first) & (right > left)
    m, sigma, log_z = params.m[:, None], params.sigma[:, None], log_normalizer[:, None]
    # Where nothing is hidden another interval stands in, so that no log of 0 is formed.
    zl, zr = jnp.where(hidden, (left - m) / sigma, 0.0), jnp.where(hidden, (right - m) / sigma, 1.0)
    mass = jnp.exp(log_interval(zl, zr) - log_z)
    pl, pr = normal_ratio(zl, log_z), normal_ratio(zr, log_z)
    moments = mass, sigma * (pl - pr), sigma**2 * (mass + zl * pl - zr * pr)
    mass, first, second = (jnp.where(hidden, moment, 0).sum((0, -1)) for moment in moments)
    return mass, first, second


def gaussian_value_and_score(params: Params, table: LagTable, kernel: Kernel) -> tuple[Any, Params]:
    """Negative log-likelihood and its gradient for the truncated Gaussian, from one E-step.

    Fisher's identity: it is that of the expected complete-data likelihood, whose sums are the E-step's. Reverse mode
    would read the table three times.
    """
    statistics = expectation(params, table, kernel)
    sigma, expected = params.sigma, statistics.expected
    slope_m, slope_sigma = _normalizer_slopes(params, statistics.log_normalizer, table)
    some = params.alpha > 0
    outside = table.n_outside / jnp.where(table.n_outside > 0, params.baseline, 1)
    gradient = Params(
        table.duration - outside - statistics.seen,
        table.n_exposed - jnp.where(some, expected / jnp.where(some, params.alpha, 1), 0),
        expected * slope_m / sigma - statistics.first / sigma**2,
        expected * slope_sigma / sigma - statistics.second / sigma**3,
    )
    return statistics.nll, gradient


def _normalizer_slopes(params: Params, log_normalizer: Any, table: LagTable) -> tuple[Any, Any]:
    """Derivatives by m and sigma of the log of C = sigma sqrt(2 pi) Z, times sigma; the second is positive."""
    za, zb = (table.lower - params.m) / params.sigma, (table.upper - params.m) / params.sigma
    pa, pb = normal_ratio(za, log_normalizer), normal_ratio(zb, log_normalizer)
    return pa - pb, za * pa - zb * pb + 1


# --- M-step -----------------------------------------------------------------------------------------------------------


def maximization(
    params: Params, statistics: Statistics, table: LagTable, kernel: Kernel, bounds: Bounds, m_step: str
) -> Params:
    """Parameters that increase the expected complete-data log-likelihood."""
    baseline = (table.n_outside + params.baseline * statistics.seen) / table.duration
    if kernel.name == "truncated_gaussian":
        alpha = statistics.expected / jnp.maximum(table.n_exposed, 1)
        update = _gaussian_fixed_point if m_step == "fixed_point" else _gaussian_exact
        m, sigma = update(params, statistics, table, bounds)
    else:
        m, sigma = _generic_m_step(params, statistics, table, kernel, bounds, 5 if m_step == "fixed_point" else 20)
        log_normalizer = kernel.log_normalizer(m, sigma, table.lower, table.upper)
        exposed = exposure(Params(baseline, params.alpha, m, sigma), table, kernel, log_normalizer)
        alpha = jnp.where(exposed > 0, statistics.expected / jnp.where(exposed > 0, exposed, 1), 0)
    # A driver without any expected event has nothing to say of its kernel.
    some = statistics.expected > 0
    return Params(baseline, alpha, jnp.where(some, m, params.m), jnp.where(some, sigma, params.sigma))


def _gaussian_q(m: Any, sigma: Any, log_normalizer: Any, old: Any, statistics: Statistics) -> Any:
    """Part of the expected complete-data log-likelihood that depends on (m, sigma); moments are about `old`."""
    shift = m - old
    second = statistics.second - 2 * shift * statistics.first + shift**2 * statistics.expected
    return -statistics.expected * (log_normalizer + jnp.log(sigma)) - second / (2 * sigma**2)


def _gaussian_fixed_point(params: Params, statistics: Statistics, table: LagTable, bounds: Bounds) -> tuple[Any, Any]:
    """The paper's update: Q stationary, with the normaliser's derivatives at the current parameters; safeguarded."""
    m, sigma, log_z = params.m, params.sigma, statistics.log_normalizer
    count = jnp.where(statistics.expected > 0, statistics.expected, 1)
    slope_m, slope_sigma = _normalizer_slopes(params, log_z, table)
    new_m = m + statistics.first / count - sigma * slope_m
    new_sigma = jnp.cbrt(sigma / jnp.maximum(slope_sigma, jnp.finfo(m.dtype).tiny) * statistics.second / count)
    candidate = jnp.clip(new_m, bounds.m_low, bounds.m_high), jnp.clip(new_sigma, bounds.sigma_low, bounds.sigma_high)
    before = _gaussian_q(m, sigma, log_z, m, statistics)
    slack = 16 * jnp.finfo(m.dtype).eps * jnp.abs(before)

    def check(state: tuple) -> tuple:
        (new_m, new_sigma), bad, n = state
        # Halve a step that was refused, in natural parameters: there Q is concave, so a short enough step goes up.
        precision = (1 / sigma**2 + 1 / new_sigma**2) / 2
        location = (m / sigma**2 + new_m / new_sigma**2) / 2
        shorten = bad & (n > 0)
        new_m = jnp.where(shorten, location / precision, new_m)
        new_sigma = jnp.where(shorten, 1 / jnp.sqrt(precision), new_sigma)
        new_z = log_interval((table.lower - new_m) / new_sigma, (table.upper - new_m) / new_sigma)
        value = _gaussian_q(new_m, new_sigma, new_z, m, statistics)
        return (new_m, new_sigma), ~(value >= before - slack), n + 1

    start = candidate, jnp.ones(m.shape, bool), 0
    (new_m, new_sigma), bad, _ = jax.lax.while_loop(lambda s: jnp.any(s[1]) & (s[2] <= _HALVINGS), check, start)
    return jnp.where(bad, m, new_m), jnp.where(bad, sigma, new_sigma)


def _gaussian_exact(params: Params, statistics: Statistics, table: LagTable, bounds: Bounds) -> tuple[Any, Any]:
    """Maximise Q over (m, sigma) by damped Newton steps in the box."""

    def solve(old_m: Any, old_sigma: Any, statistics: Statistics) -> tuple[Any, Any]:
        weight = jnp.maximum(statistics.expected, 1)

        def cost(x: Any) -> Any:
            m, sigma = x[0] * old_sigma, x[1] * old_sigma
            log_z = log_interval((table.lower - m) / sigma, (table.upper - m) / sigma)
            return -_gaussian_q(m, sigma, log_z, old_m, statistics) / weight

        low, high = jnp.stack([bounds.m_low, bounds.sigma_low]), jnp.stack([bounds.m_high, bounds.sigma_high])
        start = jnp.stack([old_m, old_sigma]) / old_sigma
        found = damped_newton(
            cost, start, lower=low / old_sigma, upper=high / old_sigma, max_iter=20, tol=_newton_tol(start.dtype)
        )
        return found.x[0] * old_sigma, found.x[1] * old_sigma

    n = (table.n_drivers,)
    per_driver = statistics._replace(nll=jnp.zeros(n), seen=jnp.zeros(n))  # unused, but vmap wants its axis
    return jax.vmap(solve)(params.m, params.sigma, per_driver)


def _generic_m_step(
    params: Params, statistics: Statistics, table: LagTable, kernel: Kernel, bounds: Bounds, max_iter: int
) -> tuple[Any, Any]:
    """A few damped Newton steps on Q, profiled over alpha, for kernels without sufficient statistics."""
    label, _, _ = _labels(params, table.lag, table.driver, table.weight, table.lower, kernel, statistics.log_normalizer)

    def solve(p: Any, m: Any, sigma: Any, n_full: Any, cut: Any) -> tuple[Any, Any]:
        weight = jnp.where(table.driver == p, label, 0)
        used = weight > 0
        count = weight.sum()
        lag = jnp.where(used, table.lag, m)
        single = replace(table, n_full=n_full[None], n_exposed=n_full[None], cut=cut[None], n_drivers=1, names=("",))

        def cost(x: Any) -> Any:
            x = x * sigma
            log_normalizer = kernel.log_normalizer(x[0], x[1], table.lower, table.upper)
            density = kernel.density(lag, x[0], x[1], table.lower, jnp.log(x[1]) + log_normalizer)
            log_density = jnp.where(used, jnp.log(jnp.where(used, density, 1)), 0)
            one = Params(params.baseline, x[:1], x[:1], x[1:])
            exposed = exposure(one, single, kernel, log_normalizer[None])[0]
            return (count * jnp.log(jnp.where(exposed > 0, exposed, 1)) - (weight * log_density).sum()) / jnp.maximum(
                count, 1
            )

        low, high = jnp.stack([bounds.m_low, bounds.sigma_low]), jnp.stack([bounds.m_high, bounds.sigma_high])
        start = jnp.stack([m, sigma]) / sigma
        found = damped_newton(
            cost, start, lower=low / sigma, upper=high / sigma, max_iter=max_iter, tol=_newton_tol(start.dtype)
        )
        return found.x[0] * sigma, found.x[1] * sigma

    each = jnp.arange(table.n_drivers)
    return jax.vmap(solve)(each, params.m, params.sigma, jnp.asarray(table.n_full), jnp.asarray(table.cut))


def em_step(
    params: Params,
    table: LagTable,
    *,
    kernel: str = "truncated_gaussian",
    m_bounds: tuple[float, float] | None = None,
    sigma_min: float | None = None,
    m_step: str = "fixed_point",
) -> Params:
    """One EM iteration.

    Parameters
    ----------
    params : Params
        Current values.
    table : LagTable
        From `lag_table`.
    kernel, m_bounds, sigma_min, m_step
        As for `em`.

    Returns
    -------
    Params
        Values whose negative log-likelihood is not larger. Works under jit and vmap.

    Raises
    ------
    ValueError
        If `kernel` or `m_step` is unknown, or the shapes are not those of the table.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), equations 6 to 8.

    Examples
    --------
    >>> from gyri.dripp import Params, lag_table
    >>> table = lag_table([0.3, 0.9], [0.1, 0.6], lower=0.0, upper=0.5, t_stop=2.0)
    >>> em_step(Params(1.0, np.array([0.5]), np.array([0.2]), np.array([0.1])), table).alpha.shape
    (1,)
    """
    density = kernels.get(kernel)
    check_option(m_step, "m_step", M_STEPS)
    params = Params(*(jnp.asarray(value, table.lag.dtype) for value in params))
    check_shapes(params, table.weight.shape[:-1], table.n_drivers)

    def step(params: Params, table: LagTable) -> Params:
        bounds = _bounds(table, m_bounds, sigma_min, density)
        return maximization(params, expectation(params, table, density), table, density, bounds, m_step)

    return step(params, table) if table.n_atoms is None else jax.vmap(step)(params, unbatched(table))


def _bounds(table: LagTable, m_bounds: Any, sigma_min: Any, kernel: Kernel) -> Bounds:
    """Box of (m, sigma) for one atom. Defaults where a bound is None or NaN, which needs no program of its own."""
    dtype = table.lag.dtype
    width = table.upper - table.lower
    low, high = (np.nan, np.nan) if m_bounds is None else m_bounds
    low, high = jnp.where(jnp.isnan(low), table.lower, low), jnp.where(jnp.isnan(high), table.upper, high)
    if not kernel.has_location:
        low = high = table.lower
    on_grid = table.sfreq > 0
    step = jnp.where(on_grid, 1 / (jnp.where(on_grid, table.sfreq, 1) * np.sqrt(12)), 0)
    sigma_min = np.nan if sigma_min is None else sigma_min
    sigma_min = jnp.where(jnp.isnan(sigma_min), jnp.maximum(1e-4 * width, step), sigma_min)
    return Bounds(*(jnp.asarray(value, dtype) for value in (low, high, jnp.minimum(sigma_min, width), width)))


def _newton_tol(dtype: Any) -> float:
    return 1e-13 if dtype == jnp.float64 else 1e-6


# --- the fit of one atom ----------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    params: Params
    nll: Float[Any, ""]
    values: Float[Any, " block"]  # the negative log-likelihood of the start, and after each iteration
    n: Int[Any, ""]
    met: Bool[Any, ""]
    full: Bool[Any, ""]


def _em_block(
    params: Params, table: LagTable, kernel: Kernel, bounds: Bounds, m_step: str, limit: Any, tol: Any, size: int
) -> _Block:
    """Up to `limit` (at most `size`) EM iterations, ending when the likelihood stops to move.

    The E-step comes first in the body: compiled once, it serves the start, the iterations and the value at the end.
    """

    def body(block: _Block) -> _Block:
        statistics = expectation(block.params, table, kernel)
        change = jnp.abs(block.nll - statistics.nll)
        met = (block.n > 0) & (change <= tol * (1 + jnp.abs(statistics.nll)))
        full = block.n >= limit
        new = maximization(block.params, statistics, table, kernel, bounds, m_step)
        end = met | full
        params = jax.tree.map(lambda old, new: jnp.where(end, old, new), block.params, new)
        values = block.values.at[block.n].set(statistics.nll)
        return _Block(params, statistics.nll, values, block.n + ~end, met, full)

    values = jnp.full(size + 1, jnp.nan, table.lag.dtype)
    no = jnp.asarray(False)
    start = _Block(params, jnp.asarray(jnp.inf, values.dtype), values, jnp.asarray(0), no, no)
    return jax.lax.while_loop(lambda block: ~(block.met | block.full), body, start)


def _polish(
    params: Params, value: Any, table: LagTable, kernel: Kernel, bounds: Bounds, coarse: LagTable | None
) -> tuple[Params, Any, Any]:
    """Damped Newton steps on the negative log-likelihood, over all parameters that are free.

    With the Hessian of the `coarse` table, if there is one: it is close, and costs little beside a large table.
    """
    n = table.n_drivers
    # Units: every parameter in multiples of what it may change by, so that one ridge suits all.
    rate = (table.weight.sum() + table.n_outside) / table.duration
    units = jnp.concatenate(
        [
            jnp.maximum(params.baseline, 0.05 * rate)[None],
            jnp.maximum(params.alpha, 1 / jnp.maximum(table.n_exposed, 1)),
            params.sigma,
            params.sigma,
        ]
    )
    units = jnp.where(units > 0, units, 1)
    start = jnp.concatenate([params.baseline[None], params.alpha, params.m, params.sigma]) / units
    idle = jnp.concatenate([jnp.zeros(1, bool)] + 3 * [params.alpha <= 0])
    full = lambda value, size: jnp.broadcast_to(jnp.asarray(value, start.dtype), (size,))
    low = jnp.concatenate([full(0, 1 + n), full(bounds.m_low, n), full(bounds.sigma_low, n)]) / units
    high = jnp.concatenate([full(jnp.inf, 1 + n), full(bounds.m_high, n), full(bounds.sigma_high, n)]) / units

    def unpack(x: Any) -> Params:
        x = x * units
        return Params(x[0], x[1 : n + 1], x[n + 1 : 2 * n + 1], x[2 * n + 1 :])

    def value_and_grad(table: LagTable, x: Any) -> tuple[Any, Any]:
        if kernel.name != "truncated_gaussian":
            return jax.value_and_grad(lambda x: nll(unpack(x), table, kernel))(x)
        value, gradient = gaussian_value_and_score(unpack(x), table, kernel)
        return value, units * jnp.concatenate([jnp.atleast_1d(leaf) for leaf in gradient])

    found = damped_newton(
        partial(value_and_grad, table),
        start,
        lower=jnp.where(idle, start, low),
        upper=jnp.where(idle, start, high),
        max_iter=_NEWTON_STEPS,
        # Where a kernel is narrower than the rounding, the borrowed Hessian is too steep: it foretells too little.
        tol=_newton_tol(start.dtype) * (1 if coarse is None else 1e-2),
        value_and_grad=True,
        hessian=None if coarse is None else jax.jacfwd(lambda x: value_and_grad(coarse, x)[1]),
    )
    better = found.value < value
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), unpack(found.x), params)
    return best, jnp.where(better, found.value, value), found.converged


class _State(NamedTuple):
    params: Params
    n_iter: Int[Any, ""]
    n_trial: Int[Any, ""]  # EM iterations of the present trial
    history: Float[Any, " max_iter_plus"]
    best: Params
    best_nll: Float[Any, ""]
    converged: Bool[Any, ""]
    trial: Bool[Any, ""]  # is the fit being tried without a driver?
    tried: Bool[Any, " n_drivers"]
    done: Bool[Any, ""]


def _fit_one(
    params: Params,
    history: Float[Any, " n_before"],
    n_before: Int[Any, ""],
    table: LagTable,
    tol: Any,
    m_bounds: Any,
    sigma_min: Any,
    max_iter: Any,
    coarse: LagTable | None,
    *,
    kernel: Kernel,
    m_step: str,
    polish: bool,
    room: int,
) -> EMResult:
    """EM in blocks, each followed by a polish, until converged; then try to do without each idle driver."""
    bounds = _bounds(table, m_bounds, sigma_min, kernel)

    def body(state: _State) -> _State:
        spent = jnp.where(state.trial, state.n_trial, state.n_iter)
        block = _em_block(
            state.params, table, kernel, bounds, m_step, jnp.minimum(_BLOCK, max_iter - spent), tol, _BLOCK
        )
        spent = spent + block.n
        params, value, converged = block.params, block.nll, block.met
        if polish:
            params, value, newton = _polish(params, value, table, kernel, bounds, coarse)
            converged = newton | (block.met & (block.nll - value <= tol * (1 + jnp.abs(value))))
        finished = converged | (spent >= max_iter)
        # What trials do is not on record: it is written behind the end.
        history = jax.lax.dynamic_update_slice(
            state.history, block.values, (jnp.where(state.trial, max_iter + 1, state.n_iter),)
        )
        # A trial is accepted if the likelihood is as good without the driver; the fit before all trials always is.
        as_good = value <= state.best_nll + tol * (1 + jnp.abs(value))
        accept = finished & (~state.trial | as_good)
        best = jax.tree.map(lambda new, old: jnp.where(accept, new, old), params, state.best)
        expected = best.alpha * table.n_exposed
        candidates = (best.alpha > 0) & (expected < 1) & ~state.tried
        away = jnp.arange(table.n_drivers) == jnp.argmin(jnp.where(candidates, expected, jnp.inf))
        start_trial = finished & candidates.any()
        params = jax.tree.map(lambda b, p: jnp.where(start_trial, b, p), best, params)
        return _State(
            params._replace(alpha=jnp.where(start_trial & away, 0, params.alpha)),
            jnp.where(state.trial, state.n_iter, spent),
            jnp.where(start_trial, 0, spent),
            history,
            best,
            jnp.where(accept, value, state.best_nll),
            jnp.where(accept, converged, state.converged),
            state.trial | start_trial,
            state.tried | (start_trial & away),
            finished & ~candidates.any(),
        )

    empty = jnp.full(room + 2 * _BLOCK + 2, jnp.nan, table.lag.dtype)
    state = _State(
        params,
        n_before,
        jnp.zeros_like(n_before),
        jax.lax.dynamic_update_slice(empty, history, (0,)),
        params,
        jnp.asarray(jnp.inf, empty.dtype),
        jnp.asarray(False),
        jnp.asarray(False),
        jnp.zeros(table.n_drivers, bool),
        jnp.asarray(False),
    )
    state = jax.lax.while_loop(lambda state: ~state.done, body, state)
    return _finish(state, table, kernel, room)


def _finish(state: _State, table: LagTable, kernel: Kernel, room: int) -> EMResult:
    """Report pruned drivers by defaults; without any driver left, the baseline is the mean rate exactly."""
    best = state.best
    idle = best.alpha <= 0
    middle = (table.lower + table.upper) / 2 if kernel.has_location else table.lower
    scale = 0.95 * (table.upper - table.lower) / 4
    n_events = table.weight.sum() + table.n_outside
    none = jnp.all(idle) | (n_events == 0)
    params = Params(
        jnp.where(none, n_events / table.duration, best.baseline),
        jnp.where(none, 0, best.alpha),
        jnp.where(idle | none, middle, best.m),
        jnp.where(idle | none, scale, best.sigma),
    )
    homogeneous = n_events - n_events * jnp.log(jnp.where(n_events > 0, n_events / table.duration, 1))
    value = jnp.where(none, homogeneous, state.best_nll)
    return EMResult(params, value, state.n_iter, state.converged | none, state.history[: room + 1])


# --- over atoms and starts --------------------------------------------------------------------------------------------


def _over_atoms(one: Callable, *batched: Any) -> Any:
    """Map over the leading axis: all atoms at once, but on a CPU one after another.

    There one atom's rows stay in the cache, each atom stops when it has converged, and the program of one atom compiles
    in a fraction of the time: 200 atoms fit three times faster.
    """

    def in_turn(*batched: Any) -> Any:
        return jax.lax.map(lambda each: one(*each), batched)

    return jax.lax.platform_dependent(*batched, cpu=in_turn, default=jax.vmap(one))


@partial(jax.jit, static_argnames=("kernel", "m_step", "polish", "room"))
def _fit(
    params: Params,
    history: Any,
    n_before: Any,
    table: LagTable,
    tol: Any,
    m_bounds: Any,
    sigma_min: Any,
    max_iter: Any,
    coarse: LagTable | None,
    **static: Any,
) -> EMResult:
    density = kernels.get(static.pop("kernel"))

    def fit(params: Params, history: Any, table: LagTable, coarse: LagTable | None) -> EMResult:
        options = tol, m_bounds, sigma_min, max_iter, coarse
        return _fit_one(params, history, n_before, table, *options, kernel=density, **static)

    if table.n_atoms is None:
        return fit(params, history, table, coarse)
    return _over_atoms(fit, params, history, unbatched(table), None if coarse is None else unbatched(coarse))


@partial(jax.jit, static_argnames=("kernel", "m_step", "n_steps"))
def _best_start(
    starts: Params, table: LagTable, tol: Any, m_bounds: Any, sigma_min: Any, *, kernel: str, m_step: str, n_steps: int
) -> tuple[Params, Any]:
    """Run a few EM iterations from each start (leading axis); keep each atom's most likely, with its history."""
    density = kernels.get(kernel)

    def run(params: Params, table: LagTable) -> tuple[Params, Any, Any]:
        bounds = _bounds(table, m_bounds, sigma_min, density)
        # A tolerance that is never met: all starts get as many iterations.
        block = _em_block(params, table, density, bounds, m_step, jnp.asarray(n_steps), jnp.asarray(-1.0), n_steps)
        return block.params, block.nll, block.values

    def choose(starts: Params, table: LagTable) -> tuple[Params, Any]:
        params, value, history = jax.vmap(run, in_axes=(0, None))(starts, table)
        best = jnp.argmin(jnp.where(jnp.isnan(value), jnp.inf, value))
        return jax.tree.map(lambda leaf: leaf[best], (params, history))

    if table.n_atoms is None:
        return choose(starts, table)
    return _over_atoms(choose, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), starts), unbatched(table))


def em(
    table: LagTable,
    init: str | Params = "auto",
    *,
    kernel: str = "truncated_gaussian",
    max_iter: int = 400,
    tol: float | None = None,
    m_bounds: tuple[float, float] | None = None,
    sigma_min: float | None = None,
    m_step: str = "fixed_point",
    polish: bool = True,
    key: Any = None,
) -> EMResult:
    r"""Maximum-likelihood estimate of baseline, alpha, m and sigma.

    Parameters
    ----------
    table : LagTable
        From `lag_table`. A batched table fits all its atoms at once.
    init : {"auto", "smart_start", "peaks", "random"} or Params
        Starting values. ``"auto"`` compares the paper's smart start and three peaks of the delays' histogram after 20
        iterations.
    kernel : {"truncated_gaussian", "raised_cosine", "truncated_exponential"}
        Density of the delays.
    max_iter : int
        Largest number of EM iterations.
    tol : float, optional
        Stop when an iteration changes the negative log-likelihood by less than ``tol * (1 + |nll|)``; 1e-9 in float64,
        1e-6 in float32.
    m_bounds : pair of float, optional
        Bounds of `m` in seconds, the window by default so that `m` reads as a latency; ``(-inf, inf)`` as in the paper.
    sigma_min : float, optional
        Lower bound of `sigma` in seconds, by default a 10000th of the window, or the spread within a sample if that is
        larger.
    m_step : {"fixed_point", "exact"}
        The paper's update of (m, sigma), or the full maximisation of the same function.
    polish : bool
        Finish by Newton steps on the likelihood, where EM crawls.
    key : int or PRNG key, optional
        For ``init="random"``.

    Returns
    -------
    EMResult
        Estimates, likelihood, history. Under jit if `init` is a `Params`.

    Raises
    ------
    ValueError
        If an option is unknown or a starting value is not finite, negative or has the wrong shape.

    Notes
    -----
    Allain, Gramfort, Moreau (2022), algorithm 1. A driver that is left with less than one expected event is dropped
    (alpha = 0) if the likelihood is as good without it.

    Examples
    --------
    >>> from gyri.dripp import lag_table
    >>> drivers = np.arange(0.5, 60.0)
    >>> table = lag_table(drivers + 0.2 + 0.02 * np.sin(drivers), drivers, lower=0.0, upper=0.5, t_stop=61.0)
    >>> em(table).params.alpha.round(2)
    Array([1.], dtype=float32)
    """
    kernels.get(kernel)
    check_option(m_step, "m_step", M_STEPS)
    max_iter = check_positive_int(max_iter, "max_iter")
    if tol is None:
        tol = 1e-9 if table.lag.dtype == np.float64 else 1e-6
    else:
        check_scalar(tol, "tol", minimum=0.0)
    m_bounds = None if m_bounds is None else _check_m_bounds(m_bounds)
    if sigma_min is not None:
        sigma_min = check_scalar(sigma_min, "sigma_min", minimum=0.0, strict=True)
    if not isinstance(init, Params):
        check_option(init, "init", ("auto", *starting.METHODS))
    if table.n_drivers == 0:
        return _without_drivers(table, max_iter)
    # Numbers are data of one program; only the room for the history, in whole blocks, is of its shape.
    static = {"kernel": kernel, "m_step": m_step, "polish": polish, "room": -(-max_iter // _BLOCK) * _BLOCK}
    bounds = (np.nan, np.nan) if m_bounds is None else m_bounds  # NaN: the default, see `_bounds`
    options = (tol, bounds, np.nan if sigma_min is None else sigma_min, max_iter)
    if isinstance(init, Params):
        params = _check_start(init, table, kernel, bounds, options[2])
        result = _continue(params, table, options, static)
    else:
        make = partial(starting.initialize, kernel=kernel, m_bounds=m_bounds, sigma_min=sigma_min)
        result = _fit_from_scratch(table, init, key, make, options, static)
    return result._replace(history=result.history[..., : max_iter + 1])


def _fit_from_scratch(table: LagTable, init: str, key: Any, make: Callable, options: tuple, static: dict) -> EMResult:
    """Fit from made-up starting values; a large table with its delays rounded first."""
    large = table.weight.shape[-1] > _LARGE
    first, of_first = (coarsen(table, _COARSE_BINS), _for_rounded(options, table)) if large else (table, options)
    if init != "auto":
        params, history, n_before = make(first, init, key=key), None, 0
    else:
        starts = [make(first, "smart_start")] + [make(first, "peaks", peak=j + 1) for j in range(starting.N_PEAKS)]
        stacked = Params(*(np.stack(leaf) for leaf in zip(*starts)))
        n_before = min(_WARM_UP, options[-1])
        kept = {name: static[name] for name in ("kernel", "m_step")}
        params, history = _best_start(stacked, first, *of_first[:-1], **kept, n_steps=n_before)
    result = _continue(params, first, of_first, static, history, n_before)
    return _continue(result.params, table, options, static, coarse=first) if large else result


def _for_rounded(options: tuple, table: LagTable) -> tuple:
    """Bound sigma by the spread within a step of rounded delays: below, the kernel would collapse on one step."""
    tol, m_bounds, sigma_min, max_iter = options
    width = float(np.ravel(table.upper - table.lower)[0])
    floor = starting.sigma_floor(table, None if np.isnan(sigma_min) else sigma_min)
    return tol, m_bounds, max(floor, width / _COARSE_BINS / np.sqrt(12)), max_iter


def _continue(
    params: Params,
    table: LagTable,
    options: tuple,
    static: dict,
    history: Any | None = None,
    n_before: int = 0,
    coarse: LagTable | None = None,
) -> EMResult:
    """Fit from given parameters, of which `n_before` iterations are already on record."""
    shape = table.weight.shape[:-1]
    if history is None or n_before == 0:
        history = np.full((*shape, 1), np.nan, table.lag.dtype)
    return _fit(params, history, np.int32(n_before), table, *options, coarse, **static)


def _check_m_bounds(m_bounds: Any) -> tuple[float, float]:
    if np.shape(m_bounds) != (2,):
        raise ValueError(f"m_bounds: expected a pair (low, high), got {m_bounds}")
    low, high = (float(value) for value in m_bounds)
    if not low < high:
        raise ValueError(f"m_bounds: expected (low, high) with low < high, got ({low:g}, {high:g})")
    return low, high


def _check_start(init: Params, table: LagTable, kernel: str, bounds: Any, sigma_min: Any) -> Params:
    """Validate the values that can be seen, and move all within their bounds and off the absorbing zeros."""
    if not any(isinstance(value, jax.core.Tracer) for value in init):
        check_params(init, table.n_drivers, name="init")
    check_shapes(init, table.weight.shape[:-1], table.n_drivers, name="init")
    return _project(Params(*init), table, bounds, sigma_min, kernel=kernel)


@partial(jax.jit, static_argnames="kernel")
def _project(params: Params, table: LagTable, m_bounds: Any, sigma_min: Any, *, kernel: str) -> Params:
    def project(params: Params, table: LagTable) -> Params:
        bounds = _bounds(table, m_bounds, sigma_min, kernels.get(kernel))
        rate = (table.weight.sum() + table.n_outside) / table.duration
        floor = jnp.where(table.n_exposed > 0, 1 / jnp.maximum(table.n_exposed, 1), 0)
        return Params(
            jnp.maximum(params.baseline, 1e-6 * rate),
            jnp.where(table.n_exposed > 0, jnp.where(params.alpha > 0, params.alpha, floor), 0),
            jnp.clip(params.m, bounds.m_low, bounds.m_high),
            jnp.clip(params.sigma, bounds.sigma_low, bounds.sigma_high),
        )

    params = Params(*(jnp.asarray(value, table.lag.dtype) for value in params))
    return project(params, table) if table.n_atoms is None else jax.vmap(project)(params, unbatched(table))


def _without_drivers(table: LagTable, max_iter: int) -> EMResult:
    """Fit of a homogeneous process: the mean rate."""
    atoms = table.weight.shape[:-1]
    none = jnp.zeros((*atoms, 0), table.lag.dtype)
    params = Params(jnp.asarray(table.n_outside / table.duration), none, none, none)
    value = negative_log_likelihood(params, table)
    history = jnp.full((*atoms, max_iter + 1), jnp.nan, table.lag.dtype).at[..., 0].set(value)
    return EMResult(params, value, jnp.zeros(atoms, int), jnp.ones(atoms, bool), history)
