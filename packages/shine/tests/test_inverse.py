"""Tests of gyri.shine.inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyri.numerics.testing import check_jit, check_vmap
from gyri.shine import InverseEstimate, inverse_quality
from gyri.shine.inverse import Layout, LimitedMemory, LowRank

from .conftest import relative


def low_rank(seed, batch, m, d, n_rows):
    rng = np.random.default_rng(seed)
    U, V = (jnp.asarray(rng.standard_normal((*batch, m, d))) for _ in range(2))
    tree = {"a": jnp.zeros((*batch, 2)), "b": jnp.zeros((*batch, d - 2, 1))}
    scale, rows = jnp.asarray(rng.standard_normal(batch)), jnp.full(batch, n_rows)
    estimate = LowRank(scale, U, V, rows, Layout.of(tree, len(batch)))
    return estimate, jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), tree)


def bfgs_inverse(S, Y, gamma):
    """The textbook recursion on matrices, oldest pair first."""
    H = gamma * np.eye(S.shape[1])
    for s, y in zip(S, Y):
        rho = 1 / (s @ y)
        left = np.eye(len(s)) - rho * np.outer(s, y)
        H = left @ H @ left.T + rho * np.outer(s, s)
    return H


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.sampled_from([(), (3,)]), st.integers(0, 4))
def test_low_rank_products_are_those_of_its_matrix(seed, batch, n_rows):
    with jax.enable_x64(True):
        estimate, v = low_rank(seed, batch, 4, 6, n_rows)
        U, V = (np.asarray(x)[..., :n_rows, :] for x in (estimate.U, estimate.V))
        matrix = np.asarray(estimate.scale)[..., None, None] * np.eye(6) + np.swapaxes(U, -1, -2) @ V
        flat = np.concatenate([np.asarray(v["a"]), np.asarray(v["b"])[..., 0]], -1)
        for ours, transposed in ((estimate.matvec(v), False), (estimate.rmatvec(v), True)):
            expected = ((np.swapaxes(matrix, -1, -2) if transposed else matrix) @ flat[..., None])[..., 0]
            got = np.concatenate([np.asarray(ours["a"]), np.asarray(ours["b"])[..., 0]], -1)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(estimate.dense(), matrix, atol=1e-12)
        assert (np.asarray(estimate.rank) == n_rows).all()
    assert isinstance(estimate, InverseEstimate)


def test_limited_memory_is_the_recursion_on_matrices(x64):
    rng = np.random.default_rng(0)
    S = rng.standard_normal((4, 6))
    A = rng.standard_normal((6, 6))
    Y = S @ (A @ A.T + np.eye(6))
    layout = Layout.of(jnp.zeros(6))
    ring = np.roll(np.arange(4), 1)  # the newest pair sits in slot 0, the oldest in slot 1
    S_ring, Y_ring = np.empty_like(S), np.empty_like(Y)
    S_ring[(np.arange(4) + 1) % 4], Y_ring[(np.arange(4) + 1) % 4] = S, Y
    assert ring[0] == 3
    estimate = LimitedMemory(*(jnp.asarray(x) for x in (S_ring, Y_ring, 0.7, 4, 1)), layout)
    expected = bfgs_inverse(S, Y, 0.7)
    assert relative(estimate.dense(), expected) <= 1e-10
    v = jnp.asarray(rng.standard_normal(6))
    assert relative(estimate.matvec(v), expected @ np.asarray(v)) <= 1e-10
    assert relative(estimate.rmatvec(v), expected @ np.asarray(v)) <= 1e-10
    two = LimitedMemory(*(jnp.asarray(x) for x in (S_ring, Y_ring, 0.7, 2, 1)), layout)  # the two newest
    assert relative(two.dense(), bfgs_inverse(S[2:], Y[2:], 0.7)) <= 1e-10
    gradient = jax.grad(lambda v: jnp.vdot(v, estimate.matvec(v)))(v)
    assert relative(gradient, 2 * expected @ np.asarray(v)) <= 1e-10


def test_estimates_work_under_jit_and_vmap_and_have_gradients(x64):
    estimate, v = low_rank(0, (3,), 4, 6, 3)
    check_jit(lambda e, v: (e.matvec(v), e.rmatvec(v), e.dense(), e.rank), estimate, v)
    check_vmap(lambda e, v: (e.matvec(v), e.rmatvec(v), e.rank), estimate, v)
    gradient = jax.grad(lambda v: sum(x.sum() for x in jax.tree.leaves(estimate.matvec(v))))(v)
    expected = estimate.rmatvec(jax.tree.map(jnp.ones_like, v))
    np.testing.assert_allclose(gradient["b"], expected["b"], rtol=1e-12)


def test_estimates_refuse_vectors_of_another_shape():
    estimate, v = low_rank(0, (), 4, 6, 3)
    with pytest.raises(ValueError, match="v: expected arrays that end in"):
        estimate.matvec({"a": v["a"], "b": jnp.zeros((5, 1))})


def test_inverse_quality_is_its_definition(x64):
    rng = np.random.default_rng(0)
    a, e = rng.standard_normal((2, 5, 7))
    error, ratio, cosine = inverse_quality(a, e)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(e, axis=1)
    np.testing.assert_allclose(error, np.linalg.norm(a - e, axis=1) / norms[1], rtol=1e-12)
    np.testing.assert_allclose(ratio, norms[0] / norms[1], rtol=1e-12)
    np.testing.assert_allclose(cosine, (a * e).sum(1) / norms[0] / norms[1], rtol=1e-12)
    np.testing.assert_array_equal(inverse_quality(a, 0 * e), np.full((3, 5), np.nan))
    np.testing.assert_array_equal(inverse_quality(0 * a, e), np.array([[1.0], [0.0], [np.nan]]) * np.ones(5))
    check_jit(inverse_quality, jnp.asarray(a), jnp.asarray(e))
    check_vmap(inverse_quality, jnp.asarray(a), jnp.asarray(e))
    with pytest.raises(ValueError, match="approx: expected the shape of exact"):
        inverse_quality(a, e[:3])
