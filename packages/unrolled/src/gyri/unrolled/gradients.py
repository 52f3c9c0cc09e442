r"""Gradients for the dictionary after N iterations of sparse coding, and the Jacobians of the codes behind them.

All are derivatives of :math:`F(Z, D) = \tfrac12 \|M (A D Z - X)\|_F^2 + \lambda \|Z\|_1`: g1 with the codes held fixed,
g2 through the unrolled iterations, g3 with the codes' optimal Jacobian. Malézieux, Moreau, Kowalski (2022), section 2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from gyri.numerics import soft_threshold
from gyri.numerics.optim import fista_momentum
from gyri.numerics.validation import check_array, check_option, check_positive_int

from .coding import (
    ALGORITHMS,
    LIPSCHITZ,
    Measurement,
    Shaped,
    check_depth,
    check_lam,
    check_steps,
    code,
    dot,
    lipschitz_constant,
    objective,
    pose,
    residual_of,
    seen,
)

ESTIMATORS = ("g1", "g2", "g3")
RIDGE = 1e-8  # of the trace of the support's Gram matrix
SYSTEM_BYTES = 2**26  # of the matrices that g3 holds at once


def surrogate(
    X: Array,
    components: Array,
    lam: Any,
    steps: Array,
    measurement: Measurement,
    *,
    estimator: str,
    algorithm: str,
    lipschitz: str,
    backprop_depth: int | None,
) -> tuple[Array, Array]:
    """Scalar whose gradient in `components` (and `steps`) is the estimate, and the loss."""
    depth = backprop_depth if estimator == "g2" else 0
    codes = code(X, components, lam, steps, measurement, algorithm=algorithm, lipschitz=lipschitz, backprop_depth=depth)
    loss = objective(X, codes, components, lam, measurement)
    if estimator != "g3":
        return loss, loss
    # The codes' optimal Jacobian, applied to the gradient of F in the codes, is the gradient in D of an inner product.
    weights = jax.lax.stop_gradient(implicit_weights(X, codes, components, lam, measurement))
    effective = seen(components, measurement)
    residual = residual_of(X, codes, effective, measurement)
    no_data = Measurement(measurement.operator, measurement.matrices, None, measurement.mask)
    image = residual_of(jnp.zeros_like(X), weights, effective, no_data)
    return loss - jnp.sum(image * residual), loss


def implicit_weights(X: Array, codes: Array, components: Array, lam: Any, measurement: Measurement) -> Array:
    """``(E_S^T E_S)^-1 (E_S^T (E z - x) + lam sign(z_S))`` of each sample on its support S, 0 elsewhere."""
    effective = seen(components, measurement)
    shared = dot(effective, effective.T)

    def one(row: tuple) -> Array:
        x, z, own = row
        one_sample = jax.tree.map(lambda leaf: leaf[None], own)
        one_sample = Measurement(measurement.operator, one_sample[0], None, one_sample[1])
        residual = residual_of(x[None], z[None], effective, one_sample)
        E = effective.T if own[0] is None else dot(own[0], effective.T)
        gram = shared if own[0] is None and own[1] is None else dot((E if own[1] is None else own[1][:, None] * E).T, E)
        on = z != 0
        rhs = jnp.where(on, dot(residual[0], E) + lam * jnp.sign(z), 0)
        return solve_on_support(gram, on, rhs)

    # One system a sample: some at a time, so that memory stays bounded.
    n = components.shape[0]
    batch = max(1, min(len(X), SYSTEM_BYTES // (n * n * X.dtype.itemsize)))
    rows = (X, codes, (measurement.matrices, measurement.mask))
    return jax.lax.map(one, rows, batch_size=batch)


def solve_on_support(gram: Array, on: Array, rhs: Array) -> Array:
    """Solve the rows and columns of a Gram matrix that are on, with a small ridge; 0 elsewhere."""
    matrix = jnp.where(on[:, None] & on, gram, 0)
    # Below the dtype's precision a ridge would do nothing for a singular system.
    ridge = max(RIDGE, 10 * float(jnp.finfo(gram.dtype).eps)) * jnp.trace(matrix)
    diagonal = jnp.where(on, ridge, 1).astype(gram.dtype)
    factor = jax.scipy.linalg.cho_factor(matrix + jnp.diag(diagonal), lower=True)
    rhs = jnp.where(on.reshape(-1, *[1] * (rhs.ndim - 1)), rhs, 0)
    return jax.scipy.linalg.cho_solve(factor, rhs)


_SETTING = ("estimator", "algorithm", "lipschitz", "backprop_depth")


def _loss_and_gradient(
    X: Array, components: Array, lam: Any, steps: Array, measurement: Measurement, **setting: Any
) -> tuple[Array, Array]:
    both = lambda D: surrogate(X, D, lam, steps, measurement, **setting)
    gradient, loss = jax.grad(both, has_aux=True)(components)
    return loss, gradient


_jitted = jax.jit(_loss_and_gradient, static_argnames=_SETTING)


def dictionary_gradient(
    X: Shaped,
    components: Shaped,
    lam: Float[Array, ""] | ScalarLike,
    *,
    estimator: str = "g2",
    n_iter: int = 20,
    backprop_depth: int | None = None,
    algorithm: str = "fista",
    operator: Any = None,
    mask: Any = None,
) -> tuple[Float[Array, ""], Float[Array, "n_components n_features"]]:
    r"""Loss of a dictionary after `n_iter` iterations of sparse coding, and an estimate of its gradient.

    The gradient wanted is that of :math:`G(D) = \min_Z F(Z, D)`.

    Parameters
    ----------
    X : array-like, shape (n_samples, n_observed)
        Signals.
    components : array-like, shape (n_components, n_features)
        Atoms in rows.
    lam : float
        Penalty, positive.
    estimator : {"g2", "g1", "g3"}
        "g1": codes held fixed, as in alternating minimisation; its error is that of the codes. "g2": through the
        iterations (deep dictionary learning); its error is that of the codes times that of their Jacobian. "g3": with
        the codes' Jacobian at an optimum on the support found; without meaning until that is the right one (some
        hundred iterations), then the most precise. Where the support has more atoms than the signals have
        dimensions its system is singular, and solved with a ridge of 1e-8 of the trace (1e-6 in float32).
    n_iter : int
        Number of iterations.
    backprop_depth : int, optional
        Of "g2": gradients flow through the last iterations only, so many; 0 gives "g1".
    algorithm : {"fista", "ista"}
        With or without momentum.
    operator, mask
        As for `sparse_code`.

    Returns
    -------
    loss : Array, shape ()
        Objective of the codes, summed over samples.
    gradient : Array, shape (n_components, n_features)
        The estimate, like `components`.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity, an argument out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.unrolled import dictionary_gradient
    >>> loss, gradient = dictionary_gradient(jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 0.0]]), 0.5)
    >>> loss, gradient
    (Array(1.375, dtype=float32), Array([[-1.25,  0.  ]], dtype=float32))

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), section 2.2; Ablin, Peyré, Moreau (2020), Super-efficiency of automatic
    differentiation for functions defined as a minimum.
    """
    check_option(estimator, "estimator", ESTIMATORS)
    check_option(algorithm, "algorithm", ALGORITHMS)
    n_iter, depth = check_positive_int(n_iter, "n_iter"), check_depth(backprop_depth)
    posed = pose(X, components, lam, operator, mask)
    steps = jnp.ones(n_iter, posed.X.dtype)
    return _jitted(
        posed.X, posed.components, posed.lam, steps, posed.measurement,
        estimator=estimator, algorithm=algorithm, lipschitz="spectral", backprop_depth=depth,
    )  # fmt: skip


def lasso_jacobian(x: Shaped, components: Shaped, code: Shaped) -> Float[Array, "n_components n_components n_features"]:
    r"""Jacobian of the Lasso's solution in the dictionary, in closed form on its support.

    On the support S, :math:`(J_l)_S = -(D_S^\top D_S)^{-1} (D_l z^\top + (D_l^\top z - x_l) I)_S` for each row
    :math:`D_l`, and 0 elsewhere. A small ridge keeps singular systems solvable.

    Parameters
    ----------
    x : array-like, shape (n_features,)
        One signal.
    components : array-like, shape (n_components, n_features)
        Atoms in rows.
    code : array-like, shape (n_components,)
        A solution, whose non-zero entries are the support.

    Returns
    -------
    Array, shape (n_components, n_components, n_features)
        ``[i, j, l]``: derivative of ``code[i]`` in ``components[j, l]``.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.unrolled import lasso_jacobian
    >>> lasso_jacobian(jnp.array([3.0]), jnp.array([[1.0]]), jnp.array([2.5])).round(3)
    Array([[[-2.]]], dtype=float32)

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), proposition 2.4.
    """
    x = check_array(x, "x", shape=("n_features",))
    components = check_array(components, "components", shape=("n_components", x.shape[0]))
    z = check_array(code, "code", shape=(components.shape[0],))
    dtype = jnp.result_type(x, components, z)
    return _lasso_jacobian(*(jnp.asarray(v, dtype) for v in (x, components, z)))


@jax.jit
def _lasso_jacobian(x: Array, components: Array, z: Array) -> Array:
    rhs = _partial(components, z, dot(z, components) - x)
    n = len(z)
    return -solve_on_support(dot(components, components.T), z != 0, rhs.reshape(n, -1)).reshape(rhs.shape)


def _partial(components: Array, v: Array, residual: Array) -> Array:
    """Derivative of ``D^T (D v - x)`` in D at fixed v, indices as in `lasso_jacobian`."""
    eye = jnp.eye(len(v), dtype=v.dtype)
    return eye[:, :, None] * residual + v[None, :, None] * components[:, None, :]


def unrolled_jacobian(
    x: Shaped,
    components: Shaped,
    lam: Float[Array, ""] | ScalarLike,
    n_iter: int,
    *,
    algorithm: str = "fista",
    steps: Any = None,
    lipschitz: str = "spectral",
) -> Float[Array, "n_components n_components n_features"]:
    """Jacobian in the dictionary of the code after `n_iter` iterations, by the recursion of the paper.

    Parameters
    ----------
    x : array-like, shape (n_features,)
        One signal.
    components : array-like, shape (n_components, n_features)
        Atoms in rows.
    lam : float
        Penalty, positive.
    n_iter : int
        Number of iterations.
    algorithm, steps, lipschitz
        As for `sparse_code`.

    Returns
    -------
    Array, shape (n_components, n_components, n_features)
        ``[i, j, l]``: derivative of the code's entry i in ``components[j, l]``, the step's bound held fixed.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity, an argument out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.unrolled import unrolled_jacobian
    >>> unrolled_jacobian(jnp.array([3.0]), jnp.array([[1.0]]), 0.5, 10).round(3)
    Array([[[-2.]]], dtype=float32)

    References
    ----------
    Malézieux, Moreau, Kowalski (2022), equation 8.
    """
    n_iter = check_positive_int(n_iter, "n_iter")
    check_option(algorithm, "algorithm", ALGORITHMS)
    check_option(lipschitz, "lipschitz", LIPSCHITZ)
    x = check_array(x, "x", shape=("n_features",))
    components = check_array(components, "components", shape=("n_components", x.shape[0]))
    lam = check_lam(lam)
    dtype = jnp.result_type(x, components)
    cast = lambda leaf: jnp.asarray(leaf, dtype)
    steps = check_steps(steps, n_iter, dtype)
    return _unrolled_jacobian(cast(x), cast(components), cast(lam), steps, algorithm=algorithm, lipschitz=lipschitz)[1]


def unrolled_jacobians(
    x: Array, components: Array, lam: Any, steps: Array, *, algorithm: str, lipschitz: str, trace: Any = None
) -> tuple[Array, Array, Any]:
    """Code and Jacobian after all iterations, and ``trace(code, jacobian)`` after each."""
    gram = dot(components, components.T)
    inverse = 1 / lipschitz_constant(components, Measurement(), lipschitz)
    n, m = components.shape

    def body(state: tuple, step: Array) -> tuple:
        z, J, v, Jv, t = state
        rate = step * inverse
        residual = dot(v, components) - x
        new = soft_threshold(v - rate * dot(components, residual), lam * rate)
        slope = _partial(components, v, residual) + dot(gram, Jv.reshape(n, -1)).reshape(Jv.shape)
        J_new = jnp.where((new != 0)[:, None, None], Jv - rate * slope, 0)
        seen_now = None if trace is None else trace(new, J_new)
        if algorithm == "ista":
            return (new, J_new, new, J_new, t), seen_now
        t_next = fista_momentum(t)
        weight = (t - 1) / t_next
        return (new, J_new, new + weight * (new - z), J_new + weight * (J_new - J), t_next), seen_now

    traced: Any
    z0, J0 = jnp.zeros(n, x.dtype), jnp.zeros((n, n, m), x.dtype)
    (z, J, *_), traced = jax.lax.scan(body, (z0, J0, z0, J0, jnp.ones((), x.dtype)), steps)
    return z, J, traced


_unrolled_jacobian = jax.jit(unrolled_jacobians, static_argnames=("algorithm", "lipschitz", "trace"))
