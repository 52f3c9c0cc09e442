r"""Convolutional sparse coding, unrolled: signals as sums of shifted atoms, :math:`x_p = \sum_k D_{kp} * z_k`.

All convolutions of the loop are products of transforms: a direct sum inside a loop is ten times slower on a CPU.
Malézieux, Moreau, Kowalski (2022), section 4.3; Dupré la Tour et al. (2018) for atoms of rank one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gyri.numerics import soft_threshold
from gyri.numerics.csc.operators import fft_shape, signal_of, spectrum_of
from gyri.numerics.csc.solvers import symbol_norm
from gyri.numerics.optim import fista

from .coding import Iteration, dot, unroll

LIPSCHITZ = ("spectral", "legacy")


class Rank1(NamedTuple):
    """Atoms that are products, ``spatial[k, p] * temporal[k, t]``; shapes (K, P) and (K, L)."""

    spatial: Array
    temporal: Array


Atoms = Any  # an array (K, P, *kernel), or Rank1


def windowed(prior: Atoms, window: Array | None) -> Atoms:
    """Atoms times the window, along time."""
    if window is None:
        return prior
    return prior._replace(temporal=prior.temporal * window) if isinstance(prior, Rank1) else prior * window


def full_atoms(atoms: Atoms) -> Array:
    """Atoms as an array (K, P, ...)."""
    return atoms.spatial[:, :, None] * atoms.temporal[:, None] if isinstance(atoms, Rank1) else atoms


def kernel_of(atoms: Atoms) -> tuple[int, ...]:
    """Shape of the atoms without channels."""
    return atoms.temporal.shape[1:] if isinstance(atoms, Rank1) else atoms.shape[2:]


def _mix(matrix: Array, spectra: Array) -> Array:
    """Real matrix times complex spectra (n, K, F): two real products."""
    if not jnp.iscomplexobj(spectra):
        return dot(matrix, spectra)
    return jax.lax.complex(dot(matrix, spectra.real), dot(matrix, spectra.imag))


def _contract(spectra: Array, kernels: Array) -> Array:
    """``sum_k spectra[n, k] kernels[k, p]``, frequency by frequency."""
    if min(kernels.shape[:2]) > 4:
        return jnp.einsum("nk...,kp...->np...", spectra, kernels, precision="highest")
    # Few rows: passes over the data are faster than tiny matrix products.
    if kernels.shape[1] <= 4:
        return jnp.stack([jnp.sum(spectra * kernels[:, p], 1) for p in range(kernels.shape[1])], 1)
    return sum((spectra[:, k, None] * kernels[k] for k in range(1, len(kernels))), spectra[:, 0, None] * kernels[0])


class Spectrum(NamedTuple):
    """Transforms of the atoms, as one array (K, P, *F), or as spatial (K, P) and temporal (K, F) factors."""

    spatial: Array | None
    temporal: Array

    def synthesize(self, codes: Array) -> Array:
        """Transforms of signals (n, P, *F) of those of codes (n, K, *F)."""
        if self.spatial is None:
            return _contract(codes, self.temporal)
        return _mix(self.spatial.T, self.temporal * codes)

    def correlate(self, signals: Array) -> Array:
        """Transforms of correlations (n, K, *F)."""
        if self.spatial is None:
            return _contract(signals, jnp.conj(jnp.swapaxes(self.temporal, 0, 1)))
        return jnp.conj(self.temporal) * _mix(self.spatial, signals)

    def gram(self) -> Array:
        """What `normal` needs: matrices (K, K, *F), or (K, K) of the spatial factors."""
        if self.spatial is not None:
            return dot(self.spatial, self.spatial.T)
        return jnp.einsum("kp...,lp...->lk...", jnp.conj(self.temporal), self.temporal, precision="highest")

    def normal(self, gram: Array, codes: Array) -> Array:
        """Correlations of a synthesis, at once."""
        if self.spatial is None:
            return _contract(codes, gram)
        return jnp.conj(self.temporal) * _mix(gram, self.temporal * codes)


def spectrum_of_atoms(atoms: Atoms, length: tuple[int, ...]) -> Spectrum:
    """Transforms of atoms at some lengths."""
    if isinstance(atoms, Rank1):
        return Spectrum(atoms.spatial, spectrum_of(atoms.temporal, length))
    return Spectrum(None, spectrum_of(atoms, length))


def lipschitz_constant(atoms: Atoms, spectrum: Spectrum, kind: str) -> Array:
    """Upper bound of the squared norm of the synthesis; never differentiated."""
    spectrum = jax.lax.stop_gradient(spectrum)
    if kind == "legacy":
        # The authors': at the kernel's own length and atom by atom, which may be below or above the truth.
        D = jax.lax.stop_gradient(full_atoms(atoms))
        peaks = jnp.max(jnp.square(jnp.abs(spectrum_of(D, D.shape[2:]))), tuple(range(2, D.ndim)))
        value = jnp.sum(peaks)
    elif spectrum.spatial is not None:
        gram = dot(spectrum.spatial, spectrum.spatial.T)
        v = spectrum.temporal.T
        value = symbol_norm(jnp.conj(v)[:, :, None] * v[:, None, :] * gram, 3)
    elif min(spectrum.temporal.shape[:2]) == 1:
        value = jnp.max(jnp.sum(jnp.square(jnp.abs(spectrum.temporal)), (0, 1)))
    else:
        # The signals are pieces of circular ones of this length: the largest eigenvalue over frequencies is a bound.
        small = (
            "kp...,kq...->...pq" if spectrum.temporal.shape[1] <= spectrum.temporal.shape[0] else "kp...,lp...->...kl"
        )
        symbol = jnp.einsum(small, jnp.conj(spectrum.temporal), spectrum.temporal, precision="highest")
        value = symbol_norm(symbol, 3)
    margin = 1 + 100 * jnp.finfo(value.dtype).eps
    return jnp.where(value > 0, value * margin, 1)


def _crop(x: Array, shape: tuple[int, ...]) -> Array:
    return x[(..., *(slice(n) for n in shape))]


def positions_of(times: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Where an atom may start."""
    return tuple(t - n + 1 for t, n in zip(times, kernel, strict=True))


