"""Solvers that use all samples at each iteration: PZOBO, AID, ITD."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gyri.numerics.linalg import cg
from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from ..descent import descend
from ..directions import Side, add, axpy, negative, scale
from ..iteration import Iteration, make_settings, make_solver
from ..rules import need_size
from ..types import BilevelSolver, BilevelState

INNER_SOLVERS = ("gd", "lbfgs", "newton-cg")
STEPS = "it is differentiated through, or repeated for perturbed x"


def full_batch(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose batch size can only be the full one."""
    if options.get("batch_size", "full") != "full":
        raise ValueError(
            f"batch_size: expected 'full', since this solver is deterministic, got {options['batch_size']}"
        )
    return {**options, "batch_size": "full"}


def gradient_steps(it: Iteration, z: PyTree, x: PyTree, n_steps: int, which: int = 0) -> PyTree:
    """Gradient steps on the inner objective over all samples, of the step size of z or v; differentiable."""
    rate = it.size(which)
    step = lambda z, _: (axpy(-rate, it.inner.grad_z(None, z, x), z), None)
    return jax.lax.scan(step, z, None, n_steps)[0]


def pzobo(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    n_inner_steps: int = 10,
    smoothing: Any = 0.1,
    n_directions: int = 10,
    **options: Any,
) -> BilevelSolver:
    """Partial zeroth-order bilevel optimizer: the Jacobian of z in x by differences along random directions.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Gradient steps of z, of the step `inner_opt`, a number or a schedule.
    smoothing : float
        Length of the differences.
    n_directions : int
        Random directions an iteration.
    **options
        As of :func:`soba`, with ``batch_size="full"``; steps are constant by default. The state's v stays zero.

    Returns
    -------
    BilevelSolver
        `init` and `update`.

    Raises
    ------
    ValueError, TypeError
        As of :func:`soba`; a batch size.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, solvers
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> solver = solvers.pzobo(problem.inner_fun, problem.outer_fun)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=100)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Sow, Ji, Liang (2022), On the convergence theory for Hessian-free bilevel algorithms, algorithm 1.
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **full_batch(options))
    need_size(settings.rules[0], "inner_opt", STEPS)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    n_directions = check_positive_int(n_directions, "n_directions")
    smoothing = check_scalar(smoothing, "smoothing", minimum=0, strict=True)

    def advance(it: Iteration) -> BilevelState:
        z_old, x = it.state.z, it.state.x
        z = gradient_steps(it, z_old, x, n_steps)
        outer_z, outer_x = it.outer.grads(None, z, x)
        leaves, like = jax.tree.flatten(x)
        keys = jax.tree.unflatten(like, list(jax.random.split(it.draw_key(), len(leaves))))

        def slope(keys: PyTree) -> PyTree:
            u = jax.tree.map(lambda key, leaf: jax.random.normal(key, leaf.shape, leaf.dtype), keys, x)
            there = gradient_steps(it, z_old, axpy(smoothing, u, x), n_steps)
            # Differences first: large values that cancel would cost digits.
            moved = jax.tree.map(lambda a, b, r: jnp.vdot((a - b) / smoothing, r), there, z, outer_z)
            along = jax.tree.reduce(jnp.add, moved)
            return scale(along, u)

        many = jax.tree.map(lambda key: jax.random.split(key, n_directions), keys)
        slopes = jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(slope)(many))
        it.count(n_steps * (1 + n_directions), 2)
        return it.finish(z, it.state.v, it.move_x(x, add(outer_x, slopes)))

    return make_solver("pzobo", settings, advance)


def aid(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    n_inner_steps: int = 10,
    n_linear_steps: int = 10,
    inner_solver: str = "gd",
    tol: Any = 0.0,
    **options: Any,
) -> BilevelSolver:
    """Approximate implicit differentiation: z and v solved for from where they were, then one step of x.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps, n_linear_steps : int
        Most steps of the inner solver, and of conjugate gradients.
    inner_solver : {"gd", "lbfgs", "newton-cg"}
        Gradient steps of size `inner_opt` (a number or a schedule), L-BFGS, or Newton steps by conjugate gradients.
    tol : float or callable
        Stop the inner solver when the norm of the gradient, and conjugate gradients when the relative residual, is at
        most this; a function gives it at the outer iteration t: ``lambda t: 1e-2 * 0.9**t`` is close to HOAG.
    **options
        As of :func:`soba`, with ``batch_size="full"``; steps are constant by default.

    Returns
    -------
    BilevelSolver
        `init` and `update`.

    Raises
    ------
    ValueError, TypeError
        As of :func:`soba`; a batch size; an unknown `inner_solver`.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, solvers
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> solver = solvers.aid(problem.inner_fun, problem.outer_fun, inner_solver="lbfgs")
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=100)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Pedregosa (2016), Hyperparameter optimization with approximate gradient; Ji, Yang, Liang (2021), algorithm 1.
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **full_batch(options))
    check_option(inner_solver, "inner_solver", INNER_SOLVERS)
    if inner_solver == "gd":
        need_size(settings.rules[0], "inner_opt", "it is repeated until the tolerance is met")
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    n_linear = check_positive_int(n_linear_steps, "n_linear_steps")
    if not callable(tol):
        tol = check_scalar(tol, "tol", minimum=0)

    def advance(it: Iteration) -> BilevelState:
        x = it.state.x
        accuracy = tol(it.t) if callable(tol) else tol
        rate = it.size(0) if inner_solver == "gd" else None
        fun = lambda z: it.inner.value(None, z, x)
        z, n_calls = descend(inner_solver, fun, it.state.z, tol=accuracy, max_iter=n_steps, step_size=rate)
        outer_z, outer_x = it.outer.grads(None, z, x)
        product = lambda v: it.inner.hvp(None, z, v, x)
        v, info = cg(product, negative(outer_z), it.state.v, tol=accuracy, maxiter=n_linear)
        it.count(n_calls + info.n_iter + 2, 2)
        return it.finish(z, v, it.move_x(x, add(outer_x, it.inner.cross(None, z, v, x))))

    return make_solver("aid", settings, advance)


