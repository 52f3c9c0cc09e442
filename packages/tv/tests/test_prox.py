"""Tests of gyri.tv.prox: what the package promises of both operators (the exact one has more in gyri-numerics)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from gyri.numerics.testing import check_jit, check_vmap
from gyri.tv import lambda_max, prox_tv1d, prox_tv2d

from .conftest import prox


@given(st.integers(0, 1000), st.floats(0.01, 5.0))
@settings(max_examples=20, deadline=None)
def test_prox_tv1d_is_exact(seed, lam):
    x = np.random.default_rng(seed).standard_normal((2, 30))
    with jax.enable_x64(True):
        u = prox_tv1d(x, lam)
    np.testing.assert_allclose(u, [prox(row, lam) for row in x], atol=1e-8)


def test_prox_tv1d_at_the_ends_of_the_penalty(x64):
    x = np.random.default_rng(0).standard_normal(50)
    assert (prox_tv1d(x, 0.0) == x).all()
    np.testing.assert_allclose(prox_tv1d(x, float(lambda_max(x, None))), x.mean(), atol=1e-12)
    assert np.ptp(prox_tv1d(x, 0.99 * float(lambda_max(x, None)))) > 1e-4
    assert prox_tv1d(np.array([3.0]), 1.0) == 3.0


def prox_2d(x, lam):
    """Dual box-constrained least squares."""
    h, w = x.shape
    rows = np.kron(np.diff(np.eye(h), axis=0), np.eye(w))
    columns = np.kron(np.eye(h), np.diff(np.eye(w), axis=0))
    D = np.concatenate([rows, columns])
    return x - (D.T @ lsq_linear(D.T, x.ravel(), (-lam, lam), tol=1e-15, max_iter=1000).x).reshape(h, w)


@pytest.mark.parametrize("lam", [0.05, 0.4, 2.0])
def test_prox_tv2d_is_the_minimiser(x64, lam):
    x = np.random.default_rng(1).standard_normal((6, 7))
    x[:3] += 3
    np.testing.assert_allclose(prox_tv2d(x, lam, max_iter=2000, tol=1e-12), prox_2d(x, lam), atol=1e-7)


def test_prox_tv2d_of_batches(dtype):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((3, 5, 4)), dtype)
    lam = jnp.array([0.0, 0.3, 50.0], dtype)
    u = prox_tv2d(x, lam, max_iter=200)
    assert u.dtype == dtype
    np.testing.assert_allclose(u[0], x[0], atol=1e-6)
    np.testing.assert_allclose(u[2], x[2].mean(), atol=1e-5)
    check_jit(lambda x, lam: prox_tv2d(x, lam, max_iter=200), x, lam, atol=1e-5)
    check_vmap(lambda x, lam: prox_tv2d(x, lam, max_iter=200), x, lam, atol=1e-5)
    np.testing.assert_allclose(prox_tv2d(10.0 + x, lam, max_iter=200), 10.0 + u, atol=2e-5)  # the mean stays


def test_prox_tv2d_of_one_row_is_prox_tv1d(x64):
    x = np.random.default_rng(3).standard_normal(20)
    np.testing.assert_allclose(prox_tv2d(x[None], 0.5)[0], prox_tv1d(x, 0.5), atol=1e-10)
    np.testing.assert_allclose(prox_tv2d(x[:, None], 0.5)[:, 0], prox_tv1d(x, 0.5), atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros(5)}, r"x: expected shape \(..., height, width\)"),
        ({"x": np.zeros((0, 5))}, "x: expected at least one entry"),
        ({"x": np.full((2, 2), np.nan)}, "x: expected finite"),
        ({"lam": -1.0}, "lam: expected values >= 0"),
        ({"lam": np.ones(3)}, "lam: expected a scalar"),
        ({"lam": np.inf}, "lam: expected finite"),
        ({"max_iter": 0}, "max_iter: expected an integer"),
        ({"tol": -1.0}, "tol: expected a number >= 0"),
    ],
)
def test_bad_input_of_prox_tv2d(arguments, message):
    with pytest.raises(ValueError, match=message):
        prox_tv2d(**({"x": np.ones((3, 4)), "lam": 0.1} | arguments))
