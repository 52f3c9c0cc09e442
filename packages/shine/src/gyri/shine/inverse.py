"""Estimates of inverse Jacobians as pytrees: low rank, from a root finder, and L-BFGS, from a minimiser."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

# Accelerators round the factors of a product to fewer bits unless told not to: an inverse is no place for that.
einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def dot(a: Float[Array, "*b d"], b: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Inner products of rows.

    Examples
    --------
    >>> dot(jnp.ones((2, 3)), jnp.ones((2, 3)))
    Array([3., 3.], dtype=float32)
    """
    return jnp.sum(a * b, axis=-1)


def norm(a: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Euclidean norms of rows.

    Examples
    --------
    >>> norm(jnp.array([[3.0, 4.0]]))
    Array([5.], dtype=float32)
    """
    return jnp.sqrt(dot(a, a))


def products(
    U: Float[Array, "*b m d"],
    V: Float[Array, "*b m d"],
    x: Float[Array, "*b d"],
    n_rows: Int[Array, "*b"] | None = None,
) -> Float[Array, "*b d"]:
    """:math:`U^T (V x)` for each element, rows from `n_rows` on left out.

    Examples
    --------
    >>> U = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> products(U, 2 * U, jnp.ones(2), jnp.array(1))
    Array([2., 0.], dtype=float32)
    """
    if U.shape[-2] == 0:
        return jnp.zeros_like(x)
    coefficients = einsum("...md,...d->...m", V, x)
    if n_rows is not None:
        coefficients = jnp.where(jnp.arange(U.shape[-2]) < n_rows[..., None], coefficients, 0)
    return einsum("...md,...m->...d", U, coefficients)


@dataclass(frozen=True)
class Layout:
    """How a pytree of arrays (batch, ...) is one array (..., d): static, and the same under `vmap`.

    Examples
    --------
    >>> layout = Layout.of({"a": jnp.zeros((5, 2)), "b": jnp.zeros((5, 3, 2))}, batch_ndim=1)
    >>> layout.size, layout.flatten({"a": jnp.zeros((5, 2)), "b": jnp.zeros((5, 3, 2))}).shape
    (8, (5, 8))
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, tree: PyTree, batch_ndim: int = 0) -> "Layout":
        """Layout of a tree whose leaves have `batch_ndim` axes of the batch in front."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple(leaf.shape[batch_ndim:] for leaf in leaves), tuple(leaf.dtype for leaf in leaves))

    @property
    def size(self) -> int:
        """Entries of one element."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, tree: PyTree) -> Array:
        """One array (..., d)."""
        leaves = [jnp.asarray(leaf) for leaf in self.treedef.flatten_up_to(tree)]
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            if leaf.shape[leaf.ndim - len(shape) :] != shape:
                raise ValueError(f"v: expected arrays that end in the shapes {self.shapes}, got {leaf.shape}")
        flat = [
            leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], -1)
            for leaf, shape in zip(leaves, self.shapes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)

    def unflatten(self, flat: Array) -> PyTree:
        """The tree of an array (..., d)."""
        leaves, start = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            stop = start + math.prod(shape)
            leaves.append(flat[..., start:stop].reshape(*flat.shape[:-1], *shape).astype(dtype))
            start = stop
        return self.treedef.unflatten(leaves)


