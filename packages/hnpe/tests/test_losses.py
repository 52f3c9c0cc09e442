"""Tests of gyri.hnpe.losses and gyri.hnpe.deepset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.hnpe.deepset import count_feature, masked_mean
from gyri.hnpe.losses import apt_loss, draw_atoms


def test_atoms_are_the_row_and_others_without_replacement():
    theta = jnp.arange(20.0)[:, None] * jnp.ones(3)
    atoms = np.asarray(draw_atoms(jax.random.key(0), theta, 10))
    assert atoms.shape == (20, 10, 3)
    np.testing.assert_array_equal(atoms[:, 0], theta)
    assert all(len(np.unique(row[:, 0])) == 10 for row in atoms)


def test_other_atoms_are_uniform():
    keys = jax.random.split(jax.random.key(1), 2000)
    atoms = jax.vmap(lambda k: draw_atoms(k, jnp.arange(6.0)[:, None], 3))(keys)[:, 2, 1:, 0]
    counts = np.bincount(np.asarray(atoms, int).ravel(), minlength=6)
    assert counts[2] == 0
    assert abs(np.delete(counts, 2) / 800 - 1).max() < 0.1


@pytest.mark.parametrize("n_atoms", [1, 6])
def test_number_of_atoms_is_checked(n_atoms):
    with pytest.raises(ValueError, match="n_atoms: expected between 2 and the 5 rows"):
        draw_atoms(jax.random.key(0), jnp.zeros((5, 1)), n_atoms)


def test_loss_is_log_m_where_posterior_and_prior_agree():
    log_p = jax.random.normal(jax.random.key(0), (7, 10))
    np.testing.assert_allclose(apt_loss(log_p, log_p), np.log(10), rtol=1e-6)


def test_loss_is_the_cross_entropy_of_the_true_atom():
    log_q, log_p = np.random.default_rng(0).normal(size=(2, 4, 5))
    weights = np.exp(log_q - log_p)
    expected = -np.log(weights[:, 0] / weights.sum(1))
    np.testing.assert_allclose(apt_loss(jnp.asarray(log_q), jnp.asarray(log_p)), expected, rtol=1e-5)
    assert float(apt_loss(jnp.array([[500.0, -500.0]]), jnp.zeros((1, 2)))[0]) == 0


def test_loss_does_not_see_factors_that_depend_on_the_data_alone():
    log_q, log_p = jax.random.normal(jax.random.key(0), (2, 4, 5))
    np.testing.assert_allclose(apt_loss(log_q + jnp.arange(4.0)[:, None], log_p), apt_loss(log_q, log_p), rtol=1e-4)


def test_masked_mean_never_sees_what_is_missing():
    features, mask = jnp.arange(8.0).reshape(4, 2), jnp.array([True, False, True, False])
    expected = features[::2].mean(0)
    for filler in (0.0, np.nan, np.inf):
        filled = jnp.where(mask[:, None], features, filler)
        np.testing.assert_array_equal(masked_mean(filled, mask), expected)
        gradient = jax.grad(lambda f: masked_mean(f, mask).sum())(filled)
        np.testing.assert_array_equal(gradient, np.where(np.asarray(mask)[:, None], 0.5, 0) * np.ones(2))
    np.testing.assert_array_equal(masked_mean(features, jnp.zeros(4, bool)), np.zeros(2))


def test_count_feature():
    counts = [float(count_feature(jnp.arange(10) < n, jnp.float32)[0]) for n in range(11)]
    np.testing.assert_allclose(counts, np.log1p(np.arange(11)) / np.log(11), rtol=1e-6)
