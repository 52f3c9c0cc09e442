"""Small simulators: the toy model, whose posterior is known exactly, and the localisation of a sound source."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtri
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import as_key, check_array, check_option, check_positive_int, check_scalar

from .prior import HierarchicalPrior

_N_COARSE, _N_FINE = 2_000, 5_000
_DEPTH = 30.0  # nats below the peak at which the quadrature stops


@cache
def unit_prior(local: str, shared: str) -> HierarchicalPrior:
    """Uniform prior on the unit square, one object for the same names.

    Examples
    --------
    >>> from gyri.hnpe.simulators import unit_prior
    >>> unit_prior("alpha", "beta") is unit_prior("alpha", "beta")
    True
    """
    from numpyro.distributions import Uniform

    return HierarchicalPrior({local: Uniform(0.0, 1.0)}, {shared: Uniform(0.0, 1.0)})


# --- the toy model ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ToyModel:
    r"""A product of two parameters, one of them shared: :math:`x = \alpha\beta^\gamma + \sigma\epsilon`.

    Both are uniform on (0, 1) a priori. One recording tells the product only; others with the same beta tell beta.
    An instance is a simulator, hashable, and knows its exact posterior.

    Parameters
    ----------
    gamma : float
        Power of the shared parameter, > 0.
    noise : float
        Standard deviation of the noise, >= 0.

    Attributes
    ----------
    prior : HierarchicalPrior
        Of alpha (local) and beta (shared).

    Raises
    ------
    ValueError
        If `gamma` or `noise` is out of range.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe import ToyModel
    >>> model = ToyModel(noise=0.05)
    >>> model(jax.random.key(0), jnp.array([0.5, 0.5])).shape
    (1,)
    >>> x, x_extra = jnp.array([0.25]), jnp.array([[0.1], [0.4]])
    >>> model.posterior_sample(jax.random.key(1), (3,), x, x_extra).shape
    (3, 2)

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021).
    """

    gamma: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", check_scalar(self.gamma, "gamma", minimum=0, strict=True))
        object.__setattr__(self, "noise", check_scalar(self.noise, "noise", minimum=0))

    @property
    def prior(self) -> HierarchicalPrior:
        """Uniform on the unit square, the same object each time."""
        return unit_prior("alpha", "beta")

    def __call__(self, key: Key[Array, ""] | Array | int, theta: Any) -> Float[Array, "1"]:
        """Simulate one recording.

        Parameters
        ----------
        key : PRNG key or int
            Of the noise.
        theta : array, shape (2,)
            alpha and beta.

        Returns
        -------
        Array, shape (1,)
            The recording.
        """
        theta = jnp.asarray(check_array(theta, "theta", shape=(2,), allow_nan=True))
        x = theta[:1] * theta[1:] ** self.gamma
        return x if self.noise == 0 else x + self.noise * jax.random.normal(as_key(key), (1,), x.dtype)

    def _observed(self, x: Any, x_extra: Any) -> tuple[Array, Array]:
        """The recording of interest, a number, and all of them, shape (1 + N,)."""
        x = jnp.asarray(check_array(x, "x", shape=(1,)))
        if x_extra is None:
            return x[0], x
        x_extra = jnp.asarray(check_array(x_extra, "x_extra", shape=(None, 1), allow_empty=True))
        return x[0], jnp.concatenate([x, x_extra[:, 0].astype(x.dtype)])

    # --- beta ---------------------------------------------------------------------------------------------------------

    # Compiled: run one by one, the operations below would take seconds the first time.
    @partial(jax.jit, static_argnums=0)
    def _log_likelihood(self, beta: Array, x: Array) -> Array:
        """Sum over recordings of log p(x | beta), alpha integrated out, with noise."""
        s, x = beta[..., None] ** self.gamma, x / self.noise
        width = s / self.noise
        low, high = x - width, x
        # Both arguments in the lower tail, where differences of log_ndtr are accurate.
        low, high = jnp.where(low + high > 0, -high, low), jnp.where(low + high > 0, -low, high)
        log_high = log_ndtr(high)
        gap = jnp.minimum(log_ndtr(low) - log_high, -jnp.finfo(x.dtype).eps)
        difference = log_high + jnp.log(-jnp.expm1(gap)) - jnp.log(s)
        midpoint = -0.5 * (x - width / 2) ** 2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(self.noise)
        return jnp.where(width < 1e-3, midpoint, difference).sum(-1)

    @partial(jax.jit, static_argnums=0)
    def _quadrature(self, x: Array) -> tuple[Array, Array, Array]:
        """Grid of beta where its posterior is not negligible, log density on it, and distribution function."""
        coarse = (jnp.arange(_N_COARSE, dtype=x.dtype) + 0.5) / _N_COARSE
        values = self._log_likelihood(coarse, x)
        seen = values > values.max() - _DEPTH
        low = jnp.maximum(coarse[jnp.argmax(seen)] - 1 / _N_COARSE, 0)
        high = jnp.minimum(coarse[_N_COARSE - 1 - jnp.argmax(seen[::-1])] + 1 / _N_COARSE, 1)
        t = jnp.linspace(0, 1, _N_FINE, dtype=x.dtype)
        grid = jnp.maximum(low + (high - low) * t, 1e-6)
        values = self._log_likelihood(grid, x)
        peak = values.max()
        density = jnp.exp(values - peak)
        steps = 0.5 * (density[1:] + density[:-1]) * jnp.diff(grid)
        total = steps.sum()
        # Blocks, so that rounding in float32 does not add up over thousands of terms.
        cdf = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(steps)]) / total
        return grid, peak + jnp.log(total), cdf / cdf[-1]

    def _noise_free(self, x: Array) -> tuple[Array, float]:
        """Minus the log of the smallest possible beta, and the power k of its density beta^-(k + 1)."""
        return -jnp.log(jnp.max(x)) / self.gamma, self.gamma * x.shape[0] - 1

    def log_prob_shared(self, beta: Any, x: Any, x_extra: Any = None) -> Float[Array, "*n"]:
        """Exact log density of beta given all recordings, normalised.

        Parameters
        ----------
        beta : array, shape (...)
            Where.
        x : array, shape (1,)
            The recording of interest.
        x_extra : array, shape (N, 1), optional
            The others.

        Returns
        -------
        Array, shape (...)
            Log density, minus infinity where it is zero.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> x = jnp.array([0.25])
        >>> ToyModel().log_prob_shared(jnp.array([0.2, 0.5]), x).round(3)  # the density is 1 / (beta log 4)
        Array([ -inf, 0.367], dtype=float32)
        """
        _, every = self._observed(x, x_extra)
        beta = jnp.asarray(check_array(beta, "beta", allow_empty=True), every.dtype)
        inside = (beta > 0) & (beta < 1)
        safe = jnp.where(inside, beta, 0.5)
        if self.noise > 0:
            return jnp.where(inside, self._log_likelihood(safe, every) - self._quadrature(every)[1], -jnp.inf)
        span, k = self._noise_free(every)
        log_total = jnp.log(span)
        if k != 0:
            log_total = jnp.maximum(k * span, 0) + jnp.log(-jnp.expm1(-abs(k) * span)) - jnp.log(abs(k))
        inside &= (jnp.log(safe) >= -span) & jnp.all(every >= 0)
        return jnp.where(inside, -(k + 1) * jnp.log(safe) - log_total, -jnp.inf)

    @partial(jax.jit, static_argnums=(0, 2))
    def _sample_shared(self, key: Array, shape: tuple[int, ...], every: Array) -> Array:
        u = jax.random.uniform(key, shape, every.dtype)
        if self.noise > 0:
            grid, _, cdf = self._quadrature(every)
            return jnp.interp(u, cdf, grid)
        span, k = self._noise_free(every)
        if k == 0:
            return jnp.exp(-span * (1 - u))
        return jnp.exp(jnp.minimum(-span - jnp.log1p(u * jnp.expm1(-k * span)) / k, 0))

    # --- alpha, given beta --------------------------------------------------------------------------------------------

    def log_prob_local(self, alpha: Any, beta: Any, x: Any) -> Float[Array, "*n"]:
        """Exact log density of alpha given beta and its recording: a normal law truncated to (0, 1).

        Parameters
        ----------
        alpha, beta : array, shape (...)
            Where, and given what.
        x : array, shape (1,)
            The recording of interest.

        Returns
        -------
        Array, shape (...)
            Log density, minus infinity outside (0, 1).

        Raises
        ------
        ValueError
            Without noise, where alpha is known and has no density.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> x = jnp.array([0.25])
        >>> bool(ToyModel(noise=0.05).log_prob_local(jnp.array(0.5), jnp.array(0.5), x) > 1)
        True
        """
        if self.noise == 0:
            raise ValueError("noise: expected > 0 for a density of alpha, which is known exactly without noise, got 0")
        value, _ = self._observed(x, None)
        alpha, beta = (
            jnp.asarray(check_array(v, n, allow_empty=True), value.dtype) for v, n in ((alpha, "alpha"), (beta, "beta"))
        )
        inside = (alpha > 0) & (alpha < 1) & (beta > 0) & (beta < 1)
        s = jnp.where(inside, beta, 0.5) ** self.gamma
        log_ratio = -0.5 * ((value - jnp.where(inside, alpha, 0.5) * s) / self.noise) ** 2 - jnp.log(self.noise)
        log_total = self._log_likelihood(jnp.where(inside, beta, 0.5), value[None])
        return jnp.where(inside, log_ratio - 0.5 * jnp.log(2 * jnp.pi) - log_total, -jnp.inf)

    @partial(jax.jit, static_argnums=0)
    def _sample_local(self, key: Array, beta: Array, value: Array) -> Array:
        s = beta**self.gamma
        if self.noise == 0:
            return jnp.clip(value / s, 0, 1)
        u = jax.random.uniform(key, beta.shape, value.dtype)
        low, high = -value / self.noise, (s - value) / self.noise
        flip = low + high > 0  # the lower tail is where probabilities are accurate
        low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
        log_low, log_high = log_ndtr(low), log_ndtr(high)
        log_p = log_high + jnp.log(u + (1 - u) * jnp.exp(log_low - log_high))
        tail = -jnp.sqrt(jnp.maximum(-2 * log_p, 1))  # where the probability underflows: first term of the expansion
        tail = -jnp.sqrt(jnp.maximum(-2 * (log_p + 0.5 * jnp.log(2 * jnp.pi) + jnp.log(-tail)), 0))
        z = jnp.where(log_p > -60, ndtri(jnp.exp(log_p)), tail)
        z = jnp.where(flip, -z, z)
        return jnp.clip((value + self.noise * z) / s, 0, 1)

    # --- both ---------------------------------------------------------------------------------------------------------

    def log_prob(
        self,
        theta: Any,
        x: Any,
        x_extra: Any = None,
        tol: float | int | None = None,
    ) -> Float[Array, "*n"]:
        """Exact log density of (alpha, beta) given all recordings.

        Parameters
        ----------
        theta : array, shape (..., 2)
            Where.
        x : array, shape (1,)
            The recording of interest.
        x_extra : array, shape (N, 1), optional
            The others.
        tol : float, optional
            Without noise, and only then: standard deviation of the normal law that stands for a point mass on
            ``alpha beta^gamma = x``.

        Returns
        -------
        Array, shape (...)
            Log density.

        Raises
        ------
        ValueError
            If there is no noise and no `tol`.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> theta, x = jnp.array([0.5, 0.5]), jnp.array([0.25])
        >>> bool(ToyModel().log_prob(theta, x, tol=0.01) > ToyModel(noise=0.05).log_prob(theta, x))
        True
        """
        theta = self.prior.check_theta(theta)
        alpha, beta = theta[..., 0], theta[..., 1]
        shared = self.log_prob_shared(beta, x, x_extra)
        if self.noise > 0:
            return self.log_prob_local(alpha, beta, x) + shared
        if tol is None:
            raise ValueError("tol: expected a number > 0 where noise is 0, got None")
        tol = check_scalar(tol, "tol", minimum=0, strict=True)
        value, _ = self._observed(x, None)
        s = jnp.where(self.prior.support(theta), beta, 0.5) ** self.gamma
        normal = -0.5 * ((value - alpha * s) / tol) ** 2 - jnp.log(tol) - 0.5 * jnp.log(2 * jnp.pi)
        # The factor s is the Jacobian of alpha -> alpha s.
        return jnp.where(self.prior.support(theta), normal + jnp.log(s) + shared, -jnp.inf)

    def posterior_sample(
        self,
        key: Key[Array, ""] | Array | int,
        sample_shape: tuple[int, ...],
        x: Any,
        x_extra: Any = None,
    ) -> Float[Array, "*n 2"]:
        """Draw from the exact posterior by inverse distribution functions.

        Parameters
        ----------
        key : PRNG key or int
            Randomness.
        sample_shape : tuple of int
            How many.
        x : array, shape (1,)
            The recording of interest.
        x_extra : array, shape (N, 1), optional
            The others.

        Returns
        -------
        Array, shape (..., 2)
            alpha and beta.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> theta = ToyModel().posterior_sample(0, (100,), jnp.array([0.25]), jnp.array([[0.4]]))
        >>> bool(jnp.allclose(theta.prod(-1), 0.25)), bool((theta[:, 1] >= 0.4).all())
        (True, True)
        """
        shared_key, local_key = jax.random.split(as_key(key))
        value, every = self._observed(x, x_extra)
        beta = self._sample_shared(shared_key, sample_shape, every)
        return jnp.stack([self._sample_local(local_key, beta, value), beta], -1)


# --- the sound source -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SourceLocalization:
    """A source in the plane heard by two microphones: the difference of its distances to them.

    The microphones stand at plus and minus (cos angle, sin angle). One recording leaves a branch of a hyperbola; others
    of sources with the same u (or v) tell where on it.

    Parameters
    ----------
    angle : float
        Of the axis of the microphones, radians.
    noise : float
        Standard deviation of each measure, >= 0.
    n_outputs : int
        How many measures a recording has.
    shared : {"u", "v"}
        The coordinate that all recordings have in common.
    half_width : float
        The prior is uniform on a square of twice this side about the origin.

    Attributes
    ----------
    prior : HierarchicalPrior
        Of the other coordinate (local) and the shared one.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.simulators import SourceLocalization
    >>> model = SourceLocalization(noise=0.0, n_outputs=2)
    >>> model.prior.names
    ('v', 'u')
    >>> x = model(jax.random.key(0), jnp.array([0.0, 1.5]))  # on the axis of the microphones, beyond the second
    >>> [round(value, 3) for value in x.tolist()]
    [2.0, 2.0]

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021), and the authors' examples.
    """

    angle: float = 0.0
    noise: float = 0.05
    n_outputs: int = 1
    shared: str = "u"
    half_width: float = 2.0

    def __post_init__(self) -> None:
        check_option(self.shared, "shared", ("u", "v"))
        object.__setattr__(self, "angle", check_scalar(self.angle, "angle"))
        object.__setattr__(self, "noise", check_scalar(self.noise, "noise", minimum=0))
        object.__setattr__(self, "n_outputs", check_positive_int(self.n_outputs, "n_outputs"))
        object.__setattr__(self, "half_width", check_scalar(self.half_width, "half_width", minimum=0, strict=True))

    @property
    def prior(self) -> HierarchicalPrior:
        """Uniform on the square, the same object each time."""
        return _box_prior("uv".replace(self.shared, ""), self.shared, self.half_width)

    def __call__(self, key: Key[Array, ""] | Array | int, theta: Any) -> Float[Array, "n_outputs"]:
        """Simulate one recording.

        Parameters
        ----------
        key : PRNG key or int
            Of the noise.
        theta : array, shape (2,)
            The local coordinate, then the shared one.

        Returns
        -------
        Array, shape (n_outputs,)
            Difference of the distances to the first and the second microphone, with noise.
        """
        theta = jnp.asarray(check_array(theta, "theta", shape=(2,), allow_nan=True))
        source = theta[::-1] if self.shared == "u" else theta
        second = jnp.array([jnp.cos(self.angle), jnp.sin(self.angle)], theta.dtype)
        difference = jnp.linalg.norm(source + second) - jnp.linalg.norm(source - second)
        return difference + self.noise * jax.random.normal(as_key(key), (self.n_outputs,), theta.dtype)


@cache
def _box_prior(local: str, shared: str, half_width: float) -> HierarchicalPrior:
    from numpyro.distributions import Uniform

    law = Uniform(-half_width, half_width)
    return HierarchicalPrior({local: law}, {shared: law})
