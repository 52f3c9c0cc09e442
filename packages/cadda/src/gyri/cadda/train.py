"""Training of a classifier with augmented batches, early stopping on the balanced accuracy of a validation set."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from gyri.numerics.loops import progress_bar
from gyri.numerics.validation import as_key, check_positive_int, check_scalar

from .functional import (
    Graphs,
    Weights,
    balanced_accuracy,
    class_weights,
    cross_entropy,
    evaluator,
    network_dtype,
    put_together,
    run_training,
    take_apart,
)
from .windows import Windows, read_windows


class Data(NamedTuple):
    """A labelled set on the device, with the weights of its classes.

    Attributes
    ----------
    X : Array, shape (n, n_channels, n_times)
        Windows.
    y : Array of int, shape (n,)
        Labels.
    class_weight : Array, shape (n_classes,)
        Weight of the loss of each class.
    """

    X: Array
    y: Array
    class_weight: Array

    def rows(self, rows: Array) -> tuple[Array, Array]:
        """Windows and labels of a batch."""
        return self.X[rows], self.y[rows]


class Learner(NamedTuple):
    """State of the training of a network.

    Attributes
    ----------
    weights : Weights
        The network's arrays.
    opt_state : pytree
        State of Adam.
    """

    weights: Weights
    opt_state: PyTree


def adam(b1: float = 0.9) -> Any:
    """Adam whose updates are multiplied by the step outside, so that no learning rate is compiled in."""
    import optax

    return optax.scale_by_adam(b1=b1)


def start(weights: Weights) -> Learner:
    """A learner that owns its arrays: steps donate them."""
    return Learner(jax.tree.map(jnp.copy, weights), adam().init(weights.params))


def descend(learner: Learner, gradient: PyTree, stats: Any, lr: Any) -> Learner:
    """One step of Adam."""
    updates, opt_state = adam().update(gradient, learner.opt_state)
    params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), learner.weights.params, updates)
    return Learner(learner.weights._replace(params=params, stats=stats), opt_state)


def batch_loss(
    graphs: Graphs, weights: Weights, key: Array, x: Array, y: Array, class_weight: Array
) -> tuple[Array, Any]:
    """Loss of a batch in training mode, and the statistics after it."""
    logits, stats = run_training(graphs, weights, key, lambda module: module(x))
    return cross_entropy(logits, y, class_weight), stats


@lru_cache(maxsize=32)
def training_step(graphs: Graphs) -> Callable:
    """Compiled ``step(learner, key, i, data, rows, augmenter, lr) -> (learner, loss)``; the learner is donated."""

    def step(
        learner: Learner, key: Array, i: Array, data: Data, rows: Array, augmenter: Any, lr: Array
    ) -> tuple[Learner, Array]:
        augment_key, network_key = jax.random.split(jax.random.fold_in(key, i))
        x, y = data.rows(rows)
        x = x if augmenter is None else augmenter(augment_key, x, y).astype(x.dtype)

        def loss(params: Any) -> tuple[Array, Any]:
            return batch_loss(graphs, learner.weights._replace(params=params), network_key, x, y, data.class_weight)

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(learner.weights.params)
        return descend(learner, gradient, stats, lr), value

    return jax.jit(step, donate_argnums=0)


class Batches:
    """Rows of the batches of an epoch, shuffled; what does not fill a batch waits for the next shuffle."""

    def __init__(self, key: Array, n_rows: int, batch_size: int) -> None:
        self._rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        self._n_rows, self.size = n_rows, min(batch_size, n_rows)
        self.n_batches = n_rows // self.size

    def epoch(self) -> np.ndarray:
        """Rows, shape (n_batches, batch_size)."""
        order = self._rng.permutation(self._n_rows)[: self.n_batches * self.size]
        return order.reshape(self.n_batches, self.size).astype(np.int32)

    def stream(self) -> Any:
        """Endless batches."""
        while True:
            yield from self.epoch()


def as_pytree(augmenter: Any) -> Any:
    """An augmenter as an argument of a compiled function: one that is a pytree as it is, a function as a constant."""
    if augmenter is None or not callable(augmenter):
        if augmenter is not None:
            raise ValueError(f"augmenter: expected a function of (key, X, y) or None, got {augmenter!r}")
        return None
    return jax.tree_util.Partial(augmenter) if jax.tree_util.all_leaves([augmenter]) else augmenter


def check_losses(losses: list[Array], epoch: int) -> np.ndarray:
    """Losses of an epoch on the host, the only wait in it."""
    values = np.asarray(jnp.stack(losses))
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"the training loss is not finite in epoch {epoch}, step {int(np.argmin(np.isfinite(values)))}: "
            "lower learning_rate, or look at the scale of X"
        )
    return values


def on_device(windows: Windows, dtype: Any, class_weight: np.ndarray) -> Data:
    """A set of windows for the network's dtype."""
    return Data(jnp.asarray(windows.X, dtype), jnp.asarray(windows.y), jnp.asarray(class_weight, dtype))


