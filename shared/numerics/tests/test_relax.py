"""Relaxed discrete draws: exact values, laws by counting, derivatives by finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from gyri.numerics.relax import relaxed_bernoulli, relaxed_one_hot, straight_through
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap

KEY = jax.random.key(0)


def test_straight_through_has_one_value_and_the_other_derivative(dtype):
    hard, soft = jnp.array([1e9, -3.0, 0.1], dtype), jnp.array([0.3, 0.2, 0.1], dtype)
    np.testing.assert_array_equal(straight_through(hard, soft), hard)  # bit for bit: a difference would round
    value, tangent = jax.jvp(straight_through, (hard, soft), (jnp.full(3, 5.0, dtype), jnp.arange(3, dtype=dtype)))
    np.testing.assert_array_equal(value, hard)
    np.testing.assert_array_equal(tangent, np.arange(3))
    gradients = jax.grad(lambda h, s: straight_through(h, s) @ jnp.arange(3, dtype=dtype), argnums=(0, 1))(hard, soft)
    np.testing.assert_array_equal(gradients, [np.zeros(3), np.arange(3)])
    assert gradients[1].dtype == dtype


def test_straight_through_casts_booleans_and_refuses_other_shapes():
    assert straight_through(jnp.array([True, False]), jnp.ones(2)).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"hard: expected the shape of soft, \(3,\), got \(2,\)"):
        straight_through(jnp.ones(2), jnp.ones(3))


def test_relaxed_bernoulli_is_its_formula(x64):
    p = jnp.array([0.1, 0.5, 0.9])
    u = np.asarray(jax.random.uniform(KEY, (3,), jnp.float64, minval=jnp.finfo(jnp.float64).tiny))
    odds = np.log(p / (1 - p)) + np.log(u / (1 - u))
    np.testing.assert_allclose(relaxed_bernoulli(KEY, p, temperature=0.3), 1 / (1 + np.exp(-odds / 0.3)), rtol=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.93])
@pytest.mark.parametrize("hard", [True, False])
def test_relaxed_bernoulli_has_its_probability(p, hard):
    draws = np.asarray(relaxed_bernoulli(KEY, p, (20_000,), hard=hard))
    assert stats.binomtest(int((draws > 0.5).sum()), draws.size, p).pvalue > 1e-4
    if hard:
        assert set(np.unique(draws)) == {0.0, 1.0}


def mean_of_draws(p, hard):
    return relaxed_bernoulli(KEY, p, (5000,), hard=hard).mean()


def test_certain_events_are_certain_and_have_finite_derivatives():
    for p, expected in ((0.0, 0.0), (1.0, 1.0)):
        for hard in (True, False):
            draws, gradient = jax.value_and_grad(partial(mean_of_draws, hard=hard))(p)
            np.testing.assert_allclose(draws, expected, atol=1e-6)
            assert np.isfinite(gradient)


def test_certain_events_can_be_left_by_their_derivative():
    # At a temperature that does not saturate, the derivative at 0 is the one beside it and not that of a clip.
    at, beside = (jax.grad(lambda p: relaxed_bernoulli(KEY, p, (100,), temperature=5.0).mean())(p) for p in (0.0, 1e-6))
    assert at > 0
    np.testing.assert_allclose(at, beside, rtol=1e-5)


def test_relaxed_bernoulli_derivatives(x64):
    p = jnp.array([0.2, 0.6])
    check_grads(lambda p: relaxed_bernoulli(KEY, p, temperature=0.5), (p,), order=2, rtol=1e-4)
    hard = jax.jacobian(lambda p: relaxed_bernoulli(KEY, p, temperature=0.5, hard=True))(p)
    np.testing.assert_array_equal(hard, jax.jacobian(lambda p: relaxed_bernoulli(KEY, p, temperature=0.5))(p))
    second = [
        jax.hessian(lambda p, hard=h: relaxed_bernoulli(KEY, p, temperature=0.5, hard=hard).sum())(p)
        for h in (False, True)
    ]
    np.testing.assert_allclose(second[1], second[0])
    assert np.abs(second[0]).max() > 0.1


def test_the_mean_derivative_of_hard_draws_is_that_of_the_probability(x64):
    # d P(s > 1/2) / dp = 1, and the relaxed mean tends to p.
    gradients = jax.vmap(jax.grad(lambda p, key: relaxed_bernoulli(key, p, hard=True)), (None, 0))(
        0.4, jax.random.split(KEY, 20_000)
    )
    assert abs(gradients.mean() - 1) < 4 * gradients.std() / np.sqrt(gradients.size)


def test_relaxed_one_hot_is_its_formula(x64):
    logits = jnp.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]])
    u = np.asarray(jax.random.uniform(KEY, (2, 3), jnp.float64, minval=jnp.finfo(jnp.float64).tiny))
    scores = (logits - np.log(-np.log(u))) / 0.7
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(relaxed_one_hot(KEY, logits, temperature=0.7), expected, rtol=1e-12)
    hard = relaxed_one_hot(KEY, logits, temperature=0.7, hard=True)
    np.testing.assert_array_equal(hard, np.eye(3)[scores.argmax(1)])
    other_axis = relaxed_one_hot(KEY, logits, temperature=0.7, axis=0, hard=True)
    np.testing.assert_array_equal(other_axis.sum(0), 1)


def test_relaxed_one_hot_has_its_law():
    logits = jnp.array([0.0, 1.0, -0.5, 2.0])
    draws = relaxed_one_hot(KEY, jnp.broadcast_to(logits, (20_000, 4)), hard=True)
    assert stats.chisquare(np.asarray(draws).sum(0), 20_000 * np.asarray(jax.nn.softmax(logits))).pvalue > 1e-4


def test_relaxed_one_hot_derivatives(x64):
    logits = jnp.array([0.3, -1.0, 2.0])
    check_grads(lambda w: relaxed_one_hot(KEY, w, temperature=0.5), (logits,), order=1, rtol=1e-4)
    soft, hard = (jax.jacobian(partial(relaxed_one_hot, KEY, hard=h))(logits) for h in (False, True))
    np.testing.assert_array_equal(soft, hard)


def test_precision_is_kept(dtype):
    p = jnp.array([0.2, 0.6], dtype)
    assert relaxed_bernoulli(KEY, p, hard=True).dtype == dtype
    assert relaxed_one_hot(KEY, p, hard=True).dtype == dtype
    half = jnp.array([0.0, 0.5, 1.0], jnp.float16)
    assert relaxed_bernoulli(KEY, half).dtype == relaxed_one_hot(KEY, half).dtype == jnp.float16
    assert np.isfinite(jax.grad(lambda p: relaxed_bernoulli(KEY, p).sum())(half)).all()


def test_jit_vmap_and_compilations():
    keys, p = jax.random.split(KEY, 3), jnp.linspace(0.1, 0.9, 3)
    for fn in (lambda k, p: relaxed_bernoulli(k, p, (4,)), lambda k, p: relaxed_one_hot(k, jnp.stack([p, 1 - p]))):
        check_jit(fn, keys[0], p[0])
        check_vmap(fn, keys, p)
        check_no_recompilation(jax.jit(fn), (keys[0], p[0]), (keys[1], p[1]))
