"""The accelerator gives what the CPU gives, to float32's precision. Skipped where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.unrolled import dictionary_gradient, simulate, sparse_code
from gyri.unrolled.convolution import conv_code


@pytest.mark.gpu
def test_codes_and_gradients_agree_with_the_cpu():
    X, D, _ = simulate(0, 200)
    signals = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 200)), jnp.float32)
    atoms = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3, 16)), jnp.float32)
    setting = {"algorithm": "fista", "lipschitz": "spectral", "backprop_depth": None}
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        on = lambda x, device=device: jax.device_put(x, device)
        codes = sparse_code(on(X), on(D), 0.1)
        gradient = dictionary_gradient(on(X), on(D), 0.1)[1]
        results.append((codes, gradient, conv_code(on(signals), on(atoms), 2.0, on(jnp.ones(10)), None, **setting)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-3, atol=1e-3)
