"""Tests of gyri.shine.solvers, through `fixed_point` and `root`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import broyden1

from gyri.shine import AdjointBroyden, Anderson, Broyden, Picard, Shine, fixed_point
from gyri.shine.solvers import clamp_tolerance, compress

from .conftest import find_fixed_point, find_root, jacobian, layer, problem, relative

TIGHT = {"max_steps": 100, "tol": 1e-10, "stop": "abs"}


def dense_broyden(g, z, n_steps):
    """Good Broyden on a matrix, in NumPy: iterates and the last inverse."""
    G, iterates, gz = -np.eye(z.size), [z], g(z)
    for _ in range(n_steps):
        s = -G @ gz
        z = z + s
        new = g(z)
        y = new - gz
        G = G + np.outer(s - G @ y, s @ G) / (s @ G @ y)
        gz = new
        iterates.append(z)
    return np.stack(iterates), G


def test_broyden_is_the_method_on_matrices(x64):
    W, b, _ = problem(0, 8, 0.9)
    g = lambda z: np.tanh(np.asarray(W) @ z + np.asarray(b)) - z
    iterates, G = dense_broyden(g, np.zeros(8), 6)
    solution = find_fixed_point(layer, jnp.zeros(8), W, b, solver=Broyden(6, 1e-14))
    np.testing.assert_allclose(solution.stats.trace, [np.linalg.norm(g(z)) for z in iterates], rtol=1e-9)
    np.testing.assert_allclose(solution.value, iterates[-1], rtol=1e-9)
    assert relative(solution.inverse.dense(), G) <= 1e-9


def test_adjoint_broyden_is_the_method_on_matrices(x64):
    W, b, _ = problem(0, 8, 0.9)
    g = lambda z: np.tanh(np.asarray(W) @ z + np.asarray(b)) - z
    z, B = np.zeros(8), -np.eye(8)
    for _ in range(6):  # on the Jacobian: its row action is made exact along the residual
        z = z - np.linalg.solve(B, g(z))
        sigma = g(z)
        B = B + np.outer(sigma, sigma @ (jacobian(np.tanh(np.asarray(W) @ z + np.asarray(b)), W) - B)) / (sigma @ sigma)
    solution = find_fixed_point(layer, jnp.zeros(8), W, b, solver=AdjointBroyden(6, 1e-14))
    np.testing.assert_allclose(solution.value, z, rtol=1e-9)
    assert relative(solution.inverse.dense(), np.linalg.inv(B)) <= 1e-8


@pytest.mark.parametrize("d", [3, 10, 20])
def test_broyden_solves_linear_problems_in_twice_as_many_steps(x64, d):
    rng = np.random.default_rng(d)
    A, c = rng.standard_normal((d, d)) / np.sqrt(d), rng.standard_normal(d)
    solution = find_fixed_point(lambda z: A @ z + c, jnp.zeros(d), solver=Broyden(2 * d + 1, 1e-12))
    assert relative(solution.value, np.linalg.solve(np.eye(d) - A, c)) <= 1e-8
    assert int(solution.stats.n_steps) <= 2 * d + 1


@pytest.mark.parametrize(
    "solver",
    [Broyden(**TIGHT), Broyden(**TIGHT, memory=3), Broyden(**TIGHT, memory=3, overflow="svd"),
     Broyden(**TIGHT, memory=1),
     Broyden(**TIGHT, line_search=True), AdjointBroyden(**TIGHT), AdjointBroyden(**TIGHT, memory=4, overflow="svd"),
     AdjointBroyden(**TIGHT, memory=4), AdjointBroyden(**TIGHT, line_search=True),
     Anderson(**TIGHT), Anderson(**TIGHT, beta=0.7), Picard(200, 1e-10, "abs")],
    ids=repr,
)  # fmt: skip
def test_every_solver_finds_the_fixed_point_of_each_element(x64, solver):
    W, b, v = problem(1, 10, 0.8)
    shifts = jnp.stack([b, 5 * b, 0 * b, v])
    z = np.zeros((4, 10))
    for _ in range(2000):
        z = np.tanh(z @ np.asarray(W).T + np.asarray(shifts))
    solution = find_fixed_point(layer, jnp.zeros((4, 10)), W, shifts, solver=solver, batch_ndim=1)
    np.testing.assert_allclose(solution.value, z, atol=1e-9)
    stats = solution.stats
    assert stats.converged.all() and not stats.diverged.any()
    assert int(stats.n_steps[2]) == 0  # 0 is its fixed point already
    assert len(set(stats.n_steps.tolist())) > 1
    trace = np.asarray(stats.trace)
    for i in range(4):
        n = int(stats.n_steps[i])
        assert np.isfinite(trace[: n + 1, i]).all() and np.isnan(trace[n + 1 :, i]).all()
        assert stats.residual[i] == np.nanmin(trace[:, i])
    alone = find_fixed_point(layer, jnp.zeros(10), W, shifts[1], solver=solver)  # others in the batch change nothing
    np.testing.assert_allclose(alone.value, solution.value[1], atol=1e-12)
    np.testing.assert_array_equal(alone.stats.n_steps, stats.n_steps[1])
    np.testing.assert_allclose(alone.inverse.dense(), solution.inverse.dense()[1], atol=1e-6)
    if getattr(solver, "memory", None) is not None:
        assert (np.asarray(solution.inverse.rank) <= solver.memory).all()


@pytest.mark.parametrize("memory", [None, 5])
def test_last_secant_equation_holds(x64, memory):
    W, b, _ = problem(2, 12, 1.2)
    n = 9
    before, after = (
        find_fixed_point(layer, jnp.zeros(12), W, b, solver=Broyden(k, 1e-14, memory=memory)).value for k in (n - 1, n)
    )
    estimate = find_fixed_point(layer, jnp.zeros(12), W, b, solver=Broyden(n, 1e-14, memory=memory)).inverse
    residual = lambda z: layer(z, W, b) - z
    s, y = after - before, residual(after) - residual(before)
    assert relative(estimate.matvec(y), s) <= 1e-10


@pytest.mark.parametrize("memory", [None, 5])
def test_row_action_of_adjoint_broyden_is_exact(x64, memory):
    W, b, _ = problem(2, 12, 1.2)
    solution = find_fixed_point(layer, jnp.zeros(12), W, b, solver=AdjointBroyden(9, 1e-14, memory=memory))
    z = solution.value
    sigma = np.asarray(layer(z, W, b) - z)
    J = jacobian(layer(z, W, b), W)
    np.testing.assert_allclose(solution.inverse.rmatvec(jnp.asarray(sigma @ J)), sigma, rtol=1e-9, atol=1e-14)


def test_estimate_of_anderson_is_that_of_its_step(x64):
    W, b, _ = problem(3, 8, 0.9)
    solver = Anderson(7, 1e-14, memory=3, beta=0.8)
    last = find_fixed_point(layer, jnp.zeros(8), W, b, solver=solver)
    more = find_fixed_point(layer, jnp.zeros(8), W, b, solver=Anderson(8, 1e-14, memory=3, beta=0.8))
    step = -last.inverse.matvec(layer(last.value, W, b) - last.value)
    np.testing.assert_allclose(last.value + step, more.value, atol=1e-10)


def test_best_iterate_comes_with_the_estimate_of_its_time(x64):
    # Too large a first scale: the residual goes up before it goes down; a budget in the worst place.
    W, b, _ = problem(4, 10, 1.5)
    solve = lambda n: find_fixed_point(layer, jnp.zeros(10), W, b, solver=Broyden(n, 1e-14, init_scale=-4.0))
    trace = np.asarray(solve(12).stats.trace)
    worse = [n for n in range(1, 12) if trace[n] > trace[:n].min()]
    assert worse
    n = worse[-1]
    best = int(trace[: n + 1].argmin())
    late, then = solve(n), solve(best) if best else None
    assert late.stats.residual == trace[best]
    if then is not None:
        np.testing.assert_allclose(late.value, then.value, rtol=1e-12)
        np.testing.assert_allclose(late.inverse.dense(), then.inverse.dense(), atol=1e-12)
    else:
        np.testing.assert_allclose(late.inverse.dense(), -4 * np.eye(10))


def test_root_agrees_with_scipy(x64):
    g = lambda z: np.array([z[0] ** 2 + z[1] - 3.0, z[1] ** 2 - z[0] - 1.0])
    ours = find_root(lambda z: jnp.stack([z[0] ** 2 + z[1] - 3.0, z[1] ** 2 - z[0] - 1.0]), jnp.array([1.2, 1.4]),
                solver=Broyden(60, 1e-11, "abs"))  # fmt: skip
    np.testing.assert_allclose(ours.value, broyden1(g, np.array([1.2, 1.4]), f_tol=1e-11), atol=1e-9)
    start = np.array([1.2, 1.4])
    first = -0.5 * np.linalg.norm(start) / np.linalg.norm(g(start))
    np.testing.assert_allclose(ours.inverse.scale, first, rtol=1e-12)
    relative_stop = find_root(lambda z: 1e6 * (z - 2.0), jnp.zeros(3), solver=Broyden(60, 1e-3))
    assert relative_stop.stats.converged
    assert relative_stop.stats.residual <= 1e-3 * relative_stop.stats.trace[0]


def test_line_search_finds_roots_that_full_steps_miss(x64):
    g = lambda z: jnp.arctan(z - 1.0) * 10
    start, solver = jnp.full(1, 10.0), {"max_steps": 60, "tol": 1e-8, "stop": "abs", "init_scale": -1.0}
    searched = find_root(g, start, solver=Broyden(**solver, line_search=True))
    assert searched.stats.converged
    assert searched.stats.n_evals > searched.stats.n_steps + 1
    np.testing.assert_allclose(searched.value, 1.0, atol=1e-8)


def test_compression_is_the_best_of_its_rank(x64):
    rng = np.random.default_rng(0)
    U, V = (jnp.asarray(rng.standard_normal((2, 5, 9))) for _ in range(2))
    u, v = compress(U, V, 3)
    for i in range(2):
        left, values, right = np.linalg.svd(np.asarray(U[i].T @ V[i]))
        np.testing.assert_allclose(u[i].T @ v[i], (left[:, :3] * values[:3]) @ right[:3], atol=1e-12)
        assert not u[i, 3:].any()


MAPS = {
    "expanding": lambda z, t: 3 * z + t,
    "no root": lambda z, t: z + t,
    "nan": lambda z, t: z * jnp.nan + t,
    "explosive": lambda z, t: jnp.exp(3 * z) + t,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    "solver", [Broyden(), Broyden(memory=2), AdjointBroyden(opa_every=2), Anderson(), Picard()], ids=repr
)
def test_hopeless_problems_end_finite_and_flagged(solver, name):
    f, z0 = MAPS[name], jnp.zeros(2)

    @jax.jit
    def run(t):
        solution, pull = jax.vjp(
            lambda t: fixed_point(
                f, z0, t, solver=solver, backward=Shine(fallback=True), outer_grad=lambda z, t: z - 1.0
            ),
            t,
        )
        zero = jax.tree.map(
            lambda x: (
                jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)
            ),
            solution,
        )
        return solution, pull(zero._replace(value=jnp.ones(2)))[0]

    solution, gradient = run(jnp.ones(2))
    assert np.isfinite(solution.value).all()
    assert np.isfinite(gradient).all()
    solved = np.allclose(f(solution.value, 1.0), solution.value, atol=1e-3)
    assert bool(solution.stats.converged) == solved
    if name == "nan":
        assert solution.stats.diverged


def test_a_stop_for_those_who_do_not_get_nearer():
    # Rounding keeps this one above its tolerance: it has to notice, not to go on to the last step.
    f = lambda z: z - jnp.sign(z - 1.0) * 2e-4
    solution = find_fixed_point(f, jnp.full(4, 1.0005), solver=Picard(500, 3e-4, "abs"))
    assert not solution.stats.converged
    assert int(solution.stats.n_steps) < 60


def test_tolerances_below_the_precision_are_raised_with_a_warning():
    with pytest.warns(UserWarning, match="tol: 1e-09 is below what float32"):
        assert clamp_tolerance(1e-9, "float32") == pytest.approx(1.19e-6, rel=1e-2)
    assert clamp_tolerance(1e-9, "float32") > 1e-9  # silently
    assert clamp_tolerance(1e-9, "float64") == 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Broyden(max_steps=0), "max_steps: expected an integer >= 1"),
        (lambda: Broyden(tol=-1.0), "tol: expected a number >= 0"),
        (lambda: Broyden(stop="relative"), "stop: expected one of 'rel', 'abs'"),
        (lambda: Broyden(memory=0), "memory: expected an integer >= 1"),
        (lambda: Broyden(overflow="ring"), "overflow: expected one of 'restart', 'svd'"),
        (lambda: Broyden(init_scale=0.0), "init_scale: expected a number other than 0"),
        (lambda: AdjointBroyden(opa_every=0), "opa_every: expected an integer >= 1"),
        (lambda: AdjointBroyden(opa_every=1, memory=1), "memory: expected at least 2 with opa_every"),
        (lambda: Anderson(memory=0), "memory: expected an integer >= 1"),
        (lambda: Anderson(beta=0.0), "beta: expected a number > 0"),
        (lambda: Anderson(ridge=-1.0), "ridge: expected a number >= 0"),
        (lambda: Picard(beta=-0.5), "beta: expected a number > 0"),
    ],
)
def test_solvers_refuse_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_solvers_are_static_arguments():
    assert hash(Broyden(5)) == hash(Broyden(5)) and Broyden(5) == Broyden(5) != Broyden(6)
    assert Broyden() != AdjointBroyden()
