"""Running a solver: `run` inside compiled code, `minimize` from the host, `run_sharded` over several devices."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from gyri.numerics.loops import scan_chunks
from gyri.numerics.validation import as_key, check_positive_int

from .iteration import check_data
from .programs import compiled
from .types import BilevelSolver, BilevelState, Result


def run(solver: BilevelSolver, state: BilevelState, inner_data: Any, outer_data: Any, num_steps: int) -> BilevelState:
    """Outer iterations in one compiled loop; usable under `jit` and `vmap`.

    Parameters
    ----------
    solver : BilevelSolver
        Made once: a new one is compiled anew.
    state : BilevelState
        From `solver.init`, or from a previous run.
    inner_data, outer_data : pytree of Array or None
        As given to `solver.init`.
    num_steps : int
        Iterations, static.

    Returns
    -------
    BilevelState
        The last state. ``vmap(lambda rho: run(saba(g, f, inner_opt=rho), ...).x)`` makes a grid of step sizes one call.

    Raises
    ------
    ValueError
        ``num_steps < 1``.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import problems, run, saba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> data = (problem.inner_data, problem.outer_data)
    >>> solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> state = run(solver, solver.init(0, problem.z0, problem.x0, *data), *data, num_steps=10)
    >>> int(state.step), state.calls.tolist()
    (10, [30, 20])
    """
    num_steps = check_positive_int(num_steps, "num_steps")
    return compiled(_run, (solver.update,), num_steps)(state, inner_data, outer_data)


def _run(update: Callable, num_steps: int, state: BilevelState, inner_data: Any, outer_data: Any) -> BilevelState:
    return jax.lax.fori_loop(0, num_steps, lambda _, state: update(state, inner_data, outer_data), state)


def _step(
    update: Callable, state: BilevelState, i: Array, inner_data: Any, outer_data: Any
) -> tuple[BilevelState, None]:
    return update(state, inner_data, outer_data), None


def is_finite(state: BilevelState) -> Array:
    """Whether all variables are."""
    leaves = jax.tree.leaves((state.z, state.v, state.x))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def has_diverged(state: BilevelState) -> Array:
    """Whether some variable is not finite."""
    return ~is_finite(state)


def minimize(
    solver: BilevelSolver,
    z0: PyTree,
    x0: PyTree,
    inner_data: Any,
    outer_data: Any,
    *,
    num_steps: int,
    key: Any = None,
    eval_every: int | None = None,
    metrics: Callable | None = None,
    callback: Callable | None = None,
    progress: bool = False,
    donate: bool = True,
) -> Result:
    """Run a solver from the host, and record how it goes.

    Parameters
    ----------
    solver : BilevelSolver
        Such as :func:`saba` makes. To go on from an earlier result, give `result.state` to :func:`run`.
    z0, x0 : pytree of Array
        Start, float32 or float64; they are copied.
    inner_data, outer_data : pytree of Array or None
        Samples along the leading axes.
    num_steps : int
        Most outer iterations.
    key : PRNG key or int, optional
        Of the blocks and of random solvers; 0 by default.
    eval_every : int, optional
        Iterations between two records; by default only start and end are recorded.
    metrics : callable, optional
        ``metrics(z, v, x) -> dict of scalars``, compiled; recorded as well.
    callback : callable, optional
        ``callback(step, metrics_dict)`` on the host after each record but the first; returning True stops.
    progress : bool
        Show a progress bar.
    donate : bool
        Let the loop overwrite its own state, which spares a copy of SABA's memory.

    Returns
    -------
    Result
        `z`, `v`, `x`, `state`, `history`. Ctrl-C ends the loop after the last complete stretch. A run that diverges
        ends with a warning, and its history shows it.

    Raises
    ------
    ValueError, TypeError
        As of :func:`soba`; ``num_steps < 1``.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import minimize, problems, saba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> result = minimize(
    ...     saba(problem.inner_fun, problem.outer_fun, batch_size=16),
    ...     *(problem.z0, problem.x0, problem.inner_data, problem.outer_data),
    ...     num_steps=200,
    ...     eval_every=100,
    ...     metrics=lambda z, v, x: {"h": problem.value(x)},
    ... )
    >>> result.history["step"].tolist(), len(result.history["h"])
    ([0, 100, 200], 3)
    """
    num_steps = check_positive_int(num_steps, "num_steps")
    chunk = num_steps if eval_every is None else check_positive_int(eval_every, "eval_every")
    inner_data, outer_data = check_data(inner_data, "inner_data", "full"), check_data(outer_data, "outer_data", "full")
    state = solver.init(0 if key is None else key, z0, x0, inner_data, outer_data)
    # The loop overwrites its state: nothing in it may be the caller's, nor the same buffer twice.
    state = jax.tree.map(jnp.copy, state)
    measure = None if metrics is None else jax.jit(metrics)
    records: list[dict[str, Any]] = []
    clock = [0.0, time.perf_counter()]  # seconds without metrics; since when

    def record(state: BilevelState) -> dict[str, Any]:
        clock[0] += time.perf_counter() - clock[1]
        values = {} if measure is None else {name: np.asarray(u) for name, u in measure(*state[1:4]).items()}
        calls = np.asarray(state.calls)
        about = {"step": int(state.step), "calls_inner": calls[0], "calls_outer": calls[1], "time_s": clock[0]}
        records.append(about | values)
        clock[1] = time.perf_counter()
        return values

    def after_chunk(n_done: int, state: BilevelState, _: Any) -> bool:
        values = record(state)
        return callback is not None and bool(callback(n_done, values))

    record(state)
    state, _ = scan_chunks(
        MethodType(_step, solver.update),  # the same for the same solver, which no cache keeps alive
        state,
        num_steps,
        args=(inner_data, outer_data),
        chunk=chunk,
        desc=solver.name,
        progress=progress,
        stop=has_diverged,
        callback=after_chunk,
        donate=donate,
    )
    if not bool(is_finite(state)):
        warnings.warn(
            f"{solver.name} diverged before step {int(state.step)}: use smaller steps (inner_opt, v_opt, outer_opt)",
            RuntimeWarning,
            stacklevel=2,
        )
    history = {name: np.array([row[name] for row in records]) for name in records[0]}
    return Result(state.z, state.v, state.x, state, history)


def split_rows(data: Any, n_parts: int, batch_size: int | str, name: str = "data") -> Any:
    """Reorder rows so that each of n equal parts holds its share of every block.

    Parameters
    ----------
    data : pytree of Array, each of shape (n_rows, ...)
        Samples.
    n_parts : int
        Number of devices.
    batch_size : int or "full"
        Rows of a block, over all devices.
    name : str
        Of the data, for messages.

    Returns
    -------
    pytree of Array
        The same rows, part after part.

    Raises
    ------
    ValueError
        Rows or a block that the parts cannot share equally.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> split_rows(jnp.arange(8), 2, 4).tolist()
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    n = jax.tree.leaves(data)[0].shape[0]
    size = n if batch_size == "full" else int(batch_size)
    if n % n_parts or size % n_parts:
        raise ValueError(f"{name}: expected rows ({n}) and batch_size ({size}) to be multiples of {n_parts} devices")
    blocks = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    order = np.concatenate([block.reshape(n_parts, -1)[part] for part in range(n_parts) for block in blocks])
    return jax.tree.map(lambda a: jnp.asarray(a)[order], data)


