"""Convolution with a dictionary of atoms: synthesis, its adjoint, correlations, objective."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from ..validation import check_array, check_option, check_positive_int, check_scalar

Shaped = Float[Any, "..."]
METHODS = ("auto", "direct", "fft")
BLOCK = 8  # length of the blocks of a signal that are transformed, in atoms


def fft_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Lengths of at least those given whose real transforms are fast."""
    from scipy.fft import next_fast_len

    return tuple(next_fast_len(n, real=True) for n in shape)


def check_atoms(atoms: Any) -> Any:
    """Check atoms of shape (n_atoms, n_channels, *kernel)."""
    atoms = check_array(atoms, "atoms")
    if atoms.ndim < 3:
        raise ValueError(f"atoms: expected shape (n_atoms, n_channels, n_times_atom, ...), got {atoms.shape}")
    return atoms


def check_signal(signal: Any, atoms: Any, *, mask: Any = None, name: str = "signal") -> Any:
    """Check a signal of shape (n_trials, n_channels, *times) to which atoms fit; masked samples are set to 0."""
    kernel = atoms.shape[2:]
    shape = ("n_trials", atoms.shape[1], *(f"n_times >= {n}" for n in kernel))
    shaped = check_array(signal, name, shape=shape, allow_nan=mask is not None)
    if any(t < n for t, n in zip(shaped.shape[2:], kernel, strict=True)):
        raise ValueError(f"{name}: expected at least {kernel} samples, as atoms has, got shape {shaped.shape}")
    if mask is None:
        return shaped
    return check_array(jnp.where(mask, shaped, 0), name)


def check_mask(mask: Any, signal: Any) -> Array | None:
    """Check a mask of valid samples and broadcast it to the signal's shape."""
    if mask is None:
        return None
    shape, wanted = np.shape(mask), np.shape(signal)
    if jnp.result_type(mask) != jnp.bool_:
        raise ValueError(f"mask: expected booleans, True where a sample is valid, got dtype {jnp.result_type(mask)}")
    if len(shape) > len(wanted) or any(a not in (1, b) for a, b in zip(shape[::-1], wanted[::-1], strict=False)):
        raise ValueError(f"mask: expected a shape that broadcasts to {wanted}, got {shape}")
    if not isinstance(mask, jax.core.Tracer) and not np.any(mask):
        raise ValueError("mask: expected at least one valid sample, got none")
    return jnp.broadcast_to(mask, wanted)


def check_codes(
    codes: Any, atoms: Any, signal_shape: Sequence[int] | None, name: str = "codes", dtype: Any = None
) -> Any:
    """Check codes of shape (n_trials, n_atoms, *positions), those that give a signal of the shape given."""
    if signal_shape is None:
        return check_array(codes, name, shape=("n_trials", atoms.shape[0], *["n_positions"] * (atoms.ndim - 2)))
    positions = (t - n + 1 for t, n in zip(signal_shape[2:], atoms.shape[2:], strict=True))
    return check_array(codes, name, shape=(signal_shape[0], atoms.shape[0], *positions), dtype=dtype)


def check_lam(lam: Any, n_atoms: int) -> Any:
    """Check a level of sparsity: a number, or one an atom."""
    if np.ndim(lam) == 0:
        return check_scalar(lam, "lam", minimum=0)
    lam = check_array(lam, "lam", shape=(n_atoms,))
    if not isinstance(lam, jax.core.Tracer) and (np.asarray(lam) < 0).any():
        raise ValueError(f"lam: expected numbers >= 0, got {np.asarray(lam)}")
    return lam


def is_direct(method: str, atoms: Any, times: Sequence[int]) -> bool:
    """Whether the sum over the kernel costs less than transforms: their measured crossover on a CPU for "auto"."""
    if method != "auto":
        return method == "direct"
    n_atoms, n_channels = atoms.shape[:2]
    cost = n_atoms * n_channels * math.prod(atoms.shape[2:])
    return cost <= 4 * (n_atoms + n_channels) * math.log2(math.prod(times) + 1)


def spectrum_of(x: Array, length: Sequence[int]) -> Array:
    """Real Fourier transform along the last axes, zero-padded to `length`.

    Leading axes are merged first: where XLA:CPU would store them in another order, its transform refuses to run.
    """
    n = len(length)
    flat = x.reshape(-1, *x.shape[x.ndim - n :])
    spectrum = jnp.fft.rfftn(flat, length, tuple(range(1, n + 1)))
    return spectrum.reshape(*x.shape[: x.ndim - n], *spectrum.shape[1:])


