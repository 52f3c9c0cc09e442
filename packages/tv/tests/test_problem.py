"""Tests of gyri.tv.problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.numerics import linalg
from gyri.numerics.testing import check_jit, check_vmap
from gyri.tv import duality_gap, lambda_max, objective, solve, tv_norm

from .conftest import solution, value


def problem(seed, n=3, m=5, k=7):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, m)), rng.standard_normal((m, k)), rng.standard_normal((n, k))


def test_objective_is_its_definition(x64):
    x, A, u = problem(0)
    lam = np.array([0.1, 0.5, 2.0])
    expected = [value(*row, A, one) for *row, one in zip(u, x, lam)]
    np.testing.assert_allclose(objective(u, x, A, lam), expected, rtol=1e-13)
    np.testing.assert_allclose(tv_norm(u.T, axis=0), np.abs(np.diff(u)).sum(1), rtol=1e-13)


def test_a_path_of_penalties_of_one_signal(x64):
    x, A, u = problem(0)
    lam = np.array([0.1, 0.5, 2.0])
    np.testing.assert_allclose(objective(u, x[0], A, lam), [value(row, x[0], A, one) for row, one in zip(u, lam)])
    gaps = [duality_gap(row, x[0], A, one) for row, one in zip(u, lam)]
    np.testing.assert_allclose(duality_gap(u, x[0], A, lam), gaps, rtol=1e-12)
    path = solve(x[0], A, lam, u0=u, max_iter=20).u
    alone = [solve(x[0], A, one, u0=row, max_iter=20).u for row, one in zip(u, lam)]
    np.testing.assert_allclose(path, alone, rtol=1e-10)


@given(st.integers(0, 100), st.sampled_from([(5, 7), (9, 4), (3, 1), (1, 6)]))
@settings(max_examples=15, deadline=None)
def test_lambda_max_is_where_the_solution_becomes_constant(seed, shape):
    x, A, _ = problem(seed, 1, *shape)
    with jax.enable_x64(True):
        largest = float(lambda_max(x, A)[0])
        sums = A.sum(1)
        constant = np.full(shape[1], x[0] @ sums / (sums @ sums))
        best = value(constant, x[0], A, 1.0001 * largest)
        assert float(duality_gap(constant, x[0], A, largest * (1 + 1e-12))) <= 1e-12 * (1 + best)
        if largest > 1e-10:  # below it another signal is better
            assert value(solution(x[0], A, 0.9 * largest), x[0], A, 0.9 * largest) < value(
                constant, x[0], A, 0.9 * largest
            )


def test_lambda_max_without_constants_in_the_range(x64):
    A = np.diff(np.eye(4), axis=0)  # A 1 = 0
    x = np.array([1.0, -2.0, 0.5])
    assert float(lambda_max(x, A)) == pytest.approx(np.abs(np.cumsum(A.T @ x)[:-1]).max())
    assert float(duality_gap(np.zeros(4), x, A, float(lambda_max(x, A)))) <= 1e-12


@given(st.integers(0, 1000), st.floats(0.01, 2))
@settings(max_examples=30, deadline=None)
def test_gap_bounds_the_suboptimality(seed, lam):
    x, A, u = problem(seed, 1)
    with jax.enable_x64(True):
        gap = float(duality_gap(u[0], x[0], A, lam))
    best = solution(x[0], A, lam)
    suboptimality = value(u[0], x[0], A, lam) - value(best, x[0], A, lam)
    assert gap >= suboptimality - 1e-9


def test_gap_vanishes_at_the_solution(x64):
    x, A, _ = problem(3, 1)
    assert float(duality_gap(solution(x[0], A, 0.3), x[0], A, 0.3)) <= 1e-5


def test_gap_is_the_difference_of_primal_and_dual(x64):
    x, A, u = (a[0] if a.shape[0] == 1 else a for a in problem(4, 1))
    lam, s = 0.4, A.sum(1)
    r = x - A @ u
    theta = r - s * (s @ r) / (s @ s)
    theta *= min(1, lam / np.abs(np.cumsum(A.T @ theta)[:-1]).max())
    expected = value(u, x, A, lam) - (x @ theta - theta @ theta / 2)
    assert float(duality_gap(u, x, A, lam)) == pytest.approx(expected, rel=1e-12)


def test_operators_and_the_identity_are_matrices(x64):
    x, _, u = problem(5, 2, 8, 6)
    operator = linalg.convolution(np.array([1.0, 0.5, -0.2]), 6)
    matrix = np.asarray(operator.rmatvec(jnp.eye(8)))  # rows of A are its adjoint's images
    for function in (
        lambda A: objective(u, x, A, 0.3),
        lambda A: duality_gap(u, x, A, 0.3),
        lambda A: lambda_max(x, A),
    ):
        np.testing.assert_allclose(function(operator), function(matrix), rtol=1e-12)
    np.testing.assert_allclose(objective(x, 2 * x, None, 0.3), objective(x, 2 * x, np.eye(8), 0.3), rtol=1e-13)


def test_same_under_jit_and_vmap(dtype):
    x, A, u = (jnp.asarray(a, dtype) for a in problem(6))
    lam = jnp.array([0.1, 0.2, 0.3], dtype)
    for function in (
        lambda u, x, lam: objective(u, x, A, lam),
        lambda u, x, lam: duality_gap(u, x, A, lam),
        lambda u, x, lam: lambda_max(x, A),
        lambda u, x, lam: tv_norm(u),
    ):
        assert function(u, x, lam).dtype == dtype
        check_jit(function, u, x, lam, atol=1e-5)
        check_vmap(function, u, x, lam, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((2, 0))}, "x: expected at least one entry"),
        ({"x": np.full((2, 5), np.nan)}, "x: expected finite"),
        ({"x": np.float64(1.0)}, r"x: expected shape \(..., m\)"),
        ({"A": np.zeros((4, 7))}, r"A: expected shape \(5, k\)"),
        ({"A": np.zeros(5)}, "A: expected 2 axes"),
        ({"A": np.full((5, 7), np.inf)}, "A: expected finite"),
        ({"u": np.zeros((2, 6))}, r"u: expected shape \(..., 7\)"),
        ({"u": np.zeros((3, 7))}, "u: expected batch axes"),
        ({"lam": -0.1}, "lam: expected values >= 0"),
        ({"lam": np.ones(3)}, "lam: expected a scalar or one value a signal"),
        ({"lam": np.inf}, "lam: expected finite"),
    ],
)
def test_bad_input(arguments, message):
    good = {"u": np.zeros((2, 7)), "x": np.zeros((2, 5)), "A": np.ones((5, 7)), "lam": 0.1}
    for function in (objective, duality_gap):
        with pytest.raises(ValueError, match=message):
            function(**(good | arguments))


def test_tv_norm_refuses_a_missing_axis():
    with pytest.raises(ValueError, match="axis: expected an axis of u"):
        tv_norm(np.zeros((2, 3)), axis=2)
