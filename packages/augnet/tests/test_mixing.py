"""The mixture of transforms against the sum written out, and the law of the drawn one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gyri.augnet import Transform, eeg_transforms, mix
from gyri.augnet.mixing import choose_for_each
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap

KEY = jax.random.key(3)
GAINS = tuple(Transform(f"gain {g}", lambda key, x, arg, g=g: g + arg * x, (0.0, 1.0)) for g in (10.0, 20.0, 30.0))


def test_mixture_is_the_sum_written_out(x64):
    transforms = eeg_transforms(100.0, include="time_freq")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 50)))
    logits, magnitude = jnp.array([1.0, 1.01, 0.99, 1.02, 1.005]), jnp.array([0.3, 0.2, 0.1, 0.5, 0.6])
    weights = np.exp(np.asarray(logits) / 0.01 - 102)
    weights /= weights.sum()
    expected = np.zeros(x.shape)
    for i, transform in enumerate(transforms):
        y = np.asarray(transform(jax.random.fold_in(KEY, i), x, magnitude[i]))
        if transform.range is None:  # relaxed Bernoulli with the magnitude as probability
            key_apply = jax.random.fold_in(jax.random.fold_in(KEY, 6), i)
            u = np.asarray(jax.random.uniform(key_apply, (4,), minval=np.finfo(float).tiny))
            odds = np.log(magnitude[i] / (1 - magnitude[i])) + np.log(u / (1 - u))
            share = (1 / (1 + np.exp(-odds / 0.05)))[:, None, None]
            y = share * y + (1 - share) * np.asarray(x)
        expected += weights[i] * y
    np.testing.assert_allclose(mix(KEY, logits, magnitude, transforms, x), expected, atol=1e-10)


def test_mixture_in_single_precision_and_its_dtype():
    x = jnp.ones((2, 3), jnp.float32)
    out = mix(KEY, jnp.array([1.0, 1.01, 0.99]), jnp.full(3, 0.5), GAINS, x)
    weights = np.exp(np.array([0, 1, -1.0]))
    weights /= weights.sum()
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, weights @ [10.5, 20.5, 30.5], rtol=1e-6)
    assert mix(KEY, jnp.ones(3), jnp.ones(3), GAINS, x.astype(jnp.float16)).dtype == jnp.float16


def test_one_transform_is_drawn_with_its_weight():
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    draw = lambda key: mix(key, logits, jnp.full(3, 0.5), GAINS, jnp.ones((2, 1)), temperature=1.0, relaxed=False)
    out = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 5000)))
    assert (out[:, 0] == out[:, 1]).all()  # one for the whole batch
    counts = [(out[:, 0, 0] == value).sum() for value in (10.5, 20.5, 30.5)]
    assert sum(counts) == 5000 and stats.chisquare(counts, [1000, 2500, 1500]).pvalue > 1e-4
    each = np.asarray(choose_for_each(KEY, logits, jnp.full(3, 0.5), GAINS, jnp.ones((5000, 1)), temperature=1.0))
    counts = [(each == value).sum() for value in (10.5, 20.5, 30.5)]
    assert sum(counts) == 5000 and stats.chisquare(counts, [1000, 2500, 1500]).pvalue > 1e-4


def test_without_a_range_the_magnitude_is_the_probability():
    (flip,) = eeg_transforms(100.0, include=("sign_flip",))
    x = jnp.ones((20_000, 1, 1))
    for relaxed in (True, False):
        out = np.asarray(mix(KEY, jnp.ones(1), jnp.array([0.3]), (flip,), x, relaxed=relaxed))
        assert stats.binomtest(int((out < 0).sum()), 20_000, 0.3).pvalue > 1e-4
        assert relaxed == bool((np.abs(out) < 0.99).any())  # exact draws are one or the other
    for probability, sign in ((0.0, 1.0), (1.0, -1.0)):
        np.testing.assert_allclose(mix(KEY, jnp.ones(1), jnp.array([probability]), (flip,), x), sign, atol=1e-5)


def test_derivatives(x64):
    transforms = eeg_transforms(100.0, include=("frequency_shift", "gaussian_noise", "sign_flip"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 40)))
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    value = lambda u, mu: jnp.sum(weight * mix(KEY, u, mu, transforms, x, temperature=0.1))
    u, mu, step = jnp.array([1.0, 1.1, 0.9]), jnp.array([0.3, 0.5, 0.6]), 1e-6
    for position in (0, 1):
        gradient = jax.grad(value, argnums=position)(u, mu)
        for i in range(3):
            ends = []
            for sign in (1, -1):
                arguments = [u, mu]
                arguments[position] = arguments[position].at[i].add(sign * step)
                ends.append(value(*arguments))
            np.testing.assert_allclose(gradient[i], (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-7)


def test_drawing_again_without_jit_compiles_nothing():
    draw = lambda key, mu: mix(key, jnp.ones(3), mu, GAINS, jnp.ones((2, 2)), relaxed=False)
    check_no_recompilation(draw, (KEY, jnp.ones(3)), (jax.random.key(8), jnp.zeros(3)), jit=False)


def test_jit_vmap_and_no_recompilation():
    x = jnp.arange(6.0).reshape(3, 2)
    for relaxed in (True, False):
        fn = lambda key, u, mu, x, relaxed=relaxed: mix(key, u, mu, GAINS, x, relaxed=relaxed)
        args = (KEY, jnp.array([1.0, 1.01, 0.99]), jnp.array([0.1, 0.5, 0.9]), x)
        check_jit(fn, *args, atol=1e-5)
        check_no_recompilation(fn, args, (jax.random.key(9), jnp.ones(3), jnp.zeros(3), 2 * x))
        check_vmap(fn, jax.random.split(KEY, 2), *(jnp.stack([a, a]) for a in args[1:]), atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "magnitude", "message"),
    [
        (np.ones(2), np.ones(3), r"logits: expected shape \(3,\)"),
        (np.ones(3), np.ones(4), "magnitude: expected shape"),
        (np.ones(3), np.array([0.5, 1.1, 0.5]), r"magnitude: expected values in \[0, 1\]"),
        (np.ones(3), np.array([0.5, np.nan, 0.5]), r"magnitude: expected values in \[0, 1\]"),
        (np.ones(3), np.array([-0.1, 0.5, 0.5]), r"magnitude: expected values in \[0, 1\]"),
    ],
)
def test_bad_input_is_named(logits, magnitude, message):
    with pytest.raises(ValueError, match=message):
        mix(KEY, logits, magnitude, GAINS, jnp.ones((2, 2)))
