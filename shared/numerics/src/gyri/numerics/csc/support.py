"""Exact codes on a small support: a non-negative least-squares problem with a block-tridiagonal matrix.

Two codes interact only when they are less than an atom's length apart. Sorted in time and cut into chunks, the support
gives a matrix whose chunks meet only their neighbours: no matrix ever spans the recording, and the cost is linear.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

CHUNK = 64  # at most about so many codes may lie within one atom's length
MAX_SUPPORT = 1024  # a trial, or a code every 16 positions in long ones
MAX_PIVOTS = 50


class Support(NamedTuple):
    """Coordinates of one trial that may be non-zero, sorted in time, padded to a fixed number."""

    place: Array  # into the codes as (n_positions, n_atoms), out of bounds where padded
    used: Array
    component: Array  # number of the group of codes that interact, directly or through others
    diagonal: Array  # (n_chunks, CHUNK, CHUNK)
    lower: Array  # (n_chunks, CHUNK, CHUNK): rows of the next chunk, columns of this one
    fits: Array  # whether all coordinates were kept, and no chunk meets more than its neighbours


def support_size(n_coordinates: int, n_positions: int) -> int:
    """Slots for the support of one trial, a multiple of the chunk."""
    return CHUNK * -(-min(n_coordinates, max(MAX_SUPPORT, n_positions // 16)) // CHUNK)


def gather_support(chosen: Array, sign: Array, G: Array) -> Support:
    """Sort the coordinates chosen (n_atoms, n_positions) and look up their correlations, times their signs."""
    n_atoms, n_positions = chosen.shape
    n = (G.shape[-1] + 1) // 2
    size = support_size(chosen.size, n_positions)
    flat = chosen.T.reshape(-1)
    (place,) = jnp.nonzero(flat, size=size, fill_value=flat.size)
    used = jnp.arange(size) < flat.sum()
    atom, time = place % n_atoms, place // n_atoms
    # Padding lies far behind the recording and meets nothing.
    time = jnp.where(used, time, n_positions + n * (1 + jnp.arange(size)))
    signs = jnp.where(used, sign.T.reshape(-1).at[place].get(mode="fill", fill_value=1), 1)
    gap = jnp.diff(time) >= n
    component = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(gap, dtype=jnp.int32)])
    crowded = jnp.any(time[CHUNK + 1 :] - time[: -CHUNK - 1] < n) if size > CHUNK + 1 else jnp.zeros((), bool)

    rows = [v.reshape(-1, CHUNK) for v in (atom, time, signs, used)]
    following = [jnp.concatenate([v[1:], v[:1]]) for v in rows]
    following[1] = following[1].at[-1].add(2 * (n_positions + n * (size + 2)))  # the last chunk meets none

    def lookup(row: list[Array], column: list[Array]) -> Array:
        lag = row[1][:, :, None] - column[1][:, None, :]
        values = G[column[0][:, None, :], row[0][:, :, None], jnp.clip(lag, 1 - n, n - 1) + n - 1]
        meets = (jnp.abs(lag) < n) & row[3][:, :, None] & column[3][:, None, :]
        return jnp.where(meets, values * row[2][:, :, None] * column[2][:, None, :], 0)

    fits = (flat.sum() <= size) & ~crowded
    return Support(place, used, component, lookup(rows, rows), lookup(following, rows), fits)


def multiply(support: Support, y: Array) -> Array:
    """Product of the support's matrix with a vector."""
    y = y.reshape(-1, CHUNK)
    above = jnp.einsum("cij,cj->ci", support.lower[:-1], y[:-1], precision="highest")
    below = jnp.einsum("cji,cj->ci", support.lower[:-1], y[1:], precision="highest")
    own = jnp.einsum("cij,cj->ci", support.diagonal, y, precision="highest")
    return (own.at[1:].add(above).at[:-1].add(below)).reshape(-1)


def solve_on(support: Support, free: Array, rhs: Array, ridge: Array) -> Array:
    """Solve the system of the free coordinates, the others being 0, by Cholesky's method chunk by chunk."""
    free = free.reshape(-1, CHUNK)
    rhs = jnp.where(free, rhs.reshape(-1, CHUNK), 0)
    following = jnp.concatenate([free[1:], jnp.zeros_like(free[:1])])
    eye = jnp.eye(CHUNK, dtype=rhs.dtype)
    diagonal = jnp.where(free[:, :, None] & free[:, None, :], support.diagonal, 0)
    diagonal = diagonal + eye * jnp.where(free, ridge, 1)[:, :, None]
    lower = jnp.where(following[:, :, None] & free[:, None, :], support.lower, 0)
    left = partial(jax.lax.linalg.triangular_solve, left_side=True, lower=True)

    def factor(schur: Array, moved: Array, block: Array, coupling: Array, b: Array) -> tuple:
        root = jax.lax.linalg.cholesky(block - schur, symmetrize_input=False)
        # One triangular solve for the coupling and the right-hand side together.
        solved = left(root, jnp.concatenate([coupling.T, (b - moved)[:, None]], 1))
        across, u = solved[:, :-1], solved[:, -1]
        gram = jnp.matmul(across.T, solved, precision="highest")
        return gram[:, :-1], gram[:, -1], root, across, u

    def nothing(*_: Array) -> tuple:
        return jnp.zeros_like(eye), zero, eye, jnp.zeros_like(eye), zero

    def forward(carry: tuple, chunk: tuple) -> tuple:
        busy, *data = chunk
        schur, moved, *factors = jax.lax.cond(busy, factor, nothing, *carry, *data)
        return (schur, moved), (busy, *factors)

    def substitute(following: Array, root: Array, across: Array, u: Array) -> Array:
        b = u - jnp.matmul(across, following, precision="highest")
        return left(root, b[:, None], transpose_a=True)[:, 0]

    def backward(following: Array, chunk: tuple) -> tuple:
        busy, *factors = chunk
        x = jax.lax.cond(busy, substitute, lambda *_: zero, following, *factors)
        return x, x

    zero = jnp.zeros(CHUNK, rhs.dtype)
    factors: tuple
    x: Array
    busy = free.any(1)  # most chunks are empty padding
    _, factors = jax.lax.scan(forward, (jnp.zeros_like(eye), zero), (busy, diagonal, lower, rhs))
    _, x = jax.lax.scan(backward, zero, factors, reverse=True)
    return jnp.where(free, x, 0).reshape(-1)


