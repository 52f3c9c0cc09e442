"""Modules: a layer that learns which transforms to apply and how far, and a network made invariant by them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from gyri.numerics.transform import Transform
from gyri.numerics.validation import check_array, check_option, check_positive_int, check_scalar

from .augerino import AUGMENTATION, Augerino
from .mixing import choose_for_each, has_hash, mix

AGGREGATES = ("log_softmax", "softmax", "logits", "mean")


class AugmentationLayer(nnx.Module):
    r"""Learns one weight and one magnitude for each of several transforms.

    In training, gives the convex mixture of all transforms with weights :math:`\operatorname{softmax}(u / T)`; in
    evaluation (``model.eval()``), one transform drawn with these weights.

    Parameters
    ----------
    transforms : sequence of Transform
        What it chooses from, such as :func:`eeg_transforms` or :func:`image_transforms` give.
    init_magnitude : float or array, shape (n,)
        First magnitudes, in [0, 1].
    temperature : float
        :math:`T`. At 0.01 the weights follow the parameters :math:`u`, all 1 at first, a hundred times faster.
    apply_temperature : float
        Temperature of the draws whether a transform without a range is applied; 0.1 is used for images.
    sampling : {"copy", "example"}
        In evaluation draw one transform a call, which costs one transform, or one an example, which costs them all.
    param_dtype : dtype, optional
        Of the parameters; JAX's default float.

    Attributes
    ----------
    logits, magnitude : nnx.Param, shape (n,)
        :math:`u`, and :math:`\mu` in [0, 1].
    deterministic : bool
        Set by ``model.train()`` and ``model.eval()``.

    Raises
    ------
    ValueError
        Without transforms, or for magnitudes, temperatures or options out of range.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from gyri.augnet import AugmentationLayer, eeg_transforms
    >>> layer = AugmentationLayer(eeg_transforms(100.0, include="time_freq"))
    >>> layer(jnp.ones((4, 2, 300)), key=jax.random.key(0)).shape
    (4, 2, 300)

    References
    ----------
    Rommel, Moreau, Gramfort (2022).
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        *,
        init_magnitude: Any = 0.05,
        temperature: float | int = 0.01,
        apply_temperature: float | int = 0.05,
        sampling: str = "copy",
        param_dtype: Any = None,
    ) -> None:
        self.transforms = tuple(transforms)
        if not self.transforms or not all(isinstance(transform, Transform) for transform in self.transforms):
            raise ValueError("transforms: expected at least one Transform, and nothing else")
        self.temperature = check_scalar(temperature, "temperature", minimum=0.0, strict=True)
        self.apply_temperature = check_scalar(apply_temperature, "apply_temperature", minimum=0.0, strict=True)
        self.sampling = check_option(sampling, "sampling", ("copy", "example"))
        n = len(self.transforms)
        start = np.asarray(check_array(init_magnitude, "init_magnitude", ndim=(0, 1)))
        if start.shape not in ((), (n,)) or not ((start >= 0) & (start <= 1)).all():
            raise ValueError(f"init_magnitude: expected one number in [0, 1] or {n} of them, got {init_magnitude}")
        dtype = jnp.result_type(float) if param_dtype is None else param_dtype
        self.logits = nnx.Param(jnp.ones(n, dtype), tag=AUGMENTATION)
        self.magnitude = nnx.Param(jnp.broadcast_to(jnp.asarray(start, dtype), (n,)).copy(), tag=AUGMENTATION)
        self.deterministic = False

    @property
    def weights(self) -> Float[Array, "n"]:
        """Weights of the transforms, which sum to one."""
        return jax.nn.softmax(self.logits[...] / self.temperature)

    def __call__(self, x: Float[Any, "n_examples *shape"], *, key: Key[Array, ""]) -> Float[Array, "n_examples *shape"]:
        """Augment a batch.

        Parameters
        ----------
        x : Array, shape (n_examples, ...)
            Batch.
        key : PRNG key
            Source of randomness.

        Returns
        -------
        Array, shape (n_examples, ...)
            Augmented batch.
        """
        parameters = self.logits[...], self.magnitude[...], self.transforms
        if self.deterministic and self.sampling == "example":
            return choose_for_each(key, *parameters, x, temperature=self.temperature)
        return mix(
            key,
            *parameters,
            x,
            temperature=self.temperature,
            apply_temperature=self.apply_temperature,
            relaxed=not self.deterministic,
        )

    def project(self) -> None:
        """Clip the magnitudes to [0, 1], as is due after each step of an optimiser."""
        self.magnitude[...] = jnp.clip(self.magnitude[...], 0, 1)

    def describe(self) -> list[dict[str, Any]]:
        """One row a transform: operation, weight, magnitude, argument (None without a range), unit."""
        rows = zip(self.transforms, np.asarray(self.weights), np.asarray(self.magnitude[...]))
        return [
            {
                "operation": transform.name,
                "weight": float(weight),
                "magnitude": float(magnitude),
                "argument": transform.argument(float(magnitude)),
                "unit": transform.unit,
            }
            for transform, weight, magnitude in rows
        ]


