"""How a variable moves along a direction: plain steps of a size that depends on the outer iteration, or optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, ScalarLike

from gyri.numerics.validation import check_scalar


class Rule(NamedTuple):
    """How one variable moves.

    Attributes
    ----------
    init : callable
        ``init(params) -> opt_state``.
    apply : callable
        ``apply(t, params, direction, opt_state) -> (params, opt_state)`` at outer iteration t.
    size : callable or None
        ``size(t)``, the step; None for an optax transformation.
    value : float or None
        The number that it was made from, if it was one.
    """

    init: Callable[[PyTree], Any]
    apply: Callable[..., tuple[PyTree, Any]]
    size: Callable[[Array], Any] | None
    value: Any


def power_schedule(value: ScalarLike, power: ScalarLike) -> optax.Schedule:
    """Step sizes ``value / (1 + t)**power``.

    Parameters
    ----------
    value : float
        The first one.
    power : float
        How fast it decreases; 0 is a constant.

    Returns
    -------
    optax.Schedule
        From the step t to its size.

    Examples
    --------
    >>> from gyri.saba import power_schedule
    >>> power_schedule(0.5, 0.5)(3)
    0.25
    """

    def schedule(t: Any) -> Any:
        return value / (1.0 + t) ** power

    return schedule


def make_rule(opt: Any, power: float | int, name: str) -> Rule:
    """Make a rule from a number (a step that decreases with a power), a schedule or an optax transformation."""
    if isinstance(opt, optax.GradientTransformation):

        def transform(t: Array, params: PyTree, direction: PyTree, state: Any) -> tuple[PyTree, Any]:
            updates, state = opt.update(direction, state, params)
            return optax.apply_updates(params, updates), state

        return Rule(opt.init, transform, None, None)
    value = None
    if callable(opt):
        size = opt
    else:
        value = check_scalar(opt, name, minimum=0, strict=True)
        size = power_schedule(value, power) if power else lambda t: value

    def step(t: Array, params: PyTree, direction: PyTree, state: Any) -> tuple[PyTree, Any]:
        rate = size(t)
        return jax.tree.map(lambda p, d: p - jnp.asarray(rate, p.dtype) * d, params, direction), state

    return Rule(lambda params: None, step, size, value)


def need_size(rule: Rule, name: str, why: str) -> Callable[[Array], Any]:
    """The rule's step size, which an optax transformation does not have."""
    if rule.size is None:
        raise ValueError(f"{name}: expected a number or a schedule, since {why}, got an optax transformation")
    return rule.size
