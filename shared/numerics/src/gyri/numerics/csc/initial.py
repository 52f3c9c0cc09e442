"""Where dictionary learning starts: atoms drawn from the signal, from noise, or from clusters of its windows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..validation import as_key, check_array, check_option, check_positive_int
from .coordinates import coordinate_descent
from .dictionary import check_window, confine, norms
from .operators import Shaped, check_mask, correlate, gram, largest_correlation, synthesis

GREEDY_SWEEPS, GREEDY_LEVEL = 20, 0.1
KMEANS_STEPS = 10


def window_counts(flags: Array, kernel: Sequence[int]) -> Array:
    """Number of true entries of (n_trials, *times) in each window of the kernel's shape, exact."""
    counts = flags.astype(jnp.int32)
    for axis, n in enumerate(kernel, 1):
        pads = [(0, 0)] * counts.ndim
        pads[axis] = (1, 0)
        total = jnp.pad(jnp.cumsum(counts, axis, dtype=jnp.int32), pads)
        last = total.shape[axis]
        counts = jax.lax.slice_in_dim(total, n, last, axis=axis) - jax.lax.slice_in_dim(total, 0, last - n, axis=axis)
    return counts


def take_windows(signal: Array, place: Array, kernel: tuple[int, ...]) -> Array:
    """Windows (n, n_channels, *kernel) that start at flat places of (n_trials, *positions)."""
    positions = tuple(t - n + 1 for t, n in zip(signal.shape[2:], kernel, strict=True))
    trial, *start = jnp.unravel_index(place, (signal.shape[0], *positions))

    def one(trial: Array, *start: Array) -> Array:
        corner = [trial, jnp.zeros_like(trial), *start]
        return jax.lax.dynamic_slice(signal, corner, (1, signal.shape[1], *kernel))[0]

    return jax.vmap(one)(trial, *start)


def finish(key: Array, atoms: Array, window: Array | None, rank1: bool) -> Array:
    """Windowed atoms of norm 1, of rank one if asked; what has no norm becomes noise."""
    taper = 1 if window is None else jnp.asarray(window, atoms.dtype)
    atoms = atoms * taper
    noise = jax.random.normal(key, atoms.shape, atoms.dtype) * taper
    if rank1:
        atoms, noise = (unbounded_rank1(x) for x in (atoms, noise))
    peak = jnp.max(jnp.abs(atoms), tuple(range(1, atoms.ndim)), keepdims=True)
    atoms = jnp.where(
        peak > 0, atoms / jnp.where(peak > 0, peak, 1), noise
    )  # by its peak first: squares of tiny values
    return atoms / norms(atoms)


def unbounded_rank1(atoms: Array) -> Array:
    """Nearest atoms of rank one, of any norm."""
    size = jnp.maximum(norms(atoms), jnp.finfo(atoms.dtype).tiny)
    return confine(atoms / size, rank1=True) * size


def chunks(key: Array, signal: Array, valid: Array, n_atoms: int, kernel: tuple[int, ...]) -> Array:
    """Random windows, those with the fewest masked samples first and those without any signal last."""
    bad = window_counts(~valid.all(1), kernel)
    empty = window_counts((signal != 0).any(1), kernel) == 0
    draw = jax.random.gumbel(key, bad.shape, jnp.float32)
    score = draw - 1e3 * bad - jnp.where(empty, 1e12, 0).astype(jnp.float32)
    return take_windows(signal, jax.lax.top_k(score.reshape(-1), n_atoms)[1], kernel)


def largest_patch(residual: Array, kernel: tuple[int, ...]) -> Array:
    """Window of the largest energy, as one atom."""
    energy = correlate(jnp.ones((1, 1, *kernel), residual.dtype), jnp.sum(jnp.square(residual), 1, keepdims=True))
    return take_windows(residual, jnp.argmax(energy.reshape(-1))[None], kernel)