class InverseEstimate:
    r"""Estimate of an inverse Jacobian, one for each element of the batch: what a solver leaves behind.

    For `fixed_point` it estimates :math:`(J_f - I)^{-1}`, for `root` :math:`J_g^{-1}`, for `minimize` the inverse
    Hessian. A pytree; the two kinds are `LowRank`, ``scale * I + U^T V`` with vectors in the rows of U and V, and
    `LimitedMemory`, the pairs of L-BFGS.

    Attributes
    ----------
    rank : Array of int, shape (...)
        Rank-one terms, or pairs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import Broyden, fixed_point
    >>> A = jnp.array([[0.5, 0.2], [0.0, 0.3]])
    >>> solution = fixed_point(lambda z: A @ z + 1.0, jnp.zeros(2), solver=Broyden(tol=1e-6))
    >>> solution.inverse.matvec(jnp.ones(2)).shape, solution.inverse.dense().shape
    ((2,), (2, 2))
    """

    layout: Layout

    @property
    def rank(self) -> Int[Array, "*batch"]:
        """Rank-one terms, or pairs, of each element."""
        raise NotImplementedError

    def apply_flat(self, x: Array, transpose: bool) -> Array:
        """Product of the estimate, or of its transpose, with arrays (..., d)."""
        raise NotImplementedError

    def matvec(self, v: PyTree) -> PyTree:
        """Product of the estimate with `v`, a pytree like the solution."""
        return self.layout.unflatten(self.apply_flat(self.layout.flatten(v), False))

    def rmatvec(self, v: PyTree) -> PyTree:
        """Product of the transposed estimate with `v`, a pytree like the solution."""
        return self.layout.unflatten(self.apply_flat(self.layout.flatten(v), True))

    def dense(self) -> Float[Array, "*batch d d"]:
        """Matrices, for small problems."""
        identity = jnp.eye(self.layout.size, dtype=self._dtype)
        return jax.vmap(lambda column: self.apply_flat(self._broadcast(column), False), out_axes=-1)(identity)

    def _broadcast(self, column: Array) -> Array:
        raise NotImplementedError

    @property
    def _dtype(self) -> Any:
        raise NotImplementedError


@partial(jax.tree_util.register_dataclass, data_fields=["scale", "U", "V", "n_rows"], meta_fields=["layout"])
@dataclass(frozen=True)
class LowRank(InverseEstimate):
    """``scale * I + U^T V`` with m vectors of d entries in the rows of U and V, rows from `n_rows` on left out.

    Examples
    --------
    >>> z = jnp.zeros(2)
    >>> G = LowRank(jnp.array(-1.0), jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array(1), Layout.of(z))
    >>> G.dense()
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """

    # Any: JAX puts other things than arrays in the places of leaves (cotangents of integers, axes, placeholders).
    scale: Any  # (...)
    U: Any  # (..., m, d)
    V: Any  # (..., m, d)
    n_rows: Any  # (...)
    layout: Layout

    @property
    def rank(self) -> Int[Array, "*batch"]:
        """Rank-one terms of each element."""
        filled = (self.V != 0).any(-1) & (jnp.arange(self.V.shape[-2]) < self.n_rows[..., None])
        return filled.sum(-1)

    def apply_flat(self, x: Array, transpose: bool) -> Array:
        """Product of the estimate, or of its transpose, with arrays (..., d)."""
        U, V = (self.V, self.U) if transpose else (self.U, self.V)
        return self.scale[..., None] * x + products(U, V, x, self.n_rows)

    def _broadcast(self, column: Array) -> Array:
        return jnp.broadcast_to(column, (*self.scale.shape, column.size))

    @property
    def _dtype(self) -> Any:
        return self.scale.dtype


@partial(jax.tree_util.register_dataclass, data_fields=["S", "Y", "gamma", "count", "head"], meta_fields=["layout"])
@dataclass(frozen=True)
class LimitedMemory(InverseEstimate):
    """The inverse of L-BFGS: pairs in a ring of m slots, `count` of them filled, the next one to go to `head`.

    Examples
    --------
    >>> S = jnp.array([[1.0, 0.0]])
    >>> G = LimitedMemory(S, 4 * S, jnp.array(1.0), jnp.array(1), jnp.array(0), Layout.of(S[0]))
    >>> G.matvec(4 * S[0])
    Array([1., 0.], dtype=float32)
    """

    S: Any  # (..., m, d)
    Y: Any  # (..., m, d)
    gamma: Any  # (...)
    count: Any  # (...)
    head: Any  # (...)
    layout: Layout

    @property
    def rank(self) -> Int[Array, "*batch"]:
        """Pairs."""
        return self.count

    def apply_flat(self, x: Array, transpose: bool) -> Array:
        """Product of the estimate, or of its transpose, with arrays (..., d)."""
        apply = symmetric_two_loop  # the estimate is symmetric
        for _ in range(self.gamma.ndim):
            apply = jax.vmap(apply)
        return apply(self.S, self.Y, self.gamma, self.count, self.head, x)

    def _broadcast(self, column: Array) -> Array:
        return jnp.broadcast_to(column, (*self.gamma.shape, column.size))

    @property
    def _dtype(self) -> Any:
        return self.gamma.dtype


