"""Tests of gyri.hnpe.baselines: against exact posteriors."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from gyri.hnpe import simulate
from gyri.hnpe.baselines import lfvi, rejection_abc

X, X_EXTRA = np.array([0.25], np.float32), np.array([[0.1], [0.4], [0.3]], np.float32)


def test_rejection_keeps_the_nearest(toy):
    kept = np.asarray(rejection_abc(0, toy.prior, toy, X, X_EXTRA, n_simulations=2000, quantile=0.05))
    assert kept.shape == (100, 2)
    sims = simulate(0, toy.prior, toy, 2000, 3)
    features = np.concatenate([sims.x, sims.x_extra.mean(1)], 1)
    observed = np.array([X[0], X_EXTRA.mean()])
    distance = (((features - observed) / features.std(0)) ** 2).sum(1)
    np.testing.assert_allclose(kept, np.asarray(sims.theta)[np.argsort(distance)[:100]], rtol=1e-6)


def test_rejection_without_others_is_near_the_exact_posterior(toy):
    kept = np.asarray(rejection_abc(0, toy.prior, toy, X, n_simulations=50_000))
    exact = np.asarray(toy.posterior_sample(0, (5000,), X))
    assert kept.shape == (500, 2)
    assert stats.wasserstein_distance(kept[:, 1], exact[:, 1]) < 0.04


def test_variational_inference_is_near_the_exact_posterior(toy):
    found = lfvi(0, toy.prior, toy, X, X_EXTRA, n_steps=150, n_ratio_steps=30, n_samples=2000)
    exact = np.asarray(toy.posterior_sample(0, (2000,), X, X_EXTRA))
    prior = np.random.default_rng(0).uniform(size=(2000, 2))
    for i in range(2):
        distance = stats.wasserstein_distance(np.asarray(found.samples)[:, i], exact[:, i])
        assert distance < 0.5 * stats.wasserstein_distance(prior[:, i], exact[:, i]) + 0.03
    assert {len(values) for values in found.history.values()} == {150}
    assert toy.prior.support(found.samples).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, m: f(0, m.prior, m, np.zeros(2)), r"x: expected shape \(1,\)"),
        (lambda f, m: f(0, m.prior, m, X, np.zeros((3, 2))), "x_extra: expected shape"),
        (lambda f, m: f(0, m.prior, m, np.array([np.nan])), "x: expected finite"),
    ],
)
@pytest.mark.parametrize("function", [rejection_abc, lfvi])
def test_bad_observations_are_refused(call, message, function, toy):
    with pytest.raises(ValueError, match=message):
        call(function, toy)


@dataclasses.dataclass
class Unhashable:
    model: object

    def __call__(self, key, theta):
        return self.model(key, theta)


def test_simulators_need_no_hash(toy):
    assert rejection_abc(0, toy.prior, Unhashable(toy), X, n_simulations=100).shape == (1, 2)
    options = {"n_steps": 2, "n_ratio_steps": 2, "n_samples": 5}
    one, other = (lfvi(0, toy.prior, model, X, X_EXTRA, **options) for model in (toy, Unhashable(toy)))
    np.testing.assert_allclose(one.samples, other.samples, rtol=1e-6)


def test_bad_numbers_are_refused(toy):
    for quantile in (1.5, 0.0, -0.1):
        with pytest.raises(ValueError, match="quantile: expected"):
            rejection_abc(0, toy.prior, toy, X, n_simulations=100, quantile=quantile)
    with pytest.raises(ValueError, match="n_steps: expected"):
        lfvi(0, toy.prior, toy, X, n_steps=0)
