"""Fixtures and problems of gyri-shine's tests."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from gyri.shine import fixed_point, root

matplotlib.use("Agg")

# One program instead of many small ones: that is what takes time here.
STATIC = {"static_argnums": 0, "static_argnames": ("solver", "backward", "batch_ndim", "outer_grad")}
find_fixed_point, find_root = jax.jit(fixed_point, **STATIC), jax.jit(root, **STATIC)


@pytest.fixture
def x64() -> Iterator[None]:
    """Run a test in double precision without touching JAX's global configuration."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[np.dtype]:
    """Run a test in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def layer(z, W, b):
    """A map whose Jacobian is not normal; each row of z by itself."""
    return jnp.tanh(z @ W.T + b)


def problem(seed, d, gain, dtype=np.float64):
    """Weights of a spectral norm, a bias, and a vector."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((d, d))
    W *= gain / np.linalg.norm(W, 2)
    return [jnp.asarray(a, dtype) for a in (W, rng.standard_normal(d), rng.standard_normal(d))]


def jacobian(z, W):
    """Of ``layer(z) - z``, by hand."""
    return (1 - np.asarray(z) ** 2)[:, None] * np.asarray(W) - np.eye(len(W))


def solve_exactly(z, W, v):
    """W of the linear system, by NumPy."""
    return -np.linalg.solve(jacobian(z, W).T, np.asarray(v))


def relative(a, b):
    """Relative error of a vector."""
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))
