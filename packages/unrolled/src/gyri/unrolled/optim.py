"""Training: full-batch descent with back-tracking, stochastic line search (SLS), or an optax optimiser.

What is trained is a `Task`; every loop is a chunk of steps compiled once, between two looks of the host.
Malézieux, Moreau, Kowalski (2022), section 4; Vaswani et al. (2019), Painless stochastic gradient.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from gyri.numerics.loops import scan_chunks
from gyri.numerics.optim import DescentState, armijo_step, backtracking_step

from .coding import MIN_STEP

CHUNK = 10  # steps between two looks of the host
MAX_STEP, LEAST_STEP = 5e3, 5e-21  # the authors' 1e4 and 1e-20: their step is t / 2
BETA, GAMMA, ETA_MAX = 0.5, 0.5, 1.0
ARMIJO = 10.0  # c = ARMIJO / batch size
N_CACHED = 64


class Task(NamedTuple):
    """What is learned, as functions; made once for each static setting, so that what is compiled is found again.

    Attributes
    ----------
    surrogate : callable
        ``surrogate(params, batch, constants) -> (scalar, loss)``, the scalar's gradient being the estimate.
    loss : callable
        ``loss(params, batch, constants) -> scalar``, a sum over the batch's samples.
    move : callable
        ``move(prior, gradient, step) -> prior``, feasible.
    """

    surrogate: Callable
    loss: Callable
    move: Callable


class Params(NamedTuple):
    """The prior (a pytree), and the relative step sizes of the iterations."""

    prior: PyTree
    steps: Array


class Outcome(NamedTuple):
    """What training gives: parameters, and by step the loss, the step size and the seconds since the start."""

    params: Params
    history: dict[str, np.ndarray]
    interrupted: bool


def join(first: Outcome, second: Outcome) -> Outcome:
    """One training after another; the time goes on."""
    end = first.history["time"][-1] if first.history["time"].size else 0.0
    later = {**second.history, "time": second.history["time"] + end}
    history = {name: np.concatenate([values, later[name]]) for name, values in first.history.items()}
    return Outcome(second.params, history, second.interrupted)


def _move(task: Task, learn_steps: bool, free: Array) -> Callable:
    """Step of all parameters; those of the iterations move once they are free."""

    def move(params: Params, gradient: Params, step: Array) -> Params:
        prior = task.move(params.prior, gradient.prior, step)
        if not learn_steps:
            return Params(prior, params.steps)
        # Below a small positive size an iteration would climb.
        return Params(prior, jnp.maximum(params.steps - free * step * gradient.steps, MIN_STEP))

    return move


def _gradient(task: Task, learn_steps: bool, params: Params, batch: PyTree, constants: PyTree) -> tuple[Params, Array]:
    """Estimate of the gradient, and the loss; that of the steps is not computed where they are not learned."""
    if learn_steps:
        return jax.grad(task.surrogate, has_aux=True)(params, batch, constants)
    fixed = lambda prior: task.surrogate(Params(prior, params.steps), batch, constants)
    gradient, loss = jax.grad(fixed, has_aux=True)(params.prior)
    return Params(gradient, jnp.zeros_like(params.steps)), loss


def _over_chunks(function: Callable, data: PyTree) -> PyTree:
    """Sum of a function over the leading axis of the data, one entry at a time."""
    n = len(jax.tree.leaves(data)[0])
    if n == 1:
        return function(jax.tree.map(lambda leaf: leaf[0], data))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, _first(data)))
    add = lambda total, batch: (jax.tree.map(jnp.add, total, function(batch)), None)
    return jax.lax.scan(add, zero, data)[0]


def _first(data: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)


# --- full batch -----------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """Scalars that a compiled descent takes as arguments."""

    free: Array
    tol: Array


@lru_cache(N_CACHED)
def descent_step(task: Task, learn_steps: bool) -> Callable:
    """One accepted step of the descent with back-tracking, as a step of `scan_chunks`."""

    def step(state: DescentState, i: Array, data: PyTree, constants: PyTree, start: Start) -> tuple:
        loss = lambda params: _over_chunks(lambda batch: task.loss(params, batch, constants), data)
        gradient = lambda params: _over_chunks(
            lambda batch: _gradient(task, learn_steps, params, batch, constants)[0], data
        )
        descend = partial(
            backtracking_step, gradient, loss, _move(task, learn_steps, start.free),
            grow=10.0, shrink=0.5, max_step=MAX_STEP, min_step=LEAST_STEP, tol=start.tol,
        )  # fmt: skip
        idle = lambda state: (state, jnp.zeros_like(state.value))
        state, taken = jax.lax.cond(state.done, idle, descend, state)
        return state, {"loss": state.value, "step": taken}

    return step


@lru_cache(N_CACHED)
def first_value(task: Task) -> Callable:
    """Loss on all data, compiled."""

    def value(params: Params, data: PyTree, constants: PyTree) -> Array:
        return _over_chunks(lambda batch: task.loss(params, batch, constants), data)

    return jax.jit(value)


def is_done(state: DescentState) -> Array:
    """Whether the descent has come to rest."""
    return state.done


class Clock:
    """Callback of `scan_chunks` that notes when each step was done, evenly within a chunk."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: list[np.ndarray] = []

    def __call__(self, n_done: int, carry: PyTree, outputs: PyTree) -> bool:
        """Note the time; the loop goes on."""
        now, n = time.perf_counter(), len(outputs["loss"])
        self.seconds.append(self.last - self.start + (now - self.last) * np.arange(1, n + 1) / n)
        self.last = now
        return False


