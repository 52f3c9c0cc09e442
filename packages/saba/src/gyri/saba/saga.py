"""SAGA's memory over both objectives: tables of what each block last gave, read and written without copies.

A step reads the row of the block it has drawn, then overwrites it. Within a compiled loop XLA keeps both versions of a
table that is read and then written, which copies all of it at every step. Here the order is the other way round: the
row of this step was read at the end of the step before, after its write, and the table is only written, then read for
the next step (whose block the sampler knows already).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from .directions import Side
from .types import BilevelState


class Memory(NamedTuple):
    """Memory over one objective.

    Attributes
    ----------
    table : Array, shape (n_blocks, size)
        What each block gave last, ravelled.
    mean, low : Array, shape (size,)
        Mean of the table's rows, and the digits that did not fit into it: compensated, it does not drift away from the
        table over millions of steps.
    old : Array, shape (size,)
        The row of the next block.
    """

    table: Float[Array, "*batch n_blocks size"]
    mean: Float[Array, "*batch size"]
    low: Float[Array, "*batch size"]
    old: Float[Array, "*batch size"]


class SagaMemory(NamedTuple):
    """Memory over both objectives.

    Attributes
    ----------
    inner : Memory
        Rows: gradient in z, Hessian times v, cross derivative times v.
    outer : Memory
        Rows: gradients in z and x.
    """

    inner: Memory
    outer: Memory


def ravel(*trees: PyTree) -> Array:
    """Trees as one vector."""
    return jnp.concatenate([ravel_pytree(tree)[0] for tree in trees])


def unravel(row: Array, *like: PyTree) -> tuple[PyTree, ...]:
    """One vector as trees like these."""
    trees, start = [], 0
    for tree in like:
        flat, back = ravel_pytree(tree)
        trees.append(back(row[start : start + flat.size].astype(flat.dtype)))  # z and x may differ in precision
        start += flat.size
    return tuple(trees)


def start_memory(n_blocks: int, index: Int[Array, ""], rows: Any, zero: Array) -> Memory:
    """Memory of zeros, or of the rows of all blocks, computed one after the other."""
    if rows is None:
        table = jnp.zeros((n_blocks, zero.size), zero.dtype)
    else:
        table = jax.lax.map(rows, jnp.arange(n_blocks, dtype=jnp.int32))
    old = jax.lax.dynamic_index_in_dim(table, index, keepdims=False)
    return Memory(table, table.mean(0), jnp.zeros_like(zero), old)


def estimate(memory: Memory, row: Array, index: Array, following: Array) -> tuple[Array, Memory]:
    """Variance-reduced estimate from a fresh row, and the memory with that row in it, ready for the next block.

    Parameters
    ----------
    memory : Memory
        Whose `old` is the row of this block.
    row : Array, shape (size,)
        What this block gives now.
    index, following : Array of int32, shape ()
        This block and the next.

    Returns
    -------
    Array, shape (size,)
        ``row - old + mean``.
    Memory
        After the step.
    """
    table, mean, low, old = memory
    change = row - old
    moved = change / table.shape[0] - low  # Kahan's sum
    new_mean = mean + moved
    table = jax.lax.dynamic_update_index_in_dim(table, row, index, 0)
    following_row = jax.lax.dynamic_index_in_dim(table, following, keepdims=False)
    return change + mean, Memory(table, new_mean, (new_mean - mean) - moved, following_row)


def remember(inner: Side, outer: Side, state: BilevelState, init_memory: str) -> tuple[SagaMemory, tuple[int, int]]:
    """Memory before the first iteration, and the oracle calls that it cost."""
    z, v, x = state.z, state.v, state.x
    zeros = (jnp.zeros_like(ravel(z, z, x)), jnp.zeros_like(ravel(z, x)))
    inner_rows, outer_rows, calls = None, None, (0, 0)
    if init_memory == "full":
        inner_rows = lambda i: ravel(*inner.products(i, z, v, x))
        outer_rows = lambda j: ravel(*outer.grads(j, z, x))
        calls = (3 * inner.n_blocks, 2 * outer.n_blocks)
    memory = SagaMemory(
        start_memory(inner.n_blocks, state.inner_sampler.block, inner_rows, zeros[0]),
        start_memory(outer.n_blocks, state.outer_sampler.block, outer_rows, zeros[1]),
    )
    return memory, calls


def _parts(state: BilevelState, which: str) -> dict[str, PyTree]:
    if not isinstance(state.extra, SagaMemory):
        raise ValueError("state: expected the state of a SABA solver, which has a memory; got one without")
    z, x = state.z, state.x
    inner, outer = getattr(state.extra.inner, which), getattr(state.extra.outer, which)
    split_inner, split_outer = lambda row: unravel(row, z, z, x), lambda row: unravel(row, z, x)
    if which == "table":
        split_inner, split_outer = jax.vmap(split_inner), jax.vmap(split_outer)
    names = ("inner_grad", "hvp", "cross", "outer_grad_z", "outer_grad_x")
    return dict(zip(names, (*split_inner(inner), *split_outer(outer)), strict=True))


def memory_tables(state: BilevelState) -> dict[str, PyTree]:
    """What each block gave when SABA saw it last.

    Parameters
    ----------
    state : BilevelState
        Of :func:`saba`.

    Returns
    -------
    dict
        ``"inner_grad"``, ``"hvp"``, ``"outer_grad_z"`` like z and ``"cross"``, ``"outer_grad_x"`` like x, with a
        leading axis over inner or outer blocks; scaled so that their plain averages estimate the full quantities.

    Raises
    ------
    ValueError
        The state of another solver.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import memory_tables, problems, saba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=32, p=3, d=2)
    >>> solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16)
    >>> state = solver.init(0, problem.z0, problem.x0, problem.inner_data, problem.outer_data)
    >>> {name: table.shape for name, table in memory_tables(state).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'inner_grad': (4, 3), 'hvp': (4, 3), 'cross': (4, 2), 'outer_grad_z': (2, 3), 'outer_grad_x': (2, 2)}
    """
    return _parts(state, "table")


def memory_means(state: BilevelState) -> dict[str, PyTree]:
    """Averages of SABA's tables over blocks.

    Parameters
    ----------
    state : BilevelState
        Of :func:`saba`.

    Returns
    -------
    dict
        Same names as :func:`memory_tables`, without the axis over blocks.

    Raises
    ------
    ValueError
        The state of another solver.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import memory_means, problems, saba
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=32, p=3, d=2)
    >>> solver = saba(problem.inner_fun, problem.outer_fun, batch_size=16, init_memory="full")
    >>> state = solver.init(0, problem.z0, problem.x0, problem.inner_data, problem.outer_data)
    >>> {name: mean.shape for name, mean in memory_means(state).items()}
    {'inner_grad': (3,), 'hvp': (3,), 'cross': (2,), 'outer_grad_z': (3,), 'outer_grad_x': (2,)}
    """
    return _parts(state, "mean")
