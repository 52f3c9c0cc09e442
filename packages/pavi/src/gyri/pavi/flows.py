"""Conditional flows of event vectors: one network pass to sample and to score one's own draws."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from gyri.numerics.validation import check_scalar, import_extra

_MAX_LOG_SCALE = 8.0


class ConditionalFlow(NamedTuple):
    """A flow of vectors u to z that depends on a condition c, as three pure functions.

    Attributes
    ----------
    init : callable
        ``init(key, dim, cond_dim) -> params``, a pytree of dicts, lists and arrays.
    forward : callable
        ``forward(params, u, c) -> (z, log_det)`` with u of shape (..., dim), c (..., cond_dim), log_det (...).
    inverse : callable
        ``inverse(params, z, c) -> (u, log_det)``, with the log-determinant of *inverse*, minus that of forward.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi.flows import affine
    >>> flow = affine(hidden=(8,), scale=0.1)
    >>> params = flow.init(jax.random.key(0), 2, 3)
    >>> z, log_det = flow.forward(params, jnp.ones((5, 2)), jnp.zeros((5, 3)))
    >>> round(float(z[0, 0]), 3), round(float(log_det[0]), 3)
    (0.1, -4.605)
    """

    init: Callable[..., PyTree]
    forward: Callable[..., tuple[Array, Array]]
    inverse: Callable[..., tuple[Array, Array]]


class Normals:
    """Normal numbers of one draw, which `init_kernels` and `split_key` take in place of a key.

    Each call of a generator takes long to compile: many networks start from one.
    """

    def __init__(self, values: Array | None = None) -> None:
        self.values, self.used = values, 0

    def take(self, n: int) -> Array:
        """The next n numbers; zeros if they are only being counted."""
        first, self.used = self.used, self.used + n
        return jnp.zeros(n) if self.values is None else self.values[first : self.used]


Source = Array | Normals


def draw_at_once(key: Key[Array, ""], init: Callable[[Any], PyTree]) -> PyTree:
    """``init(key)`` of networks whose numbers come from `init_kernels` only, all from one draw."""
    counted = Normals()
    jax.eval_shape(lambda: init(counted))
    return init(Normals(jax.random.normal(key, (counted.used,))))


def split_key(key: Source, n: int) -> Any:
    """As many keys; or the same `Normals` each time, which hand out further numbers at each call."""
    return [key] * n if isinstance(key, Normals) else jax.random.split(key, n)


def init_kernels(key: Source, shapes: Sequence[tuple[int, int]]) -> list[Array]:
    """Normal matrices of variance 1 / rows, from one draw."""
    size = sum(m * n for m, n in shapes)
    numbers = key.take(size) if isinstance(key, Normals) else jax.random.normal(key, (size,))
    parts = jnp.split(numbers, np.cumsum([m * n for m, n in shapes])[:-1])
    return [part.reshape(m, n) / np.sqrt(max(m, 1)) for part, (m, n) in zip(parts, shapes, strict=True)]


def mlp_of(kernels: Sequence[Array]) -> list[dict[str, Array]]:
    """Layers of a multilayer perceptron with zero biases."""
    return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], kernel.dtype)} for kernel in kernels]


def apply_mlp(layers: Sequence[dict[str, Array]], x: Array) -> Array:
    """Run a perceptron with SiLU between its layers over the last axis."""
    for layer in layers[:-1]:
        x = jax.nn.silu(x @ layer["kernel"] + layer["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


def affine(hidden: Sequence[int] = (32, 32), *, scale: float = 1.0, triangular: bool = True) -> ConditionalFlow:
    """Affine flow z = mu(c) + L(c) u: a network and a linear map of c give mu, the network gives L.

    At the start z = scale u, whatever c. Rows of L are scaled by their diagonal, whose logarithm stays within 8 of
    that of `scale`.

    Parameters
    ----------
    hidden : sequence of int
        Hidden layers of the network.
    scale : float
        Of z at the start.
    triangular : bool
        L is lower triangular; diagonal if False.

    Returns
    -------
    ConditionalFlow
        With an exact inverse.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi.flows import affine
    >>> flow = affine((8,))
    >>> flow.forward(flow.init(jax.random.key(0), 1, 1), jnp.ones((1,)), jnp.ones((1,)))[0].tolist()
    [1.0]
    """
    scale = check_scalar(scale, "scale", minimum=0, strict=True)
    log_scale = float(np.log(scale))

    def init(key: Source, dim: int, cond_dim: int) -> PyTree:
        n_out = 2 * dim + (dim * (dim - 1) // 2 if triangular else 0)
        # Without a condition a network would be a detour to a constant.
        sizes = (cond_dim, *hidden) if cond_dim else (0,)
        kernels = init_kernels(key, list(pairwise(sizes))) if len(sizes) > 1 else []
        last = jnp.zeros((sizes[-1], n_out))
        return {"network": mlp_of([*kernels, last]), "skip": jnp.zeros((cond_dim, dim))}

    def coefficients(params: PyTree, c: Array) -> tuple[Array, Array, Array, Array]:
        dim = params["skip"].shape[-1]
        out = apply_mlp(params["network"], c)
        mean, raw, below = out[..., :dim] + c @ params["skip"], out[..., dim : 2 * dim], out[..., 2 * dim :]
        log_diagonal = log_scale + _MAX_LOG_SCALE * jnp.tanh(raw / _MAX_LOG_SCALE)
        return mean, log_diagonal, jnp.exp(log_diagonal), below

    def forward(params: PyTree, u: Array, c: Array) -> tuple[Array, Array]:
        mean, log_diagonal, diagonal, below = coefficients(params, c)
        rows = u + _times_below(below, u) if triangular and u.shape[-1] > 1 else u
        return mean + diagonal * rows, jnp.broadcast_to(log_diagonal.sum(-1), u.shape[:-1])

    def inverse(params: PyTree, z: Array, c: Array) -> tuple[Array, Array]:
        mean, log_diagonal, diagonal, below = coefficients(params, c)
        rows = (z - mean) / diagonal
        if triangular and z.shape[-1] > 1:
            rows = _solve_below(below, rows)
        return rows, jnp.broadcast_to(-log_diagonal.sum(-1), z.shape[:-1])

    return ConditionalFlow(init, forward, inverse)


def _row(below: Array, i: int) -> Array:
    """Row i of a strictly lower triangle that is stored row by row."""
    return below[..., i * (i - 1) // 2 : i * (i + 1) // 2]


def _times_below(below: Array, u: Array) -> Array:
    dim = u.shape[-1]
    if dim <= 4:  # written out: no scatter, no batched product of tiny matrices
        rows = [jnp.sum(_row(below, i) * u[..., :i], -1) for i in range(1, dim)]
        return jnp.stack([jnp.zeros_like(u[..., 0]), *(jnp.broadcast_to(row, u.shape[:-1]) for row in rows)], -1)
    return jnp.einsum("...ij,...j->...i", _dense_below(below, dim), u)


def _solve_below(below: Array, rows: Array) -> Array:
    dim = rows.shape[-1]
    unit = _dense_below(below, dim) + jnp.eye(dim, dtype=rows.dtype)
    shape = jnp.broadcast_shapes(unit.shape[:-2], rows.shape[:-1])
    unit, rows = jnp.broadcast_to(unit, (*shape, dim, dim)), jnp.broadcast_to(rows, (*shape, dim))
    return jax.lax.linalg.triangular_solve(
        unit, rows[..., None], left_side=True, lower=True, unit_diagonal=True
    )[..., 0]  # fmt: skip


def _dense_below(below: Array, dim: int) -> Array:
    i, j = np.tril_indices(dim, -1)
    # A gather with a zero at the end: its gradient is a scatter of distinct entries, its value needs none.
    table = np.full((dim, dim), len(i))
    table[i, j] = np.arange(len(i))
    return jnp.concatenate([below, jnp.zeros_like(below[..., :1])], -1)[..., table]


def chain(flows: Sequence[ConditionalFlow]) -> ConditionalFlow:
    """Composition of flows; the last one is applied last (outermost) and all see the same condition.

    Parameters
    ----------
    flows : sequence of ConditionalFlow
        At least one.

    Returns
    -------
    ConditionalFlow
        Its parameters are the list of theirs.

    Raises
    ------
    ValueError
        No flow.

    Examples
    --------
    >>> from gyri.pavi.flows import affine, chain
    >>> import jax
    >>> len(chain([affine(), affine()]).init(jax.random.key(0), 2, 3))
    2
    """
    flows = tuple(flows)
    if not flows:
        raise ValueError("flows: expected at least one flow, got none")

    def init(key: Source, dim: int, cond_dim: int) -> PyTree:
        keys = split_key(key, len(flows))
        return [flow.init(k, dim, cond_dim) for flow, k in zip(flows, keys, strict=True)]

    def forward(params: PyTree, u: Array, c: Array) -> tuple[Array, Array]:
        total: Any = 0.0
        for flow, p in zip(flows, params, strict=True):
            u, log_det = flow.forward(p, u, c)
            total += log_det
        return u, total

    def inverse(params: PyTree, z: Array, c: Array) -> tuple[Array, Array]:
        total: Any = 0.0
        for flow, p in zip(flows[::-1], params[::-1], strict=True):
            z, log_det = flow.inverse(p, z, c)
            total += log_det
        return z, total

    return ConditionalFlow(init, forward, inverse)


def maf(hidden: Sequence[int] = (32, 32), *, scale: float = 1.0) -> ConditionalFlow:
    """Masked autoregressive affine layer of flowjax, then an :func:`affine` layer: z = scale u at the start.

    In the sampling direction it is one network pass (inverse-autoregressive); `inverse` takes a pass a dimension.

    Parameters
    ----------
    hidden : sequence of int
        Hidden layers, of equal width.
    scale : float
        Of z at the start.

    Returns
    -------
    ConditionalFlow

    Raises
    ------
    ImportError
        flowjax is not installed: ``pip install "gyri-pavi[flows]"``.
    ValueError
        Hidden layers of different widths.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi.flows import maf
    >>> flow = maf((8,), scale=0.5)
    >>> params = flow.init(jax.random.key(0), 2, 1)
    >>> [round(float(x), 4) for x in flow.forward(params, jnp.ones(2), jnp.ones(1))[0]]
    [0.5, 0.5]
    """
    return chain([_autoregressive("affine", hidden, 0, 0.0), affine(hidden, scale=scale)])


def spline(
    hidden: Sequence[int] = (32, 32), *, scale: float = 1.0, n_knots: int = 8, interval: float = 4.0
) -> ConditionalFlow:
    """Masked autoregressive rational-quadratic splines of flowjax, then an :func:`affine` layer.

    Parameters
    ----------
    hidden : sequence of int
        Hidden layers, of equal width.
    scale : float
        Of z at the start.
    n_knots : int
        Of each spline.
    interval : float
        The splines bend within [-interval, interval].

    Returns
    -------
    ConditionalFlow

    Raises
    ------
    ImportError
        flowjax is not installed: ``pip install "gyri-pavi[flows]"``.
    ValueError
        Hidden layers of different widths.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.pavi.flows import spline
    >>> flow = spline((8,), scale=0.5)
    >>> params = flow.init(jax.random.key(0), 1, 1)
    >>> [round(float(x), 3) for x in flow.forward(params, jnp.ones(1), jnp.ones(1))[0]]
    [0.5]
    """
    return chain([_autoregressive("spline", hidden, n_knots, interval), affine(hidden, scale=scale)])


def _autoregressive(kind: str, hidden: Sequence[int], n_knots: int, interval: float) -> ConditionalFlow:
    """One layer of flowjax whose parameters are the list of its arrays; the rest is rebuilt from the sizes."""
    if len(set(hidden)) != 1:
        raise ValueError(f"hidden: expected one or more layers of equal width for flow={kind!r}, got {tuple(hidden)}")
    import_extra("flowjax", "gyri-pavi[flows]", 'for flow="maf" and "spline"')
    import equinox as eqx
    import paramax
    from flowjax.bijections import Affine, MaskedAutoregressive, RationalQuadraticSpline

    transformer = Affine() if kind == "affine" else RationalQuadraticSpline(knots=n_knots, interval=interval)
    layers: dict[tuple[int, int], tuple[Any, Any]] = {}  # a start, and what a layer is besides its trained arrays

    def split(module: Any) -> tuple[Any, Any]:
        frozen = lambda leaf: isinstance(leaf, paramax.NonTrainable)
        return eqx.partition(module, eqx.is_inexact_array, is_leaf=frozen)

    def build(key: Array, dim: int, cond_dim: int) -> Any:
        layer = MaskedAutoregressive(
            key, transformer=transformer, dim=dim, cond_dim=cond_dim, nn_width=hidden[0], nn_depth=len(hidden)
        )

        def last(layer: Any) -> list:
            linear = layer.masked_autoregressive_mlp.layers[-1]
            return [linear.weight.args[1], linear.bias]

        # flowjax starts away from the identity; without its last layer it is the transformer as it was made.
        return eqx.tree_at(last, layer, [jnp.zeros_like(x) for x in last(layer)])

    def layer_of(dim: int, cond_dim: int) -> tuple[Any, Any]:
        # flowjax wants a condition where dim is 1: one that is always 0 if there is none.
        sizes = (dim, max(cond_dim, 1))
        if sizes not in layers:
            with jax.ensure_compile_time_eval():
                layers[sizes] = split(build(jax.random.key(0), *sizes))
        return layers[sizes]

    def init(key: Source, dim: int, cond_dim: int) -> PyTree:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(layer_of(dim, cond_dim)[0])]
        drawn = [leaf.ndim == 2 and leaf.any() for leaf in leaves]  # not the last layer, which is zero
        kernels = iter(init_kernels(key, [leaf.shape[::-1] for leaf, d in zip(leaves, drawn, strict=True) if d]))
        # flowjax's own start takes two calls of the generator a layer, each of which takes long to compile.
        return [next(kernels).T if d else jnp.zeros(leaf.shape) for leaf, d in zip(leaves, drawn, strict=True)]

    def over_batch(method: str, params: PyTree, u: Array, c: Array) -> tuple[Array, Array]:
        shape, dim = u.shape[:-1], u.shape[-1]
        c = jnp.broadcast_to(c, (*shape, c.shape[-1])) if c.shape[-1] else jnp.zeros((*shape, 1), u.dtype)
        trained, rest = layer_of(dim, c.shape[-1])
        layer = eqx.combine(jax.tree.unflatten(jax.tree.structure(trained), params), rest)
        run = getattr(paramax.unwrap(layer), method)
        n = math.prod(shape)
        z, log_det = jax.vmap(run)(u.reshape(n, dim), c.reshape(n, c.shape[-1]))
        return z.reshape(u.shape), log_det.reshape(shape)

    return ConditionalFlow(
        init, partial(over_batch, "transform_and_log_det"), partial(over_batch, "inverse_and_log_det")
    )


def set_location(params: PyTree, loc: Float[Array, " dim"], slope: Float[Array, ""] | None = None) -> PyTree:
    """Move the start of one of the flows of this file: z = loc + slope c[:dim] + scale u."""
    if isinstance(params, list):
        return [*params[:-1], set_location(params[-1], loc, slope)]
    *layers, last = params["network"]
    bias = last["bias"].at[: len(loc)].add(loc.astype(last["bias"].dtype))
    moved = {**params, "network": [*layers, {**last, "bias": bias}]}
    if slope is None:
        return moved
    skip = params["skip"]
    return {**moved, "skip": slope.astype(skip.dtype) * jnp.eye(skip.shape[0], skip.shape[1], dtype=skip.dtype)}


class FlowTransform(Transform):
    """A conditional flow as a NumPyro transform of vectors, that never inverts its own draws.

    Parameters
    ----------
    flow : ConditionalFlow
        The flow.
    params : pytree
        Its parameters.
    condition : Array, shape (..., cond_dim)
        Batched as the vectors.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpyro.distributions as dist
    >>> from gyri.pavi.flows import FlowTransform, affine
    >>> flow = affine((8,), scale=2.0)
    >>> transform = FlowTransform(flow, flow.init(jax.random.key(0), 2, 1), jnp.zeros(1))
    >>> q = dist.TransformedDistribution(dist.Normal(0, 1).expand([2]).to_event(1), transform)
    >>> q.sample(jax.random.key(1)).shape
    (2,)
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, flow: ConditionalFlow, params: PyTree, condition: Float[Array, "... cond_dim"]) -> None:
        self.flow, self.params, self.condition = flow, params, condition

    def __call__(self, x: Array) -> Array:
        """Draw to latent."""
        return self.flow.forward(self.params, x, self.condition)[0]

    def call_with_intermediates(self, x: Array, length: int | None = None) -> tuple[Array, Array]:
        """Draw to latent, and the log-determinant for :meth:`log_abs_det_jacobian`."""
        return self.flow.forward(self.params, x, self.condition)

    def _inverse(self, y: Array) -> Array:
        return self.flow.inverse(self.params, y, self.condition)[0]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Array | None = None) -> Array:
        """Of the map from draw to latent."""
        return self.flow.forward(self.params, x, self.condition)[1] if intermediates is None else intermediates

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """As NumPyro's transforms are pytrees."""
        return (self.params, self.condition), (("params", "condition"), {"flow": self.flow})
