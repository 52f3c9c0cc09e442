"""First- and second-order minimisers against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from gyri.numerics.optim import damped_newton


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def poisson_loss(x, design, counts):
    return jnp.sum(jnp.exp(design @ x) - counts * (design @ x))


def poisson_problem(seed, n=60, p=4):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n, p)) * [1.0, 1.0, 10.0, 0.1][:p]
    return design, rng.poisson(np.exp(design @ [0.3, -0.5, 0.02, 1.0][:p])).astype(float)


@pytest.mark.parametrize("box", [(-np.inf, np.inf), (-0.2, 0.2), (0.1, np.inf)])
def test_damped_newton_agrees_with_scipy_in_a_box(x64, box):
    design, counts = poisson_problem(0)
    oracle = scipy.optimize.minimize(
        lambda x: np.sum(np.exp(design @ x) - counts * (design @ x)),
        np.full(4, 0.15),
        jac=lambda x: design.T @ (np.exp(design @ x) - counts),
        method="L-BFGS-B",
        bounds=[box] * 4,
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    result = damped_newton(
        lambda x: poisson_loss(x, design, counts), jnp.full(4, 0.15), lower=box[0], upper=box[1], tol=1e-14
    )
    assert result.converged
    assert result.value <= oracle.fun + 1e-9
    np.testing.assert_allclose(result.x, oracle.x, atol=1e-5)
    hessian = design.T * np.exp(design @ np.asarray(result.x)) @ design
    np.testing.assert_allclose(result.hessian, hessian, rtol=1e-9)


def test_damped_newton_solves_a_nonconvex_valley_from_saddles_and_hills(dtype):
    for x0 in ([-1.2, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, -3.0, 1.5]):
        result = damped_newton(rosenbrock, jnp.array(x0, dtype), tol=1e-10, max_iter=100)
        assert result.converged
        assert result.x.dtype == dtype
        np.testing.assert_allclose(result.x, 1, atol=1e-3)


def test_damped_newton_leaves_frozen_coordinates_alone(x64):
    lower, upper = jnp.array([-jnp.inf, 0.7]), jnp.array([jnp.inf, 0.7])
    result = damped_newton(rosenbrock, jnp.array([-1.0, 0.0]), lower=lower, upper=upper, tol=1e-12)
    oracle = scipy.optimize.minimize_scalar(
        lambda a: 100 * (0.7 - a**2) ** 2 + (1 - a) ** 2, bounds=(-2, 0), method="bounded", options={"xatol": 1e-10}
    )
    assert result.x[1] == 0.7
    assert result.converged
    np.testing.assert_allclose(result.x[0], oracle.x, atol=1e-6)


def test_damped_newton_treats_nan_and_infinity_as_refusals(dtype):
    barrier = lambda x: jnp.sum(3 * x - jnp.log(x))  # NaN for x < 0, infinite at 0; minimum at 1 / 3
    result = damped_newton(barrier, jnp.array([0.9, 1e-3, 5.0], dtype), tol=1e-10)
    assert result.converged
    np.testing.assert_allclose(result.x, 1 / 3, rtol=1e-3)


def test_damped_newton_says_so_when_it_cannot_start():
    result = damped_newton(lambda x: jnp.sum(jnp.log(x)), jnp.array([-1.0, 2.0]), tol=1e-6)
    assert not result.converged
    assert result.n_iter == 0
    assert result.x.tolist() == [-1.0, 2.0]


def test_damped_newton_never_moves_to_where_derivatives_are_lost():
    kink = lambda x: jnp.sum(jnp.sqrt(jnp.maximum(x, 0)))  # the minimum 0 has an infinite slope
    result = damped_newton(kink, jnp.array([0.5, 0.2]), lower=0.0, tol=1e-6)
    assert jnp.isfinite(result.x).all()
    assert result.value <= kink(jnp.array([0.5, 0.2]))


def test_damped_newton_values_never_increase_with_the_budget(x64):
    values = [damped_newton(rosenbrock, jnp.array([-1.2, 1.0]), max_iter=k, tol=0.0).value for k in (0, 1, 3, 8, 20)]
    assert (np.diff(values) <= 0).all()
    assert values[0] == rosenbrock(jnp.array([-1.2, 1.0]))


def test_damped_newton_evaluates_one_hessian_a_step_and_few_values(x64):
    calls = {"plain": 0, "derivatives": 0}

    def count(name):
        calls[name] += 1

    @jax.custom_jvp
    def counted(x):
        jax.debug.callback(lambda: count("plain"))
        return x

    @counted.defjvp
    def counted_jvp(primals, tangents):
        jax.debug.callback(lambda: count("derivatives"))
        return primals[0], tangents[0]

    result = damped_newton(lambda x: rosenbrock(counted(x)), jnp.array([0.9, 0.8]), tol=1e-12)
    jax.effects_barrier()
    assert result.converged
    assert calls["derivatives"] <= 2 * (int(result.n_iter) + 1)
    assert calls["plain"] <= 3 * int(result.n_iter) + 10
