"""Searches by gradient descent: the bilevel one (ADDA, CADDA, DADA) and density matching (Faster AutoAugment).

Rommel et al. (2022), algorithm 1; Li et al. (2020), DADA; Hataya et al. (2020), Faster AutoAugment.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from gyri.numerics.loops import progress_bar
from gyri.numerics.relax import straight_through

from .bilevel import slope_along, unroll
from .critic import critic_losses
from .estimators import choose_one, control, init_surrogate, surrogate_network, uniforms
from .functional import Graphs, Weights, cross_entropy, run_evaluation, run_training, window_losses
from .policy import GUMBEL, Policy, apply_stages, chunk_of_windows, mix_all
from .spaces import PairSpace, StageSpace
from .train import Batches, Data, Learner, adam, check_losses, descend, start, training_step

POLICY_B1 = 0.5
SURROGATE_RATE = 1e-2
DADA_DECAY = 1e-3
MOMENTUM = 0.9  # the network's Adam remembers its gradients by this
PENALTY, CLASSIFICATION = 10.0, 0.1  # weights in the losses of Faster AutoAugment


class Setting(NamedTuple):
    """What a compiled step is specific to.

    Attributes
    ----------
    graphs : Graphs
        The network's structure.
    space : StageSpace or PairSpace
        What is chosen from.
    transforms : tuple of Transform
        The operations.
    estimator : str
        Of the gradient in the choices: "softmax", "gumbel", "relax".
    hypergradient : str
        "exact", "finite_difference" or "first_order".
    temperature : float
        Of the relaxations.
    n_chunks : int
        Sub-policies drawn for a batch.
    """

    graphs: Graphs
    space: Any
    transforms: tuple
    estimator: str
    hypergradient: str
    temperature: float
    n_chunks: int


class Rates(NamedTuple):
    """Step sizes: of the network, of the policy, and of the step through which is differentiated."""

    learning: Any
    policy: Any
    unroll: Any


class SearchState(NamedTuple):
    """State of a search; steps donate it.

    Attributes
    ----------
    learner : Learner
        The network and its optimiser.
    params, opt_state : pytree
        Parameters of the policy, and state of their Adam.
    extra, extra_opt : pytree
        The surrogate of RELAX, or the head of the critic; and the state of its optimiser.
    """

    learner: Learner
    params: Any
    opt_state: PyTree
    extra: Any
    extra_opt: PyTree


class Batch(NamedTuple):
    """A training and a validation batch: windows and labels."""

    x: Array
    y: Array
    x_valid: Array
    y_valid: Array


def start_search(setting: Setting, weights: Weights, key: Array, dtype: Any) -> SearchState:
    """State before the first step of a bilevel search."""
    policy_key, surrogate_key = jax.random.split(key)
    params = setting.space.init(policy_key, dtype)
    extra = None
    if setting.estimator == "relax":
        logits = jax.eval_shape(lambda p: setting.space.logits(policy_key, p, 1), params)
        n_rows = logits.shape[1]
        extra = init_surrogate(surrogate_key, int(np.prod(logits.shape[2:])) + n_rows, dtype)
    opt = adam(POLICY_B1)
    return SearchState(start(weights), params, opt.init(params), extra, adam().init(extra))


def climb_down(tree: PyTree, gradient: PyTree, opt_state: PyTree, rate: Any, b1: float) -> tuple[PyTree, PyTree]:
    """One step of Adam."""
    updates, opt_state = adam(b1).update(gradient, opt_state)
    return jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), tree, updates), opt_state


# --- the bilevel search ---------------------------------------------------------------------------------------------


def losses_of(
    setting: Setting, weights: Weights, batch: Batch, class_weight: Array, network_key: Array
) -> tuple[Callable, Callable]:
    """Training loss of augmented windows, with statistics and losses by window, and validation loss."""

    def on_windows(params: Any, x: Array) -> tuple[Array, tuple[Any, Array]]:
        logits, stats = run_training(
            setting.graphs, weights._replace(params=params), network_key, lambda module: module(x)
        )
        by_window = window_losses(logits, batch.y, class_weight) / len(x)
        return by_window.sum(), (stats, by_window)

    def valid(params: Any) -> tuple[Array, None]:
        logits = run_evaluation(setting.graphs, weights._replace(params=params), batch.x_valid)
        return cross_entropy(logits, batch.y_valid, class_weight), None

    return on_windows, valid


def rows_of(setting: Setting, y: Array) -> Array:
    """Row of the policy of each window."""
    return y if setting.space.n_rows > 1 else jnp.zeros_like(y)


def group_sums(setting: Setting, y: Array, by_window: Array) -> Array:
    """Sums over the windows of each chunk and class, (n_chunks, n_rows): those that one choice changes."""
    chunk = chunk_of_windows(len(y), setting.n_chunks)
    zeros = jnp.zeros((setting.n_chunks, setting.space.n_rows), by_window.dtype)
    return zeros.at[chunk, rows_of(setting, y)].add(by_window)


def heavy_ball(learner: Learner) -> PyTree:
    """What momentum adds to the gradient: Adam's mean of gradients is (1 - m) times the heavy ball's buffer."""
    return jax.tree.map(lambda m: MOMENTUM / (1 - MOMENTUM) * m, learner.opt_state.mu)


def weighted_augment(setting: Setting, key: Array, batch: Batch) -> Callable:
    """Augmented windows of parameters whose choices have a gradient of their own: softmax and gumbel."""
    rows, apply_key = rows_of(setting, batch.y), jax.random.fold_in(key, 1)

    def of_policy(params: Any) -> Array:
        return mix_all(
            key, params, setting.transforms, batch.x, rows, setting.estimator, setting.temperature, setting.n_chunks
        )

    def of_pairs(params: Any) -> Array:
        logits = setting.space.logits(key, params, setting.n_chunks)
        u, _ = uniforms(key, logits.shape, logits.dtype)
        choice = choose_one(logits, u, u, GUMBEL * setting.temperature)
        x = apply_stages(
            apply_key, setting.transforms, batch.x, rows, setting.space.stages(key, params, choice.hard),
            setting.temperature,
        )  # fmt: skip
        # Only what was drawn is computed; its weight, of value 1, carries the gradient.
        weight = jnp.sum(choice.hard * straight_through(choice.hard, choice.soft), -1)
        chunk = chunk_of_windows(len(rows), setting.n_chunks)
        return x * weight[chunk, rows][:, None, None]

    return of_pairs if isinstance(setting.space, PairSpace) else of_policy


def relaxed_hypergradient(
    setting: Setting, key: Array, state: SearchState, batch: Batch, class_weight: Array, xi: Any
) -> tuple[Any, Any, Any]:
    """Hypergradient over xi, by RELAX for the choices; gradient for the surrogate; the step ahead.

    A choice is charged with the windows that it changes, those of its chunk and class. Batch normalisation ties the
    others to them a little; that is left out.
    """
    space, weights = setting.space, state.learner.weights
    draw_key, choice_key, apply_key, network_key = jax.random.split(key, 4)
    rows = rows_of(setting, batch.y)
    logits, pull = jax.vjp(
        lambda w: space.logits(draw_key, state.params._replace(logits=w), setting.n_chunks), state.params.logits
    )
    u, v = uniforms(choice_key, logits.shape, logits.dtype)
    tau = GUMBEL * setting.temperature
    hard = choose_one(logits, u, v, tau).hard
    on_windows, valid = losses_of(setting, weights, batch, class_weight, network_key)

    def train(theta: Any, params: Any) -> tuple[Array, Any]:
        stages = space.stages(draw_key, params, hard)
        return on_windows(
            theta, apply_stages(apply_key, setting.transforms, batch.x, rows, stages, setting.temperature)
        )

    drift = heavy_ball(state.learner) if isinstance(space, PairSpace) else None
    ahead = unroll(train, valid, weights.params, state.params, xi, drift=drift)

    def slopes(params: Any) -> tuple[Array, Array]:
        by_window = lambda theta, params: (train(theta, params)[1][1], None)
        found = slope_along(by_window, weights.params, ahead.v, params, setting.hypergradient, 1e-2)
        return -found.sum(), -group_sums(setting, batch.y, found)

    if setting.hypergradient == "first_order":
        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.extra))
        return *zeros, ahead
    gradient, costs = jax.grad(slopes, has_aux=True)(state.params)

    def of_group(logits: Array, u: Array, v: Array, cost: Array, row: Array) -> tuple[Array, Any]:
        context = jax.nn.one_hot(row, space.n_rows, dtype=logits.dtype)
        surrogate = lambda phi, soft: surrogate_network(phi, jnp.concatenate([soft.ravel(), context]))
        choose = lambda w: choose_one(w, u, v, tau)
        return control(choose, logits, cost, surrogate, state.extra)

    over_rows = jax.vmap(of_group, (0, 0, 0, 0, 0))
    in_logits, in_surrogate = jax.vmap(over_rows, (0, 0, 0, 0, None))(logits, u, v, costs, jnp.arange(space.n_rows))
    # A choice for a class without a window in the chunk changed nothing.
    seen = group_sums(setting, batch.y, jnp.ones_like(batch.x[:, 0, 0])) > 0
    keep = lambda leaf: jnp.where(seen.reshape(*seen.shape, *[1] * (leaf.ndim - 2)), leaf, 0)
    in_surrogate = jax.tree.map(lambda leaf: keep(leaf).sum((0, 1)) / jnp.maximum(seen.sum(), 1), in_surrogate)
    return gradient._replace(logits=pull(keep(in_logits))[0]), in_surrogate, ahead


def weighted_hypergradient(
    setting: Setting, key: Array, state: SearchState, batch: Batch, class_weight: Array, xi: Any
) -> tuple[Any, Any, Any]:
    """Hypergradient over xi where the choices have gradients; nothing for a surrogate; the step ahead."""
    augment_key, network_key = jax.random.split(key)
    weights = state.learner.weights
    on_windows, valid = losses_of(setting, weights, batch, class_weight, network_key)
    augmented = weighted_augment(setting, augment_key, batch)
    train = lambda theta, params: on_windows(theta, augmented(params))
    drift = heavy_ball(state.learner) if isinstance(setting.space, PairSpace) else None
    ahead = unroll(train, valid, weights.params, state.params, xi, drift=drift)
    if setting.hypergradient == "first_order":
        return jax.tree.map(jnp.zeros_like, state.params), None, ahead
    slope = lambda params: -slope_along(train, weights.params, ahead.v, params, setting.hypergradient, 1e-2)
    return jax.grad(slope)(state.params), None, ahead


@lru_cache(maxsize=32)
def bilevel_step(setting: Setting) -> Callable:
    """Compiled ``step(state, key, i, train, valid, rows, valid_rows, rates) -> (state, losses)``."""
    find = relaxed_hypergradient if setting.estimator == "relax" else weighted_hypergradient
    decays = isinstance(setting.space, PairSpace)

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: SearchState, key: Array, i: Array, train: Data, valid: Data, rows: Array, valid_rows: Array, rates: Rates
    ) -> tuple[SearchState, Array]:
        batch = Batch(*train.rows(rows), *valid.rows(valid_rows))
        gradient, in_extra, ahead = find(
            setting, jax.random.fold_in(key, i), state, batch, train.class_weight, rates.unroll
        )
        if decays:  # beside the decay the factor xi counts, which Adam cancels otherwise
            gradient = jax.tree.map(
                lambda g, p: (rates.unroll * g + DADA_DECAY * p).astype(p.dtype), gradient, state.params
            )
        params, opt_state = climb_down(state.params, gradient, state.opt_state, rates.policy, POLICY_B1)
        extra, extra_opt = state.extra, state.extra_opt
        if in_extra is not None:
            extra, extra_opt = climb_down(extra, in_extra, extra_opt, SURROGATE_RATE, 0.9)
        learner = descend(state.learner, ahead.slope, ahead.train_aux[0], rates.learning)
        losses = jnp.stack([ahead.train_loss, ahead.valid_loss])
        return SearchState(learner, setting.space.project(params), opt_state, extra, extra_opt), losses

    return step


# --- density matching -----------------------------------------------------------------------------------------------


def start_critic(setting: Setting, weights: Weights, key: Array, dtype: Any, x: Array) -> SearchState:
    """State before the first step of Faster AutoAugment: the critic is a linear head on the network's features."""
    policy_key, head_key = jax.random.split(key)
    embed = lambda x: nnx.merge(setting.graphs.evaluation, *weights, copy=True).embed(x)
    try:
        n_features = jax.eval_shape(embed, x).shape[1]
    except AttributeError:
        raise ValueError("network: expected a module with a method embed(x) for method 'faster_aa'") from None
    head = jax.random.normal(head_key, (n_features,), dtype) / n_features**0.5
    params = setting.space.init(policy_key, dtype)
    opt = adam(0.0)
    learner = Learner(jax.tree.map(jnp.copy, weights), opt.init(weights.params))
    return SearchState(learner, params, opt.init(params), head, opt.init(head))


