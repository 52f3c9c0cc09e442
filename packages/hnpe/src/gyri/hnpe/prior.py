"""Hierarchical priors: parameters of one recording, parameters that all recordings share, and their laws."""

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import as_key, check_array

Law = Any  # a numpyro distribution, or a function of the shared parameters that makes one

_NUDGE = 1e-6  # of the width of an interval: how near a bound z can tell
_FIXED_KEY, _N_DRAWS = 20210212, 10_000


class Bounds(NamedTuple):
    """Support of each coordinate; an infinite bound is none."""

    lower: np.ndarray
    upper: np.ndarray


class HierarchicalPrior:
    """Prior of local and shared parameters, as ordered univariate laws.

    Vectors of parameters hold the local ones first, then the shared ones, in the order of the mappings.

    Parameters
    ----------
    local : mapping of str to numpyro distribution or callable
        Parameters that each recording has for itself. A callable ``law(shared: dict) -> distribution`` gives the law
        under given shared parameters; its support must not depend on them.
    shared : mapping of str to numpyro distribution
        Parameters that all recordings of a set have in common.

    Attributes
    ----------
    names : tuple of str
        Local, then shared.
    n_local, n_shared, dim : int
        How many, and their sum.
    bounds : Bounds
        Of the support, float64.

    Raises
    ------
    ValueError
        No local or no shared parameter, a name given twice, or a law that is not univariate and continuous on an
        interval, a half-line or the line.

    Examples
    --------
    >>> import jax, numpyro.distributions as dist
    >>> from gyri.hnpe import HierarchicalPrior
    >>> prior = HierarchicalPrior(local={"source": dist.Uniform(0.0, 1.0)}, shared={"gain": dist.Normal(0.0, 2.0)})
    >>> prior.names, prior.dim
    (('source', 'gain'), 2)
    >>> prior.sample(jax.random.key(0), (5,)).shape
    (5, 2)

    References
    ----------
    Rodrigues, Moreau, Louppe, Gramfort (2021), arXiv 2102.06477.
    """

    def __init__(self, local: Any, shared: Any) -> None:
        for laws, name in ((local, "local"), (shared, "shared")):
            if not isinstance(laws, Mapping) or not laws:
                raise ValueError(f"{name}: expected a mapping of names to distributions, not empty, got {laws!r}")
        twice = set(local) & set(shared)
        if twice:
            raise ValueError(f"shared: expected names other than those of local, got {sorted(twice)} in both")
        self.local, self.shared = dict(local), dict(shared)
        self.names = (*self.local, *self.shared)
        self.n_local, self.n_shared = len(self.local), len(self.shared)
        self.dim = self.n_local + self.n_shared
        for name, law in self.shared.items():
            _check_law(law, f"shared[{name!r}]")
        self.bounds = self._find_bounds()

    def __repr__(self) -> str:
        """Names and laws, for people."""
        laws = lambda some: ", ".join(f"{n}: {getattr(x, '__name__', type(x).__name__)}" for n, x in some.items())
        return f"HierarchicalPrior(local={{{laws(self.local)}}}, shared={{{laws(self.shared)}}})"

    # --- laws ---------------------------------------------------------------------------------------------------------

    def _find_bounds(self) -> Bounds:
        """Bounds of every coordinate, on the host; of a conditional law they are read at two draws, and must agree."""
        with jax.ensure_compile_time_eval():
            pairs = []
            for draw in range(2):
                key = jax.random.key(_FIXED_KEY + draw)
                values = {name: law.sample(key) for name, law in self.shared.items()}
                laws = [_check_law(self._law(name, values), f"local[{name!r}]") for name in self.local]
                pairs.append([_bounds_of(law) for law in (*laws, *self.shared.values())])
        if pairs[0] != pairs[1]:
            name = next(name for name, a, b in zip(self.names, *pairs, strict=True) if a != b)
            raise ValueError(f"local[{name!r}]: expected a support that does not depend on the shared parameters")
        lower, upper = np.array(pairs[0], np.float64).T
        return Bounds(lower, upper)

    def _law(self, name: str, shared: dict[str, Any]) -> Any:
        """The law of a local parameter, given the shared ones."""
        law = self.local[name]
        return law(shared) if _is_conditional(law) else law

    def _split(self, shared: Array) -> dict[str, Array]:
        return {name: shared[..., i] for i, name in enumerate(self.shared)}

    # --- draws and densities ------------------------------------------------------------------------------------------

    def sample(self, key: Key[Array, ""] | Array | int, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*n dim"]:
        """Draw parameters.

        Parameters
        ----------
        key : PRNG key or int
            Randomness.
        sample_shape : tuple of int
            How many.

        Returns
        -------
        Array, shape (..., dim)
            Local parameters, then shared ones.

        Examples
        --------
        >>> import jax
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.sample(jax.random.key(0), (3,)).shape
        (3, 2)
        """
        return self._draw(as_key(key), tuple(sample_shape))

    # Compiled: run one by one, the operations below would take seconds the first time.
    @partial(jax.jit, static_argnums=(0, 2))
    def _draw(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        shared_key, local_key = jax.random.split(key)
        keys = jax.random.split(shared_key, self.n_shared)
        laws = self.shared.values()
        shared = jnp.stack([law.sample(k, sample_shape) for law, k in zip(laws, keys, strict=True)], -1)
        return jnp.concatenate([self._draw_local(local_key, shared, sample_shape), shared], -1)

    def sample_local(
        self, key: Key[Array, ""] | Array | int, shared: Any, sample_shape: tuple[int, ...] = ()
    ) -> Float[Array, "*n n_local"]:
        """Draw local parameters under given shared ones.

        Parameters
        ----------
        key : PRNG key or int
            Randomness.
        shared : array, shape (n_shared,)
            Shared parameters.
        sample_shape : tuple of int
            How many.

        Returns
        -------
        Array, shape (..., n_local)
            Independent draws.

        Raises
        ------
        ValueError
            If `shared` has another shape.

        Examples
        --------
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.sample_local(jax.random.key(0), jnp.array([0.5]), (4,)).shape
        (4, 1)
        """
        shared = jnp.asarray(check_array(shared, "shared", shape=(self.n_shared,)))
        shape = tuple(sample_shape)
        return self._draw_local(as_key(key), jnp.broadcast_to(shared, (*shape, self.n_shared)), shape)

    @partial(jax.jit, static_argnums=(0, 3))
    def _draw_local(self, key: Array, shared: Array, shape: tuple[int, ...]) -> Array:
        values, columns = self._split(shared), []
        for name, k in zip(self.local, jax.random.split(key, self.n_local), strict=True):
            law = self._law(name, values)
            columns.append(law.expand(shape).sample(k))
        return jnp.stack(columns, -1).astype(shared.dtype)

    def log_prob(self, theta: Any) -> Float[Array, "*n"]:
        """Log density; minus infinity outside the support.

        Parameters
        ----------
        theta : array, shape (..., dim)
            Local, then shared parameters; those on a bound, which draws may hit, count as just inside.

        Returns
        -------
        Array, shape (...)
            Log density.

        Raises
        ------
        ValueError
            If the last axis is not `dim`.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> jnp.exp(ToyModel().prior.log_prob(jnp.array([[0.2, 0.3], [0.2, 1.3]])))
        Array([1., 0.], dtype=float32)
        """
        return self._log_prob(self.check_theta(theta, finite=False))

    @partial(jax.jit, static_argnums=0)
    def _log_prob(self, theta: Array) -> Array:
        inside = self._inside(theta, closed=True)
        low, high = self._just_inside(theta.dtype)
        safe = jnp.where(inside, jnp.clip(theta, low, high), self._center(theta.dtype))
        values = self._split(safe[..., self.n_local :])
        laws = [self._law(name, values) for name in self.local] + list(self.shared.values())
        terms = [law.log_prob(safe[..., i]) for i, law in enumerate(laws)]
        total = sum(terms[1:], terms[0]).astype(theta.dtype)
        return jnp.where(inside.all(-1), total, -jnp.inf)

    def check_theta(self, theta: Any, name: str = "theta", finite: bool = True) -> Array:
        """As a floating array whose last axis is `dim`; infinity, outside every support, may be let through.

        Examples
        --------
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.check_theta([0.5])
        Traceback (most recent call last):
        ValueError: theta: expected shape (..., 2), got (1,)
        """
        return check_points(theta, name, self.dim, finite)

    # --- the unconstrained space --------------------------------------------------------------------------------------

    def support(self, theta: Any) -> Array:
        """Tell which parameters lie in the open support.

        Parameters
        ----------
        theta : array, shape (..., dim)
            Local, then shared parameters.

        Returns
        -------
        Array of bool, shape (...)
            True inside.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.support(jnp.array([[0.2, 0.3], [0.2, 1.0]]))
        Array([ True, False], dtype=bool)
        """
        return self._inside(self.check_theta(theta, finite=False), closed=False).all(-1)

    def _inside(self, theta: Array, closed: bool, at: slice = slice(None)) -> Array:
        lower, upper = (jnp.asarray(bound[at], theta.dtype) for bound in self.bounds)
        inside = (theta > lower) & (theta < upper)
        if closed:  # float32 draws may hit a bound
            inside |= jnp.isfinite(theta) & ((theta == lower) | (theta == upper))
        return inside

    def _just_inside(self, dtype: Any, at: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The numbers next to the bounds; those next to zero are normal ones."""
        dtype = np.dtype(dtype)
        edges = []
        for bound, inward in zip(self.bounds, (np.inf, -np.inf), strict=True):
            bound = bound[at].astype(dtype)
            step = np.where(
                bound == 0, np.copysign(np.finfo(dtype).tiny, inward), np.nextafter(bound, dtype.type(inward))
            )
            edges.append(np.where(np.isfinite(bound), step, bound).astype(dtype))
        return edges[0], edges[1]

    def _center(self, dtype: Any, at: slice = slice(None)) -> Array:
        """A point inside: what is computed where a mask throws the result away, so that gradients stay finite."""
        lower, upper = (bound[at] for bound in self.bounds)
        middle = np.where(np.isfinite(lower), lower + 1, np.where(np.isfinite(upper), upper - 1, 0))
        both = np.isfinite(lower) & np.isfinite(upper)
        return jnp.asarray(np.where(both, np.where(both, lower, 0) / 2 + np.where(both, upper, 0) / 2, middle), dtype)

    def unconstrain(self, theta: Any) -> tuple[Float[Array, "*n dim"], Float[Array, "*n"]]:
        """Map the support onto the whole space: a logit on intervals, a logarithm on half-lines, as NumPyro.

        Parameters
        ----------
        theta : array, shape (..., dim)
            Local, then shared parameters; those on a bound or beyond count as just inside.

        Returns
        -------
        z : Array, shape (..., dim)
            Unconstrained.
        log_det : Array, shape (...)
            Log of the Jacobian determinant of z with respect to theta.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> z, log_det = ToyModel().prior.unconstrain(jnp.array([0.5, 0.5]))
        >>> z.tolist(), round(float(log_det), 3)
        ([0.0, 0.0], 2.773)
        """
        z, log_det = self.to_line(self.check_theta(theta))
        return z, log_det.sum(-1)

    def constrain(self, z: Any) -> Float[Array, "*n dim"]:
        """Inverse of :meth:`unconstrain`; never leaves the open support, whatever z.

        Parameters
        ----------
        z : array, shape (..., dim)
            Unconstrained.

        Returns
        -------
        Array, shape (..., dim)
            Parameters.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.constrain(jnp.array([0.0, 100.0])).tolist()
        [0.5, 0.9999989867210388]
        """
        return self.from_line(self.check_theta(z, "z"))

    def to_line(self, theta: Array, at: slice = slice(None)) -> tuple[Array, Array]:
        """:meth:`unconstrain` for the coordinates `at`, with the log-derivative of each.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.to_line(jnp.array([0.5]), slice(1, 2))[0]
        Array([0.], dtype=float32)
        """
        return self._to_line(theta, at.start, at.stop)

    @partial(jax.jit, static_argnums=(0, 2, 3))
    def _to_line(self, theta: Array, start: int | None, stop: int | None) -> tuple[Array, Array]:
        dtype = theta.dtype
        lower, upper = (bound[start:stop] for bound in self.bounds)
        z, log_det = theta, jnp.zeros_like(theta)
        both = np.isfinite(lower) & np.isfinite(upper)
        if both.any():
            width = jnp.asarray(np.where(both, upper, 1) - np.where(both, lower, 0), dtype)
            p = jnp.clip((theta - jnp.asarray(np.where(both, lower, 0), dtype)) / width, _NUDGE, 1 - _NUDGE)
            z = jnp.where(both, jnp.log(p) - jnp.log1p(-p), z)
            log_det = jnp.where(both, -jnp.log(width) - jnp.log(p) - jnp.log1p(-p), log_det)
        for half, sign, bound in ((np.isfinite(lower) & ~both, 1, lower), (np.isfinite(upper) & ~both, -1, upper)):
            if half.any():
                gap = sign * (theta - jnp.asarray(np.where(half, bound, 0), dtype))
                log_gap = jnp.log(jnp.maximum(jnp.where(half, gap, 1), jnp.finfo(dtype).tiny))
                z, log_det = jnp.where(half, log_gap, z), jnp.where(half, -log_gap, log_det)
        return z, log_det

    def from_line(self, z: Array, at: slice = slice(None)) -> Array:
        """:meth:`constrain` for the coordinates `at`.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> from gyri.hnpe import ToyModel
        >>> ToyModel().prior.from_line(jnp.array([0.0]), slice(1, 2))
        Array([0.5], dtype=float32)
        """
        return self._from_line(z, at.start, at.stop)

    @partial(jax.jit, static_argnums=(0, 2, 3))
    def _from_line(self, z: Array, start: int | None, stop: int | None) -> Array:
        dtype = z.dtype
        lower, upper = (bound[start:stop] for bound in self.bounds)
        low, high = self._just_inside(dtype, slice(start, stop))
        theta = z
        both = np.isfinite(lower) & np.isfinite(upper)
        if both.any():
            width = np.where(both, upper, 1) - np.where(both, lower, 0)
            bottom = np.where(both, lower, 0)
            theta = jnp.where(both, jnp.asarray(bottom, dtype) + jnp.asarray(width, dtype) * jax.nn.sigmoid(z), theta)
            # The nearest numbers that `to_line` can tell, or else the nearest that there are.
            low = np.where(both, np.maximum((bottom + _NUDGE * width).astype(dtype), low), low)
            high = np.where(both, np.minimum((bottom + (1 - _NUDGE) * width).astype(dtype), high), high)
        for half, sign, bound in ((np.isfinite(lower) & ~both, 1, lower), (np.isfinite(upper) & ~both, -1, upper)):
            if half.any():
                limit = float(np.log(np.finfo(dtype).max)) - 1
                gap = jnp.exp(jnp.clip(jnp.where(half, z, 0), -limit, limit))
                theta = jnp.where(half, jnp.asarray(np.where(half, bound, 0), dtype) + sign * gap, theta)
        return jnp.clip(theta, jnp.asarray(low, dtype), jnp.asarray(high, dtype))

    @cached_property
    def z_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each unconstrained coordinate over fixed draws, float64."""
        with jax.ensure_compile_time_eval():
            z = np.asarray(self.unconstrain(self.sample(_FIXED_KEY, (_N_DRAWS,)))[0], np.float64)
        return z.mean(0), np.maximum(z.std(0), 1e-6)


def check_points(points: Any, name: str, width: int, finite: bool = False) -> Array:
    """As a floating array of vectors of a width; NaN stays, and infinity unless `finite`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.prior import check_points
    >>> check_points([0.5, jnp.inf], "theta", 2)
    Array([0.5, inf], dtype=float32)
    """
    options: dict[str, Any] = {"allow_empty": True, "allow_nan": True}
    try:
        infinite = np.isinf(points)
    except (TypeError, ValueError):  # inside jit, or no numbers, of which `check_array` tells
        infinite = np.zeros((), bool)
    if infinite.any() and not finite:
        check_array(np.where(infinite, np.nan, points), name, **options)
        points = jnp.asarray(points)
    else:
        points = jnp.asarray(check_array(points, name, **options))
    if points.ndim == 0 or points.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., {width}), got {points.shape}")
    return points


# --- laws -------------------------------------------------------------------------------------------------------------


def _is_conditional(law: Any) -> bool:
    """Whether a law is a function of the shared parameters; distributions themselves are callable too."""
    return callable(law) and not hasattr(law, "log_prob")


def _check_law(law: Any, name: str) -> Any:
    from numpyro.distributions import Distribution

    if not isinstance(law, Distribution):
        raise ValueError(f"{name}: expected a numpyro distribution, got {law!r}")
    if law.event_shape or law.batch_shape:
        shapes = f"batch {law.batch_shape} and event {law.event_shape}"
        raise ValueError(f"{name}: expected a univariate law, of event and batch shape (), got {shapes}")
    support = law.support
    if support is None or support.is_discrete:
        raise ValueError(f"{name}: expected a continuous law, got {type(law).__name__} on {support}")
    _bounds_of(law, name)
    return law


def _bounds_of(law: Any, name: str = "law") -> tuple[float, float]:
    """Ends of a support: those of an interval or a half-line, or infinity."""
    from numpyro.distributions import constraints

    kinds = tuple(
        type(kind)
        for kind in (
            constraints.real, constraints.unit_interval, constraints.interval(0, 1), constraints.open_interval(0, 1),
            constraints.positive, constraints.nonnegative, constraints.greater_than(0), constraints.less_than(0),
            constraints.greater_than_eq(0), constraints.less_than_eq(0),
        )
    )  # fmt: skip
    support = law.support
    if not isinstance(support, kinds) or support == constraints.circular:
        raise ValueError(f"{name}: expected a law on an interval, a half-line or the line, got one on {support}")
    lower, upper = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    return float(lower), float(upper)


def encode_prior(prior: HierarchicalPrior) -> dict | None:
    """Describe a prior in JSON by class names and arguments of its laws; None if a law is not that plain."""
    sides = {side: {name: _encode(law) for name, law in getattr(prior, side).items()} for side in ("local", "shared")}
    return None if any(law is None for laws in sides.values() for law in laws.values()) else sides


def decode_prior(about: dict) -> HierarchicalPrior:
    """Inverse of :func:`encode_prior`."""
    return HierarchicalPrior(
        **{side: {name: _decode(law) for name, law in about[side].items()} for side in ("local", "shared")}
    )


def _encode(law: Any) -> dict | None:
    import numpyro.distributions as dist

    if _is_conditional(law) or getattr(dist, type(law).__name__, None) is not type(law):
        return None
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(law).__init__).parameters:
        if name in ("self", "validate_args"):
            continue
        value = getattr(law, name, None)
        if isinstance(value, dist.Distribution):
            value = _encode(value)
        elif value is not None and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "if":
            value = np.asarray(value).item()
        else:
            value = None
        if value is None:
            return None
        arguments[name] = value
    return {"law": type(law).__name__, "arguments": arguments}


def _decode(about: dict) -> Any:
    import numpyro.distributions as dist

    arguments = {k: _decode(v) if isinstance(v, dict) else v for k, v in about["arguments"].items()}
    make: Callable = getattr(dist, about["law"])
    return make(**arguments)