def count_outputs(graphs: Graphs, weights: Weights, windows: Windows, name: str = "network") -> int:
    """Number of classes that a network tells apart; it must take such windows."""
    x = jax.ShapeDtypeStruct((2, *windows.X.shape[1:]), network_dtype(weights))
    try:
        shape = jax.eval_shape(lambda w, x: nnx.merge(graphs.evaluation, *w, copy=True)(x), weights, x).shape
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: does not take windows of shape {windows.X.shape[1:]}: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"{name}: expected logits of shape (batch, n_classes), got {shape} for a batch of 2")
    return shape[1]


def same_shape(windows: Windows, others: Windows) -> None:
    """Refuse validation windows unlike those of the training."""
    if windows.X.shape[1:] != others.X.shape[1:]:
        raise ValueError(f"X_valid: expected windows of shape {windows.X.shape[1:]} as in X, got {others.X.shape[1:]}")


class Scores(NamedTuple):
    """Loss and balanced accuracy of a set."""

    loss: float
    accuracy: float


def score(graphs: Graphs, weights: Weights, data: Data) -> Scores:
    """Evaluate a network on a set."""
    logits = evaluator(graphs)(weights, data.X)
    loss = cross_entropy(logits, data.y, data.class_weight)
    return Scores(float(loss), balanced_accuracy(np.asarray(data.y), np.asarray(logits.argmax(-1))))


class Trained(NamedTuple):
    """What `fit_weights` returns."""

    weights: Weights
    history: dict[str, np.ndarray]
    interrupted: bool


def fit_weights(
    key: Array, graphs: Graphs, weights: Weights, train: Data, valid: Data, *, augmenter: Any, learning_rate: float,
    batch_size: int, n_epochs: int, patience: int, verbose: bool,
) -> Trained:  # fmt: skip
    """Train, stop early, and give back the weights of the best epoch."""
    shuffle_key, step_key = jax.random.split(key)
    batches = Batches(shuffle_key, len(train.y), batch_size)
    step, learner, lr = training_step(graphs), start(weights), np.float32(learning_rate)
    best, best_accuracy, since = weights, -np.inf, 0
    rows: list[tuple[float, float, float]] = []
    interrupted = False
    with progress_bar(n_epochs, "training", verbose) as bar:
        try:
            for epoch in range(n_epochs):
                losses = []
                for j, chosen in enumerate(batches.epoch()):
                    i = np.int32(epoch * batches.n_batches + j)
                    learner, loss = step(learner, step_key, i, train, chosen, augmenter, lr)
                    losses.append(loss)
                mean = float(check_losses(losses, epoch).mean())
                found = score(graphs, learner.weights, valid)
                since += 1
                if found.accuracy > best_accuracy:
                    # A copy: the next step donates these arrays.
                    best, best_accuracy, since = jax.tree.map(jnp.copy, learner.weights), found.accuracy, 0
                rows.append((mean, found.loss, found.accuracy))
                bar.update(1)
                bar.set_postfix_str(f"loss {mean:.3f}, validation accuracy {found.accuracy:.3f}")
                if since >= patience:
                    break
        except KeyboardInterrupt:
            interrupted = True
    columns = np.array(rows).reshape(-1, 3).T
    names = ("train_loss", "valid_loss", "valid_balanced_accuracy")
    return Trained(best, dict(zip(names, columns)), interrupted)


