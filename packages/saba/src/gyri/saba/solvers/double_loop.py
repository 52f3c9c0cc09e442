"""Solvers with loops inside an iteration, or that solve for v anew: AmIGO, stocBiO, BSA, TTSA."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from gyri.numerics.validation import check_positive_int

from ..directions import add
from ..iteration import Iteration, make_settings, make_solver
from ..rules import need_size
from ..types import BilevelSolver, BilevelState
from .linear_system import neumann, one_term

SERIES = "it scales the terms of a Neumann series"


def descend(it: Iteration, z: PyTree, x: PyTree, n_steps: int) -> PyTree:
    """Stochastic gradient steps of z."""
    it.count(n_steps)
    return it.repeat(n_steps, lambda z: it.move_z(z, it.inner.grad_z(it.draw_inner(), z, x)), z)


def amigo(inner_fun: Callable, outer_fun: Callable, *, n_inner_steps: int = 10, **options: Any) -> BilevelSolver:
    """AmIGO: several steps of z, as many of v from where it was, one of x.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Steps of z, and of v.
    **options
        As of :func:`soba`; steps are constant by default.

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
    >>> solver = solvers.amigo(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=100)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Arbel, Mairal (2022), Amortized implicit differentiation for stochastic bilevel optimization.
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **options)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")

    def advance(it: Iteration) -> BilevelState:
        x = it.state.x
        z = descend(it, it.state.z, x, n_steps)
        outer_z, outer_x = it.outer.grads(it.draw_outer(), z, x)
        improve = lambda v: it.move_v(v, add(it.inner.hvp(it.draw_inner(), z, v, x), outer_z))
        v = it.repeat(n_steps, improve, it.state.v)
        it.count(n_steps + 1, 2)
        return it.finish(z, v, it.move_x(x, add(outer_x, it.inner.cross(it.draw_inner(), z, v, x))))

    return make_solver("amigo", settings, advance)


def stocbio(
    inner_fun: Callable, outer_fun: Callable, *, n_inner_steps: int = 10, n_linear_steps: int = 10, **options: Any
) -> BilevelSolver:
    """Stochastic bilevel optimizer stocBiO: several steps of z, v by a Neumann series, one step of x.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Steps of z.
    n_linear_steps : int
        Products of the series, whose terms `v_opt`, a number or a schedule, scales.
    **options
        As of :func:`soba`; steps are constant by default.

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
    >>> solver = solvers.stocbio(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=100)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced design, algorithm 2.
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **options)
    need_size(settings.rules[1], "v_opt", SERIES)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    n_linear = check_positive_int(n_linear_steps, "n_linear_steps")

    def advance(it: Iteration) -> BilevelState:
        x = it.state.x
        z = descend(it, it.state.z, x, n_steps)
        outer_z, outer_x = it.outer.grads(it.draw_outer(), z, x)
        (v,) = neumann(it, [(z, x)], [outer_z], n_linear)
        it.count(1, 2)
        return it.finish(z, v, it.move_x(x, add(outer_x, it.inner.cross(it.draw_inner(), z, v, x))))

    return make_solver("stocbio", settings, advance)


def bsa(
    inner_fun: Callable, outer_fun: Callable, *, n_inner_steps: int = 10, n_linear_steps: int = 10, **options: Any
) -> BilevelSolver:
    """Bilevel stochastic approximation: v by a random term of a Neumann series, one step of x, several of z.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Steps of z.
    n_linear_steps : int
        Terms of the series of which one is drawn; `v_opt`, a number or a schedule, scales them.
    **options
        As of :func:`soba`; steps of z and x decrease with power 1/2.

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
    >>> solver = solvers.bsa(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=200)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Ghadimi, Wang (2018), Approximation methods for bilevel programming, algorithm 2.
    """
    settings = make_settings(inner_fun, outer_fun, (0.5, 0.0, 0.5), **options)
    need_size(settings.rules[1], "v_opt", SERIES)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    n_linear = check_positive_int(n_linear_steps, "n_linear_steps")

    def advance(it: Iteration) -> BilevelState:
        z, x = it.state.z, it.state.x
        outer_z, outer_x = it.outer.grads(it.draw_outer(), z, x)
        (v,) = one_term(it, [(z, x)], [outer_z], n_linear)
        x = it.move_x(x, add(outer_x, it.inner.cross(it.draw_inner(), z, v, x)))
        it.count(1, 2)
        return it.finish(descend(it, z, x, n_steps), v, x)

    return make_solver("bsa", settings, advance)


def ttsa(inner_fun: Callable, outer_fun: Callable, *, n_linear_steps: int = 10, **options: Any) -> BilevelSolver:
    """Two-timescale stochastic approximation: one step of z, v by a random term of a Neumann series, one step of x.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_linear_steps : int
        Terms of the series of which one is drawn; `v_opt`, a number or a schedule, scales them.
    **options
        As of :func:`soba`; steps of z decrease with power 2/5, of x with 3/5.

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
    >>> solver = solvers.ttsa(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=400)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Hong, Wai, Wang, Yang (2020), A two-timescale framework for bilevel optimization.
    """
    settings = make_settings(inner_fun, outer_fun, (0.4, 0.0, 0.6), **options)
    need_size(settings.rules[1], "v_opt", SERIES)
    n_linear = check_positive_int(n_linear_steps, "n_linear_steps")

    def advance(it: Iteration) -> BilevelState:
        x, i = it.state.x, it.draw_inner()
        z = it.move_z(it.state.z, it.inner.grad_z(i, it.state.z, x))
        outer_z, outer_x = it.outer.grads(it.draw_outer(), z, x)
        (v,) = one_term(it, [(z, x)], [outer_z], n_linear)
        it.count(2, 2)
        return it.finish(z, v, it.move_x(x, add(outer_x, it.inner.cross(i, z, v, x))))

    return make_solver("ttsa", settings, advance)
