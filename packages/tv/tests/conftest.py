"""Fixtures of gyri-tv's tests: precision, and an independent solver of small problems."""

from collections.abc import Iterator

import jax
import matplotlib
import numpy as np
import pytest
from scipy.optimize import lsq_linear, minimize

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


def value(u, x, A, lam):
    """The problem's value for one signal, as it is defined."""
    return 0.5 * np.sum((x - A @ u) ** 2) + lam * np.abs(np.diff(u)).sum()


def solution(x, A, lam):
    """A minimiser by SciPy: the synthesis form with split signs, non-negative and smooth."""
    k = A.shape[1]
    B = A @ np.tril(np.ones((k, k)))
    penalty = np.r_[0.0, np.full(k - 1, lam)]

    def fun(split):
        r = B @ (split[:k] - split[k:]) - x
        g = B.T @ r
        return 0.5 * r @ r + penalty @ (split[:k] + split[k:]), np.r_[g + penalty, -g + penalty]

    options = {"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-12}
    split = minimize(fun, np.zeros(2 * k), jac=True, bounds=[(0, None)] * 2 * k, options=options).x
    return np.cumsum(split[:k] - split[k:])


def prox(x, lam):
    """Exact proximal operator of one signal, through its box-constrained dual."""
    D = np.diff(np.eye(x.size), axis=0)
    return x - D.T @ lsq_linear(D.T, x, (-lam, lam), tol=1e-15, max_iter=1000).x
