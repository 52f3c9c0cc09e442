import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap
from gyri.saba import hypergradient, inner_solve, problems, value_function
from gyri.saba.descent import descend


@pytest.fixture
def quadratic(x64):
    return problems.quadratic(4, n=80, m=60, p=7, d=4)


@pytest.fixture
def logistic(x64):
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(120, 5)), rng.normal(size=5)
    y = np.where(rng.random(120) < 1 / (1 + np.exp(-X @ w)), 1, -1)
    return problems.logistic_regularisation(X[:80], y[:80], X[80:], y[80:])


def pieces(problem):
    return problem.inner_fun, problem.outer_fun, problem.inner_data, problem.outer_data


@pytest.mark.parametrize(("method", "rtol"), [("direct", 1e-9), ("cg", 1e-8)])
def test_hypergradient_of_quadratics(method, rtol, quadratic):
    inner, outer, *data = pieces(quadratic)
    x = quadratic.x0 + 0.7
    out = hypergradient(inner, outer, quadratic.inner_solution(x), x, *data, method=method, tol=1e-12)
    np.testing.assert_allclose(out.grad, quadratic.gradient(x), rtol=rtol)
    np.testing.assert_allclose(out.value, quadratic.value(x), rtol=1e-12)
    assert out.residual <= 1e-11
    fixed = hypergradient(inner, outer, quadratic.inner_solution(x), x, *data, method="fixed", v0=out.v)
    np.testing.assert_allclose(fixed.grad, out.grad, rtol=1e-12)