def signal_of(spectrum: Array, length: Sequence[int]) -> Array:
    """Inverse of :func:`spectrum_of`."""
    n = len(length)
    flat = spectrum.reshape(-1, *spectrum.shape[spectrum.ndim - n :])
    return jnp.fft.irfftn(flat, length, tuple(range(1, n + 1))).reshape(*spectrum.shape[: spectrum.ndim - n], *length)


def block_length(n: int, n_times: int) -> int | None:
    """Length of the blocks in which a signal is transformed; None where one transform of all is as good.

    Blocks stay in the cache, and the atoms' transforms are no longer than they are: the cost is linear in time, and
    hardly depends on the number of atoms times channels.
    """
    size = fft_shape((max(BLOCK * n, 256),))[0]
    return size if n_times >= 3 * size else None


def block_spectra(x: Array, n: int, size: int, n_positions: int) -> Array:
    """Transforms (..., n_blocks, n_frequencies) of blocks of x (..., n_times) that overlap by n - 1.

    What is computed from one block holds at size - n + 1 positions, the next ones are those of the next block.
    """
    hop, lead = size - n + 1, x.shape[:-1]
    n_blocks = -(-n_positions // hop)
    x = jnp.pad(x, (*[(0, 0)] * len(lead), (0, n_blocks * hop + n - 1 - x.shape[-1])))
    own = x[..., : n_blocks * hop].reshape(*lead, n_blocks, hop)
    following = jnp.concatenate([own[..., 1:, : n - 1], x[..., None, n_blocks * hop :]], -2)
    return spectrum_of(jnp.concatenate([own, following], -1), (size,))


def join_blocks(spectra: Array, n: int, size: int, n_positions: int, skip: int) -> Array:
    """Signal (..., n_positions) of the blocks whose first `skip` samples, or else last n - 1, wrapped."""
    blocks = signal_of(spectra, (size,))[..., skip : skip + size - n + 1]
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :n_positions]


def dimension_numbers(n_axes: int) -> jax.lax.ConvDimensionNumbers:
    """Batch, feature, then space, for inputs, kernels and outputs alike."""
    order = tuple(range(n_axes + 2))
    return jax.lax.ConvDimensionNumbers(order, order, order)


@partial(jax.jit, static_argnames="method")
def synthesis(atoms: Array, codes: Array, *, method: str = "auto") -> Array:
    """`conv_synthesis` without checks."""
    kernel = atoms.shape[2:]
    times = tuple(v + n - 1 for v, n in zip(codes.shape[2:], kernel, strict=True))
    axes = tuple(range(2, atoms.ndim))
    if is_direct(method, atoms, times):
        # XLA's convolution is a correlation: the atoms are flipped.
        return jax.lax.conv_general_dilated(
            codes,
            jnp.flip(jnp.swapaxes(atoms, 0, 1), axes),
            window_strides=(1,) * len(kernel),
            padding=[(n - 1, n - 1) for n in kernel],
            dimension_numbers=dimension_numbers(len(kernel)),
            precision=jax.lax.Precision.HIGHEST,
        )
    if len(kernel) == 1 and (size := block_length(n := kernel[0], times[0])):
        z = block_spectra(jnp.pad(codes, ((0, 0), (0, 0), (n - 1, n - 1))), n, size, times[0])
        spectrum = jnp.einsum("nkbf,kpf->npbf", z, spectrum_of(atoms, (size,)), precision="highest")
        return join_blocks(spectrum, n, size, times[0], n - 1)
    length = fft_shape(times)
    spectrum = jnp.einsum(
        "nk...,kp...->np...",
        spectrum_of(codes, length),
        spectrum_of(atoms, length),
        precision="highest",
    )
    full = signal_of(spectrum, length)
    return full[(..., *(slice(t) for t in times))]


