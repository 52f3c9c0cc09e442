"""Convolutional sparse coding to a certified precision: coordinate descent, FISTA, exact solution on the support."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from ..linalg import cg
from ..optim import fista_momentum
from ..validation import check_option, check_positive_int, check_scalar
from .coordinates import coordinate_descent, shrink
from .operators import (
    Shaped,
    check_atoms,
    check_codes,
    check_lam,
    check_mask,
    check_signal,
    correlate,
    fft_shape,
    gram,
    is_direct,
    largest_correlation,
    objective,
    per_atom_level,
    signal_of,
    spectrum_of,
    synthesis,
)
from .support import polish_trial

SWEEPS = 50  # between two exact computations of the correlations
FISTA_STEPS = 25  # between two looks at the optimality conditions


class CSCResult(NamedTuple):
    """What :func:`csc_solve` returns.

    `codes` (n_trials, n_atoms, n_positions, ...); `objective` (), a sum; `kkt` (), the largest violation of the
    optimality conditions relative to each atom's level; `n_iter` (), sweeps or FISTA steps; `converged` (), whether
    `kkt` met the tolerance.
    """

    codes: Float[Array, "n_trials n_atoms *positions"]
    objective: Float[Array, ""]
    kkt: Float[Array, ""]
    n_iter: Int[Array, ""]
    converged: Bool[Array, ""]


class Problem(NamedTuple):
    """Data of one problem; `lam` and `scale` (n_atoms,), `mask` and `support` None or of the signal's, codes' shape."""

    signal: Array
    atoms: Array
    G: Array | None
    lam: Array
    scale: Array
    mask: Array | None
    support: Array | None


def lipschitz(atoms: Array) -> Array:
    """Upper bound of the largest eigenvalue of the synthesis times its adjoint.

    The symbol is a trigonometric polynomial: its maximum is at most that on a grid fine enough, divided by a cosine.
    """
    kernel = atoms.shape[2:]
    fine = 32 if len(kernel) == 1 else 8
    length = tuple(fine * n for n in kernel)
    spectrum = spectrum_of(atoms, length)
    small = "kp...,kq...->...pq" if atoms.shape[1] <= atoms.shape[0] else "kp...,lp...->...kl"
    symbol = jnp.einsum(small, jnp.conj(spectrum), spectrum, precision="highest")
    margin = float(np.prod([1 / np.cos(np.pi * (n - 1) / m) for n, m in zip(kernel, length, strict=True)]))
    return symbol_norm(symbol) * margin * (1 + 100 * jnp.finfo(atoms.dtype).eps)


def symbol_norm(symbol: Array, n_squarings: int = 5) -> Array:
    """Upper bound of the largest eigenvalue of Hermitian matrices (..., n, n), tight to n^(1 / 2^(n_squarings + 1))."""
    size = jnp.sqrt(jnp.max(jnp.sum(jnp.square(jnp.abs(symbol)), (-2, -1))))
    power, exponent = symbol / jnp.where(size > 0, size, 1), 1
    if symbol.shape[-1] > 1:
        for _ in range(n_squarings):  # the Frobenius norm of a high power tends to the largest eigenvalue, from above
            power, exponent = jnp.matmul(power, power, precision="highest"), 2 * exponent
    return size * jnp.sqrt(jnp.max(jnp.sum(jnp.square(jnp.abs(power)), (-2, -1)))) ** (1 / exponent)


def correlations(problem: Problem, codes: Array) -> Array:
    """Correlations of the atoms with the residual."""
    residual = problem.signal - synthesis(problem.atoms, codes)
    if problem.mask is not None:
        residual = jnp.where(problem.mask, residual, 0)
    return correlate(problem.atoms, residual)


def violation(problem: Problem, codes: Array, beta: Array, positive: bool) -> Array:
    """Largest violation of the optimality conditions, relative to each atom's scale."""
    lam = per_atom_level(problem.lam, codes)
    inside = jnp.maximum((beta if positive else jnp.abs(beta)) - lam, 0)
    excess = jnp.where(codes != 0, jnp.abs(beta - lam * jnp.sign(codes)), inside)
    if problem.support is not None:
        excess = jnp.where(problem.support, excess, 0)
    return jnp.max(excess / per_atom_level(problem.scale, codes))


