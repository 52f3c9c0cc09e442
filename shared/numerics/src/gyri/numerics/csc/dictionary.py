"""The dictionary step: better atoms for given codes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from ..linalg import power_iteration
from ..optim import fista_momentum
from ..validation import check_array, check_positive_int, check_scalar
from .operators import Shaped, synthesis

Step = Callable[[Array], Array]

DENSE_SIZE = 2048  # largest n_atoms * n_times_atom whose quadratic form is stored as a matrix
SECULAR_STEPS = 8


def norms(atoms: Array) -> Array:
    """Norm of each atom, with its axes kept."""
    axes = tuple(range(1, atoms.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(atoms), axes, keepdims=True))


def project_ball(x: Array, metric: Array | None) -> Array:
    """Nearest point in the unit ball of each row of x, in the metric in which the coordinates weigh 1 / `metric`.

    In another metric than the plain one it is x / (1 + m * metric); Newton's method on 1 / norm - 1, which is nearly
    linear in m, finds the m that gives norm 1.
    """
    size = norms(x)
    if metric is None:
        return x / jnp.maximum(size, 1)
    axes = tuple(range(1, x.ndim))

    def secular(_: Array, m: Array) -> Array:
        shrunk = x / (1 + m * metric)
        square = jnp.sum(jnp.square(shrunk), axes, keepdims=True)
        slope = jnp.sum(jnp.square(shrunk) * metric / (1 + m * metric), axes, keepdims=True)
        step = square * (jnp.sqrt(square) - 1) / jnp.where(slope > 0, slope, 1)
        return jnp.maximum(m + jnp.where(size > 1, step, 0), 0)

    m = jax.lax.fori_loop(0, SECULAR_STEPS, secular, jnp.zeros_like(size))
    shrunk = x / (1 + m * metric)
    return shrunk / jnp.maximum(norms(shrunk), 1)


def minimize_quadratic(
    multiply: Step, rhs: Array, x0: Array, metric: Array | None, n_steps: int, tol: ScalarLike
) -> Array:
    """Minimise <x, multiply(x)> / 2 - <rhs, x> with the rows of x in unit balls; never gives back a worse point.

    FISTA in the metric given, with a restart, then a smaller step, where the value would rise. By linearity the product
    at the extrapolated point is known: each step costs one product, and its value is exact.
    """
    root = jnp.ones((), x0.dtype) if metric is None else jnp.sqrt(metric)
    weight = 1.0 if metric is None else metric
    spread = jnp.cos(jnp.arange(x0.size, dtype=x0.dtype) * 2.4).reshape(x0.shape)  # meets every eigenvector
    bound, _ = power_iteration(lambda v: root * multiply(root * v), spread, n_steps=20)
    bound = 1.05 * bound
    first = 1 / jnp.where(bound > 0, bound, 1)

    def body(state: tuple) -> tuple:
        i, x, product, value, before, product_before, t, step, _ = state
        after = fista_momentum(t)
        momentum = (t - 1) / after
        y = x + momentum * (x - before)
        gradient = product + momentum * (product - product_before) - rhs
        new = project_ball(y - step * weight * gradient, metric)
        product_new = multiply(new)
        value_new = jnp.sum(new * (0.5 * product_new - rhs))
        better = value_new <= value
        moved = jnp.sqrt(jnp.sum(jnp.square(new - x)))
        done = better & (moved <= tol * jnp.sqrt(jnp.sum(jnp.square(x))))
        stuck = ~better & (t <= 1)
        keep = lambda a, b: jnp.where(better, a, b)
        # Refused: the point before becomes the point itself, so that the next step has no momentum.
        return (
            i + 1,
            keep(new, x),
            keep(product_new, product),
            keep(value_new, value),
            x,
            product,
            keep(after, 1),
            jnp.where(stuck, 0.5 * step, step),
            done,
        )

    product = multiply(x0)
    value = jnp.sum(x0 * (0.5 * product - rhs))
    one = jnp.ones((), x0.dtype)
    state = (jnp.zeros((), jnp.int32), x0, product, value, x0, product, one, first, jnp.zeros((), bool))
    return jax.lax.while_loop(lambda s: (s[0] < n_steps) & ~s[-1], body, state)[1]


def toeplitz(C: Array) -> Array:
    """Block Toeplitz matrix [k, t, l, s] of correlations at lag t - s."""
    n = (C.shape[-1] + 1) // 2
    lag = np.arange(n)[:, None] - np.arange(n) + n - 1
    return jnp.swapaxes(C[..., lag], 1, 2)


def statistics_product(C: Array) -> Step:
    """Function that multiplies atoms (n_atoms, n_channels, n_times_atom) by the correlations of the codes."""
    n_atoms, n = C.shape[0], (C.shape[-1] + 1) // 2
    if n_atoms * n <= DENSE_SIZE:
        matrix = toeplitz(C).reshape(n_atoms * n, n_atoms * n)

        def dense(x: Array) -> Array:
            columns = jnp.swapaxes(x, 1, 2).reshape(n_atoms * n, -1)
            product = jnp.matmul(matrix, columns, precision="highest").reshape(n_atoms, n, -1)
            return jnp.swapaxes(product, 1, 2)

        return dense

    # (C . D)_k = sum_l C_kl * D_l: the atoms of a dictionary with one channel a row of C.
    return lambda x: synthesis(jnp.swapaxes(C, 0, 1), jnp.swapaxes(x, 0, 1), method="fft")[
        ..., n - 1 : 2 * n - 1
    ].swapaxes(0, 1)


def rank1_factors(atoms: Array) -> tuple[Array, Array]:
    """Factors of atoms that have rank one already: the strongest channel gives the time course."""
    strongest = jnp.argmax(jnp.sum(jnp.square(atoms), 2), 1)
    row = jnp.take_along_axis(atoms, strongest[:, None, None], 1)[:, 0]
    size = jnp.sqrt(jnp.sum(jnp.square(row), 1, keepdims=True))
    v = row / jnp.where(size > 0, size, 1)
    u = jnp.einsum("kpl,kl->kp", atoms, v, precision="highest")
    return balance(u, v)


def balance(u: Array, v: Array) -> tuple[Array, Array]:
    """Move the norm of u into v."""
    size = jnp.sqrt(jnp.sum(jnp.square(u), 1, keepdims=True))
    return u / jnp.where(size > 0, size, 1), v * size


def update_rank1(atoms: Array, C: Array, E: Array, metric: Array | None, n_steps: int, tol: ScalarLike) -> Array:
    """Dictionary step for atoms of rank one: first the channels, then the time courses, each a small quadratic."""
    u, v = rank1_factors(atoms)
    n = v.shape[1]
    product = statistics_product(C)
    # Of all the lags only one number a pair of atoms remains for the channels.
    alone = jnp.eye(v.shape[0], dtype=v.dtype)[:, :, None] * v[:, None]  # column l: only atom l
    H = jnp.einsum("kt,klt->kl", v, product(alone), precision="highest")
    rhs = jnp.einsum("kpt,kt->kp", E, v, precision="highest")
    # u scales as the norm of v allows: both balls have radius one, so the norm goes into v for the second half.
    u = minimize_quadratic(lambda x: jnp.matmul(H, x, precision="highest"), rhs, u, None, n_steps, tol)
    u, v = balance(u, v)
    size = jnp.sqrt(jnp.sum(jnp.square(u), 1, keepdims=True))
    coupled = C * jnp.matmul(u, u.T, precision="highest")[..., None]
    rhs = jnp.einsum("kpt,kp->kt", E, u, precision="highest")
    multiply = statistics_product(coupled)
    v = minimize_quadratic(lambda x: multiply(x[:, None])[:, 0], rhs, v, metric, n_steps, tol)
    return jnp.where(size[..., None] > 0, u[:, :, None] * v[:, None, :n], atoms)


@partial(jax.jit, static_argnames=("rank1", "n_steps"))
def update(
    atoms: Array,
    C: Array,
    E: Array,
    window: Array | None,
    tol: ScalarLike,
    *,
    rank1: bool,
    n_steps: int,
) -> Array:
    """`update_atoms` without checks, for atoms that have rank one already if they are to have it."""
    # A gradient step in V, where D = window * V, moves D by the window's square: V itself is never needed.
    metric = None if window is None else jnp.square(jnp.asarray(window, atoms.dtype))
    if rank1:
        return update_rank1(atoms, C, E, metric, n_steps, tol)
    return minimize_quadratic(statistics_product(C), E, atoms, metric, n_steps, tol)


def rank1_from_full(
    atoms: Shaped,
) -> tuple[Float[Array, "n_atoms n_channels"], Float[Array, "n_atoms n_times_atom"]]:
    r"""Channels and time course of each atom's nearest atom of rank one, :math:`D_k \approx u_k v_k^\top`.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom)
        Dictionary D.

    Returns
    -------
    u : Array, shape (n_atoms, n_channels)
        Spatial patterns of norm 1.
    v : Array, shape (n_atoms, n_times_atom)
        Time courses, in the unit of the atoms, their largest entry in absolute value positive.

    Raises
    ------
    ValueError
        Wrong shape, non-finite values.

    Examples
    --------
    >>> import numpy as np
    >>> from gyri.numerics.csc import rank1_from_full
    >>> u, v = rank1_from_full(np.array([[[0.0, -3.0], [0.0, -4.0]]]))
    >>> print(np.asarray(u).round(2), np.asarray(v).round(2))
    [[-0.6 -0.8]] [[0. 5.]]

    References
    ----------
    La Tour, Moreau, Jas, Gramfort (2018), Multivariate convolutional sparse coding for electromagnetic brain signals,
    section 3.
    """
    return leading_pair(jnp.asarray(check_array(atoms, "atoms", shape=("n_atoms", "n_channels", "n_times_atom"))))


@jax.jit
def leading_pair(atoms: Array) -> tuple[Array, Array]:
    """`rank1_from_full` without checks."""
    # LAPACK wants columns in a row; through a flat array, that wish cannot travel back to the transforms from which the
    # atoms come, which XLA:CPU then fails to run.
    atoms = jax.lax.optimization_barrier(atoms.reshape(-1)).reshape(atoms.shape)
    left, values, right = jnp.linalg.svd(atoms, full_matrices=False)
    u, v = left[:, :, 0], values[:, :1] * right[:, 0]
    peak = jnp.take_along_axis(v, jnp.argmax(jnp.abs(v), 1)[:, None], 1)
    sign = jnp.where(peak < 0, -1, 1).astype(v.dtype)
    return u * sign, v * sign


def check_window(window: Any, n_times_atom: int) -> Any:
    """Check a window of the atoms."""
    return None if window is None else check_array(window, "window", shape=(n_times_atom,))


def update_atoms(
    atoms: Shaped,
    C: Shaped,
    E: Shaped,
    *,
    rank1: bool = False,
    window: Any = None,
    n_steps: int = 50,
    tol: ScalarLike = 1e-8,
) -> Float[Array, "n_atoms n_channels n_times_atom"]:
    r"""Better atoms for given codes: descends the fit over atoms of norm at most one.

    Minimises :math:`\tfrac12\langle D, C \cdot D\rangle - \langle E, D\rangle` over :math:`\|D_k\|_F \le 1` by
    accelerated projected gradient; the result is never worse than `atoms`.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom)
        Start D, of norms at most one (longer atoms are scaled to norm one first).
    C, E : Array
        Statistics of the codes, see :func:`code_statistics`.
    rank1 : bool
        Keep atoms of rank one, :math:`u_k v_k^\top` with both norms at most one: one step of alternate minimisation.
        `atoms` are first replaced by their nearest atoms of rank one.
    window : Array, shape (n_times_atom,), optional
        Descend in V where D = window * V: where the window is small the atom hardly moves.
    n_steps : int
        Most steps (each of the two halves if `rank1`).
    tol : float
        Stop when a step changes the atoms by less than this, relative to their norm.

    Returns
    -------
    Array, shape of atoms
        The atoms.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import code_statistics, update_atoms
    >>> codes = jnp.array([[[0.0, 5.0, 0.0, 0.0]]])
    >>> C, E = code_statistics(codes, jnp.array([[[0.0, 3.0, 4.0, 0.0, 0.0]]]), 2)
    >>> update_atoms(jnp.array([[[1.0, 0.0]]]), C, E).round(3)
    Array([[[0.6, 0.8]]], dtype=float32)

    References
    ----------
    Moreau, Gramfort (2022), DiCoDiLe: distributed convolutional dictionary learning, section 2.3.
    """
    atoms = check_array(atoms, "atoms", shape=("n_atoms", "n_channels", "n_times_atom"))
    n_atoms, _, n = atoms.shape
    C = check_array(C, "C", shape=(n_atoms, n_atoms, 2 * n - 1))
    E = check_array(E, "E", shape=atoms.shape)
    window = check_window(window, n)
    n_steps = check_positive_int(n_steps, "n_steps")
    start = confine(jnp.asarray(atoms, jnp.result_type(atoms, C, E)), rank1=rank1)
    return update(start, C, E, window, check_scalar(tol, "tol", minimum=0), rank1=rank1, n_steps=n_steps)


def confine(atoms: Array, *, rank1: bool) -> Array:
    """Atoms of norm at most one, and of rank one if asked."""
    if rank1:
        u, v = leading_pair(atoms)
        atoms = u[:, :, None] * v[:, None, :]
    size = norms(atoms)
    return jnp.where(size > 1 + 8 * jnp.finfo(atoms.dtype).eps, atoms / size, atoms)  # as they are but for rounding