@partial(jax.jit, static_argnames="method")
def correlate(atoms: Array, signal: Array, *, method: str = "auto") -> Array:
    """`conv_correlate` without checks."""
    kernel, times = atoms.shape[2:], signal.shape[2:]
    if is_direct(method, atoms, times):
        return jax.lax.conv_general_dilated(
            signal,
            atoms,
            window_strides=(1,) * len(kernel),
            padding="VALID",
            dimension_numbers=dimension_numbers(len(kernel)),
            precision=jax.lax.Precision.HIGHEST,
        )
    if len(kernel) == 1 and (size := block_length(n := kernel[0], times[0])):
        x = block_spectra(signal, n, size, times[0] - n + 1)
        spectrum = jnp.einsum("npbf,kpf->nkbf", x, jnp.conj(spectrum_of(atoms, (size,))), precision="highest")
        return join_blocks(spectrum, n, size, times[0] - n + 1, 0)
    length = fft_shape(times)  # a circular correlation of this length is exact at the valid positions
    transformed = jnp.conj(spectrum_of(atoms, length))
    spectrum = jnp.einsum("np...,kp...->nk...", spectrum_of(signal, length), transformed, precision="highest")
    full = signal_of(spectrum, length)
    return full[(..., *(slice(t - n + 1) for t, n in zip(times, kernel, strict=True)))]


def conv_synthesis(atoms: Shaped, codes: Shaped, *, method: str = "auto") -> Float[Array, "n_trials n_channels *times"]:
    r"""Signal of sparse codes, :math:`X_n = \sum_k z_{nk} * D_k` (full convolution).

    Linear in each argument and differentiable; the exact adjoint in `codes` is :func:`conv_correlate`.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Dictionary D, any number of trailing axes, float32 or float64.
    codes : Array, shape (n_trials, n_atoms, n_positions, ...)
        Codes z, one a position at which an atom may start.
    method : {"auto", "direct", "fft"}
        Sum over the kernel, transforms, or what costs less.

    Returns
    -------
    Array, shape (n_trials, n_channels, n_positions + n_times_atom - 1, ...)
        The signal, in the unit of codes times atoms.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values, unknown method.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import conv_synthesis
    >>> atoms = jnp.array([[[1.0, 2.0, 3.0]]])
    >>> conv_synthesis(atoms, jnp.array([[[1.0, 0.0, 0.0, -1.0]]]))
    Array([[[ 1.,  2.,  3., -1., -2., -3.]]], dtype=float32)

    References
    ----------
    Grosse, Raina, Kwong, Ng (2007), Shift-invariant sparse coding for audio classification, equation 2.
    """
    check_option(method, "method", METHODS)
    atoms = check_atoms(atoms)
    return synthesis(atoms, check_codes(codes, atoms, None), method=method)


def conv_correlate(
    atoms: Shaped, signal: Shaped, *, method: str = "auto"
) -> Float[Array, "n_trials n_atoms *positions"]:
    r"""Correlation of each atom with a signal, :math:`\sum_{p,s} D_k[p,s]\, X_n[p,t+s]`, at all valid positions t.

    Linear in each argument and differentiable; the exact adjoint of :func:`conv_synthesis` in the codes.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Dictionary D.
    signal : Array, shape (n_trials, n_channels, n_times, ...)
        Signal X, at least as long as the atoms.
    method : {"auto", "direct", "fft"}
        Sum over the kernel, transforms, or what costs less.

    Returns
    -------
    Array, shape (n_trials, n_atoms, n_times - n_times_atom + 1, ...)
        The correlations.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values, unknown method.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import conv_correlate
    >>> conv_correlate(jnp.array([[[1.0, 2.0]]]), jnp.array([[[1.0, 0.0, 3.0]]]))
    Array([[[1., 6.]]], dtype=float32)
    """
    check_option(method, "method", METHODS)
    atoms = check_atoms(atoms)
    return correlate(atoms, check_signal(signal, atoms), method=method)


@jax.jit
def gram(atoms: Array) -> Array:
    """`atom_gram` without checks."""
    pads = [(0, 0), (0, 0), *((n - 1, n - 1) for n in atoms.shape[2:])]
    return correlate(atoms, jnp.pad(atoms, pads))


def atom_gram(atoms: Shaped) -> Float[Array, "n_atoms n_atoms *lags"]:
    r"""Correlations of the atoms with each other, :math:`G_{kl}[\tau] = \sum_{p,t} D_k[p,t+\tau]\, D_l[p,t]`.

    Adding d to the code of atom k at position t lowers the correlation of atom l with the residual at position
    :math:`t + \tau` by :math:`d\, G_{kl}[\tau]`.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Dictionary D.

    Returns
    -------
    Array, shape (n_atoms, n_atoms, 2 * n_times_atom - 1, ...)
        Lag :math:`\tau` is stored at index :math:`\tau` + n_times_atom - 1.

    Raises
    ------
    ValueError
        Wrong shape, non-finite values.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import atom_gram
    >>> atom_gram(jnp.array([[[1.0, 2.0]]]))
    Array([[[2., 5., 2.]]], dtype=float32)
    """
    return gram(check_atoms(atoms))


