"""Solvers that move all variables once an iteration: SOBA, SABA, FSLA."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from gyri.numerics.validation import check_option, check_scalar

from ..directions import Side, add, all_directions, axpy, subtract
from ..iteration import Iteration, make_settings, make_solver
from ..saga import SagaMemory, estimate, ravel, remember, unravel
from ..types import BilevelSolver, BilevelState

HALF = (0.5, 0.5, 0.5)
CONSTANT = (0.0, 0.0, 0.0)
INIT_MEMORIES = ("zero", "full")


def soba(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    inner_opt: Any = 0.1,
    outer_opt: Any = 0.1,
    v_opt: Any = None,
    batch_size: int | str = 64,
    sampling: str = "shuffle",
    v_radius: Any = None,
    decay: Any = None,
    axis_name: str | None = None,
) -> BilevelSolver:
    r"""Stochastic bilevel algorithm: one stochastic gradient step of z, v and x at once.

    With the directions of one inner block i and one outer block j,
    :math:`z \leftarrow z - \rho_t \nabla_1 G_i`, :math:`v \leftarrow v - \rho_t(\nabla^2_{11} G_i v + \nabla_1 F_j)`,
    :math:`x \leftarrow x - \gamma_t (\nabla^2_{21} G_i v + \nabla_2 F_j)`, all evaluated at the same point.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        ``fun(z, x, batch) -> scalar``: G and F, means over the rows of the batch, a pytree of arrays (None without
        data).
    inner_opt, outer_opt : float, schedule or optax.GradientTransformation
        Of z and of x. A number is a step that decreases as `decay` says; it may be traced. A schedule gives the step at
        the outer iteration t.
    v_opt : like `inner_opt`, optional
        Of v; as `inner_opt` by default.
    batch_size : int or "full"
        Rows of a block; data are cut once into blocks of consecutive rows, the last of which may be shorter.
    sampling : {"shuffle", "iid", "cyclic"}
        Each block once an epoch in a new order, uniform with replacement, or one after the other.
    v_radius : float, optional
        Keep v in the ball of this radius.
    decay : float or tuple of three, optional
        Numbers become ``step * (1 + t)**-decay``, of z, v and x; by default 1/2 each.
    axis_name : str, optional
        Mapped axis over which the rows of every block are split, `batch_size` being the rows of one device: see
        :func:`run_sharded`.

    Returns
    -------
    BilevelSolver
        `init` and `update`.

    Raises
    ------
    ValueError
        Wrong options; at `init`: empty or non-finite data, leading axes that disagree, more rows asked for than there
        are, a loss that is no scalar. TypeError for variables that are no floating numbers.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, soba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> solver = soba(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=2000)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms, algorithm 1 and section 3.1.
    """
    settings = make_settings(
        inner_fun,
        outer_fun,
        HALF,
        inner_opt=inner_opt,
        outer_opt=outer_opt,
        v_opt=v_opt,
        batch_size=batch_size,
        sampling=sampling,
        decay=decay,
        v_radius=v_radius,
        axis_name=axis_name,
    )

    def advance(it: Iteration) -> BilevelState:
        z, v, x = it.state.z, it.state.v, it.state.x
        directions = all_directions(it.inner, it.outer, (it.draw_inner(), it.draw_outer()), z, v, x)
        it.count(3, 2)
        return it.finish(it.move_z(z, directions[0]), it.move_v(v, directions[1]), it.move_x(x, directions[2]))

    return make_solver("soba", settings, advance)


def saba(
    inner_fun: Callable,
    outer_fun: Callable,
    *,
    inner_opt: Any = 0.1,
    outer_opt: Any = 0.1,
    v_opt: Any = None,
    batch_size: int | str = 64,
    sampling: str = "shuffle",
    init_memory: str = "zero",
    v_radius: Any = None,
    decay: Any = None,
    axis_name: str | None = None,
) -> BilevelSolver:
    r"""Stochastic average bilevel algorithm: SOBA whose directions are SAGA estimates, so that constant steps converge.

    What every block gave last is remembered; an estimate is the fresh value of the drawn block, minus what it gave
    last, plus the average of all memories. The cost of an iteration does not depend on the number of samples.

    Parameters
    ----------
    inner_fun, outer_fun, inner_opt, outer_opt, v_opt, batch_size, sampling, v_radius, axis_name
        As of :func:`soba`.
    init_memory : {"zero", "full"}
        Memory at the start: zeros, cheap and biased during the first epoch, or one pass over the data.
    decay : float or tuple of three, optional
        As of :func:`soba`; by default steps are constant.

    Returns
    -------
    BilevelSolver
        Its states hold n_inner_blocks (2 p + d) + n_outer_blocks (p + d) numbers of memory, p and d the sizes of z and
        x; see :func:`memory_tables`.

    Raises
    ------
    ValueError, TypeError
        As of :func:`soba`.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, saba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=4000)
    >>> bool(abs(problem.gradient(result.x)).max() < 1e-4)
    True

    References
    ----------
    Dagréou, Ablin, Vaiter, Moreau (2022), algorithm 1 and section 3.2.
    """
    settings = make_settings(
        inner_fun,
        outer_fun,
        CONSTANT,
        inner_opt=inner_opt,
        outer_opt=outer_opt,
        v_opt=v_opt,
        batch_size=batch_size,
        sampling=sampling,
        decay=decay,
        v_radius=v_radius,
        axis_name=axis_name,
    )
    check_option(init_memory, "init_memory", INIT_MEMORIES)

    def advance(it: Iteration) -> BilevelState:
        z, v, x = it.state.z, it.state.v, it.state.x
        i, j = it.draw_inner(), it.draw_outer()
        inner_row = ravel(*it.inner.products(i, z, v, x))
        outer_row = ravel(*it.outer.grads(j, z, x))
        following = [sampler.block for sampler in it.samplers]
        inner_row, inner = estimate(it.state.extra.inner, inner_row, i, following[0])
        outer_row, outer = estimate(it.state.extra.outer, outer_row, j, following[1])
        gradient, product, cross = unravel(inner_row, z, z, x)
        outer_z, outer_x = unravel(outer_row, z, x)
        it.count(3, 2)
        return it.finish(
            it.move_z(z, gradient),
            it.move_v(v, add(product, outer_z)),
            it.move_x(x, add(cross, outer_x)),
            SagaMemory(inner, outer),
        )

    def start(inner: Side, outer: Side, state: BilevelState) -> tuple[SagaMemory, tuple[int, int]]:
        return remember(inner, outer, state, init_memory)

    return make_solver("saba", settings, advance, start)


def fsla(inner_fun: Callable, outer_fun: Callable, *, eta: Any = None, **options: Any) -> BilevelSolver:
    """Fully single loop algorithm: one step of z, then of v, then of x along a momentum direction.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        As of :func:`soba`.
    eta : float, optional
        The momentum forgets ``eta / sqrt(1 + t)`` of itself; by default `inner_opt`, which has to be a number then.
    **options
        As of :func:`soba`; steps decrease with power 1/2.

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
    >>> solver = solvers.fsla(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> result = minimize(solver, problem.z0, problem.x0, problem.inner_data, problem.outer_data, num_steps=2000)
    >>> bool(problem.value(result.x) < problem.value(problem.x0))
    True

    References
    ----------
    Li, Gu, Huang (2022), A fully single loop algorithm for bilevel optimization without Hessian inverse.
    """
    settings = make_settings(inner_fun, outer_fun, HALF, **options)
    rate = settings.rules[0].value if eta is None else check_scalar(eta, "eta", minimum=0, strict=True)
    if rate is None:
        raise ValueError("eta: expected a number, since inner_opt is none, got None")

    def advance(it: Iteration) -> BilevelState:
        z, v, x = it.state.z, it.state.v, it.state.x
        momentum, x_before = it.state.extra
        z_new = it.move_z(z, it.inner.grad_z(it.draw_inner(), z, x))
        i, j = it.draw_inner(), it.draw_outer()
        v_new = it.move_v(v, add(it.inner.hvp(i, z_new, v, x), it.outer.grad_z(j, z_new, x)))
        j, i = it.draw_outer(), it.draw_inner()
        fresh = add(it.outer.grad_x(j, z_new, x), it.inner.cross(i, z_new, v_new, x))
        stale = add(it.outer.grad_x(j, z, x_before), it.inner.cross(i, z, v, x_before))
        kept = jnp.where(it.t == 0, 0, 1 - rate / jnp.sqrt(1.0 + it.t))
        momentum = axpy(kept, subtract(momentum, stale), fresh)
        it.count(4, 3)
        return it.finish(z_new, v_new, it.move_x(x, momentum), (momentum, x))

    def start(inner: Side, outer: Side, state: BilevelState) -> tuple[Any, tuple[int, int]]:
        return (subtract(state.x, state.x), state.x), (0, 0)

    return make_solver("fsla", settings, advance, start)
