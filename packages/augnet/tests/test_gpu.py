"""The accelerator gives what the CPU gives, to float32's precision. Skipped where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.augnet import AugmentationLayer, AugNet, eeg_transforms, image_transforms, mix


@pytest.mark.gpu
def test_layers_agree_with_the_cpu():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(8, 16, 16, 3)).astype(np.float32)
    signals = rng.normal(size=(8, 2, 300)).astype(np.float32)
    key = jax.random.key(0)

    def apply():
        affine, eeg = image_transforms("geometric"), eeg_transforms(100.0, include="time_freq")
        gradient = jax.grad(lambda mu: (mix(key, jnp.ones(6), mu, affine, images) ** 2).mean())(jnp.full(6, 0.4))
        net = AugNet(lambda x: x.mean(-1), AugmentationLayer(eeg, init_magnitude=0.3), copies=5)
        net.eval()
        return gradient, mix(key, jnp.ones(5), jnp.full(5, 0.4), eeg, signals), net(signals, key=key)

    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.tree.map(np.asarray, apply()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4)