def train_classifier(
    key: Any,
    network: Any,
    X: Float[Any, "n n_channels n_times"] | Any,
    y: Int[Any, " n"] | Any,
    X_valid: Float[Any, "n_valid n_channels n_times"] | Any,
    y_valid: Int[Any, " n_valid"] | Any,
    *,
    augmenter: Any = None,
    learning_rate: ScalarLike = 1e-3,
    batch_size: int = 16,
    n_epochs: int = 300,
    patience: int = 30,
    class_weight: Any = "balanced",
    verbose: bool = True,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Train a network with Adam, keep the epoch of the best balanced accuracy on the validation set.

    Validation windows are never augmented. Batches are shuffled each epoch; what does not fill a batch waits for the
    next shuffle. Ctrl-C gives back the best network so far.

    Parameters
    ----------
    key : PRNG key or int
        Of shuffles, augmentation and dropout; not of the network's start, which is where `network` is.
    network : flax.nnx.Module
        Takes (batch, n_channels, n_times), returns logits (batch, n_classes). It is left as it is.
    X, X_valid : array-like, shape (n, n_channels, n_times), or mne.Epochs
        Windows, z-scored; epochs are z-scored here. They are computed on in the dtype of the network.
    y, y_valid : array-like of int, shape (n,)
        Labels from 0. None for epochs: their event codes in increasing order.
    augmenter : callable, optional
        ``augmenter(key, X, y) -> X``, on each batch, traceable by JAX; such as `PolicySearch.augmenter` gives.
    learning_rate : float
        Of Adam.
    batch_size : int
        Windows a step.
    n_epochs : int
        Most epochs.
    patience : int
        Stop after so many epochs without a better balanced accuracy.
    class_weight : "balanced", None, sequence or dict
        Weights of the classes in the loss: inverse to their frequency, all 1, or given.
    verbose : bool
        Show a bar.

    Returns
    -------
    network : flax.nnx.Module
        Trained copy, in evaluation mode.
    history : dict of numpy.ndarray, each of shape (n_epochs_run,)
        ``"train_loss"``, ``"valid_loss"``, ``"valid_balanced_accuracy"``.

    Raises
    ------
    FloatingPointError
        The training loss is not finite.
    ValueError
        Windows or labels of the wrong shape or type, NaN, infinite; labels that the network does not know; an
        argument out of range.

    Examples
    --------
    >>> from flax import nnx
    >>> from gyri.cadda import SleepStager, simulate_sleep, train_classifier
    >>> X, y, _ = simulate_sleep(0, 2, 20, sfreq=20, window_s=10)
    >>> network = SleepStager(2, 5, 200, 20, rngs=nnx.Rngs(0))
    >>> network, history = train_classifier(
    ...     0, network, X[:20], y[:20], X[20:], y[20:], n_epochs=2, verbose=False
    ... )
    >>> history["train_loss"].shape
    (2,)

    References
    ----------
    Rommel et al. (2022); Chambon et al. (2018).
    """
    graphs, weights = take_apart(network)
    given, held = read_windows(X, y), read_windows(X_valid, y_valid, "_valid")
    same_shape(given, held)
    n_classes = count_outputs(graphs, weights, given)
    given, held = read_windows(given.X, given.y, "", n_classes), read_windows(held.X, held.y, "_valid", n_classes)
    of_classes = class_weights(class_weight, given.y, n_classes)
    dtype = network_dtype(weights)
    trained = fit_weights(
        as_key(key), graphs, weights, on_device(given, dtype, of_classes), on_device(held, dtype, of_classes),
        augmenter=as_pytree(augmenter),
        learning_rate=check_scalar(learning_rate, "learning_rate", minimum=0, strict=True),
        batch_size=check_positive_int(batch_size, "batch_size"), n_epochs=check_positive_int(n_epochs, "n_epochs"),
        patience=check_positive_int(patience, "patience"), verbose=bool(verbose),
    )  # fmt: skip
    if trained.interrupted:
        warnings.warn(f"interrupted after {trained.history['train_loss'].size} epochs", stacklevel=2)
    return put_together(graphs, trained.weights), trained.history