def gradient_of(
    X: Array, atoms: Atoms, mask: Array | None, spectrum: Spectrum, length: tuple[int, ...]
) -> tuple[Callable, Any]:
    """Gradient of the data fit in the codes, as a function of constants and codes, and the constants."""
    times = X.shape[2:]
    positions = positions_of(times, kernel_of(atoms))
    if mask is None:
        x_hat = spectrum_of(X, length)
        n_atoms, n_channels = (atoms.spatial if isinstance(atoms, Rank1) else atoms).shape[:2]
        if isinstance(atoms, Rank1) or n_atoms <= 2 * n_channels:
            constants: Any = spectrum, spectrum.gram(), spectrum.correlate(x_hat)

            def quadratic(constants: Any, v: Array) -> Array:
                spectrum, gram, correlations = constants
                return _crop(signal_of(spectrum.normal(gram, spectrum_of(v, length)) - correlations, length), positions)

            return quadratic, constants

        def plain(constants: Any, v: Array) -> Array:
            spectrum, x_hat = constants
            residual = spectrum.synthesize(spectrum_of(v, length)) - x_hat
            return _crop(signal_of(spectrum.correlate(residual), length), positions)

        return plain, (spectrum, x_hat)

    def masked(constants: Any, v: Array) -> Array:
        spectrum, X, mask = constants
        prediction = _crop(signal_of(spectrum.synthesize(spectrum_of(v, length)), length), times)
        residual = spectrum_of(mask * (prediction - X), length)
        return _crop(signal_of(spectrum.correlate(residual), length), positions)

    return masked, (spectrum, X, mask)


