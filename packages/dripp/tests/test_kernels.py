"""The kernels against SciPy, far into the tails, and their derivatives against finite differences."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gyri.dripp import kernels
from gyri.numerics.testing import check_jit, check_lowers, check_vmap

# Compiled once: the tail formulas are many small operations, which would each compile alone.
FUNCTIONS = {
    name: SimpleNamespace(
        **{part: jax.jit(getattr(kernels.get(name), part)) for part in ("logpdf", "pdf", "cdf", "ppf")}
    )
    for name in kernels.KERNELS
}
NAMES = ("truncated_gaussian", "raised_cosine", "truncated_exponential")
LOWER, UPPER = 0.03, 0.5


@pytest.mark.parametrize("m", [-1.0, 0.0, 0.03, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.47])
def test_truncated_gaussian_equals_scipy(x64, m, sigma):
    kernel, x, q = FUNCTIONS["truncated_gaussian"], np.linspace(LOWER, UPPER, 41), np.linspace(0.001, 0.999, 41)
    exact = stats.truncnorm((LOWER - m) / sigma, (UPPER - m) / sigma, loc=m, scale=sigma)
    window = (m, sigma, LOWER, UPPER)
    np.testing.assert_allclose(kernel.logpdf(x, *window), exact.logpdf(x), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(kernel.pdf(x, *window), exact.pdf(x), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(kernel.cdf(x, *window), exact.cdf(x), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(kernel.ppf(q, *window), exact.ppf(q), rtol=1e-10)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("distance", [5.0, 11.9, 12.1, 50.0, 300.0])
def test_truncated_gaussian_far_outside_its_window_equals_quadrature(x64, side, distance):
    """No normal distribution function is used: the density over its largest value is integrated numerically."""
    sigma = 0.05
    m = LOWER - distance * sigma if side < 0 else UPPER + distance * sigma
    kernel = FUNCTIONS["truncated_gaussian"]
    # The unnormalised density over its largest value, integrated numerically: no normal distribution function is used.
    end = LOWER if side < 0 else UPPER
    scale = sigma / distance
    grid = np.linspace(0, min(40 * scale, UPPER - LOWER), 200_001)
    log_density = -0.5 * ((grid + distance * sigma) / sigma) ** 2 + 0.5 * distance**2
    mass = np.trapezoid(np.exp(log_density), grid)
    x = end - side * np.linspace(0, 10 * scale, 11)
    x = x[(x >= LOWER) & (x <= UPPER)]
    expected = -0.5 * ((np.abs(x - end) + distance * sigma) / sigma) ** 2 + 0.5 * distance**2 - np.log(mass)
    np.testing.assert_allclose(kernel.logpdf(x, m, sigma, LOWER, UPPER), expected, rtol=1e-6, atol=1e-6)
    q = np.linspace(0, 1, 21)
    roundtrip = kernel.cdf(kernel.ppf(q, m, sigma, LOWER, UPPER), m, sigma, LOWER, UPPER)
    np.testing.assert_allclose(roundtrip, q, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("m", "sigma"), [(0.2, 0.1), (0.03, 0.3), (0.45, 0.05)])
def test_density_integrates_to_one_and_to_its_distribution_function(x64, oracle, name, m, sigma):
    kernel, x = FUNCTIONS[name], np.linspace(LOWER, UPPER, 20_001)
    density = np.asarray(kernel.pdf(x, m, sigma, LOWER, UPPER))
    np.testing.assert_allclose(density, oracle.pdf(name, x, m, sigma, LOWER, UPPER), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.trapezoid(density, x), 1, atol=1e-6)
    cdf = kernel.cdf(x, m, sigma, LOWER, UPPER)
    np.testing.assert_allclose(cdf, oracle.cdf(name, x, m, sigma, LOWER, UPPER), atol=1e-10)
    q = np.linspace(0, 1, 33)
    np.testing.assert_allclose(kernel.cdf(kernel.ppf(q, m, sigma, LOWER, UPPER), m, sigma, LOWER, UPPER), q, atol=1e-10)
    outside = np.array([LOWER - 1e-9, UPPER + 1e-9])
    assert np.all(kernel.pdf(outside, m, sigma, LOWER, UPPER) == 0)
    assert np.all(kernel.logpdf(outside, m, sigma, LOWER, UPPER) == -np.inf)


@pytest.mark.parametrize("width", [1.0, 1e-3])
def test_gradient_of_the_log_normalizer_matches_finite_differences(x64, width):
    """At sigma as wide as the window and a thousandth of it: where a difference of tails loses its digits."""
    sigma = width * (UPPER - LOWER)
    fun = jax.jit(lambda v: kernels.get("truncated_gaussian").log_normalizer(v[0], v[1], LOWER, UPPER))
    first, second = jax.jit(jax.grad(fun)), jax.jit(jax.hessian(fun))
    for m in (LOWER, 0.2, UPPER + 2 * sigma):
        at, step = np.array([m, sigma]), 1e-5 * sigma
        numeric = [(fun(at + step * e) - fun(at - step * e)) / (2 * step) for e in np.eye(2)]
        gradient = first(at)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5 / sigma)
        hessian = second(at)
        numeric = [(first(at + step * e) - first(at - step * e)) / (2 * step) for e in np.eye(2)]
        np.testing.assert_allclose(hessian, numeric, rtol=1e-4, atol=1e-4 / sigma**2)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_keep_float32_and_compile_everywhere(name):
    kernel = kernels.get(name)
    x = jnp.linspace(0.0, 0.6, 7)
    args = (x, jnp.float32(0.2), jnp.float32(0.1), jnp.float32(LOWER), jnp.float32(UPPER))
    for fun in (kernel.logpdf, kernel.pdf, kernel.cdf):
        assert fun(*args).dtype == jnp.float32
        check_jit(fun, *args)
        check_lowers(fun, *args)
    quantile = lambda q: kernel.ppf(q, *args[1:])
    check_vmap(quantile, jnp.linspace(0.0, 1.0, 5))
    check_lowers(quantile, jnp.linspace(0.0, 1.0, 5))


def test_unknown_kernel_is_named():
    with pytest.raises(ValueError, match="kernel.*boxcar"):
        kernels.get("boxcar")