def itd(
    inner_fun: Callable, outer_fun: Callable, *, n_inner_steps: int = 10, warm_start: bool = True, **options: Any
) -> BilevelSolver:
    """Iterative differentiation: the gradient through unrolled gradient steps of z.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Steps of z, of size `inner_opt`, a number or a schedule.
    warm_start : bool
        Go on from the last z, which counts as a constant, or start each time from the first one.
    **options
        As of :func:`soba`, with ``batch_size="full"``; steps are constant by default. The state's v stays zero.

    Returns
    -------
    BilevelSolver
        `init` and `update`.

    Raises
    ------
    ValueError, TypeError
        As of :func:`soba`; a batch size.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, solvers
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> solver = solvers.itd(problem.inner_fun, problem.outer_fun)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=100)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced design, algorithm 1 (ITD).
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **full_batch(options))
    need_size(settings.rules[0], "inner_opt", STEPS)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")

    def advance(it: Iteration) -> BilevelState:
        start = it.state.z if warm_start else it.state.extra

        def value(x: PyTree) -> tuple[Array, PyTree]:
            z = gradient_steps(it, start, x, n_steps)
            return it.outer.value(None, z, x), z

        gradient, z = jax.grad(value, has_aux=True)(it.state.x)
        it.count(3 * n_steps, 2)
        return it.finish(z, it.state.v, it.move_x(it.state.x, gradient), it.state.extra)

    def start(inner: Side, outer: Side, state: BilevelState) -> tuple[Any, tuple[int, int]]:
        return None if warm_start else state.z, (0, 0)

    return make_solver("itd", settings, advance, start)
