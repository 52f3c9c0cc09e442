"""Searches that try discrete policies: AutoAugment by TPE, random search, Fast AutoAugment, RandAugment."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gyri.numerics.loops import progress_bar
from gyri.numerics.validation import import_extra

from .descent import Found
from .functional import Graphs, Weights, run_evaluation, window_losses
from .policy import Augmenter, Policy
from .spaces import discrete_policy
from .train import Data, fit_weights

N_MAGNITUDES = 10  # of RandAugment's grid
EVALUATION_BATCH = 64

# A proposal: operations, probabilities and magnitudes, each of shape (n_rows, n_subpolicies, n_stages).
Proposal = tuple[np.ndarray, np.ndarray, np.ndarray]


def propose_at_random(rng: np.random.Generator, shape: tuple[int, ...], n_ops: int) -> Proposal:
    """Uniform over discrete policies."""
    return rng.integers(n_ops, size=shape), rng.random(shape), rng.random(shape)


def no_augmentation(shape: tuple[int, ...], n_ops: int) -> Policy:
    """The policy that leaves everything as it is."""
    return discrete_policy(np.zeros(shape, int), np.zeros(shape), np.zeros(shape), n_ops)


def same_for_all(n_ops: int, n_rows: int, n_stages: int, magnitude: float) -> Policy:
    """RandAugment's policy: operations uniformly at random, always applied, one magnitude."""
    shape = (n_rows, 1, n_stages, n_ops)
    return Policy(jnp.zeros(shape), jnp.ones(shape), jnp.full(shape, magnitude))


class Tree:
    """Tree-structured Parzen estimator over discrete policies, by optuna; it minimises."""

    def __init__(self, seed: int, shape: tuple[int, ...], n_ops: int) -> None:
        optuna = import_extra("optuna", "gyri-cadda[search]", "to propose policies")
        self._optuna = optuna
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        finally:
            optuna.logging.set_verbosity(level)
        self._shape, self._n_ops = shape, n_ops
        self._trial: Any = None

    def propose(self) -> Proposal:
        """Next discrete policy to try."""
        self._trial = self._study.ask()
        ops, p, mu = np.zeros(self._shape, int), np.zeros(self._shape), np.zeros(self._shape)
        for place in np.ndindex(*self._shape):
            name = "-".join(map(str, place))
            ops[place] = self._trial.suggest_categorical(f"operation {name}", range(self._n_ops))
            p[place] = self._trial.suggest_float(f"probability {name}", 0.0, 1.0)
            mu[place] = self._trial.suggest_float(f"magnitude {name}", 0.0, 1.0)
        return ops, p, mu

    def tell(self, score: float) -> None:
        """Score of the last proposal."""
        self._study.tell(self._trial, score)


def proposals(
    method: str, seed: int, shape: tuple[int, ...], n_ops: int, n_trials: int
) -> Iterator[tuple[Policy, Callable[[float], None]]]:
    """Policies to try, each with the function that wants its score, the lower the better."""
    ignore = lambda score: None
    if method == "randaugment":
        for magnitude in np.linspace(0, 1, min(N_MAGNITUDES, n_trials) + 1)[1:]:
            yield same_for_all(n_ops, shape[0], shape[2], float(magnitude)), ignore
    elif method == "random":
        rng = np.random.default_rng(seed)
        for _ in range(n_trials):
            yield discrete_policy(*propose_at_random(rng, shape, n_ops), n_ops), ignore
    else:
        tree = Tree(seed, shape, n_ops)
        for _ in range(n_trials):
            yield discrete_policy(*tree.propose(), n_ops), tree.tell


def try_policies(
    candidates: Iterator[tuple[Policy, Callable[[float], None]]], score: Callable[[Policy], float], start: Policy, *,
    n_trials: int, verbose: bool,
) -> Found:  # fmt: skip
    """Score one policy after another, the lower the better, and keep the best; the best so far after each is kept."""
    best, best_score = start, np.inf
    snapshots, scores, seconds = [jax.device_get(start)], [], []
    interrupted, begin = False, time.perf_counter()
    with progress_bar(n_trials, "trials", verbose) as bar:
        try:
            for policy, tell in candidates:
                found = score(policy)
                tell(found)
                if found < best_score:
                    best, best_score = policy, found
                snapshots.append(jax.device_get(best))
                scores.append(found)
                seconds.append(time.perf_counter() - begin)
                bar.update(1)
                bar.set_postfix_str(f"best score {best_score:.3f}")
        except KeyboardInterrupt:
            interrupted = True
    n_done = len(seconds)
    stacked = Policy(*(np.stack(leaves) for leaves in zip(*snapshots[: n_done + 1])))
    history = {"score": np.array(scores[:n_done]), "time": np.array(seconds), **stacked._asdict()}
    return Found(Policy(*(jnp.asarray(leaf) for leaf in snapshots[n_done])), history, interrupted)


def score_by_training(
    key: Array, graphs: Graphs, weights: Weights, train: Data, valid: Data, **options: Any
) -> Callable:
    """Score of an augmenter: minus the best balanced accuracy on the validation set of a network trained with it."""

    def score(augmenter: Augmenter) -> float:
        trained = fit_weights(key, graphs, weights, train, valid, augmenter=augmenter, verbose=False, **options)
        if trained.interrupted:
            raise KeyboardInterrupt
        return -float(trained.history["valid_balanced_accuracy"].max())

    return score


@lru_cache(maxsize=32)
def augmented_loss(graphs: Graphs) -> Callable:
    """Compiled ``loss(weights, data, augmenter, key)`` of a fixed network on an augmented set, in evaluation mode."""

    @jax.jit
    def loss(weights: Weights, data: Data, augmenter: Augmenter, key: Array) -> Array:
        size = min(EVALUATION_BATCH, len(data.y))
        n_batches = -(-len(data.y) // size)
        # The last batch begins earlier than it should, and the windows that it repeats do not count.
        begins = jnp.minimum(jnp.arange(n_batches) * size, len(data.y) - size)

        def of_batch(inputs: tuple) -> Array:
            key, begin, due = inputs
            rows = begin + jnp.arange(size)
            x, y = data.rows(rows)
            logits = run_evaluation(graphs, weights, augmenter(key, x, y))
            return jnp.sum(jnp.where(rows >= due, window_losses(logits, y, data.class_weight), 0))

        keys = jax.random.split(key, n_batches)
        return jax.lax.map(of_batch, (keys, begins, jnp.arange(n_batches) * size)).sum() / len(data.y)

    return loss
