r"""Analysis priors :math:`\|\Gamma x\|_1` and the unrolled primal-dual iterations that restore signals with them.

Condat (2013) and Vũ (2013); Malézieux, Moreau, Kowalski (2021), arXiv 2106.06338 version 1, section 3.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gyri.numerics.csc.operators import fft_shape
from gyri.numerics.linalg import operator_norm
from gyri.numerics.validation import import_extra

from .coding import Measurement, dot
from .convolution import conv_correlations, conv_synthesize, lipschitz_constant, spectrum_of_atoms
from .datasets import unit_rows

FIXED = ("tv", "haar", "db4")
FILTERS = ("conv", "conv_corners", "separable")
CONSTRAINTS = ("unit", "untf", *FILTERS, *FIXED)
_FRAME_ROUNDS = 30


class Analysis(NamedTuple):
    """A linear map of signals (n, ...) to pytrees of coefficients, its adjoint, and a bound of its squared norm."""

    apply: Callable[[Any, Array], Any]
    adjoint: Callable[[Any, Any, tuple], Array]
    square: Callable[[Any, tuple], Array]


# --- maps -----------------------------------------------------------------------------------------------------------


def _dense_square(prior: Array, shape: tuple) -> Array:
    gram = dot(prior, prior.T) if prior.shape[0] <= prior.shape[1] else dot(prior.T, prior)
    return jnp.linalg.eigvalsh(gram, symmetrize_input=False)[-1]


def _filtered(prior: Array, x: Array) -> Array:
    # Channels are samples of their own: each goes through the same filters.
    n_axes = prior.ndim - 1
    return conv_correlations(prior[:, None], x.reshape(-1, 1, *x.shape[x.ndim - n_axes :]))


def _filters_adjoint(prior: Array, v: Array, shape: tuple) -> Array:
    return conv_synthesize(prior[:, None], v).reshape(-1, *shape)


def _filters_square(prior: Array, shape: tuple) -> Array:
    length = fft_shape(shape[-(prior.ndim - 1) :])
    atoms = prior[:, None]
    return lipschitz_constant(atoms, spectrum_of_atoms(atoms, length), "spectral")


DENSE = Analysis(lambda prior, x: dot(x, prior.T), lambda prior, v, shape: dot(v, prior), _dense_square)
BANK = Analysis(_filtered, _filters_adjoint, _filters_square)


@lru_cache(32)
def differences(n_axes: int) -> Analysis:
    """First differences along the last axes: anisotropic total variation.

    Examples
    --------
    >>> differences(1).apply((), jnp.array([[1.0, 3.0, 2.0]]))
    (Array([[ 2., -1.]], dtype=float32),)
    """
    axes = range(-n_axes, 0)

    def adjoint(prior: Any, v: tuple, shape: tuple) -> Array:
        total = jnp.zeros((len(v[0]), *shape), v[0].dtype)
        for axis, part in zip(axes, v, strict=True):
            ends = [[(0, 0)] * part.ndim for _ in range(2)]
            ends[0][axis], ends[1][axis] = (1, 0), (0, 1)
            total += jnp.pad(part, ends[0]) - jnp.pad(part, ends[1])
        return total

    apply = lambda prior, x: tuple(jnp.diff(x, axis=axis) for axis in axes)
    return Analysis(apply, adjoint, lambda prior, shape: jnp.asarray(4.0 * n_axes))


def wavelet_matrices(n: int, wavelet: str) -> list[np.ndarray]:
    """Orthogonal matrices of the levels of a periodic transform of n samples, as long as halves are whole.

    Examples
    --------
    >>> [matrix.shape for matrix in wavelet_matrices(12, "haar")]
    [(12, 12), (6, 6)]
    """
    pywt = import_extra("pywt", "gyri-unrolled[wavelets]", "for wavelets")
    matrices, least = [], pywt.Wavelet(wavelet).dec_len
    while n % 2 == 0 and n >= 2 * least - 2 and n > 2:
        matrices.append(np.concatenate(pywt.dwt(np.eye(n), wavelet, mode="periodization", axis=0)))
        n //= 2
    return matrices


@lru_cache(32)
def wavelets(shape: tuple[int, ...], wavelet: str) -> Analysis:
    """Details of an orthogonal wavelet transform along the last axes of signals of one shape."""
    each = [wavelet_matrices(n, wavelet) for n in shape]
    n_levels = min(map(len, each))
    if n_levels == 0:
        raise ValueError(f"X: expected even sizes of at least the filters' length for {wavelet!r}, got {shape}")
    n_axes = len(shape)
    coarse = tuple(slice(n >> n_levels) for n in shape)

    def along(x: Array, matrix: np.ndarray, axis: int, transposed: bool) -> Array:
        matrix = matrix.T if transposed else matrix
        moved = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), ((axis,), (1,)), precision="highest")
        return jnp.moveaxis(moved, -1, axis)

    def run(x: Array, transposed: bool) -> Array:
        for level in reversed(range(n_levels)) if transposed else range(n_levels):
            block = (..., *(slice(n >> level) for n in shape))
            part = x[block]
            for axis in range(n_axes):
                part = along(part, each[axis][level], axis - n_axes, transposed)
            x = x.at[block].set(part)
        return x

    # The coarse approximation is not penalised: it holds the mean.
    keep = lambda c: c.at[(..., *coarse)].set(0)
    return Analysis(
        lambda prior, x: keep(run(x, False)), lambda prior, v, shape: run(keep(v), True),
        lambda prior, shape: jnp.ones(()),
    )  # fmt: skip


# --- restoration ----------------------------------------------------------------------------------------------------


def observe(x: Array, measurement: Measurement) -> Array:
    """Signals through the operator, before the mask."""
    if measurement.operator is not None:
        return measurement.operator.matvec(x)
    if measurement.matrices is not None:
        return jnp.einsum("tij,tj->ti", measurement.matrices, x, precision="highest")
    return x


def observe_adjoint(r: Array, measurement: Measurement) -> Array:
    """Adjoint of `observe`."""
    if measurement.operator is not None:
        return measurement.operator.rmatvec(r)
    if measurement.matrices is not None:
        return jnp.einsum("tij,ti->tj", measurement.matrices, r, precision="highest")
    return r


def misfit(X: Array, x: Array, measurement: Measurement) -> Array:
    """Prediction less observation, 0 where masked."""
    residual = observe(x, measurement) - X
    return residual if measurement.mask is None else measurement.mask * residual


def operator_square(measurement: Measurement, dtype: Any) -> Array:
    """Bound of the squared norm of the operator, or one a sample."""
    if measurement.operator is not None:
        return (1.02 * jnp.square(operator_norm(measurement.operator))).astype(dtype)
    return jnp.ones((), dtype) if measurement.squares is None else measurement.squares


def restore(
    X: Array,
    prior: Any,
    lam: Any,
    sigmas: Array,
    measurement: Measurement,
    lip_operator: Array,
    analysis: Analysis,
    shape: tuple[int, ...],
) -> Array:
    """Signals (n, ...) after as many iterations of Condat and Vu as steps; the last one moves the signals only."""
    lip_prior = jax.lax.stop_gradient(analysis.square(jax.lax.stop_gradient(prior), shape)).astype(X.dtype)
    lam = jnp.asarray(lam, X.dtype)

    def primal(x: Array, v: Any, sigma: Array) -> Array:
        tau = 1 / (lip_operator / 2 + sigma * lip_prior)
        fit = observe_adjoint(misfit(X, x, measurement), measurement)
        return x - tau * (fit + analysis.adjoint(prior, v, shape))

    def body(state: tuple, sigma: Array) -> tuple:
        x, v = state
        new = primal(x, v, sigma)
        moved = analysis.apply(prior, 2 * new - x)
        v = jax.tree.map(lambda v, u: jnp.clip(v + sigma * u, -lam, lam), v, moved)
        return (new, v), None

    x0 = jnp.zeros((len(X), *shape), X.dtype)
    v0 = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(analysis.apply, prior, x0))
    (x, v), _ = jax.lax.scan(body, (x0, v0), sigmas[:-1])
    return primal(x, v, sigmas[-1])


def restoration_objective(
    X: Array, x: Array, prior: Any, lam: Any, measurement: Measurement, analysis: Analysis
) -> Array:
    """Sum over samples of half the squared misfit plus the penalty."""
    lam = jnp.asarray(lam, X.dtype)
    rows = lambda a: jnp.sum(a.reshape(len(a), -1), 1)
    penalty = sum(jnp.sum(rows(jnp.abs(part))) for part in jax.tree.leaves(analysis.apply(prior, x)))
    return jnp.sum(0.5 * rows(jnp.square(misfit(X, x, measurement)))) + lam * penalty


# --- constraints ----------------------------------------------------------------------------------------------------


def support_of(constraint: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Entries of the filters that may be non-zero, 1 or 0; None: all.

    Examples
    --------
    >>> support_of("separable", (2, 3, 3))[0]
    array([[0., 1., 0.],
           [0., 1., 0.],
           [0., 1., 0.]])
    """
    support = np.ones(shape)
    if constraint == "separable":
        support[:] = 0
        support[0, :, shape[2] // 2] = 1
        support[1, shape[1] // 2, :] = 1
        return support
    if constraint == "conv_corners":
        for corner in np.ndindex(*[2] * (len(shape) - 1)):
            support[(slice(None), *(-end for end in corner))] = 0
        return support
    return None


def project(prior: Array, constraint: str) -> Array:
    """Nearest prior of the constraint (for tight frames: a near one, see `tighten`)."""
    if constraint == "unit":
        return unit_rows(prior)
    if constraint == "untf":
        return tighten(prior)
    support = support_of(constraint, prior.shape)
    prior = prior if support is None else prior * jnp.asarray(support, prior.dtype)
    norm = jnp.linalg.norm(prior.reshape(-1))
    return prior / jnp.where(norm > 0, norm, 1)


def tighten(frame: Array, n_rounds: int = _FRAME_ROUNDS) -> Array:
    """Uniform normalised tight frame near a frame: tight and unit rows in turn, the rows last.

    Dividing the rows of a tight frame by their norms alone leaves it tight no longer; alternating projections find
    frames that are both (Tropp, Dhillon, Heath, Strohmer 2005).
    """
    n_rows, m = frame.shape
    eye = jnp.eye(m, dtype=frame.dtype)

    def body(_: Any, frame: Array) -> Array:
        gram = dot(frame.T, frame) * (m / n_rows)
        # Newton's iteration for the polar factor: near a tight frame one round is enough.
        return unit_rows(dot(frame, 1.5 * eye - 0.5 * gram))

    return jax.lax.fori_loop(0, n_rounds, body, unit_rows(frame))


def first_frame(prior: Array, noise: Array) -> Array:
    """Start of tight frames: rows of zeros become noise, then the polar factor."""
    prior = jnp.where(jnp.any(prior != 0, 1, keepdims=True), prior, noise)
    left, _, right = jnp.linalg.svd(unit_rows(prior), full_matrices=False)
    scale = jnp.sqrt(jnp.asarray(prior.shape[0] / prior.shape[1], prior.dtype))
    return tighten(scale * dot(left, right), 200)


def move(prior: Array, gradient: Array, step: Array, constraint: str) -> Array:
    """Feasible step against the gradient; of tight frames along Cayley's curve, which keeps ``prior.T @ prior``."""
    if constraint != "untf":
        return project(prior - step * gradient, constraint)
    skew = dot(gradient, prior.T) - dot(prior, gradient.T)
    eye = jnp.eye(len(prior), dtype=prior.dtype)
    return tighten(jnp.linalg.solve(eye + step * skew, dot(eye - step * skew, prior)))
