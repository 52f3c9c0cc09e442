"""The approximate posterior as one module: embedding, aggregation of the set, flows; on standardised variables."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .deepset import count_feature, masked_mean
from .flows import flow_log_prob, flow_sample, is_frozen, make_flow

AGGREGATES = ("deepset", "mean", "stack")


class Network(eqx.Module):
    """q(local, shared | recording, others), in unconstrained and standardised parameters.

    Attributes
    ----------
    embedding : callable or None
        Of one recording; None flattens it.
    phi : callable or None
        What is averaged over the others, or how they are aggregated.
    shared, local : flow or None
        The two factors.
    joint : flow or None
        In place of the two.
    aggregate : str
        "deepset", "mean", "stack", or "callable".
    n_local, n_shared : int
        How many parameters.
    """

    embedding: Any
    phi: Any
    shared: Any
    local: Any
    joint: Any
    aggregate: str = eqx.field(static=True)
    n_local: int = eqx.field(static=True)
    n_shared: int = eqx.field(static=True)

    def embed(self, x: Array, key: Array | None = None) -> Array:
        """Features of one standardised recording; the key is for embeddings that take one (dropout)."""
        if self.embedding is None:
            return x.reshape(-1)
        if key is not None and takes_key(self.embedding):
            return self.embedding(x, key=key)
        return self.embedding(x)

    def condition(self, x: Array, x_extra: Array, mask: Array, key: Array | None = None) -> tuple[Array, Array]:
        """Condition of the local factor, features of the recording; condition of the shared factor, all there is."""
        n_max = len(mask)
        keys = None if key is None else jax.random.split(key, 1 + n_max)
        first = self.embed(x, None if keys is None else keys[0])
        if n_max == 0:
            return first, first
        # Values of missing recordings never enter: neither they nor their gradients.
        x_extra = jnp.where(mask.reshape(-1, *[1] * x.ndim), x_extra, 0)
        others = jax.vmap(self.embed)(x_extra, None if keys is None else keys[1:])
        if self.aggregate == "stack":
            return first, jnp.concatenate([first, others.reshape(-1)])
        if self.aggregate == "callable":
            pooled = self.phi(others, mask)
        else:
            pooled = masked_mean(others if self.phi is None else jax.vmap(self.phi)(others), mask)
        return first, jnp.concatenate([first, pooled, count_feature(mask, first.dtype)])

    def log_prob(self, z: Array, condition: tuple[Array, Array]) -> Array:
        """Log density of one vector, local parameters first."""
        if self.joint is not None:
            return flow_log_prob(self.joint, z, condition[1])
        local, shared = z[: self.n_local], z[self.n_local :]
        return self.log_prob_shared(shared, condition) + self.log_prob_local(local, shared, condition)

    def log_prob_shared(self, shared: Array, condition: tuple[Array, Array]) -> Array:
        """First factor."""
        return flow_log_prob(self.shared, shared, condition[1])

    def log_prob_local(self, local: Array, shared: Array, condition: tuple[Array, Array]) -> Array:
        """Second factor."""
        return flow_log_prob(self.local, local, jnp.concatenate([condition[0], shared]))

    def sample(self, key: Array, condition: tuple[Array, Array]) -> Array:
        """One draw."""
        first, every = condition
        if self.joint is not None:
            return flow_sample(self.joint, key, self.n_local + self.n_shared, every)
        shared_key, local_key = jax.random.split(key)
        shared = flow_sample(self.shared, shared_key, self.n_shared, every)
        local = flow_sample(self.local, local_key, self.n_local, jnp.concatenate([first, shared]))
        return jnp.concatenate([local, shared])


def takes_key(function: Any) -> bool:
    """Whether a module follows Equinox's convention of a keyword `key`."""
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def make_network(
    key: Array,
    *,
    event_shape: tuple[int, ...],
    n_max: int,
    n_local: int,
    n_shared: int,
    density_estimator: str,
    factorized: bool,
    aggregate: str | Callable,
    embedding: Callable | None,
    n_features: int,
    hidden: tuple[int, ...],
    n_layers: int | None,
    n_bins: int,
    dtype: Any,
) -> Network:
    """Build the network for recordings of a shape and a largest number of others."""
    phi_key, shared_key, local_key = jax.random.split(key, 3)
    name = aggregate if isinstance(aggregate, str) else "callable"
    embed = Network(eqx.nn.inference_mode(embedding), None, None, None, None, name, n_local, n_shared).embed
    features = jax.eval_shape(embed, jax.ShapeDtypeStruct(event_shape, dtype))
    if features.ndim != 1:
        raise ValueError(f"embedding: expected a vector for a recording of shape {event_shape}, got {features.shape}")
    n_first = features.shape[0]
    phi: Any = None
    n_every = n_first
    if n_max and name == "stack":
        n_every = n_first * (1 + n_max)
    elif n_max:
        n_pooled = n_first
        if name == "deepset":
            phi = eqx.nn.MLP(n_first, n_features, hidden[0], len(hidden), jax.nn.silu, key=phi_key)
            n_pooled = n_features
        elif name == "callable":
            phi = aggregate
            shapes = jax.ShapeDtypeStruct((n_max, n_first), dtype), jax.ShapeDtypeStruct((n_max,), bool)
            pooled = eqx.filter_eval_shape(phi, *shapes)
            if len(pooled.shape) != 1:
                raise ValueError(f"aggregate: expected a function that returns a vector, got shape {pooled.shape}")
            n_pooled = pooled.shape[0]
        n_every = n_first + n_pooled + 1

    def flow(key: Array, dim: int, cond_dim: int, factor: int) -> Any:
        # One layer is enough in one dimension: it bends every density there; more dimensions need to be mixed.
        layers = n_layers if n_layers is not None else (1 if dim == 1 else 5) * factor
        options = {"hidden": hidden, "n_layers": layers, "n_bins": n_bins, "dtype": dtype}
        return make_flow(key, density_estimator, dim, cond_dim, **options)  # type: ignore[arg-type]

    if factorized:
        shared, local = flow(shared_key, n_shared, n_every, 1), flow(local_key, n_local, n_first + n_shared, 1)
        return _cast(Network(embedding, phi, shared, local, None, name, n_local, n_shared), dtype)
    joint = flow(shared_key, n_local + n_shared, n_every, 2)
    return _cast(Network(embedding, phi, None, None, joint, name, n_local, n_shared), dtype)


