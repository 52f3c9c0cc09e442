"""One training step of an AugNet and its predictions, as pure compiled functions of flat lists of arrays.

The step is compiled alone and called in a Python loop: XLA runs the derivatives of convolutions inside a scan many
times slower on a CPU. A list of arrays, rather than the modules' nested state, keeps a call cheap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from .augerino import AUGMENTATION
from .losses import invariance_penalty

TRUNK_AND_AUGMENTATION = ("trunk", "augmentation")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["learning_rate", "weight_decay"],
    meta_fields=["schedule", "decoupled"],
)
@dataclass(frozen=True)
class Rates:
    """Settings of the optimiser for one group of parameters; the numbers are data of a compiled step.

    Attributes
    ----------
    learning_rate, weight_decay : float
        Of Adam.
    schedule : callable, optional
        Optax schedule in place of the learning rate.
    decoupled : bool
        Whether the decay is decoupled (AdamW) or added to the gradient before Adam.
    """

    learning_rate: Any
    weight_decay: Any
    schedule: Callable[..., Any] | None = None
    decoupled: bool = False


def make_optimizer(trunk: Rates, augmentation: Rates) -> optax.GradientTransformation:
    """Adam with a rate and a decay of its own for the network and for the augmentations.

    Parameters
    ----------
    trunk, augmentation : Rates
        Settings of each.

    Returns
    -------
    optax.GradientTransformation
        Its state does not depend on the numbers.

    Examples
    --------
    >>> rates = Rates(1e-3, 0.0)
    >>> values = {"trunk": jnp.ones(()), "augmentation": jnp.ones(())}
    >>> optimizer = make_optimizer(rates, rates)
    >>> updates, _ = optimizer.update(values, optimizer.init(values), values)
    >>> round(float(updates["trunk"]), 6)
    -0.001
    """

    def adam(rates: Rates) -> optax.GradientTransformation:
        learning_rate = rates.learning_rate if rates.schedule is None else rates.schedule
        if rates.decoupled:
            return optax.adamw(learning_rate, weight_decay=rates.weight_decay)
        return optax.chain(optax.add_decayed_weights(rates.weight_decay), optax.adam(learning_rate))

    groups = dict(zip(TRUNK_AND_AUGMENTATION, (adam(trunk), adam(augmentation))))
    return optax.multi_transform(groups, {name: name for name in TRUNK_AND_AUGMENTATION})


class Static:
    """A static argument of compiled functions, which hash and compare theirs in each call; of a graph that is slow."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._hash = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Static) and self.value == other.value)


@lru_cache(maxsize=128)
def as_static(value: Any) -> Static:
    """The same object for equal values, hashed once.

    Parameters
    ----------
    value : hashable
        What is static.

    Returns
    -------
    Static
        With the value.

    Examples
    --------
    >>> as_static((1, "a")) is as_static((1, "a"))
    True
    """
    return Static(value)


