r"""Sparse coding by a fixed number of iterations, unrolled: differentiable in everything but the step's bound.

Minimises :math:`F(z) = \tfrac12 \|M (x - E z)\|^2 + \lambda \|z\|_1` for each sample, E being the dictionary seen
through the measurement operator, M a mask. Malézieux, Moreau, Kowalski (2022), equations 1-3.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from gyri.numerics import LinearOperator, soft_threshold
from gyri.numerics.linalg import operator_norm
from gyri.numerics.optim import fista_momentum
from gyri.numerics.validation import check_array, check_option, check_positive_int, check_scalar

from .datasets import unit_rows

ALGORITHMS = ("ista", "fista")
LIPSCHITZ = ("spectral", "frobenius")
MIN_STEP = 1e-3  # of a learned relative step size
EIGEN_MAX = 512  # rows of a Gram matrix whose spectrum is computed whole

Shaped = Float[Any, "..."]
dot = partial(jnp.matmul, precision="highest")  # never in TensorFloat-32: gradients are differences


# --- the loop -------------------------------------------------------------------------------------------------------


def split_depth(n_iter: int, backprop_depth: int | None) -> int:
    """Number of first iterations through which no gradient flows.

    Examples
    --------
    >>> split_depth(20, 5), split_depth(20, 50), split_depth(20, None)
    (15, 0, 0)
    """
    return 0 if backprop_depth is None else max(n_iter - backprop_depth, 0)


class Iteration(NamedTuple):
    """What is fixed in the loop: the gradient of the smooth part and of what it is made, the threshold, the steps."""

    gradient: Callable[[Any, Array], Array]
    constants: Any
    inverse: Array  # 1 / Lipschitz constant, broadcast to the codes
    lam: Array
    steps: Array  # (n_iter,)


def unroll(iteration: Iteration, z0: Array, *, algorithm: str, backprop_depth: int | None) -> Array:
    """Run all iterations; a gradient flows through the last `backprop_depth` of them."""
    n_iter = iteration.steps.shape[0]
    n_head = split_depth(n_iter, backprop_depth)

    def run(now: Iteration, state: tuple, rows: slice) -> tuple:
        def body(state: tuple, step: Array) -> tuple:
            z, v, t = state
            rate = step * now.inverse
            new = soft_threshold(v - rate * now.gradient(now.constants, v), now.lam * rate)
            if algorithm == "ista":
                return (new, new, t), None
            t_next = fista_momentum(t)
            return (new, new + (t - 1) / t_next * (new - z), t_next), None

        return jax.lax.scan(body, state, now.steps[rows])[0]

    state = (z0, z0, jnp.ones((), z0.dtype))
    if n_head:
        # Nothing is kept for a backward pass that never comes.
        state = jax.lax.stop_gradient(run(_stopped(iteration), state, slice(None, n_head)))
    return run(iteration, state, slice(n_head, None))[0] if n_head < n_iter else state[0]


def _stopped(iteration: Iteration) -> Iteration:
    gradient, *rest = iteration
    return Iteration(gradient, *jax.lax.stop_gradient(rest))


# --- the dictionary problem -----------------------------------------------------------------------------------------


class Measurement(NamedTuple):
    """How the dictionary is seen: one operator, or one matrix a sample, and a mask.

    Attributes
    ----------
    operator : LinearOperator or None
        One for all samples.
    matrices : Array, shape (n_samples, n_observed, n_features), or None
        One a sample.
    squares : Array, shape (n_samples, 1), or None
        Squared norms of the matrices.
    mask : Array, shape (n_samples, n_observed), or None
        1 where observed.
    """

    operator: LinearOperator | None = None
    matrices: Array | None = None
    squares: Array | None = None
    mask: Array | None = None

    def rows(self, index: Array) -> "Measurement":
        """The measurement of some samples."""
        own = jax.tree.map(lambda leaf: leaf[index], (self.matrices, self.squares, self.mask))
        return Measurement(self.operator, *own)


def seen(components: Array, measurement: Measurement) -> Array:
    """The dictionary through the operator that all samples share, shape (n_components, n_observed)."""
    operator = measurement.operator
    if operator is None:
        return components
    images = operator.matvec(components.reshape(-1, *operator.in_shape))
    return images.reshape(len(components), -1)


def synthesize(codes: Array, effective: Array, measurement: Measurement) -> Array:
    """What the codes predict for the observations, before the mask."""
    signal = dot(codes, effective)
    if measurement.matrices is None:
        return signal
    return jnp.einsum("tij,tj->ti", measurement.matrices, signal, precision="highest")


def residual_of(X: Array, codes: Array, effective: Array, measurement: Measurement) -> Array:
    """Prediction less observation, 0 where masked."""
    residual = synthesize(codes, effective, measurement) - X
    return residual if measurement.mask is None else measurement.mask * residual


def objective(X: Array, codes: Array, components: Array, lam: Any, measurement: Measurement) -> Array:
    """Sum over samples of the Lasso's objective; per sample first, which keeps digits in float32."""
    residual = residual_of(X, codes, seen(components, measurement), measurement)
    lam = jnp.asarray(lam, X.dtype)
    return jnp.sum(0.5 * jnp.sum(jnp.square(residual), -1) + lam * jnp.sum(jnp.abs(codes), -1))