def greedily(
    key: Array, signal: Array, valid: Array, n_atoms: int, kernel: tuple[int, ...], window: Array | None, rank1: bool
) -> Array:
    """Atoms one by one: the window of the largest energy that the atoms so far leave."""

    def add(k: Array, state: tuple) -> tuple:
        atoms, residual = state
        atom = finish(jax.random.fold_in(key, k), largest_patch(residual, kernel), window, rank1)
        atoms = jax.lax.dynamic_update_slice_in_dim(atoms, atom, k, 0)
        beta = correlate(atoms, signal)
        lam = jnp.broadcast_to(GREEDY_LEVEL * largest_correlation(atoms, signal), n_atoms)
        start = jnp.zeros_like(beta)
        codes, _ = coordinate_descent(start, beta, gram(atoms), lam, None, GREEDY_SWEEPS, 1e-2 * lam, positive=True)
        return atoms, jnp.where(valid, signal - synthesis(atoms, codes), 0)

    atoms = jnp.zeros((n_atoms, signal.shape[1], *kernel), signal.dtype)
    return jax.lax.fori_loop(0, n_atoms, add, (atoms, signal))[0]


def cluster(key: Array, signal: Array, valid: Array, n_atoms: int, n: int) -> Array:
    """Centres of k-means on windows of unit norm, a third of a window apart, from a k-means++ start."""
    n_trials, n_channels, n_times = signal.shape
    start = jnp.arange(0, n_times - n + 1, max(1, n // 3))
    place = (jnp.arange(n_trials)[:, None] * (n_times - n + 1) + start).reshape(-1)
    windows = take_windows(signal, place, (n,)).reshape(place.size, -1)
    size = jnp.sqrt(jnp.sum(jnp.square(windows), 1))
    clean = window_counts(~valid.all(1), (n,)).reshape(-1)[place] == 0
    useful = size > 0
    useful = jnp.where((useful & clean).any(), useful & clean, useful)
    windows = windows / jnp.where(size > 0, size, 1)[:, None]

    def seed(k: Array, state: tuple) -> tuple:
        centres, distance = state
        odds = jnp.where(useful, distance, 0)
        odds = jnp.where(odds.sum() > 0, odds, useful.astype(odds.dtype))
        logits = jnp.where(odds > 0, jnp.log(jnp.where(odds > 0, odds, 1)), -1e30)
        new = windows[jax.random.categorical(jax.random.fold_in(key, k), logits)]
        away = jnp.maximum(2 - 2 * jnp.matmul(windows, new, precision="highest"), 0)
        return centres.at[k].set(new), jnp.minimum(distance, away)

    def improve(_: Array, centres: Array) -> Array:
        likeness = jnp.matmul(windows, centres.T, precision="highest")
        mine = jax.nn.one_hot(jnp.argmax(likeness, 1), n_atoms, dtype=signal.dtype) * useful[:, None]
        total = jnp.matmul(mine.T, windows, precision="highest")
        length = jnp.sqrt(jnp.sum(jnp.square(total), 1, keepdims=True))
        return jnp.where(length > 0, total / jnp.where(length > 0, length, 1), centres)

    centres = jnp.zeros((n_atoms, windows.shape[1]), signal.dtype)
    far = jnp.full(place.size, 2, signal.dtype)
    centres, _ = jax.lax.fori_loop(0, n_atoms, seed, (centres, far))
    return jax.lax.fori_loop(0, KMEANS_STEPS, improve, centres).reshape(n_atoms, n_channels, n)


@partial(jax.jit, static_argnames=("n_atoms", "kernel", "method", "rank1"))
def initialize(
    key: Array,
    signal: Array,
    mask: Array | None,
    window: Array | None,
    *,
    n_atoms: int,
    kernel: tuple[int, ...],
    method: str,
    rank1: bool,
) -> Array:
    """`init_atoms` without checks."""
    valid = jnp.ones(signal.shape, bool) if mask is None else mask
    draw, noise = jax.random.split(key)
    if method == "chunk":
        atoms = chunks(draw, signal, valid, n_atoms, kernel)
    elif method == "random":
        atoms = jax.random.normal(draw, (n_atoms, signal.shape[1], *kernel), signal.dtype)
    elif method == "greedy":
        return greedily(draw, signal, valid, n_atoms, kernel, window, rank1)
    else:
        atoms = cluster(draw, signal, valid, n_atoms, kernel[0])
    return finish(noise, atoms, window, rank1)


def init_atoms(
    key: Any,
    signal: Shaped,
    n_atoms: int,
    n_times_atom: int | tuple[int, ...],
    *,
    method: str = "chunk",
    mask: Any = None,
    rank1: bool = False,
    window: Any = None,
) -> Float[Array, "{n_atoms} n_channels *kernel"]:
    """Atoms of norm 1 from which dictionary learning may start.

    Parameters
    ----------
    key : int or PRNG key
        Same key, same atoms.
    signal : Array, shape (n_trials, n_channels, n_times, ...)
        Signal; NaN is allowed in masked samples.
    n_atoms : int
        Number of atoms.
    n_times_atom : int or tuple of int
        Length of an atom, or its shape along several axes ("chunk" and "random").
    method : {"chunk", "random", "greedy", "kmeans"}
        Random windows of the signal, those without masked samples first; normal noise; one by one the window of the
        largest energy that the atoms so far do not explain; centres of the signal's windows by k-means.
    mask : Array of bool, optional
        True where a sample is valid; broadcast to the signal.
    rank1 : bool
        Replace each atom by its nearest one of rank one (signals with one axis of time).
    window : Array, shape (n_times_atom,), optional
        Multiplies the atoms before they are normalised.

    Returns
    -------
    Array, shape (n_atoms, n_channels, n_times_atom, ...)
        The atoms, in the signal's dtype. A window without signal becomes noise, so that all have norm 1.

    Raises
    ------
    ValueError
        Unknown method, more atoms than windows, an atom longer than the signal, wrong shapes, non-finite values.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import init_atoms
    >>> init_atoms(0, jnp.full((1, 1, 9), 3.0), n_atoms=1, n_times_atom=4)
    Array([[[0.5, 0.5, 0.5, 0.5]]], dtype=float32)

    References
    ----------
    Arthur, Vassilvitskii (2007), k-means++, section 2.2 (the start of "kmeans").
    """
    key = as_key(key)
    check_option(method, "method", ("chunk", "random", "greedy", "kmeans"))
    n_atoms = check_positive_int(n_atoms, "n_atoms")
    sizes = n_times_atom if isinstance(n_times_atom, tuple) else (n_times_atom,)
    kernel = tuple(check_positive_int(n, "n_times_atom") for n in sizes)
    mask = check_mask(mask, signal)
    if np.ndim(signal) != len(kernel) + 2:
        axes = ", ".join(["n_times"] * len(kernel))
        raise ValueError(f"signal: expected shape (n_trials, n_channels, {axes}), got {np.shape(signal)}")
    if mask is not None:
        signal = jnp.where(mask, signal, 0)
    signal = check_array(signal, "signal")
    if any(n > t for n, t in zip(kernel, signal.shape[2:], strict=True)):
        raise ValueError(f"n_times_atom: expected at most the signal's {signal.shape[2:]} samples, got {n_times_atom}")
    n_windows = signal.shape[0] * int(np.prod([t - n + 1 for t, n in zip(signal.shape[2:], kernel, strict=True)]))
    if n_atoms > n_windows:
        raise ValueError(f"n_atoms: expected at most the signal's {n_windows} windows, got {n_atoms}")
    if len(kernel) > 1 and (method in ("greedy", "kmeans") or rank1 or window is not None):
        what = f"method={method!r}, rank1={rank1}, window={'None' if window is None else 'given'}"
        raise ValueError(f"n_times_atom: expected an integer, as one axis of time is needed with {what}, got {kernel}")
    window = check_window(window, kernel[0])
    return initialize(
        key, jnp.asarray(signal), mask, window, n_atoms=n_atoms, kernel=kernel, method=method, rank1=rank1
    )
