"""The likelihood, intensity and compensator against brute force, quadrature and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from gyri.dripp import Params, lag_table, negative_log_likelihood, simulate
from gyri.dripp.model import compensator, intensity
from gyri.dripp.optim import em_step
from gyri.numerics.testing import check_jit, check_lowers, check_no_recompilation, check_vmap

KERNELS = ("truncated_gaussian", "raised_cosine", "truncated_exponential")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("edge", [True, False])
def test_nll_equals_brute_force(x64, oracle, problem, kernel, edge):
    table = lag_table(problem.events, problem.drivers, **problem.window, edge=edge)
    value = negative_log_likelihood(problem.params, table, kernel=kernel)
    expected = oracle.nll(kernel, problem.events, problem.drivers, problem.params, **problem.window, edge=edge)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_compensator_equals_quadrature_of_the_intensity(x64, problem, kernel):
    window = {"lower": 0.03, "upper": 0.8, "kernel": kernel}
    ends = np.array([2.0, 3.1, 4.0])
    drivers = [d[d < 8] for d in problem.drivers]
    rate = lambda t: intensity(np.array([t]), drivers, problem.params, **window)[0]
    kinks = np.concatenate(
        [
            d + shift
            for d in drivers
            for shift in (
                0.03,
                0.8,
                *(problem.params.m - problem.params.sigma),
                *(problem.params.m + problem.params.sigma),
            )
        ]
    )
    expected = []
    for end in ends:
        points = np.unique(kinks[(kinks > 2.0) & (kinks < end)])
        pieces = zip([2.0, *points], [*points, end])
        expected.append(sum(quad(rate, a, b, epsabs=1e-11, epsrel=1e-11)[0] for a, b in pieces))
    integral = compensator(ends, drivers, problem.params, **window, t_start=2.0)
    np.testing.assert_allclose(integral, expected, rtol=1e-8, atol=1e-10)


def test_compensator_at_the_end_is_the_expected_count_of_the_likelihood(x64, problem):
    """A lag that equals the window's bounds up to rounding must count once, whichever way it rounds."""
    drivers = [np.arange(0.0, 120.0, 0.1), np.arange(0.05, 120.0, 0.1)]
    ends = np.concatenate([drivers[0][40:1100] + 0.03, drivers[1][40:1100] + 0.8])
    window = {"lower": 0.03, "upper": 0.8}
    integral = compensator(ends, drivers, problem.params, **window)
    for i in range(0, ends.size, 200):
        table = lag_table([], drivers, **window, t_stop=ends[i])
        np.testing.assert_allclose(integral[i], negative_log_likelihood(problem.params, table), rtol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_intensity_equals_brute_force_in_any_order(x64, oracle, problem, kernel):
    t = np.random.default_rng(0).permutation(np.concatenate([problem.events, np.linspace(0, 125, 50)]))
    rate = intensity(t, problem.drivers, problem.params, lower=0.03, upper=0.8, kernel=kernel)
    expected = oracle.intensity(kernel, t, problem.drivers, problem.params, 0.03, 0.8)
    np.testing.assert_allclose(rate, expected, rtol=1e-10)
    batch = Params(*(np.stack([leaf, 2 * leaf]) for leaf in problem.params))
    both = intensity(t, problem.drivers, batch, lower=0.03, upper=0.8, kernel=kernel)
    np.testing.assert_allclose(both[0], expected, rtol=1e-10)
    assert both.shape == (2, t.size)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_matches_central_differences(x64, problem, kernel):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    fun = jax.jit(lambda x: negative_log_likelihood(Params(x[0], x[1:3], x[3:5], x[5:]), table, kernel=kernel))
    x = np.concatenate([np.ravel(leaf) for leaf in problem.params])
    step = 1e-5
    numeric = np.array([(fun(x + step * e) - fun(x - step * e)) / (2 * step) for e in np.eye(7)])
    gradient = np.asarray(jax.grad(fun)(x))
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-6 * np.abs(numeric).max())
    hessian = jax.hessian(fun)(x)
    numeric = np.array([(jax.grad(fun)(x + step * e) - jax.grad(fun)(x - step * e)) / (2 * step) for e in np.eye(7)])
    np.testing.assert_allclose(hessian, numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())


def test_long_tables_are_summed_in_blocks_with_the_same_result(x64, oracle):
    rng = np.random.default_rng(0)
    drivers = [np.sort(rng.uniform(0, 3000, 20_000))]
    events = np.sort(rng.uniform(0, 3000, 40_000))
    table = lag_table(events, drivers, lower=0.0, upper=0.1, t_stop=3000.0)
    assert table.weight.size > 2 * 8192
    params = Params(np.float64(12.0), np.array([0.1]), np.array([0.05]), np.array([0.02]))
    short = [lag_table(part, drivers, lower=0.0, upper=0.1, t_stop=3000.0) for part in np.array_split(events, 5)]
    assert max(part.weight.size for part in short) <= 2 * 8192
    whole, grad = jax.value_and_grad(negative_log_likelihood)(params, table)
    parts = [jax.value_and_grad(negative_log_likelihood)(params, part) for part in short]
    # The compensator is counted once a part.
    empty, empty_grad = jax.value_and_grad(negative_log_likelihood)(
        params, lag_table([], drivers, lower=0.0, upper=0.1, t_stop=3000.0)
    )
    np.testing.assert_allclose(whole, sum(value for value, _ in parts) - 4 * empty, rtol=1e-12)
    for field in Params._fields:
        total = sum(getattr(g, field) for _, g in parts) - 4 * getattr(empty_grad, field)
        np.testing.assert_allclose(getattr(grad, field), total, rtol=1e-9)


