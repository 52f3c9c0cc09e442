"""The metric against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.augnet import Transform, invariance

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)))


def test_formula_and_a_derangement():
    seen = []

    def fn(key, x):
        seen.append(np.asarray(x))
        return x @ jnp.array([[1.0, 0.2], [0.1, 2.0], [0.5, 0.5], [-1.0, 0.3]])

    values = np.asarray(invariance(fn, X, lambda key, x: x + 1.0, KEY))
    before, after = (np.asarray(fn(None, jnp.asarray(x))) for x in seen[:2])
    cosine = lambda a, b: 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    # The other example is not told: it is the one for which the formula holds, and never the example itself.
    change = cosine(before, after)
    for i in range(50):
        reference = cosine(np.broadcast_to(before[i], before.shape), before)
        candidates = (reference - change[i]) / (reference + 1e-8)
        matches = np.flatnonzero(np.abs(candidates - values[i]) < 1e-3 * np.maximum(1, np.abs(values[i])))
        assert len(matches) and set(matches) != {i}


def test_extremes():
    np.testing.assert_allclose(invariance(lambda key, x: x**2, X, lambda key, x: -x, KEY), 1, atol=1e-5)
    shuffled = invariance(lambda key, x: x, X, lambda key, x: jax.random.permutation(key, x), KEY)
    assert abs(np.median(shuffled)) < 0.5
    assert np.median(invariance(lambda key, x: x, X, lambda key, x: -x, KEY)) < 0  # worse than another example


def test_noise_is_independent_and_transforms_are_applied_in_full():
    noisy = lambda key, x: jax.random.normal(key, x.shape)
    assert np.median(invariance(noisy, X, lambda key, x: x, KEY)) < 0.5
    calls = []
    transform = Transform("gain", lambda key, x, arg: calls.append(arg) or x * arg, (1.0, 3.0))
    np.testing.assert_allclose(invariance(lambda key, x: x, X, transform, KEY), 1, atol=1e-5)
    assert calls == [3.0]


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_the_size_of_outputs_does_not_matter(size):
    values = [
        invariance(lambda key, x, scale=scale: scale * x, jnp.asarray(X, jnp.float32), lambda key, x: x + 1, KEY)
        for scale in (1.0, size)
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-3, atol=1e-4)


def test_zero_outputs_and_too_few_examples():
    assert np.isfinite(invariance(lambda key, x: 0 * x, X, lambda key, x: x, KEY)).all()
    with pytest.raises(ValueError, match="x: expected at least two"):
        invariance(lambda key, x: x, X[:1], lambda key, x: x, KEY)


def test_jit():
    fn = lambda x, key: invariance(lambda key, x: x**2 + x, x, lambda key, x: -x, key)
    np.testing.assert_allclose(jax.jit(fn)(X, KEY), fn(X, KEY), rtol=1e-4, atol=1e-4)
