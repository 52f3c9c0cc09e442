"""Training without labels: the mean objective of a network's output goes down, layer after layer."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from gyri.numerics.loops import fit_minibatch, progress_bar
from gyri.numerics.optim import DescentResult, backtracking_descent

from .networks import Constants, n_layers_of, run
from .problem import differences

SCHEDULES = ("recursive", "one_shot", "greedy")
_NOT_NEGATIVE = ("mu", "eta", "scale")  # multipliers of thresholds
_STEPS_AT_ONCE = 50  # between two looks of the host


class Stage(NamedTuple):
    """Train the first `n_trained` layers through the output of layer `depth`, for at most `max_iter` steps."""

    depth: int
    n_trained: int
    max_iter: int


def stages(schedule: str, n_layers: int, max_iter: int, first: int = 1) -> list[Stage]:
    """Stages of a schedule; those of one schedule have equal budgets, so that they share one compilation.

    "recursive": layer after layer from `first` on, all layers so far through the output of the last of them;
    "one_shot": all layers through the last output; "greedy": as recursive, but through the last output of the network.
    """
    if schedule == "one_shot":
        return [Stage(n_layers, n_layers, max_iter)]
    budget = max(1, max_iter // (n_layers - first + 1))
    depth = (lambda layer: layer) if schedule == "recursive" else (lambda layer: n_layers)
    return [Stage(depth(layer), layer, budget) for layer in range(first, n_layers + 1)]


class Data(NamedTuple):
    """What a loss is computed on: signals (n, m), their penalties (n, 1), and the operator's constants."""

    x: Array
    lam: Array
    constants: Constants


def mean_objective(
    params: PyTree, data: Data, depth: Array | None, n_trained: Array | None, *, network: str, n_inner: int
) -> Array:
    """Mean over the signals of the objective at layer `depth`; layers from `n_trained` on count as constants."""
    if n_trained is not None:
        trained = jnp.arange(n_layers_of(params)) < n_trained
        freeze = lambda w: jnp.where(trained.reshape(-1, *[1] * (w.ndim - 1)), w, jax.lax.stop_gradient(w))
        params = params | {"layers": jax.tree.map(freeze, params["layers"])}
    u = run(params, data.x, data.constants, data.lam, depth, network=network, n_inner=n_inner)
    return objective_at(u, data).mean()


def objective_at(u: Array, data: Data) -> Array:
    """The objective of each signal, shape (n,)."""
    residual = data.x - jnp.matmul(u, data.constants.A.T, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * jnp.square(residual).sum(-1) + (data.lam * jnp.abs(differences(u))).sum(-1)


def _project(params: PyTree) -> PyTree:
    def clip(path: tuple, leaf: Array) -> Array:
        return jnp.maximum(leaf, 0) if path[-1].key in _NOT_NEGATIVE else leaf

    return jax.tree_util.tree_map_with_path(clip, params)


@partial(jax.jit, static_argnames=("network", "n_inner", "max_iter"))
def _descend(
    params: PyTree, data: Data, depth: Array, n_trained: Array, *, network: str, n_inner: int, max_iter: int
) -> DescentResult:
    """Gradient descent that accepts decreases only: the step grows by 8 after one, and halves until there is one."""

    def value(params: PyTree) -> Array:
        return mean_objective(params, data, depth, n_trained, network=network, n_inner=n_inner)

    return backtracking_descent(
        jax.value_and_grad(value), value, _project, params, step_size=1.0, grow=8.0, shrink=0.5, min_step=1e-20,
        tol=1e-8, max_iter=max_iter,
    )  # fmt: skip


class Trained(NamedTuple):
    """Parameters, and by step (each stage's start included) the `loss` and the `n_layers` it was computed through."""

    params: PyTree
    loss: np.ndarray
    n_layers: np.ndarray
    interrupted: bool


def train(
    params: PyTree,
    data: Data,
    plan: list[Stage],
    *,
    network: str,
    n_inner: int,
    optimizer: Any = None,
    batch_size: int | None = None,
    key: Any = 0,
    progress: bool = False,
) -> Trained:
    """Train stage after stage; Ctrl-C ends it with the last good parameters.

    Without an optimiser each stage is a full-batch descent, compiled once for all depths. With an optax optimiser
    it is `max_iter` epochs of minibatches, of which the best is kept.
    """
    if optimizer is None:
        steps = _descent_steps(params, data, plan, network, n_inner)
    else:
        steps = _minibatch_steps(params, data, plan, network, n_inner, optimizer, batch_size, key)
    losses, depths, interrupted = [np.zeros(0)], [np.zeros(0, int)], False
    with progress_bar(sum(stage.max_iter for stage in plan), "train", progress) as bar:
        try:
            for stage, n_steps, params, loss in steps:
                losses.append(loss)
                depths.append(np.full(loss.size, stage.depth))
                bar.update(n_steps)
                bar.set_postfix_str(f"{stage.depth} layers, loss={loss[-1]:.4g}")
        except KeyboardInterrupt:
            interrupted = True
            bar.set_postfix_str("interrupted")
    return Trained(params, np.concatenate(losses), np.concatenate(depths), interrupted)


def _descent_steps(params: PyTree, data: Data, plan: list[Stage], network: str, n_inner: int) -> Iterator[tuple]:
    for stage in plan:
        done, fresh = 0, True
        while done < stage.max_iter:
            budget = min(_STEPS_AT_ONCE, stage.max_iter - done)
            result = _descend(
                params, data, np.int32(stage.depth), np.int32(stage.n_trained),
                network=network, n_inner=n_inner, max_iter=budget,
            )  # fmt: skip
            n_iter, converged, history = jax.device_get((result.n_iter, result.converged, result.history))
            params = result.x
            done = stage.max_iter if converged else done + budget
            yield stage, budget, params, history[0 if fresh else 1 : n_iter + 1]
            fresh = False


def _minibatch_steps(
    params: PyTree, data: Data, plan: list[Stage], network: str, n_inner: int, optimizer: Any, batch_size: Any, key: Any
) -> Iterator[tuple]:
    n = len(data.x)
    # One function for all stages: their depth travels with the rows, so that nothing is compiled twice.
    loss = _minibatch_loss(data.constants, network, n_inner)
    for index, stage in enumerate(plan):
        rows = (data.x, data.lam, jnp.full(n, stage.depth, jnp.int32), jnp.full(n, stage.n_trained, jnp.int32))
        params, history = fit_minibatch(
            jax.random.fold_in(key, index), loss, params, rows, optimizer=optimizer, batch_size=batch_size or n,
            max_epochs=stage.max_iter, validation_fraction=0.0, progress=False,
        )  # fmt: skip
        params = _project(params)
        yield stage, stage.max_iter, params, history["train_loss"]
        if len(history["train_loss"]) < stage.max_iter:  # fit_minibatch took Ctrl-C
            raise KeyboardInterrupt


def _minibatch_loss(constants: Constants, network: str, n_inner: int) -> Callable:
    def loss(params: PyTree, batch: tuple, key: Array) -> Array:
        x, lam, depth, n_trained = batch
        data = Data(x, lam, constants)
        return mean_objective(params, data, depth[0], n_trained[0], network=network, n_inner=n_inner)

    return loss
