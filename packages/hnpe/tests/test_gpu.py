"""On an accelerator: the same law as on the host, the same numbers where they can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.hnpe import HNPE, JansenRit, log_psd, simulate

pytestmark = pytest.mark.gpu


def on_both(function):
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.tree.map(np.asarray, function()))
    return results


def test_simulations_are_those_of_the_host(toy):
    here, there = on_both(lambda: simulate(0, toy.prior, toy, 500, (0, 5)))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_paths_of_the_neural_mass_model_are_those_of_the_host():
    with jax.enable_x64(True):
        model = JansenRit(duration=0.5, burn_in=0.25)
        here, there = on_both(lambda: model(0, jnp.array([[135.0, 220.0, 2000.0, 0.0]] * 3)))
    np.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-6)


def test_spectra_are_those_of_the_host():
    x = np.random.default_rng(0).normal(size=(4, 1024)).astype(np.float32)
    here, there = on_both(lambda: log_psd(x))
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_training_learns_and_draws_stay_inside(toy):
    sims = simulate(0, toy.prior, toy, 2000, (0, 5))
    model = HNPE(toy.prior).append_simulations(*sims).train(0, max_epochs=20, progress=False)
    assert min(model.history_["valid_loss"]) < -1.2
    draws = model.build_posterior().sample(0, (1000,), [0.25], [[0.4]])
    assert toy.prior.support(draws).all()