def test_neumann_is_the_partial_sum_and_unrolled_is_neumann(quadratic):
    inner, outer, *data = pieces(quadratic)
    x = quadratic.x0 + 0.7
    z, step = quadratic.inner_solution(x), 0.5
    A = np.asarray(jax.hessian(inner)(z, x, data[0]))
    r, s = (np.asarray(g) for g in jax.grad(outer, (0, 1))(z, x, data[1]))
    C = np.asarray(jax.jacobian(jax.grad(inner, 1))(z, x, data[0]))
    for n in (1, 2, 15):
        v = -step * sum(np.linalg.matrix_power(np.eye(7) - step * A, q) @ r for q in range(n))
        out = hypergradient(inner, outer, z, x, *data, method="neumann", num_steps=n, step_size=step)
        np.testing.assert_allclose(out.v, v, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(out.grad, s + C @ v, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(out.residual, np.linalg.norm(A @ v + r) / np.linalg.norm(r), rtol=1e-8)
        unrolled = hypergradient(inner, outer, z, x, *data, method="unrolled", num_steps=n, step_size=step)
        np.testing.assert_allclose(unrolled.grad, out.grad, rtol=1e-10, atol=1e-13)
        assert unrolled.v is None
        assert np.isnan(unrolled.residual)


def test_damping_is_added_to_the_hessian(quadratic):
    inner, outer, *data = pieces(quadratic)
    x, z = quadratic.x0, quadratic.z0
    A = np.asarray(jax.hessian(inner)(z, x, data[0]))
    r = np.asarray(jax.grad(outer)(z, x, data[1]))
    for method in ("direct", "cg"):
        out = hypergradient(inner, outer, z, x, *data, method=method, damping=0.3, tol=1e-12)
        np.testing.assert_allclose(out.v, -np.linalg.solve(A + 0.3 * np.eye(7), r), rtol=1e-9)


@pytest.mark.parametrize("method", ["newton", "lbfgs", "gd"])
def test_inner_solve_finds_the_minimiser(method, logistic):
    inner, _, data, _ = pieces(logistic)
    z = inner_solve(inner, logistic.z0, logistic.x0, data, method=method, tol=1e-7, maxiter=2000)
    assert float(jnp.linalg.norm(jax.grad(inner)(z, logistic.x0, data))) <= 1e-7


def test_gradient_of_the_value_function(logistic):
    inner, outer, *data = pieces(logistic)
    value = lambda x: value_function(inner, outer, logistic.z0, x, *data, tol=1e-12)[0]
    gradient = jax.grad(value)(logistic.x0)
    for i in range(5):
        e = 1e-5 * np.eye(5)[i]
        difference = (value(logistic.x0 + e) - value(logistic.x0 - e)) / 2e-5
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-6, atol=1e-9)
    direct = hypergradient(
        inner,
        outer,
        value_function(inner, outer, logistic.z0, logistic.x0, *data)[1],
        logistic.x0,
        *data,
        method="direct",
    )
    np.testing.assert_allclose(gradient, direct.grad, rtol=1e-7)
    with_aux = jax.grad(value_function, argnums=3, has_aux=True)(inner, outer, logistic.z0, logistic.x0, *data)
    np.testing.assert_allclose(with_aux[0], gradient, rtol=1e-7)


def test_derivative_in_the_data(logistic):
    inner, _, data, _ = pieces(logistic)
    solve = lambda X: inner_solve(inner, logistic.z0, logistic.x0, {**data, "X": X}, tol=1e-12).sum()
    gradient = jax.grad(solve)(data["X"])
    e = np.zeros(data["X"].shape)
    e[3, 2] = 1e-5
    difference = (solve(data["X"] + e) - solve(data["X"] - e)) / 2e-5
    np.testing.assert_allclose(gradient[3, 2], difference, rtol=1e-5)


def test_value_function_of_quadratics_under_jit_and_vmap(quadratic):
    inner, outer, *data = pieces(quadratic)
    value = lambda x: value_function(inner, outer, quadratic.z0, x, *data)[0]
    x = jnp.stack([quadratic.x0, quadratic.x0 + 1, quadratic.x0 - 2])
    np.testing.assert_allclose(jax.vmap(value)(x), [quadratic.value(row) for row in x], rtol=1e-10)
    check_vmap(jax.grad(value), x, rtol=1e-8)
    check_jit(value, x[1], rtol=1e-10)


def test_second_calls_compile_nothing(logistic):
    inner, outer, *data = pieces(logistic)
    z, x = logistic.z0, logistic.x0
    calls = [
        *(lambda x, m=m: inner_solve(inner, z, x, data[0], method=m, tol=1e-3) for m in ("newton", "lbfgs", "gd")),
        *(lambda x, m=m: hypergradient(inner, outer, z, x, *data, method=m).grad for m in ("direct", "cg")),
        *(
            lambda x, m=m: hypergradient(inner, outer, z, x, *data, method=m, num_steps=3, step_size=0.1).grad
            for m in ("neumann", "unrolled")
        ),
        lambda x: hypergradient(inner, outer, z, x, *data, method="fixed", v0=z).grad,
        lambda x: value_function(inner, outer, z, x, *data),
        lambda x: jax.grad(value_function, argnums=3, has_aux=True)(inner, outer, z, x, *data),
    ]
    for call in calls:
        check_no_recompilation(call, (x,), (x + 0.1,), jit=False)


def test_functions_and_their_data_are_let_go(logistic):
    inner, outer, *data = pieces(logistic)
    mine = lambda z, x, batch: inner(z, x, data[0])
    yours = lambda z, x, batch: outer(z, x, data[1])
    value_function(mine, yours, logistic.z0, logistic.x0)
    hypergradient(mine, yours, logistic.z0, logistic.x0)
    refs = [weakref.ref(mine), weakref.ref(yours)]
    del mine, yours
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_a_bound_method_counts_as_its_object(x64):
    class Model:
        def __init__(self, target):
            self.target = target

        def loss(self, z, x, batch):
            return jnp.sum((z - self.target * x) ** 2)

    model, x = Model(2.0), jnp.ones(3)
    solve = lambda x: inner_solve(model.loss, x, x)
    check_no_recompilation(solve, (x,), (x + 1,), jit=False)
    np.testing.assert_allclose(solve(x), 2 * x)
    np.testing.assert_allclose(inner_solve(Model(3.0).loss, x, x), 3 * x)


def test_many_variables_take_conjugate_gradients(x64):
    key = jax.random.key(0)
    rows = jax.random.normal(key, (200, 90)) / 10

    def fun(z):
        return jnp.mean(jnp.logaddexp(0, rows @ z["a"])) + 0.05 * jnp.sum((z["a"] - 1) ** 2)

    z, n_calls = descend("newton", fun, {"a": jnp.zeros(90)}, tol=1e-9, max_iter=50)
    assert float(jnp.linalg.norm(jax.grad(fun)(z)["a"])) <= 1e-9
    assert n_calls < 200


def test_single_precision_ends_where_rounding_does():
    rows = jax.random.normal(jax.random.key(0), (50, 4))
    fun = lambda z: jnp.mean(jnp.logaddexp(0, rows @ z)) + 0.1 * jnp.sum(z**2)
    for method in ("newton", "newton-cg", "lbfgs", "gd"):
        z, _ = descend(method, fun, jnp.zeros(4), tol=0.0, max_iter=10_000)
        assert float(jnp.linalg.norm(jax.grad(fun)(z))) < 1e-3
        assert z.dtype == jnp.float32


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_types_follow_the_variables(dtypes, quadratic):
    inner, outer, *data = pieces(quadratic)
    z, x = quadratic.z0.astype(dtypes[0]), quadratic.x0.astype(dtypes[1])
    for method in ("newton", "lbfgs", "gd"):
        assert inner_solve(inner, z, x, data[0], method=method, tol=1e-3).dtype == dtypes[0]
    out = hypergradient(inner, outer, z, x, *data)
    assert (out.v.dtype, out.grad.dtype) == dtypes


def test_bad_input(logistic):
    inner, outer, *data = pieces(logistic)
    args = (inner, outer, logistic.z0, logistic.x0, *data)
    with pytest.raises(ValueError, match="method: expected one of 'direct'"):
        hypergradient(*args, method="exact")
    with pytest.raises(ValueError, match="step_size: expected a number for method 'neumann', got None"):
        hypergradient(*args, method="neumann", num_steps=3)
    with pytest.raises(ValueError, match="num_steps: expected a number for method 'unrolled', got None"):
        hypergradient(*args, method="unrolled", step_size=0.1)
    with pytest.raises(ValueError, match="v0: expected a pytree like z for method 'fixed', got None"):
        hypergradient(*args, method="fixed")
    with pytest.raises(ValueError, match="v0: expected shapes"):
        hypergradient(*args, v0=jnp.zeros(3))
    with pytest.raises(ValueError, match="damping: expected a number >= 0"):
        hypergradient(*args, damping=-1.0)
    for options in ({"method": "unrolled", "num_steps": 3, "step_size": 0.1}, {"method": "fixed", "v0": logistic.z0}):
        with pytest.raises(
            ValueError, match="damping: expected 0 for method .*, which solves no linear system, got 10"
        ):
            hypergradient(*args, **options, damping=10.0)
    with pytest.raises(ValueError, match="method: expected one of 'newton'"):
        inner_solve(inner, logistic.z0, logistic.x0, data[0], method="sgd")
    with pytest.raises(ValueError, match="z0: expected finite"):
        inner_solve(inner, logistic.z0 * jnp.nan, logistic.x0, data[0])
    with pytest.raises(ValueError, match="maxiter: expected an integer >= 1"):
        inner_solve(inner, logistic.z0, logistic.x0, data[0], maxiter=0)
    with pytest.raises(TypeError, match="x: expected floating numbers"):
        inner_solve(inner, logistic.z0, jnp.zeros(5, int), data[0])