def two_loop(
    S: Float[Array, "m d"],
    Y: Float[Array, "m d"],
    gamma: Float[Array, ""],
    count: Int[Array, ""],
    head: Int[Array, ""],
    q: Float[Array, " d"],
) -> Float[Array, " d"]:
    """Product of the L-BFGS inverse with a vector: newest pair to oldest, and back.

    Examples
    --------
    >>> S = jnp.array([[1.0, 0.0]])
    >>> two_loop(S, 4 * S, jnp.array(0.5), jnp.array(1), jnp.array(0), jnp.array([4.0, 2.0]))
    Array([1., 1.], dtype=float32)

    References
    ----------
    Nocedal (1980), Updating quasi-Newton matrices with limited storage.
    """
    m = S.shape[0]

    def down(j: Array, state: tuple) -> tuple:
        q, alphas = state
        i = (head - 1 - j) % m
        alpha = dot(S[i], q) / dot(S[i], Y[i])
        return q - alpha * Y[i], alphas.at[i].set(alpha)

    def up(j: Array, r: Array) -> Array:
        i = (head - count + j) % m
        return r + (alphas[i] - dot(Y[i], r) / dot(S[i], Y[i])) * S[i]

    # The number of rounds is that of the pairs, not of the slots: short memories are cheap.
    q, alphas = jax.lax.fori_loop(0, count, down, (q, jnp.zeros(m, q.dtype)))
    return jax.lax.fori_loop(0, count, up, gamma * q)


@jax.custom_vjp
def symmetric_two_loop(S: Array, Y: Array, gamma: Array, count: Array, head: Array, q: Array) -> Array:
    """`two_loop` with a derivative in the vector, by symmetry; the pairs are taken as constants.

    Examples
    --------
    >>> S = jnp.array([[1.0, 0.0]])
    >>> symmetric_two_loop(S, 4 * S, jnp.array(0.5), jnp.array(1), jnp.array(0), jnp.array([4.0, 2.0]))
    Array([1., 1.], dtype=float32)
    """
    return two_loop(S, Y, gamma, count, head, q)


def _two_loop_forward(*args: Array) -> tuple[Array, tuple]:
    return symmetric_two_loop(*args), args[:-1]


def _two_loop_backward(estimate: tuple, cotangent: Array) -> tuple:
    return (None, None, None, None, None, symmetric_two_loop(*estimate, cotangent))


symmetric_two_loop.defvjp(_two_loop_forward, _two_loop_backward)


def inverse_quality(
    approx: Float[Any, "*batch d"], exact: Float[Any, "..."]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Compare approximate solutions of linear systems with exact ones.

    Parameters
    ----------
    approx, exact : Array, shape (..., d)
        Vectors on the last axis.

    Returns
    -------
    rel_error, norm_ratio, cosine : Array, shape (...)
        ``|approx - exact| / |exact|``, ``|approx| / |exact|`` and the cosine of their angle. NaN where `exact` is 0,
        the cosine also where `approx` is.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.shine import inverse_quality
    >>> [float(x) for x in inverse_quality(jnp.array([0.0, 2.0]), jnp.array([0.0, 4.0]))]
    [0.5, 0.5, 1.0]

    References
    ----------
    Ramzi et al. (2022), figure 2 (right) and appendix E.2.
    """
    approx, exact = jnp.asarray(approx), jnp.asarray(exact)
    if approx.shape != exact.shape or approx.ndim == 0:
        raise ValueError(f"approx: expected the shape of exact, {exact.shape}, got {approx.shape}")
    size, size_exact = norm(approx), norm(exact)
    size_exact = jnp.where(size_exact > 0, size_exact, jnp.nan)
    return norm(approx - exact) / size_exact, size / size_exact, dot(approx, exact) / (size * size_exact)