def lipschitz_constant(effective: Array, measurement: Measurement, kind: str) -> Array:
    """Bound of the squared norm of what each sample sees, () or (n_samples, 1); never differentiated."""
    E = jax.lax.stop_gradient(effective)
    gram = dot(E, E.T) if E.shape[0] <= E.shape[1] else dot(E.T, E)
    if kind == "frobenius":
        value = jnp.linalg.norm(gram)
    elif gram.shape[0] <= EIGEN_MAX:
        value = jnp.linalg.eigvalsh(gram, symmetrize_input=False)[-1]
    else:
        value = 1.02 * jnp.square(operator_norm(E))  # power iteration ends below the norm
    value = value.astype(E.dtype) if measurement.squares is None else value.astype(E.dtype) * measurement.squares
    # Behind zeros (dictionary, operator, rows that fill a chunk up) codes are zeros at any step size.
    return jnp.where(value > jnp.finfo(value.dtype).tiny, value, 1)


def spectral_squares(matrices: Array) -> Array:
    """Squared spectral norms of one matrix a sample, (n_samples, 1)."""
    small = "tij,tkj->tik" if matrices.shape[1] <= matrices.shape[2] else "tji,tjk->tik"
    gram = jnp.einsum(small, matrices, matrices, precision="highest")
    largest = jax.lax.map(lambda g: jnp.linalg.eigvalsh(g, symmetrize_input=False)[-1], gram)
    return jnp.maximum(largest, jnp.finfo(matrices.dtype).tiny)[:, None]


def code(
    X: Array,
    components: Array,
    lam: Any,
    steps: Array,
    measurement: Measurement,
    *,
    algorithm: str = "fista",
    lipschitz: str = "spectral",
    backprop_depth: int | None = None,
) -> Array:
    """`sparse_code` without checks; as many iterations as steps."""
    effective = seen(components, measurement)
    inverse = 1 / lipschitz_constant(effective, measurement, lipschitz)
    n_components, n_observed = effective.shape
    gradient: Callable
    if measurement.matrices is None and measurement.mask is None and n_components <= 2 * n_observed:
        # n^2 products a sample and iteration for 2 n m, and half as many in the backward pass as well.
        constants: tuple = dot(effective, effective.T), dot(X, effective.T)
        gradient = gram_gradient
    else:
        constants, gradient = (X, effective, measurement), plain_gradient
    iteration = Iteration(gradient, constants, inverse, jnp.asarray(lam, X.dtype), steps)
    z0 = jnp.zeros((len(X), n_components), X.dtype)
    return unroll(iteration, z0, algorithm=algorithm, backprop_depth=backprop_depth)


def gram_gradient(constants: tuple, v: Array) -> Array:
    """Gradient of the data fit in the codes, of the Gram matrix and the correlations."""
    gram, correlations = constants
    return dot(v, gram) - correlations


def plain_gradient(constants: tuple, v: Array) -> Array:
    """The same of the dictionary itself."""
    X, effective, measurement = constants
    residual = residual_of(X, v, effective, measurement)
    if measurement.matrices is not None:
        residual = jnp.einsum("tij,ti->tj", measurement.matrices, residual, precision="highest")
    return dot(residual, effective.T)


def replace_unused(
    X: Array, components: Array, steps: Array, lam: Array, measurement: Measurement, **setting: Any
) -> tuple[Array, int]:
    """Atoms, those that no sample uses replaced by residuals of the samples reconstructed worst; and their number."""
    codes = code(X, components, lam, steps, measurement, **setting)
    unused = np.flatnonzero(~np.asarray(jnp.any(codes != 0, 0)))
    if unused.size in (0, len(components)):  # with codes of zeros only, no other atoms would help
        return components, 0
    residual = -residual_of(X, codes, seen(components, measurement), measurement)
    worst = jnp.argsort(-jnp.sum(jnp.square(residual), 1))[: unused.size]
    atoms = residual[worst]
    if measurement.operator is not None:
        images = measurement.operator.rmatvec(atoms.reshape(-1, *measurement.operator.out_shape))
        atoms = images.reshape(len(atoms), -1)
    elif measurement.matrices is not None:
        atoms = jnp.einsum("tji,tj->ti", measurement.matrices[worst], atoms, precision="highest")
    return components.at[unused[: len(atoms)]].set(unit_rows(atoms)), int(unused.size)


