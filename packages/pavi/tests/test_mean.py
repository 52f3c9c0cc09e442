"""Tests of gyri.pavi.mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gyri.pavi import shrunk_mean


def test_shrunk_mean_minimises_its_objective():
    x, ridge = np.array([-1.0, 0.5, 2.5]), 0.7
    grid = np.linspace(-2, 2, 40_001)  # the definition, by brute force in float64
    objective = ((x[:, None] - grid) ** 2).sum(0) + ridge * grid**2
    assert abs(float(shrunk_mean(jnp.asarray(x), ridge)) - grid[objective.argmin()]) <= 1e-4


def test_shrunk_mean_gradient_matches_finite_differences():
    def function(x, ridge):  # check_grads passes NumPy arrays
        return shrunk_mean(jnp.asarray(x), jnp.asarray(ridge))

    x = jnp.array([[-1.0, 0.5], [2.5, 1.0]])
    check_grads(function, (x, jnp.float32(0.7)), order=1, modes=["fwd", "rev"], eps=1e-2, atol=1e-2)


def test_shrunk_mean_is_the_same_under_jit_and_vmap():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    expected = jnp.stack([shrunk_mean(sample, 0.5) for sample in x])
    np.testing.assert_allclose(jax.jit(jax.vmap(shrunk_mean, (0, None)))(x, 0.5), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shrunk_mean_keeps_the_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        assert shrunk_mean(jnp.ones((3, 2), dtype), 1.0).dtype == dtype


def test_shrunk_mean_refuses_no_samples():
    with pytest.raises(ValueError, match="x: expected at least one sample"):
        shrunk_mean(jnp.zeros((0, 2)), 1.0)