@lru_cache(maxsize=32)
def density_step(setting: Setting) -> Callable:
    """Compiled step of Faster AutoAugment, called as `bilevel_step`'s; it looks at no validation set.

    The critic judges with the running statistics of batch normalisation, so that the slope at a window is its own.
    """

    def critic(weights: Weights, head: Array, x: Array) -> Array:
        return nnx.merge(setting.graphs.evaluation, *weights, copy=True).embed(x) @ head

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: SearchState, key: Array, i: Array, train: Data, valid: Data, rows: Array, valid_rows: Array, rates: Rates
    ) -> tuple[SearchState, Array]:
        half = len(rows) // 2
        (x, y), (x_other, y_other) = train.rows(rows[:half]), train.rows(rows[half : 2 * half])
        augment_key, network_key, penalty_key = jax.random.split(jax.random.fold_in(key, i), 3)
        other = Batch(x_other, y_other, x_other, y_other)
        augmented = weighted_augment(setting, augment_key, other)
        weights = state.learner.weights

        def of_critic(theta: tuple[Any, Array]) -> tuple[Array, tuple[Any, Array]]:
            now = weights._replace(params=theta[0])
            logits, stats = run_training(setting.graphs, now, network_key, lambda module: module(x))
            fake = jax.lax.stop_gradient(augmented(state.params))
            losses = critic_losses(penalty_key, partial(critic, now, theta[1]), x, fake, gp_weight=PENALTY)
            classified = cross_entropy(logits, y, train.class_weight)
            return losses["critic"] + CLASSIFICATION * classified, (stats, losses["wasserstein"])

        def of_policy(params: Any) -> Array:
            fake = augmented(params)
            classified = cross_entropy(run_evaluation(setting.graphs, weights, fake), y_other, train.class_weight)
            return -critic(weights, state.extra, fake).mean() + CLASSIFICATION * classified

        (loss, (stats, gap)), slope = jax.value_and_grad(of_critic, has_aux=True)((weights.params, state.extra))
        gradient = jax.grad(of_policy)(state.params)
        params, opt_state = climb_down(state.params, gradient, state.opt_state, rates.policy, 0.0)
        moved, learner_opt = climb_down(weights.params, slope[0], state.learner.opt_state, rates.learning, 0.0)
        head, head_opt = climb_down(state.extra, slope[1], state.extra_opt, rates.learning, 0.0)
        learner = Learner(weights._replace(params=moved, stats=stats), learner_opt)
        return SearchState(learner, setting.space.project(params), opt_state, head, head_opt), jnp.stack([loss, gap])

    return step


