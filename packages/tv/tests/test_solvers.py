"""Tests of gyri.tv.solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics import linalg
from gyri.numerics.testing import check_no_recompilation
from gyri.tv import duality_gap, lambda_max, objective, prox_tv1d, simulate, solve
from gyri.tv.operators import cumulated, squared_norm, squared_norm_cumulated, squared_norm_differences

from .conftest import solution, value
from .transcription import accelerate, forms, iterate

SOLVERS = (
    "pgd", "apgd", "synthesis_pgd", "synthesis_apgd", "dual_pgd", "dual_apgd", "condat_vu", "chambolle_pock", "admm",
)  # fmt: skip


@pytest.fixture(scope="module")
def tall():
    """A full-rank operator (12 x 8) and five signals."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((12, 8))
    u = np.cumsum(rng.standard_normal((5, 8)) * (rng.random((5, 8)) < 0.4), 1)
    return u @ A.T + 0.3 * rng.standard_normal((5, 12)), A


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_solvers_reach_the_minimum(x64, tall, solver):
    x, A = tall
    result = solve(x, A, 0.8, solver=solver, max_iter=100_000, tol=1e-10)
    best = np.array([value(solution(row, A, 0.8), row, A, 0.8) for row in x])
    assert result.converged.all()
    np.testing.assert_allclose(result.objective, best, rtol=1e-8)
    np.testing.assert_allclose(result.objective, objective(result.u, x, A, 0.8), rtol=1e-12)
    np.testing.assert_allclose(result.gap, duality_gap(result.u, x, A, 0.8), rtol=1e-6, atol=1e-13)
    assert (result.objective - best <= np.asarray(result.gap) + 1e-9).all()


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("apgd", {"restart": True}),
        ("condat_vu", {"relax": 1.9}),
        ("condat_vu", {"relax": 0.7, "sigma": 2.0}),
        ("admm", {"gamma": 5.0}),
    ],
)
def test_options_lead_to_the_same_minimum(x64, tall, solver, options):
    x, A = tall
    result = solve(x, A, 0.8, solver=solver, max_iter=50_000, tol=1e-10, **options)
    assert result.converged.all()
    np.testing.assert_allclose(result.objective, solve(x, A, 0.8, tol=1e-12, max_iter=5000).objective, rtol=1e-8)


def test_restart_drops_the_momentum_where_it_points_uphill(x64, tall):
    x, A = tall
    expected, dropped = zip(*(accelerate(*forms(row, A, 0.8)[0], 30, restart=True) for row in x))
    assert max(dropped) > 1
    result = solve(x, A, 0.8, solver="apgd", restart=True, max_iter=30, tol=0)
    np.testing.assert_allclose(result.u, expected, atol=1e-8)


def test_restart_is_faster(x64):
    x, _, _, A = simulate(0, 20, k=20, m=15)
    plain, restarted = (solve(x, A, 0.1, max_iter=50_000, restart=restart).n_iter.mean() for restart in (False, True))
    assert restarted < 0.5 * plain


@pytest.mark.parametrize("solver", [*SOLVERS, "subgradient"])
def test_iterations_are_those_of_the_algorithm(x64, tall, solver):
    x, A = tall
    for n in (1, 2, 7):
        expected = [iterate(solver, row, A, 0.8, n) for row in x]
        result = solve(x, A, 0.8, solver=solver, max_iter=n, tol=0)
        np.testing.assert_allclose(result.u, expected, atol=1e-8)
        assert (result.n_iter == n).all()


# One solver of each way to use the operator: acceleration does not touch it.
@pytest.mark.parametrize("solver", ["pgd", "synthesis_pgd", "dual_pgd", "chambolle_pock", "admm", "subgradient"])
def test_the_identity_leads_to_the_proximal_operator(x64, solver):
    x = np.random.default_rng(1).standard_normal((5, 12))
    x[:, 6:] += 2
    exact, close = prox_tv1d(jnp.asarray(x), 0.5), 1e-3 if solver == "subgradient" else 2e-5
    for A in (None, linalg.mask(np.ones(12))) if solver == "admm" else (None,):
        result = solve(x, A, 0.5, solver=solver, max_iter=3000, tol=1e-11)
        np.testing.assert_allclose(result.u, exact, atol=close)


