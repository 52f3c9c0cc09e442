"""RELAX is unbiased, whatever the surrogate; and a good surrogate lowers its variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.cadda import relax_bernoulli_gradient, relax_gradient
from gyri.cadda.estimators import init_surrogate, surrogate_network
from gyri.numerics.testing import check_jit, check_no_recompilation

COST = np.array([[0.3, -1.0, 2.0], [1.0, 0.2, -0.5]])
LOGITS = np.array([[0.2, -0.4, 0.1], [0.0, 0.7, -0.2]])
N_DRAWS = 20_000


def cost(one_hot):
    """Not additive in the two choices."""
    picked = jnp.sum(one_hot * COST, -1)
    return picked[0] * picked[1] + picked[0]


def softmax(w):
    e = np.exp(w - w.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def exact_gradient():
    """By summing over all nine pairs and differentiating the probabilities by hand."""
    p, g = softmax(LOGITS), np.zeros_like(LOGITS)
    for i in range(3):
        for j in range(3):
            f = COST[0, i] * COST[1, j] + COST[0, i]
            score = np.stack([np.eye(3)[i] - p[0], np.eye(3)[j] - p[1]])
            g += p[0, i] * p[1, j] * f * score
    return g


def assert_unbiased(draws, expected):
    draws = np.asarray(draws, float)
    z = (draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))
    assert np.abs(z).max() < 4, z


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_relax_is_unbiased(temperature, x64):
    params = init_surrogate(jax.random.key(5), 6, "float64")
    draw = lambda k: relax_gradient(k, cost, LOGITS, surrogate_network, params, temperature=temperature)
    draws, _, samples = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), N_DRAWS))
    assert_unbiased(draws, exact_gradient())
    assert_unbiased(samples, softmax(LOGITS))
    np.testing.assert_array_equal(samples.sum(-1), 1)


def test_bernoulli_relax_is_unbiased(x64):
    logits, weights = np.array([0.3, -1.0]), np.array([2.0, -0.7])
    f = lambda bits: jnp.square(bits @ weights) + bits[0]
    p = 1 / (1 + np.exp(-logits))
    expected = np.zeros(2)
    for b in np.ndindex(2, 2):
        b = np.array(b)
        expected += np.prod(np.where(b, p, 1 - p)) * ((b @ weights) ** 2 + b[0]) * (b - p)
    params = init_surrogate(jax.random.key(5), 2, "float64")
    draw = lambda k: relax_bernoulli_gradient(k, f, logits, surrogate_network, params, temperature=0.3)
    draws, _, samples = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), N_DRAWS))
    assert_unbiased(draws, expected)
    assert_unbiased(samples, p)


def test_conditional_choice_is_the_choice(x64):
    """The relaxed choice drawn given the hard one has the same law as the one behind it."""
    from gyri.cadda.estimators import choose_one, uniforms

    draw = lambda k: choose_one(jnp.asarray(LOGITS), *uniforms(k, (2, 3), jnp.float64), 1.0)
    choice = jax.vmap(draw)(jax.random.split(jax.random.key(0), N_DRAWS))
    np.testing.assert_array_equal(choice.soft.argmax(-1), choice.hard.argmax(-1))
    np.testing.assert_array_equal(choice.conditional.argmax(-1), choice.hard.argmax(-1))
    # Both estimate the mean of the same quantity: compare by a two-sample z-test on two moments.
    for power in (1, 2):
        difference = np.asarray(choice.soft) ** power - np.asarray(choice.conditional) ** power
        assert_unbiased(difference, 0)


def test_surrogates_gradient_is_that_of_the_mean_square(x64):
    params = init_surrogate(jax.random.key(5), 6, "float64")
    square = lambda c: jnp.mean(relax_gradient(3, cost, LOGITS, surrogate_network, c)[0] ** 2)
    _, gradient, _ = relax_gradient(3, cost, LOGITS, surrogate_network, params)
    e = 1e-6
    for name, leaf in params.items():
        at = (0,) * leaf.ndim
        shifted = lambda s, name=name, leaf=leaf, at=at: params | {name: leaf.at[at].add(s)}
        expected = (square(shifted(e)) - square(shifted(-e))) / (2 * e)
        assert float(gradient[name][at]) == pytest.approx(float(expected), rel=1e-5, abs=1e-8)


def test_learning_the_surrogate_lowers_the_variance(x64):
    one = lambda k, c: relax_gradient(k, cost, LOGITS, surrogate_network, c, temperature=0.5)
    batch = jax.jit(jax.vmap(one, (0, None)))
    start = params = init_surrogate(jax.random.key(5), 6, "float64")
    for i in range(150):
        _, slope, _ = batch(jax.random.split(jax.random.key(i), 50), params)
        params = jax.tree.map(lambda c, g: c - 0.3 * g.mean(0), params, slope)
    keys = jax.random.split(jax.random.key(999), 4000)
    before, after = (np.asarray(batch(keys, c)[0]).var(0).sum() for c in (start, params))
    assert after < 0.6 * before


def test_extreme_logits_stay_finite(dtype):
    logits = jnp.asarray([200.0, 0.0, -200.0], dtype)
    params = init_surrogate(jax.random.key(5), 3, dtype)
    for estimate in (relax_gradient, relax_bernoulli_gradient):
        g, slope, sample = estimate(0, lambda b: b.sum(), logits, surrogate_network, params)
        assert g.dtype == sample.dtype == dtype
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((g, slope, sample)))


def test_jit_and_recompilation():
    params = init_surrogate(jax.random.key(5), 6, "float32")
    f = lambda key, logits, params: relax_gradient(key, cost, logits, surrogate_network, params)
    logits = jnp.asarray(LOGITS, "float32")
    check_jit(f, jax.random.key(0), logits, params, rtol=1e-3, atol=1e-5)
    check_no_recompilation(f, (jax.random.key(0), logits, params), (jax.random.key(1), logits + 1, params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.array([np.nan, 0.0])}, "logits: expected finite"),
        ({"logits": np.zeros(0)}, "logits: expected at least one entry"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"cost": lambda b: b}, r"cost: expected a scalar, got shape \(2,\)"),
    ],
)
def test_bad_input(change, message):
    arguments = {"key": 0, "cost": jnp.sum, "logits": np.zeros(2), "surrogate": lambda c, s: c * s.sum()} | change
    with pytest.raises(ValueError, match=message):
        relax_gradient(**arguments, surrogate_params=jnp.ones(()))