def test_float32_holds_five_digits_on_a_long_recording(oracle):
    truth = Params(0.8, np.array([0.8, 0.8]), np.array([0.4, 0.4]), np.array([0.05, 0.2]))
    drivers = [np.arange(2.8, 9997.0, 2.3), np.arange(2.0, 9997.0, 1.7)]
    events = simulate(0, drivers, truth, lower=0.03, upper=0.8, t_stop=1e4)
    single = negative_log_likelihood(truth, lag_table(events, drivers, lower=0.03, upper=0.8, t_stop=1e4))
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        table = lag_table(events, drivers, lower=0.03, upper=0.8, t_stop=1e4)
        double = negative_log_likelihood(Params(*map(np.asarray, truth)), table)
    np.testing.assert_allclose(single, double, rtol=1e-5)


def test_event_without_intensity_gives_infinity_and_no_event_its_compensator(x64):
    table = lag_table([0.5], [3.0], lower=0.0, upper=0.2, t_stop=10.0)
    idle = Params(np.float64(0.0), np.array([1.0]), np.array([0.1]), np.array([0.05]))
    assert negative_log_likelihood(idle, table) == np.inf
    assert np.isfinite(negative_log_likelihood(idle._replace(baseline=np.float64(0.1)), table))
    covered = lag_table([3.1], [3.0], lower=0.0, upper=0.2, t_stop=10.0)
    value, gradient = jax.value_and_grad(negative_log_likelihood)(idle, covered)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)
    none = lag_table([], [3.0], lower=0.0, upper=0.2, t_stop=10.0)
    np.testing.assert_allclose(negative_log_likelihood(idle._replace(baseline=np.float64(0.5)), none), 6.0)


def test_likelihood_transforms_and_compiles_once(problem):
    table = lag_table(problem.events, problem.drivers, **problem.window)
    params = jax.tree.map(jnp.float32, problem.params)
    check_jit(negative_log_likelihood, params, table, rtol=1e-5)
    check_lowers(negative_log_likelihood, params, table)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf, 0.9 * leaf]), params)
    check_vmap(lambda p: negative_log_likelihood(p, table), stacked, rtol=1e-5)
    fewer = lag_table(problem.events[:-3], problem.drivers, **problem.window | {"upper": 0.79})
    check_no_recompilation(negative_log_likelihood, (params, table), (params, fewer))


def test_more_drivers_than_are_unrolled_give_the_same(x64, oracle):
    rng = np.random.default_rng(4)
    drivers = [np.sort(rng.uniform(0, 50, 20)) for _ in range(11)]
    events = np.sort(rng.uniform(0, 50, 80))
    params = Params(np.float64(0.5), rng.uniform(0.1, 1, 11), rng.uniform(0.1, 0.4, 11), rng.uniform(0.05, 0.2, 11))
    window = {"lower": 0.0, "upper": 0.5, "t_stop": 50.0}
    value = negative_log_likelihood(params, lag_table(events, drivers, **window))
    np.testing.assert_allclose(value, oracle.nll("truncated_gaussian", events, drivers, params, **window), rtol=1e-10)


@pytest.mark.parametrize("n_drivers", [1, 3])
def test_parameters_of_another_shape_than_the_table_are_refused(n_drivers):
    table = lag_table([0.3, 0.9], [[0.1, 0.6], [0.2]], lower=0.0, upper=0.5, t_stop=2.0)
    params = Params(np.array(1.0), *(np.full(n_drivers, 0.2) for _ in range(3)))
    for call in (negative_log_likelihood, jax.jit(negative_log_likelihood), em_step):
        with pytest.raises(ValueError, match=r"params\.alpha: expected shape \(2,\) with 2 drivers"):
            call(params, table)
    with pytest.raises(ValueError, match=r"params\.baseline: expected shape \(\)"):
        negative_log_likelihood(Params(np.ones(1), *(np.full((1, 2), 0.2) for _ in range(3))), table)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"t": [np.nan]}, "t:"),
        ({"t": np.ones((2, 2))}, "t:"),
        ({"drivers": [[1.0], [2.0]]}, "params.alpha"),
        ({"params": Params(0.5, np.array([-1.0]), np.array([0.1]), np.array([0.1]))}, "params.alpha"),
        ({"params": Params(0.5, np.array([1.0]), np.array([0.1]), np.array([0.0]))}, "params.sigma"),
        ({"params": Params(np.nan, np.array([1.0]), np.array([0.1]), np.array([0.1]))}, "params.baseline"),
        ({"kernel": "boxcar"}, "kernel"),
        ({"lower": 0.6}, "upper"),
    ],
)
def test_bad_input_is_refused_by_name(change, argument):
    good = {
        "t": [1.0],
        "drivers": [0.5],
        "params": Params(0.5, np.array([1.0]), np.array([0.1]), np.array([0.1])),
        "lower": 0.0,
        "upper": 0.5,
    }
    arguments = good | change
    positional = [arguments.pop(name) for name in ("t", "drivers", "params")]
    for fun in (intensity, compensator):
        with pytest.raises(ValueError, match=argument):
            fun(*positional, **arguments)
