"""First- and second-order minimisers against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gyri.numerics import optim, soft_threshold
from gyri.numerics.optim import armijo_step, backtracking_descent, damped_newton, fista, fista_momentum
from gyri.numerics.testing import check_jit, check_lowers, check_no_recompilation, check_vmap


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


def test_damped_newton_takes_derivatives_of_its_caller(x64):
    design, counts = poisson_problem(0)
    start, options = jnp.full(4, 0.15), {"lower": -0.2, "upper": 0.4, "tol": 1e-14}
    loss = lambda x: poisson_loss(x, design, counts)
    both = lambda x: (loss(x), design.T @ (jnp.exp(design @ x) - counts))
    expected = damped_newton(loss, start, **options)
    ours = damped_newton(both, start, value_and_grad=True, **options)
    np.testing.assert_allclose(ours.x, expected.x, rtol=1e-9)
    np.testing.assert_allclose(ours.hessian, expected.hessian, rtol=1e-9)
    near = damped_newton(loss, start, hessian=lambda x: 1.1 * jax.hessian(loss)(x) + 0.1, **options)
    assert near.converged
    assert near.n_iter > expected.n_iter  # linear where the other is quadratic
    np.testing.assert_allclose(near.x, expected.x, rtol=1e-6)


def test_damped_newton_solves_a_nonconvex_valley_from_saddles_and_hills(dtype):
    solve = jax.jit(lambda x0: damped_newton(rosenbrock, x0, tol=1e-10, max_iter=100))
    for x0 in ([-1.2, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, -3.0, 1.5]):
        result = solve(jnp.array(x0, dtype))
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
    values = [damped_newton(rosenbrock, jnp.array([-1.2, 1.0]), max_iter=k, tol=0.0).value for k in (0, 1, 4, 12)]
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


def test_damped_newton_stops_at_saddles_but_never_in_nan(x64):
    saddle = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4
    result = damped_newton(saddle, jnp.array([1.0, 1e-3]), tol=1e-12)
    assert result.converged
    np.testing.assert_allclose(jnp.abs(result.x), [0, np.sqrt(0.5)], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
@example(seed=323)  # the projected full step goes uphill
def test_damped_newton_meets_the_optimality_conditions_of_box_quadratics(seed):
    rng = np.random.default_rng(seed)
    factor, center = rng.normal(size=(4, 4)), rng.normal(size=4)
    matrix = factor @ factor.T + 0.1 * np.eye(4)
    low, high = -rng.uniform(0, 1, 4), rng.uniform(0, 1, 4)
    with jax.enable_x64(True):
        x, _, _, n_iter, converged = quadratic_in_box(*map(jnp.asarray, (matrix, center, low, high)))
    x = np.asarray(x)
    gradient = matrix @ (x - center)
    assert ((x >= low) & (x <= high)).all()
    assert converged
    assert n_iter <= 12
    assert np.abs(np.clip(x - gradient, low, high) - x).max() <= 1e-5 * np.abs(matrix).max()


@jax.jit
def quadratic_in_box(matrix, center, low, high):
    fun = lambda x: 1.0 + 0.5 * (x - center) @ matrix @ (x - center)
    return damped_newton(fun, jnp.zeros(4), lower=low, upper=high, tol=1e-14)


def test_damped_newton_refuses_a_start_that_is_no_vector():
    with pytest.raises(ValueError, match=r"x0: expected shape \(n,\) with n >= 1, got \(0,\)"):
        damped_newton(rosenbrock, jnp.zeros(0), tol=1e-6)


def test_damped_newton_transforms():
    starts = jnp.array([[-1.2, 1.0], [1.0, 1.0], [0.3, -2.0]])
    fn = lambda x0: damped_newton(rosenbrock, x0, upper=0.9, tol=1e-6)._replace(n_iter=0, hessian=0)
    check_jit(fn, starts[0], rtol=1e-3)
    check_vmap(fn, starts, rtol=1e-3, atol=1e-4)
    check_lowers(fn, starts[0])
    check_no_recompilation(fn, (starts[0],), (starts[1],))


# --- first-order methods


def test_fista_momentum_solves_its_recursion(dtype):
    t = jnp.array([1.0, 2.0, 50.0], dtype)
    following = fista_momentum(t)
    assert following.dtype == dtype
    np.testing.assert_allclose(following**2 - following, t**2, rtol=1e-6)


def lasso(seed=0, n=30, p=12):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n, p))
    return design, design @ (rng.normal(size=p) * (rng.random(p) < 0.4)) + 0.1 * rng.normal(size=n)


def fista_lasso(design, target, lam, **options):
    step = 1 / jnp.linalg.norm(design, 2) ** 2
    grad = lambda x: design.T @ (design @ x - target)
    prox = lambda x, step: soft_threshold(x, lam * step)
    return fista(grad, prox, jnp.zeros(design.shape[1], design.dtype), step, **options)


@pytest.mark.parametrize("restart", [True, False])
def test_fista_meets_the_optimality_conditions_of_the_lasso(x64, restart):
    design, target = lasso()
    lam = 2.0
    result = fista_lasso(jnp.asarray(design), jnp.asarray(target), lam, max_iter=20_000, tol=1e-12, restart=restart)
    correlation = design.T @ (target - design @ np.asarray(result.x))
    assert result.converged
    on = np.asarray(result.x) != 0
    assert 0 < on.sum() < 12
    np.testing.assert_allclose(correlation[on], lam * np.sign(np.asarray(result.x)[on]), atol=1e-7)
    assert np.abs(correlation).max() <= lam + 1e-7


def test_fista_restart_needs_fewer_iterations_when_ill_conditioned(x64):
    scale = jnp.geomspace(1e-4, 1, 20)
    run = lambda restart: fista(
        lambda x: scale * (x - 1), lambda x, step: x, jnp.zeros(20), 1.0, max_iter=20_000, tol=1e-10, restart=restart
    )
    assert 2 * run(True).n_iter < run(False).n_iter


def test_fista_stops_at_max_iter_and_works_on_pytrees():
    shrink = lambda tree, step: jax.tree.map(lambda x: soft_threshold(x, step), tree)
    result = fista(lambda x: jax.tree.map(lambda v: v - 3, x), shrink, {"a": jnp.zeros(2), "b": (jnp.zeros(()),)}, 1.0,
                   max_iter=9, tol=1e-6)  # fmt: skip
    np.testing.assert_allclose([*result.x["a"], result.x["b"][0]], 2)
    assert result.converged
    result = fista(lambda x: x - 3, shrink, jnp.zeros(2), 0.1, max_iter=3, tol=1e-6)
    assert (int(result.n_iter), bool(result.converged)) == (3, False)


def test_fista_transforms():
    problems = [lasso(seed, 8, 3) for seed in range(2)]
    designs, targets = (jnp.asarray(np.stack(arrays)) for arrays in zip(*problems, strict=True))
    fn = lambda design, target: fista_lasso(design, target, 1.0, max_iter=100, tol=1e-5)
    check_jit(fn, designs[0], targets[0], rtol=1e-3)
    check_vmap(lambda design, target: fn(design, target).x, designs, targets, rtol=1e-3, atol=1e-4)
    check_lowers(fn, designs[0], targets[0])
    check_no_recompilation(fn, (designs[0], targets[0]), (designs[1], targets[1]))


def descend(value, x0, project=lambda x: x, **options):
    options = {"tol": 1e-10, "max_iter": 200, **options}
    return backtracking_descent(jax.value_and_grad(value), value, project, x0, **options)


def test_backtracking_descent_agrees_with_scipy_on_a_simplex_like_set(x64):
    design, target = lasso(1)
    value = lambda x: 0.5 * jnp.sum((design @ x - target) ** 2)
    result = descend(value, jnp.full(12, 0.1), lambda x: jnp.maximum(x, 0), max_iter=3000, tol=1e-15)
    oracle, _ = scipy.optimize.nnls(design, target)
    np.testing.assert_allclose(result.x, oracle, atol=1e-4)
    assert result.converged


def reference_descent(fun, grad, x, step, grow, shrink, max_step, min_step, tol, max_iter):
    """The contract's algorithm as a plain loop."""
    value = fun(x)
    history = [value]
    while len(history) <= max_iter:
        direction = grad(x)
        while step >= min_step and not fun(x - step * direction) < value:
            step *= shrink
        if step < min_step:
            break
        x, old, value = x - step * direction, value, fun(x - step * direction)
        history.append(value)
        step = min(grow * step, max_step)
        if old - value <= tol * abs(old):
            break
    return x, history


