"""A flax module as pure functions of its weights, statistics and a key; losses of labelled batches."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from gyri.numerics.validation import check_array, check_option


class Weights(NamedTuple):
    """What of a module is an array.

    Attributes
    ----------
    params : nnx.State
        Trainable.
    streams : nnx.State
        Keys of dropout and the like.
    stats : nnx.State
        All else: statistics of batch normalisation.
    """

    params: Any
    streams: Any
    stats: Any


class Graphs(NamedTuple):
    """What of a module is not: its structure in training and in evaluation."""

    training: Any
    evaluation: Any


def take_apart(network: Any) -> tuple[Graphs, Weights]:
    """Structure and arrays of a copy of a module."""
    if not isinstance(network, nnx.Module):
        raise ValueError(f"network: expected a flax.nnx.Module, got {type(network).__name__}")
    network = nnx.clone(network)
    network.train()
    training, *arrays = nnx.split(network, nnx.Param, nnx.RngState, ...)
    network.eval()
    evaluation, *_ = nnx.split(network, nnx.Param, nnx.RngState, ...)
    if not jax.tree.leaves(arrays[0]):
        raise ValueError("network: expected a module with parameters, got none")
    return Graphs(training, evaluation), Weights(*arrays)


def put_together(graphs: Graphs, weights: Weights) -> Any:
    """The module, ready for evaluation."""
    return nnx.merge(graphs.evaluation, *weights, copy=True)


def network_dtype(weights: Weights) -> Any:
    """Common dtype of the parameters."""
    return jnp.result_type(*jax.tree.leaves(weights.params))


def _fold(streams: PyTree, key: Array) -> PyTree:
    """Streams of random numbers for one call."""
    structure: Any
    leaves, structure = jax.tree.flatten(streams)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return structure.unflatten([jax.random.fold_in(key, i) if is_key(leaf) else leaf for i, leaf in enumerate(leaves)])


def run_training(graphs: Graphs, weights: Weights, key: Array, call: Callable) -> tuple[Any, Any]:
    """``call(module)`` in training mode, and the statistics after it.

    The module is a copy: statistics change only where the caller keeps what comes back.
    """
    module = nnx.merge(graphs.training, weights.params, _fold(weights.streams, key), weights.stats, copy=True)
    result = call(module)
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return result, parts[3]


def run_evaluation(graphs: Graphs, weights: Weights, x: Array) -> Array:
    """Logits in evaluation mode."""
    return nnx.merge(graphs.evaluation, *weights, copy=True)(x)


def window_losses(logits: Array, y: Array, class_weight: Array) -> Array:
    """Cross-entropy of each window times the weight of its class."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0] * class_weight[y]


def cross_entropy(logits: Array, y: Array, class_weight: Array) -> Array:
    """Mean over a batch of `window_losses`."""
    return jnp.mean(window_losses(logits, y, class_weight))


def class_weights(class_weight: Any, y: np.ndarray, n_classes: int) -> np.ndarray:
    """Weight of each class: None, "balanced" (n / (n_classes_seen * n_c), absent classes 0), a sequence or a dict.

    Examples
    --------
    >>> class_weights("balanced", np.array([0, 0, 0, 1]), 2).round(2).tolist()
    [0.67, 2.0]
    """
    if class_weight is None:
        return np.ones(n_classes)
    if isinstance(class_weight, str):
        check_option(class_weight, "class_weight", ("balanced",))
        n = np.bincount(y, minlength=n_classes)
        return np.where(n > 0, len(y) / (np.count_nonzero(n) * np.maximum(n, 1)), 0)
    if isinstance(class_weight, dict):
        wrong = set(class_weight) - set(range(n_classes))
        if wrong:
            raise ValueError(f"class_weight: expected classes 0 to {n_classes - 1}, got {sorted(map(str, wrong))}")
        class_weight = [class_weight.get(c, 1) for c in range(n_classes)]
    weights = np.asarray(check_array(class_weight, "class_weight", shape=(n_classes,)), float)
    if weights.min() < 0:
        raise ValueError(f"class_weight: expected weights >= 0, got {weights.tolist()}")
    return weights


def balanced_accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that occur of the share recognised.

    Examples
    --------
    >>> balanced_accuracy(np.array([0, 0, 2]), np.array([0, 1, 2]))
    0.75
    """
    classes, rows = np.unique(y, return_inverse=True)
    right = np.bincount(rows, predicted == y, minlength=len(classes))
    return float(np.mean(right / np.bincount(rows)))


EVALUATION_BATCH = 64


@lru_cache(maxsize=32)
def evaluator(graphs: Graphs) -> Callable:
    """Compiled ``logits(weights, X)``, some windows at a time."""

    @jax.jit
    def logits(weights: Weights, X: Array) -> Array:
        return jax.lax.map(lambda x: run_evaluation(graphs, weights, x[None])[0], X, batch_size=EVALUATION_BATCH)

    return logits
