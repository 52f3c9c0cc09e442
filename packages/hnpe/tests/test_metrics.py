"""Tests of gyri.hnpe.metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from gyri.hnpe.metrics import c2st, contraction, dirac_distance, sinkhorn_divergence, z_score

RNG = np.random.default_rng(0)


def brute_force(x, y, a, b, eps, n_iter=20_000):
    """Entropic cost by plain Sinkhorn scaling in double precision, on the kernel."""
    cost = 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)
    kernel, u = np.exp(-cost / eps), np.ones(len(x))
    for _ in range(n_iter):
        v = 1 / (kernel.T @ (a * u))
        u = 1 / (kernel @ (b * v))
    return eps * (a @ np.log(u) + b @ np.log(v))


def test_divergence_is_that_of_plain_scaling(x64):
    x, y = RNG.uniform(size=(12, 2)), RNG.uniform(size=(9, 2)) + 0.1
    a, b = RNG.dirichlet(np.ones(12)), RNG.dirichlet(np.ones(9))
    eps = 0.2**2
    expected = brute_force(x, y, a, b, eps) - 0.5 * (brute_force(x, x, a, a, eps) + brute_force(y, y, b, b, eps))
    found = sinkhorn_divergence(x, y, a, b, blur=0.2, n_iter=500)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_small_blur_is_optimal_transport(x64):
    x, y = RNG.uniform(size=(40, 2)), RNG.uniform(size=(40, 2)) + 0.5
    cost = 0.5 * ((x[:, None] - y[None]) ** 2).sum(-1)
    exact = cost[linear_sum_assignment(cost)].mean()
    assert float(sinkhorn_divergence(x, y, blur=0.01, n_iter=2000)) == pytest.approx(exact, rel=0.02)


def test_divergence_of_equal_samples_is_zero_and_it_is_symmetric():
    x, y = RNG.normal(size=(50, 2)).astype(np.float32), RNG.normal(size=(60, 2)).astype(np.float32)
    assert abs(float(sinkhorn_divergence(x, x))) < 1e-5
    assert float(sinkhorn_divergence(x, y)) == pytest.approx(float(sinkhorn_divergence(y, x)), rel=1e-3)
    gradient = jax.grad(lambda x: sinkhorn_divergence(x, y))(jnp.asarray(x))
    assert jnp.isfinite(gradient).all() and float(jnp.abs(gradient).max()) > 0


def test_distances_are_those_of_their_definitions():
    samples, theta = RNG.normal(size=(200, 3)), np.array([0.5, 0.0, -1.0])
    squares = ((samples - theta) ** 2).mean(0)  # mean square is variance plus squared bias
    np.testing.assert_allclose(dirac_distance(samples, theta), squares, rtol=1e-5)
    np.testing.assert_allclose(dirac_distance(samples, theta, normalize=True), squares / samples.std(0), rtol=1e-5)
    np.testing.assert_allclose(z_score(samples, theta), (samples.mean(0) - theta) / samples.std(0), rtol=1e-4)
    np.testing.assert_allclose(contraction(samples / 2, samples), 0.75, rtol=1e-4)


def test_classifier_tells_what_differs():
    pytest.importorskip("sklearn")
    x = RNG.normal(size=(300, 2))
    assert abs(c2st(x, RNG.normal(size=(300, 2))) - 0.5) < 0.08
    assert c2st(x, RNG.normal(size=(300, 2)) + 3) > 0.95
    assert c2st(x, RNG.normal(size=(300, 2)) * 3, n_folds=3) > 0.65


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn_divergence(np.zeros(3), np.zeros((3, 1))), "x: expected 2 axes"),
        (lambda: sinkhorn_divergence(np.zeros((3, 1)), np.zeros((3, 2))), "y: expected shape"),
        (lambda: sinkhorn_divergence(np.zeros((3, 1)), np.zeros((3, 1)), a=np.ones(2)), "a: expected shape"),
        (lambda: sinkhorn_divergence(np.zeros((3, 1)), np.zeros((3, 1)), blur=0.0), "blur: expected"),
        (lambda: sinkhorn_divergence(np.zeros((3, 1)), np.zeros((3, 1)), n_iter=0), "n_iter: expected"),
        (lambda: dirac_distance(np.zeros((3, 2)), np.zeros(3)), "theta: expected shape"),
        (lambda: dirac_distance(np.zeros((0, 2)), np.zeros(2)), "samples: expected at least one"),
        (lambda: contraction(np.zeros((3, 2)), np.zeros((3, 1))), "prior_samples: expected shape"),
        (lambda: c2st(np.full((3, 2), np.nan), np.zeros((3, 2))), "x: expected finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
