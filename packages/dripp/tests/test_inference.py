"""Goodness of fit, tests and error bars: calibrated where theory says so, flagged where there is nothing to say."""

import jax
import numpy as np
import pytest
from scipy import stats

from gyri.dripp import Params, em, goodness_of_fit, lag_table, likelihood_ratio_test, negative_log_likelihood, simulate
from gyri.dripp.inference import bootstrap_intervals, standard_errors, wald_intervals

WINDOW = {"lower": 0.0, "upper": 0.5, "t_stop": 300.0}
DRIVER = np.cumsum(np.random.default_rng(0).uniform(0.6, 1.4, 290))
TRUTH = Params(np.float64(1.0), np.array([0.8]), np.array([0.2]), np.array([0.05]))


def test_rescaled_intervals_of_the_true_model_are_uniform_on_and_off_a_grid():
    pvalues = [goodness_of_fit(simulate(s, DRIVER, TRUTH, **WINDOW), DRIVER, TRUTH, **WINDOW).pvalue for s in range(40)]
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3
    on_grid = [np.round(simulate(s, DRIVER, TRUTH, **WINDOW) * 150) / 150 for s in range(40)]
    grid = [np.round(DRIVER * 150) / 150]
    spread = [goodness_of_fit(e[e <= 300], grid, TRUTH, **WINDOW, sfreq=150.0, key=0).pvalue for e in on_grid]
    assert stats.kstest(spread, "uniform").pvalue > 1e-3


def test_a_wrong_model_is_rejected_and_no_event_is_no_verdict():
    events = simulate(0, DRIVER, TRUTH, **WINDOW)
    wrong = TRUTH._replace(baseline=np.float64(2.0))
    assert goodness_of_fit(events, DRIVER, wrong, **WINDOW).pvalue < 1e-3
    test = goodness_of_fit([], DRIVER, TRUTH, **WINDOW)
    assert np.isnan(test.statistic) and np.isnan(test.pvalue) and test.rescaled.size == 0
    both = goodness_of_fit([events, events[:50]], DRIVER, Params(*(np.stack([x, x]) for x in TRUTH)), **WINDOW)
    assert both.statistic.shape == (2,) and both.rescaled[1].size == 50
    with pytest.raises(ValueError, match="key"):
        goodness_of_fit(events, DRIVER, TRUTH, **WINDOW, sfreq=150.0)
    with pytest.raises(ValueError, match="params"):
        goodness_of_fit([events, events], DRIVER, TRUTH, **WINDOW)


def test_standard_errors_are_the_inverse_information(x64):
    table = lag_table(simulate(0, DRIVER, TRUTH, **WINDOW), DRIVER, **WINDOW)
    params = em(table, "smart_start").params
    errors = standard_errors(params, table)
    x = np.concatenate([np.ravel(leaf) for leaf in params])
    fun = jax.jit(jax.grad(lambda x: negative_log_likelihood(Params(x[0], x[1:2], x[2:3], x[3:]), table)))
    step = 1e-5
    hessian = np.array([(fun(x + step * e) - fun(x - step * e)) / (2 * step) for e in np.eye(4)])
    expected = np.sqrt(np.diag(np.linalg.inv((hessian + hessian.T) / 2)))
    np.testing.assert_allclose(np.concatenate([np.ravel(leaf) for leaf in errors]), expected, rtol=1e-4)
    intervals = wald_intervals(params, errors, 0.9)
    z = stats.norm.ppf(0.95)
    np.testing.assert_allclose(intervals["m"], [[x[2] - z * expected[2], x[2] + z * expected[2]]], rtol=1e-4)
    ratio = np.exp(z * expected[0] / x[0])
    np.testing.assert_allclose(intervals["baseline"], [x[0] / ratio, x[0] * ratio], rtol=1e-4)


def test_errors_are_nan_on_a_bound_for_idle_drivers_and_along_flat_directions():
    events = simulate(0, DRIVER, TRUTH, **WINDOW)
    idle = np.array([299.9, 299.95])
    table = lag_table(events, [DRIVER, idle], **WINDOW)
    params = Params(np.float64(1.0), np.array([0.8, 0.0]), np.array([0.2, 0.25]), np.array([0.05, 0.1]))
    errors = standard_errors(params, table)
    assert np.isfinite(errors.alpha[0]) and np.isnan(errors.alpha[1]) and np.isnan(errors.m[1])
    at_bound = params._replace(m=np.array([0.0, 0.25]), sigma=np.array([0.5, 0.1]))
    errors = standard_errors(at_bound, table)
    assert np.isnan(errors.m[0]) and np.isnan(errors.sigma[0]) and np.isfinite(errors.alpha[0])
    twice = lag_table(events, [DRIVER, DRIVER], **WINDOW)
    same = Params(np.float64(1.0), np.full(2, 0.4), np.full(2, 0.2), np.full(2, 0.05))
    errors = standard_errors(same, twice)
    assert np.all(np.isnan(errors.alpha)) and np.isfinite(errors.baseline)


