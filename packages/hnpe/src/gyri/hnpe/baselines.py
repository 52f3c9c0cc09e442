"""What the method is compared with: rejection ABC and likelihood-free variational inference, hierarchical both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from gyri.numerics.loops import cached, scan_chunks
from gyri.numerics.validation import as_key, check_array, check_positive_int, check_scalar

from .flows import flow_log_prob, flow_sample, is_frozen, make_flow
from .posterior import from_standard, to_standard
from .prior import HierarchicalPrior
from .simulation import simulate


def _check_observation(x: Any, x_extra: Any) -> tuple[Array, Array]:
    x = jnp.asarray(check_array(x, "x"))
    if x_extra is None:
        return x, jnp.zeros((0, *x.shape), x.dtype)
    x_extra = check_array(x_extra, "x_extra", shape=(None, *x.shape), allow_empty=True)
    return x, jnp.asarray(x_extra, x.dtype)


def rejection_abc(
    key: Key[Array, ""] | Array | int,
    prior: HierarchicalPrior,
    simulator: Callable,
    x: Any,
    x_extra: Any = None,
    *,
    n_simulations: int = 50_000,
    quantile: float = 0.01,
    summary: Callable | None = None,
    progress: bool = False,
) -> Float[Array, "n dim"]:
    """Keep the prior draws whose simulations lie nearest to the observation.

    The distance is Euclidean between the recording of interest beside the mean of the others, each entry in standard
    deviations over the simulations.

    Parameters
    ----------
    key : PRNG key or int
        Randomness.
    prior : HierarchicalPrior
        Of the parameters.
    simulator : callable
        As in :func:`gyri.hnpe.simulate`.
    x : array
        The recording of interest, in the space of `summary`'s output.
    x_extra : array, shape (N, ...), optional
        The others.
    n_simulations : int
        How many.
    quantile : float
        Share that is kept, in (0, 1].
    summary : callable, optional
        As in :func:`gyri.hnpe.simulate`.
    progress : bool
        Show a bar.

    Returns
    -------
    Array, shape (n, dim)
        Parameters kept, the nearest first.

    Raises
    ------
    ValueError
        Wrong shapes, values that are not finite, numbers out of range.

    Examples
    --------
    >>> from gyri.hnpe import ToyModel
    >>> from gyri.hnpe.baselines import rejection_abc
    >>> model = ToyModel(noise=0.05)
    >>> rejection_abc(0, model.prior, model, [0.25], [[0.4]], n_simulations=1000).shape
    (10, 2)
    """
    x, x_extra = _check_observation(x, x_extra)
    quantile = check_scalar(quantile, "quantile", minimum=0, maximum=1)
    if quantile == 0:
        raise ValueError(f"quantile: expected a number > 0 and <= 1, got {quantile}")
    n = check_positive_int(n_simulations, "n_simulations")
    sims = simulate(as_key(key), prior, simulator, n, len(x_extra), summary=summary, progress=progress)
    if sims.x.shape[1:] != x.shape:
        raise ValueError(f"x: expected shape {sims.x.shape[1:]}, that of a simulation, got {x.shape}")

    def describe(x: Array, x_extra: Array) -> Array:
        flat = x.reshape(len(x), -1)
        return jnp.concatenate([flat, x_extra.mean(1).reshape(flat.shape)], 1) if x_extra.shape[1] else flat

    simulated, observed = describe(sims.x, sims.x_extra), describe(x[None], x_extra[None])
    distance = jnp.sum(((simulated - observed) / jnp.maximum(simulated.std(0), 1e-12)) ** 2, 1)
    return sims.theta[jnp.argsort(distance)[: max(1, round(quantile * n))]]


class LFVI(NamedTuple):
    """What :func:`lfvi` returns.

    Attributes
    ----------
    samples : Array, shape (n_samples, dim)
        Draws from the approximate posterior, local parameters of the recording of interest first.
    history : dict of numpy.ndarray, shape (n_steps,)
        ``"loss"``: minus the evidence bound, up to a constant; ``"ratio_loss"``: logistic loss of the ratio.
    """

    samples: Float[Array, "n dim"]
    history: dict[str, np.ndarray]


class _Ratio(eqx.Module):
    """Log ratio of the joint law of the model to that of the approximation, at a recording and its parameters."""

    network: eqx.nn.MLP

    def __call__(self, x: Array, z: Array) -> Array:
        return self.network(jnp.concatenate([x, z]))


def lfvi(
    key: Key[Array, ""] | Array | int,
    prior: HierarchicalPrior,
    simulator: Callable,
    x: Any,
    x_extra: Any = None,
    *,
    summary: Callable | None = None,
    n_steps: int = 300,
    n_ratio_steps: int = 50,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    hidden: tuple[int, ...] = (64, 64),
    n_samples: int = 1000,
    progress: bool = False,
) -> LFVI:
    """Variational inference in a hierarchical implicit model: the likelihood is replaced by a learned ratio.

    Flows q(shared) and q(local | recording, shared) are moved up the evidence bound. The ratio tells the model's tuples
    (shared from q, local from the prior, simulated recording) from those of the approximation (shared from q, an
    observed recording, local from q given both); it therefore holds the prior of the local parameters and the entropy
    of their flow, and the bound is the sum of ratios plus ``log p(shared) - log q(shared)``.

    Parameters
    ----------
    key : PRNG key or int
        Randomness.
    prior, simulator, x, x_extra, summary
        As in :func:`rejection_abc`.
    n_steps : int
        Steps of the flows.
    n_ratio_steps : int
        Steps of the ratio before each of them.
    batch_size : int
        Tuples a step.
    learning_rate : float
        Of Adam, for both.
    hidden : tuple of int
        Equal widths of the hidden layers.
    n_samples : int
        Draws in the end.
    progress : bool
        Show a bar.

    Returns
    -------
    LFVI
        Draws and history.

    Raises
    ------
    ValueError
        Wrong shapes, values that are not finite, numbers out of range.
    FloatingPointError
        If it diverges.

    Examples
    --------
    >>> from gyri.hnpe import ToyModel
    >>> from gyri.hnpe.baselines import lfvi
    >>> model = ToyModel(noise=0.05)
    >>> lfvi(0, model.prior, model, [0.25], [[0.4]], n_steps=2, n_ratio_steps=2, n_samples=5).samples.shape
    (5, 2)

    References
    ----------
    Tran, Ranganath, Blei (2017), Hierarchical implicit models and likelihood-free variational inference, NeurIPS.
    """
    x, x_extra = _check_observation(x, x_extra)
    start_key, moments_key, loop_key, sample_key = jax.random.split(as_key(key), 4)
    n_samples = check_positive_int(n_samples, "n_samples")
    pilot = simulate(moments_key, prior, simulator, 1000, 0, summary=summary).x
    if pilot.shape[1:] != x.shape:
        raise ValueError(f"x: expected shape {pilot.shape[1:]}, that of a simulation, got {x.shape}")
    pilot = pilot.reshape(len(pilot), -1)
    moments = pilot.mean(0), jnp.maximum(pilot.std(0), 1e-6)
    data = (jnp.concatenate([x[None], x_extra]).reshape(1 + len(x_extra), -1) - moments[0]) / moments[1]
    program = cached(
        _build, (prior, simulator, summary), data.shape[1], tuple(hidden),
        check_positive_int(n_ratio_steps, "n_ratio_steps"), check_positive_int(batch_size, "batch_size"),
        float(learning_rate),
    )  # fmt: skip
    carry, history = scan_chunks(
        program.step, program.start(start_key), check_positive_int(n_steps, "n_steps"),
        args=(loop_key, data, moments), chunk=20, desc="lfvi", progress=progress,
    )  # fmt: skip
    return LFVI(program.draw(carry[0], jax.random.split(sample_key, n_samples), data), history)


class _Program(NamedTuple):
    """Functions of :func:`lfvi`, compiled once for a model whatever is observed."""

    start: Callable
    step: Callable
    draw: Callable


def _build(
    get_prior: Callable, get_simulator: Callable, get_summary: Callable, n_x: int, hidden: tuple[int, ...],
    n_ratio_steps: int, batch_size: int, learning_rate: float,
) -> _Program:  # fmt: skip
    n_shared, n_local = get_prior().n_shared, get_prior().n_local
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(learning_rate))

    def make(key: Array) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Trained and other parts of the two flows, and of the ratio."""
        keys, options = jax.random.split(key, 3), {"hidden": hidden, "n_layers": 1, "n_bins": 10}
        flows = {
            "shared": make_flow(keys[0], "nsf", n_shared, 1, **options),  # type: ignore[arg-type]
            "local": make_flow(keys[1], "nsf", n_local, n_x + n_shared, **options),  # type: ignore[arg-type]
        }
        ratio = _Ratio(eqx.nn.MLP(n_x + n_local + n_shared, "scalar", hidden[0], len(hidden), jax.nn.silu, key=keys[2]))
        parts = lambda tree: eqx.partition(tree, eqx.is_inexact_array, is_leaf=is_frozen)
        return parts(flows), parts(ratio)

    (_, static), (_, ratio_static) = make(jax.random.key(0))

    def start(key: Array) -> tuple:
        (params, _), (ratio, _) = make(key)
        return params, optimizer.init(params), ratio, optimizer.init(ratio)

    def draw_shared(flows: Any, key: Array, dtype: Any) -> Array:
        return flow_sample(flows["shared"], key, n_shared, jnp.zeros(1, dtype))

    def draw_local(flows: Any, key: Array, x: Array, shared: Array) -> Array:
        return flow_sample(flows["local"], key, n_local, jnp.concatenate([x, shared]))

    def to_theta(shared: Array) -> Array:
        return from_standard(get_prior(), jnp.concatenate([jnp.zeros(n_local, shared.dtype), shared]))[n_local:]

    def tuples(flows: Any, key: Array, data: Array, moments: tuple) -> tuple[Array, Array, Array, Array]:
        """A recording and parameters of the model, and of the approximation."""
        shared_key, prior_key, x_key, row_key, local_key = jax.random.split(key, 5)
        shared = draw_shared(flows, shared_key, data.dtype)
        theta = jnp.concatenate([get_prior().sample_local(prior_key, to_theta(shared)), to_theta(shared)])
        simulated, summary = get_simulator()(x_key, theta), get_summary()
        simulated = (simulated if summary is None else summary(simulated)).reshape(-1)
        observed = data[jax.random.randint(row_key, (), 0, len(data))]
        z = jnp.concatenate([draw_local(flows, local_key, observed, shared), shared])
        return (simulated - moments[0]) / moments[1], to_standard(get_prior(), theta)[0], observed, z

    def ratio_loss(ratio: Any, flows: Any, key: Array, data: Array, moments: tuple) -> Array:
        ratio, keys = eqx.combine(ratio, ratio_static), jax.random.split(key, batch_size)
        x, z, x_q, z_q = jax.lax.stop_gradient(jax.vmap(lambda k: tuples(flows, k, data, moments))(keys))
        return jnp.mean(jax.nn.softplus(-jax.vmap(ratio)(x, z)) + jax.nn.softplus(jax.vmap(ratio)(x_q, z_q)))

    def negative_bound(params: Any, ratio: Any, key: Array, data: Array) -> Array:
        flows, ratio = eqx.combine(params, static), eqx.combine(ratio, ratio_static)
        at = slice(n_local, None)

        def one(key: Array) -> Array:
            shared_key, local_key = jax.random.split(key)
            shared = draw_shared(flows, shared_key, data.dtype)
            keys = jax.random.split(local_key, len(data))
            local = jax.vmap(lambda k, x: draw_local(flows, k, x, shared))(keys, data)
            z = jnp.concatenate([local, jnp.tile(shared, (len(data), 1))], 1)
            theta = to_theta(shared)
            log_prior = _shared_log_prior(get_prior(), theta) - to_standard(get_prior(), theta, at)[1].sum()
            log_q = flow_log_prob(flows["shared"], shared, jnp.zeros(1, data.dtype))
            return jax.vmap(ratio)(data, z).sum() + log_prior - log_q

        return -jnp.mean(jax.vmap(one)(jax.random.split(key, batch_size)))

    def step(carry: tuple, i: Array, key: Array, data: Array, moments: tuple) -> tuple[tuple, dict]:
        params, opt_state, ratio, ratio_state = carry
        ratio_key, bound_key = jax.random.split(jax.random.fold_in(key, i))
        flows = eqx.combine(params, static)

        def ratio_step(state: tuple, key: Array) -> tuple[tuple, Array]:
            ratio, ratio_state = state
            value, gradient = jax.value_and_grad(ratio_loss)(ratio, flows, key, data, moments)
            updates, ratio_state = optimizer.update(gradient, ratio_state, ratio)
            return (optax.apply_updates(ratio, updates), ratio_state), value

        keys = jax.random.split(ratio_key, n_ratio_steps)
        (ratio, ratio_state), losses = jax.lax.scan(ratio_step, (ratio, ratio_state), keys)
        loss, gradient = jax.value_and_grad(negative_bound)(params, ratio, bound_key, data)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        carry = optax.apply_updates(params, updates), opt_state, ratio, ratio_state
        return carry, {"loss": loss, "ratio_loss": losses[-1]}

    @jax.jit
    def draw(params: Any, keys: Array, data: Array) -> Array:
        flows = eqx.combine(params, static)

        def one(key: Array) -> Array:
            shared_key, local_key = jax.random.split(key)
            shared = draw_shared(flows, shared_key, data.dtype)
            return from_standard(get_prior(), jnp.concatenate([draw_local(flows, local_key, data[0], shared), shared]))

        return jax.vmap(one)(keys)

    return _Program(start, step, draw)


def _shared_log_prior(prior: HierarchicalPrior, shared: Array) -> Array:
    laws = list(prior.shared.values())
    return sum((law.log_prob(shared[i]) for i, law in enumerate(laws[1:], 1)), laws[0].log_prob(shared[0]))