def pivot(support: Support, start: Array, rhs: Array, ridge: Array, slack: Array) -> Array:
    """Non-negative least squares by block principal pivoting, each component of the support with its own count.

    All wrong coordinates of a component change sides at once while their number falls; after three tries in vain only
    the last of them does, which ends for certain (Kim, Park 2011, Fast nonnegative matrix factorization, algorithm 2).
    """
    size = start.size
    sums = partial(jax.ops.segment_sum, segment_ids=support.component, num_segments=size, indices_are_sorted=True)
    order = jnp.arange(size, dtype=jnp.int32)

    def body(state: tuple) -> tuple:
        i, free, _, fewest, tries, _ = state
        y = solve_on(support, free, rhs, ridge)
        dual = rhs - multiply(support, y)
        wrong = support.used & jnp.where(free, y < 0, dual > slack)
        count = sums(wrong.astype(jnp.int32))
        fewer = count < fewest
        whole = fewer | (tries > 0)
        tries = jnp.where(fewer, 3, jnp.maximum(tries - 1, 0))
        last = jax.ops.segment_max(jnp.where(wrong, order, -1), support.component, size, indices_are_sorted=True)
        change = wrong & (whole[support.component] | (order == last[support.component]))
        return i + 1, free ^ change, y, jnp.minimum(fewest, count), tries, wrong.any()

    most = jnp.full(size, size + 1, jnp.int32)
    state = (
        jnp.zeros((), jnp.int32),
        start,
        jnp.zeros_like(rhs),
        most,
        jnp.full(size, 3, jnp.int32),
        jnp.ones((), bool),
    )
    return jax.lax.while_loop(lambda s: (s[0] < MAX_PIVOTS) & s[5], body, state)[2]


def polish_trial(z: Array, beta: Array, lam: Array, chosen: Array, G: Array, slack: Array) -> tuple[Array, Array]:
    """Minimise the objective of one trial exactly over the coordinates chosen, each keeping its sign.

    Parameters
    ----------
    z, beta : Array, shape (n_atoms, n_positions)
        Codes and correlations of the atoms with the residual.
    lam : Array, shape (n_atoms,)
        Levels of sparsity.
    chosen : Array of bool, shape of z
        Coordinates that may be non-zero, among them all that are.
    G : Array, shape (n_atoms, n_atoms, 2 * n_times_atom - 1)
        Correlations of the atoms.
    slack : Array, shape (n_atoms,)
        Excess of a correlation over its level that counts as none.

    Returns
    -------
    z : Array
        The codes; as they were where the support does not fit.
    fits : Array, shape ()
        Whether it does.
    """
    n_atoms = z.shape[0]
    sign = jnp.where(z != 0, jnp.sign(z), jnp.where(beta < 0, -1, 1).astype(z.dtype))
    support = gather_support(chosen, sign, G)

    def rows(x: Array) -> Array:
        return jnp.where(support.used, x.T.reshape(-1).at[support.place].get(mode="fill", fill_value=0), 0)

    shape = z.shape
    signs = rows(sign)
    y: Array = rows(z) * signs
    gradient = jnp.where(support.used, rows(beta) * signs - rows(jnp.broadcast_to(lam[:, None], shape)), 0)
    # The ridge makes near copies of a smooth atom solvable; as a proximal step from y it moves no solution.
    squared: Array = jnp.diagonal(G[..., (G.shape[-1] - 1) // 2])
    ridge = 100 * jnp.finfo(z.dtype).eps * jnp.max(squared)
    rhs = gradient + multiply(support, y) + ridge * y
    solved = pivot(support, y > 0, rhs, ridge, rows(jnp.broadcast_to(slack[:, None], shape)))
    move = jnp.maximum(solved, 0) - y
    slope = jnp.sum(gradient * move)
    bend = jnp.sum(move * multiply(support, move))
    # The exact step along the move, so that nothing ever rises: 1 but for rounding and unfinished pivoting.
    step = jnp.where(slope >= bend, 1, slope / jnp.where(bend > 0, bend, 1))
    good = support.fits & (slope > 0) & jnp.isfinite(slope) & jnp.isfinite(bend)
    flat = (
        z.T.reshape(-1)
        .at[support.place]
        .set(jnp.where(step >= 1, jnp.maximum(solved, 0), y + step * move) * signs, mode="drop")
    )
    return jnp.where(good, flat.reshape(-1, n_atoms).T, z), support.fits
