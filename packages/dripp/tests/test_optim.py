"""EM against the paper's formulas and against an optimiser without derivatives; its monotony, corners and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from gyri.dripp import Params, em, kernels, lag_table, negative_log_likelihood, optim, simulate
from gyri.dripp.datasets import simulate_drivers
from gyri.dripp.init import initialize
from gyri.dripp.model import nll
from gyri.dripp.optim import em_step
from gyri.numerics.testing import check_lowers, check_no_recompilation

KERNELS = ("truncated_gaussian", "raised_cosine", "truncated_exponential")
FREE = {"m_bounds": (-np.inf, np.inf), "sigma_min": 1e-5}


def paper_step(oracle, events, drivers, params, lower, upper, t_stop, t_start=0.0):
    """One update of section 3.3 of the paper, with dense arrays and the normaliser as printed."""
    rate = oracle.intensity("truncated_gaussian", events, drivers, params, lower, upper)
    baseline = (params.baseline / rate).sum() / (t_stop - t_start)
    alpha, m, sigma = [], [], []
    for p, driver in enumerate(drivers):
        lag = events[:, None] - np.asarray(driver)
        density = oracle.pdf("truncated_gaussian", lag, params.m[p], params.sigma[p], lower, upper)
        q = params.alpha[p] * density / rate[:, None]
        za, zb = (lower - params.m[p]) / params.sigma[p], (upper - params.m[p]) / params.sigma[p]
        c = params.sigma[p] * np.sqrt(2 * np.pi) * (norm.cdf(zb) - norm.cdf(za))
        c_m = np.exp(-(za**2) / 2) - np.exp(-(zb**2) / 2)
        c_s = za * np.exp(-(za**2) / 2) - zb * np.exp(-(zb**2) / 2) + c / params.sigma[p]
        alpha.append(q.sum() / len(driver))
        m.append((q * lag).sum() / q.sum() - params.sigma[p] ** 2 * c_m / c)
        sigma.append(np.cbrt(c / c_s * (q * (lag - params.m[p]) ** 2).sum() / q.sum()))
    return Params(baseline, np.array(alpha), np.array(m), np.array(sigma))


def test_one_step_equals_the_formulas_of_the_paper(x64, oracle, problem):
    table = lag_table(problem.events, problem.drivers, **problem.window, edge=False)
    params = problem.params
    for _ in range(5):
        expected = paper_step(oracle, problem.events, problem.drivers, params, **problem.window)
        step = em_step(params, table, **FREE)
        for ours, theirs in zip(step, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        params = expected


def random_problem(seed):
    rng = np.random.default_rng(seed)
    lower = rng.choice([0.0, 0.05])
    width, t_stop = rng.uniform(0.2, 2.0), rng.uniform(5, 40)
    drivers = [rng.uniform(-1, t_stop, rng.integers(1, 40)) for _ in range(2)]
    parts = [rng.uniform(0, t_stop, rng.integers(1, 60))]
    for driver in drivers:
        parents = rng.choice(driver, rng.integers(0, 40))
        parts.append(parents + lower + width * rng.beta(*rng.uniform(0.5, 6, 2), parents.size))
    events = np.concatenate(parts)
    events = events[(events >= 0) & (events <= t_stop)]
    table = lag_table(events, drivers, lower=lower, upper=lower + width, t_stop=t_stop, edge=bool(rng.integers(2)))
    params = Params(
        rng.uniform(0.01, 3),
        rng.uniform(0.01, 2, 2),
        rng.uniform(lower, lower + width, 2),
        width * 10 ** rng.uniform(-2, 0, 2),
    )
    return params, table


@pytest.mark.parametrize("m_step", ["fixed_point", "exact"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_em_never_increases_the_negative_log_likelihood(x64, kernel, m_step):
    """Random problems, cut windows among them; all tables are brought to one shape, so that two programs serve all."""
    n_problems = 60 if kernel == "truncated_gaussian" else 15
    step = jax.jit(lambda p, t: em_step(p, t, kernel=kernel, m_step=m_step))
    value = jax.jit(lambda p, t: negative_log_likelihood(p, t, kernel=kernel))
    for seed in range(n_problems):
        params, table = random_problem(seed)
        table = to_shape(table, 32, 128, 64)
        params = jax.tree.map(jnp.asarray, params)
        before = value(params, table)
        for _ in range(6):
            params = step(params, table)
            after = value(params, table)
            if np.isfinite(before):
                assert after <= before + 1e-10 * (1 + abs(before)), seed
            before = after


def to_shape(table, n_slots, n_rows, n_cut):
    """Pad a table, in the way tables are padded."""
    from dataclasses import replace

    slots, rows = table.lag.shape
    assert slots <= n_slots and rows <= n_rows and table.cut.shape[1] <= n_cut
    lag = np.full((n_slots, n_rows), table.lower, table.lag.dtype)
    driver, weight = np.full((n_slots, n_rows), -1, table.driver.dtype), np.zeros(n_rows, lag.dtype)
    cut = np.broadcast_to([table.upper, table.lower], (table.n_drivers, n_cut, 2)).astype(lag.dtype)
    lag[:slots, :rows], driver[:slots, :rows], weight[:rows] = table.lag, table.driver, table.weight
    cut[:, : table.cut.shape[1]] = table.cut
    return replace(table, lag=lag, driver=driver, weight=weight, cut=cut)


@pytest.mark.parametrize("kernel", KERNELS)
def test_estimate_is_the_maximum_of_the_brute_force_likelihood(x64, oracle, problem, kernel):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    result = em(table, "smart_start", kernel=kernel)
    assert result.converged
    bounds = [(1e-9, None)] * 3 + [(0.03, 0.8)] * 2 + [(7.7e-5, 0.77)] * 2
    if kernel == "truncated_exponential":
        bounds[3:5] = [(0.03, 0.03)] * 2

    def fun(x):
        params = Params(x[0], x[1:3], x[3:5], x[5:])
        return oracle.nll(kernel, problem.events, problem.drivers, params, **problem.window)

    start = np.concatenate([np.ravel(leaf) for leaf in result.params])
    free = [i for i, (low, high) in enumerate(bounds) if low != high and start[i] > 1e-6]
    scale = np.where(start > 0, start, 1)

    low, high = [bounds[i][0] for i in free], [bounds[i][1] or np.inf for i in free]

    def part(y):
        x = start.copy()
        x[free] = np.clip(y * scale[free], low, high)
        return fun(x)

    # Away from the estimate and back, without derivatives.
    y0 = 1 + 0.05 * np.random.default_rng(0).standard_normal(len(free))
    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 20_000, "maxfev": 20_000, "adaptive": True}
    found = minimize(part, y0, method="Nelder-Mead", options=options)
    found = minimize(part, found.x, method="Nelder-Mead", options=options)
    assert result.nll <= found.fun + 1e-8
    np.testing.assert_allclose(result.nll, found.fun, rtol=1e-9)
    np.testing.assert_allclose(np.clip(found.x * scale[free], low, high), start[free], rtol=1e-5)


def test_plain_em_polish_and_exact_m_step_have_one_limit(x64, problem):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    polished = em(table, "smart_start")
    plain = em(table, "smart_start", polish=False, max_iter=3000, tol=1e-14)
    exact = em(table, "smart_start", m_step="exact")
    for other in (plain, exact):
        for ours, theirs in zip(polished.params, other.params, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_history_starts_at_the_start_falls_and_ends_with_nan(x64, problem):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    result = em(table, problem.params, polish=False, max_iter=30, tol=1e-5)
    n = int(result.n_iter)
    assert result.history.shape == (31,)
    np.testing.assert_allclose(result.history[0], negative_log_likelihood(problem.params, table), rtol=1e-12)
    np.testing.assert_allclose(result.history[n], result.nll, rtol=1e-12)
    assert np.all(np.diff(result.history[: n + 1]) <= 1e-9)
    assert np.all(np.isnan(result.history[n + 1 :]))
    assert 0 < n < 30 and result.converged
    capped = em(table, problem.params, polish=False, max_iter=3, tol=0.0)
    assert int(capped.n_iter) == 3 and not capped.converged and np.all(np.isfinite(capped.history))


def test_auto_start_escapes_where_moments_mislead(x64):
    """A narrow kernel in a window that holds the next driver events too: the moments of all delays say nothing."""
    drivers = simulate_drivers(0, 1000.0, 3.0, keep=0.6)
    truth = Params(0.8, np.array([0.8]), np.array([0.4]), np.array([0.008]))
    events = simulate(1, drivers, truth, lower=0.0, upper=5.0, t_stop=1000.0)
    table = lag_table(events, drivers, lower=0.0, upper=5.0, t_stop=1000.0)
    auto, plain = em(table), em(table, "smart_start", polish=False, max_iter=50)
    assert auto.nll <= negative_log_likelihood(Params(*map(np.asarray, truth)), table)
    assert auto.nll < plain.nll - 100
    np.testing.assert_allclose(auto.params.m, 0.4, atol=0.005)


def test_cut_windows_do_not_bias_the_estimate(x64):
    """Many driver events in the last window of a short recording: counted as seen whole, they dilute alpha."""
    window = {"lower": 0.03, "upper": 1.73, "t_stop": 60.0}
    truth = Params(0.6, np.array([1.2]), np.array([0.6]), np.array([0.2]))
    rng = np.random.default_rng(0)
    drivers = np.sort(np.concatenate([rng.uniform(0, 58, 60), rng.uniform(59.0, 60, 40)]))
    events = [simulate(seed, drivers, truth, **window) for seed in range(12)]
    corrected, naive = (
        np.mean(em(lag_table(events, drivers, **window, edge=edge), "smart_start").params.alpha)
        for edge in (True, False)
    )
    assert abs(corrected - 1.2) < 0.12
    assert naive < 0.9


def test_atoms_of_a_batch_are_fitted_as_if_alone(x64):
    rng = np.random.default_rng(0)
    drivers = {"a": np.arange(1.0, 200.0, 1.3), "b": np.arange(1.5, 200.0, 1.9)}
    window = {"lower": 0.03, "upper": 0.8, "t_stop": 200.0}
    events = []
    for k in range(4):
        truth = Params(0.5, np.array([0.3 * k, 0.5]), np.array([0.2, 0.4]), np.array([0.05, 0.1]))
        events.append(simulate(k, drivers, truth, **window))
    events += [np.empty(0), rng.uniform(0, 200, 1)]
    batch = lag_table(events, drivers, **window)
    together = em(batch)
    for k, sequence in enumerate(events):
        table = lag_table(sequence, drivers, **window)
        alone = em(to_shape(table, *batch.lag.shape[1:], batch.cut.shape[2]))
        for ours, theirs in zip(together.params, alone.params, strict=True):
            np.testing.assert_allclose(ours[k], theirs, atol=1e-8)
        np.testing.assert_allclose(together.nll[k], alone.nll, rtol=1e-10)


def test_idle_driver_is_pruned_and_reports_defaults(x64):
    """No event lies in any of the second driver's windows, and its alpha ends at exactly 0."""
    first, second = np.arange(1.0, 100.0, 2.0), np.arange(0.5, 100.0, 2.0)
    events = first + 0.2 + 0.02 * np.sin(first)
    table = lag_table(events, [first, second], lower=0.0, upper=0.6, t_stop=101.0)
    params = em(table).params
    assert params.alpha[1] == 0
    np.testing.assert_allclose([params.m[1], params.sigma[1]], [0.3, 0.95 * 0.6 / 4])
    np.testing.assert_allclose(params.alpha[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(params.baseline, 0.0, atol=1e-9)


@pytest.mark.parametrize("drivers", [None, [], {}])
def test_without_drivers_the_rate_is_the_mean_rate(drivers):
    result = em(lag_table([1.0, 2.0, 7.0], drivers, lower=0.0, upper=0.5, t_stop=10.0))
    np.testing.assert_allclose(result.params.baseline, 0.3, rtol=1e-6)
    assert result.params.alpha.shape == result.params.m.shape == result.params.sigma.shape == (0,)
    np.testing.assert_allclose(result.nll, 3 - 3 * np.log(0.3), rtol=1e-5)
    assert result.converged
    batch = em(lag_table([[1.0], []], drivers, lower=0.0, upper=0.5, t_stop=10.0))
    np.testing.assert_allclose(batch.params.baseline, [0.1, 0.0])


CORNERS = {
    "no event": ([], [[1.0, 2.0], [1.5]]),
    "empty driver": ([1.0, 2.0], [[], [0.9]]),
    "only empty drivers": ([1.0, 2.0], [[], []]),
    "one of each": ([1.2], [[1.0], [1.1]]),
    "lag of exactly 0": ([1.0, 2.0, 3.0], [[1.0, 2.0, 5.0], [7.0]]),
    "drivers cover all": (np.linspace(0.1, 9.9, 30), [np.arange(-1.0, 10.0, 0.1), [3.0]]),
    "all events in windows": (np.arange(1.2, 9.0, 1.0), [np.arange(1.0, 9.0, 1.0), [1.0]]),
    "duplicates": ([1.2, 1.2, 1.2, 5.0], [[1.0], [4.8, 4.8]]),
    "same driver twice": (np.arange(1.2, 9.0, 0.5), [np.arange(1.0, 9.0), np.arange(1.0, 9.0)]),
    "every driver too late": ([1.0], [[9.99, 10.0, 11.0], [9.995]]),
}


def test_corner_cases_end_finite_within_their_bounds():
    for case, (events, drivers) in CORNERS.items():
        table = lag_table(events, drivers, lower=0.0, upper=0.5, t_stop=10.0)
        result = em(to_shape(table, 8, 32, 16))
        params = result.params
        assert all(np.all(np.isfinite(leaf)) for leaf in params), case
        assert np.isfinite(result.nll), case
        assert result.converged, case
        assert np.all(params.alpha >= 0), case
        assert params.baseline >= 0, case
        assert np.all((params.m >= 0) & (params.m <= 0.5)), case
        assert np.all((params.sigma >= 5e-5 * (1 - 1e-6)) & (params.sigma <= 0.5 * (1 + 1e-6))), case
        if case == "no event":
            assert params.baseline == 0
            assert np.all(params.alpha == 0)
            assert result.nll == 0
        if "empty driver" in case:
            assert params.alpha[0] == 0
        if case == "only empty drivers":
            np.testing.assert_allclose(params.baseline, 0.2, rtol=1e-6)


def test_starts_lie_within_their_bounds_and_random_ones_follow_the_key(problem):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    for method in ("smart_start", "peaks", "random"):
        start = initialize(table, method, key=0, m_bounds=(0.1, 0.4), sigma_min=0.06)
        assert start.baseline > 0 and np.all(start.alpha > 0)
        assert np.all((start.m >= np.float32(0.1)) & (start.m <= np.float32(0.4)))
        assert np.all((start.sigma >= np.float32(0.06)) & (start.sigma <= 0.77 * (1 + 1e-6)))
    again, other = (initialize(table, "random", key=key) for key in (0, 1))
    np.testing.assert_array_equal(again.m, initialize(table, "random", key=jax.random.key(0)).m)
    assert np.all(again.m != other.m)
    peaks = [float(initialize(table, "peaks", peak=j).m[0]) for j in (1, 2, 3)]
    assert len(set(peaks)) == 3


def test_smart_start_is_the_excess_over_the_baseline(x64, problem):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    start = initialize(table, "smart_start")
    lower, upper, t0, t1 = (problem.window[name] for name in ("lower", "upper", "t_start", "t_stop"))
    # The union of windows on a fine grid of time.
    time = np.linspace(t0, t1, 240_001)
    inside = np.zeros(time.size, bool)
    for driver in problem.drivers:
        for s in driver:
            inside |= (time >= s + lower) & (time <= s + upper)
    n_outside = sum(
        all(not np.any((t - d >= lower) & (t - d <= upper)) for d in problem.drivers) for t in problem.events
    )
    free = (t1 - t0) * np.mean(~inside)
    np.testing.assert_allclose(start.baseline, n_outside / free, rtol=1e-2)
    for p, driver in enumerate(problem.drivers):
        lags = np.concatenate([(t - driver)[(t - driver >= lower) & (t - driver <= upper)] for t in problem.events])
        exposed = np.sum((t1 - driver > lower) & (t0 - driver < upper))
        expected = max(lags.size / exposed - n_outside / free * (upper - lower), 1 / exposed)
        np.testing.assert_allclose(start.alpha[p], expected, rtol=2e-2)
        np.testing.assert_allclose([start.m[p], start.sigma[p]], [lags.mean(), lags.std()], rtol=1e-9)


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize("alpha", [[0.5, 0.8], [0.0, 0.8]])
def test_score_is_the_gradient_of_the_likelihood(x64, problem, edge, alpha):
    params, kernel = problem.params._replace(alpha=np.array(alpha)), kernels.get("truncated_gaussian")
    table = lag_table(problem.events, problem.drivers, **problem.window, edge=edge)
    value, ours = optim.gaussian_value_and_score(params, table, kernel)
    expected_value, expected = jax.value_and_grad(lambda p: nll(p, table, kernel))(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    for name, a, b in zip(Params._fields, ours, expected, strict=True):
        used = params.alpha > 0 if name == "alpha" else ...  # an idle driver's alpha is never asked for
        np.testing.assert_allclose(a[used], b[used], rtol=1e-9, atol=1e-9, err_msg=name)


def table_of_many_rows(sigma):
    """More rows than the limit: a fit goes through rounded delays, and must not end there."""
    drivers = np.cumsum(np.random.default_rng(0).uniform(0.6, 1.0, 60_000))
    truth = Params(0.5, np.array([1.2]), np.array([0.3]), np.array([sigma]))
    t_stop = float(drivers[-1] + 1)
    events = simulate(1, drivers, truth, lower=0.0, upper=0.5, t_stop=t_stop)
    table = lag_table(events, drivers, lower=0.0, upper=0.5, t_stop=t_stop)
    assert table.weight.size > 50_000
    return table


def test_fit_of_many_rows_ends_at_the_maximum_of_the_exact_table(x64):
    table = table_of_many_rows(0.05)
    result = em(table, "smart_start")
    assert result.converged
    gradient = jax.grad(negative_log_likelihood)(result.params, table)
    curvature = table.n_events  # of order n in every parameter, in its own unit
    for leaf, value in zip(gradient, result.params, strict=True):
        assert np.all(np.abs(leaf * value) <= 1e-7 * curvature)


def test_fit_of_many_rows_finds_a_kernel_narrower_than_the_rounding(x64):
    table = table_of_many_rows(5e-5)  # the rounding's step is 2.4e-4 s
    result = em(table, sigma_min=1e-6)
    assert result.converged
    np.testing.assert_allclose(result.params.sigma, 5e-5, rtol=0.02)
    gradient = jax.grad(negative_log_likelihood)(result.params, table)
    units = result.params._replace(m=result.params.sigma)
    for leaf, unit in zip(gradient, units, strict=True):
        # The curvature in these units is of order n: a ten-thousandth of a standard error.
        assert np.all(np.abs(leaf * unit) <= 1e-4 * np.sqrt(table.n_events))


@pytest.mark.parametrize("m_bounds", [0.1, (0.1, 0.2, 0.3), (0.2, 0.1)])
def test_bounds_are_a_pair(m_bounds):
    with pytest.raises(ValueError, match="m_bounds: expected"):
        optim._check_m_bounds(m_bounds)


def test_options_and_few_more_events_compile_nothing(problem):
    events = problem.events

    def fit(n, max_iter, sigma_min, m_bounds):
        table = lag_table(events[:n], problem.drivers, **problem.window)
        return em(table, max_iter=max_iter, sigma_min=sigma_min, m_bounds=m_bounds)

    fit(len(events), 400, None, None)
    n_programs = optim._fit._cache_size(), optim._best_start._cache_size()
    assert fit(len(events) - 1, 390, 1e-3, (0.0, 1.0)).history.shape == (391,)
    assert (optim._fit._cache_size(), optim._best_start._cache_size()) == n_programs


def test_em_under_jit_lowers_everywhere_and_compiles_once(problem):
    params = jax.tree.map(jnp.float32, problem.params)
    table = lag_table(problem.events, problem.drivers, **problem.window)
    fewer = lag_table(problem.events[:-4], problem.drivers, **problem.window | {"upper": 0.79})
    fit = lambda params, table: em(table, params, max_iter=60)
    np.testing.assert_allclose(jax.jit(fit)(params, table).params.m, fit(params, table).params.m, rtol=1e-5)
    check_lowers(fit, params, table)
    check_no_recompilation(fit, (params, table), (params, fewer))


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"kernel": "boxcar"}, "kernel"),
        ({"init": "guess"}, "init"),
        ({"init": "random"}, "key"),
        ({"m_step": "newton"}, "m_step"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"init": Params(-1.0, np.ones(2), np.ones(2), np.ones(2))}, "init.baseline"),
        ({"init": Params(1.0, -np.ones(2), np.ones(2), np.ones(2))}, "init.alpha"),
        ({"init": Params(1.0, np.ones(2), np.ones(2), np.zeros(2))}, "init.sigma"),
        ({"init": Params(1.0, np.ones(2), np.full(2, np.nan), np.ones(2))}, "init.m"),
        ({"init": Params(1.0, np.ones(3), np.ones(3), np.ones(3))}, "init.alpha"),
        ({"init": Params(np.ones(2), np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))}, "init"),
    ],
)
def test_bad_options_are_refused_by_name(problem, options, argument):
    with pytest.raises(ValueError, match=argument):
        em(lag_table(problem.events, problem.drivers, **problem.window), **options)