# --- the loop -------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a search returns: the policy, its history, and whether Ctrl-C ended it."""

    policy: Policy
    history: dict[str, np.ndarray]
    interrupted: bool


def warm_up(
    key: Array, graphs: Graphs, weights: Weights, train: Data, *, n_epochs: int, batch_size: int, learning_rate: float,
    verbose: bool,
) -> Weights:  # fmt: skip
    """Weights after some epochs without augmentation."""
    shuffle_key, step_key = jax.random.split(key)
    batches = Batches(shuffle_key, len(train.y), batch_size)
    step, learner = training_step(graphs), start(weights)
    with progress_bar(n_epochs, "warm-up", verbose) as bar:
        for epoch in range(n_epochs):
            losses = []
            for j, rows in enumerate(batches.epoch()):
                i = np.int32(epoch * batches.n_batches + j)
                learner, loss = step(learner, step_key, i, train, rows, None, np.float32(learning_rate))
                losses.append(loss)
            check_losses(losses, epoch)
            bar.update(1)
    return learner.weights


def descend_epochs(
    key: Array, step: Callable, state: SearchState, space: StageSpace | PairSpace, train: Data, valid: Data, *,
    rates: Rates, n_epochs: int, batch_size: int, verbose: bool, names: tuple[str, str] = ("train_loss", "valid_loss"),
) -> Found:  # fmt: skip
    """Run a step over the batches of some epochs; the policy after each is kept. `names`: of what the step returns."""
    train_key, valid_key, step_key = jax.random.split(key, 3)
    batches, valid_stream = Batches(train_key, len(train.y), batch_size), Batches(valid_key, len(valid.y), batch_size)
    valid_rows = valid_stream.stream()
    # On the host: steps donate the state.
    snapshots = [jax.device_get(space.finish(state.params))]
    means: list[np.ndarray] = []
    seconds: list[float] = []
    interrupted, begin = False, time.perf_counter()
    with progress_bar(n_epochs, "search", verbose) as bar:
        try:
            for epoch in range(n_epochs):
                losses = []
                for j, rows in enumerate(batches.epoch()):
                    i = np.int32(epoch * batches.n_batches + j)
                    state, loss = step(state, step_key, i, train, valid, rows, next(valid_rows), rates)
                    losses.append(loss)
                mean = check_losses(losses, epoch).mean(0)
                snapshots.append(jax.device_get(space.finish(state.params)))
                means.append(mean)
                seconds.append(time.perf_counter() - begin)
                bar.update(1)
                bar.set_postfix_str(f"training loss {mean[0]:.3f}")
        except KeyboardInterrupt:
            interrupted = True
    n_done = len(seconds)
    stacked = Policy(*(np.stack(leaves) for leaves in zip(*snapshots[: n_done + 1])))
    columns = np.array(means[:n_done]).reshape(-1, 2).T
    history = {**dict(zip(names, columns)), "time": np.array(seconds), **stacked._asdict()}
    return Found(Policy(*(jnp.asarray(leaf) for leaf in snapshots[n_done])), history, interrupted)