def run_sharded(
    make: Callable[..., BilevelSolver],
    key: Any,
    z0: PyTree,
    x0: PyTree,
    inner_data: Any,
    outer_data: Any,
    *,
    batch_size: int,
    num_steps: int,
    mesh: Mesh,
) -> BilevelState:
    """Run a solver with the rows of every block split over the devices of a mesh.

    Each device holds its part of the data and of every block; gradients are averaged over devices, and variables are
    the same everywhere. The result is that of one device up to rounding.

    Parameters
    ----------
    make : callable
        ``make(batch_size=..., axis_name=...) -> BilevelSolver``, such as ``partial(saba, inner_fun, outer_fun)``.
    key, z0, x0, inner_data, outer_data
        As of `solver.init`. Numbers of rows must be multiples of the number of devices.
    batch_size : int
        Rows of a block over all devices, a multiple of their number.
    num_steps : int
        Outer iterations.
    mesh : jax.sharding.Mesh
        Devices along one axis.

    Returns
    -------
    BilevelState
        The last state, the same on all devices.

    Raises
    ------
    ValueError
        A mesh with several axes, rows that the devices cannot share equally, and as of `solver.init`.

    Examples
    --------
    >>> from functools import partial
    >>> import jax
    >>> from gyri.saba import problems, run_sharded, saba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> state = run_sharded(
    ...     partial(saba, problem.inner_fun, problem.outer_fun),
    ...     0,
    ...     *(problem.z0, problem.x0, problem.inner_data, problem.outer_data),
    ...     batch_size=16,
    ...     num_steps=100,
    ...     mesh=jax.make_mesh((1,), ("rows",)),
    ... )
    >>> int(state.step)
    100
    """
    num_steps = check_positive_int(num_steps, "num_steps")
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh: expected one axis, got {mesh.axis_names}")
    (axis,), n_devices = mesh.axis_names, mesh.size
    # Checked as on one device: inside the mapped function only parts are seen.
    make(batch_size=batch_size).init(key, z0, x0, inner_data, outer_data)
    rows, same = PartitionSpec(axis), PartitionSpec()
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    sides = ((inner_data, "inner_data"), (outer_data, "outer_data"))
    data = [place(split_rows(side, n_devices, batch_size, name), rows) for side, name in sides]
    solver = make(batch_size=batch_size // n_devices, axis_name=axis)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(same, same, same, rows, rows), out_specs=same)
    def everywhere(key: Any, z0: PyTree, x0: PyTree, inner_data: Any, outer_data: Any) -> BilevelState:
        state = solver.init(key, z0, x0, inner_data, outer_data)
        return _run(solver.update, num_steps, state, inner_data, outer_data)

    return everywhere(*place((as_key(key), z0, x0), same), *data)
