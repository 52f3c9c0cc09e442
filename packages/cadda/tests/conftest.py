"""Fixtures of gyri-cadda's tests."""

from collections.abc import Iterator

import jax
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")


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
