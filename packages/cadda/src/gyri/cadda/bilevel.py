r"""Gradient of a validation loss in hyper-parameters, through one step of training.

For :math:`\theta' = \theta - \xi \nabla_\theta L_{tr}(\theta, \alpha)` and :math:`v = \nabla L_{val}(\theta')`, the
hypergradient is :math:`-\xi\, (\partial^2 L_{tr} / \partial\alpha\, \partial\theta)\, v`. Rommel et al. (2022),
algorithm 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from gyri.numerics.validation import check_option, check_scalar

METHODS = ("exact", "finite_difference", "first_order")


class Unrolled(NamedTuple):
    """One step of training ahead, and what the validation loss says there.

    Attributes
    ----------
    theta : pytree
        Weights after the step.
    v : pytree
        Gradient of the validation loss at `theta`.
    slope : pytree
        Gradient of the training loss before the step.
    train_loss, valid_loss : Array, shape ()
        Training loss before the step, validation loss after it.
    train_aux, valid_aux : pytree
        What the losses returned beside, or None.
    """

    theta: PyTree
    v: PyTree
    slope: PyTree
    train_loss: Float[Array, ""]
    valid_loss: Float[Array, ""]
    train_aux: PyTree
    valid_aux: PyTree

    def report(self, has_aux: bool) -> dict[str, Any]:
        """The second result of `hypergradient`."""
        report = {"valid_loss": self.valid_loss, "train_loss": self.train_loss, "theta_unrolled": self.theta}
        return report | ({"train_aux": self.train_aux, "valid_aux": self.valid_aux} if has_aux else {})


def with_aux(loss: Callable, name: str, has_aux: bool) -> Callable:
    """A loss that returns (scalar, extra), its result checked."""

    def checked(*args: Any) -> tuple[Array, Any]:
        result = loss(*args)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(f"{name}: expected (scalar, extra) as has_aux=True says, got {type(result).__name__}")
        value, extra = result if has_aux else (result, None)
        if jnp.shape(value):
            raise ValueError(f"{name}: expected a scalar loss, got shape {jnp.shape(value)}")
        return value, extra

    return checked


def add_scaled(tree: PyTree, scale: Any, other: PyTree) -> PyTree:
    """``tree + scale * other`` in the dtypes of `tree`.

    Examples
    --------
    >>> add_scaled({"w": jnp.ones(2)}, 2.0, {"w": jnp.ones(2)})
    {'w': Array([3., 3.], dtype=float32)}
    """
    return jax.tree.map(lambda x, y: (x + scale * y).astype(jnp.result_type(x)), tree, other)


def dot(tree: PyTree, other: PyTree) -> Array:
    """Inner product of two trees."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), tree, other)
    return jax.tree.reduce(jnp.add, products)


def unroll(
    train_loss: Callable, valid_loss: Callable, theta: PyTree, alpha: PyTree, lr: Any, *, drift: PyTree = None
) -> Unrolled:
    """Step ahead and differentiate the validation loss there; the losses return (scalar, extra).

    `drift` is added to the gradient of the step; it does not depend on alpha.
    """
    (loss, train_aux), g = jax.value_and_grad(train_loss, has_aux=True)(theta, alpha)
    step = g if drift is None else add_scaled(g, 1, drift)
    ahead = add_scaled(theta, -lr, step)
    (valid, valid_aux), v = jax.value_and_grad(valid_loss, has_aux=True)(ahead)
    return Unrolled(ahead, v, g, loss, valid, train_aux, valid_aux)


def probe_length(v: PyTree, eps: Any) -> Array:
    """``eps / ||v||``, or 1 where v is 0 and any step gives the difference 0."""
    squares = dot(v, v)
    return eps / jnp.sqrt(jnp.where(squares > 0, squares, jnp.square(eps)))


def slope_along(train_loss: Callable, theta: PyTree, v: PyTree, alpha: PyTree, method: str, eps: Any) -> Array:
    """Derivative of the training loss along v, a function of alpha whose gradient is the mixed derivative times v."""
    loss = lambda t: train_loss(t, alpha)[0]
    if method == "exact":
        return jax.jvp(loss, (theta,), (v,))[1]
    e = probe_length(v, eps)
    return (loss(add_scaled(theta, e, v)) - loss(add_scaled(theta, -e, v))) / (2 * e)


def mixed_derivative(train_loss: Callable, theta: PyTree, v: PyTree, alpha: PyTree, method: str, eps: Any) -> PyTree:
    """Second derivative in alpha and theta, times v."""
    grad_alpha = jax.grad(lambda t, a: train_loss(t, a)[0], argnums=1)
    if method == "exact":
        return jax.jvp(lambda t: grad_alpha(t, alpha), (theta,), (v,))[1]
    e = probe_length(v, eps)
    above, below = (grad_alpha(add_scaled(theta, sign * e, v), alpha) for sign in (1, -1))
    return jax.tree.map(lambda a, b: ((a - b) / (2 * e)).astype(a.dtype), above, below)


