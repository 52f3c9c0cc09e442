"""The accelerator gives what the CPU gives, to float32's precision. Skipped where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gyri.cadda import PolicySearch, SleepStager, augment, init_policy, simulate_sleep
from gyri.numerics.transform import eeg_transforms


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"estimator": "relax"}, {"mode": "sample"}])
def test_augmented_windows_agree_with_the_cpu(options):
    X, y, _ = simulate_sleep(0, 1, 10, sfreq=50, window_s=10)
    transforms, results = eeg_transforms(50.0), []
    policy = init_policy(0, len(transforms), n_classes=5)
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            on = lambda x, device=device: jax.device_put(x, device)
            moved = jax.tree.map(on, policy)
            results.append(augment(0, moved, transforms, on(X), on(jnp.asarray(y)), n_chunks=2, **options))
    np.testing.assert_allclose(*map(np.asarray, results), rtol=1e-3, atol=2e-3)


@pytest.mark.gpu
def test_networks_agree_and_searches_run():
    X, y, subject = simulate_sleep(0, 2, 40, sfreq=20, window_s=10)
    network = SleepStager(2, 5, 200, 20, rngs=nnx.Rngs(0))
    network.eval()
    graph, state = nnx.split(network)
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            moved = jax.tree.map(lambda leaf, device=device: jax.device_put(leaf, device), state)
            results.append(np.asarray(nnx.merge(graph, moved)(jax.device_put(X, device))))
    np.testing.assert_allclose(*results, rtol=1e-2, atol=1e-2)
    for method in ("cadda", "dada", "faster_aa", "fast_aa"):
        search = PolicySearch(method=method, sfreq=20, n_epochs=2, n_warmup=1, verbose=False)
        search.fit(X[subject == 0], y[subject == 0], X[subject == 1], y[subject == 1])
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in search.policy_)
