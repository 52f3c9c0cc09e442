"""Fixtures of gyri-dripp's tests: precision, a small problem, and an independent NumPy/SciPy rewrite of the model."""

from collections.abc import Iterator
from types import SimpleNamespace

import jax
import matplotlib
import numpy as np
import pytest
from scipy.stats import truncexpon, truncnorm

from gyri.dripp import Params

matplotlib.use("Agg")


@pytest.fixture
def x64() -> Iterator[None]:
    """Run a test in double precision without touching JAX's global configuration."""
    with jax.enable_x64(True):
        yield


def _cosine_cdf(u):
    u = np.clip(u, -1, 1)
    return 0.5 * (1 + u + np.sin(np.pi * u) / np.pi)


def pdf(kernel, x, m, sigma, lower, upper):
    """Density of one delay, dense arrays, no tricks."""
    x = np.asarray(x, float)
    inside = (x >= lower) & (x <= upper)
    if kernel == "truncated_gaussian":
        values = truncnorm.pdf(x, (lower - m) / sigma, (upper - m) / sigma, loc=m, scale=sigma)
    elif kernel == "raised_cosine":
        mass = _cosine_cdf((upper - m) / sigma) - _cosine_cdf((lower - m) / sigma)
        values = np.where(np.abs(x - m) <= sigma, (1 + np.cos(np.pi * (x - m) / sigma)) / (2 * sigma), 0) / mass
    else:
        values = truncexpon.pdf(x, (upper - lower) / sigma, loc=lower, scale=sigma)
    return np.where(inside, values, 0)


def cdf(kernel, x, m, sigma, lower, upper):
    x = np.clip(np.asarray(x, float), lower, upper)
    if kernel == "truncated_gaussian":
        return truncnorm.cdf(x, (lower - m) / sigma, (upper - m) / sigma, loc=m, scale=sigma)
    if kernel == "raised_cosine":
        low, high = _cosine_cdf((lower - m) / sigma), _cosine_cdf((upper - m) / sigma)
        return (_cosine_cdf((x - m) / sigma) - low) / (high - low)
    return truncexpon.cdf(x, (upper - lower) / sigma, loc=lower, scale=sigma)


def intensity(kernel, t, drivers, params, lower, upper):
    rate = np.full(np.shape(t), float(params.baseline))
    for p, driver in enumerate(drivers):
        lag = np.asarray(t)[..., None] - np.asarray(driver)
        rate += float(params.alpha[p]) * pdf(kernel, lag, params.m[p], params.sigma[p], lower, upper).sum(-1)
    return rate


def nll(kernel, events, drivers, params, lower, upper, t_stop, t_start=0.0, edge=True):
    value = float(params.baseline) * (t_stop - t_start)
    for p, driver in enumerate(drivers):
        one = (params.m[p], params.sigma[p], lower, upper)
        driver = np.asarray(driver, float)
        seen = (
            cdf(kernel, t_stop - driver, *one) - cdf(kernel, t_start - driver, *one) if edge else np.ones(driver.size)
        )
        value += float(params.alpha[p]) * seen.sum()
    with np.errstate(divide="ignore"):
        return value - np.log(intensity(kernel, events, drivers, params, lower, upper)).sum()


@pytest.fixture
def oracle() -> SimpleNamespace:
    """Brute force in NumPy and SciPy, sharing nothing with the package."""
    return SimpleNamespace(pdf=pdf, cdf=cdf, intensity=intensity, nll=nll)


@pytest.fixture(scope="session")
def problem() -> SimpleNamespace:
    """Two drivers with windows that overlap and are cut at both ends; 120 seconds."""
    rng = np.random.default_rng(5)
    window = {"lower": 0.03, "upper": 0.8, "t_stop": 122.0, "t_start": 2.0}
    drivers = [np.sort(rng.uniform(1.0, 122.0, n)) for n in (60, 90)]
    parts = [rng.uniform(2.0, 122.0, 100)]
    for driver, alpha, m, sigma in zip(drivers, (0.9, 0.6), (0.2, 0.5), (0.05, 0.1)):
        parents = np.repeat(driver, rng.poisson(alpha, driver.size))
        delays = m + sigma * rng.standard_normal(parents.size)
        parts.append((parents + delays)[(delays >= 0.03) & (delays <= 0.8)])
    events = np.sort(np.concatenate(parts))
    events = events[(events >= 2.0) & (events <= 122.0)]
    params = Params(np.float64(0.7), np.array([0.5, 0.8]), np.array([0.25, 0.45]), np.array([0.08, 0.2]))
    return SimpleNamespace(events=events, drivers=drivers, window=window, params=params)