@pytest.mark.parametrize("solver", ["pgd", "synthesis_pgd", "dual_pgd", "condat_vu", "admm"])
def test_operators_are_their_matrices(x64, tall, solver):
    kernel = linalg.convolution(np.array([1.0, 0.4, 0.1, 0.0, -0.1]), 8)
    matrix = np.asarray(kernel.rmatvec(jnp.eye(12)))
    first, second = (solve(tall[0], A, 0.5, solver=solver, max_iter=50_000, tol=1e-11) for A in (kernel, matrix))
    np.testing.assert_allclose(first.objective, second.objective, rtol=1e-8)


def test_pgd_is_proximal_gradient_descent(x64, tall):
    x, A = tall
    rho, u = np.linalg.norm(A, 2) ** 2, x @ np.linalg.pinv(A).T
    history = [objective(u, x, A, 0.8)]
    for _ in range(7):
        u = np.asarray(prox_tv1d(u - (u @ A.T - x) @ A / rho, 0.8 / rho))
        history.append(objective(u, x, A, 0.8))
    result = solve(x, A, 0.8, solver="pgd", max_iter=7, check_every=1, tol=0, history=True)
    np.testing.assert_allclose(result.u, u, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(result.history, np.stack(history, 1), rtol=1e-11)
    assert (result.n_iter == 7).all()
    assert not result.converged.any()


def test_blocks_do_not_change_the_iterations(x64, tall):
    x, A = tall
    one, three = (solve(x, A, 0.8, max_iter=10, check_every=n, tol=0, history=True) for n in (1, 3))
    np.testing.assert_allclose(one.u, three.u, rtol=1e-12)
    np.testing.assert_allclose(one.history[:, [0, 3, 6, 9, 10]], three.history, rtol=1e-12)


def test_signals_stop_on_their_own(x64, tall):
    x, A = tall
    lam = np.linspace(0.1, 30.0, len(x))
    together = solve(x, A, lam, tol=1e-6, history=True)
    assert len(set(together.n_iter.tolist())) > 1
    for i in range(len(x)):
        alone = solve(x[i], A, lam[i], tol=1e-6, history=True)
        assert alone.n_iter == together.n_iter[i]
        np.testing.assert_allclose(alone.u, together.u[i], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(alone.history, together.history[i], rtol=1e-9)
    assert np.isfinite(together.history).all()


def test_start_counts(x64, tall):
    x, A = tall
    best = solve(x, A, 0.8, max_iter=5000, tol=1e-11).u
    again = solve(x, A, 0.8, u0=best, tol=1e-9)
    assert (again.n_iter == 0).all()
    assert again.converged.all()


def test_extreme_penalties(x64, tall):
    x, A = tall
    lam = 1.01 * lambda_max(x, A)
    assert np.abs(np.diff(solve(x, A, lam, tol=1e-12, max_iter=5000).u)).max() < 1e-9
    np.testing.assert_allclose(solve(x, A, 0.0).u, x @ np.linalg.pinv(A).T, rtol=1e-9)


@pytest.mark.parametrize("solver", ["apgd", "dual_apgd", "admm"])
def test_one_sample_is_a_scalar_least_squares(x64, solver):
    x, A = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[1.0], [1.0]])
    np.testing.assert_allclose(solve(x, A, 0.7, solver=solver).u, [[1.5], [0.5]], rtol=1e-9)


def test_dtypes(dtype, tall):
    x, A = (a.astype(dtype) for a in tall)
    for solver in SOLVERS:
        result = solve(x, A, 0.8, solver=solver, max_iter=7, tol=0)
        assert result.u.dtype == result.objective.dtype == result.gap.dtype == dtype
        expected = [iterate(solver, row, tall[1], 0.8, 7) for row in tall[0]]
        np.testing.assert_allclose(result.u, expected, atol=2e-5 if dtype == np.float32 else 1e-7)
    assert solve(x.round().astype(int), A, 1).u.dtype == dtype


