"""What solvers and networks derive from the operator: norms, dense forms, least squares."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gyri.numerics import LinearOperator
from gyri.numerics.linalg import cg, identity, operator_norm

from .problem import differences

HIGHEST = jax.lax.Precision.HIGHEST
_LARGEST_SVD = 512


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class CumulativeSum(LinearOperator):
    """The lower triangle of ones, ``u = L z``, without the triangle."""

    k: int = field(metadata={"static": True})

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.k,)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one output."""
        return (self.k,)

    def _forward(self, x: Array) -> Array:
        return jnp.cumsum(x, -1)

    def _adjoint(self, y: Array) -> Array:
        return jnp.cumsum(y[..., ::-1], -1)[..., ::-1]


def is_identity(A: LinearOperator) -> bool:
    """Whether it is the identity operator, as made of ``A=None``."""
    return isinstance(A, type(identity(1)))


def dense_of(A: LinearOperator) -> Array | None:
    """Its matrix if that is what it holds."""
    return getattr(A, "matrix", None)


def to_dense(A: LinearOperator, dtype: np.dtype) -> Array:
    """Its matrix (m, k), formed where it is not held."""
    held = dense_of(A)
    return A.rmatvec(jnp.eye(A.shape[0], dtype=dtype)) if held is None else held


def squared_norm(A: LinearOperator) -> Array:
    """Largest squared singular value, never 0: exact for a small matrix, else a bound by power iteration."""
    matrix = dense_of(A)
    if matrix is not None and min(matrix.shape) <= _LARGEST_SVD:
        square = jnp.square(jnp.linalg.norm(matrix, 2))
    else:
        square = 1.01 * jnp.square(operator_norm(A, n_steps=300))  # power iteration ends a little below
    return jnp.where(square > 0, square, 1)


def squared_norm_cumulated(A: LinearOperator) -> Array:
    """Largest squared singular value of ``A L``: the synthesis form's constant."""
    matrix = dense_of(A)
    k = A.in_shape[0]
    if matrix is not None:
        from gyri.numerics.linalg import dense

        return squared_norm(dense(cumulated(matrix)))
    if is_identity(A):
        return 1 / jnp.square(2 * jnp.sin(jnp.asarray(np.pi / (4 * k + 2))))
    return squared_norm(A @ CumulativeSum(k))


def cumulated(matrix: Array) -> Array:
    """``A L`` of a matrix."""
    return jnp.cumsum(matrix[:, ::-1], 1)[:, ::-1]


def squared_norm_differences(k: int) -> float:
    """``||D||^2`` in closed form; 1 where there is no difference."""
    return max(4 * float(np.cos(np.pi / (2 * k))) ** 2, 1.0)


def least_squares(A: LinearOperator, x: Array) -> Array:
    """``pinv(A) x``, where every solver and network starts."""
    if is_identity(A):
        return x
    matrix = dense_of(A)
    if matrix is not None:
        return jnp.matmul(x, jnp.linalg.pinv(matrix).T, precision=HIGHEST)
    # From zero, conjugate gradients stay in the range of the adjoint: the solution of least norm.
    tol = 1e-10 if x.dtype == jnp.float64 else 1e-6
    solve = lambda b: cg(lambda u: A.rmatvec(A.matvec(u)), b, tol=tol, maxiter=A.in_shape[0])[0]
    return jax.vmap(solve)(A.rmatvec(x))


def dual_dictionary(matrix: Array) -> tuple[Array, Array]:
    """``pinv(A)`` (k, m) and ``Psi = pinv(A)^T D^T`` (m, k-1): the dual problem is a clipped least squares in Psi."""
    inverse = jnp.linalg.pinv(matrix)
    return inverse, differences(inverse.T)
