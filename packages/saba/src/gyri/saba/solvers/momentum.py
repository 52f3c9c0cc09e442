"""Solvers with recursive momentum (STORM) in z and x: MRBO, SUSTAIN."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from gyri.numerics.validation import check_positive_int, check_scalar

from ..directions import Side, add, axpy, subtract
from ..iteration import Iteration, make_settings, make_solver
from ..rules import need_size
from ..types import BilevelSolver, BilevelState
from .double_loop import SERIES
from .linear_system import neumann, one_term

THIRD = (1 / 3, 0.0, 1 / 3)


def mrbo(
    inner_fun: Callable, outer_fun: Callable, *, n_linear_steps: int = 10, eta: Any = 0.5, **options: Any
) -> BilevelSolver:
    """Momentum-based recursive bilevel optimizer: momentum in z and x, v by Neumann series at this and the last point.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_linear_steps : int
        Products of the series, whose terms `v_opt`, a number or a schedule, scales.
    eta : float
        The momentum forgets ``eta * (1 + t)**(-2/3)`` of itself.
    **options
        As of :func:`soba`; steps of z and x decrease with power 1/3.

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
    >>> solver = solvers.mrbo(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=200)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Yang, Ji, Liang (2021), Provably faster algorithms for bilevel optimization, algorithm 1.
    """
    return make_momentum("mrbo", neumann, inner_fun, outer_fun, n_linear_steps, eta, options)


def sustain(
    inner_fun: Callable, outer_fun: Callable, *, n_linear_steps: int = 10, eta: Any = 0.5, **options: Any
) -> BilevelSolver:
    """Single-timescale double-momentum method SUSTAIN: as MRBO, with one random term of the Neumann series.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_linear_steps : int
        Terms of the series of which one is drawn; `v_opt`, a number or a schedule, scales them.
    eta : float
        The momentum forgets ``eta * (1 + t)**(-2/3)`` of itself.
    **options
        As of :func:`soba`; steps of z and x decrease with power 1/3.

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
    >>> solver = solvers.sustain(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=200)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Khanduri, Zeng, Hong, Wai, Wang, Yang (2021), A near-optimal algorithm for stochastic bilevel optimization via
    double-momentum.
    """
    return make_momentum("sustain", one_term, inner_fun, outer_fun, n_linear_steps, eta, options)


def make_momentum(
    name: str,
    solve: Callable,
    inner_fun: Callable,
    outer_fun: Callable,
    n_linear_steps: int,
    eta: Any,
    options: dict[str, Any],
) -> BilevelSolver:
    """MRBO or SUSTAIN, which differ in how they solve for v."""
    settings = make_settings(inner_fun, outer_fun, THIRD, **options)
    need_size(settings.rules[1], "v_opt", SERIES)
    n_linear = check_positive_int(n_linear_steps, "n_linear_steps")
    eta = check_scalar(eta, "eta", minimum=0, strict=True)

    def advance(it: Iteration) -> BilevelState:
        now, (momentum_z, momentum_x, before) = (it.state.z, it.state.x), it.state.extra
        # At the first iteration the momentum is the fresh estimate.
        kept = jnp.where(it.t == 0, 0, 1 - eta * (1.0 + it.t) ** (-2 / 3))
        i = it.draw_inner()
        fresh, stale = it.inner.grad_z(i, *now), it.inner.grad_z(i, *before)
        momentum_z = axpy(kept, subtract(momentum_z, stale), fresh)
        j = it.draw_outer()
        (r, s), (r_before, s_before) = it.outer.grads(j, *now), it.outer.grads(j, *before)
        v, v_before = solve(it, [now, before], [r, r_before], n_linear)
        fresh = add(s, it.inner.cross(i, now[0], v, now[1]))
        stale = add(s_before, it.inner.cross(i, before[0], v_before, before[1]))
        momentum_x = axpy(kept, subtract(momentum_x, stale), fresh)
        it.count(4, 4)
        z, x = it.move_z(now[0], momentum_z), it.move_x(now[1], momentum_x)
        return it.finish(z, v, x, (momentum_z, momentum_x, now))

    def start(inner: Side, outer: Side, state: BilevelState) -> tuple[Any, tuple[int, int]]:
        zero = lambda tree: subtract(tree, tree)
        return (zero(state.z), zero(state.x), (state.z, state.x)), (0, 0)

    return make_solver(name, settings, advance, start)