# --- checks ---------------------------------------------------------------------------------------------------------


class Posed(NamedTuple):
    """Checked arguments in one floating dtype."""

    X: Array
    components: Array
    lam: Any
    measurement: Measurement


def check_lam(lam: Any) -> Any:
    """Check a level of sparsity: a positive number or a scalar of JAX."""
    return check_scalar(lam, "lam", minimum=0, strict=True)


def check_mask(mask: Any, shape: tuple[int, ...]) -> Array | None:
    """Check a mask of 0 and 1, or booleans, of a shape; None where there is none."""
    if mask is None:
        return None
    array = check_array(mask, "mask", shape=shape)
    if not isinstance(array, jax.core.Tracer) and not np.isin(np.asarray(array), (0, 1)).all():
        raise ValueError("mask: expected 1 (or True) where observed and 0 elsewhere, got other numbers")
    return jnp.asarray(array)


def check_data(X: Any, mask: Any, shape: tuple) -> Any:
    """Check data; where a mask says that nothing was observed, whatever stands there becomes 0."""
    if mask is None or np.shape(mask) != np.shape(X):  # the mask's own check says so
        return check_array(X, "X", shape=shape)
    X = check_array(X, "X", shape=shape, allow_nan=True)
    return check_array(jnp.where(jnp.asarray(mask) != 0, X, 0).astype(jnp.asarray(X).dtype), "X", shape=shape)


def check_measurement(operator: Any, mask: Any, shape: tuple[int, int], n_features: int | None = None) -> Measurement:
    """Check an operator (a matrix, one a sample, or a `LinearOperator`) and a mask against data of a shape.

    Parameters
    ----------
    operator : array-like of shape (n_observed, n_features) or (n_samples, n_observed, n_features), LinearOperator, None
        What the data were measured with.
    mask : array-like, of the data's shape, or None
        1 where observed.
    shape : tuple of int
        That of the data.
    n_features : int or None
        Length of the atoms, if it is known.

    Returns
    -------
    Measurement
        The same.

    Raises
    ------
    ValueError
        Shapes that do not fit, non-finite values, a mask of other numbers.

    Examples
    --------
    >>> check_measurement(np.ones((3, 5)), None, (10, 3)).operator.shape
    (3, 5)
    """
    n_samples, n_observed = shape
    checked = check_mask(mask, shape)
    if operator is None:
        if n_features not in (None, n_observed):
            raise ValueError(f"components: expected {n_observed} features as in X, got {n_features}")
        return Measurement(mask=checked)
    if isinstance(operator, LinearOperator):
        n_out, n_in = operator.shape
        if n_out != n_observed or n_features not in (None, n_in):
            wanted = "any" if n_features is None else n_features
            raise ValueError(f"operator: expected shape ({n_observed}, {wanted}), got {operator.shape}")
        return Measurement(operator=operator, mask=checked)
    matrix = check_array(operator, "operator", ndim=(2, 3))
    each: tuple = (n_samples,) if matrix.ndim == 3 else ()
    matrix = jnp.asarray(check_array(matrix, "operator", shape=(*each, n_observed, n_features)))
    if matrix.ndim == 3:
        return Measurement(matrices=matrix, squares=_squares(matrix), mask=checked)
    from gyri.numerics.linalg import dense

    return Measurement(operator=dense(matrix), mask=checked)


_squares = jax.jit(spectral_squares)


def pose(X: Any, components: Any, lam: Any, operator: Any, mask: Any) -> Posed:
    """Check the arguments of a dictionary problem and cast all to one dtype."""
    X = check_data(X, mask, shape=("n_samples", "n_features"))
    components = check_array(components, "components", shape=("n_components", None))
    measurement = check_measurement(operator, mask, X.shape, components.shape[1])
    lam = check_lam(lam)
    dtype = jnp.result_type(X, components)
    cast = lambda leaf: jnp.asarray(leaf, dtype)
    return Posed(cast(X), cast(components), cast(lam), jax.tree.map(cast, measurement))


def check_steps(steps: Any, n_iter: int, dtype: Any) -> Array:
    """Check relative step sizes, one an iteration; ones for None."""
    if steps is None:
        return jnp.ones(n_iter, dtype)
    steps = check_array(steps, "steps", shape=(n_iter,))
    if not isinstance(steps, jax.core.Tracer) and (np.asarray(steps) <= 0).any():
        raise ValueError("steps: expected numbers > 0, got some that are not")
    return jnp.asarray(steps, dtype)


def check_depth(backprop_depth: Any) -> int | None:
    """Check a number of iterations through which gradients flow."""
    return None if backprop_depth is None else check_positive_int(backprop_depth, "backprop_depth", minimum=0)