def greedy(
    problem: Problem, codes: Array, *, tol: Array, positive: bool, max_iter: int, polish: bool
) -> tuple[Array, Array, Array]:
    """Codes, violation and number of sweeps of coordinate descent, with the support solved exactly in between."""
    free = problem.support
    lam, scale, G = problem.lam, problem.scale, problem.G
    assert G is not None
    slack = 0.1 * tol * scale

    def exact(*trials: Array) -> tuple[Array, Array]:
        def one(z: Array, beta: Array, chosen: Array) -> tuple[Array, Array]:
            return polish_trial(z, beta, lam, chosen, G, slack)

        # On a CPU a batch of small factorisations is far slower than one after the other.
        solved: tuple[Array, Array] = jax.lax.platform_dependent(
            *trials, cpu=lambda *t: jax.lax.map(lambda x: one(*x), t), default=jax.vmap(one)
        )
        return solved

    def body(state: tuple) -> tuple:
        n_iter, z, beta, loose, _ = state
        left = jnp.minimum(max_iter - n_iter, SWEEPS)
        z, n_sweeps = coordinate_descent(z, beta, G, lam, free, left, loose * scale, positive=positive)
        beta = correlations(problem, z)
        if polish:
            near = (beta if positive else jnp.abs(beta)) > 0.999 * per_atom_level(lam, z)
            chosen = (z != 0) | near if free is None else free
            z, fits = exact(z, beta, chosen)
            beta = correlations(problem, z)
            # Where the support does not fit (yet), the sweeps alone must get further.
            loose = jnp.where(fits.all(), loose, jnp.maximum(0.1 * loose, 0.1 * tol))
        return n_iter + n_sweeps, z, beta, loose, violation(problem, z, beta, positive)

    beta = correlations(problem, codes)
    first = jnp.asarray(1.0 if polish else 0.1 * tol, codes.dtype)
    state = (jnp.zeros((), jnp.int32), codes, beta, first, violation(problem, codes, beta, positive))
    n_iter, z, _, _, kkt = jax.lax.while_loop(lambda s: (s[0] < max_iter) & ~(s[4] <= tol), body, state)
    return z, kkt, n_iter


def normal_operator(problem: Problem, codes: Array) -> Any:
    """Function that gives the correlations at codes, with all that does not change computed beforehand."""
    atoms, times = problem.atoms, problem.signal.shape[2:]
    if problem.mask is not None or is_direct("auto", atoms, times):
        return partial(correlations, problem)
    # Without a mask the residual is never needed: one product in the frequency domain takes codes to codes.
    length = fft_shape(times)
    spectrum = spectrum_of(atoms, length)
    start = correlate(atoms, problem.signal)
    product = partial(jnp.einsum, precision="highest")
    few = atoms.shape[0] <= atoms.shape[1]
    symbol = product("kp...,lp...->kl...", spectrum, jnp.conj(spectrum)) if few else spectrum

    def apply(codes: Array) -> Array:
        z = spectrum_of(codes, length)
        if few:
            z = product("nk...,kl...->nl...", z, symbol)
        else:
            z = product("np...,lp...->nl...", product("nk...,kp...->np...", z, symbol), jnp.conj(symbol))
        full = signal_of(z, length)
        return start - full[(..., *(slice(n) for n in codes.shape[2:]))]

    return apply


def accelerated(
    problem: Problem, codes: Array, *, tol: Array, positive: bool, max_iter: int
) -> tuple[Array, Array, Array]:
    """Codes, violation and number of steps of FISTA with restarts, stopped by the optimality conditions."""
    bound = lipschitz(problem.atoms)
    step = 1 / jnp.where(bound > 0, bound, 1)
    threshold = step * per_atom_level(problem.lam, codes)
    beta_of = normal_operator(problem, codes)

    def advance(i: Array, state: tuple) -> tuple:
        z, y, t = state
        new = shrink(y + step * beta_of(y), threshold, positive)
        new = new if problem.support is None else jnp.where(problem.support, new, 0)
        moved = new - z
        uphill = jnp.sum((y - new) * moved) > 0
        after = fista_momentum(t)
        return new, jnp.where(uphill, new, new + (t - 1) / after * moved), jnp.where(uphill, 1, after)

    def body(state: tuple) -> tuple:
        n_iter, z, y, t, _ = state
        n = jnp.minimum(max_iter - n_iter, FISTA_STEPS)
        z, y, t = jax.lax.fori_loop(0, n, advance, (z, y, t))
        return n_iter + n, z, y, t, violation(problem, z, correlations(problem, z), positive)

    kkt = violation(problem, codes, correlations(problem, codes), positive)
    state = (jnp.zeros((), jnp.int32), codes, codes, jnp.ones((), codes.dtype), kkt)
    n_iter, z, _, _, kkt = jax.lax.while_loop(lambda s: (s[0] < max_iter) & ~(s[4] <= tol), body, state)
    return z, kkt, n_iter