def test_backtracking_descent_is_its_plain_loop(x64):
    fun = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    grad = lambda x: np.array([-400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0]), 200 * (x[1] - x[0] ** 2)])
    x, history = reference_descent(fun, grad, np.array([-1.2, 1.0]), 1.0, 10.0, 0.5, 2.0, 1e-20, 1e-6, 40)
    result = descend(fun, jnp.array([-1.2, 1.0]), max_step=2.0, tol=1e-6, max_iter=40)
    n = int(result.n_iter)
    assert n == len(history) - 1
    np.testing.assert_allclose(result.history[: n + 1], history, rtol=1e-6)
    assert np.isnan(result.history[n + 1 :]).all()
    np.testing.assert_allclose(result.x, x, rtol=1e-6)
    assert result.value == result.history[n]


def test_backtracking_descent_only_descends_refuses_nan_and_trusts_no_gradient(dtype):
    barrier = lambda x: jnp.sum(x - jnp.log(x))
    result = descend(barrier, jnp.array([0.2, 4.0], dtype), max_iter=100)
    np.testing.assert_allclose(result.x, 1, atol=0.02)
    history = result.history[: int(result.n_iter) + 1]
    assert (np.diff(history) < 0).all()
    wrong = lambda x: (barrier(x), jnp.where(x > 1, -1.0, 1.0).astype(dtype))  # points uphill
    result = backtracking_descent(wrong, barrier, lambda x: x, jnp.array([0.2, 4.0], dtype), tol=1e-6, max_iter=9)
    assert (int(result.n_iter), bool(result.converged)) == (0, True)
    assert result.x.tolist() == jnp.array([0.2, 4.0], dtype).tolist()