def test_single_precision_reaches_its_minimum(tall):
    x, A = (a.astype(np.float32) for a in tall)
    result = solve(x, A, 0.8, max_iter=5000, tol=1e-6)
    assert result.converged.all()
    best = [value(solution(row, tall[1], 0.8), row, tall[1], 0.8) for row in tall[0]]
    np.testing.assert_allclose(result.objective, best, rtol=1e-5)


def test_under_jit_and_vmap(x64, tall):
    x, A = tall
    function = lambda x, A, lam: solve(x, A, lam, max_iter=50, restart=True).u
    expected = function(x, A, 0.8)
    np.testing.assert_allclose(jax.jit(function)(x, A, 0.8), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(function, (0, None, None))(x, A, 0.8), expected, rtol=1e-9, atol=1e-12)


def test_no_recompilation_for_other_values(x64, tall):
    x, A = tall
    call = lambda x, A, lam, tol, n: solve(x, A, lam, tol=tol, max_iter=n)
    check_no_recompilation(call, (x, A, 0.8, 1e-6, 100), (2 * x, A + 0.1, 0.3, 1e-4, 50), jit=False)


def test_constants(x64):
    A = np.random.default_rng(2).standard_normal((6, 9))
    L = np.tril(np.ones((9, 9)))
    D = np.diff(np.eye(9), axis=0)
    kernel = linalg.convolution(np.array([1.0, 0.4, 0.1]), 9)
    norm = lambda M: np.linalg.norm(M, 2) ** 2
    np.testing.assert_allclose(cumulated(jnp.asarray(A)), A @ L, rtol=1e-12)
    assert float(squared_norm_cumulated(linalg.dense(A))) == pytest.approx(norm(A @ L))
    assert float(squared_norm_cumulated(linalg.identity(9))) == pytest.approx(norm(L))
    assert squared_norm_differences(9) == pytest.approx(norm(D))
    matrix = np.asarray(kernel.rmatvec(jnp.eye(11)))
    for found, exact in (
        (squared_norm(kernel), norm(matrix)),
        (squared_norm_cumulated(kernel), norm(matrix @ L)),
    ):
        assert exact <= float(found) <= 1.02 * exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((2, 2, 5))}, "x: expected 1 or 2 axes"),
        ({"x": np.full(5, np.nan)}, "x: expected finite"),
        ({"x": np.zeros((0, 5))}, "x: expected at least one entry"),
        ({"A": np.zeros((4, 7))}, r"A: expected shape \(5, k\)"),
        ({"lam": -1}, "lam: expected values >= 0"),
        ({"lam": np.ones(4)}, "lam: expected a scalar or one value a signal"),
        ({"solver": "fista"}, "solver: expected one of 'pgd'"),
        ({"max_iter": 0}, "max_iter: expected an integer >= 1"),
        ({"check_every": 0}, "check_every: expected an integer >= 1"),
        ({"tol": -1e-3}, "tol: expected a number >= 0"),
        ({"u0": np.zeros(6)}, r"u0: expected shape \(..., 7\)"),
        ({"u0": np.zeros((4, 7))}, "u0: expected batch axes"),
        ({"step_size": 1.0}, "step_size: expected an option of solver 'apgd'"),
        ({"solver": "pgd", "restart": True}, "restart: expected an option of solver 'pgd' \\(none\\)"),
        ({"restart": 1}, "restart: expected one of False, True"),
        ({"solver": "condat_vu", "relax": 2.0}, "relax: expected a number > 0 and < 2"),
        ({"solver": "condat_vu", "sigma": 0.0}, "sigma: expected a number > 0"),
        ({"solver": "admm", "gamma": -1.0}, "gamma: expected a number > 0"),
        ({"solver": "admm", "A": np.ones((5, 7)) * [1, -1, 1, -1, 1, -1, 0]}, "A: expected an operator that does not"),
        ({"solver": "dual_pgd"}, "A: expected rank 7 for solver 'dual_pgd', got 5"),
        ({"solver": "dual_pgd", "A": None, "u0": np.zeros(5)}, "u0: expected None"),
    ],
)
def test_bad_input(arguments, message):
    A = np.random.default_rng(0).standard_normal((5, 7))
    with pytest.raises(ValueError, match=message):
        solve(**({"x": np.ones((2, 5)), "A": A, "lam": 0.1} | arguments))
