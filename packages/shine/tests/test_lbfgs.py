"""Tests of gyri.shine.lbfgs, through `minimize`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from gyri.shine import LBFGS, inverse_quality, minimize
from gyri.shine.lbfgs import empty_pairs, run

from .conftest import relative
from .test_inverse import bfgs_inverse


def logistic(n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((n, d)) * np.geomspace(0.3, 3, d), np.sign(rng.standard_normal(n))
    return lambda x: jnp.logaddexp(0, -jnp.asarray(y) * (jnp.asarray(X) @ x)).sum() + 0.5 * (x**2).sum()


def test_minimum_is_scipys(x64):
    fun = logistic()
    solution = jax.jit(lambda: minimize(fun, jnp.zeros(6), solver=LBFGS(tol=1e-9)))()
    theirs = scipy_minimize(lambda x: float(fun(x)), np.zeros(6), jac=lambda x: np.asarray(jax.grad(fun)(x)),
                            method="BFGS", options={"gtol": 1e-9})  # fmt: skip
    np.testing.assert_allclose(solution.value, theirs.x, atol=1e-8)
    assert solution.stats.converged and solution.stats.residual <= 1e-9
    assert int(solution.stats.n_evals) <= 2 * theirs.nfev


@pytest.mark.parametrize("init_scale", ["bb", "identity", 0.5])
def test_estimate_is_the_recursion_on_matrices(x64, init_scale):
    solver = LBFGS(memory=4, init_scale=init_scale, tol=1e-8)
    solution = jax.jit(lambda: minimize(logistic(), jnp.zeros(6), solver=solver))()
    G = solution.inverse
    assert int(G.rank) == 4
    order = [(int(G.head) + j) % 4 for j in range(4)]
    S, Y = np.asarray(G.S)[order], np.asarray(G.Y)[order]
    gamma = {"bb": S[-1] @ Y[-1] / (Y[-1] @ Y[-1]), "identity": 1.0}.get(init_scale, 0.5)
    assert relative(G.dense(), bfgs_inverse(S, Y, gamma)) <= 1e-10
    assert relative(G.matvec(jnp.asarray(Y[-1])), S[-1]) <= 1e-10  # the secant equation


def test_steps_meet_the_strong_wolfe_conditions(x64):
    rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    value_and_grad = jax.jit(jax.value_and_grad(rosenbrock))
    points = [jnp.array([-1.2, 1.0])]
    solve = jax.jit(lambda x, pairs: run(rosenbrock, x, pairs, 1e-8, LBFGS(max_steps=1)))
    pairs = empty_pairs(30, points[0])
    for _ in range(15):
        st = solve(points[-1], pairs)
        points.append(st.x)
        pairs = st.pairs
        (f0, g0), (f1, g1) = (value_and_grad(x) for x in points[-2:])
        s = points[-1] - points[-2]
        assert f1 <= f0 + 1e-4 * (g0 @ s)
        assert abs(g1 @ s) <= 0.9 * abs(g0 @ s)
    solution = jax.jit(lambda: minimize(rosenbrock, points[0]))()
    np.testing.assert_allclose(solution.value, 1, atol=1e-6)


def test_float32_reaches_what_it_can():
    solution = jax.jit(lambda: minimize(logistic(), jnp.zeros(6, "float32"), solver=LBFGS(tol=1e-4)))()
    with jax.enable_x64(True):
        exact = jax.jit(lambda: minimize(logistic(), jnp.zeros(6)))().value
    np.testing.assert_allclose(solution.value, exact, atol=1e-4)
    hopeless = jax.jit(lambda: minimize(logistic(), jnp.full(6, 1.0, "float32"), solver=LBFGS(tol=6e-7)))()
    assert int(hopeless.stats.n_steps) < 200
    np.testing.assert_allclose(hopeless.value, exact, atol=1e-4)


@pytest.mark.parametrize(
    ("fun", "start"),
    [(lambda x: -jnp.exp(x).sum(), 1.0), (lambda x: jnp.log(x).sum(), -1.0), (lambda x: jnp.sqrt(x).sum(), 1.0)],
)
def test_unbounded_and_undefined_end_finite_and_flagged(fun, start):
    solution = jax.jit(lambda: minimize(fun, jnp.full(2, start), solver=LBFGS(max_steps=50)))()
    assert not solution.stats.converged
    assert np.isfinite(solution.value).all()


def test_negative_curvature_is_not_remembered(x64):
    fun = lambda x: jnp.sum(x**4 / 4 - x**2 / 2) + 0.05 * x[0] * x[1]
    solution = jax.jit(lambda: minimize(fun, jnp.array([0.01, -0.02])))()
    assert solution.stats.converged
    n = int(solution.inverse.rank)
    S, Y = np.asarray(solution.inverse.S)[:n], np.asarray(solution.inverse.Y)[:n]
    assert ((S * Y).sum(1) > 0).all()


@pytest.mark.parametrize("secant", ["jvp", "difference"])
def test_opa_makes_the_estimate_exact_in_a_direction(x64, secant):
    fun = logistic()
    v = jnp.asarray(np.random.default_rng(3).standard_normal(6))

    def error(**options):
        solver = LBFGS(tol=1e-8, init_scale=1.0, memory=60, **options)
        outer = (lambda x: v) if options else None
        solution = minimize(fun, jnp.full(6, 0.1), solver=solver, outer_grad=outer)
        exact = jnp.linalg.solve(jax.hessian(fun)(solution.value), v)
        return inverse_quality(solution.inverse.matvec(v), exact)[0], solution.stats.n_evals

    without, n_without = jax.jit(error)()
    every, n_every = jax.jit(lambda: error(opa_every=1, opa_secant=secant))()
    assert every <= 1e-3 * without
    assert n_every > n_without - 5


def test_outer_gradient_sees_the_arguments(x64):
    fun = lambda x, c: 0.5 * jnp.sum(jnp.arange(1.0, 5.0) * x**2) - c @ x + 0.1 * jnp.sum(x**4)
    c = jnp.arange(4.0)
    loss = lambda c, solver, backward, outer: (
        0.5
        * ((minimize(fun, jnp.zeros(4), c, solver=solver, backward=backward, outer_grad=outer).value - c) ** 2).sum()
    )
    exact = jax.jit(jax.grad(lambda c: loss(c, LBFGS(tol=1e-10), "full", None)))(c)
    shine = jax.jit(jax.grad(lambda c: loss(c, LBFGS(tol=1e-10, opa_every=1), "shine", lambda x, c: x - c)))(c)
    assert relative(shine, exact) <= 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LBFGS(max_steps=0), "max_steps: expected an integer >= 1"),
        (lambda: LBFGS(memory=0), "memory: expected an integer >= 1"),
        (lambda: LBFGS(tol=-1.0), "tol: expected a number >= 0"),
        (lambda: LBFGS(opa_every=0), "opa_every: expected an integer >= 1"),
        (lambda: LBFGS(opa_secant="exact"), "opa_secant: expected one of 'jvp', 'difference'"),
        (lambda: LBFGS(init_scale="eye"), "init_scale: expected one of 'bb', 'identity'"),
        (lambda: LBFGS(init_scale=0.0), "init_scale: expected a number > 0"),
        (lambda: LBFGS(max_linesearch=0), "max_linesearch: expected an integer >= 1"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
