r"""The problem :math:`\min_u \tfrac12 \|x - A u\|^2 + \lambda \|D u\|_1`: objective, largest penalty, duality gap.

Cherkaoui, Sulam, Moreau (2020), equation 1. Signals are rows; :math:`(D u)_i = u_{i+1} - u_i`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from gyri.numerics import LinearOperator, as_operator
from gyri.numerics.validation import check_array


def differences(u: Array) -> Array:
    """``D u``, along the last axis."""
    return u[..., 1:] - u[..., :-1]


def differences_adjoint(v: Array) -> Array:
    """``D^T v``."""
    zero = jnp.zeros((*v.shape[:-1], 1), v.dtype)
    return jnp.concatenate([zero, v], -1) - jnp.concatenate([v, zero], -1)


class Problem(NamedTuple):
    """Checked arguments in one floating dtype: `x` (..., m), the operator, `lam` (..., 1), `u` (..., k) or None."""

    x: Array
    A: LinearOperator
    lam: Array
    u: Any

    @property
    def k(self) -> int:
        """Length of the unknown."""
        return self.A.in_shape[0]

    def residual(self, u: Array) -> Array:
        """``x - A u``."""
        return self.x - self.A.matvec(u)

    def gradient(self, u: Array) -> Array:
        """Gradient of the smooth part, ``A^T (A u - x)``."""
        return -self.A.rmatvec(self.residual(u))


def check_problem(
    x: Any, A: Any, lam: Any = 0.0, u: Any = None, *, name: str = "x", name_u: str = "u", ndim: Any = None
) -> Problem:
    """Check shapes and, on eager calls, values; cast all to one dtype."""
    x = check_array(x, name, ndim=ndim)
    if x.ndim == 0:
        raise ValueError(f"{name}: expected shape (..., m), got ()")
    operator = _check_operator(A, x.shape[-1])
    batch, arrays = x.shape[:-1], [x, *jax.tree.leaves(operator)]
    if u is not None:
        u = check_array(u, name_u)
        if u.ndim == 0 or u.shape[-1] != operator.in_shape[0]:
            raise ValueError(f"{name_u}: expected shape (..., {operator.in_shape[0]}), got {u.shape}")
        try:
            batch = np.broadcast_shapes(u.shape[:-1], batch)
        except ValueError:
            raise ValueError(f"{name_u}: expected batch axes that fit those of x, {batch}, got {u.shape}") from None
        x = jnp.broadcast_to(x, (*batch, x.shape[-1]))
        arrays.append(u)
    penalty = check_penalty(lam, batch)
    if not isinstance(lam, int | float):
        arrays.append(penalty)
    dtype = jnp.result_type(*arrays)
    operator, x, penalty, u = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (operator, x, penalty, u))
    return Problem(x, operator, penalty[..., None], u)


def _check_operator(A: Any, m: int) -> LinearOperator:
    if not (A is None or isinstance(A, LinearOperator)):
        A = check_array(A, "A", ndim=2)
    operator = as_operator(A, m if A is None else None)
    if operator.out_shape != (m,) or len(operator.in_shape) != 1:
        raise ValueError(f"A: expected shape ({m}, k), as x has {m} entries a signal, got {operator.shape}")
    return operator


def check_penalty(lam: Any, batch: tuple[int, ...]) -> Any:
    """A penalty for all signals or for each: finite, not negative, of a shape that broadcasts to the batch."""
    penalty = check_array(lam, "lam")
    try:
        fits = np.broadcast_shapes(penalty.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"lam: expected a scalar or one value a signal, shape {batch}, got {penalty.shape}")
    if not isinstance(penalty, jax.core.Tracer) and (np.asarray(penalty) < 0).any():
        raise ValueError(f"lam: expected values >= 0, got {np.asarray(penalty).min()}")
    return penalty


def tv_norm(u: Num[Any, "..."], axis: int = -1) -> Float[Array, "..."]:
    r"""Total variation, :math:`\sum_i |u_{i+1} - u_i|`.

    Parameters
    ----------
    u : Array, shape (..., k, ...)
        Signals, float32 or float64.
    axis : int
        The time axis.

    Returns
    -------
    Array
        Shape of `u` without `axis`; 0 for a single sample.

    Raises
    ------
    ValueError
        Empty or not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import tv_norm
    >>> tv_norm(jnp.array([0.0, 2.0, 2.0, 1.0]))
    Array(3., dtype=float32)

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), equation 1.
    """
    u = jnp.asarray(check_array(u, "u"))
    if not -u.ndim <= axis < u.ndim:
        raise ValueError(f"axis: expected an axis of u, of shape {u.shape}, got {axis}")
    return jnp.abs(differences(jnp.moveaxis(u, axis, -1))).sum(-1)


def objective(u: Num[Any, "..."], x: Num[Any, "..."], A: Any, lam: Any) -> Float[Array, "..."]:
    r"""Value of the problem, :math:`P_x(u) = \tfrac12 \|x - A u\|^2 + \lambda \|D u\|_1`, of each signal.

    Parameters
    ----------
    u : Array, shape (..., k)
        Where.
    x : Array, shape (..., m)
        Observed signals.
    A : array-like of shape (m, k), LinearOperator or None
        The operator; None is the identity.
    lam : float or Array, shape () or (...,)
        Penalty, one for all signals or one for each, not negative.

    Returns
    -------
    Array, shape (...,)
        The values.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN, infinity, a negative penalty.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import objective
    >>> objective(jnp.array([1.0, 3.0]), jnp.array([1.0, 4.0]), None, 0.5)
    Array(1.5, dtype=float32)

    References
    ----------
    Cherkaoui, Sulam, Moreau (2020), equation 1.
    """
    problem = check_problem(x, A, lam, u)
    return objective_value(problem, problem.u)


@jax.jit
def objective_value(problem: Problem, u: Array) -> Array:
    """:func:`objective` of what is checked."""
    penalty = (problem.lam * jnp.abs(differences(u))).sum(-1)
    return 0.5 * jnp.square(problem.residual(u)).sum(-1) + penalty


def lambda_max(x: Num[Any, "..."], A: Any) -> Float[Array, "..."]:
    """Smallest penalty for which the solution is constant, of each signal.

    Parameters
    ----------
    x : Array, shape (..., m)
        Observed signals.
    A : array-like of shape (m, k), LinearOperator or None
        The operator; None is the identity.

    Returns
    -------
    Array, shape (...,)
        In the unit of `x` times that of `A`; 0 where `k` is 1 or a constant fits perfectly.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import lambda_max
    >>> lambda_max(jnp.array([0.0, 0.0, 3.0]), None)
    Array(2., dtype=float32)

    References
    ----------
    Optimality of a constant in equation 1 of Cherkaoui, Sulam, Moreau (2020): the dual variable of its residual
    must stay within the penalty.
    """
    return _lambda_max(check_problem(x, A))


@jax.jit
def _lambda_max(problem: Problem) -> Array:
    residual = _orthogonal_to_constants(problem, problem.x)
    return jnp.abs(_dual_variable(problem, residual)).max(-1, initial=0.0)


def _orthogonal_to_constants(problem: Problem, r: Array) -> Array:
    """Project on the complement of ``A 1``: there is a dual variable for these residuals only."""
    sums = problem.A.matvec(jnp.ones(problem.k, r.dtype))
    square = jnp.sum(jnp.square(sums))
    return r - sums * (r @ sums / jnp.where(square > 0, square, 1))[..., None]


def _dual_variable(problem: Problem, residual: Array) -> Array:
    """The `v`, shape (..., k-1), with ``D^T v = A^T residual``."""
    return -jnp.cumsum(problem.A.rmatvec(residual), -1)[..., :-1]


def duality_gap(u: Num[Any, "..."], x: Num[Any, "..."], A: Any, lam: Any) -> Float[Array, "..."]:
    r"""Upper bound of :math:`P_x(u) - \min P_x`, of each signal: a certificate of how good `u` is.

    The residual is made dual feasible: projected, then shrunk until its dual variable is within the penalty.

    Parameters
    ----------
    u : Array, shape (..., k)
        Where.
    x : Array, shape (..., m)
        Observed signals.
    A : array-like of shape (m, k), LinearOperator or None
        The operator; None is the identity.
    lam : float or Array, shape () or (...,)
        Penalty, not negative. With 0 only a residual that is exactly orthogonal to the range of `A` certifies
        anything.

    Returns
    -------
    Array, shape (...,)
        Not negative; it goes to 0 as `u` goes to a solution.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN, infinity, a negative penalty.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.tv import duality_gap
    >>> duality_gap(jnp.array([1.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 3.0]), None, 2.0)
    Array(0., dtype=float32)

    References
    ----------
    Fenchel duality for equation 1 of Cherkaoui, Sulam, Moreau (2020), whose Moreau dual is in their appendix.
    """
    problem = check_problem(x, A, lam, u)
    return gap_value(problem, problem.u)


@jax.jit
def gap_value(problem: Problem, u: Array) -> Array:
    """:func:`duality_gap` of what is checked.

    The difference of the two values is written as a sum of terms none of which is negative: it does not cancel.
    """
    residual = problem.residual(u)
    feasible = _orthogonal_to_constants(problem, residual)
    v = _dual_variable(problem, feasible)
    largest = jnp.abs(v).max(-1, keepdims=True, initial=0.0)
    scale = jnp.where(largest > problem.lam, problem.lam / jnp.where(largest > 0, largest, 1), 1)
    jumps = differences(u)
    slack = jnp.maximum(problem.lam * jnp.abs(jumps) - scale * v * jumps, 0).sum(-1)
    return 0.5 * jnp.square(residual - scale * feasible).sum(-1) + slack