def test_backtracking_descent_bounds_says_when_it_is_not_done_and_cannot_start():
    quadratic = lambda x: jnp.sum(x**2)
    result = descend(quadratic, jnp.ones(2), max_step=1e-3, max_iter=5)
    assert not result.converged
    np.testing.assert_allclose(result.x, (1 - 2e-3) ** 5, rtol=1e-5)  # all five steps are max_step
    result = descend(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2))
    assert (int(result.n_iter), bool(result.converged)) == (0, False)
    assert result.x.tolist() == [-1, -1]


def test_backtracking_descent_works_on_pytrees():
    value = lambda t: jnp.sum((t["D"] - 1) ** 2) + (t["s"] - 2) ** 2
    result = descend(
        value, {"D": jnp.zeros((2, 2)), "s": jnp.zeros(())}, lambda t: {**t, "s": jnp.minimum(t["s"], 1.5)}
    )
    np.testing.assert_allclose(result.x["D"], 1, atol=1e-3)
    assert result.x["s"] == 1.5


def test_backtracking_descent_transforms():
    starts = jnp.array([[-1.2, 1.0], [1.0, 1.0], [0.3, -2.0]])
    fn = lambda x0: descend(rosenbrock, x0, max_iter=5, tol=1e-3)
    check_jit(fn, starts[0], rtol=1e-3)
    check_vmap(fn, starts, rtol=1e-3)
    check_lowers(fn, starts[0])
    check_no_recompilation(fn, (starts[0],), (starts[1],))


