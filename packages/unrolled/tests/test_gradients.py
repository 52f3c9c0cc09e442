"""Tests of gyri.unrolled.gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics.testing import check_jit
from gyri.unrolled import dictionary_gradient, lasso_jacobian, lasso_objective, simulate, sparse_code, unrolled_jacobian
from gyri.unrolled.datasets import perturb, unit_rows

LAM = 0.1


@pytest.fixture(scope="module")
def data():
    with jax.enable_x64(True):
        X, truth, _ = simulate(0, 60)
        yield np.asarray(X), np.asarray(unit_rows(perturb(1, truth)))


def test_loss_and_the_estimates_with_fixed_codes(data, x64):
    X, D = data
    for n_iter in (7,):
        codes = np.asarray(sparse_code(X, D, LAM, n_iter=n_iter))
        loss, g1 = dictionary_gradient(X, D, LAM, estimator="g1", n_iter=n_iter)
        np.testing.assert_allclose(loss, lasso_objective(X, codes, D, LAM), rtol=1e-12)
        np.testing.assert_allclose(g1, codes.T @ (codes @ D - X), atol=1e-10)
        cut = dictionary_gradient(X, D, LAM, n_iter=n_iter, backprop_depth=0)
        np.testing.assert_array_equal(cut[1], g1)
        whole = dictionary_gradient(X, D, LAM, n_iter=n_iter)
        np.testing.assert_array_equal(dictionary_gradient(X, D, LAM, n_iter=n_iter, backprop_depth=99)[1], whole[1])
        value = lambda D: lasso_objective(X, sparse_code(X, D, LAM, n_iter=n_iter), D, LAM)  # noqa: B023
        np.testing.assert_allclose(whole[1], jax.grad(value)(D), atol=1e-10)


def plain_g3(x, D, z, forward, lam=LAM):
    """The formula of one sample, E being the dictionary that it sees."""
    E = forward @ D.T
    e, S = forward.T @ (E @ z - x), z != 0
    w = np.zeros(len(z))
    w[S] = np.linalg.solve(E[:, S].T @ E[:, S], E[:, S].T @ (E @ z - x) + lam * np.sign(z[S]))
    return np.outer(z, e) - np.outer(z, forward.T @ (E @ w)) - np.outer(w, e)


def test_g3_is_its_formula(data, x64):
    X, D = data[0][:8], data[1]
    codes = np.asarray(sparse_code(X, D, LAM, n_iter=400))
    assert (codes != 0).sum(1).max() < 30
    expected = sum(plain_g3(x, D, z, np.eye(30)) for x, z in zip(X, codes))
    found = dictionary_gradient(X, D, LAM, estimator="g3", n_iter=400)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # the ridge
    mask = np.random.default_rng(0).random(X.shape) < 0.9
    codes = np.asarray(sparse_code(X, D, 0.3, n_iter=1000, mask=mask))
    expected = sum(plain_g3(x * m, D, z, np.diag(m.astype(float)), 0.3) for x, z, m in zip(X, codes, mask))
    found = dictionary_gradient(X, D, 0.3, estimator="g3", n_iter=1000, mask=mask)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    each = np.random.default_rng(1).standard_normal((8, 28, 30)) / 5
    Y = np.einsum("tij,tj->ti", each, X)
    codes = np.asarray(sparse_code(Y, D, 0.3, n_iter=1000, operator=each))
    expected = sum(plain_g3(y, D, z, A, 0.3) for y, z, A in zip(Y, codes, each))
    found = dictionary_gradient(Y, D, 0.3, estimator="g3", n_iter=1000, operator=each)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_order_of_the_errors_on_fresh_data(x64):
    X, truth, _ = simulate(5, 120)
    D = unit_rows(perturb(6, truth))
    exact = dictionary_gradient(X, D, LAM, estimator="g1", n_iter=5000)[1]

    def error(estimator, n_iter, depth=None):
        g = dictionary_gradient(X, D, LAM, estimator=estimator, n_iter=n_iter, backprop_depth=depth)[1]
        return float(jnp.linalg.norm(g - exact) / jnp.linalg.norm(exact))

    for n_iter in (20, 500):
        assert error("g2", n_iter) < error("g1", n_iter)
    assert error("g2", 5) > error("g1", 5)
    assert error("g3", 500) < error("g1", 500) / 10
    assert error("g2", 500, 20) < error("g1", 500)


@pytest.mark.parametrize("algorithm", ["ista", "fista"])
def test_recursion_is_forward_mode(algorithm, data, x64):
    x, D = data[0][0], data[1]
    steps = np.linspace(0.7, 1.3, 15)
    code_of = lambda D: sparse_code(x[None], D, LAM, n_iter=15, algorithm=algorithm, steps=steps)[0]
    found = unrolled_jacobian(x, D, LAM, 15, algorithm=algorithm, steps=steps)
    np.testing.assert_allclose(found, jax.jacfwd(code_of)(D), atol=1e-10)
    assert found.shape == (50, 50, 30)


def test_recursion_tends_to_the_closed_form(x64):
    X, D, _ = simulate(3, 5, 12, 10, sparsity=0.2)
    for x in X:
        solution = sparse_code(x[None], D, LAM, n_iter=5000)[0]
        closed = lasso_jacobian(x, D, solution)
        np.testing.assert_allclose(unrolled_jacobian(x, D, LAM, 5000), closed, atol=1e-6)
        assert not np.asarray(closed)[np.asarray(solution) == 0].any()


def test_closed_form_is_the_derivative_of_the_solution(x64):
    X, D, _ = simulate(4, 1, 12, 8, sparsity=0.3)
    solve = lambda D: sparse_code(X, D, LAM, n_iter=20_000)[0]
    closed = np.asarray(lasso_jacobian(X[0], D, solve(D)))
    for j, l in ((0, 0), (3, 5), (7, 11)):
        moved = np.zeros(D.shape)
        moved[j, l] = 1e-6
        np.testing.assert_allclose((solve(D + moved) - solve(D - moved)) / 2e-6, closed[:, j, l], atol=1e-5)


def test_dtypes_and_jit(dtype):
    X, D, _ = simulate(0, 6, 5, 4)
    for estimator in ("g1", "g2", "g3"):
        call = lambda X, D, lam, e=estimator: dictionary_gradient(X, D, lam, estimator=e, n_iter=4)
        loss, gradient = call(X, D, 0.1)
        assert loss.dtype == gradient.dtype == dtype and gradient.shape == D.shape
    check_jit(call, X, D, 0.1, rtol=1e-3 if dtype == "float32" else None)
    assert unrolled_jacobian(X[0], D, 0.1, 3).dtype == dtype
    assert lasso_jacobian(X[0], D, jnp.ones(4, dtype)).dtype == dtype


def test_a_support_larger_than_the_rank_stays_finite():
    X, D, _ = simulate(0, 10)
    for estimator in ("g1", "g2", "g3"):
        assert np.isfinite(dictionary_gradient(X, D, LAM, estimator=estimator, n_iter=2)[1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dictionary_gradient(np.ones((2, 3)), np.ones((4, 3)), 0.1, estimator="g4"), "estimator: expected one"),
        (lambda: dictionary_gradient(np.ones((2, 3)), np.ones((4, 3)), -0.1), "lam: expected a number > 0"),
        (lambda: dictionary_gradient(np.ones((2, 3)), np.ones((4, 2)), 0.1), "components: expected 3 features"),
        (lambda: dictionary_gradient(np.ones((2, 3)), np.ones((4, 3)), 0.1, n_iter=0), "n_iter: expected an integer"),
        (lambda: dictionary_gradient(np.ones((2, 3)), np.ones((4, 3)), 0.1, backprop_depth=-2), "backprop_depth:"),
        (lambda: lasso_jacobian(np.ones(3), np.ones((4, 2)), np.ones(4)), r"components: expected shape"),
        (lambda: lasso_jacobian(np.ones(3), np.ones((4, 3)), np.ones(3)), r"code: expected shape \(4,\)"),
        (lambda: unrolled_jacobian(np.ones((1, 3)), np.ones((4, 3)), 0.1, 3), "x: expected shape"),
        (lambda: unrolled_jacobian(np.ones(3), np.ones((4, 3)), 0.0, 3), "lam: expected a number > 0"),
        (lambda: unrolled_jacobian(np.ones(3), np.ones((4, 3)), 0.1, 0), "n_iter: expected an integer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
