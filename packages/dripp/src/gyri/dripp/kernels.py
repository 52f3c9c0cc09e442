r"""The kernels of the intensity: densities of the delay between a driver event and the event that it triggers.

Three densities on a window ``[lower, upper]``, all with parameters ``(m, sigma)``: truncated Gaussian (the paper's),
raised cosine and truncated exponential. Everything is written in log-space with hand-made derivatives, because a
kernel whose peak is far from its window has a normaliser that underflows. This file knows nothing of drivers, events
or rates.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Float

from gyri.numerics.validation import check_option

from .lags import pad_size

_LOG_SQRT_2PI = 0.9189385332046727
_TAIL = -12.0  # below, Phi comes from its asymptotic series; 12 terms reach 1e-14 there
_TAIL_COEFFICIENTS = np.cumprod([1.0] + [-(2.0 * n - 1.0) for n in range(1, 13)])
_HALVINGS = 60

Shaped = Float[Any, "..."]
Number = Float[Any, "..."] | float | int


class Kernel(NamedTuple):
    """A delay density on ``[lower, upper]``; each function takes ``(x, m, sigma, lower, upper)`` and broadcasts.

    Attributes
    ----------
    name : str
        The name that `get` takes.
    logpdf, pdf, cdf : callable
        Log-density (``-inf`` outside the window), density, distribution function at `x` (seconds).
    ppf : callable
        Quantile at a probability in ``[0, 1]``, always inside the window.
    log_normalizer : callable
        ``(m, sigma, lower, upper)`` to the log of the mass that the untruncated density puts in the window.
    density : callable
        ``(x, m, sigma, lower, log_scale)`` to `pdf`, where the caller promises that `x` is in the window: the form for
        many `x` and few parameters, since ``log_scale = log(sigma) + log_normalizer`` is computed once a parameter.
    mass : callable
        ``(left, right, m, sigma, lower, log_normalizer)`` to the probability of ``[left, right]``, a part of the
        window.
    has_location : bool
        False if the density ignores `m` (the exponential); it is then reported as `lower`.
    scale_from_std : float
        `sigma` over the standard deviation of the untruncated density, for starting values.
    """

    name: str
    logpdf: Callable
    pdf: Callable
    cdf: Callable
    ppf: Callable
    log_normalizer: Callable
    density: Callable
    mass: Callable
    has_location: bool
    scale_from_std: float


def get(name: str) -> Kernel:
    """Return the kernel called `name`.

    Parameters
    ----------
    name : {"truncated_gaussian", "raised_cosine", "truncated_exponential"}
        Which density.

    Returns
    -------
    Kernel
        Its functions.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> kernel = get("truncated_gaussian")
    >>> float(kernel.cdf(0.5, 0.2, 0.1, 0.0, 0.5))
    1.0
    """
    return KERNELS[check_option(name, "kernel", tuple(KERNELS))]


def on_host(function: Callable, *arguments: np.ndarray | float) -> np.ndarray:
    """Evaluate one of a kernel's functions in float64 on the CPU, whatever the global precision.

    The first argument is 1-D, the others numbers or as long; they are padded, so that few shapes are ever compiled.
    """
    n = np.size(arguments[0])
    size = pad_size(n)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        padded = [
            np.pad(np.asarray(a, np.float64), (0, size - n), mode="edge" if n else "constant")
            if np.ndim(a)
            else np.float64(a)
            for a in arguments
        ]
        return np.asarray(_compiled(function)(*padded))[:n]


@cache
def _compiled(function: Callable) -> Callable:
    return jax.jit(function)


# --- the normal distribution in log-space -----------------------------------------------------------------------------


def log_normal_cdf(z: Number) -> Shaped:
    r"""Log of :math:`\Phi(z)`, to machine precision in both tails."""
    z = jnp.asarray(z)
    small = 0.5 * jax.lax.erfc(
        jnp.minimum(jnp.abs(z), -_TAIL) * np.sqrt(0.5)
    )  # mass beyond |z|: one evaluation for both tails
    tail = jnp.minimum(z, _TAIL)
    series = jnp.polyval(jnp.asarray(_TAIL_COEFFICIENTS[::-1], z.dtype), 1 / tail**2)
    far = -0.5 * tail**2 - jnp.log(-tail) - _LOG_SQRT_2PI + jnp.log(series)
    return jnp.where(z < _TAIL, far, jnp.where(z > 0, jnp.log1p(-small), jnp.log(small)))


@jax.custom_jvp
def log_interval(za: Number, zb: Number) -> Shaped:
    r"""Log of :math:`\Phi(z_b) - \Phi(z_a)` for :math:`z_a \le z_b`; ``-inf`` where they are equal.

    Its derivatives are ratios of a density to this mass, formed from logs: automatic differentiation of a difference
    of tails is unstable for narrow and for distant intervals.
    """
    flip = za > 0  # work in the left tail, where a difference of logs keeps its digits
    left, right = jnp.where(flip, -zb, za), jnp.where(flip, -za, zb)
    low, high = log_normal_cdf(jnp.stack(jnp.broadcast_arrays(left, right)))
    gap = jnp.minimum(low - high, 0)
    return high + jnp.where(gap > -0.6931471805599453, jnp.log(-jnp.expm1(gap)), jnp.log1p(-jnp.exp(gap)))


@log_interval.defjvp
def _log_interval_jvp(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    (za, zb), (dza, dzb) = primals, tangents
    mass = log_interval(za, zb)
    return mass, normal_ratio(zb, mass) * dzb - normal_ratio(za, mass) * dza


def normal_ratio(z: Number, log_mass: Number) -> Shaped:
    r"""Normal density at `z` over a mass given by its log."""
    return jnp.exp(-0.5 * z**2 - _LOG_SQRT_2PI - log_mass)


def _inverse_log_normal_cdf(log_p: Shaped) -> Shaped:
    """Point with a given log of the normal distribution function, for probabilities up to one half."""
    tail = jnp.minimum(log_p, -2.0)
    far = -jnp.sqrt(-2 * tail - jnp.log(-4 * jnp.pi * tail))
    smallest = -700.0 if log_p.dtype == jnp.float64 else -85.0
    z = jnp.where(log_p < smallest / 2, far, ndtri(jnp.exp(jnp.maximum(log_p, smallest / 2))))
    for _ in range(3):  # Newton on the concave log Phi: quadratic from a start this close
        value = log_normal_cdf(z)
        z = z - (value - log_p) * jnp.exp(value + 0.5 * z**2 + _LOG_SQRT_2PI)
    return z


# --- truncated Gaussian -----------------------------------------------------------------------------------------------


def _gaussian_log_normalizer(m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
    return log_interval((lower - m) / sigma, (upper - m) / sigma)


def _gaussian_log_density(x: Number, m: Number, sigma: Number, lower: Number, log_scale: Number) -> Shaped:
    return -0.5 * ((x - m) / sigma) ** 2 - (log_scale + _LOG_SQRT_2PI)


def _gaussian_mass(
    left: Number, right: Number, m: Number, sigma: Number, lower: Number, log_normalizer: Number
) -> Shaped:
    # Where the part is empty another one stands in, so that no derivative of log(0) is formed.
    empty = right <= left
    zl, zr = jnp.where(empty, 0.0, (left - m) / sigma), jnp.where(empty, 1.0, (right - m) / sigma)
    return jnp.where(empty, 0.0, jnp.exp(jnp.minimum(log_interval(zl, zr) - log_normalizer, 0)))


def _gaussian_ppf(p: Number, m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
    p, m, sigma, lower, upper = jnp.broadcast_arrays(*_floats(p, m, sigma, lower, upper))
    za, zb = (lower - m) / sigma, (upper - m) / sigma
    log_mass = log_interval(za, zb)
    below = jnp.logaddexp(log_normal_cdf(za), jnp.log(p) + log_mass)
    above = jnp.logaddexp(log_normal_cdf(-zb), jnp.log1p(-p) + log_mass)
    z = jnp.where(below < above, 1.0, -1.0) * _inverse_log_normal_cdf(jnp.minimum(below, above))
    x = jnp.clip(m + sigma * z, lower, upper)
    return jnp.where(p <= 0, lower, jnp.where(p >= 1, upper, x))


# --- raised cosine ----------------------------------------------------------------------------------------------------


def _cosine_cdf(u: Number) -> Shaped:
    u = jnp.clip(u, -1, 1)
    return 0.5 * (1 + u + jnp.sin(jnp.pi * u) / jnp.pi)


def _cosine_normalizer(m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
    return _cosine_cdf((upper - m) / sigma) - _cosine_cdf((lower - m) / sigma)


def _cosine_density(x: Number, m: Number, sigma: Number, lower: Number, log_scale: Number) -> Shaped:
    u, exists = (x - m) / sigma, log_scale > -jnp.inf
    inside = (jnp.abs(u) < 1) & exists
    bump = 0.5 * (1 + jnp.cos(jnp.pi * jnp.where(inside, u, 0)))
    return jnp.where(inside, bump * jnp.exp(-jnp.where(exists, log_scale, 0)), 0.0)


def _cosine_mass(
    left: Number, right: Number, m: Number, sigma: Number, lower: Number, log_normalizer: Number
) -> Shaped:
    part = _cosine_cdf((jnp.maximum(right, left) - m) / sigma) - _cosine_cdf((left - m) / sigma)
    exists = log_normalizer > -jnp.inf
    return jnp.where(exists, part * jnp.exp(-jnp.where(exists, log_normalizer, 0)), 0.0)


def _cosine_ppf(p: Number, m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
    p, m, sigma, lower, upper = jnp.broadcast_arrays(*_floats(p, m, sigma, lower, upper))
    left, right = jnp.clip((lower - m) / sigma, -1, 1), jnp.clip((upper - m) / sigma, -1, 1)
    target = _cosine_cdf(left) + p * (_cosine_cdf(right) - _cosine_cdf(left))

    def halve(_: Any, bracket: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = _cosine_cdf(middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # Bisection: the density vanishes at both ends, where Newton's steps would crawl.
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (left, right))
    return jnp.clip(m + sigma * 0.5 * (low + high), lower, upper)


# --- truncated exponential --------------------------------------------------------------------------------------------


def _exponential_log_normalizer(m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
    return jnp.log(-jnp.expm1(-(upper - lower) / sigma)) + 0 * m


def _exponential_log_density(x: Number, m: Number, sigma: Number, lower: Number, log_scale: Number) -> Shaped:
    return -(x - lower) / sigma - log_scale + 0 * m


def _exponential_mass(
    left: Number, right: Number, m: Number, sigma: Number, lower: Number, log_normalizer: Number
) -> Shaped:
    width = jnp.maximum(right - left, 0)
    return -jnp.expm1(-width / sigma) * jnp.exp(-(left - lower) / sigma - log_normalizer) + 0 * m


def _exponential_ppf(p: Number, m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
    return jnp.clip(lower - sigma * jnp.log1p(p * jnp.expm1(-(upper - lower) / sigma)), lower, upper) + 0 * m


# --- assembly ---------------------------------------------------------------------------------------------------------


def _floats(*values: Number) -> list[Any]:
    dtype = jnp.result_type(*values, jnp.zeros((), jnp.result_type(float)))
    return [jnp.asarray(value, dtype) for value in values]


def _kernel(
    name: str,
    log_density: Callable,
    density: Callable,
    mass: Callable,
    ppf: Callable,
    log_normalizer: Callable,
    *,
    has_location: bool = True,
    scale_from_std: float = 1.0,
) -> Kernel:
    def inside(x: Any, lower: Any, upper: Any) -> Any:
        return (x >= lower) & (x <= upper)

    def log_scale(m: Any, sigma: Any, lower: Any, upper: Any) -> Any:
        return jnp.log(sigma) + log_normalizer(m, sigma, lower, upper)

    def logpdf(x: Number, m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
        x, m, sigma, lower, upper = _floats(x, m, sigma, lower, upper)
        value = log_density(jnp.clip(x, lower, upper), m, sigma, lower, log_scale(m, sigma, lower, upper))
        return jnp.where(inside(x, lower, upper), value, -jnp.inf)

    def pdf(x: Number, m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
        x, m, sigma, lower, upper = _floats(x, m, sigma, lower, upper)
        value = density(jnp.clip(x, lower, upper), m, sigma, lower, log_scale(m, sigma, lower, upper))
        return jnp.where(inside(x, lower, upper), value, 0.0)

    def cdf(x: Number, m: Number, sigma: Number, lower: Number, upper: Number) -> Shaped:
        x, m, sigma, lower, upper = _floats(x, m, sigma, lower, upper)
        value = mass(lower, jnp.clip(x, lower, upper), m, sigma, lower, log_normalizer(m, sigma, lower, upper))
        return jnp.where(x >= upper, 1.0, value)

    return Kernel(name, logpdf, pdf, cdf, ppf, log_normalizer, density, mass, has_location, scale_from_std)


KERNELS = {
    kernel.name: kernel
    for kernel in (
        _kernel(
            "truncated_gaussian",
            _gaussian_log_density,
            lambda *args: jnp.exp(_gaussian_log_density(*args)),
            _gaussian_mass,
            _gaussian_ppf,
            _gaussian_log_normalizer,
        ),
        _kernel(
            "raised_cosine",
            lambda *args: jnp.log(_cosine_density(*args)),
            _cosine_density,
            _cosine_mass,
            _cosine_ppf,
            lambda *args: jnp.log(_cosine_normalizer(*args)),
            scale_from_std=1 / np.sqrt(1 / 3 - 2 / np.pi**2),
        ),
        _kernel(
            "truncated_exponential",
            _exponential_log_density,
            lambda *args: jnp.exp(_exponential_log_density(*args)),
            _exponential_mass,
            _exponential_ppf,
            _exponential_log_normalizer,
            has_location=False,
        ),
    )
}
