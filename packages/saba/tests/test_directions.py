import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gyri.saba.directions import Side, all_directions, axpy, dot
from gyri.saba.problems import quadratic_loss


def tree_loss(z, x, batch):
    scores = batch["a"] @ z["w"] + z["b"]
    return jnp.mean(jnp.logaddexp(0, scores) + 0.1 * scores**2 * jnp.tanh(x[0])) + jnp.exp(x[1]) * dot(z, z)


def example(n=50):
    keys = jax.random.split(jax.random.key(0), 4)
    data = {"a": jax.random.normal(keys[0], (n, 3))}
    z = {"w": jax.random.normal(keys[1], (3,)), "b": jnp.array(0.3)}
    v = {"w": jax.random.normal(keys[2], (3,)), "b": jnp.array(-0.7)}
    return data, z, v, (jnp.array(0.2), jnp.array(-0.4))


@pytest.mark.parametrize("batch_size", [10, 16, 50, "full"])
def test_blocks_average_to_the_whole(x64, batch_size):
    data, z, v, x = example()
    side = Side(tree_loss, data, batch_size)
    for quantity in (
        lambda k: side.grad_z(k, z, x),
        lambda k: side.grad_x(k, z, x),
        lambda k: side.grads(k, z, x),
        lambda k: side.hvp(k, z, v, x),
        lambda k: side.cross(k, z, v, x),
        lambda k: side.products(k, z, v, x),
        lambda k: side.value(k, z, x),
    ):
        blocks = [ravel_pytree(quantity(jnp.array(k)))[0] for k in range(side.n_blocks)]
        np.testing.assert_allclose(np.mean(blocks, 0), ravel_pytree(quantity(None))[0], rtol=1e-12)


def test_products_are_those_of_the_dense_derivatives(x64):
    data, z, v, x = example()
    side = Side(tree_loss, data, "full")
    flat, back = ravel_pytree(z)
    flat_x, back_x = ravel_pytree(x)
    fun = lambda z, x: tree_loss(back(z), back_x(x), data)
    hessian, cross = jax.hessian(fun)(flat, flat_x), jax.jacobian(jax.grad(fun, 1))(flat, flat_x)
    flat_v = ravel_pytree(v)[0]
    gradient, product, crossed = side.products(None, z, v, x)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], jax.grad(fun)(flat, flat_x), rtol=1e-12)
    for ours in (product, side.hvp(None, z, v, x)):
        np.testing.assert_allclose(ravel_pytree(ours)[0], hessian @ flat_v, rtol=1e-12)
    for ours in (crossed, side.cross(None, z, v, x)):
        np.testing.assert_allclose(ravel_pytree(ours)[0], cross @ flat_v, rtol=1e-12, atol=1e-15)


def test_directions_vanish_where_all_three_problems_are_solved(x64):
    from gyri.saba import problems

    problem = problems.quadratic(3, n=60, m=50, p=5, d=3)
    inner, outer = (Side(quadratic_loss, data, "full") for data in (problem.inner_data, problem.outer_data))
    x = problem.minimizer()
    z = problem.inner_solution(x)
    A = jax.hessian(lambda z: inner.value(None, z, x))(z)
    v = -jnp.linalg.solve(A, outer.grad_z(None, z, x))
    for direction in all_directions(inner, outer, (None, None), z, v, x):
        np.testing.assert_allclose(direction, 0, atol=1e-12)


def test_without_data_there_is_one_block():
    side = Side(lambda z, x, batch: jnp.sum(z**2) * x, None, 64)
    assert (side.n_blocks, side.batch_size) == (1, 1)
    assert side.grad_z(jnp.array(0), jnp.ones(2), 3.0).tolist() == [6.0, 6.0]


def test_sums_keep_their_types():
    out = axpy(np.float64(2), jnp.ones(2), jnp.ones(2))
    assert out.dtype == jnp.float32
    assert out.tolist() == [3.0, 3.0]