@jax.custom_vjp
def attach_gradient(codes: Array, signal: Array, atoms: Array, lam: Array, mask: Array | None) -> Array:
    """Codes as they are, with the derivative of the minimiser in signal, atoms and level.

    The codes that are not zero solve a linear system; the others stay at zero in a neighbourhood.
    """
    return codes


def attach_forward(codes: Array, signal: Array, atoms: Array, lam: Array, mask: Array | None) -> tuple[Array, tuple]:
    """Forward pass."""
    return codes, (codes, signal, atoms, lam, mask)


def attach_backward(saved: tuple, cotangent: Array) -> tuple:
    """Backward pass: one linear system on the support, by conjugate gradients."""
    codes, signal, atoms, lam, mask = saved
    active = codes != 0

    def residual_of(signal: Array, atoms: Array, lam: Array) -> Array:
        beta = correlations(Problem(signal, atoms, None, lam, lam, mask, None), codes)
        return beta - per_atom_level(lam, codes) * jnp.sign(codes)

    def normal(u: Array) -> Array:
        u = jnp.where(active, u, 0)
        fitted = synthesis(atoms, u)
        return jnp.where(active, correlate(atoms, fitted if mask is None else jnp.where(mask, fitted, 0)), 0)

    tol = 1e-10 if codes.dtype == jnp.float64 else 1e-6
    u, _ = cg(normal, jnp.where(active, cotangent, 0), tol=tol, maxiter=1000)
    pullback = jax.vjp(residual_of, signal, atoms, lam)[1]
    return (jnp.zeros_like(codes), *pullback(jnp.where(active, u, 0)), None)


attach_gradient.defvjp(attach_forward, attach_backward)


def pose(signal: Array, atoms: Array, lam: Any, mask: Array | None, support: Array | None, positive: bool) -> Problem:
    """Problem in one dtype, with what is computed once from its data."""
    dtype = jnp.result_type(signal, atoms)
    signal, atoms = jnp.asarray(signal, dtype), jnp.asarray(atoms, dtype)
    lam = jnp.broadcast_to(jnp.asarray(lam, dtype), atoms.shape[:1])
    largest = largest_correlation(atoms, signal, positive=False)
    scale = jnp.where(lam > 0, lam, jnp.where(largest > 0, largest, 1))
    G = gram(atoms) if atoms.ndim == 3 else None
    return Problem(signal, atoms, G, lam, scale, mask, support)


@partial(jax.jit, static_argnames=("solver", "positive", "max_iter", "polish"))
def solve(
    signal: Array,
    atoms: Array,
    lam: Any,
    codes: Array | None,
    mask: Array | None,
    support: Array | None,
    tol: ScalarLike,
    *,
    solver: str,
    positive: bool,
    max_iter: int,
    polish: bool,
) -> CSCResult:
    """`csc_solve` without checks."""
    problem = pose(signal, atoms, lam, mask, support, positive)
    fixed = jax.lax.stop_gradient(problem)
    positions = (t - n + 1 for t, n in zip(signal.shape[2:], atoms.shape[2:], strict=True))
    if codes is None:
        start = jnp.zeros((signal.shape[0], atoms.shape[0], *positions), fixed.signal.dtype)
    else:
        start = jax.lax.stop_gradient(jnp.asarray(codes, fixed.signal.dtype))
        start = jnp.maximum(start, 0) if positive else start
        start = start if support is None else jnp.where(support, start, 0)
    tol = jax.lax.stop_gradient(jnp.asarray(tol, start.dtype))
    if solver == "lgcd" and mask is None:
        z, kkt, n_iter = greedy(fixed, start, tol=tol, positive=positive, max_iter=max_iter, polish=polish)
    else:
        z, kkt, n_iter = accelerated(fixed, start, tol=tol, positive=positive, max_iter=max_iter)
    z = jax.lax.stop_gradient(z)
    # At the minimum the objective does not change with the codes: only its direct derivative remains.
    value = objective(problem.signal, problem.atoms, z, problem.lam, mask)
    differentiable = attach_gradient(z, problem.signal, problem.atoms, problem.lam, mask)
    return CSCResult(differentiable, value, kkt, n_iter, kkt <= tol)


