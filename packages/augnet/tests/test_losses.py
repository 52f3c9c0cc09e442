"""The penalties against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gyri.augnet import Augerino, AugmentationLayer, AugNet, image_transforms, invariance_penalty

W, MU = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.4, 0.0, 0.9])


def test_norms(x64):
    w, mu = np.asarray(W, float), np.asarray(MU, float)
    assert invariance_penalty([w, mu]) == invariance_penalty((w, mu))
    np.testing.assert_allclose(invariance_penalty((w, mu)), np.linalg.norm(w * mu), rtol=1e-12)
    np.testing.assert_allclose(invariance_penalty((w, mu), kind="magnitude"), np.linalg.norm(mu), rtol=1e-12)
    check_grads(lambda w, mu: invariance_penalty((w, mu)), (w, mu), order=1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["selective", "magnitude"])
def test_derivative_at_zero_is_zero(kind):
    value, gradient = jax.value_and_grad(lambda mu: invariance_penalty((W, mu), kind=kind))(jnp.zeros(3))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_models():
    layers = [AugmentationLayer(image_transforms(), init_magnitude=0.4) for _ in range(2)]
    net = AugNet(lambda x: x, layers)
    np.testing.assert_allclose(invariance_penalty(net), np.sqrt(10) * 0.2 * 0.4, rtol=1e-6)
    np.testing.assert_allclose(invariance_penalty(layers[0]), np.sqrt(5) * 0.2 * 0.4, rtol=1e-6)
    np.testing.assert_allclose(invariance_penalty(net, kind="magnitude"), np.sqrt(10) * 0.4, rtol=1e-6)


def test_widths_and_their_safe_variant():
    augerino = Augerino(init_width=1.0)
    for model in (augerino, AugNet(lambda x: x, augerino)):
        for kind in ("width", "width_safe"):
            np.testing.assert_allclose(invariance_penalty(model, kind=kind), 2 * np.sqrt(6), rtol=1e-5)
    augerino.theta[...] = augerino.theta[...].at[2].set(10.0)
    assert invariance_penalty(augerino, kind="width_safe") == 0 < invariance_penalty(augerino, kind="width")


def test_what_a_model_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="kind"):
        invariance_penalty((W, MU), kind="both")
    with pytest.raises(ValueError, match="kind: expected 'selective' or 'magnitude'"):
        invariance_penalty(AugmentationLayer(image_transforms()), kind="width")
    with pytest.raises(ValueError, match="model"):
        invariance_penalty((W, MU[:2]))
    with pytest.raises(ValueError, match="model"):
        invariance_penalty(AugNet(lambda x: x, Augerino()))
