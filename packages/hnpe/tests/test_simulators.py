"""Tests of gyri.hnpe.simulators: densities against brute-force quadrature, draws against densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gyri.hnpe import ToyModel
from gyri.hnpe.simulators import SourceLocalization
from gyri.numerics.testing import check_jit, check_vmap

X, X_EXTRA = np.array([0.25]), 0.5 * np.linspace(0.05, 0.95, 10)[:, None]
CASES = [(1.0, 0.0), (1.0, 0.05), (2.0, 0.0), (0.5, 0.02), (0.5, 0.0)]


def brute_force(gamma, noise, x, n_beta=4001, n_alpha=4001):
    """p(beta | all x) on a grid, by integrating alpha out numerically, from the definition of the model."""
    beta = (np.arange(n_beta) + 0.5) / n_beta
    alpha = (np.arange(n_alpha) + 0.5) / n_alpha
    log_p = np.zeros(n_beta)
    for value in x:
        likelihood = stats.norm.pdf(value, alpha[None] * beta[:, None] ** gamma, noise).mean(1)
        with np.errstate(divide="ignore"):
            log_p += np.log(likelihood)
    p = np.exp(log_p - log_p.max())
    return beta, p / p.mean()


@pytest.mark.parametrize(("gamma", "noise"), [(1.0, 0.05), (2.0, 0.1), (0.5, 0.02)])
@pytest.mark.parametrize("n_extra", [0, 10])
def test_noisy_density_is_that_of_brute_force(gamma, noise, n_extra):
    model = ToyModel(gamma, noise)
    beta, expected = brute_force(gamma, noise, [*X, *X_EXTRA[:n_extra, 0]], 1001)
    found = np.exp(model.log_prob_shared(beta, X, X_EXTRA[:n_extra]))
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize(("gamma", "noise"), CASES)
@pytest.mark.parametrize("n_extra", [0, 1, 10])
def test_density_integrates_to_one_and_draws_follow_it(gamma, noise, n_extra):
    model = ToyModel(gamma, noise)
    beta = jnp.linspace(0, 1, 400_001)[1:-1]
    p = np.exp(np.asarray(model.log_prob_shared(beta, X, X_EXTRA[:n_extra]), float))
    assert abs(np.trapezoid(p, beta) - 1) < 1e-3
    cdf = np.cumsum(p) / p.sum()
    draws = np.asarray(model.posterior_sample(0, (3000,), X, X_EXTRA[:n_extra]))
    assert draws.shape == (3000, 2) and ((draws >= 0) & (draws <= 1)).all()
    assert stats.kstest(draws[:, 1], lambda b: np.interp(b, beta, cdf)).pvalue > 1e-3
    if noise == 0:
        np.testing.assert_allclose(draws[:, 0] * draws[:, 1] ** gamma, 0.25, rtol=1e-5)


def test_noise_free_density_survives_a_thousand_recordings():
    model, x_extra = ToyModel(), np.linspace(1e-4, 0.1, 1000)[:, None]
    log_p = model.log_prob_shared(jnp.array([0.099, 0.1001, 0.11]), np.array([0.05]), x_extra)
    # beta^-1001 on [0.1, 1]: log 1000 - 1001 log beta + 1000 log 0.1
    expected = np.log(1000) - 1001 * np.log([0.1001, 0.11]) + 1000 * np.log(0.1)
    assert log_p[0] == -jnp.inf
    np.testing.assert_allclose(log_p[1:], expected, rtol=1e-4)
    draws = model.posterior_sample(0, (500,), np.array([0.05]), x_extra)
    assert (draws[:, 1] >= 0.1 - 1e-6).all() and float(draws[:, 1].mean()) == pytest.approx(0.1001, rel=1e-4)


@pytest.mark.parametrize("value", [-0.1, 0.0, 0.25, 0.6])
def test_alpha_given_beta_is_a_truncated_normal(value, dtype):
    model, beta, sd = ToyModel(noise=0.05), 0.5, 0.1
    oracle = stats.truncnorm(-value / beta / sd, (1 - value / beta) / sd, loc=value / beta, scale=sd)
    alpha = np.linspace(0.01, 0.99, 50)
    found = model.log_prob_local(alpha.astype(dtype), np.full(50, beta, dtype), np.array([value], dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, oracle.logpdf(alpha), rtol=2e-4, atol=2e-4)
    draws = model._sample_local(jax.random.key(0), jnp.full(3000, beta, dtype), jnp.asarray(value, dtype))
    assert stats.kstest(np.asarray(draws), oracle.cdf).pvalue > 1e-3


def test_joint_density():
    theta = jnp.array([[0.4, 0.6], [0.5, 0.5], [0.5, 1.2]])
    noisy = ToyModel(noise=0.05)
    expected = noisy.log_prob_local(theta[:, 0], theta[:, 1], X) + noisy.log_prob_shared(theta[:, 1], X, X_EXTRA)
    np.testing.assert_allclose(noisy.log_prob(theta, X, X_EXTRA), expected)
    model = ToyModel(gamma=2.0)
    found = model.log_prob(theta, X, None, tol=0.01)
    alpha, beta = np.asarray(theta[:2]).T
    expected = stats.norm.logpdf(0.25, alpha * beta**2, 0.01) + 2 * np.log(beta) + model.log_prob_shared(beta, X)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-4)
    assert found[2] == -jnp.inf


def test_simulated_recordings_follow_the_model():
    model = ToyModel(gamma=2.0, noise=0.1)
    x = jax.vmap(lambda key: model(key, jnp.array([0.8, 0.5])))(jax.random.split(jax.random.key(0), 3000))
    assert stats.kstest(np.asarray(x)[:, 0], stats.norm(0.2, 0.1).cdf).pvalue > 1e-3
    assert ToyModel().prior is ToyModel(noise=0.1).prior


def test_toy_under_jit_and_vmap(toy):
    theta = toy.prior.sample(0, (4,))
    x, x_extra = jnp.full((4, 1), 0.2), jnp.full((4, 2, 1), 0.3)
    check_jit(toy.log_prob, theta[0], x[0], x_extra[0], rtol=1e-4)
    check_vmap(toy.log_prob, theta, x, x_extra, rtol=1e-4)
    gradient = jax.grad(lambda t: toy.log_prob(t, x[0], x_extra[0]))(jnp.array([0.5, 1.5]))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("shared", ["u", "v"])
def test_sound_source_is_the_difference_of_distances(shared):
    model = SourceLocalization(angle=0.3, noise=0.0, n_outputs=3, shared=shared)
    u, v = 0.7, -1.2
    theta = jnp.array([v, u] if shared == "u" else [u, v])
    microphone = np.array([np.cos(0.3), np.sin(0.3)])
    expected = np.linalg.norm([u, v] + microphone) - np.linalg.norm([u, v] - microphone)
    np.testing.assert_allclose(model(0, theta), np.full(3, expected), rtol=1e-6)
    assert model.prior.names == (("v", "u") if shared == "u" else ("u", "v"))
    noisy = SourceLocalization(noise=0.2, n_outputs=2000)(0, theta) - SourceLocalization(noise=0.0)(0, theta)
    assert stats.kstest(np.asarray(noisy), stats.norm(0, 0.2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToyModel(noise=-0.1), "noise: expected"),
        (lambda: ToyModel(gamma=0.0), "gamma: expected"),
        (lambda: ToyModel().log_prob_local(jnp.ones(1), jnp.ones(1), X), "noise: expected > 0"),
        (lambda: ToyModel().log_prob(jnp.ones(2), X, X_EXTRA), "tol: expected a number"),
        (lambda: ToyModel().log_prob_shared(jnp.ones(1), np.zeros(2)), r"x: expected shape \(1,\)"),
        (lambda: ToyModel().log_prob_shared(jnp.ones(1), X, np.zeros(3)), "x_extra: expected shape"),
        (lambda: ToyModel().log_prob_shared(jnp.ones(1), np.array([np.nan])), "x: expected finite"),
        (lambda: ToyModel()(0, jnp.ones(3)), r"theta: expected shape \(2,\)"),
        (lambda: SourceLocalization(shared="w"), "shared: expected one of"),
        (lambda: SourceLocalization(n_outputs=0), "n_outputs: expected"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