def descend(
    task: Task,
    params: Params,
    data: PyTree,
    constants: PyTree,
    *,
    learn_steps: bool,
    max_steps: int,
    tol: float | int,
    progress: bool,
) -> Outcome:
    """Descent with back-tracking on all data; with learned steps a second one, of prior and steps together.

    Each takes `max_steps` at most. The data's leaves have an axis of chunks in front; each chunk is worked on by
    itself, so that memory is bounded.
    """
    dtype = params.steps.dtype
    clock, step = Clock(), descent_step(task, learn_steps)
    losses: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    interrupted = False
    for free in (0.0, 1.0) if learn_steps else (0.0,):
        first = first_value(task)(params, data, constants)
        if not losses:
            losses, sizes = [np.asarray(first)[None]], [np.zeros(1, first.dtype)]
            clock.last = time.perf_counter()
            clock.seconds = [np.array([clock.last - clock.start])]
        state = DescentState(params, first, jnp.asarray(0.5, first.dtype), jnp.zeros((), bool))
        start = Start(jnp.asarray(free, dtype), jnp.asarray(tol, first.dtype))
        state, out = scan_chunks(
            step, state, max_steps, args=(data, constants, start), chunk=CHUNK, desc="fit",
            progress=progress, stop=is_done, callback=clock,
        )  # fmt: skip
        params = state.x
        losses.append(out["loss"])
        sizes.append(out["step"])
        unseen = sum(map(len, losses)) - sum(map(len, clock.seconds))
        if unseen:  # Ctrl-C came after a chunk and before the clock was told of it
            clock.seconds.append(np.full(unseen, time.perf_counter() - clock.start))
        interrupted = not bool(state.done) and len(out["step"]) < max_steps
        if interrupted:
            break
    history = {"loss": losses, "step": sizes, "time": clock.seconds}
    joined = {name: np.concatenate(parts).astype(float) for name, parts in history.items()}
    kept = (joined["step"] > 0) | (np.arange(joined["step"].size) == 0)
    return Outcome(params, {name: values[kept] for name, values in joined.items()}, interrupted)


# --- minibatches ----------------------------------------------------------------------------------------------------


class Sampler(NamedTuple):
    """How minibatches are drawn: rows of a shuffled data set, or windows of recordings.

    Attributes
    ----------
    n_rows : int
        Number of samples, or of recordings.
    batch_size : int
        Samples a minibatch.
    window : int or None
        Length of windows, drawn anew each time; None: all rows are used in an epoch.
    """

    n_rows: int
    batch_size: int
    window: int | None

    def order(self, key: Array) -> Array:
        """Shuffled rows of an epoch."""
        return jax.random.permutation(key, self.n_rows) if self.window is None else jnp.zeros(1, jnp.int32)

    def draw(self, key: Array, order: Any, j: Any, data: PyTree) -> PyTree:
        """Minibatch j of an epoch."""
        if self.window is None:
            rows = order[(j * self.batch_size + jnp.arange(self.batch_size)) % self.n_rows]
            return jax.tree.map(lambda leaf: leaf[rows], data)
        # Windows are gathered one by one: a recording is never copied into all of its windows.
        row_key, time_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (self.batch_size,), 0, self.n_rows)
        n_times = jax.tree.leaves(data)[0].shape[-1]
        starts = jax.random.randint(time_key, (self.batch_size,), 0, n_times - self.window + 1)

        def window(leaf: Array) -> Array:
            cut = lambda row, start: jax.lax.dynamic_slice(
                leaf, (row, *[0] * (leaf.ndim - 2), start), (1, *leaf.shape[1:-1], self.window)
            )[0]
            return jax.vmap(cut)(rows, starts)

        return jax.tree.map(window, data)


class Stochastic(NamedTuple):
    """State between minibatches."""

    params: Params
    order: Array
    optimizer: PyTree


class Options(NamedTuple):
    """Scalars that a compiled stochastic loop takes as arguments."""

    key: Array
    free: Array
    per_epoch: Array
    armijo: Array


