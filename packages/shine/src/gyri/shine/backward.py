"""Backward modes: what stands for the solution w of ``J^T w = -v``, between the estimate alone and the exact solve."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gyri.numerics.linalg import cg
from gyri.numerics.validation import check_positive_int, check_scalar

from .inverse import LowRank, norm
from .solvers import Refinement, State, clamp_tolerance, iterate

FALLBACK = 1.3  # of the paper's experiments


def _check_refine_steps(mode: Any) -> None:
    check_positive_int(mode.refine_steps, "refine_steps", minimum=0)


@dataclass(frozen=True)
class Shine:
    """Multiply by the transposed inverse estimate of the forward pass: no evaluation of the function.

    Parameters
    ----------
    fallback : float or bool, optional
        Elements whose w is more than so many times as long as v, or not finite, take the Jacobian-free one. True
        is 1.3, the paper's; None and False never fall back.
    refine_steps : int
        Most iterations of the exact solve, from there, with the estimate transposed as its first memory.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import Shine
    >>> Shine(fallback=True, refine_steps=5)
    Shine(fallback=1.3, refine_steps=5)

    References
    ----------
    Ramzi et al. (2022), sections 2.1 and 3.
    """

    fallback: float | int | bool | np.bool_ | None = None
    refine_steps: int = 0

    def __post_init__(self) -> None:
        # As static arguments True and 1.0, False and 0.0 would be the same.
        value: Any = self.fallback
        if isinstance(value, bool | np.bool_):
            value = FALLBACK if value else None
        if value is not None:
            value = check_scalar(value, "fallback", minimum=0)
        object.__setattr__(self, "fallback", value)
        _check_refine_steps(self)


@dataclass(frozen=True)
class JacobianFree:
    """Take the identity for the inverse: ``w = v`` for fixed points, ``w = -v`` for roots and minimisers.

    Parameters
    ----------
    refine_steps : int
        Most iterations of the exact solve, from there.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import JacobianFree
    >>> JacobianFree().refine_steps
    0

    References
    ----------
    Fung et al. (2021), JFB: Jacobian-free backpropagation for implicit networks.
    """

    refine_steps: int = 0

    def __post_init__(self) -> None:
        _check_refine_steps(self)


@dataclass(frozen=True)
class Full:
    """Solve the linear system: Broyden's method, or conjugate gradients for a minimiser. Differentiable again.

    Parameters
    ----------
    max_steps : int
        Most products with the Jacobian.
    tol : float
        Stop at a residual of so many times v.

    Raises
    ------
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> from gyri.shine import Full
    >>> Full(max_steps=20)
    Full(max_steps=20, tol=1e-06)
    """

    max_steps: int = 50
    tol: float | int = 1e-6

    def __post_init__(self) -> None:
        check_positive_int(self.max_steps, "max_steps")
        check_scalar(self.tol, "tol", minimum=0)


Mode = Shine | JacobianFree | Full
MODES: dict[str, Mode] = {
    "shine": Shine(),
    "jacobian_free": JacobianFree(),
    "full": Full(),
    "refine": Shine(refine_steps=5),
}


def as_mode(backward: Any) -> Mode:
    """A mode from its name or itself.

    Examples
    --------
    >>> as_mode("refine")
    Shine(fallback=None, refine_steps=5)
    """
    if isinstance(backward, Mode):
        return backward
    if isinstance(backward, str) and backward in MODES:
        return MODES[backward]
    names = ", ".join(repr(name) for name in MODES)
    raise ValueError(f"backward: expected one of {names}, or a Shine, JacobianFree or Full, got {backward!r}")


@jax.custom_vjp
def first_order_only(w: Array) -> Array:
    """The identity, which refuses to be differentiated: an estimate has no derivative of its own.

    Examples
    --------
    >>> first_order_only(jnp.array(1.0))
    Array(1., dtype=float32, weak_type=True)
    """
    return w


def _refuse(w: Array) -> tuple[Array, None]:
    raise NotImplementedError("second derivatives need the exact solve: backward='full'")


first_order_only.defvjp(_refuse, lambda _, cotangent: (cotangent,))


# --- roots and fixed points -------------------------------------------------------------------------------------------


def solve_transposed(
    mode: Mode, estimate: LowRank, v: Float[Array, "b d"], pull: Callable, *, identity: float
) -> Float[Array, "b d"]:
    """W of each element: the solution of ``J^T w = -v``, as the mode has it.

    Parameters
    ----------
    mode : Shine, JacobianFree or Full
        The mode.
    estimate : LowRank
        Of the inverse of J, on a flat batch.
    v : Array, shape (b, d)
        Cotangents.
    pull : callable
        ``w -> J^T w``.
    identity : float
        -1 or 1: what Jacobian-free takes the inverse to be a multiple of.

    Returns
    -------
    Array, shape (b, d)
        W.

    Examples
    --------
    >>> from gyri.shine.inverse import Layout
    >>> rows = jnp.zeros((1, 0, 2))
    >>> G = LowRank(-jnp.ones(1), rows, rows, jnp.zeros(1, int), Layout.of(jnp.zeros(2)))
    >>> solve_transposed(Full(), G, jnp.ones((1, 2)), lambda w: -4 * w, identity=-1.0)
    Array([[0.25, 0.25]], dtype=float32)
    """
    if isinstance(mode, Full):
        return _solve_exactly(mode, estimate, v, pull)
    scale, n_rows = jnp.full_like(estimate.scale, identity), jnp.zeros_like(estimate.n_rows)
    if isinstance(mode, Shine):
        w = -estimate.apply_flat(v, True)
        if mode.fallback is not None:
            fall = ~(norm(w) <= mode.fallback * norm(v))  # also where w is not finite
            w = jnp.where(fall[:, None], -identity * v, w)
            scale, n_rows = jnp.where(fall, scale, estimate.scale), jnp.where(fall, n_rows, estimate.n_rows)
        else:
            scale, n_rows = estimate.scale, estimate.n_rows
    else:
        w = -identity * v
    if mode.refine_steps:
        rows = (estimate.V, estimate.U, n_rows) if isinstance(mode, Shine) else _no_rows(v)
        w = _refine(pull, v, w, scale, rows, mode.refine_steps, _least(v))
    return first_order_only(w)


def _least(v: Array) -> float:
    """Refinement stops early only where nothing is left to refine."""
    return 10 * float(jnp.finfo(v.dtype).eps)


def _no_rows(v: Array) -> tuple[Array, Array, Array]:
    rows = jnp.zeros((v.shape[0], 0, v.shape[1]), v.dtype)
    return rows, rows, jnp.zeros(v.shape[0], jnp.int32)


def _refine(pull: Callable, v: Array, w: Array, scale: Array, rows: tuple, n_steps: int, tol: float | int) -> Array:
    """At most `n_steps` Broyden iterations on ``J^T w + v = 0`` from w; `rows` on top of `scale`: the first memory."""
    # The answer is linear in v. Of a size of 1, no product in the iteration falls below what the dtype can tell.
    unit = jnp.abs(v).max(1, keepdims=True)
    unit = jnp.where(unit > 0, unit, 1)
    v, w = v / unit, w / unit
    size = norm(v)
    solver = Refinement(n_steps - 1, tol, "rel", base=rows)
    residual = lambda w: (pull(w) + v, size)
    state: State = iterate(
        residual, w, solver, init_scale=lambda z, first: scale, tol=clamp_tolerance(float(tol), v.dtype)
    )
    # n products make n steps, the last of which leads to a point that nobody has looked at: taken unless the
    # iteration has left its best behind.
    last = state.z + state.step
    take = state.active & (state.last <= 2 * state.best) & jnp.isfinite(norm(last))
    return unit * jnp.where(take[:, None], last, state.best_z)


def _solve_exactly(mode: Full, estimate: LowRank, v: Array, pull: Callable) -> Array:
    """Broyden from 0 with nothing but the scale of the estimate, as a linear solve that can be differentiated."""

    def solve(matvec: Callable, right: Array) -> Array:
        return _refine(matvec, -right, jnp.zeros_like(right), estimate.scale, _no_rows(right), mode.max_steps, mode.tol)

    return jax.lax.custom_linear_solve(pull, -v, solve, solve)


# --- minimisers -------------------------------------------------------------------------------------------------------


def solve_symmetric(mode: Mode, estimate: Any, v: Float[Array, " d"], hvp: Callable) -> Float[Array, " d"]:
    """W of a minimiser: the solution of ``H w = -v``, as the mode has it.

    Examples
    --------
    >>> solve_symmetric(Full(), None, jnp.ones(2), lambda w: 4 * w)
    Array([-0.25, -0.25], dtype=float32)
    """
    if isinstance(mode, Full):
        return cg(hvp, -v, tol=clamp_tolerance(float(mode.tol), v.dtype), maxiter=mode.max_steps)[0]
    w = -v
    if isinstance(mode, Shine):
        w = -estimate.apply_flat(v, True)
        if mode.fallback is not None:
            fall = ~(norm(w) <= mode.fallback * norm(v))  # also where w is not finite
            w = jnp.where(fall, -v, w)
    if mode.refine_steps:
        w = cg(hvp, -v, w, tol=_least(v), maxiter=mode.refine_steps)[0]
    return first_order_only(w)
