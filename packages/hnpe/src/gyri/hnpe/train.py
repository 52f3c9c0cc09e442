"""Training: minibatches under Adam, whose rate is always annealed to zero in the end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from gyri.numerics.loops import fit_minibatch

_ADAM = optax.scale_by_adam()


def _update(gradient: PyTree, state: tuple, params: PyTree = None) -> tuple[PyTree, tuple]:
    """Adam along a cosine; its ends are part of the state, so that all schedules share one compiled program."""
    adam, step, rate, n_steps = state
    updates, adam = _ADAM.update(gradient, adam, params)
    factor = -rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / n_steps, 1)))
    return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), (adam, step + 1, rate, n_steps)


def cosine_adam(learning_rate: float, n_steps: int) -> optax.GradientTransformation:
    """Adam whose rate falls from `learning_rate` to zero along a cosine.

    Parameters
    ----------
    learning_rate : float
        At the start.
    n_steps : int
        After which it is zero.

    Returns
    -------
    optax.GradientTransformation
        Its `update` is the same function for all arguments.

    Examples
    --------
    >>> from gyri.hnpe.train import cosine_adam
    >>> cosine_adam(1e-3, 10).update is cosine_adam(2e-3, 20).update
    True
    """

    def init(params: PyTree) -> tuple:
        return _ADAM.init(params), jnp.zeros(()), jnp.asarray(learning_rate, float), jnp.asarray(n_steps, float)

    return optax.GradientTransformation(init, _update)


def fit(
    key: Array,
    loss: Callable,
    params: PyTree,
    data: dict[str, Any],
    *,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    validation_fraction: float,
    **options: Any,
) -> tuple[PyTree, dict[str, np.ndarray]]:
    """Fit by `fit_minibatch`, then anneal.

    Where the validation loss stands still before `max_epochs`, the rate is still high and the weights jitter: the best
    ones go on for as many epochs as the patience was, while the rate falls from where it was to zero.

    Parameters
    ----------
    key, loss, params, data, batch_size, max_epochs, patience, validation_fraction
        As in :func:`gyri.numerics.loops.fit_minibatch`.
    learning_rate : float
        At the start; it falls to zero over `max_epochs`.
    **options
        The others of `fit_minibatch`.

    Returns
    -------
    params : pytree of Array
        Of the lowest validation loss (training loss without validation).
    history : dict of numpy.ndarray
        As `fit_minibatch` has it, over both parts.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from gyri.hnpe.train import fit
    >>> data = {"x": jnp.linspace(1.0, 3.0, 40)}
    >>> loss = lambda mean, batch, key: jnp.mean((batch["x"] - mean) ** 2)
    >>> options = {"batch_size": 8, "max_epochs": 60, "patience": 5, "validation_fraction": 0.1, "progress": False}
    >>> mean, history = fit(jax.random.key(0), loss, jnp.array(0.0), data, learning_rate=0.1, **options)
    >>> bool(abs(mean - 2) < 0.3)
    True
    """
    n_rows = len(jax.tree.leaves(data)[0])
    a_epoch = max(1, (n_rows - round(n_rows * validation_fraction)) // batch_size)
    options |= {"batch_size": batch_size, "validation_fraction": validation_fraction}
    best, history = fit_minibatch(
        key, loss, params, data, optimizer=cosine_adam(learning_rate, max_epochs * a_epoch), max_epochs=max_epochs,
        patience=patience, **options,
    )  # fmt: skip
    criterion = history["valid_loss" if validation_fraction else "train_loss"]
    n_done = len(criterion)
    n_left = min(patience, max_epochs - n_done)
    # Only if the patience was over: an interruption is an end.
    if n_left < 1 or n_done == 0 or n_done - 1 - int(np.argmin(criterion)) < patience:
        return best, history
    rate = learning_rate * 0.5 * (1 + np.cos(np.pi * n_done / max_epochs))
    # The same key: the same rows are held out.
    again, more = fit_minibatch(
        key, loss, best, data, optimizer=cosine_adam(rate, n_left * a_epoch), max_epochs=n_left, patience=n_left,
        **options,
    )  # fmt: skip
    later = more["valid_loss" if validation_fraction else "train_loss"]
    if len(later) and later.min() < criterion.min():
        best = again
    return best, {name: np.concatenate([history[name], more[name]]) for name in history}
