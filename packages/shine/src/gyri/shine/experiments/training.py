"""Training of classifiers for the experiments: epochs scanned on the device, one program a setting."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ..deq import DEQ, jacobian_penalty
from ..models import DenseCell
from ..solvers import Broyden


class Dense(nnx.Module):
    """A dense equilibrium layer and a linear one.

    Examples
    --------
    >>> Dense(4, 8, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    def __init__(
        self, dim_in: int, dim: int, n_classes: int, *, rngs: nnx.Rngs, backward: Any = "shine", max_gain: Any = 1.0
    ) -> None:
        cell = DenseCell(dim_in, dim, rngs=rngs, max_gain=max_gain)
        self.layer = DEQ(cell, solver=Broyden(max_steps=18, tol=1e-3), backward=backward)
        self.linear = nnx.Linear(dim, n_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores of the classes."""
        return self.linear(self.layer(x))


@lru_cache
def digits(seed: int) -> tuple[np.ndarray, ...]:
    """Handwritten digits: training and test images (n, 64), labels; 70 and 30 per cent, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    return tuple(train_test_split(X, y.astype(np.int32), train_size=0.7, random_state=seed, stratify=y))


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def run_epoch(
    graph: Any,
    optimizer: Any,
    loss: Callable,
    batch_size: int,
    state: tuple,
    key: jax.Array,
    X: jax.Array,
    y: jax.Array,
) -> tuple[tuple, jax.Array]:
    """One pass over shuffled data; ``loss(model, x, y, key)``. The state is (parameters, others, of the optimiser)."""
    n = len(y) // batch_size
    rows = jax.random.permutation(key, len(y))[: n * batch_size].reshape(n, batch_size)

    def step(state: tuple, given: tuple) -> tuple[tuple, jax.Array]:
        params, others, memory = state
        at, key = given

        def value(params: Any) -> tuple[jax.Array, Any]:
            # A copy: flax lets only variables of this very trace be written to (the running means of batch norms).
            model = nnx.merge(graph, params, jax.tree.map(lambda x: x, others))
            result = loss(model, X[at], y[at], key)
            split: Any = nnx.split(model, nnx.Param, ...)
            return result, split[2]

        (result, others), gradient = jax.value_and_grad(value, has_aux=True)(params)
        updates, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, updates), others, memory), result

    return jax.lax.scan(step, state, (rows, jax.random.split(key, n)))


def fit(
    model: nnx.Module, loss: Callable, optimizer: Any, X: Any, y: Any, *, epochs: int, batch_size: int, seed: int
) -> tuple[Any, np.ndarray]:
    """Train a module; the trained one and the losses, one a step."""
    split: Any = nnx.split(model, nnx.Param, ...)
    graph, params, others = split
    state, losses = (params, others, optimizer.init(params)), []
    X, y = jnp.asarray(X), jnp.asarray(y)
    for key in jax.random.split(jax.random.key(seed), epochs):
        state, some = run_epoch(graph, optimizer, loss, batch_size, state, key, X, y)
        losses.append(some)
    return nnx.merge(graph, *state[:2]), np.concatenate(jax.device_get(losses))


def cross_entropy(model: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def regularized(model: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    """Mean cross-entropy, and the Jacobian penalty at the solution."""
    step, consts = model.layer.prepare(x)
    z = model.layer(x)
    entropy = optax.softmax_cross_entropy_with_integer_labels(model.linear(z), y).mean()
    return entropy + JACOBIAN_WEIGHT * jacobian_penalty(step, z, *consts, key=key)


JACOBIAN_WEIGHT = 1.0
ADAM = optax.adam(2e-3)


@lru_cache(maxsize=64)
def train_dense(seed: int, backward: Any, max_gain: float | None, regularize: bool, epochs: int) -> tuple[Any, float]:
    """A trained digits classifier and its accuracy on the test images."""
    X, X_test, y, y_test = digits(seed)
    model = Dense(64, 80, 10, rngs=nnx.Rngs(seed), backward=backward, max_gain=max_gain)
    loss = regularized if regularize else cross_entropy
    model, _ = fit(model, loss, ADAM, X, y, epochs=epochs, batch_size=64, seed=seed)
    return model, accuracy(model, X_test, y_test)


@nnx.jit
def predict(model: Any, x: jax.Array) -> jax.Array:
    """Labels."""
    return model(x).argmax(-1)


def accuracy(model: Any, x: Any, y: Any) -> float:
    """Share of labels that are right."""
    return float(np.mean(np.asarray(predict(model, jnp.asarray(x))) == y))
