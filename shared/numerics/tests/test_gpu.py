"""The accelerator gives what the CPU gives, to float32's precision. Skipped where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.numerics import eeg, linalg, optim, soft_threshold


@pytest.mark.gpu
def test_solvers_agree_with_the_cpu():
    rng = np.random.default_rng(0)
    matrix, target = rng.standard_normal((30, 20)).astype(np.float32), rng.standard_normal(30).astype(np.float32)

    def solve():
        a = linalg.as_operator(jnp.asarray(matrix))
        norm = linalg.operator_norm(a)
        least, _ = linalg.cg(lambda x: a.rmatvec(a.matvec(x)) + x, a.rmatvec(jnp.asarray(target)))
        gradient = lambda x: a.rmatvec(a.matvec(x) - target)
        prox = lambda x, step: soft_threshold(x, step)
        sparse = optim.fista(gradient, prox, jnp.zeros(20), 1 / norm**2, max_iter=300, tol=1e-6).x
        newton = optim.damped_newton(lambda x: jnp.sum((x**2 - 1) ** 2), jnp.array([2.0, 0.5]), tol=1e-6).x
        return norm, least, sparse, newton

    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.tree.map(np.asarray, solve()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_transforms_agree_with_the_cpu():
    x = np.random.default_rng(0).standard_normal((4, 6, 500)).astype(np.float32)
    places = np.random.default_rng(1).standard_normal((3, 6))
    key = jax.random.key(0)

    def apply():
        return (
            eeg.ft_surrogate(key, x, 0.7),
            eeg.frequency_shift(x, 1.3, 100.0),
            eeg.bandstop_filter(x, 12.0, 100.0),
            eeg.smooth_time_mask(x, 100.0, 50.0),
            eeg.channels_shuffle(key, x, 0.5),
            eeg.sensors_rotation(x, places, 20.0),
        )

    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.tree.map(np.asarray, apply()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
