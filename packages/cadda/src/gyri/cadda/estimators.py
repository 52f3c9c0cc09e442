r"""RELAX: unbiased gradients of the expected cost of discrete choices, with a learned control variate.

Grathwohl, Choi, Wu, Roeder, Duvenaud (2018), "Backpropagation through the void". For a choice b with parameters w, a
cost f and a surrogate c,

.. math:: g = [f(b) - c(\tilde z)]\, \nabla_w \log p(b | w) + \nabla_w c(z) - \nabla_w c(\tilde z),

z being the relaxed choice behind b and :math:`\tilde z` another one drawn given b.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from gyri.numerics.validation import as_key, check_array, check_scalar

N_HIDDEN = 10


class Choice(NamedTuple):
    """A hard choice and the two relaxed ones around it, all functions of the parameters for fixed uniforms.

    Attributes
    ----------
    hard : Array
        What is chosen.
    soft, conditional : Array
        Relaxed choice behind `hard`, and one drawn given `hard`.
    log_prob : Array, shape ()
        Of `hard`, summed over independent choices.
    """

    hard: Array
    soft: Array
    conditional: Array
    log_prob: Array


def uniforms(key: Any, shape: tuple, dtype: Any) -> tuple[Array, Array]:
    """Two arrays of numbers strictly between 0 and 1."""
    one, other = jax.random.split(key)
    draw = lambda k: jax.random.uniform(k, shape, dtype, minval=jnp.finfo(dtype).tiny)
    return draw(one), draw(other)


def choose_one(logits: Array, u: Array, v: Array, temperature: Any) -> Choice:
    """Categorical choices along the last axis, as one-hot vectors."""
    log_theta = jax.nn.log_softmax(logits)
    z = log_theta - jnp.log(-jnp.log(u))
    hard = jax.lax.stop_gradient(jax.nn.one_hot(z.argmax(-1), z.shape[-1], dtype=z.dtype))
    waits = jnp.log(-jnp.log(v))
    of_chosen = jnp.sum(hard * waits, -1, keepdims=True)
    others = -jnp.logaddexp(waits - log_theta, of_chosen)  # -log(-log(v_i) / theta_i - log v_b)
    conditional = jnp.where(hard > 0, -waits, others)
    soften = lambda x: jax.nn.softmax(x / temperature)
    return Choice(hard, soften(z), soften(conditional), jnp.sum(hard * log_theta))


def choose_whether(logits: Array, u: Array, v: Array, temperature: Any) -> Choice:
    """Bernoulli choices of the given log-odds, as 0 or 1."""
    odds = lambda t: jnp.log(t) - jnp.log1p(-t)
    z = logits + odds(u)
    hard = jax.lax.stop_gradient((z > 0).astype(z.dtype))
    p = jax.nn.sigmoid(logits)
    given = v * (hard - 1) * (p - 1) + hard * (v * p + 1 - p)
    # Rounding may reach 0 or 1 where p is tiny.
    given = jnp.clip(given, jnp.finfo(z.dtype).tiny, 1 - jnp.finfo(z.dtype).epsneg)
    soften = lambda x: jax.nn.sigmoid(x / temperature)
    log_prob = hard * jax.nn.log_sigmoid(logits) + (1 - hard) * jax.nn.log_sigmoid(-logits)
    return Choice(hard, soften(z), soften(logits + odds(given)), jnp.sum(log_prob))


def control(
    choose: Callable, logits: Array, value: Array, surrogate: Callable, surrogate_params: PyTree
) -> tuple[Array, PyTree]:
    """RELAX from the cost of the hard choice; `choose` maps logits to a `Choice` at fixed uniforms."""

    def estimate(phi: PyTree) -> Array:
        score = jax.grad(lambda w: choose(w).log_prob)
        control_gradient = jax.grad(lambda w: _difference(choose(w), surrogate, phi))
        return (value - surrogate(phi, choose(logits).conditional)) * score(logits) + control_gradient(logits)

    gradient, pull = jax.vjp(estimate, surrogate_params)
    return gradient, pull(2 * gradient / gradient.size)[0]


def _difference(choice: Choice, surrogate: Callable, phi: PyTree) -> Array:
    return surrogate(phi, choice.soft) - surrogate(phi, choice.conditional)


def relax_gradient(
    key: Any,
    cost: Callable,
    logits: Float[Any, "..."] | Any,
    surrogate: Callable,
    surrogate_params: PyTree,
    *,
    temperature: ScalarLike | Array = 0.1,
) -> tuple[Array, PyTree, Array]:
    r"""Unbiased estimate of the gradient of an expected cost in the logits of categorical choices.

    Parameters
    ----------
    key : PRNG key or int
        Same key, same draw.
    cost : callable
        ``cost(one_hot) -> scalar``, called once on what was drawn. It is not differentiated.
    logits : array-like, shape (..., n_options)
        Along the last axis the log-weights of one choice; other axes are independent choices.
    surrogate : callable
        ``surrogate(params, soft) -> scalar``, `soft` being like `logits`: any differentiable function. The closer it
        comes to the cost the smaller is the variance; the estimate is unbiased for all of them.
    surrogate_params : pytree
        Its parameters.
    temperature : float
        Of the relaxed choices; positive.

    Returns
    -------
    grad_logits : Array, like `logits`
        The estimate.
    grad_surrogate_params : pytree, like `surrogate_params`
        Gradient of the mean square of the estimate, which bounds its variance: the surrogate descends along it.
    sample : Array, like `logits`
        What was drawn, one-hot.

    Raises
    ------
    ValueError
        Logits not finite or empty, temperature not positive.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import relax_gradient
    >>> cost = lambda one_hot: one_hot @ jnp.array([0.0, 1.0])
    >>> surrogate = lambda scale, soft: scale * soft[1]
    >>> draw = lambda key: relax_gradient(key, cost, jnp.zeros(2), surrogate, jnp.array(0.5))[0]
    >>> mean = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000)).mean(0)  # of (-1/4, 1/4)
    >>> bool(abs(mean[1] - 0.25) < 0.03)
    True

    References
    ----------
    Grathwohl et al. (2018).
    """
    return _relax(key, cost, logits, surrogate, surrogate_params, temperature, choose_one)


def relax_bernoulli_gradient(
    key: Any,
    cost: Callable,
    logits: Float[Any, "..."] | Any,
    surrogate: Callable,
    surrogate_params: PyTree,
    *,
    temperature: ScalarLike | Array = 0.1,
) -> tuple[Array, PyTree, Array]:
    r"""`relax_gradient` for choices between 0 and 1.

    Parameters
    ----------
    key, surrogate, surrogate_params, temperature
        As for `relax_gradient`.
    cost : callable
        ``cost(bits) -> scalar``, called once on what was drawn.
    logits : array-like
        Log-odds :math:`\log p / (1 - p)` of each bit.

    Returns
    -------
    grad_logits, grad_surrogate_params, sample
        As for `relax_gradient`; the sample holds 0 and 1.

    Raises
    ------
    ValueError
        Logits not finite or empty, temperature not positive.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.cadda import relax_bernoulli_gradient
    >>> surrogate = lambda scale, soft: scale * soft
    >>> _, _, bit = relax_bernoulli_gradient(0, lambda bit: bit**2, jnp.array(20.0), surrogate, jnp.array(1.0))
    >>> bit
    Array(1., dtype=float32)

    References
    ----------
    Grathwohl et al. (2018); Tucker et al. (2017), REBAR.
    """
    return _relax(key, cost, logits, surrogate, surrogate_params, temperature, choose_whether)


def _relax(
    key: Any, cost: Callable, logits: Any, surrogate: Callable, params: PyTree, temperature: Any, rule: Callable
) -> tuple[Array, PyTree, Array]:
    logits = jnp.asarray(check_array(logits, "logits"))
    temperature = check_scalar(temperature, "temperature", minimum=0, strict=True)
    u, v = uniforms(as_key(key), logits.shape, logits.dtype)
    choose = lambda w: rule(w, u, v, temperature)
    sample = choose(logits).hard
    value = jnp.asarray(cost(sample))
    if value.shape:
        raise ValueError(f"cost: expected a scalar, got shape {value.shape}")
    return (*control(choose, logits, jax.lax.stop_gradient(value), surrogate, params), sample)


def init_surrogate(key: Any, n_inputs: int, dtype: Any) -> dict[str, Array]:
    """A multilayer perceptron with one hidden layer of ten tanh units and one output.

    Examples
    --------
    >>> {name: w.shape for name, w in init_surrogate(jax.random.key(0), 4, "float32").items()}
    {'hidden': (4, 10), 'bias': (10,), 'out': (10,)}
    """
    weights, out = jax.random.split(key)
    return {
        "hidden": jax.random.normal(weights, (n_inputs, N_HIDDEN), dtype) / n_inputs**0.5,
        "bias": jnp.zeros(N_HIDDEN, dtype),
        "out": 0.1 * jax.random.normal(out, (N_HIDDEN,), dtype),
    }


def surrogate_network(params: dict[str, Array], soft: Array) -> Array:
    """Value of the perceptron at relaxed choices, all of them one input."""
    return jnp.tanh(soft.ravel() @ params["hidden"] + params["bias"]) @ params["out"]
