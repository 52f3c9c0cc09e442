"""Long loops on the device: chunks of compiled steps, one host synchronisation a chunk, a progress bar on top."""

import types
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, ScalarLike

from .validation import as_key, check_finite, check_positive_int, check_same_leading_axis, check_scalar


def progress_bar(total: int, desc: str, enable: bool = True) -> Any:
    """Progress bar as a context manager; prints nothing when disabled.

    Parameters
    ----------
    total : int
        Number of steps.
    desc : str
        What is going on.
    enable : bool
        Show it.

    Returns
    -------
    tqdm
        With `update(n)` and `set_postfix_str(text)`.

    Examples
    --------
    >>> from gyri.numerics.loops import progress_bar
    >>> with progress_bar(10, "fit", enable=False) as bar:
    ...     _ = bar.update(10)
    """
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=desc, disable=not enable)


# What was built for some functions, under their identities; an entry goes when the first of its functions goes.
_cache: dict[tuple, tuple[Any, list[weakref.ref]]] = {}


@lru_cache(maxsize=64)
def _one_of_equals(function: Callable) -> Callable:
    return lambda *args: function(*args)


def _by_identity(function: Any) -> Any:
    """One stand-in for all functions of equal value (frozen dataclasses), kept for a while; others as they are."""
    by_value = callable(function) and type(function).__eq__ is not object.__eq__
    if not by_value or isinstance(function, types.MethodType):
        return function
    try:
        return _one_of_equals(function)
    except TypeError:  # compared by value, but without a hash
        return function


def cached(build: Callable, functions: tuple[Any, ...], *static: Any) -> Any:
    """Return ``build(*getters, *static)``, built once for these functions while they live.

    What is built gets the functions through getters that hold weak references: a strong one in the cache would keep
    every closure, with all the data that it holds, for ever. No function needs a hash: each counts as itself, a bound
    method as its object and its function. Functions with a hash of their value, such as frozen dataclasses, count as
    one where they are equal; the last 64 of them are kept.

    Parameters
    ----------
    build : callable
        ``build(*getters, *static)``; a getter without arguments returns its function. It is part of the key.
    functions : tuple of callables, other objects or None
        What the getters return. Without weak references to one of them nothing is kept, and each call builds anew.
    *static : hashable
        The rest of the key.

    Returns
    -------
    object
        What `build` returned; it must hold the functions through their getters alone.

    Examples
    --------
    >>> from gyri.numerics.loops import cached
    >>> build = lambda get_function, factor: lambda x: factor * get_function()(x)
    >>> square = lambda x: x**2
    >>> cached(build, (square,), 10)(3.0)
    90.0
    >>> cached(build, (square,), 10) is cached(build, (square,), 10)
    True
    """

    def getter(function: Any) -> tuple[Callable, list]:
        if function is None:
            return lambda: None, []
        is_method = isinstance(function, types.MethodType)
        parts: list[Any] = [function]
        if isinstance(function, types.MethodType):
            parts = [function.__self__, function.__func__]
        # Bound now: at the end of the interpreter the name may be gone before the functions are.
        pop = _cache.pop
        refs: list[Any] = [weakref.ref(part, lambda _: pop(key, None)) for part in parts]
        return (lambda: types.MethodType(refs[1](), refs[0]())) if is_method else refs[0], refs

    functions = tuple(map(_by_identity, functions))
    key: tuple = (build, static)
    for function in functions:
        key += (id(getattr(function, "__self__", None)), id(getattr(function, "__func__", function)))
    if key not in _cache:
        try:
            getters, refs = zip(*map(getter, functions), strict=True)
        except TypeError:  # no weak references to such a callable: build it anew each time
            return build(*[lambda function=function: function for function in functions], *static)
        _cache[key] = (build(*getters, *static), [ref for some in refs for ref in some])
    return _cache[key][0]


