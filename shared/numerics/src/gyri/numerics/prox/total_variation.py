"""The proximal operator of total variation in one dimension: checks, missing samples, derivatives, dispatch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, ScalarLike, Shaped

from .. import host
from ..validation import check_array, check_finite, check_option
from .rounds import by_prefix_sums, by_scans


def prox_tv1d(
    x: Real[Any, "..."],
    lam: Real[Any, "..."] | ScalarLike,
    *,
    sample_weight: Shaped[Any, "..."] | None = None,
    axis: int = -1,
    method: str = "auto",
) -> Float[Array, "..."]:
    r"""Proximal operator of the total variation of signals in time, exact.

    Solves, for every signal along `axis`,

    .. math:: \arg\min_u \tfrac12 \sum_i w_i (u_i - x_i)^2 + \sum_i \lambda_i |u_{i+1} - u_i|.

    The solution is constant on pieces: it denoises steps without blurring them.

    Parameters
    ----------
    x : Array, shape (..., n, ...)
        Signals of n samples along `axis`; integers become JAX's default float, otherwise the result keeps the dtype.
    lam : float or Array
        :math:`\lambda \ge 0`: one number; an array that broadcasts against `x` with 1 at `axis` (one a signal: for
        `x` (B, n) of shape (B, 1)); or with n - 1 at `axis` (one an edge; 0 cuts the signal there).
    sample_weight : Array, optional
        :math:`w \ge 0`, broadcasts to `x`; all 1 when None. A sample of weight 0 is missing: whatever `x` holds there
        (NaN too) has no influence, and the result is interpolated between the neighbours (in steps, at the edges of
        smallest lam; linearly if all are equal). Signals without any weight give 0.
    axis : int
        The axis of time.
    method : {"auto", "scan", "parallel"}
        How it is computed, with the same result: "scan" goes along time, "parallel" in logarithmic depth; "auto" takes,
        on a CPU, compiled sequential code where numba is installed (``gyri-numerics[host]``) and "scan" where not, and
        "parallel" on accelerators.

    Returns
    -------
    Array, shape (..., n, ...)
        The minimiser. All derivatives in `x`, `lam` and `sample_weight` (where it is positive) are exact wherever they
        exist: the pieces do not change under small changes. Its Jacobian in `x` replaces a signal by its (weighted)
        means over the pieces.

    Raises
    ------
    ValueError
        Empty or not finite `x`, a negative or infinite `lam` or weight, or shapes that do not fit; under `jit` the
        shapes only.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import prox_tv1d
    >>> prox_tv1d(jnp.array([0.0, 1.0, 5.0, 6.0]), 1.0)
    Array([1., 1., 5., 5.], dtype=float32)

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), Learning to solve TV regularised problems with unrolled algorithms, section 3.
    Condat (2013), A direct algorithm for 1-D total variation denoising (the sequential code).
    """
    check_option(method, "method", ("auto", "scan", "parallel"))
    x, lam, weight = _check_tv(x, lam, sample_weight, axis)
    dtype = x.dtype
    wide = jnp.promote_types(dtype, jnp.float32)  # half precision has too few digits for sums
    to_last = lambda a: jnp.moveaxis(a, axis, -1).astype(wide)
    u = _prox_last(to_last(x), to_last(lam), None if weight is None else to_last(weight), method)
    return jnp.moveaxis(u, -1, axis).astype(dtype)


def _check_tv(x: Any, lam: Any, weight: Any, axis: int) -> tuple[Array, Array, Array | None]:
    """The three as arrays; `lam` with as many axes as `x`, the weight of its shape."""
    x = jnp.asarray(check_array(x, "x", allow_nan=weight is not None))
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of x, got {axis} with x of shape {x.shape}")
    axis, n = axis % x.ndim, x.shape[axis]
    lam = _check_positive(lam, "lam")
    full = (1,) * (x.ndim - lam.ndim) + lam.shape
    allowed = [{1, n - 1} if i == axis else {1, length} for i, length in enumerate(x.shape)]
    if len(full) != x.ndim or any(length not in lengths for length, lengths in zip(full, allowed, strict=True)):
        shapes = [", ".join(str(m if i == axis else k) for i, k in enumerate(x.shape)) for m in (1, n - 1)]
        raise ValueError(f"lam: expected a number or a shape that broadcasts to ({shapes[0]}), one a signal, or "
                         f"({shapes[1]}), one an edge, got {lam.shape}")  # fmt: skip
    lam = lam.reshape(full)
    if weight is None:
        return x, lam, None
    weight = _check_positive(weight, "sample_weight")
    if weight.ndim > x.ndim or any(a not in (1, b) for a, b in zip(weight.shape[::-1], x.shape[::-1], strict=False)):
        raise ValueError(f"sample_weight: expected a shape that broadcasts to {x.shape}, got {weight.shape}")
    weight = jnp.broadcast_to(weight, x.shape)
    x = jnp.where(weight > 0, x, 0)  # what is missing may be NaN
    check_finite(x, "x")
    return x, lam, weight


def _check_positive(values: Any, name: str) -> Array:
    values = check_array(values, name)
    if not isinstance(values, jax.core.Tracer) and (np.asarray(values) < 0).any():
        raise ValueError(f"{name}: expected values >= 0, got {np.asarray(values).min():g}")
    return jnp.asarray(values)


@functools.partial(jax.jit, static_argnames="method")
def _prox_last(
    x: Float[Array, "*batch n"], lam: Float[Array, "... m"], weight: Float[Array, "*batch n"] | None, method: str
) -> Float[Array, "*batch n"]:
    """Prox along the last axis."""
    n, batch = x.shape[-1], x.shape[:-1]
    if n == 1:
        return x
    rows = lambda a: a.reshape(-1, a.shape[-1])
    if lam.size > lam.shape[-1] or weight is not None:
        lam = jnp.broadcast_to(lam, (*batch, lam.shape[-1]))
    if weight is None:
        return _solve(rows(x), rows(lam), None, method).reshape(x.shape)
    edges = jnp.broadcast_to(rows(lam), (rows(x).shape[0], n - 1))
    edges, following, part = jax.vmap(_close_gaps)(edges, rows(weight))
    u = _solve(rows(x), edges, rows(weight), method)
    u = u + part * (jnp.take_along_axis(u, following, 1) - u)
    return u.reshape(x.shape)


def _close_gaps(
    lam: Float[Array, " edges"], weight: Float[Array, " n"]
) -> tuple[Float[Array, " edges"], Int[Array, " n"], Float[Array, " n"]]:
    """Glue missing samples to the one before; how to interpolate them afterwards.

    Returns
    -------
    lam : Array, shape (n - 1,)
        Infinite where an edge is glued; the last edge of a gap has the smallest lam of the gap.
    following : Array of int, shape (n,)
        Next sample that is not missing.
    part : Array, shape (n,)
        How far a missing sample is on the way to it: the part of the gap's edges of smallest lam that lie before.
    """
    n, there = weight.size, weight > 0
    index = jnp.arange(n)
    previous = jax.lax.cummax(jnp.where(there, index, -1))
    following = jax.lax.cummin(jnp.where(there, index, n), reverse=True)
    gap = jnp.cumsum(there)[:-1]  # number of the gap, of one edge or more, of each edge
    add = lambda values: jax.ops.segment_sum(values, gap, n + 1, indices_are_sorted=True)
    smallest = jax.ops.segment_min(jax.lax.stop_gradient(lam), gap, n + 1, indices_are_sorted=True)
    at_smallest = jax.lax.stop_gradient((lam == smallest[gap]).astype(lam.dtype))
    count = add(at_smallest)
    joined = (add(at_smallest * lam) / jnp.maximum(count, 1))[gap]  # the smallest, and its derivative
    lam = jnp.where(there[1:] & (previous[:-1] >= 0), joined, jnp.inf)
    before = jnp.concatenate([jnp.zeros(1, lam.dtype), jnp.cumsum(at_smallest)])
    passed = before - before[jnp.maximum(previous, 0)]
    inside = ~there & (previous >= 0) & (following < n)
    part = jnp.where(inside, passed / jnp.maximum(count[jnp.append(gap, 0)], 1), 0)
    return lam, jnp.minimum(following, n - 1), part


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _solve(
    x: Float[Array, "B n"], lam: Float[Array, "C m"], weight: Float[Array, "B n"] | None, method: str
) -> Float[Array, "B n"]:
    """Prox of every row; lam for all rows or each, for all edges or each."""
    return _lowering(method)(x, lam, *([] if weight is None else [weight]))


@functools.partial(_solve.defjvp, symbolic_zeros=True)
def _solve_jvp(method: str, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """With the pieces and the signs of the jumps fixed, a level is linear in x and lam.

    The level of a piece from a to b is (sum of w x + v_{a-1} - v_b) / (sum of w), with v = lam at a drop, -lam at a
    rise: Cherkaoui et al. (2020), proposition 3.1, by pieces.
    """
    x, lam, weight = primals
    u = _solve(x, lam, weight, method)
    jump = jnp.sign(jax.lax.stop_gradient(jnp.diff(u)))
    change = jnp.zeros_like(x)
    dx, dlam, dweight = (None if _is_zero(t) else t for t in tangents)
    if dx is not None:
        change += dx if weight is None else weight * dx
    if dweight is not None:
        change += dweight * (x - u)
    if dlam is not None:
        push = jnp.pad(dlam * jump, ((0, 0), (1, 1)))
        change += push[:, 1:] - push[:, :-1]
    return u, _piece_mean(change, weight, (jump != 0) | (lam == 0))  # nothing ties samples whose edge is free


def _is_zero(tangent: Any) -> bool:
    return tangent is None or isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _piece_mean(total: Float[Array, "B n"], weight: Array | None, cut: Bool[Array, "B edges"]) -> Float[Array, "B n"]:
    """Sum over the pieces between cut edges, divided by their weight."""
    n_rows, n = total.shape
    piece = jnp.cumsum(jnp.pad(cut, ((0, 0), (1, 0))), 1, dtype=jnp.int32)
    piece = (piece + n * jnp.arange(n_rows, dtype=jnp.int32)[:, None]).ravel()
    add = lambda values: jax.ops.segment_sum(values.ravel(), piece, total.size, indices_are_sorted=True)
    mass = add(jnp.ones_like(total) if weight is None else weight)
    return (add(total) / jnp.where(mass > 0, mass, 1))[piece].reshape(total.shape)


@functools.cache
def _lowering(method: str) -> Any:
    """What solves (x, lam, weight if any); under vmap once for all signals, not once a signal."""

    @jax.custom_batching.custom_vmap
    def solve(x: Array, lam: Array, *weight: Array) -> Array:
        if method != "auto":
            return _in_columns(by_scans if method == "scan" else by_prefix_sums, x, lam, *weight)
        # Numba is not even imported where the CPU is not what computes.
        on_cpu = _on_host if jax.default_backend() == "cpu" and host.available() else _in_scans
        return jax.lax.platform_dependent(x, lam, *weight, cpu=on_cpu, default=_in_prefix_sums)

    @solve.def_vmap
    def solve_batch(axis_size: int, in_batched: list[bool], x: Array, lam: Array, *weight: Array) -> tuple[Array, bool]:
        def merge(array: Array, batched: bool, n_rows: int) -> Array:
            array = array if batched else array[None]
            return jnp.broadcast_to(array, (axis_size, n_rows, array.shape[-1])).reshape(-1, array.shape[-1])

        n_rows = x.shape[-2]
        if in_batched[1] or lam.shape[0] > 1:
            lam = merge(lam, in_batched[1], n_rows)
        weight = tuple(merge(w, batched, n_rows) for w, batched in zip(weight, in_batched[2:], strict=True))
        u = solve(merge(x, in_batched[0], n_rows), lam, *weight)
        return u.reshape(axis_size, n_rows, -1), True

    return solve


def _in_columns(rounds: Any, x: Array, lam: Array, weight: Array | None = None) -> Array:
    u = rounds(x.T, lam.T, None if weight is None else weight.T).T
    free = lam == 0  # a sample without an edge is itself, to the last bit
    alone = free if lam.shape[1] == 1 else jnp.pad(free, ((0, 0), (1, 0)), constant_values=True)
    if lam.shape[1] > 1:
        alone &= jnp.pad(free, ((0, 0), (0, 1)), constant_values=True)
    return jnp.where(alone, x, u)


_in_scans = functools.partial(_in_columns, by_scans)
_in_prefix_sums = functools.partial(_in_columns, by_prefix_sums)


def _on_host(x: Array, lam: Array, weight: Array | None = None) -> Array:
    from .kernel import tv_kernel

    weight = jnp.ones((1, 1), x.dtype) if weight is None else weight
    return host.host_call("prox_tv1d", tv_kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), x, lam, weight)