def _cast(network: Network, dtype: Any) -> Network:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, network)


# --- the two halves ---------------------------------------------------------------------------------------------------


class Static:
    """All of a network that is not trained, comparable by value: functions, sizes, masks, frozen arrays."""

    def __init__(self, tree: PyTree) -> None:
        self.tree = tree
        leaves, structure = jax.tree.flatten(tree)
        self._value = structure, tuple(map(_value_of, leaves))

    def __hash__(self) -> int:
        """Of the content."""
        return hash(self._value)

    def __eq__(self, other: object) -> bool:
        """Same content."""
        return isinstance(other, Static) and self._value == other._value


def _value_of(leaf: Any) -> Any:
    if eqx.is_array(leaf):
        return leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()
    try:
        hash(leaf)
    except TypeError:  # an embedding without a hash: equal to itself alone
        return id(leaf)
    return leaf


def split_network(network: Network) -> tuple[PyTree, Static]:
    """Trained arrays and the rest; what `paramax.NonTrainable` wraps is not trained."""
    params, rest = eqx.partition(network, eqx.is_inexact_array, is_leaf=is_frozen)
    return params, Static(rest)


def join_network(params: PyTree, static: Static) -> Network:
    """Inverse of :func:`split_network`."""
    return eqx.combine(params, static.tree)
