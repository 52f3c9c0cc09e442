"""Conditional normalizing flows: layers of splines or affine maps, whose parameters are networks of the condition."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
from flowjax.bijections import AbstractBijection, Chain, Flip, Invert, MaskedAutoregressive, Scan
from flowjax.distributions import StandardNormal, Transformed
from jaxtyping import Array, Float, Key

from gyri.numerics.validation import check_option

INTERVAL = 4.0  # where splines bend; linear beyond
_MIN_SCALE = 1e-3  # of a standardised coordinate: the density of a known parameter would grow for ever
_MIN_BIN, _MIN_SLOPE = 1e-3, 1e-3
_UNIT = float(np.log(np.e - 1))  # softplus of it is 1


class Affine(AbstractBijection):
    """Subtract a shift, divide by a scale that has a floor; the identity where both parameters are 0.

    Attributes
    ----------
    shift, log_scale : Array, shape ()
        What a network gives.

    Examples
    --------
    >>> from gyri.hnpe.flows import Affine
    >>> float(Affine().transform(0.5).round(2))
    0.5
    """

    shift: Float[Array, "*n"]
    log_scale: Float[Array, "*n"]
    shape: tuple[int, ...]
    cond_shape: tuple[int, ...] | None

    def __init__(self, dtype: Any = None) -> None:
        self.shape, self.cond_shape = (), None
        self.shift, self.log_scale = jnp.zeros((), dtype), jnp.zeros((), dtype)

    def _scale(self) -> Array:
        return _MIN_SCALE + jnp.exp(jnp.minimum(self.log_scale, 10.0))

    def transform_and_log_det(self, x: Any, condition: Any = None) -> tuple[Array, Array]:
        """Data to base."""
        scale = self._scale()
        return (x - self.shift) / scale, -jnp.log(scale)

    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[Array, Array]:
        """Base to data."""
        scale = self._scale()
        return y * scale + self.shift, jnp.log(scale)


class Spline(AbstractBijection):
    """Rational-quadratic spline on an interval, the identity beyond it and where all parameters are 0.

    Attributes
    ----------
    widths, heights : Array, shape (n_bins,)
        Logits of the bins' sizes.
    slopes : Array, shape (n_bins - 1,)
        Of the derivatives between bins.

    Examples
    --------
    >>> from gyri.hnpe.flows import Spline
    >>> float(Spline(10).transform(0.5).round(2))
    0.5

    References
    ----------
    Durkan, Bekasov, Murray, Papamakarios (2019), Neural spline flows, NeurIPS.
    """

    widths: Float[Array, "*n n_bins"]
    heights: Float[Array, "*n n_bins"]
    slopes: Float[Array, "*n n_knots"]
    shape: tuple[int, ...]
    cond_shape: tuple[int, ...] | None

    def __init__(self, n_bins: int, dtype: Any = None) -> None:
        self.shape, self.cond_shape = (), None
        self.widths, self.heights = jnp.zeros(n_bins, dtype), jnp.zeros(n_bins, dtype)
        self.slopes = jnp.zeros(n_bins - 1, dtype)

    def _bin(self, x: Array, invert: bool) -> tuple[Array, ...]:
        """Left ends, sizes and end slopes of the bin of x (or of y, if `invert`)."""
        n = len(self.widths)
        # Sums by a product with a triangle: faster than a scan for ten numbers.
        before = np.tril(np.ones((n, n)), -1)

        def place(logits: Array) -> tuple[Array, Array]:
            sizes = 2 * INTERVAL * (_MIN_BIN + (1 - n * _MIN_BIN) * jax.nn.softmax(logits))
            return jnp.asarray(before, sizes.dtype) @ sizes - INTERVAL, sizes

        (lefts, widths), (bottoms, heights) = place(self.widths), place(self.heights)
        inner = _MIN_SLOPE + (1 - _MIN_SLOPE) * jax.nn.softplus(self.slopes + _UNIT)
        one = jnp.ones(1, inner.dtype)
        knots = bottoms if invert else lefts
        chosen = jnp.arange(n) == jnp.sum(x >= knots[1:])
        # A masked sum: its gradient needs no scatter.
        pick = lambda values: jnp.sum(jnp.where(chosen, values, 0))
        ends = jnp.concatenate([one, inner]), jnp.concatenate([inner, one])
        return tuple(pick(v) for v in (lefts, widths, bottoms, heights, *ends))

    def transform_and_log_det(self, x: Any, condition: Any = None) -> tuple[Array, Array]:
        """Data to base."""
        inside = jnp.abs(x) < INTERVAL
        left, width, bottom, height, d0, d1 = self._bin(x, invert=False)
        t = jnp.where(inside, (x - left) / width, 0.5)
        slope, bend = height / width, t * (1 - t)
        below = slope + (d0 + d1 - 2 * slope) * bend
        y = bottom + height * (slope * t**2 + d0 * bend) / below
        log_det = 2 * jnp.log(slope) + jnp.log(d1 * t**2 + 2 * slope * bend + d0 * (1 - t) ** 2) - 2 * jnp.log(below)
        return jnp.where(inside, y, x), jnp.where(inside, log_det, 0)

    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[Array, Array]:
        """Base to data."""
        inside = jnp.abs(y) < INTERVAL
        left, width, bottom, height, d0, d1 = self._bin(y, invert=True)
        rise = jnp.where(inside, jnp.clip((y - bottom) / height, 0, 1), 0.5)
        slope = height / width
        curve = (d0 + d1 - 2 * slope) * rise
        a, b, c = slope - d0 + curve, d0 - curve, -slope * rise
        t = jnp.clip(2 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0))), 0, 1)
        bend = t * (1 - t)
        below = slope + (d0 + d1 - 2 * slope) * bend
        log_det = 2 * jnp.log(slope) + jnp.log(d1 * t**2 + 2 * slope * bend + d0 * (1 - t) ** 2) - 2 * jnp.log(below)
        return jnp.where(inside, left + width * t, y), jnp.where(inside, -log_det, 0)


def make_flow(
    key: Key[Array, ""],
    kind: str,
    dim: int,
    cond_dim: int,
    *,
    hidden: tuple[int, ...],
    n_layers: int,
    n_bins: int,
    activation: Callable = jax.nn.silu,
    dtype: Any = None,
) -> Transformed:
    """Conditional flow on standardised unconstrained parameters: cheap densities, draws in `dim` passes a layer.

    Parameters
    ----------
    key : PRNG key
        Of the weights.
    kind : {"nsf", "maf"}
        Layers of an affine map and a spline, or of an affine map.
    dim, cond_dim : int
        Sizes of the variable and the condition.
    hidden : tuple of int
        Equal widths of the hidden layers.
    n_layers : int
        Autoregressive layers, the order of the variables being reversed between them.
    n_bins : int
        Of each spline.
    activation : callable
        Of the networks.
    dtype : dtype, optional
        Of the weights; JAX's default.

    Returns
    -------
    flowjax.distributions.Transformed
        With ``log_prob(z, condition)``.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.flows import make_flow
    >>> flow = make_flow(jax.random.key(0), "nsf", 2, 3, hidden=(16,), n_layers=2, n_bins=8)
    >>> flow.log_prob(jnp.zeros((5, 2)), jnp.ones(3)).shape
    (5,)
    """
    check_option(kind, "density_estimator", ("nsf", "maf"))
    form = (kind, dim, cond_dim, tuple(hidden), n_layers, n_bins, activation, jnp.result_type(dtype or float))
    # Weights of the key in a flow that is kept: its functions are the same objects for all flows of a form, which
    # therefore share compiled programs.
    params, _ = eqx.partition(_build(key, *form), eqx.is_inexact_array, is_leaf=is_frozen)
    _, rest = eqx.partition(_prototype(*form), eqx.is_inexact_array, is_leaf=is_frozen)
    return eqx.combine(params, rest)


def is_frozen(leaf: Any) -> bool:
    """Whether a part of a module is not trained.

    Examples
    --------
    >>> import paramax
    >>> from gyri.hnpe.flows import is_frozen
    >>> is_frozen(paramax.NonTrainable(1.0))
    True
    """
    return isinstance(leaf, paramax.NonTrainable)


@lru_cache(maxsize=64)
def _prototype(*form: Any) -> Transformed:
    return _build(jax.random.key(0), *form)


def _build(
    key: Array, kind: str, dim: int, cond_dim: int, hidden: tuple[int, ...], n_layers: int, n_bins: int,
    activation: Callable, dtype: Any,
) -> Transformed:  # fmt: skip
    affine = Affine(dtype)
    transformer: AbstractBijection = Chain([affine, Spline(n_bins, dtype)]) if kind == "nsf" else affine

    def make_layer(key: Array) -> AbstractBijection:
        layer = MaskedAutoregressive(
            key, transformer=transformer, dim=dim, cond_dim=cond_dim,
            nn_width=hidden[0], nn_depth=len(hidden), nn_activation=activation,
        )  # fmt: skip
        return Chain([layer, Flip((dim,))]) if dim > 1 else layer  # type: ignore[call-arg]

    base = StandardNormal((dim,))  # type: ignore[call-arg]
    if n_layers == 1:
        flow = Transformed(base, Invert(make_layer(key)))
    else:  # one compiled body for all layers
        flow = Transformed(base, Invert(Scan(eqx.filter_vmap(make_layer)(jax.random.split(key, n_layers)))))
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, flow)


def flow_log_prob(flow: Transformed, z: Array, condition: Array) -> Array:
    """Log density at one point under one condition.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.flows import flow_log_prob, make_flow
    >>> flow = make_flow(jax.random.key(0), "maf", 1, 2, hidden=(8,), n_layers=1, n_bins=8)
    >>> flow_log_prob(flow, jnp.zeros(1), jnp.ones(2)).shape
    ()
    """
    base, log_det = flow.bijection.inverse_and_log_det(z, condition)
    # In double precision flowjax starts its sums of log-determinants there, whatever z is.
    return log_det.astype(z.dtype) - 0.5 * jnp.sum(base**2) - 0.5 * len(z) * jnp.log(2 * jnp.pi)


def flow_sample(flow: Transformed, key: Array, dim: int, condition: Array) -> Array:
    """One draw under one condition.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.hnpe.flows import flow_sample, make_flow
    >>> flow = make_flow(jax.random.key(0), "maf", 1, 2, hidden=(8,), n_layers=1, n_bins=8)
    >>> flow_sample(flow, jax.random.key(1), 1, jnp.ones(2)).shape
    (1,)
    """
    base: Any = jax.random.normal(key, (dim,), condition.dtype)
    return flow.bijection.transform(base, condition)
