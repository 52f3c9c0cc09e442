"""Proximal operators against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from gyri.numerics import soft_threshold
from gyri.numerics.testing import check_jit, check_lowers, check_no_recompilation, check_vmap

X = np.array([-1.7, -0.2, 0.0, 0.4, 2.5])
FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)  # XLA flushes those to 0


@pytest.mark.parametrize("positive", [False, True])
def test_soft_threshold_minimises_its_objective(dtype, positive):
    t = 0.6
    grid = np.linspace(0 if positive else -3, 3, 60_001)  # NumPy, float64: the oracle does not share our precision
    objective = 0.5 * (grid[:, None] - X) ** 2 + t * np.abs(grid[:, None])
    result = soft_threshold(jnp.asarray(X, dtype), t, positive=positive)
    assert result.dtype == dtype
    assert np.abs(result - grid[objective.argmin(0)]).max() <= 1e-4


@settings(deadline=None)
@given(x=FLOATS, t=st.floats(0, 100, width=32, allow_subnormal=False))
def test_soft_threshold_satisfies_the_optimality_conditions(x, t):
    u = float(soft_threshold(jnp.float32(x), jnp.float32(t)))
    if u == 0:
        assert abs(x) <= t + 1e-5 * abs(x)
    else:  # x - u is t times the sign of u
        assert abs((x - u) - t * np.sign(u)) <= 1e-6 * max(abs(x), t)


@settings(deadline=None)
@given(x=FLOATS, y=FLOATS, t=st.floats(0, 100, width=32, allow_subnormal=False))
def test_soft_threshold_is_nonexpansive(x, y, t):
    u, v = (float(soft_threshold(jnp.float32(value), jnp.float32(t))) for value in (x, y))
    assert abs(u - v) <= abs(x - y) + 1e-5 * max(abs(x), abs(y), t)


@pytest.mark.parametrize("positive", [False, True])
def test_soft_threshold_gradient_matches_finite_differences(x64, positive):
    fn = lambda x, t: soft_threshold(jnp.asarray(x), jnp.asarray(t), positive=positive)
    check_grads(fn, (jnp.array([-1.7, 0.4, 2.5]), jnp.array(0.6)), order=2, modes=["fwd", "rev"], eps=1e-4)


def test_soft_threshold_transforms(dtype):
    x, t = jnp.asarray(np.stack([X, -2 * X]), dtype), jnp.asarray([0.3, 0.6], dtype)
    check_jit(soft_threshold, x, t[:, None])
    check_vmap(soft_threshold, x, t)
    check_lowers(soft_threshold, x, t[0])
    check_no_recompilation(soft_threshold, (x, t[:1]), (-x, t[1:]))