def test_backtracking_steps_make_up_the_descent_and_follow_curves(x64):
    state = optim.DescentState(jnp.array([3.0, -2.0]), jnp.array(0.0), jnp.array(1.0), jnp.array(False))
    value = lambda x: jnp.sum(jnp.array([1.0, 5.0]) * x**2)
    state = state._replace(value=value(state.x))
    plain = lambda x, g, t: x - t * g
    whole = backtracking_descent(jax.value_and_grad(value), value, lambda x: x, state.x, tol=1e-12, max_iter=7)
    for i in range(7):
        state, step = optim.backtracking_step(jax.grad(value), value, plain, state, tol=1e-12)
        assert step > 0 and state.step_size == 10 * step and state.value == whole.history[i + 1]
    np.testing.assert_array_equal(state.x, whole.x)

    # On the circle, by rotations: the move keeps the norm, and the minimum there is on the first axis.
    def rotate(x, g, t):
        angle = t * (x[0] * g[1] - x[1] * g[0])
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.array([c * x[0] + s * x[1], c * x[1] - s * x[0]])

    state = optim.DescentState(jnp.array([0.6, 0.8]), value(jnp.array([0.6, 0.8])), jnp.array(1.0), jnp.array(False))
    for _ in range(30):
        state, _ = optim.backtracking_step(jax.grad(value), value, rotate, state, tol=0.0)
    np.testing.assert_allclose(jnp.abs(state.x), [1, 0], atol=1e-6)
    stopped, step = optim.backtracking_step(
        jax.grad(value), value, rotate, state._replace(done=jnp.array(True)), tol=0.0
    )
    assert step == 0 and stopped.done
    np.testing.assert_array_equal(stopped.x, state.x)


def test_armijo_step_takes_a_known_value():
    calls = []

    def value(x):
        calls.append(0)
        return x**2

    known = armijo_step(value, jnp.array(1.0), jnp.array(-2.0), -4.0, step_size=2.0, c=0.1, value_old=1.0)
    assert len(calls) == 1  # traced in the loop only
    assert known == armijo_step(value, jnp.array(1.0), jnp.array(-2.0), -4.0, step_size=2.0, c=0.1)


def test_armijo_step_takes_the_first_step_that_meets_the_rule(dtype):
    value, x, direction = lambda x: jnp.sum(x**4), jnp.array([1.0, -1.0], dtype), jnp.array([-4.0, 4.0], dtype)
    slope, c = -32.0, 0.3
    new, new_value, step = armijo_step(value, x, direction, slope, step_size=4.0, c=c, shrink=0.5)
    meets = [
        np.sum((np.array([1.0, -1.0]) + s * np.array([-4.0, 4.0])) ** 4) <= 2 + c * s * slope
        for s in 4 * 0.5 ** np.arange(9)
    ]
    assert step == 4 * 0.5 ** meets.index(True)
    assert new.dtype == new_value.dtype == step.dtype == dtype
    np.testing.assert_allclose(new, np.asarray(x) + float(step) * np.asarray(direction), rtol=1e-6)
    np.testing.assert_allclose(new_value, np.sum(np.asarray(new) ** 4), rtol=1e-6)


def test_armijo_step_stays_when_nothing_helps_and_refuses_nan():
    x, value, step = armijo_step(lambda x: x**2, jnp.array(1.0), jnp.array(2.0), 4.0, step_size=1.0, c=-0.1)
    assert (float(x), float(value), float(step)) == (1, 1, 0)
    calls = armijo_step(lambda x: x**2, jnp.array(1.0), jnp.array(-2.0), -4.0, step_size=8.0, c=0.1, max_trials=3)
    assert float(calls[2]) == 0  # 8, 4 and 2 are too long
    x, _, step = armijo_step(lambda x: -jnp.log(x), jnp.array(1.0), jnp.array(-2.0), -1.0, step_size=4.0, c=0.0)
    assert float(step) == 0  # NaN first, then uphill
    x, _, step = armijo_step(lambda x: jnp.log(x), jnp.array(1.0), jnp.array(-2.0), -2.0, step_size=4.0, c=0.1)
    assert float(step) == 0.25  # NaN at 4, 2 and 1, minus infinity at 1/2


def test_armijo_step_transforms(dtype):
    x = {"w": jnp.array([[1.0, -1.0], [0.1, 3.0]], dtype)}

    def fn(x):
        value = lambda x: jnp.sum(x["w"] ** 4)
        gradient = jax.grad(value)(x)
        return armijo_step(
            value, x, jax.tree.map(jnp.negative, gradient), -jnp.sum(gradient["w"] ** 2), step_size=1.0, c=0.1
        )

    one = jax.tree.map(lambda v: v[0], x)
    check_jit(fn, one)
    check_vmap(fn, x)
    check_lowers(fn, one)
    check_no_recompilation(fn, (one,), (jax.tree.map(lambda v: v[1], x),))
