"""Tests of gyri.tv.datasets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gamma, kstest, norm

from gyri.numerics.testing import check_jit
from gyri.tv import hrf_operator, lambda_max, simulate


def test_simulation_follows_the_recipe(x64):
    x, u, z, A = simulate(0, 4000, k=8, m=5, snr_db=3.0)
    np.testing.assert_allclose(np.linalg.norm(A, axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(u, np.cumsum(z, 1), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lambda_max(x, A), 1, rtol=1e-10)
    clean = u @ A.T
    snr = 10 * np.log10(np.sum(np.square(clean), 1) / np.sum(np.square(x - clean), 1))
    np.testing.assert_allclose(snr, 3.0, atol=1e-9)
    assert (np.count_nonzero(z, axis=1) == 1).all()  # int(0.2 * 8) = 1 step
    counts = np.count_nonzero(z, axis=0)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_places_are_drawn_with_replacement():
    _, _, z, _ = simulate(1, 3000, k=10, m=6, sparsity=0.5)
    distinct = np.count_nonzero(z, axis=1)
    assert distinct.max() == 5
    assert distinct.min() < 5
    assert abs(distinct.mean() - 10 * (1 - 0.9**5)) < 0.06


def test_heights_and_operator_are_gaussian(x64):
    A = np.eye(6)
    _, _, z, same = simulate(2, 2000, A=A, sparsity=0.2, snr_db=300.0)
    assert (np.asarray(same) == A).all()
    # lambda_max scales every signal; without noise it is |height| times what its place gives.
    height = np.asarray(z).sum(1)
    assert abs((height > 0).mean() - 0.5) < 0.05
    place = np.abs(np.asarray(z)).argmax(1)
    for i in range(1, 6):
        np.testing.assert_allclose(np.abs(height[place == i]), 6 / (i * (6 - i)), rtol=1e-9)
    _, _, _, A = simulate(3, 1, k=400, m=100)
    assert kstest(np.asarray(A).ravel() * 10, norm.cdf).pvalue > 1e-3


def test_keys_decide_and_dtypes_follow(dtype):
    first, again, other = (simulate(key, 5)[0] for key in (0, jax.random.key(0), 1))
    assert first.dtype == dtype
    assert (first == again).all()
    assert (first != other).any()
    assert simulate(0, 5, A=np.ones((3, 4), dtype) + np.eye(3, 4, dtype=dtype))[0].dtype == dtype
    check_jit(lambda key: simulate(key, 5), jax.random.key(0), atol=1e-5)


def test_hrf_is_the_canonical_response(x64):
    operator = hrf_operator(150, 0.735)
    assert operator.shape == (150, 150 - 33 + 1)
    t = np.arange(33) * 0.735
    expected = gamma.pdf(t, 6) - gamma.pdf(t, 16) / 6
    impulse = np.zeros(118)
    impulse[10] = 1.0
    response = np.asarray(operator.matvec(jnp.asarray(impulse)))
    np.testing.assert_allclose(response[10:43], expected / expected.max(), atol=1e-12)
    assert np.abs(np.r_[response[:10], response[43:]]).max() < 1e-12  # causal
    assert abs(t[response[10:43].argmax()] - 5) < 0.5  # peaks after five seconds
    assert hrf_operator(20, 0.7, duration=2.1).shape == (20, 18)  # 3 scans, though 2.1 / 0.7 rounds up


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate(0, 0), "n: expected an integer >= 1"),
        (lambda: simulate(0, 2, k=1), "k: expected an integer >= 2"),
        (lambda: simulate(0, 2, sparsity=1.5), "sparsity: expected a number"),
        (lambda: simulate(0, 2, sparsity=0.0), "sparsity: expected a share"),
        (lambda: simulate(0, 2, snr_db=np.nan), "snr_db: expected a finite number"),
        (lambda: simulate(0, 2, A=np.zeros(3)), "A: expected 2 axes"),
        (lambda: hrf_operator(10, 0.7), "n_times: expected more than"),
        (lambda: hrf_operator(100, 0), "tr: expected a number > 0"),
        (lambda: hrf_operator(100, 1.0, duration=0.5), "duration: expected a number > 1"),
        (lambda: hrf_operator(100, 15.0, duration=16.0), "duration: expected more than two scans"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
