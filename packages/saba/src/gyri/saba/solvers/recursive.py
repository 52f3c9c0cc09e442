"""Variance reduction by full gradients now and then: SRBA, SVRG, VRBO."""

from collections.abc import Callable
from typing import Any

from gyri.numerics.validation import check_positive_int, check_scalar

from ..directions import Side, add, all_directions, subtract
from ..iteration import Iteration, make_settings, make_solver
from ..rules import need_size
from ..types import BilevelSolver, BilevelState
from .double_loop import SERIES
from .linear_system import full_neumann, neumann


def period(it: Iteration, fraction: Any) -> int:
    """Iterations from one full gradient to the next: a fraction of the number of blocks."""
    size = max(it.inner.batch_size, it.outer.batch_size)
    return max(1, int(fraction * (it.inner.n_samples + it.outer.n_samples) / size))


def full_directions(it: Iteration, z: Any, v: Any, x: Any) -> tuple:
    """The three directions over all samples."""
    it.count(3 * it.inner.n_blocks, 2 * it.outer.n_blocks)
    return all_directions(it.inner, it.outer, (None, None), z, v, x)


def difference(it: Iteration, base: tuple, now: tuple, before: tuple) -> tuple:
    """Directions at one point that are known, plus the change from there to another over one block of each side."""
    blocks = (it.draw_inner(), it.draw_outer())
    it.count(6, 4)
    fresh, stale = (all_directions(it.inner, it.outer, blocks, *point) for point in (now, before))
    return add(base, subtract(fresh, stale))


def no_memory(inner: Side, outer: Side, state: BilevelState) -> tuple[Any, tuple[int, int]]:
    """Directions of zero at the start, which the first iteration replaces."""
    point = (state.z, state.v, state.x)
    return (subtract(point, point), point), (0, 0)


def srba(inner_fun: Callable, outer_fun: Callable, *, period_frac: Any = 0.5, **options: Any) -> BilevelSolver:
    """Stochastic recursive bilevel algorithm: SARAH in all three variables.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    period_frac : float
        Full directions every ``period_frac * (n + m) / batch_size`` iterations.
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
    >>> solver = solvers.srba(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=4000)
    >>> bool(abs(problem.gradient(result.x)).max() < 1e-4)
    True

    References
    ----------
    Dagréou, Moreau, Vaiter, Ablin (2024), A lower bound and a near-optimal algorithm for bilevel empirical risk
    minimization.
    """
    return make_reduced("srba", True, inner_fun, outer_fun, period_frac, options)


def bio_svrg(inner_fun: Callable, outer_fun: Callable, *, period_frac: Any = 0.5, **options: Any) -> BilevelSolver:
    """SVRG in all three variables: full directions at a snapshot, corrected by the change from there over one block.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    period_frac : float
        A new snapshot every ``period_frac * (n + m) / batch_size`` iterations.
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
    >>> solver = solvers.bio_svrg(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=4000)
    >>> bool(abs(problem.gradient(result.x)).max() < 1e-4)
    True

    References
    ----------
    Johnson, Zhang (2013), Accelerating stochastic gradient descent using predictive variance reduction, applied to the
    framework of Dagréou et al. (2022).
    """
    return make_reduced("bio_svrg", False, inner_fun, outer_fun, period_frac, options)


def make_reduced(
    name: str, recursive: bool, inner_fun: Callable, outer_fun: Callable, period_frac: Any, options: dict[str, Any]
) -> BilevelSolver:
    """SRBA or SVRG: the known directions are those of the last point, or of the snapshot."""
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **options)
    period_frac = check_scalar(period_frac, "period_frac", minimum=0, strict=True)

    def advance(it: Iteration) -> BilevelState:
        now, (known, before) = (it.state.z, it.state.v, it.state.x), it.state.extra

        def everything() -> tuple:
            directions = full_directions(it, *now)
            return directions, (directions, now)

        def change() -> tuple:
            directions = difference(it, known, now, before)
            return directions, (directions, now) if recursive else (known, before)

        directions, extra = it.either(it.t % period(it, period_frac) == 0, everything, change)
        z, v, x = (move(u, d) for move, u, d in zip((it.move_z, it.move_v, it.move_x), now, directions, strict=True))
        return it.finish(z, v, x, extra)

    return make_solver(name, settings, advance, no_memory)


def vrbo(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    n_inner_steps: int = 10,
    n_linear_steps: int = 10,
    period_frac: Any = 0.5,
    **options: Any,
) -> BilevelSolver:
    """Variance-reduced bilevel optimizer: full gradients now and then, recursive differences in an inner loop.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    n_inner_steps : int
        Steps of z.
    n_linear_steps : int
        Products of the Neumann series, whose terms `v_opt`, a number or a schedule, scales.
    period_frac : float
        Full gradients every ``period_frac * (n + m) / batch_size`` iterations.
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
    >>> solver = solvers.vrbo(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=100)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Yang, Ji, Liang (2021), Provably faster algorithms for bilevel optimization, algorithm 2.
    """
    settings = make_settings(inner_fun, outer_fun, (0.0, 0.0, 0.0), **options)
    need_size(settings.rules[1], "v_opt", SERIES)
    n_steps = check_positive_int(n_inner_steps, "n_inner_steps")
    n_linear = check_positive_int(n_linear_steps, "n_linear_steps")
    period_frac = check_scalar(period_frac, "period_frac", minimum=0, strict=True)

    def advance(it: Iteration) -> BilevelState:
        z, x_before = it.state.z, it.state.x

        def everything() -> tuple:
            r, s = it.outer.grads(None, z, x_before)
            v = full_neumann(it, (z, x_before), r, n_linear)
            it.count(2 * it.inner.n_blocks, 2 * it.outer.n_blocks)
            return it.inner.grad_z(None, z, x_before), add(s, it.inner.cross(None, z, v, x_before)), z

        # Directions belong to the point before the last step of z: the next difference starts there.
        along_z, along_x, z_before = it.either(it.t % period(it, period_frac) == 0, everything, lambda: it.state.extra)
        x = it.move_x(x_before, along_x)

        def body(carry: tuple) -> tuple:
            z, before, along_z, along_x, _ = carry
            now, i = (z, x), it.draw_inner()
            along_z = add(along_z, subtract(it.inner.grad_z(i, *now), it.inner.grad_z(i, *before)))
            j = it.draw_outer()
            (r, s), (r_before, s_before) = it.outer.grads(j, *now), it.outer.grads(j, *before)
            v, v_before = neumann(it, [now, before], [r, r_before], n_linear)
            fresh = add(s, it.inner.cross(i, z, v, x))
            stale = add(s_before, it.inner.cross(i, before[0], v_before, before[1]))
            return it.move_z(z, along_z), now, along_z, add(along_x, subtract(fresh, stale)), v

        made = it.calls
        start = (z, (z_before, x_before), along_z, along_x, it.state.v)
        z, (z_before, _), along_z, along_x, v = it.repeat(n_steps, body, start)
        it.calls = made  # the body was traced once, whatever the number of steps
        it.count(n_steps * (2 * n_linear + 4), n_steps * 4)
        return it.finish(z, v, x, (along_z, along_x, z_before))

    def start(inner: Side, outer: Side, state: BilevelState) -> tuple[Any, tuple[int, int]]:
        return (*subtract((state.z, state.x), (state.z, state.x)), state.z), (0, 0)

    return make_solver("vrbo", settings, advance, start)