def conv_code(
    X: Array, atoms: Atoms, lam: Any, steps: Array, mask: Array | None, *, algorithm: str, lipschitz: str,
    backprop_depth: int | None,
) -> Array:  # fmt: skip
    """Codes (n, K, *positions) of signals (n, P, *times) after as many iterations as steps."""
    length = fft_shape(X.shape[2:])
    spectrum = spectrum_of_atoms(atoms, length)
    inverse = 1 / lipschitz_constant(atoms, spectrum, lipschitz)
    gradient, constants = gradient_of(X, atoms, mask, spectrum, length)
    iteration = Iteration(gradient, constants, inverse, jnp.asarray(lam, X.dtype), steps)
    z0 = _zeros(X, atoms)
    return unroll(iteration, z0, algorithm=algorithm, backprop_depth=backprop_depth)


def _zeros(X: Array, atoms: Atoms) -> Array:
    n_atoms = len(jax.tree.leaves(atoms)[0])
    return jnp.zeros((len(X), n_atoms, *positions_of(X.shape[2:], kernel_of(atoms))), X.dtype)


def conv_synthesize(atoms: Atoms, codes: Array) -> Array:
    """Signals (n, P, *times) of codes."""
    times = tuple(v + n - 1 for v, n in zip(codes.shape[2:], kernel_of(atoms), strict=True))
    length = fft_shape(times)
    spectrum = spectrum_of_atoms(atoms, length)
    return _crop(signal_of(spectrum.synthesize(spectrum_of(codes, length)), length), times)


def conv_correlations(atoms: Atoms, X: Array) -> Array:
    """Correlations (n, K, *positions) of atoms with signals."""
    length = fft_shape(X.shape[2:])
    spectrum = spectrum_of_atoms(atoms, length)
    return _crop(
        signal_of(spectrum.correlate(spectrum_of(X, length)), length), positions_of(X.shape[2:], kernel_of(atoms))
    )


def conv_objective(X: Array, codes: Array, atoms: Atoms, lam: Any, mask: Array | None) -> Array:
    """Sum over samples of the objective; per sample first, which keeps digits in float32."""
    residual = conv_synthesize(atoms, codes) - X
    residual = residual if mask is None else mask * residual
    axes = tuple(range(1, X.ndim))
    lam = jnp.asarray(lam, X.dtype)
    return jnp.sum(0.5 * jnp.sum(jnp.square(residual), axes) + lam * jnp.sum(jnp.abs(codes), axes))


def solve_conv_codes(X: Array, atoms: Atoms, lam: Any, mask: Array | None, *, max_iter: int, tol: Any) -> Array:
    """Codes to a tolerance, rather than after a number of iterations."""
    length = fft_shape(X.shape[2:])
    spectrum = spectrum_of_atoms(atoms, length)
    step = 1 / lipschitz_constant(atoms, spectrum, "spectral")
    gradient, constants = gradient_of(X, atoms, mask, spectrum, length)
    lam = jnp.asarray(lam, X.dtype)
    prox = lambda z, step: soft_threshold(z, lam * step)
    return fista(lambda z: gradient(constants, z), prox, _zeros(X, atoms), step, max_iter=max_iter, tol=tol).x


def tukey_window(length: int, dtype: Any) -> Array:
    """Tukey window of half tapers, 1e-9 at its ends, so that nothing is divided by 0.

    Examples
    --------
    >>> tukey_window(5, "float32").round(3)
    Array([0., 1., 1., 1., 0.], dtype=float32)
    """
    from scipy.signal.windows import tukey

    window = tukey(length, 0.5)
    window[[0, -1]] = 1e-9
    return jnp.asarray(window, dtype)


def memory_of(X_shape: tuple[int, ...], n_atoms: int, n_iter: int, itemsize: int) -> int:
    """Bytes that one sample takes in the loop over iterations."""
    return 4 * n_iter * n_atoms * math.prod(X_shape[2:]) * itemsize + 4 * int(np.prod(X_shape[1:])) * itemsize
