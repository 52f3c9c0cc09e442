"""Fixtures of gyri-nystagmus's tests."""

from collections.abc import Iterator

import jax
import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture
def x64() -> Iterator[None]:
    """Run a test in double precision without touching JAX's global configuration."""
    with jax.enable_x64(True):
        yield
