"""Solvers that need gradients only, by a penalty on the inner problem: F2SA, BOME."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from ..directions import Side, axpy, dot, subtract
from ..iteration import Iteration, make_settings, make_solver
from ..rules import need_size
from ..types import BilevelSolver, BilevelState
from .deterministic import full_batch, gradient_steps

CONTROLS = ("norm", "gap")


def f2sa(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    n_inner_steps: int = 10,
    penalty: Any = 1.0,
    penalty_growth: Any = 0.1,
    **options: Any,
) -> BilevelSolver:
    """Fully first-order stochastic approximation: z minimises F + penalty G, a second variable y minimises G.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Steps of z and y.
    penalty, penalty_growth : float
        The penalty at the start, and what it grows by: ``penalty_growth * (1 + t)**(-1/7)`` an iteration.
    **options
        As of :func:`soba`; `v_opt` is of y. Steps decrease with powers 5/7 of z, 4/7 of y and x. The state's v stays
        zero.

    Returns
    -------
    BilevelSolver
        `init` and `update`.

    Raises
    ------
    ValueError, TypeError
        As of :func:`soba`.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, solvers
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> solver = solvers.f2sa(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=200)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Kwon, Kwon, Wright, Nowak (2023), A fully first-order method for stochastic bilevel optimization, algorithm 1.
    """
    settings = make_settings(inner_fun, outer_fun, (5 / 7, 4 / 7, 4 / 7), **options)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    penalty = check_scalar(penalty, "penalty", minimum=0, strict=True)
    penalty_growth = check_scalar(penalty_growth, "penalty_growth", minimum=0)

    def advance(it: Iteration) -> BilevelState:
        x, (y, weight) = it.state.x, it.state.extra

        def body(carry: tuple) -> tuple:
            z, y = carry
            first, second, j = it.draw_inner(), it.draw_inner(), it.draw_outer()
            along_z = axpy(weight, it.inner.grad_z(first, z, x), it.outer.grad_z(j, z, x))
            return it.move_z(z, along_z), it.move_v(y, it.inner.grad_z(second, y, x))

        z, y = it.repeat(n_steps, body, (it.state.z, y))
        j, third, fourth = it.draw_outer(), it.draw_inner(), it.draw_inner()
        gap = subtract(it.inner.grad_x(third, z, x), it.inner.grad_x(fourth, y, x))
        x = it.move_x(x, axpy(weight, gap, it.outer.grad_x(j, z, x)))
        it.count(2 * n_steps + 2, n_steps + 1)
        grown = weight + jnp.asarray(penalty_growth * (1.0 + it.t) ** (-1 / 7), weight.dtype)
        return it.finish(z, it.state.v, x, (y, grown))

    def start(inner: Side, outer: Side, state: BilevelState) -> tuple[Any, tuple[int, int]]:
        return (state.z, jnp.asarray(penalty, jnp.result_type(*jax.tree.leaves(state.z)))), (0, 0)

    return make_solver("f2sa", settings, advance, start)


def bome(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    n_inner_steps: int = 10,
    eta: Any = 0.5,
    control: str = "norm",
    **options: Any,
) -> BilevelSolver:
    """BOME: descent on F along which the gap of G to its minimum falls as well; deterministic.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Gradient steps on G, of size `v_opt`, a number or a schedule, that stand for its minimiser.
    eta : float
        How fast the gap has to fall.
    control : {"norm", "gap"}
        Relative to the squared gradient of the gap, or to the gap.
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
    >>> solver = solvers.bome(problem.inner_fun, problem.outer_fun)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=400)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Ye, Liu, Wright, Stone, Liu (2022), BOME! Bilevel optimization made easy: a simple first-order approach.
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **full_batch(options))
    need_size(settings.rules[1], "v_opt", "it is repeated at each iteration")
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    eta = check_scalar(eta, "eta", minimum=0, strict=True)
    check_option(control, "control", CONTROLS)

    def advance(it: Iteration) -> BilevelState:
        z, x = it.state.z, it.state.x
        y = gradient_steps(it, z, x, n_steps, which=1)
        along_z, along_x = it.inner.grads(None, z, x)
        q = (along_z, subtract(along_x, it.inner.grad_x(None, y, x)))
        gradient = it.outer.grads(None, z, x)
        square = dot(q, q)
        gap = it.inner.value(None, z, x) - it.inner.value(None, y, x)
        wanted = eta * (square if control == "norm" else gap)
        weight = jnp.maximum(wanted - dot(gradient, q), 0) / jnp.where(square > 0, square, 1)
        move_z, move_x = axpy(jnp.where(square > 0, weight, 0), q, gradient)
        it.count(n_steps + 3, 2)
        return it.finish(it.move_z(z, move_z), it.state.v, it.move_x(x, move_x))

    return make_solver("bome", settings, advance)
