"""Fixtures of gyri-augnet's tests."""

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


@pytest.fixture
def images() -> np.ndarray:
    """Six smooth colour images, taller than wide, so that axes cannot be confused."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(size=(6, 4, 3, 3))
    return np.clip(coarse.repeat(3, axis=1).repeat(3, axis=2) * 0.8 + 0.1 * rng.uniform(size=(6, 12, 9, 3)), 0, 1)
