"""Losses of the critic against linear and quadratic critics by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.cadda import critic_losses
from gyri.numerics.testing import check_jit


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 2, 5)).astype("f4"), 1 + rng.standard_normal((6, 2, 5)).astype("f4")


def test_a_linear_critic(pair):
    real, fake = pair
    w = np.random.default_rng(1).standard_normal((2, 5)).astype("f4")
    losses = critic_losses(0, lambda x: jnp.sum(x * w, (1, 2)), real, fake, gp_weight=3.0)
    gap = (fake * w).sum((1, 2)).mean() - (real * w).sum((1, 2)).mean()
    penalty = (np.linalg.norm(w) - 1) ** 2  # over all axes of an example
    assert set(losses) == {"wasserstein", "gradient_penalty", "critic", "generator"}
    np.testing.assert_allclose(losses["wasserstein"], gap, rtol=1e-5)
    np.testing.assert_allclose(losses["gradient_penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(losses["critic"], gap + 3 * penalty, rtol=1e-5)
    np.testing.assert_allclose(losses["generator"], -(fake * w).sum((1, 2)).mean(), rtol=1e-5)


def test_points_lie_between(pair):
    real, fake = pair
    half_square = lambda x: 0.5 * jnp.sum(x**2, (1, 2))  # its gradient is the point itself
    key = jax.random.key(3)
    losses = critic_losses(key, half_square, real, fake)
    u = np.asarray(jax.random.uniform(key, (6, 1, 1)))
    lengths = np.linalg.norm((u * real + (1 - u) * fake).reshape(6, -1), axis=1)
    np.testing.assert_allclose(losses["gradient_penalty"], np.mean((lengths - 1) ** 2), rtol=1e-5)


def test_gradients_where_the_critic_is_flat(pair):
    def loss(scale):
        return critic_losses(0, lambda x: scale * jnp.sum(x, (1, 2)), *pair)["critic"]

    value, slope = jax.value_and_grad(loss)(0.0)
    assert np.isfinite(value) and np.isfinite(slope)
    real, fake = pair
    np.testing.assert_allclose(slope, fake.sum((1, 2)).mean() - real.sum((1, 2)).mean(), rtol=1e-5)


def test_jit(pair):
    check_jit(
        lambda real, fake: critic_losses(0, lambda x: jnp.tanh(x).sum((1, 2)), real, fake), *map(jnp.asarray, pair)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fake": np.zeros((6, 2, 4))}, "fake: expected the shape of real"),
        ({"real": np.full((6, 2, 5), np.inf)}, "real: expected finite"),
        ({"real": np.zeros((0, 2)), "fake": np.zeros((0, 2))}, "real: expected at least one entry"),
        ({"gp_weight": -1.0}, "gp_weight: expected a number >= 0"),
        ({"critic": lambda x: x}, r"critic: expected scores of shape \(6,\)"),
    ],
)
def test_bad_input(pair, change, message):
    arguments = {"key": 0, "critic": lambda x: x.sum((1, 2)), "real": pair[0], "fake": pair[1]} | change
    with pytest.raises(ValueError, match=message):
        critic_losses(**arguments)