@partial(jax.jit, static_argnames="n_times_atom")
def statistics(codes: Array, signal: Array, n_times_atom: int) -> tuple[Array, Array]:
    """`code_statistics` without checks."""
    n, n_atoms, n_positions = n_times_atom, *codes.shape[1:]
    size = block_length(n, signal.shape[-1]) or fft_shape((max(signal.shape[-1], 2 * n - 2),))[0]
    hop = size - n + 1
    # A block of codes, ending in zeros, against the longer block of all that follows within an atom: nothing wraps.
    both = jnp.concatenate([jnp.pad(codes, ((0, 0), (0, 0), (0, n - 1))), signal], 1)
    n_blocks = -(-n_positions // hop)
    own = jnp.pad(codes, ((0, 0), (0, 0), (0, n_blocks * hop - n_positions))).reshape(-1, n_atoms, n_blocks, hop)
    z, x = spectrum_of(own, (size,)), block_spectra(both, n, size, n_positions)
    lags = signal_of(jnp.einsum("nkbf,nlbf->klf", jnp.conj(z), x, precision="highest"), (size,))[..., :n]
    C = lags[:, :n_atoms]
    return jnp.concatenate([jnp.flip(jnp.swapaxes(C, 0, 1)[..., 1:], -1), C], -1), lags[:, n_atoms:]


def code_statistics(
    codes: Shaped,
    signal: Shaped,
    n_times_atom: int,
) -> tuple[Float[Array, "n_atoms n_atoms n_lags"], Float[Array, "n_atoms n_channels {n_times_atom}"]]:
    r"""Correlations of codes with each other and with a signal: all that a dictionary step needs of the data.

    With :math:`C_{kl}[\tau] = \sum_{n,t} z_{nk}[t]\, z_{nl}[t+\tau]` and
    :math:`E_k[p,\tau] = \sum_{n,t} z_{nk}[t]\, X_n[p,t+\tau]` the fit of atoms D is
    :math:`\tfrac12\|X\|^2 - \langle E, D\rangle + \tfrac12\langle D, C \cdot D\rangle`, where
    :math:`(C \cdot D)_k[p,t] = \sum_{l,s} C_{kl}[t-s]\, D_l[p,s]`.

    Parameters
    ----------
    codes : Array, shape (n_trials, n_atoms, n_times - n_times_atom + 1)
        Codes z.
    signal : Array, shape (n_trials, n_channels, n_times)
        Signal X.
    n_times_atom : int
        Length of an atom.

    Returns
    -------
    C : Array, shape (n_atoms, n_atoms, 2 * n_times_atom - 1)
        Lag :math:`\tau` is stored at index :math:`\tau` + n_times_atom - 1.
    E : Array, shape (n_atoms, n_channels, n_times_atom)
        Lags from 0.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from gyri.numerics.csc import code_statistics
    >>> C, E = code_statistics(jnp.array([[[2.0, 1.0, 0.0]]]), jnp.array([[[1.0, 2.0, 3.0, 4.0]]]), 2)
    >>> print(np.asarray(C).round(3), np.asarray(E).round(3))
    [[[2. 5. 2.]]] [[[4. 7.]]]

    References
    ----------
    Moreau, Gramfort (2022), DiCoDiLe: distributed convolutional dictionary learning, section 2.3.
    """
    n = check_positive_int(n_times_atom, "n_times_atom")
    signal = check_array(signal, "signal", shape=("n_trials", "n_channels", "n_times"))
    if signal.shape[-1] < n:
        raise ValueError(f"n_times_atom: expected at most the signal's {signal.shape[-1]} samples, got {n}")
    codes = check_array(codes, "codes", shape=(signal.shape[0], "n_atoms", signal.shape[-1] - n + 1))
    return statistics(codes, signal, n)


@partial(jax.jit, static_argnames=("positive", "per_atom"))
def largest_correlation(
    atoms: Array, signal: Array, quantile: ScalarLike | None = None, *, positive: bool = True, per_atom: bool = False
) -> Array:
    """`csc_lambda_max` without checks; without a quantile the maximum."""
    values = jnp.moveaxis(correlate(atoms, signal), 1, 0).reshape(atoms.shape[0], -1)
    values = values if positive else jnp.abs(values)
    top = values.max(1) if quantile is None else jnp.quantile(values, jnp.asarray(quantile, values.dtype), 1)
    top = jnp.maximum(top, 0)
    return top if per_atom else top.max()


def csc_lambda_max(
    atoms: Shaped,
    signal: Shaped,
    *,
    positive: bool = True,
    per_atom: bool = False,
    quantile: ScalarLike = 1.0,
) -> Float[Array, "..."]:
    r"""Smallest level of sparsity at which all codes are zero, :math:`\max_{k,n,t} (D_k \star X_n)[t]`.

    Parameters
    ----------
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Dictionary D.
    signal : Array, shape (n_trials, n_channels, n_times, ...)
        Signal X.
    positive : bool
        Codes are non-negative; False takes absolute values.
    per_atom : bool
        One level an atom instead of the largest.
    quantile : float
        Below 1: this quantile over trials and times instead of the maximum, which a few artefacts cannot move.

    Returns
    -------
    Array, shape () or (n_atoms,)
        The level, at least 0, in the unit of the signal times that of the atoms.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values, quantile outside [0, 1].

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import csc_lambda_max
    >>> csc_lambda_max(jnp.array([[[0.6, 0.8]]]), jnp.array([[[0.0, 3.0, 4.0, -9.0]]]))
    Array(5., dtype=float32)
    """
    atoms = check_atoms(atoms)
    signal = check_signal(signal, atoms)
    quantile = check_scalar(quantile, "quantile", minimum=0, maximum=1)
    chosen = None if isinstance(quantile, float) and quantile == 1 else quantile
    return largest_correlation(atoms, signal, chosen, positive=positive, per_atom=per_atom)


def per_atom_level(lam: Any, codes: Array) -> Array:
    """Levels of sparsity in a shape that broadcasts to codes."""
    lam = jnp.asarray(lam, codes.dtype)
    return lam.reshape(1, -1, *[1] * (codes.ndim - 2)) if lam.ndim else lam


def objective_of(residual: Array, codes: Array, lam: Any, mask: Array | None = None) -> Array:
    """Objective at codes from their residual."""
    residual = residual if mask is None else jnp.where(mask, residual, 0)
    return 0.5 * jnp.sum(jnp.square(residual)) + jnp.sum(per_atom_level(lam, codes) * jnp.abs(codes))


@jax.jit
def objective(signal: Array, atoms: Array, codes: Array, lam: Any, mask: Array | None) -> Array:
    """`csc_objective` without checks."""
    return objective_of(signal - synthesis(atoms, codes), codes, lam, mask)


def csc_objective(
    signal: Shaped,
    atoms: Shaped,
    codes: Shaped,
    lam: Shaped | ScalarLike,
    *,
    mask: Any = None,
) -> Float[Array, ""]:
    r"""Objective of convolutional sparse coding, a sum and not a mean; differentiable.

    :math:`\tfrac12 \|M (X - \sum_k z_k * D_k)\|^2 + \sum_k \lambda_k \|z_k\|_1` over all trials.

    Parameters
    ----------
    signal : Array, shape (n_trials, n_channels, n_times, ...)
        Signal X; NaN is allowed in masked samples.
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Dictionary D.
    codes : Array, shape (n_trials, n_atoms, n_times - n_times_atom + 1, ...)
        Codes z.
    lam : float or Array, shape (n_atoms,)
        Level of sparsity, or one an atom.
    mask : Array of bool, optional
        M, True where a sample is valid; broadcast to the signal.

    Returns
    -------
    Array, shape ()
        The objective.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values in valid samples, negative `lam`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.csc import csc_objective
    >>> atoms = jnp.array([[[0.6, 0.8]]])
    >>> csc_objective(jnp.array([[[0.0, 3.0, 4.0]]]), atoms, jnp.array([[[0.0, 4.0]]]), 0.5)
    Array(2.5, dtype=float32)
    """
    atoms = check_atoms(atoms)
    mask = check_mask(mask, signal)
    signal = check_signal(signal, atoms, mask=mask)
    codes = check_codes(codes, atoms, signal.shape)
    return objective(signal, atoms, codes, check_lam(lam, atoms.shape[0]), mask)
