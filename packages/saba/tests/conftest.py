"""Fixtures of gyri-saba's tests: precision, a small problem, a compiled program's text."""

import jax
import matplotlib
import pytest

from gyri.saba import problems

matplotlib.use("Agg")


@pytest.fixture
def x64():
    """Run a test in double precision without touching JAX's global configuration."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run a test in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def problem():
    """A small problem in single precision whose last blocks are shorter."""
    return problems.quadratic(0, n=90, m=70, p=5, d=3, mu=0.3)