@pytest.mark.parametrize("method", ["shift", "bootstrap", "chi2"])
def test_likelihood_ratio_tells_a_driver_that_acts_from_one_that_does_not(method):
    rng = np.random.default_rng(1)
    idle = np.sort(rng.uniform(0, 300, 200))
    events = simulate(2, DRIVER, TRUTH, **WINDOW)
    test = likelihood_ratio_test(
        events, {"acts": DRIVER, "idle": idle}, **WINDOW, method=method, n_resamples=19, key=0, init="smart_start"
    )
    assert test.pvalue[0] <= 0.05 < test.pvalue[1]
    assert np.all(test.statistic >= 0)
    assert test.null.shape == ((0 if method == "chi2" else 19), 2)
    if method != "chi2":
        np.testing.assert_allclose(test.pvalue, (1 + (test.null >= test.statistic).sum(0)) / 20)


def test_test_of_several_atoms_has_an_axis_for_them():
    events = [simulate(s, DRIVER, TRUTH, **WINDOW) for s in range(2)]
    test = likelihood_ratio_test(events, DRIVER, **WINDOW, n_resamples=3, init="smart_start")
    assert test.statistic.shape == test.pvalue.shape == (2, 1)
    assert test.null.shape == (3, 2, 1)


def test_bootstrap_agrees_with_the_standard_errors():
    events = simulate(4, DRIVER, TRUTH, **WINDOW)
    table = lag_table(events, DRIVER, **WINDOW)
    params = em(table, "smart_start").params
    wald = wald_intervals(params, standard_errors(params, table))
    boot = bootstrap_intervals(events, DRIVER, params, **WINDOW, n_resamples=150, key=0, init="smart_start")
    for name in Params._fields:
        width = np.ptp(np.ravel(wald[name]))
        np.testing.assert_allclose(np.ravel(boot[name]), np.ravel(wald[name]), atol=0.35 * width)
    kept = bootstrap_intervals(
        events, DRIVER, params, **WINDOW, n_resamples=10, key=0, subsample=0.8, init="smart_start"
    )
    assert kept["baseline"].shape == (2,) and kept["m"].shape == (1, 2)


def test_bootstrap_on_a_grid_whose_last_tick_rounds_past_the_end(x64):
    rng = np.random.default_rng(0)
    first, last = 5, 4445  # 5 / 150 + 4440 / 150 > 4445 / 150
    assert first / 150 + (last - first) / 150 > last / 150
    drivers = np.arange(first, last, 60) / 150
    events = np.sort(np.append(rng.integers(first + 1, last, 60), [first, *[last] * 9])) / 150
    params = em(lag_table(events, drivers, lower=0.0, upper=0.3, t_stop=last / 150, sfreq=150.0)).params
    window = {"lower": 0.0, "upper": 0.3, "t_stop": last / 150, "sfreq": 150.0}
    ends = bootstrap_intervals(events, drivers, params, **window, n_resamples=40)
    assert np.isfinite(ends["baseline"]).all()


def test_bootstrap_without_drivers():
    events = np.arange(0.5, 30.0)
    params = Params(1.0, *[np.empty(0)] * 3)
    ends = bootstrap_intervals(events, None, params, **WINDOW, n_resamples=20)
    assert ends["baseline"].shape == (2,) and ends["alpha"].shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"method": "permute"}, "method"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"kernel": "boxcar"}, "kernel"),
        ({"init": TRUTH}, "init"),
    ],
)
def test_bad_options_are_refused_by_name(change, argument):
    with pytest.raises(ValueError, match=argument):
        likelihood_ratio_test([1.0], [0.9], **WINDOW, **change)
    with pytest.raises(ValueError, match="level"):
        wald_intervals(TRUTH, TRUTH, 1.0)
    with pytest.raises(ValueError, match="subsample"):
        bootstrap_intervals([1.0], DRIVER, TRUTH, **WINDOW, subsample=2.0)


def test_interval_of_a_baseline_of_nearly_nothing_is_all_positive_numbers():
    params = TRUTH._replace(baseline=np.float64(1e-32))
    errors = Params(np.float64(0.1), *(np.array([0.01]) for _ in range(3)))
    np.testing.assert_array_equal(wald_intervals(params, errors)["baseline"], [0.0, np.inf])