def _strong(x: Any) -> Array:
    """As a JAX array without weak type, so that the first chunk has the types of all others."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.asarray(x, x.dtype)


@partial(jax.jit, static_argnums=2)
def _split_rows(key: Key[Array, ""], data: PyTree, n_first: int) -> tuple[PyTree, PyTree]:
    """Rows in a drawn order: the first ones, None if there is none, and the others."""
    order = jax.random.permutation(key, len(jax.tree.leaves(data)[0]))
    first = jax.tree.map(lambda x: x[order[:n_first]], data) if n_first else None
    return first, jax.tree.map(lambda x: x[order[n_first:]], data)


def _same_types(new: PyTree, old: PyTree) -> PyTree:
    about = lambda tree: jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)
    if about(new) != about(old):
        raise ValueError(f"step: expected a carry of the types that it got, {about(old)}, got {about(new)}")
    return jax.tree.map(_strong, new)


def _build_chunk(get_step: Callable, get_stop: Callable, chunk: int, donate: bool) -> Callable:
    """Compile a chunk whose number of steps is an argument: whole and remainder chunks share one program."""

    def run_chunk(carry: PyTree, start: Array, n_steps: Array, args: tuple) -> tuple[PyTree, PyTree, Any]:
        step, stop = get_step(), get_stop()
        _, out = jax.eval_shape(lambda *now: step(*now), carry, start, *args)
        buffers = jax.tree.map(lambda x: jnp.zeros((chunk, *x.shape), x.dtype), out)

        def body(i: Array, state: tuple) -> tuple:
            carry, buffers = state
            new, out = step(carry, start + i, *args)
            return _same_types(new, carry), jax.tree.map(lambda buffer, x: buffer.at[i].set(x), buffers, out)

        carry, buffers = jax.lax.fori_loop(0, n_steps, body, (carry, buffers))
        return carry, buffers, jnp.zeros((), bool) if stop is None else stop(carry)

    return jax.jit(run_chunk, donate_argnums=(0,) if donate else ())


def _losses(outputs: PyTree) -> np.ndarray | None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if path and getattr(path[-1], "key", getattr(path[-1], "name", None)) == "loss":
            return leaf
    return None


def _check_losses(outputs: PyTree, start: int, desc: str) -> str:
    """Raise on the first loss that is not finite; return the last one as text."""
    losses = _losses(outputs)
    if losses is None:
        return ""
    bad = ~np.isfinite(losses).reshape(len(losses), -1).all(1)
    if bad.any():
        i = int(bad.argmax())
        raise FloatingPointError(
            f"{desc + ': ' if desc else ''}the loss is {losses[i]} at step {start + i}: use a smaller step size "
            "(learning rate), clip the gradients, or check the scale of the data"
        )
    return f"loss={losses[-1]:.4g}" if losses.ndim == 1 else ""


def scan_chunks(
    step: Callable,
    carry: PyTree,
    n_steps: int,
    *,
    args: tuple = (),
    chunk: int = 100,
    desc: str = "",
    progress: bool = True,
    stop: Callable | None = None,
    callback: Callable | None = None,
    donate: bool = False,
) -> tuple[PyTree, PyTree]:
    """Run ``carry, out = step(carry, i, *args)`` for each i below `n_steps` on the device, chunk by chunk.

    A host driver: the host waits once a chunk, reads the outputs, moves the bar. The compiled chunk is cached on the
    identity of `step` and `stop` and on the shapes for as long as both functions live, whatever `n_steps`: keep them
    (module-level functions, attributes) to compile once. Ctrl-C ends the loop after the last complete chunk.

    Parameters
    ----------
    step : callable
        ``step(carry, i, *args) -> (carry, out)``, jit-able; `i` is an int32 scalar; the carry keeps its types.
    carry : pytree of arrays
        The start; it stays valid unless `donate`.
    n_steps : int
        How many steps, 0 or more.
    args : tuple of pytrees of arrays
        Data: arguments of the compiled chunk. What `step` closes over instead becomes a constant of the program.
    chunk : int
        Steps between two looks of the host; also the length of the output buffers.
    desc : str
        The bar's text.
    progress : bool
        Show the bar.
    stop : callable, optional
        ``stop(carry) -> bool array``, evaluated on the device at the end of each chunk.
    callback : callable, optional
        ``callback(n_done, carry, outputs)`` on the host after each chunk, `outputs` being the chunk's; returning
        True stops.
    donate : bool
        Let each chunk overwrite its carry, the start included: a carry that is large is never held twice. A callback
        must not keep it.

    Returns
    -------
    carry : pytree of Array
        After the last complete chunk.
    outputs : pytree of numpy.ndarray, each of shape (n_done, ...)
        The outputs of the steps done.

    Raises
    ------
    FloatingPointError
        An output named ``"loss"`` (dict key or field) is not finite; names the step and says what to change.
    ValueError
        A negative number of steps, or a step that changes its carry's types.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.loops import scan_chunks
    >>> halve = lambda x, i: (x / 2, {"loss": x})
    >>> x, outputs = scan_chunks(halve, jnp.array(8.0), 3, chunk=2, progress=False)
    >>> x, outputs["loss"]
    (Array(1., dtype=float32), array([8., 4., 2.], dtype=float32))
    """
    n_steps, chunk = check_positive_int(n_steps, "n_steps", minimum=0), check_positive_int(chunk, "chunk")
    carry, args = jax.tree.map(_strong, (carry, args))
    run_chunk = cached(_build_chunk, (step, stop), chunk, donate)
    # One tuple, replaced in one go: Ctrl-C can never come between a carry and its outputs.
    state: tuple[int, PyTree, list] = (0, carry, [])
    ran: list = []  # what the chunk under way has given
    start = n = 0
    with progress_bar(n_steps, desc, progress) as bar:
        try:
            while state[0] < n_steps:
                ran = []
                start = state[0]
                n = min(chunk, n_steps - start)
                # One call that Ctrl-C cannot cut in two: once it has run, a donated carry is here and nowhere else.
                ran.extend(map(run_chunk, [state[1]], [np.int32(start)], [np.int32(n)], [args]))
                carry, outputs, stopped = ran[0]
                outputs, stopped = jax.device_get((outputs, stopped))
                outputs = jax.tree.map(lambda x, n=n: x[:n], outputs)
                text = _check_losses(outputs, start, desc)
                state = (start + n, carry, [*state[2], outputs])
                bar.update(n)
                if text:
                    bar.set_postfix_str(text)
                if (callback is not None and bool(callback(start + n, carry, outputs))) or stopped:
                    break
        except KeyboardInterrupt:
            bar.set_postfix_str("interrupted")
            if donate and ran and state[0] == start:
                outputs = jax.tree.map(lambda x: np.asarray(x)[:n], ran[0][1])
                state = (start + n, ran[0][0], [*state[2], outputs])
    _, carry, chunks = state
    if chunks:
        return carry, jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    _, out = jax.eval_shape(lambda *now: step(*now), carry, jnp.zeros((), jnp.int32), *args)
    return carry, jax.tree.map(lambda x: np.zeros((0, *x.shape), x.dtype), out)


class _Fit(NamedTuple):
    params: PyTree
    opt_state: PyTree
    best_params: PyTree
    best_loss: Float[Array, ""]
    n_since_best: Int[Array, ""]


class _FitOptions(NamedTuple):
    key: Key[Array, ""]
    patience: Int[Array, ""]
    clip_norm: Float[Array, ""]


def _mean_loss(loss_fn: Callable, params: PyTree, data: PyTree, key: Key[Array, ""], batch_size: int) -> Array:
    """Loss of all rows, batch by batch, each batch weighted by its rows."""
    n_rows = len(jax.tree.leaves(data)[0])
    n_batches, rest = divmod(n_rows, batch_size)
    keys = jax.random.split(key, n_batches + 1)
    head = jax.tree.map(lambda x: x[: n_rows - rest].reshape(n_batches, batch_size, *x.shape[1:]), data)
    total = batch_size * jax.lax.map(lambda batch_key: loss_fn(params, *batch_key), (head, keys[:-1])).sum()
    if rest:
        total += rest * loss_fn(params, jax.tree.map(lambda x: x[n_rows - rest :], data), keys[-1])
    return total / n_rows


def _build_epoch(get_loss: Callable, get_valid_loss: Callable, get_update: Callable, batch_size: int) -> Callable:
    """One epoch as a step of :func:`scan_chunks`; it does nothing once the patience is over."""
    import optax

    def train(fit: _Fit, key: Key[Array, ""], data: PyTree, clip_norm: Array) -> tuple[_Fit, Array]:
        loss_fn, update = get_loss(), get_update()
        n_rows = len(jax.tree.leaves(data)[0])
        n_batches = n_rows // batch_size
        losses: Array
        shuffle_key, loss_key = jax.random.split(key)
        rows = jax.random.permutation(shuffle_key, n_rows)[: n_batches * batch_size].reshape(n_batches, batch_size)

        def update_step(state: tuple, rows_key: tuple) -> tuple:
            params, opt_state = state
            rows, key = rows_key
            loss, gradient = jax.value_and_grad(loss_fn)(params, jax.tree.map(lambda x: x[rows], data), key)
            squares = jax.tree.leaves(jax.tree.map(lambda g: jnp.sum(jnp.square(g)), gradient))
            scale = jnp.minimum(1, clip_norm / jnp.sqrt(jnp.stack(squares).sum()))
            gradient = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)
            updates, opt_state = update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        keys = jax.random.split(loss_key, n_batches)
        (params, opt_state), losses = jax.lax.scan(update_step, (fit.params, fit.opt_state), (rows, keys))
        return fit._replace(params=params, opt_state=opt_state), losses.mean()

    def epoch(fit: _Fit, i: Array, options: _FitOptions, data: PyTree, valid: PyTree) -> tuple[_Fit, dict]:
        def run(fit: _Fit) -> tuple[_Fit, dict]:
            train_key, valid_key = jax.random.split(options.key)
            fit, loss = train(fit, jax.random.fold_in(train_key, i), data, options.clip_norm)
            valid_loss, criterion = jnp.full_like(loss, jnp.nan), loss
            if valid is not None:
                # The same key each epoch: epochs compare on common random numbers.
                size = min(batch_size, len(jax.tree.leaves(valid)[0]))
                valid_loss = criterion = _mean_loss(get_valid_loss(), fit.params, valid, valid_key, size)
            better = criterion < fit.best_loss
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), fit.params, fit.best_params)
            fit = fit._replace(
                best_params=best,
                best_loss=jnp.where(better, criterion, fit.best_loss).astype(fit.best_loss.dtype),
                n_since_best=jnp.where(better, 0, fit.n_since_best + 1),
            )
            return fit, {"loss": loss, "valid_loss": valid_loss, "ran": jnp.ones((), bool)}

        skipped = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, fit)[1])
        return jax.lax.cond(fit.n_since_best < options.patience, run, lambda fit: (fit, skipped), fit)

    return epoch


def fit_minibatch(
    key: Key[Array, ""] | Array | int,
    loss_fn: Callable,
    params: PyTree,
    data: PyTree,
    *,
    optimizer: Any,
    batch_size: int,
    max_epochs: int,
    patience: int | None = None,
    validation_fraction: ScalarLike = 0.1,
    clip_norm: ScalarLike | None = None,
    valid_loss_fn: Callable | None = None,
    progress: bool = True,
) -> tuple[PyTree, dict[str, np.ndarray]]:
    """Minimise a loss by minibatch gradient descent and return the parameters of the best epoch.

    A host driver: epochs are scanned on the device, some ten between two looks of the host. It compiles once for each
    `loss_fn`, `valid_loss_fn`, `optimizer` (by identity), `batch_size` and shapes. Ctrl-C returns the best parameters
    so far.

    Parameters
    ----------
    key : PRNG key or int
        Splits, shuffles and feeds the loss.
    loss_fn : callable
        ``loss_fn(params, batch, key) -> scalar``, the mean over the batch.
    params : pytree of floating arrays
        The start.
    data : pytree of arrays, each of shape (n_rows, ...)
        A batch is this with `batch_size` rows.
    optimizer : optax.GradientTransformation
        For example ``optax.adam(1e-3)``.
    batch_size : int
        Rows a step, all of them if there are fewer. What does not fill a batch waits for the next shuffle.
    max_epochs : int
        Most epochs.
    patience : int, optional
        Stop after so many epochs without a better validation loss.
    validation_fraction : float
        Share of the rows, in [0, 1), drawn once and held out; at least one row unless it is 0. Then the training loss
        of an epoch (its mean over the epoch's steps) chooses the best parameters.
    clip_norm : float, optional
        Longest gradient.
    valid_loss_fn : callable, optional
        The loss of held-out rows, as `loss_fn` has it, where that differs: without dropout, for example.
    progress : bool
        Show a bar.

    Returns
    -------
    best_params : pytree of Array
        Parameters after the epoch of the lowest validation loss.
    history : dict of numpy.ndarray, each of shape (n_epochs_run,)
        ``"train_loss"`` and ``"valid_loss"`` (NaN without validation).

    Raises
    ------
    FloatingPointError
        The training loss is not finite; names the epoch (from 0) and says what to change.
    ValueError
        Empty data, rows that differ, an argument out of range.

    Examples
    --------
    >>> import jax, optax
    >>> import jax.numpy as jnp
    >>> from gyri.numerics.loops import fit_minibatch
    >>> data = jnp.linspace(1.0, 3.0, 40)
    >>> loss = lambda mean, batch, key: jnp.mean((batch - mean) ** 2)
    >>> mean, history = fit_minibatch(
    ...     0, loss, jnp.array(0.0), data, optimizer=optax.sgd(0.1), batch_size=8, max_epochs=20, progress=False
    ... )
    >>> bool(abs(mean - 2) < 0.3), len(history["valid_loss"])
    (True, 20)
    """
    n_rows = check_same_leading_axis(data, "data")
    batch_size, max_epochs = check_positive_int(batch_size, "batch_size"), check_positive_int(max_epochs, "max_epochs")
    patience = max_epochs if patience is None else check_positive_int(patience, "patience")
    fraction = check_scalar(validation_fraction, "validation_fraction", minimum=0, maximum=1)
    clip = np.inf if clip_norm is None else check_scalar(clip_norm, "clip_norm", minimum=0, strict=True)
    check_finite(params, "params")
    n_valid = max(1, round(n_rows * fraction)) if fraction else 0
    if n_valid >= n_rows:
        raise ValueError(f"validation_fraction: expected to leave a training row of {n_rows}, got {fraction}")
    split_key, loop_key = jax.random.split(as_key(key))
    params, data = jax.tree.map(_strong, (params, data))
    valid, data = _split_rows(split_key, data, n_valid)
    batch_size = min(batch_size, n_rows - n_valid)
    chunk = max(10, 100 * batch_size // n_rows)
    valid_loss_fn = loss_fn if valid_loss_fn is None else valid_loss_fn
    epoch = cached(_build_epoch, (loss_fn, valid_loss_fn, optimizer.update), batch_size)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    fit = _Fit(params, optimizer.init(params), params, jnp.array(jnp.inf, dtype), jnp.zeros((), jnp.int32))
    options = _FitOptions(loop_key, jnp.array(patience, jnp.int32), jnp.array(clip, dtype))
    fit, out = scan_chunks(
        epoch, fit, max_epochs, args=(options, data, valid), chunk=chunk, desc="fit", progress=progress, stop=None,
        callback=lambda n_done, fit, outputs: not bool(outputs["ran"][-1]),
    )  # fmt: skip
    ran = out["ran"]
    return fit.best_params, {"train_loss": out["loss"][ran], "valid_loss": out["valid_loss"][ran]}
