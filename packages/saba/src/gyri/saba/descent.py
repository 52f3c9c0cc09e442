"""Minimisers of the inner objective over all samples: gradient descent, L-BFGS, Newton."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from gyri.numerics.linalg import cg
from gyri.numerics.optim import armijo_step

from .directions import axpy, dot, negative

METHODS = ("gd", "lbfgs", "newton-cg", "newton")
DENSE = 64  # variables up to which "newton" forms the Hessian
ARMIJO = 1e-4  # part of the decrease that the slope promises
MAX_PRODUCTS = 200  # of conjugate gradients in a Newton step


def norm(tree: PyTree) -> Array:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(dot(tree, tree))


def descend(
    method: str, fun: Callable, z: PyTree, *, tol: Any, max_iter: int, step_size: Any = None
) -> tuple[PyTree, Array]:
    """Minimise a function until the norm of its gradient is at most a tolerance.

    Parameters
    ----------
    method : {"gd", "lbfgs", "newton-cg", "newton"}
        Gradient descent, by a fixed step or, without one, by Armijo's rule; L-BFGS; Newton with conjugate gradients;
        Newton with a dense Hessian for a few variables, with conjugate gradients for many.
    fun : callable
        ``fun(z) -> scalar``.
    z : pytree of Array
        Start.
    tol : float
        Largest norm of the gradient.
    max_iter : int
        Most steps.
    step_size : float, optional
        Of ``"gd"``.

    Returns
    -------
    z : pytree of Array
        The last iterate.
    n_calls : Array of int32, shape ()
        Gradients and Hessian products.
    """
    if method == "lbfgs":
        return _lbfgs(fun, z, tol, max_iter)
    size = sum(leaf.size for leaf in jax.tree.leaves(z))
    solve = _solve_dense if method == "newton" and size <= DENSE else _solve_cg
    step = _gradient_step if method == "gd" else partial(_newton_step, solve)
    value_and_grad = jax.value_and_grad(fun)

    def body(state: tuple) -> tuple:
        i, z, value, gradient, rate, n_calls, _ = state
        new, rate, made, blind = step(fun, z, value, gradient, rate, step_size)
        new_value, new_gradient = value_and_grad(new)
        # Below the rounding of the value only the gradient can tell whether a step was one forward.
        worse = blind & ~(norm(new_gradient) < norm(gradient))
        kept = jax.tree.map(lambda a, b: jnp.where(worse, a, b), (z, value, gradient), (new, new_value, new_gradient))
        return i + 1, *kept, rate, n_calls + made + 1, worse | (rate == 0)

    value, gradient = value_and_grad(z)
    rate = jnp.ones((), value.dtype)
    state = (0, z, value, gradient, rate, jnp.ones((), jnp.int32), jnp.zeros((), bool))
    going = lambda s: (s[0] < max_iter) & (norm(s[3]) > tol) & ~s[6]
    final = jax.lax.while_loop(going, body, state)
    return final[1], final[5]


def _gradient_step(fun: Callable, z: PyTree, value: Array, gradient: PyTree, rate: Array, size: Any) -> tuple:
    """Next point, step (0 when there is none), products made, whether the value could not judge."""
    if size is not None:
        return axpy(-size, gradient, z), rate, 0, jnp.zeros((), bool)
    slope = -dot(gradient, gradient)
    z, _, accepted = armijo_step(fun, z, negative(gradient), slope, step_size=2 * rate, c=ARMIJO, value_old=value)
    return z, accepted.astype(rate.dtype), 0, jnp.zeros((), bool)


def _newton_step(
    solve: Callable, fun: Callable, z: PyTree, value: Array, gradient: PyTree, rate: Array, size: Any
) -> tuple:
    direction, made = solve(fun, z, gradient)
    slope = dot(gradient, direction)
    bad = ~(slope < 0)
    direction = jax.tree.map(lambda d, g: jnp.where(bad, -g, d), direction, gradient)
    slope = jnp.where(bad, -dot(gradient, gradient), slope)
    blind = ~bad & (-slope <= 100 * jnp.finfo(rate.dtype).eps * jnp.abs(value))

    def search() -> tuple:
        z_new, _, accepted = armijo_step(fun, z, direction, slope, step_size=1.0, c=ARMIJO, value_old=value)
        return z_new, accepted.astype(rate.dtype)

    z, rate = jax.lax.cond(blind, lambda: (axpy(1, direction, z), jnp.ones_like(rate)), search)
    return z, rate, made, blind


def _solve_cg(fun: Callable, z: PyTree, gradient: PyTree) -> tuple[PyTree, Array]:
    # Linearised once: a product then costs two passes over the data, not four.
    product = jax.linearize(jax.grad(fun), z)[1]
    # As exact as the gradient is small: the end converges quadratically.
    size = norm(gradient)
    accuracy = jnp.clip(size, 100 * jnp.finfo(size.dtype).eps, 0.1)
    direction, info = cg(product, negative(gradient), tol=accuracy, maxiter=MAX_PRODUCTS)
    return direction, info.n_iter + 1


def _solve_dense(fun: Callable, z: PyTree, gradient: PyTree) -> tuple[PyTree, int]:
    flat, back = ravel_pytree(z)
    hessian = jax.hessian(lambda flat: fun(back(flat)))(flat)
    factor = jax.scipy.linalg.cho_factor(hessian)  # NaN, hence a gradient step, where it is not positive definite
    return back(-jax.scipy.linalg.cho_solve(factor, ravel_pytree(gradient)[0])), flat.size


def _lbfgs(fun: Callable, z: PyTree, tol: Any, max_iter: int) -> tuple[PyTree, Array]:
    solver = optax.lbfgs()
    dtype = jnp.result_type(*jax.tree.leaves(z))
    in_dtype = lambda z: fun(z).astype(dtype)  # the line search knows one precision only
    value_and_grad = optax.value_and_grad_from_state(in_dtype)

    def body(state: tuple) -> tuple:
        i, z, opt_state, _, n_calls, _ = state
        value, gradient = value_and_grad(z, state=opt_state)
        updates, opt_state = solver.update(gradient, opt_state, z, value=value, grad=gradient, value_fn=in_dtype)
        trials = optax.tree.get(opt_state, "num_linesearch_steps")
        new = optax.apply_updates(z, updates)
        gradient = optax.tree.get(opt_state, "grad")
        stuck = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda a, b: (a == b).all(), new, z))
        return i + 1, new, opt_state, norm(gradient), n_calls + trials.astype(n_calls.dtype), stuck

    first = norm(jax.grad(fun)(z))
    state = (0, z, solver.init(z), first, jnp.ones((), jnp.int32), jnp.zeros((), bool))
    final = jax.lax.while_loop(lambda s: (s[0] < max_iter) & (s[3] > tol) & ~s[5], body, state)
    return final[1], final[4]
