"""Fixtures of gyri-pavi's tests: both precisions, drawing without a screen."""

import jax
import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run a test in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def x64():
    """Run a test in double precision without touching JAX's global configuration."""
    with jax.enable_x64(True):
        yield
