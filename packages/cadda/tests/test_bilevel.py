"""Hypergradients against closed forms, finite differences of the whole step, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gyri.cadda import hypergradient, momentum_hypergradient
from gyri.numerics.testing import check_jit, check_no_recompilation, check_vmap


def quadratic(seed, n=5, d=3):
    """Weights in two leaves, hyper-parameters in two, losses and their matrices."""
    rng = np.random.default_rng(seed)
    A, B, C = rng.standard_normal((n, n)), rng.standard_normal((n, d)), rng.standard_normal((n, n))
    A, C = A @ A.T, C @ C.T + np.eye(n)
    theta, alpha, target = rng.standard_normal(n), rng.standard_normal(d), rng.standard_normal(n)
    flat = lambda tree: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    train = lambda t, a: 0.5 * flat(t) @ A @ flat(t) + flat(t) @ B @ flat(a)
    valid = lambda t: 0.5 * (flat(t) - target) @ C @ (flat(t) - target)
    split = lambda x: {"a": jnp.asarray(x[:1]), "b": jnp.asarray(x[1:]).reshape(-1, 1)}
    return train, valid, split(theta), split(alpha), (A, B, C, theta, alpha, target)


def closed_form(matrices, lr, drift=0.0):
    A, B, C, theta, alpha, target = matrices
    ahead = theta - lr * (A @ theta + B @ alpha + drift)
    return -lr * B.T @ C @ (ahead - target), ahead


@pytest.mark.parametrize("seed", range(3))
def test_exact_is_the_closed_form(seed, x64):
    train, valid, theta, alpha, matrices = quadratic(seed)
    g, aux = hypergradient(train, valid, theta, alpha, 0.1)
    expected, ahead = closed_form(matrices, 0.1)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    np.testing.assert_allclose(flat(g), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flat(aux["theta_unrolled"]), ahead, rtol=1e-12)
    assert set(aux) == {"train_loss", "valid_loss", "theta_unrolled"}
    assert float(aux["train_loss"]) == float(train(theta, alpha))
    assert float(aux["valid_loss"]) == pytest.approx(float(valid(aux["theta_unrolled"])), rel=1e-12)
    difference, _ = hypergradient(train, valid, theta, alpha, 0.1, method="finite_difference")
    np.testing.assert_allclose(flat(difference), expected, rtol=1e-4)
    zero, _ = hypergradient(train, valid, theta, alpha, 0.1, method="first_order")
    assert jax.tree.structure(zero) == jax.tree.structure(alpha) and not flat(zero).any()


def network(theta, x):
    return jnp.tanh(x @ theta["W"]) @ theta["w"]


def smooth_problem(dtype):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((20, 4)), dtype), jnp.asarray(rng.standard_normal(20), dtype)
    theta = {"W": jnp.asarray(rng.standard_normal((4, 6)), dtype), "w": jnp.asarray(rng.standard_normal(6), dtype)}
    alpha = jnp.asarray([0.3, -0.2], dtype)
    train = lambda t, a: jnp.mean((network(t, x * jnp.exp(a[0]) + a[1] * jnp.roll(x, 1, 0)) - y) ** 2)
    valid = lambda t: jnp.mean((network(t, x[::-1]) - y[::-1]) ** 2)
    return train, valid, theta, alpha


def test_exact_is_the_derivative_of_the_whole_step(x64):
    train, valid, theta, alpha = smooth_problem("float64")
    step = lambda a: valid(jax.tree.map(lambda t, g: t - 0.3 * g, theta, jax.grad(train)(theta, a)))
    e = 1e-6
    expected = [(step(alpha.at[i].add(e)) - step(alpha.at[i].add(-e))) / (2 * e) for i in range(2)]
    g, _ = hypergradient(train, valid, theta, alpha, 0.3)
    np.testing.assert_allclose(g, expected, rtol=1e-7)
    g, _ = hypergradient(train, valid, theta, alpha, 0.3, method="finite_difference", eps=1e-3)
    np.testing.assert_allclose(g, expected, rtol=1e-4)


def test_momentum_moves_the_step(x64):
    train, valid, theta, alpha, matrices = quadratic(3)
    buffer = jax.tree.map(lambda t: 2 + jnp.cos(t), theta)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    drift = 0.7 * flat(buffer) + 0.01 * flat(theta)
    options = {"momentum": 0.7, "weight_decay": 0.01}
    for method, tolerance in (("exact", 1e-10), ("finite_difference", 1e-4)):
        g, aux = momentum_hypergradient(train, valid, theta, alpha, 0.1, buffer, **options, method=method)
        expected, ahead = closed_form(matrices, 0.1, drift)
        np.testing.assert_allclose(flat(g), expected, rtol=tolerance)
        np.testing.assert_allclose(flat(aux["theta_unrolled"]), ahead, rtol=1e-12)
    plain = momentum_hypergradient(train, valid, theta, alpha, 0.1, buffer, momentum=0.0)[0]
    np.testing.assert_allclose(flat(plain), flat(hypergradient(train, valid, theta, alpha, 0.1)[0]), rtol=1e-12)


def test_extras_come_from_where_the_losses_do(x64):
    train, valid, theta, alpha = smooth_problem("float64")
    with_extra = lambda t, a: (train(t, a), {"w": t["w"]})
    g, aux = hypergradient(with_extra, lambda t: (valid(t), t["w"]), theta, alpha, 0.3, has_aux=True)
    np.testing.assert_array_equal(aux["train_aux"]["w"], theta["w"])
    np.testing.assert_array_equal(aux["valid_aux"], aux["theta_unrolled"]["w"])
    np.testing.assert_allclose(g, hypergradient(train, valid, theta, alpha, 0.3)[0], rtol=1e-12)


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_flat_validation_gives_zero(method):
    train, _, theta, alpha = smooth_problem("float32")
    g, _ = hypergradient(train, lambda t: 0.0 * t["w"].sum(), theta, alpha, 0.3, method=method)
    np.testing.assert_array_equal(g, 0)


def test_transformations_and_dtypes(dtype):
    train, valid, theta, alpha = smooth_problem(dtype)
    both = lambda t, a, lr: hypergradient(train, valid, t, a, lr)
    g, aux = both(theta, alpha, 0.3)
    assert g.dtype == aux["theta_unrolled"]["w"].dtype == aux["valid_loss"].dtype == dtype
    check_jit(both, theta, alpha, 0.3, rtol=1e-4)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), (theta, alpha, jnp.asarray(0.3, dtype)))
    check_vmap(both, *stacked, rtol=1e-4)
    check_no_recompilation(both, (theta, alpha, 0.3), (theta, alpha + 1, 0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "exactly"}, "method: expected one of"),
        ({"eps": 0.0}, "eps: expected a number > 0"),
        ({"lr": -1.0}, "lr: expected a number >= 0"),
        ({"train_loss": lambda t, a: t["w"]}, r"train_loss: expected a scalar loss, got shape \(6,\)"),
        ({"valid_loss": lambda t: t["w"]}, r"valid_loss: expected a scalar loss, got shape \(6,\)"),
        ({"has_aux": True}, r"train_loss: expected \(scalar, extra\)"),
    ],
)
def test_bad_input(change, message):
    train, valid, theta, alpha = smooth_problem("float32")
    arguments = {"train_loss": train, "valid_loss": valid, "theta": theta, "alpha": alpha, "lr": 0.1} | change
    with pytest.raises(ValueError, match=message):
        hypergradient(**arguments)


def test_bad_buffer():
    train, valid, theta, alpha = smooth_problem("float32")
    with pytest.raises(ValueError, match="buffer: expected the structure and shapes of theta"):
        momentum_hypergradient(train, valid, theta, alpha, 0.1, theta["w"])
    with pytest.raises(ValueError, match="momentum: expected a number >= 0"):
        momentum_hypergradient(train, valid, theta, alpha, 0.1, theta, momentum=-1)
