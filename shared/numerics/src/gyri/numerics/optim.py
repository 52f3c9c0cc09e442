"""First- and second-order minimisers as pure functions, each one jit- and vmap-able.

They run inside `jax.lax` loops, keep the dtype of the starting point and never return a point worse than it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike


class NewtonResult(NamedTuple):
    """What :func:`damped_newton` returns."""

    x: Float[Array, " n"]
    value: Float[Array, ""]
    hessian: Float[Array, "n n"]
    n_iter: Int[Array, ""]
    converged: Bool[Array, ""]


class _NewtonState(NamedTuple):
    x: Float[Array, " n"]
    value: Float[Array, ""]
    gradient: Float[Array, " n"]
    hessian: Float[Array, "n n"]
    n_iter: Int[Array, ""]
    done: Bool[Array, ""]
    converged: Bool[Array, ""]


def _derivatives(
    fun: Callable, x: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n n"]]:
    """Value, gradient and Hessian from one forward-over-reverse pass."""

    def gradient_and_aux(x: Array) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(fun)(x)
        return gradient, (value, gradient)

    hessian, (value, gradient) = jax.jacfwd(gradient_and_aux, has_aux=True)(x)
    return value, gradient, 0.5 * (hessian + hessian.T)


def _dot_moved(gradient: Float[Array, " n"], moved: Float[Array, " n"]) -> Float[Array, ""]:
    """Inner product in which a coordinate that does not move counts as 0 even where its derivative is NaN."""
    return jnp.sum(jnp.where(moved == 0, 0, gradient * moved))


def _newton_direction(
    x: Float[Array, " n"],
    gradient: Float[Array, " n"],
    hessian: Float[Array, "n n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
) -> Float[Array, " n"]:
    """Descent direction of the projected Newton method; never leaves an active bound and is never NaN."""
    eps = jnp.finfo(x.dtype).eps
    frozen = lower == upper
    gradient = jnp.where(frozen | ~jnp.isfinite(gradient), 0, gradient)
    used = ~frozen[:, None] & ~frozen
    usable = jnp.isfinite(jnp.where(used, hessian, 0)).all()
    hessian = jnp.where(usable & used, hessian, jnp.eye(x.size, dtype=x.dtype))

    # A coordinate is active when its own scaled gradient step would overshoot the bound a thousandfold: the epsilon
    # of Bertsekas' active set, free of the parameters' scale. It goes straight to the bound and leaves the system.
    diagonal = jnp.abs(jnp.diag(hessian))
    diagonal = jnp.maximum(diagonal, eps * jnp.maximum(diagonal.max(), jnp.finfo(x.dtype).tiny / eps))
    reach = 1e-3 * jnp.abs(gradient) / diagonal
    at_lower = (gradient > 0) & (x - lower <= reach)
    at_upper = (gradient < 0) & (upper - x <= reach)
    free = ~(frozen | at_lower | at_upper)

    # Unit diagonal first, so that one ridge suits parameters of every scale.
    scale = jnp.where(free, 1 / jnp.sqrt(diagonal), 0)
    scaled = hessian * scale[:, None] * scale + jnp.diag(jnp.where(free, 0, 1).astype(x.dtype))
    eigenvalues, basis = jnp.linalg.eigh(scaled, symmetrize_input=False)
    smallest, largest = eigenvalues[0], jnp.abs(eigenvalues).max()
    definite = smallest > 4 * x.size * eps * largest
    ridge = jnp.where(definite, 0, jnp.sqrt(eps) * largest - 2 * jnp.minimum(smallest, 0))
    newton = -scale * (basis @ ((basis.T @ (scale * gradient)) / (eigenvalues + ridge)))
    bounded = jnp.where(at_lower, lower - x, jnp.where(at_upper, upper - x, 0))
    direction = jnp.where(free, newton, bounded)
    return jnp.where(jnp.isfinite(direction), direction, 0)


def damped_newton(
    fun: Callable[[Float[Array, " n"]], Float[Array, ""]],
    x0: Float[Array, " n"],
    *,
    lower: Float[Array, "..."] | ScalarLike | None = None,
    upper: Float[Array, "..."] | ScalarLike | None = None,
    max_iter: int = 50,
    tol: ScalarLike,
) -> NewtonResult:
    r"""Minimise a smooth function of a few variables in a box by Newton's method, damped so that it only descends.

    Each iteration solves the Newton system on the coordinates that no bound holds, with a ridge where the Hessian is
    not positive definite, and halves the step along the projected path until `fun` decreases enough. It costs one
    evaluation of value, gradient and Hessian together, and one of the value a trial. Under `vmap` the lanes that are
    done ask for no further trials.

    Parameters
    ----------
    fun : callable
        ``fun(x) -> scalar``, twice differentiable in JAX (reverse, then forward). NaN or infinity at a trial point
        refuses that point, so a function may say so outside its domain.
    x0 : Array, shape (n,)
        Start, float32 or float64; moved to the nearest point of the box first.
    lower, upper : Array or float, optional
        Bounds, broadcast to ``(n,)``; infinite entries are no bound. A coordinate with ``lower == upper`` is frozen.
    max_iter : int
        Most Newton steps.
    tol : float
        Stop when the decrease that the quadratic model predicts is at most ``tol * abs(value)``.

    Returns
    -------
    NewtonResult
        `x` (n,), `value` (), `hessian` (n, n) at `x` (of all coordinates, without ridge), `n_iter` (the steps taken)
        and `converged`: the predicted decrease met `tol`, or no step could decrease `fun` while the predicted
        decrease was within the precision of the dtype, :math:`\sqrt\epsilon\,\max(1, |value|)`.
        With a non-finite value at `x0`, `x` is the start and `converged` is False.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.optim import damped_newton
    >>> fun = lambda x: jnp.sum(jnp.exp(x) - 2 * x)
    >>> result = damped_newton(fun, jnp.zeros(2), upper=jnp.array([9.0, 0.5]), tol=1e-6)
    >>> result.x.round(3)
    Array([0.693, 0.5  ], dtype=float32)
    >>> bool(result.converged)
    True

    References
    ----------
    Bertsekas (1982), Projected Newton methods for optimization problems with simple constraints,
    SIAM J. Control Optim. 20(2), equations 32-37.
    """
    if x0.ndim != 1 or x0.size == 0:
        raise ValueError(f"x0: expected shape (n,) with n >= 1, got {x0.shape}")
    low = jnp.broadcast_to(jnp.asarray(-jnp.inf if lower is None else lower, x0.dtype), x0.shape)
    high = jnp.broadcast_to(jnp.asarray(jnp.inf if upper is None else upper, x0.dtype), x0.shape)
    eps = jnp.finfo(x0.dtype).eps

    def search(state: _NewtonState, direction: Array) -> tuple[Array, Array, Array]:
        """Halve the step along the projected path until the value decreases, or the point no longer moves."""

        def trial(step: Array) -> tuple[Array, Array, Array, Array]:
            x = jnp.clip(state.x + step * direction, low, high)
            value = jnp.asarray(fun(x), x.dtype)
            slope = _dot_moved(state.gradient, x - state.x)
            enough = value <= state.value + 1e-4 * jnp.minimum(slope, 0)
            # A model decrease below the rounding of the value cannot be told from none: no trial after this one.
            last = (-slope <= 0.25 * eps * jnp.abs(state.value)) | (x == state.x).all() | (step < 2.0**-60)
            return x, value, jnp.isfinite(value) & enough & (value < state.value), last

        def body(carry: tuple) -> tuple:
            step, *_ = carry
            return (0.5 * step, *trial(step))

        skip = state.done | ~jnp.any(direction != 0)
        start = (jnp.ones((), x0.dtype), state.x, state.value, jnp.zeros((), bool), skip)
        _, x, value, accepted, _ = jax.lax.while_loop(lambda c: ~(c[3] | c[4]), body, start)
        return jnp.where(accepted, x, state.x), jnp.where(accepted, value, state.value), accepted

    def step(state: _NewtonState) -> _NewtonState:
        direction = _newton_direction(state.x, state.gradient, state.hessian, low, high)
        moved = jnp.clip(state.x + direction, low, high) - state.x
        predicted = -0.5 * _dot_moved(state.gradient, moved)
        known = jnp.isfinite(jnp.where(low == high, 0, state.gradient)).all()
        met = known & (predicted <= tol * jnp.abs(state.value))
        x, value, accepted = search(state._replace(done=state.done | met), direction)
        precise = known & (predicted <= jnp.sqrt(eps) * jnp.maximum(1, jnp.abs(state.value)))
        # The value of the trial is kept, not the one that comes with the Hessian: only like is compared with like.
        # A refused step evaluates nothing new: its lane keeps its derivatives.
        _, gradient, hessian = jax.lax.cond(
            accepted, lambda x: _derivatives(fun, x), lambda x: (value, state.gradient, state.hessian), x
        )
        n_iter = state.n_iter + accepted
        return _NewtonState(x, value, gradient, hessian, n_iter, ~accepted, met | (~accepted & precise))

    x = jnp.clip(x0, low, high)
    _, gradient, hessian = _derivatives(fun, x)
    value = jnp.asarray(fun(x), x0.dtype)
    state = _NewtonState(
        x, value, gradient, hessian, jnp.zeros((), jnp.int32), ~jnp.isfinite(value), jnp.zeros((), bool)
    )
    state = jax.lax.while_loop(lambda s: ~s.done & (s.n_iter < max_iter), step, state)
    return NewtonResult(state.x, state.value, state.hessian, state.n_iter, state.converged)