def hypergradient(
    train_loss: Callable,
    valid_loss: Callable,
    theta: PyTree,
    alpha: PyTree,
    lr: ScalarLike | Array,
    *,
    method: str = "exact",
    eps: ScalarLike | Array = 1e-2,
    has_aux: bool = False,
) -> tuple[PyTree, dict[str, Any]]:
    r"""Gradient of the validation loss in hyper-parameters, through one gradient step of training.

    Parameters
    ----------
    train_loss : callable
        ``train_loss(theta, alpha) -> scalar``. It is called more than once: whatever is random in it must come from a
        key that it closes over, so that every call sees the same draw.
    valid_loss : callable
        ``valid_loss(theta) -> scalar``.
    theta, alpha : pytree of floating arrays
        Weights and hyper-parameters.
    lr : float
        Length :math:`\xi` of the step.
    method : {"exact", "finite_difference", "first_order"}
        "exact": forward over reverse differentiation. "finite_difference": of the gradient in alpha, at
        ``theta ± eps * v / ||v||``. "first_order": the step is taken to be independent of alpha, which gives 0 here as
        the validation loss does not depend on alpha itself; to compare with.
    eps : float
        Length of the probe of the finite difference.
    has_aux : bool
        The losses return ``(scalar, extra)``.

    Returns
    -------
    grad_alpha : pytree
        Like `alpha`.
    aux : dict
        ``"train_loss"`` at `theta`, ``"valid_loss"`` after the step, ``"theta_unrolled"``; with `has_aux` also
        ``"train_aux"`` and ``"valid_aux"``, the extras at the same places.

    Raises
    ------
    ValueError
        Unknown method, `lr` or `eps` out of range, a loss that is no scalar.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import hypergradient
    >>> train = lambda theta, alpha: 0.5 * (theta - alpha) ** 2
    >>> valid = lambda theta: 0.5 * theta**2
    >>> g, aux = hypergradient(train, valid, jnp.array(1.0), jnp.array(3.0), 0.5)
    >>> g, aux["theta_unrolled"]
    (Array(1., dtype=float32), Array(2., dtype=float32))

    References
    ----------
    Rommel, Moreau, Paillard, Gramfort (2022), algorithm 1; Liu, Simonyan, Yang (2019), DARTS, for the difference.
    """
    return _hypergradient(train_loss, valid_loss, theta, alpha, lr, None, method, eps, has_aux)


def momentum_hypergradient(
    train_loss: Callable,
    valid_loss: Callable,
    theta: PyTree,
    alpha: PyTree,
    lr: ScalarLike | Array,
    buffer: PyTree,
    *,
    momentum: ScalarLike | Array = 0.9,
    weight_decay: ScalarLike | Array = 0.0,
    method: str = "exact",
    eps: ScalarLike | Array = 1e-2,
    has_aux: bool = False,
) -> tuple[PyTree, dict[str, Any]]:
    r"""`hypergradient` through a step with momentum and weight decay, as DADA takes it.

    The step is :math:`\theta' = \theta - \xi (m\, b + \nabla_\theta L_{tr} + \lambda \theta)`, b being the buffer of
    the heavy ball.

    Parameters
    ----------
    train_loss, valid_loss, theta, alpha, lr, method, eps, has_aux
        As for `hypergradient`.
    buffer : pytree
        Like `theta`.
    momentum, weight_decay : float
        m and lambda.

    Returns
    -------
    grad_alpha, aux
        As for `hypergradient`.

    Raises
    ------
    ValueError
        As `hypergradient`; `buffer` unlike `theta`; `momentum` or `weight_decay` negative.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import momentum_hypergradient
    >>> train = lambda theta, alpha: 0.5 * (theta - alpha) ** 2
    >>> valid = lambda theta: 0.5 * theta**2
    >>> one, three = jnp.array(1.0), jnp.array(3.0)
    >>> momentum_hypergradient(train, valid, one, three, 0.5, jnp.array(-1.0), momentum=1.0)[0]
    Array(1.25, dtype=float32)

    References
    ----------
    Li, Hu, Wang, Hospedales, Robertson, Yang (2020), DADA.
    """
    check_scalar(momentum, "momentum", minimum=0)
    check_scalar(weight_decay, "weight_decay", minimum=0)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (buffer, theta)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"buffer: expected the structure and shapes of theta, {shapes[1]}, got {shapes[0]}")
    drift = jax.tree.map(lambda b, t: momentum * b + weight_decay * t, buffer, theta)
    return _hypergradient(train_loss, valid_loss, theta, alpha, lr, drift, method, eps, has_aux)


def _hypergradient(
    train_loss: Callable, valid_loss: Callable, theta: PyTree, alpha: PyTree, lr: Any, drift: PyTree, method: str,
    eps: Any, has_aux: bool,
) -> tuple[PyTree, dict[str, Any]]:  # fmt: skip
    check_option(method, "method", METHODS)
    lr, eps = check_scalar(lr, "lr", minimum=0), check_scalar(eps, "eps", minimum=0, strict=True)
    train_loss, valid_loss = with_aux(train_loss, "train_loss", has_aux), with_aux(valid_loss, "valid_loss", has_aux)
    ahead = unroll(train_loss, valid_loss, theta, alpha, lr, drift=drift)
    if method == "first_order":
        gradient = jax.tree.map(jnp.zeros_like, alpha)
    else:
        mixed = mixed_derivative(train_loss, theta, ahead.v, alpha, method, eps)
        gradient = jax.tree.map(lambda m: (-lr * m).astype(m.dtype), mixed)
    return gradient, ahead.report(has_aux)