class Totals(NamedTuple):
    """Sums over the steps of an epoch."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    accuracy: Float[Array, ""]


class Carry(NamedTuple):
    """Everything a step reads and writes: the model in the order of :func:`split`, and what goes along."""

    augmentation: Any
    trunk: Any
    rest: Any
    optimizer: Any
    step: Int[Array, ""]
    totals: Totals


def split(model: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """Graph definition, parameters of the augmentations, of the trunk, and all other state of a model.

    Parameters
    ----------
    model : AugNet
        The model.

    Returns
    -------
    graph, augmentation, trunk, rest : GraphDef, State, State, State
        What `nnx.merge` takes.

    Examples
    --------
    >>> from flax import nnx
    >>> from gyri.augnet import AugNet, AugmentationLayer, image_transforms
    >>> net = AugNet(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), AugmentationLayer(image_transforms()))
    >>> [len(jax.tree.leaves(part)) for part in split(net)[1:]]
    [2, 2, 0]
    """
    parts: Any = nnx.split(model, nnx.WithTag(AUGMENTATION), nnx.Param, ...)
    return parts


def _groups(carry: Carry) -> dict[str, Any]:
    return dict(zip(TRUNK_AND_AUGMENTATION, (carry.trunk, carry.augmentation)))


def begin(model: nnx.Module, rates: tuple[Rates, Rates]) -> tuple[Any, Carry]:
    """Split a model in training mode.

    Parameters
    ----------
    model : AugNet
        The model; its arrays are copied, since a step overwrites those that it is given.
    rates : (Rates, Rates)
        Of the trunk and of the augmentations.

    Returns
    -------
    graph, carry : GraphDef, Carry
        What is static, and what a step updates.

    Examples
    --------
    >>> from flax import nnx
    >>> from gyri.augnet import AugNet, AugmentationLayer, image_transforms
    >>> net = AugNet(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), AugmentationLayer(image_transforms()))
    >>> rates = Rates(1e-3, 0.0)
    >>> int(begin(net, (rates, rates))[1].step)
    0
    """
    graph, augmentation, trunk, rest = split(model)
    augmentation, trunk, rest = jax.tree.map(jnp.copy, (augmentation, trunk, rest))
    start = make_optimizer(*rates).init(dict(zip(TRUNK_AND_AUGMENTATION, (trunk, augmentation))))
    zero = jnp.zeros((), jax.tree.leaves(augmentation)[0].dtype)
    return graph, Carry(augmentation, trunk, rest, start, jnp.array(0), Totals(zero, zero + 0, zero + 0))


def end(graph: Any, carry: Carry) -> nnx.Module:
    """The model in a carry.

    Parameters
    ----------
    graph, carry : GraphDef, Carry
        As :func:`begin` gives.

    Returns
    -------
    AugNet
        A model with arrays of its own.

    Examples
    --------
    >>> from flax import nnx
    >>> from gyri.augnet import AugNet, AugmentationLayer, image_transforms
    >>> net = AugNet(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), AugmentationLayer(image_transforms()))
    >>> rates = Rates(1e-3, 0.0)
    >>> end(*begin(net, (rates, rates))).weights.size
    5
    """
    parts = jax.tree.map(jnp.copy, (carry.augmentation, carry.trunk, carry.rest))
    return nnx.merge(graph, *parts)


def flatten(carry: Any) -> tuple[list[Array], Any]:
    """A carry as a list of plain arrays, and its static structure.

    Typed keys become their data: to rebuild one, JAX runs Python after a step, where Ctrl-C would lose what it gave.

    Parameters
    ----------
    carry : Carry
        As :func:`begin` gives.

    Returns
    -------
    leaves, structure : list of Array, hashable
        What :func:`unflatten` takes.

    Examples
    --------
    >>> leaves, structure = flatten({"key": jax.random.key(3)})
    >>> leaves
    [Array([0, 3], dtype=uint32)]
    """
    leaves, tree = jax.tree.flatten(carry)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    kinds = tuple(str(jax.random.key_impl(leaf)) if key else None for leaf, key in zip(leaves, is_key))
    return [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, is_key)], (tree, kinds)


def unflatten(structure: Any, leaves: list[Array]) -> Any:
    """The carry that :func:`flatten` took apart.

    Parameters
    ----------
    structure, leaves : hashable, list of Array
        As :func:`flatten` gives.

    Returns
    -------
    Carry
        The carry.

    Examples
    --------
    >>> leaves, structure = flatten({"key": jax.random.key(3)})
    >>> unflatten(structure, leaves)["key"] == jax.random.key(3)
    Array(True, dtype=bool)
    """
    tree, kinds = structure
    wrapped = [leaf if kind is None else jax.random.wrap_key_data(leaf, impl=kind) for leaf, kind in zip(leaves, kinds)]
    return jax.tree.unflatten(tree, wrapped)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    static: Static,
    leaves: list[Array],
    x: Float[Array, "n *shape"],
    y: Int[Array, "n"],
    batches: Int[Array, "n_batches batch"],
    reg: Float[Any, ""],
    rates: tuple[Rates, Rates],
    key: Key[Array, ""],
) -> list[Array]:
    """One step on the next batch: gradients, optimiser, projection.

    Parameters
    ----------
    static : Static
        Graph definition of the model, structure of the :class:`Carry` as :func:`flatten` gives, kind of
        :func:`invariance_penalty`.
    leaves : list of Array
        The carry, flat; overwritten.
    x, y : Array, shapes (n, ...) and (n,)
        Training set.
    batches : Array of int, shape (n_batches, batch)
        Indices of this epoch's batches; step i takes row ``i % n_batches``.
    reg : float
        Factor of the penalty.
    rates : (Rates, Rates)
        Of the trunk and of the augmentations.
    key : PRNG key
        Source of randomness of the whole fit.

    Returns
    -------
    list of Array
        The carry after the step.
    """
    graph, structure, penalty = static.value
    carry: Carry = unflatten(structure, leaves)
    batch = batches[carry.step % len(batches)]
    x, y = x[batch], y[batch]

    def loss(groups: dict[str, Any]) -> tuple[Array, Any]:
        model = nnx.merge(graph, groups["augmentation"], groups["trunk"], carry.rest, copy=True)
        log_probabilities = model(x, key=jax.random.fold_in(key, carry.step))
        cross_entropy = -jnp.take_along_axis(log_probabilities, y[:, None], axis=1).mean()
        accuracy = (log_probabilities.argmax(1) == y).mean().astype(cross_entropy.dtype)
        total = cross_entropy - reg * invariance_penalty(model, kind=penalty)
        return total, (Totals(total, cross_entropy, accuracy), split(model)[3])

    groups = _groups(carry)
    gradients, (values, rest) = jax.grad(loss, has_aux=True)(groups)
    updates, state = make_optimizer(*rates).update(gradients, carry.optimizer, groups)
    groups = optax.apply_updates(groups, updates)
    model = nnx.merge(graph, groups["augmentation"], groups["trunk"], rest, copy=True)
    model.project()
    totals = jax.tree.map(lambda total, value: total + value.astype(total.dtype), carry.totals, values)
    _, augmentation, trunk, rest = split(model)
    return flatten(Carry(augmentation, trunk, rest, state, carry.step + 1, totals))[0]


@partial(jax.jit, static_argnums=0)
def predict_batch(graph: Static, leaves: list[Array], x: Float[Array, "n *shape"], key: Key[Array, ""]) -> Array:
    """Outputs of a model in evaluation mode.

    Parameters
    ----------
    graph : Static
        Graph definition of the model and its state's structure.
    leaves : list of Array
        Its state.
    x : Array, shape (n, ...)
        Batch.
    key : PRNG key
        Source of randomness.

    Returns
    -------
    Array, shape (n, k)
        Outputs.
    """
    definition, structure = graph.value
    return nnx.merge(definition, jax.tree.unflatten(structure, leaves), copy=True)(x, key=key)


def predict(model: nnx.Module, x: Any, key: Key[Array, ""], batch_size: int) -> Float[Array, "n k"]:
    """Outputs of a model in evaluation mode, batch by batch.

    Parameters
    ----------
    model : AugNet
        In evaluation mode.
    x : array, shape (n, ...)
        Examples.
    key : PRNG key
        Source of randomness; batch b uses ``fold_in(key, b)``.
    batch_size : int
        Examples at a time; the last batch is filled up with the first examples, so that one program serves all and
        a transform that mixes examples meets real ones only.

    Returns
    -------
    Array, shape (n, k)
        Outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from flax import nnx
    >>> from gyri.augnet import AugNet, AugmentationLayer, eeg_transforms
    >>> trunk = lambda x: x.mean(-1)
    >>> net = AugNet(trunk, AugmentationLayer(eeg_transforms(100.0)))
    >>> net.eval()
    >>> predict(net, np.ones((5, 2, 100), np.float32), jax.random.key(0), 2).shape
    (5, 2)
    """
    definition, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    graph = as_static((definition, structure))
    outputs = []
    for number, start in enumerate(range(0, len(x), batch_size)):
        batch = jnp.asarray(x[np.arange(start, start + batch_size) % len(x)])
        outputs.append(predict_batch(graph, leaves, batch, jax.random.fold_in(key, number)))
    return jnp.concatenate(outputs)[: len(x)]
