"""Red-black locally greedy coordinate descent: half of all segments move one coordinate each, at once."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ScalarLike


class Segments(NamedTuple):
    """Codes or correlations (n_trials, n_pairs, n_times_atom, n_atoms) of the even and the odd segments in time.

    A segment is as long as an atom, so that what two segments of one parity change never overlaps. Atoms come last: one
    row of the atoms' correlations is then one contiguous block.
    """

    even: Array
    odd: Array


def split_segments(x: Array, n_times_atom: int, fill: float | bool = 0) -> Segments:
    """Cut (n_trials, n_atoms, n_positions) into segments, padded to an even number of them."""
    n_trials, n_atoms, n_positions = x.shape
    n_pairs = -(-n_positions // (2 * n_times_atom))
    pad = 2 * n_times_atom * n_pairs - n_positions
    x = jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, pad), (0, 0)), constant_values=fill)
    x = x.reshape(n_trials, n_pairs, 2, n_times_atom, n_atoms)
    return Segments(x[:, :, 0], x[:, :, 1])


def join_segments(x: Segments, n_positions: int) -> Array:
    """Undo `split_segments`."""
    both = jnp.stack(x, 2)
    return jnp.swapaxes(both.reshape(both.shape[0], -1, both.shape[-1])[:, :n_positions], 1, 2)


def gram_windows(G: Array) -> Array:
    """Correlations of the atoms as [atom that moves, lag, atom], with as many zeros around as a segment is long."""
    n = (G.shape[-1] + 1) // 2
    return jnp.pad(jnp.swapaxes(G, 1, 2), ((0, 0), (n, n), (0, 0)))


def shrink(x: Array, threshold: Array, positive: bool) -> Array:
    """Minimiser of one coordinate's problem."""
    return jnp.maximum(x - threshold, 0) if positive else x - jnp.clip(x, -threshold, threshold)


def best_moves(
    z: Array, beta: Array, allowed: Array, lam: Array, inverse: Array, positive: bool
) -> tuple[Array, Array, Array]:
    """Position in each segment of the coordinate that moves furthest, by how much, and its one-hot form."""
    moves = jnp.where(allowed, shrink(z + beta * inverse, lam * inverse, positive) - z, 0)
    flat = moves.reshape(*moves.shape[:2], -1)
    size = jnp.abs(flat)
    # Two passes that vectorise: the joint reduction of argmax does not.
    order = jnp.arange(flat.shape[-1], dtype=jnp.int32)
    place = jnp.where(size == size.max(-1, keepdims=True), order, flat.shape[-1] - 1).min(-1)
    delta = jnp.take_along_axis(flat, place[..., None], -1)[..., 0]
    return place, delta, (order == place[..., None]).reshape(moves.shape)


def half_sweep(
    z: Array,
    beta: Array,
    other: Array,
    allowed: Array,
    *,
    windows: Array,
    lam: Array,
    inverse: Array,
    positive: bool,
    odd: bool,
) -> tuple[Array, Array, Array, Array]:
    """Move the best coordinate of every segment of one parity; `other` are the correlations of the other parity.

    An exact joint minimisation over the coordinates chosen, since no two of them interact.
    """
    n, n_atoms = z.shape[2:]
    place, delta, hot = best_moves(z, beta, allowed, lam, inverse, positive)
    z = jnp.where(hot, z + delta[..., None, None], z)
    start = jnp.stack([place % n_atoms, n - 1 - place // n_atoms], -1)
    change = jax.lax.gather(
        windows,
        start,
        jax.lax.GatherDimensionNumbers(offset_dims=(2, 3), collapsed_slice_dims=(0,), start_index_map=(0, 1)),
        slice_sizes=(1, 3 * n, n_atoms),
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    change = change * delta[..., None, None]
    left, own, right = change[:, :, :n], change[:, :, n : 2 * n], change[:, :, 2 * n :]
    # The segment after an even one is of the same pair, the one before it of the pair before; odd ones mirror this.
    near, far, lost = (
        (left, right[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
        if odd
        else (
            right,
            left[:, 1:],
            ((0, 0), (0, 1), (0, 0), (0, 0)),
        )
    )
    return z, beta - own, other - near - jnp.pad(far, lost), delta


@partial(jax.jit, static_argnames=("positive",))
def coordinate_descent(
    z: Array,
    beta: Array,
    G: Array,
    lam: Array,
    allowed: Array | None,
    n_sweeps: ScalarLike,
    stop: Array,
    *,
    positive: bool,
) -> tuple[Array, Array]:
    """Sweep until the largest move is small, or `n_sweeps` times.

    Parameters
    ----------
    z, beta : Array, shape (n_trials, n_atoms, n_positions)
        Codes and correlations of the atoms with the residual.
    G : Array, shape (n_atoms, n_atoms, 2 * n_times_atom - 1)
        Correlations of the atoms.
    lam : Array, shape (n_atoms,)
        Levels of sparsity.
    allowed : Array of bool, shape of z, or None
        Codes that may move; all by default.
    n_sweeps : int
        Most sweeps.
    stop : Array, shape (n_atoms,)
        Size of a move, times the squared norm of its atom, that counts as none.
    positive : bool
        Non-negative codes.

    Returns
    -------
    z : Array
        The codes.
    n_iter : Array, shape ()
        Sweeps made.
    """
    n = (G.shape[-1] + 1) // 2
    squared = jnp.diagonal(G[..., n - 1])
    inverse = jnp.where(squared > 0, 1 / jnp.where(squared > 0, squared, 1), 1)
    windows = gram_windows(G)
    free = split_segments(jnp.ones(z.shape, bool) if allowed is None else allowed, n, False)
    step = partial(half_sweep, windows=windows, lam=lam, inverse=inverse, positive=positive)
    # Moves are compared in units of their atom's threshold.
    limit = jnp.min(jnp.where(squared > 0, stop * inverse, jnp.inf))

    def sweep(state: tuple) -> tuple:
        i, z, beta, _ = state
        z_even, even, odd, moved = step(z.even, beta.even, beta.odd, free.even, odd=False)
        z_odd, odd, even, moved_odd = step(z.odd, odd, even, free.odd, odd=True)
        largest = jnp.maximum(jnp.abs(moved).max(), jnp.abs(moved_odd).max())
        return i + 1, Segments(z_even, z_odd), Segments(even, odd), largest > limit

    state = (jnp.zeros((), jnp.int32), split_segments(z, n), split_segments(beta, n), jnp.ones((), bool))
    n_iter, segments, _, _ = jax.lax.while_loop(lambda s: (s[0] < n_sweeps) & s[3], sweep, state)
    return join_segments(segments, z.shape[-1]), n_iter