@lru_cache(N_CACHED)
def stochastic_step(task: Task, learn_steps: bool, sampler: Sampler, optimizer: Any) -> Callable:
    """One minibatch, as a step of `scan_chunks`."""

    def step(state: Stochastic, i: Array, data: PyTree, constants: PyTree, options: Options) -> tuple:
        epoch, j = i // options.per_epoch, i % options.per_epoch
        epoch_key, batch_key = jax.random.split(options.key)
        shuffle = lambda order: sampler.order(jax.random.fold_in(epoch_key, epoch)).astype(order.dtype)
        order = jax.lax.cond(j == 0, shuffle, lambda order: order, state.order)
        batch = sampler.draw(jax.random.fold_in(batch_key, i), order, j, data)
        gradient, loss = _gradient(task, learn_steps, state.params, batch, constants)
        move = _move(task, learn_steps, options.free)
        if optimizer is None:
            params, size = _line_search(task, move, state.params, gradient, loss, batch, constants, i, options)
            return Stochastic(params, order, ()), {"loss": loss, "step": size}
        gradient = gradient._replace(steps=options.free * gradient.steps)
        updates, inner = optimizer.update(gradient, state.optimizer, state.params)
        params = move(state.params, jax.tree.map(jnp.negative, updates), jnp.ones_like(loss))
        return Stochastic(params, order, inner), {"loss": loss, "step": jnp.ones_like(loss)}

    return step


def _line_search(
    task: Task, move: Callable, params: Params, gradient: Params, loss: Array, batch: PyTree, constants: PyTree,
    i: Array, options: Options,
) -> tuple[Params, Array]:  # fmt: skip
    """Armijo's rule on one minibatch; the first step to try is constant for an epoch, then halved an epoch."""
    eta = ETA_MAX * GAMMA ** (jnp.maximum(i + 1 - options.per_epoch, 0) / options.per_epoch)
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), gradient)
    slope = -(sum(jax.tree.leaves(squares.prior)) + options.free * squares.steps)

    # The step's length is the variable: a trial is a feasible move of that length, not a point of a straight line.
    length, _, _ = armijo_step(
        lambda length: task.loss(move(params, gradient, length), batch, constants),
        jnp.zeros_like(loss), jnp.ones_like(loss), slope, step_size=BETA * eta, c=options.armijo / BETA, value_old=loss,
    )  # fmt: skip
    return jax.tree.map(
        lambda new, old: jnp.where(length > 0, new, old), move(params, gradient, length), params
    ), length


def train_stochastically(
    task: Task,
    params: Params,
    data: PyTree,
    constants: PyTree,
    sampler: Sampler,
    *,
    key: Array,
    learn_steps: bool,
    optimizer: Any,
    epochs: int,
    per_epoch: int,
    armijo: float | int,
    progress: bool,
) -> Outcome:
    """Epochs of minibatches; with learned steps as many again, of prior and steps together."""
    dtype = params.steps.dtype
    clock, step = Clock(), stochastic_step(task, learn_steps, sampler, optimizer)
    losses: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    interrupted = False
    for round_, free in enumerate((0.0, 1.0) if learn_steps else (0.0,)):
        inner = () if optimizer is None else optimizer.init(params)
        order = jnp.zeros(sampler.n_rows if sampler.window is None else 1, jnp.int32)
        options = Options(
            jax.random.fold_in(key, round_), jnp.asarray(free, dtype), jnp.asarray(per_epoch, jnp.int32),
            jnp.asarray(armijo, dtype),
        )  # fmt: skip
        # Some looks an epoch at most: a look costs little, and Ctrl-C and the bar should not wait.
        state, out = scan_chunks(
            step, Stochastic(params, order, inner), epochs * per_epoch, args=(data, constants, options),
            chunk=max(1, min(50, per_epoch)), desc="fit", progress=progress, callback=clock,
        )  # fmt: skip
        params = state.params
        losses.append(out["loss"])
        sizes.append(out["step"])
        interrupted = len(out["loss"]) < epochs * per_epoch
        if interrupted:
            break
    history = {"loss": losses, "step": sizes, "time": clock.seconds}
    return Outcome(
        params, {k: np.concatenate([np.zeros(0), *v]).astype(float) for k, v in history.items()}, interrupted
    )


# --- chunks of a full batch -----------------------------------------------------------------------------------------


def split_rows(data: PyTree, row_bytes: int) -> PyTree:
    """Give the data an axis of chunks in front, the last one filled up with zeros, which cost and weigh nothing.

    Parameters
    ----------
    data : pytree of arrays, each of shape (n_samples, ...)
        All samples; None stays.
    row_bytes : int
        Memory that one sample takes in the loop over iterations.

    Returns
    -------
    pytree of arrays, each of shape (n_chunks, n_rows, ...)
        On a CPU chunks that stay in its cache, elsewhere as few as memory allows.
    """
    n_samples = len(jax.tree.leaves(data)[0])
    budget = CACHE_BYTES if jax.default_backend() == "cpu" else DEVICE_BYTES
    n_chunks = -(-n_samples // max(1, budget // row_bytes))
    n_rows = -(-n_samples // n_chunks)

    def split(leaf: Array) -> Array:
        filled = jnp.pad(leaf, [(0, n_chunks * n_rows - n_samples), *[(0, 0)] * (leaf.ndim - 1)])
        return filled.reshape(n_chunks, n_rows, *leaf.shape[1:])

    return jax.tree.map(split, data)


CACHE_BYTES = 2**25
DEVICE_BYTES = 2**31
