"""Tests of gyri.hnpe.train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gyri.hnpe.train import cosine_adam, fit


def test_steps_are_those_of_optax(dtype):
    ours, theirs = cosine_adam(0.1, 20), optax.adam(optax.cosine_decay_schedule(0.1, 20))
    x = y = jnp.array([3.0, -2.0], dtype)
    states = ours.init(x), theirs.init(y)
    gradient = jax.grad(lambda v: jnp.sum(v**2 + jnp.sin(3 * v)))
    for _ in range(25):
        step, state = ours.update(gradient(x), states[0], x)
        expected, other = theirs.update(gradient(y), states[1], y)
        states = state, other
        x, y = x + step, y + expected
        assert step.dtype == dtype
        np.testing.assert_allclose(x, y, rtol=1e-5)


def noisy(mean, batch, key):
    """A loss whose gradient noise does not go away."""
    return jnp.mean((batch["x"] - mean) ** 2) + 3.0 * jnp.sum(mean * jax.random.normal(key, mean.shape))


def test_weights_are_annealed_once_the_patience_is_over():
    data = {"x": jax.random.normal(jax.random.key(0), (200, 4))}
    options = {"batch_size": 20, "validation_fraction": 0.5, "progress": False, "learning_rate": 0.3}
    _, short = fit(jax.random.key(1), noisy, jnp.zeros(4), data, max_epochs=500, patience=10, **options)
    n = len(short["valid_loss"])
    assert 20 < n < 500
    before, after = short["valid_loss"][:-10], short["valid_loss"][-10:]
    assert len(before) - 1 - before.argmin() >= 10  # the patience was over
    assert after.min() < before.min()
    _, full = fit(jax.random.key(1), noisy, jnp.zeros(4), data, max_epochs=12, patience=100, **options)
    assert len(full["valid_loss"]) == 12


def test_an_interruption_is_an_end(monkeypatch):
    from gyri.hnpe import train

    calls = []

    def interrupted(key, loss, params, data, **options):
        calls.append(options)
        losses = np.array([3.0, 2.0, 1.0])  # still better every epoch
        return params, {"train_loss": losses, "valid_loss": losses}

    monkeypatch.setattr(train, "fit_minibatch", interrupted)
    options = {"batch_size": 2, "max_epochs": 100, "patience": 2, "validation_fraction": 0.1, "learning_rate": 0.1}
    _, history = fit(jax.random.key(0), noisy, jnp.zeros(1), {"x": jnp.zeros((10, 1))}, **options)
    assert len(calls) == 1 and len(history["valid_loss"]) == 3


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_validation_may_be_left_out(fraction):
    data = {"x": jnp.ones((40, 1))}
    options = {"batch_size": 10, "max_epochs": 40, "patience": 3, "learning_rate": 0.1, "progress": False}
    best, history = fit(
        jax.random.key(0), lambda m, b, k: jnp.mean((b["x"] - m) ** 2), jnp.zeros(1), data,
        validation_fraction=fraction, **options,
    )  # fmt: skip
    assert abs(float(best[0]) - 1) < 0.1
    assert np.isnan(history["valid_loss"]).all() == (fraction == 0)