_code = jax.jit(code, static_argnames=("algorithm", "lipschitz", "backprop_depth"))
_objective = jax.jit(objective)


# --- public ---------------------------------------------------------------------------------------------------------


def sparse_code(
    X: Shaped,
    components: Shaped,
    lam: Float[Array, ""] | ScalarLike,
    *,
    n_iter: int = 20,
    algorithm: str = "fista",
    steps: Any = None,
    operator: Any = None,
    mask: Any = None,
    lipschitz: str = "spectral",
    backprop_depth: int | None = None,
) -> Float[Array, "n_samples n_components"]:
    r"""Sparse codes of signals after `n_iter` iterations of ISTA or FISTA from zero.

    An approximate solution of :math:`\min_z \tfrac12 \|A D z - x\|^2 + \lambda \|z\|_1` for each sample x, whose
    derivatives in X, `components`, `lam` and `steps` are exact for this number of iterations: gradients flow through
    all of them but not through the bound of the step size. Runs under `jit`, `vmap` and both modes of `grad`; `lam` may
    change without a new compilation.

    Parameters
    ----------
    X : array-like, shape (n_samples, n_observed)
        Signals, float32 or float64.
    components : array-like, shape (n_components, n_features)
        Atoms in rows, as in scikit-learn; of any norm.
    lam : float
        Penalty, positive, in the unit of X squared over that of the codes.
    n_iter : int
        Number of iterations N.
    algorithm : {"fista", "ista"}
        With or without momentum.
    steps : array-like, shape (n_iter,), optional
        Step sizes relative to 1 / L, positive; ones by default.
    operator : array-like or LinearOperator, optional
        What the signals were measured with: a matrix (n_observed, n_features), an operator of `gyri.numerics.linalg`,
        or one matrix a sample, (n_samples, n_observed, n_features). The identity by default.
    mask : array-like, shape (n_samples, n_observed), optional
        1 (True) where a value was observed, 0 where it is missing; what stands in X there has no influence.
    lipschitz : {"spectral", "frobenius"}
        Bound L of the squared norm of the dictionary: its value, or the looser Frobenius norm of the Gram matrix,
        which the authors' training code takes.
    backprop_depth : int, optional
        Gradients flow through the last iterations only, so many. 0: codes are constants.

    Returns
    -------
    Array, shape (n_samples, n_components)
        Codes; many are exactly zero.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity, an argument out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.unrolled import sparse_code
    >>> sparse_code(jnp.array([[3.0, 0.2]]), jnp.eye(2), 0.5)
    Array([[2.5, 0. ]], dtype=float32)

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), equation 3; Beck, Teboulle (2009), A fast iterative shrinkage-thresholding
    algorithm for linear inverse problems.
    """
    n_iter = check_positive_int(n_iter, "n_iter")
    check_option(algorithm, "algorithm", ALGORITHMS)
    check_option(lipschitz, "lipschitz", LIPSCHITZ)
    depth = check_depth(backprop_depth)
    posed = pose(X, components, lam, operator, mask)
    steps = check_steps(steps, n_iter, posed.X.dtype)
    return _code(
        posed.X, posed.components, posed.lam, steps, posed.measurement,
        algorithm=algorithm, lipschitz=lipschitz, backprop_depth=depth,
    )  # fmt: skip


def lasso_objective(
    X: Shaped,
    codes: Shaped,
    components: Shaped,
    lam: Float[Array, ""] | ScalarLike,
    *,
    operator: Any = None,
    mask: Any = None,
) -> Float[Array, ""]:
    r"""Objective of the Lasso, :math:`\tfrac12 \|M (A D Z - X)\|_F^2 + \lambda \|Z\|_1`, summed over samples.

    Parameters
    ----------
    X : array-like, shape (n_samples, n_observed)
        Signals.
    codes : array-like, shape (n_samples, n_components)
        Codes Z.
    components : array-like, shape (n_components, n_features)
        Atoms in rows.
    lam : float
        Penalty, positive.
    operator, mask
        As for `sparse_code`.

    Returns
    -------
    Array, shape ()
        The objective, in the unit of X squared.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity, an argument out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.unrolled import lasso_objective
    >>> lasso_objective(jnp.array([[3.0, 0.0]]), jnp.array([[2.0, 0.0]]), jnp.eye(2), 0.5)
    Array(1.5, dtype=float32)

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), equation 1.
    """
    posed = pose(X, components, lam, operator, mask)
    shape = (posed.X.shape[0], posed.components.shape[0])
    codes = jnp.asarray(check_array(codes, "codes", shape=shape), posed.X.dtype)
    return _objective(posed.X, codes, posed.components, posed.lam, posed.measurement)