def csc_solve(
    signal: Shaped,
    atoms: Shaped,
    lam: Shaped | ScalarLike,
    *,
    codes: Any = None,
    solver: str = "lgcd",
    positive: bool = True,
    mask: Any = None,
    support: Any = None,
    tol: ScalarLike = 1e-3,
    max_iter: int = 10_000,
    polish: bool = True,
) -> CSCResult:
    r"""Sparse codes of a signal in a dictionary of atoms, to a certified precision.

    Minimises :math:`\tfrac12 \|M(X - \sum_k z_k * D_k)\|^2 + \sum_k \lambda_k \|z_k\|_1`, with :math:`z \ge 0` if
    `positive`. Reverse-mode derivatives in `signal`, `atoms` and `lam` follow from the optimality conditions on the
    support (one linear system), whatever the number of iterations.

    Parameters
    ----------
    signal : Array, shape (n_trials, n_channels, n_times, ...)
        Signal X, float32 or float64; NaN is allowed in masked samples.
    atoms : Array, shape (n_atoms, n_channels, n_times_atom, ...)
        Dictionary D.
    lam : float or Array, shape (n_atoms,)
        Level of sparsity, or one an atom.
    codes : Array, shape (n_trials, n_atoms, n_times - n_times_atom + 1, ...), optional
        Start; zeros by default.
    solver : {"lgcd", "fista"}
        Locally greedy coordinate descent, all segments of one parity at once, for signals with one axis of time; or
        FISTA, for any number of axes. With a mask it is FISTA.
    positive : bool
        Non-negative codes.
    mask : Array of bool, optional
        M, True where a sample is valid; broadcast to the signal. What masked samples hold changes nothing.
    support : Array of bool, shape of the codes, optional
        Codes that may be non-zero. With ``lam=0`` this gives amplitudes without the bias of the penalty.
    tol : float
        Stop when the optimality conditions hold to `tol` times each atom's level (where the level is 0, times the
        largest correlation of an atom with the signal).
    max_iter : int
        Most sweeps or FISTA steps.
    polish : bool
        With "lgcd": solve the problem on the support found exactly, where it has at most 1024 codes a trial, or one
        every 16 positions.

    Returns
    -------
    CSCResult
        `codes`, `objective` (a sum), `kkt` (largest violation, relative), `n_iter`, `converged`.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values in valid samples, negative `lam`, unknown `solver`, "lgcd" for a
        signal with several axes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from gyri.numerics.csc import conv_synthesis, csc_solve
    >>> atoms = jnp.array([[[0.6, 0.8, 0.0]]])
    >>> signal = conv_synthesis(atoms, jnp.array([[[0.0, 2.0, 0.0, 0.0, 1.0, 0.0]]]))
    >>> print(np.asarray(csc_solve(signal, atoms, 0.1).codes).round(3))
    [[[0.  1.9 0.  0.  0.9 0. ]]]

    References
    ----------
    Moreau, Oudre, Vayatis (2018), DICOD: distributed convolutional coordinate descent, section 3 (the locally greedy
    choice); Kim, Park (2011), Fast nonnegative matrix factorization, algorithm 2 (the exact solution).
    """
    check_option(solver, "solver", ("lgcd", "fista"))
    atoms = check_atoms(atoms)
    mask = check_mask(mask, signal)
    signal = check_signal(signal, atoms, mask=mask)
    if solver == "lgcd" and atoms.ndim > 3:
        raise ValueError(f"solver: expected 'fista' for a signal with {atoms.ndim - 2} axes, got 'lgcd'")
    if support is not None:
        support = check_codes(support, atoms, signal.shape, "support", bool)
    if codes is not None:
        codes = check_codes(codes, atoms, signal.shape)
    return solve(
        signal,
        atoms,
        check_lam(lam, atoms.shape[0]),
        codes,
        mask,
        support,
        check_scalar(tol, "tol", minimum=0),
        solver=solver,
        positive=positive,
        max_iter=check_positive_int(max_iter, "max_iter"),
        polish=polish,
    )
