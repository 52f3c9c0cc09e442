"""First- and second-order minimisers as pure functions, each one jit- and vmap-able.

They run inside `jax.lax` loops and keep the dtype of the starting point; but for FISTA, which may overshoot, they
accept only decreases. The first-order ones work on any pytree of arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike


def _dot(a: PyTree, b: PyTree) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)), jnp.zeros(()))


def _axpy(alpha: Array | float, x: PyTree, y: PyTree) -> PyTree:
    """``alpha * x + y`` in the dtypes of `y`."""
    return jax.tree.map(lambda x, y: (alpha * x + y).astype(y.dtype), x, y)


def _where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _equal(a: PyTree, b: PyTree) -> Array:
    return jnp.stack([(x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]).all()


def fista_momentum(t: Float[Array, "*shape"] | ScalarLike) -> Float[Array, "*shape"]:
    r"""Next term of FISTA's momentum sequence, :math:`t' = (1 + \sqrt{1 + 4 t^2}) / 2`.

    Parameters
    ----------
    t : Array or float
        This term; the sequence starts at 1.

    Returns
    -------
    Array
        The next; the extrapolation has the weight :math:`(t - 1) / t'`.

    Examples
    --------
    >>> from gyri.numerics.optim import fista_momentum
    >>> fista_momentum(1.0).round(3)
    Array(1.618, dtype=float32, weak_type=True)

    References
    ----------
    Beck, Teboulle (2009), A fast iterative shrinkage-thresholding algorithm, equation 4.2.
    """
    return (1 + jnp.sqrt(1 + 4 * jnp.square(t))) / 2


class FistaResult(NamedTuple):
    """What :func:`fista` returns."""

    x: PyTree
    n_iter: Int[Array, ""]
    converged: Bool[Array, ""]


def fista(
    grad: Callable[[PyTree], PyTree],
    prox: Callable[[PyTree, Array], PyTree],
    x0: PyTree,
    step_size: ScalarLike,
    *,
    max_iter: int,
    tol: ScalarLike,
    restart: bool = True,
) -> FistaResult:
    r"""Minimise a smooth plus a proximable convex function by accelerated proximal gradient descent.

    Parameters
    ----------
    grad : callable
        Gradient of the smooth part.
    prox : callable
        ``prox(x, step_size)``, proximal operator of ``step_size`` times the other part.
    x0 : pytree of Array
        Start.
    step_size : float
        At most 1 / L, L being the Lipschitz constant of `grad`.
    max_iter : int
        Most iterations.
    tol : float
        Stop when ``||x_new - x|| <= tol * max(1, ||x||)``.
    restart : bool
        Drop the momentum when it points uphill. With strong convexity this gives linear convergence.

    Returns
    -------
    FistaResult
        `x` like `x0`, `n_iter`, and whether `tol` was met.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics import soft_threshold
    >>> from gyri.numerics.optim import fista
    >>> y = jnp.array([3.0, 0.5])
    >>> fista(lambda x: x - y, lambda x, step: soft_threshold(x, step), jnp.zeros(2), 1.0, max_iter=50, tol=1e-6).x
    Array([2., 0.], dtype=float32)

    References
    ----------
    Beck, Teboulle (2009), section 4; O'Donoghue, Candès (2015), equation 13 (gradient scheme of the restart).
    """
    x0 = jax.tree.map(jnp.asarray, x0)
    step_size = jnp.asarray(step_size, jnp.result_type(*jax.tree.leaves(x0)))

    def body(state: tuple) -> tuple:
        i, x, y, t, _ = state
        new = prox(_axpy(-step_size, grad(y), y), step_size)
        moved = _axpy(-1.0, x, new)
        uphill = restart & (_dot(_axpy(-1.0, new, y), moved) > 0)
        t_next = fista_momentum(t)
        y = _where(uphill, new, _axpy((t - 1) / t_next, moved, new))
        done = jnp.sqrt(_dot(moved, moved)) <= tol * jnp.maximum(1, jnp.sqrt(_dot(x, x)))
        return i + 1, new, y, jnp.where(uphill, 1, t_next), done

    state = (jnp.zeros((), jnp.int32), x0, x0, jnp.ones_like(step_size), jnp.zeros((), bool))
    n_iter, x, _, _, converged = jax.lax.while_loop(lambda s: (s[0] < max_iter) & ~s[4], body, state)
    return FistaResult(x, n_iter, converged)


class DescentResult(NamedTuple):
    """What :func:`backtracking_descent` returns."""

    x: PyTree
    value: Float[Array, ""]
    history: Float[Array, " max_iter+1"]
    n_iter: Int[Array, ""]
    converged: Bool[Array, ""]


def backtracking_descent(
    value_and_grad: Callable[[PyTree], tuple[Array, PyTree]],
    value: Callable[[PyTree], Array],
    project: Callable[[PyTree], PyTree],
    x0: PyTree,
    *,
    step_size: ScalarLike = 1.0,
    grow: ScalarLike = 10.0,
    shrink: ScalarLike = 0.5,
    max_step: ScalarLike = 1e4,
    min_step: ScalarLike = 1e-20,
    tol: ScalarLike,
    max_iter: int,
) -> DescentResult:
    """Projected gradient descent that takes the first step on a shrinking ladder that decreases the value.

    It needs no Lipschitz constant, and the gradient may be an estimate: nothing is asked of it but a decrease.

    Parameters
    ----------
    value_and_grad : callable
        ``value_and_grad(x) -> (value, gradient)``; called once an accepted step, its value is not read.
    value : callable
        ``value(x) -> scalar``; called once a trial. NaN refuses the trial.
    project : callable
        Projection onto the feasible set, which contains `x0`.
    x0 : pytree of Array
        Start.
    step_size : float
        First step to try.
    grow, shrink : float
        Factors of the step after an accepted and a refused trial.
    max_step, min_step : float
        Largest step to grow to; a step below the smallest gives up.
    tol : float
        Stop when an accepted step gains at most ``tol * abs(value)``.
    max_iter : int
        Most accepted steps.

    Returns
    -------
    DescentResult
        `x` like `x0`; its `value`; `history` (max_iter + 1,), the value at `x0` and after each accepted step, then
        NaN; `n_iter`, the accepted steps; `converged`: a gain met `tol` or no step decreased the value (False where
        the value at `x0` is not finite).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.optim import backtracking_descent
    >>> value = lambda x: jnp.sum((x - 2.0) ** 2)
    >>> project = lambda x: jnp.minimum(x, 1.5)
    >>> backtracking_descent(jax.value_and_grad(value), value, project, jnp.zeros(1), tol=1e-6, max_iter=50).x
    Array([1.5], dtype=float32)
    """
    x0 = jax.tree.map(jnp.asarray, x0)
    first = jnp.asarray(value(x0))
    dtype = first.dtype
    move = lambda x, gradient, step: project(_axpy(-step, gradient, x))
    gradient = lambda x: value_and_grad(x)[1]

    def body(state: tuple) -> tuple:
        now, history, n_iter = state
        new, taken = backtracking_step(
            gradient, value, move, now, grow=grow, shrink=shrink, max_step=max_step, min_step=min_step, tol=tol
        )
        accepted = taken > 0
        n_iter = n_iter + accepted
        history = jnp.where(accepted, history.at[n_iter].set(new.value), history)
        return new, history, n_iter

    history = jnp.full(max_iter + 1, jnp.nan, dtype).at[0].set(first)
    step = jnp.minimum(jnp.asarray(step_size, dtype), jnp.asarray(max_step, dtype))
    start = DescentState(x0, first, step, ~jnp.isfinite(first))
    state = (start, history, jnp.zeros((), jnp.int32))
    final, history, n_iter = jax.lax.while_loop(lambda s: ~s[0].done & (s[2] < max_iter), body, state)
    return DescentResult(final.x, final.value, history, n_iter, final.done & jnp.isfinite(first))


class DescentState(NamedTuple):
    """What :func:`backtracking_step` takes and gives: the point, its value, the next step to try, and whether to stop.

    Attributes
    ----------
    x : pytree of Array
        A feasible point.
    value : Array, shape ()
        Its value.
    step_size : Array, shape ()
        First step of the next search.
    done : Array of bool, shape ()
        A gain met `tol`, or no step decreased the value.
    """

    x: PyTree
    value: Float[Array, ""]
    step_size: Float[Array, ""]
    done: Bool[Array, ""]


def backtracking_step(
    gradient: Callable[[PyTree], PyTree],
    value: Callable[[PyTree], Array],
    move: Callable[[PyTree, PyTree, Array], PyTree],
    state: DescentState,
    *,
    grow: ScalarLike = 10.0,
    shrink: ScalarLike = 0.5,
    max_step: ScalarLike = 1e4,
    min_step: ScalarLike = 1e-20,
    tol: ScalarLike,
) -> tuple[DescentState, Float[Array, ""]]:
    """One accepted step of :func:`backtracking_descent`, for loops that look at the state now and then.

    Parameters
    ----------
    gradient : callable
        ``gradient(x)``, which may be an estimate; called once.
    value : callable
        ``value(x) -> scalar``; called once a trial. NaN refuses the trial.
    move : callable
        ``move(x, gradient, step) -> x_new``, feasible: a projected step, or one along a curve in the feasible set.
    state : DescentState
        Where the descent is.
    grow, shrink, max_step, min_step, tol : float
        As there.

    Returns
    -------
    state : DescentState
        After the step; with no accepted trial, or where it was done before, the point stays.
    step : Array, shape ()
        The step taken, 0 where none was.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.optim import DescentState, backtracking_step
    >>> value = lambda x: (x - 2.0) ** 2
    >>> state = DescentState(jnp.array(0.0), jnp.array(4.0), jnp.array(1.0), jnp.array(False))
    >>> state, step = backtracking_step(jax.grad(value), value, lambda x, g, t: x - t * g, state, tol=1e-6)
    >>> float(state.x), float(step), float(state.step_size)
    (2.0, 0.5, 5.0)
    """
    x, old, step, stopped = state
    dtype = old.dtype
    shrink, grow, max_step, min_step = (jnp.asarray(v, dtype) for v in (shrink, grow, max_step, min_step))
    direction = gradient(x)

    def trial(search: tuple) -> tuple:
        step, *_ = search
        new = move(x, direction, step)
        trial_value = jnp.asarray(value(new), dtype)
        accepted = (trial_value < old) & jnp.isfinite(trial_value)
        # A move that gives back x itself will do so for all smaller steps.
        failed = ~accepted & ((step * shrink < min_step) | _equal(new, x))
        return jnp.where(accepted, step, step * shrink), new, trial_value, accepted, failed

    start = (step, x, old, jnp.zeros((), bool), stopped | (step < min_step))
    step, new, new_value, accepted, _ = jax.lax.while_loop(lambda s: ~(s[3] | s[4]), trial, start)
    new_value = jnp.where(accepted, new_value, old)
    done = ~accepted | (old - new_value <= tol * jnp.abs(old))
    state = DescentState(_where(accepted, new, x), new_value, jnp.minimum(grow * step, max_step), done)
    return state, jnp.where(accepted, step, 0)


def armijo_step(
    value: Callable[[PyTree], Array],
    x: PyTree,
    direction: PyTree,
    slope: ScalarLike,
    *,
    step_size: ScalarLike,
    c: ScalarLike,
    shrink: ScalarLike = 0.5,
    max_trials: int = 30,
    value_old: ScalarLike | None = None,
) -> tuple[PyTree, Float[Array, ""], Float[Array, ""]]:
    """One step along a direction, shrunk until it decreases the value by Armijo's rule.

    Parameters
    ----------
    value : callable
        ``value(x) -> scalar``. NaN and infinity refuse a trial.
    x, direction : pytree of Array
        Where to start and where to go.
    slope : float
        Derivative of the value along `direction`, negative.
    step_size : float
        First step to try.
    c : float
        Accept when ``value_new < value + c * step * slope``.
    shrink : float
        Factor of the step after a refused trial.
    max_trials : int
        Most trials.
    value_old : float, optional
        The value at `x`, where it is known already: it saves an evaluation.

    Returns
    -------
    x_new : pytree of Array
        ``x + step * direction``, or `x` when no trial was accepted.
    value_new : Array, shape ()
        Its value.
    step_size : Array, shape ()
        The step, 0 when no trial was accepted.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.optim import armijo_step
    >>> armijo_step(lambda x: x**2, jnp.array(1.0), jnp.array(-2.0), -4.0, step_size=2.0, c=0.1)
    (Array(0., dtype=float32), Array(0., dtype=float32), Array(0.5, dtype=float32))

    References
    ----------
    Armijo (1966), Minimization of functions having Lipschitz continuous first partial derivatives.
    """
    x = jax.tree.map(jnp.asarray, x)
    old = jnp.asarray(value(x) if value_old is None else value_old)
    step, slope, c = (jnp.asarray(v, old.dtype) for v in (step_size, slope, c))

    def trial(state: tuple) -> tuple:
        i, step, *_ = state
        new = _axpy(step, direction, x)
        new_value = jnp.asarray(value(new), old.dtype)
        accepted = (new_value < old + c * step * slope) & jnp.isfinite(new_value)
        return i + 1, jnp.where(accepted, step, step * shrink).astype(step.dtype), new, new_value, accepted

    start = (0, step, x, old, jnp.zeros((), bool))
    _, step, new, new_value, accepted = jax.lax.while_loop(lambda s: (s[0] < max_trials) & ~s[4], trial, start)
    return _where(accepted, new, x), jnp.where(accepted, new_value, old), jnp.where(accepted, step, 0)


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
    trial: Float[Array, " n"]
    step: Float[Array, ""]  # of the trial; infinite at the start, which is no trial
    n_iter: Int[Array, ""]
    done: Bool[Array, ""]
    converged: Bool[Array, ""]


def _derivatives(
    value_and_grad: Callable, hessian: Callable | None, x: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n n"]]:
    """Value, gradient and Hessian, from one forward pass over the first two where `hessian` is None."""

    def gradient_and_aux(x: Array) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = value_and_grad(x)
        return gradient, (value, gradient)

    if hessian is None:
        curvature, (value, gradient) = jax.jacfwd(gradient_and_aux, has_aux=True)(x)
    else:
        (value, gradient), curvature = value_and_grad(x), hessian(x)
    as_x = lambda array: jnp.asarray(array, x.dtype)
    return as_x(value), as_x(gradient), as_x(0.5 * (curvature + curvature.T))


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
    fun: Callable[[Float[Array, " n"]], Any],
    x0: Float[Array, " n"],
    *,
    lower: Float[Array, "..."] | ScalarLike | None = None,
    upper: Float[Array, "..."] | ScalarLike | None = None,
    max_iter: int = 50,
    tol: ScalarLike,
    value_and_grad: bool = False,
    hessian: Callable[[Float[Array, " n"]], Float[Array, "n n"]] | None = None,
) -> NewtonResult:
    r"""Minimise a smooth function of a few variables in a box by Newton's method, damped so that it only descends.

    Each iteration solves the Newton system on the coordinates that no bound holds, with a ridge where the Hessian is
    not positive definite, and halves the step along the projected path until `fun` decreases enough. Each trial costs
    one evaluation of value, gradient and Hessian together, so that they are compiled once and an accepted trial leaves
    nothing to compute; most first trials are accepted.

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
    value_and_grad : bool
        Whether ``fun(x) -> (value, gradient)``, for functions that have a cheaper gradient than reverse mode; it is
        differentiated forward for the Hessian.
    hessian : callable, optional
        ``hessian(x) -> (n, n)``, as of a cheaper function that curves nearly as `fun` does: steps then converge
        linearly, the faster the closer the two are.

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
    >>> result.x.round(2)
    Array([0.69, 0.5 ], dtype=float32)
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

    derivatives = partial(_derivatives, fun if value_and_grad else jax.value_and_grad(fun), hessian)

    def body(state: _NewtonState) -> _NewtonState:
        value, gradient, curvature = derivatives(state.trial)
        moved = state.trial - state.x
        slope = _dot_moved(state.gradient, moved)  # may be positive where a bound bends the path
        enough = (value <= state.value + 1e-4 * jnp.minimum(slope, 0)) & (value < state.value)
        start = jnp.isinf(state.step)
        accepted = start | (jnp.isfinite(value) & enough)
        keep = lambda new, old: jnp.where(accepted, new, old)
        x, value = keep(state.trial, state.x), keep(value, state.value)
        gradient, curvature = keep(gradient, state.gradient), keep(curvature, state.hessian)
        n_iter = state.n_iter + (accepted & ~start)

        direction = _newton_direction(x, gradient, curvature, low, high)
        outward = ((x <= low) & (direction < 0)) | ((x >= high) & (direction > 0))
        direction = jnp.where(outward, 0, direction)
        predicted = -0.5 * _dot_moved(gradient, direction)
        known = jnp.isfinite(value) & jnp.isfinite(jnp.where(low == high, 0, gradient)).all()
        met = known & (predicted <= tol * jnp.abs(value))
        spent = n_iter >= max_iter
        # A model decrease below the rounding of the value cannot be told from none: no trial after such a one.
        hopeless = state.step * predicted <= 0.125 * eps * jnp.abs(value)
        last = hopeless | (moved == 0).all() | (state.step < 2.0**-60)
        stuck = ~jnp.any(direction != 0) | (~accepted & last)
        precise = known & ~spent & (predicted <= jnp.sqrt(eps) * jnp.maximum(1, jnp.abs(value)))
        step = jnp.where(accepted, 1, 0.5 * state.step)
        return _NewtonState(
            x,
            value,
            gradient,
            curvature,
            jnp.clip(x + step * direction, low, high),
            step,
            n_iter,
            met | spent | stuck | ~jnp.isfinite(value),
            met | (stuck & precise),
        )

    x = jnp.clip(x0, low, high)
    no = jnp.zeros((), bool)
    unknown = jnp.zeros((x.size, x.size), x.dtype)
    infinite = jnp.asarray(jnp.inf, x.dtype)
    state = _NewtonState(x, infinite, unknown[0], unknown, x, infinite, jnp.zeros((), jnp.int32), no, no)
    state = jax.lax.while_loop(lambda s: ~s.done, body, state)
    return NewtonResult(state.x, state.value, state.hessian, state.n_iter, state.converged)