def _joined(parts: list[Array]) -> Array:
    return jnp.concatenate(parts) if parts else jnp.zeros(0)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(graph: Any, copies: int, leaves: list[Array], x: Array, key: Any) -> Array:
    """Outputs of an AugNet in evaluation, compiled once for its graph; a scan alone compiles at each call."""
    definition, structure = graph
    model: Any = nnx.merge(definition, jax.tree.unflatten(structure, leaves), copy=True)
    return model._one_by_one(x, key, copies)


class AugNet(nnx.Module):
    """A network that sees augmented copies of its input and averages what it says about them.

    Parameters
    ----------
    trunk : nnx.Module or callable
        Network (n, ...) -> (n, k). In evaluation a module is compiled once, unless it holds things without a hash; any
        other function, which might read what changes, at each call outside of `jit`.
    layers : AugmentationLayer, Augerino, or sequence of them
        Applied one after the other.
    copies : int
        Copies in evaluation, one after the other, in memory that does not grow with them.
    train_copies : int
        Copies in training, side by side.
    aggregate : {"log_softmax", "softmax", "logits", "mean"}
        Mean over copies of log-probabilities, log of the mean probability, or mean of the trunk's outputs as they are
        (two names for it, for classification and regression).

    Attributes
    ----------
    copies, train_copies, aggregate
        May be changed at any time.

    Raises
    ------
    ValueError
        Without layers, for less than one copy or an unknown aggregate.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gyri.augnet import AugmentationLayer, AugNet, image_transforms
    >>> trunk = lambda x: x.reshape(len(x), -1)[:, :3]
    >>> net = AugNet(trunk, AugmentationLayer(image_transforms("affine")), copies=4)
    >>> net.eval()
    >>> net(jnp.ones((2, 8, 8, 1)), key=jax.random.key(0)).shape
    (2, 3)

    References
    ----------
    Rommel, Moreau, Gramfort (2022).
    """

    def __init__(
        self,
        trunk: Callable[[Array], Array],
        layers: Any,
        *,
        copies: int = 20,
        train_copies: int = 1,
        aggregate: str = "log_softmax",
    ) -> None:
        self.trunk = trunk
        layers = [layers] if isinstance(layers, AugmentationLayer | Augerino) else list(layers)
        if not layers or not all(isinstance(layer, AugmentationLayer | Augerino) for layer in layers):
            raise ValueError("layers: expected an AugmentationLayer, an Augerino or a sequence of them")
        self.layers = nnx.List(layers)
        self.copies = check_positive_int(copies, "copies")
        self.train_copies = check_positive_int(train_copies, "train_copies")
        self.aggregate = check_option(aggregate, "aggregate", AGGREGATES)
        self.deterministic = False

    def augment(self, x: Float[Any, "n_examples *shape"], *, key: Key[Array, ""]) -> Float[Array, "n_examples *shape"]:
        """Apply the layers once.

        Parameters
        ----------
        x : Array, shape (n_examples, ...)
            Batch.
        key : PRNG key
            Source of randomness.

        Returns
        -------
        Array, shape (n_examples, ...)
            One augmented copy of the batch.
        """
        for i, layer in enumerate(self.layers):
            x = layer(x, key=jax.random.fold_in(key, i))
        return x

    def __call__(self, x: Float[Any, "n_examples *shape"], *, key: Key[Array, ""]) -> Float[Array, "n_examples ..."]:
        """Average the trunk's outputs over augmented copies.

        Parameters
        ----------
        x : Array, shape (n_examples, ...)
            Batch.
        key : PRNG key
            Source of randomness; copy c uses ``fold_in(key, c)``.

        Returns
        -------
        Array, shape (n_examples, k)
            What `aggregate` says; the same for one copy as for many.
        """
        check_option(self.aggregate, "aggregate", AGGREGATES)
        copies = check_positive_int(
            *((self.copies, "copies") if self.deterministic else (self.train_copies, "train_copies"))
        )
        x = jnp.asarray(x)
        if self.deterministic:
            definition, state = nnx.split(self)
            leaves, structure = jax.tree.flatten(state)
            if isinstance(self.trunk, nnx.Module) and has_hash(definition):
                return _evaluate((definition, structure), copies, leaves, x, key)
            return self._one_by_one(x, key, copies)
        keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(jnp.arange(copies))
        augmented = jax.vmap(lambda k: self.augment(x, key=k))(keys)
        # One call for all copies, so that a trunk in training sees, and counts, one batch.
        outputs = self.trunk(augmented.reshape(-1, *x.shape[1:]))
        return self._average(outputs.reshape(copies, len(x), *outputs.shape[1:]))

    def _average(self, outputs: Float[Array, "copies n_examples ..."]) -> Float[Array, "n_examples ..."]:
        if self.aggregate == "log_softmax":
            return jax.nn.log_softmax(outputs).mean(0)
        if self.aggregate == "softmax":
            return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - jnp.log(len(outputs))
        return outputs.mean(0)

    def _one_by_one(self, x: Array, key: Key[Array, ""], copies: int) -> Array:
        """The average of copies that are made, used and forgotten one after the other."""
        log_domain = self.aggregate == "softmax"

        def output(c: Array) -> Array:
            y = self.trunk(self.augment(x, key=jax.random.fold_in(key, c)))
            return jax.nn.log_softmax(y) if self.aggregate in ("log_softmax", "softmax") else y

        def step(total: Array, c: Array) -> tuple[Array, None]:
            return (jnp.logaddexp(total, output(c)) if log_domain else total + output(c)), None

        like = jax.eval_shape(output, jax.ShapeDtypeStruct((), jnp.int32))
        start = jnp.full(like.shape, -jnp.inf if log_domain else 0, like.dtype)
        total, _ = jax.lax.scan(step, start, jnp.arange(copies, dtype=jnp.int32))
        return total - jnp.log(copies).astype(total.dtype) if log_domain else total / copies

    def _learned(self) -> list[AugmentationLayer]:
        return [layer for layer in self.layers if isinstance(layer, AugmentationLayer)]

    @property
    def weights(self) -> Float[Array, "n_total"]:
        """Weights of all layers, one after the other; those of each layer sum to one. None for an Augerino."""
        return _joined([layer.weights for layer in self._learned()])

    @property
    def magnitudes(self) -> Float[Array, "n_total"]:
        """Magnitudes of all layers, one after the other."""
        return _joined([layer.magnitude[...] for layer in self._learned()])

    def project(self) -> None:
        """Clip all magnitudes to [0, 1]; call it after each step of an optimiser in a loop of your own."""
        for layer in self._learned():
            layer.project()

    def describe(self) -> list[dict[str, Any]]:
        """One row a transform: layer, operation, weight, magnitude, argument (None without a range), unit."""
        return [{"layer": i, **row} for i, layer in enumerate(self.layers) for row in layer.describe()]
