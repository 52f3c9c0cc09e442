"""Exact quantities over all samples: the minimiser of the inner problem, the value function, its gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, ScalarLike

from gyri.numerics.linalg import cg, implicit_minimizer
from gyri.numerics.validation import check_option, check_positive_int, check_scalar

from .descent import descend, norm
from .directions import Side, add, axpy, negative
from .iteration import as_variable, check_data, check_loss
from .programs import compiled
from .types import Hypergradient

INNER_METHODS = ("newton", "lbfgs", "gd")
METHODS = ("direct", "cg", "neumann", "unrolled", "fixed")


def inner_solve(
    inner_fun: Callable,
    z0: PyTree,
    x: PyTree,
    inner_data: Any = None,
    *,
    method: str = "newton",
    tol: ScalarLike = 1e-8,
    maxiter: int = 200,
) -> PyTree:
    r"""Minimiser :math:`z^*(x)` of the inner objective over all samples, differentiable in x and in the data.

    Derivatives follow from the implicit function theorem by one linear system, whatever the solver did; the backward
    pass stores z, not the iterates. Compiled once for the same function and shapes.

    Parameters
    ----------
    inner_fun : callable
        ``fun(z, x, batch) -> scalar``, strongly convex in z.
    z0 : pytree of Array
        Start, float32 or float64; no derivative flows to it.
    x : pytree of Array
        Outer variable.
    inner_data : pytree of Array, optional
        All samples.
    method : {"newton", "lbfgs", "gd"}
        Newton's method (a dense Hessian for up to 64 variables, conjugate gradients for more), L-BFGS, or gradient
        descent by Armijo's rule.
    tol : float
        Stop when the norm of the gradient is at most this, or rounding errors forbid to go on.
    maxiter : int
        Most iterations.

    Returns
    -------
    pytree of Array
        Like `z0`.

    Raises
    ------
    ValueError
        Empty, non-finite or inconsistent data, an unknown method. TypeError: variables that are no floating numbers.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.saba import inner_solve
    >>> ridge = lambda z, x, batch: jnp.mean((batch @ z - 1.0) ** 2) + x * jnp.sum(z**2)
    >>> rows = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> z = inner_solve(ridge, jnp.zeros(2), jnp.array(0.1), rows)
    >>> jax.jacobian(lambda x: inner_solve(ridge, jnp.zeros(2), x, rows))(jnp.array(0.1)).shape
    (2,)

    References
    ----------
    Griewank, Walther (2008), Evaluating Derivatives, chapter 15.
    """
    check_option(method, "method", INNER_METHODS)
    maxiter, tol = check_positive_int(maxiter, "maxiter"), check_scalar(tol, "tol", minimum=0)
    z0, x = as_variable(z0, "z0"), as_variable(x, "x")
    inner_data = check_data(inner_data, "inner_data", "full")
    check_loss(Side(inner_fun, inner_data, "full"), z0, x, "inner_fun")
    return compiled(_minimum, (inner_fun,), method, maxiter)(z0, x, inner_data, tol)


def _minimum(
    inner_fun: Callable, method: str, maxiter: int, z0: PyTree, x: PyTree, inner_data: Any, tol: Any
) -> PyTree:
    """The inner minimiser; compiled."""

    def solve(z0: PyTree, x: PyTree, data: Any) -> PyTree:
        return descend(method, lambda z: inner_fun(z, x, data), z0, tol=tol, max_iter=maxiter)[0]

    return implicit_minimizer(solve, inner_fun)(jax.lax.stop_gradient(z0), x, inner_data)


def value_function(
    inner_fun: Callable,
    outer_fun: Callable,
    z0: PyTree,
    x: PyTree,
    inner_data: Any = None,
    outer_data: Any = None,
    **inner_solve_kw: Any,
) -> tuple[Float[Array, ""], PyTree]:
    """The function to be minimised, h(x) = F(z*(x), x), and the inner minimiser.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        ``fun(z, x, batch) -> scalar``.
    z0 : pytree of Array
        Start of the inner solver.
    x : pytree of Array
        Outer variable; ``jax.grad(value_function, argnums=3, has_aux=True)`` is the exact hypergradient.
    inner_data, outer_data : pytree of Array, optional
        All samples.
    **inner_solve_kw
        Of :func:`inner_solve`.

    Returns
    -------
    value : Array, shape ()
        h(x).
    z : pytree of Array
        z*(x).

    Raises
    ------
    ValueError, TypeError
        As of :func:`inner_solve`.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import problems, value_function
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> data = (problem.inner_data, problem.outer_data)
    >>> value, z = value_function(problem.inner_fun, problem.outer_fun, problem.z0, problem.x0, *data)
    >>> bool(abs(value - problem.value(problem.x0)) < 1e-4)
    True
    """
    z = inner_solve(inner_fun, z0, x, inner_data, **inner_solve_kw)
    outer_data = check_data(outer_data, "outer_data", "full")
    check_loss(Side(outer_fun, outer_data, "full"), z, x, "outer_fun")
    return outer_fun(z, x, outer_data), z


def hypergradient(
    inner_fun: Callable,
    outer_fun: Callable,
    z: PyTree,
    x: PyTree,
    inner_data: Any = None,
    outer_data: Any = None,
    *,
    method: str = "cg",
    tol: ScalarLike = 1e-6,
    maxiter: int | None = None,
    num_steps: int | None = None,
    step_size: ScalarLike | None = None,
    v0: PyTree | None = None,
    damping: ScalarLike = 0.0,
) -> Hypergradient:
    r"""Gradient of the outer objective through the inner minimiser, at a given z, exact or not.

    :math:`\nabla_2 F + \nabla^2_{21} G\, v` with :math:`v = -[\nabla^2_{11} G]^{-1} \nabla_1 F`, over all samples.
    Compiled once for the same functions and shapes.

    Parameters
    ----------
    inner_fun, outer_fun : callable
        ``fun(z, x, batch) -> scalar``.
    z, x : pytree of Array
        Where, float32 or float64.
    inner_data, outer_data : pytree of Array, optional
        All samples.
    method : {"direct", "cg", "neumann", "unrolled", "fixed"}
        How to find v: a dense factorisation, conjugate gradients, `num_steps` terms of a Neumann series; reverse mode
        through `num_steps` gradient steps from z, which needs no v; or `v0` as it is.
    tol, maxiter : float, int
        Relative residual and most iterations of ``"cg"``.
    num_steps, step_size : int, float
        Of ``"neumann"``, which needs a step below 2 over the largest curvature, and ``"unrolled"``.
    v0 : pytree of Array, optional
        Start of ``"cg"`` and ``"neumann"``, v of ``"fixed"``; zero by default.
    damping : float
        Added to the Hessian's diagonal; 0 for ``"unrolled"`` and ``"fixed"``, which solve no linear system.

    Returns
    -------
    Hypergradient
        `grad`, `v`, `value` F(z, x) and `residual` of the linear system.

    Raises
    ------
    ValueError
        An unknown method, missing `num_steps`, `step_size` or `v0`, damping of nothing, and as of :func:`inner_solve`.

    Examples
    --------
    >>> import jax
    >>> from gyri.saba import hypergradient, problems
    >>> problem = problems.quadratic(jax.random.key(0), n=64, m=64, p=3, d=2)
    >>> z = problem.inner_solution(problem.x0)
    >>> out = hypergradient(problem.inner_fun, problem.outer_fun, z, problem.x0, problem.inner_data, problem.outer_data)
    >>> bool(abs(out.grad - problem.gradient(problem.x0)).max() < 1e-4)
    True

    References
    ----------
    Dagréou, Ablin, Vaiter, Moreau (2022), equations 2 and 3; Ghadimi, Wang (2018) for the Neumann series.
    """
    check_option(method, "method", METHODS)
    z, x = as_variable(z, "z"), as_variable(x, "x")
    inner = Side(inner_fun, check_data(inner_data, "inner_data", "full"), "full")
    outer = Side(outer_fun, check_data(outer_data, "outer_data", "full"), "full")
    check_loss(inner, z, x, "inner_fun")
    check_loss(outer, z, x, "outer_fun")
    damping, tol = check_scalar(damping, "damping", minimum=0), check_scalar(tol, "tol", minimum=0)
    if method in ("neumann", "unrolled"):
        if step_size is None or num_steps is None:
            missing = "step_size" if step_size is None else "num_steps"
            raise ValueError(f"{missing}: expected a number for method {method!r}, got None")
        num_steps = check_positive_int(num_steps, "num_steps")
        step_size = check_scalar(step_size, "step_size", minimum=0, strict=True)
    if method in ("unrolled", "fixed") and (isinstance(damping, jax.core.Tracer) or damping != 0):
        raise ValueError(f"damping: expected 0 for method {method!r}, which solves no linear system, got {damping}")
    if method == "fixed" and v0 is None:
        raise ValueError("v0: expected a pytree like z for method 'fixed', got None")
    v0 = jax.tree.map(jnp.zeros_like, z) if v0 is None else as_variable(v0, "v0")
    if jax.tree.map(jnp.shape, v0) != jax.tree.map(jnp.shape, z):
        raise ValueError(f"v0: expected shapes {jax.tree.map(jnp.shape, z)}, got {jax.tree.map(jnp.shape, v0)}")
    core = compiled(_at_point, (inner_fun, outer_fun), method, num_steps)
    return core(z, x, inner.data, outer.data, v0, tol, maxiter, step_size, damping)


def _at_point(
    inner_fun: Callable,
    outer_fun: Callable,
    method: str,
    num_steps: Any,
    z: PyTree,
    x: PyTree,
    inner_data: Any,
    outer_data: Any,
    v0: PyTree,
    tol: Any,
    maxiter: Any,
    step_size: Any,
    damping: Any,
) -> Hypergradient:
    """The hypergradient; compiled."""
    inner, outer = Side(inner_fun, inner_data, "full"), Side(outer_fun, outer_data, "full")
    value, (r, s) = jax.value_and_grad(outer_fun, (0, 1))(z, x, outer_data)
    if method == "unrolled":
        gradient = _unrolled(inner, outer, z, x, num_steps, step_size)
        return Hypergradient(gradient, None, value, jnp.full_like(value, jnp.nan))
    product = lambda v: axpy(damping, v, inner.hvp(None, z, v, x))
    v = _solve(method, product, r, v0, tol=tol, maxiter=maxiter, num_steps=num_steps, step_size=step_size)
    _, plain, cross = inner.products(None, z, v, x)
    size = norm(r)
    residual = norm(add(plain, r)) / jnp.where(size > 0, size, 1)
    return Hypergradient(add(s, cross), v, value, residual)


def _solve(
    method: str, product: Callable, r: PyTree, v: PyTree, *, tol: Any, maxiter: Any, num_steps: Any, step_size: Any
) -> PyTree:
    """Solution of ``product(v) = -r``."""
    if method == "fixed":
        return v
    if method == "cg":
        return cg(product, negative(r), v, tol=tol, maxiter=maxiter)[0]
    if method == "neumann":
        step = lambda _, v: axpy(-step_size, add(product(v), r), v)
        return jax.lax.fori_loop(0, num_steps, step, v)
    flat, back = ravel_pytree(r)
    columns = jax.vmap(lambda e: ravel_pytree(product(back(e)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    return back(jnp.linalg.solve(0.5 * (columns + columns.T), -flat))


def _unrolled(inner: Side, outer: Side, z: PyTree, x: PyTree, num_steps: Any, step_size: Any) -> PyTree:
    """Gradient in x of F after gradient steps of z from where it is."""

    def value(x: PyTree) -> Array:
        step = lambda z, _: (axpy(-step_size, inner.grad_z(None, z, x), z), None)
        return outer.value(None, jax.lax.scan(step, z, None, num_steps)[0], x)

    return jax.grad(value)(x)
