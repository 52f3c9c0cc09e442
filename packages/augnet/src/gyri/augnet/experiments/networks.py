"""Networks of the experiments, and the baselines that share their training."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gyri.numerics import eeg
from gyri.numerics.transform import Transform

IDENTITY = (Transform("identity", lambda key, x, arg: x),)


class Blocks(nnx.Module):
    """Convolutions 3 x 3 with normalisation and ReLU, some pooled by two, a maximum over space, a dense layer."""

    def __init__(self, channels: Sequence[int], pooled: Sequence[bool], n_outputs: int, rngs: nnx.Rngs) -> None:
        pairs = list(itertools.pairwise(channels))
        self.convolutions = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([nnx.BatchNorm(o, rngs=rngs) for _, o in pairs])
        self.dense = nnx.Linear(channels[-1], n_outputs, rngs=rngs)
        self.pooled = tuple(pooled)

    def __call__(self, x: Any) -> Any:
        """Outputs of a batch."""
        for convolution, norm, pooled in zip(self.convolutions, self.norms, self.pooled):
            x = nnx.relu(norm(convolution(x)))
            x = nnx.max_pool(x, (2, 2), (2, 2)) if pooled else x
        return self.dense(x.max((1, 2)))


def blocks(channels: tuple[int, ...], pooled: tuple[bool, ...], n_outputs: int) -> Any:
    """A function of `nnx.Rngs` that makes a :class:`Blocks`."""
    return functools.partial(Blocks, channels, pooled, n_outputs)


def _fan_in(layer: type, fan_in: int, *args: Any, **kwargs: Any) -> Any:
    """A layer with the start of the authors' framework: weights and biases uniform within 1 / sqrt(fan_in).

    Networks of one or two neurons remember their start.
    """
    bound = fan_in**-0.5

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, **_: Any) -> Any:
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return layer(*args, kernel_init=init, bias_init=init, **kwargs)


class FreqNet(nnx.Module):
    """Two filters of two periods of the slowest class, and a mean over time."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = _fan_in(nnx.Conv, 100, 1, 2, (100,), padding=1, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.second = _fan_in(nnx.Conv, 6, 2, 2, (3,), padding=1, rngs=rngs)
        self.dense = _fan_in(nnx.Linear, 2, 2, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Outputs of a batch."""
        x = nnx.relu(self.norm(self.first(jnp.swapaxes(x, 1, 2))))
        return self.dense(nnx.max_pool(self.second(x), (2,), (2,)).mean(1))


class Mlp(nnx.Module):
    """Layers of ReLU neurons on one flat channel."""

    def __init__(self, n_inputs: int, n_neurons: int, n_layers: int, n_outputs: int, rngs: nnx.Rngs) -> None:
        widths = [n_inputs, *[n_neurons] * n_layers]
        self.hidden = nnx.List([_fan_in(nnx.Linear, i, i, o, rngs=rngs) for i, o in itertools.pairwise(widths)])
        self.out = _fan_in(nnx.Linear, n_neurons, n_neurons, n_outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Outputs of a batch."""
        x = x.reshape(len(x), -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.out(x)


class PreActBlock(nnx.Module):
    """Two convolutions with the normalisation before each, beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.BatchNorm(n_in, rngs=rngs), nnx.BatchNorm(n_out, rngs=rngs)])
        convolution = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        strides = [(stride, stride), (1, 1)]
        self.convolutions = nnx.List([convolution(i, n_out, (3, 3), strides=s) for i, s in zip((n_in, n_out), strides)])
        changes = stride > 1 or n_in != n_out
        self.shortcut = convolution(n_in, n_out, (1, 1), strides=strides[0]) if changes else None

    def __call__(self, x: Any) -> Any:
        """Outputs of a batch."""
        y = nnx.relu(self.norms[0](x))
        kept = x if self.shortcut is None else self.shortcut(y)
        y = self.convolutions[0](y)
        return kept + self.convolutions[1](nnx.relu(self.norms[1](y)))


class PreActResNet18(nnx.Module):
    """Residual network of 18 layers for images of 32 x 32, which normalises its input itself, after augmentation."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], n_outputs: int, rngs: nnx.Rngs, k: int = 64
    ) -> None:
        self.mean, self.std = mean, std
        self.first = nnx.Conv(len(mean), k, (3, 3), use_bias=False, rngs=rngs)
        widths = [k, k, k, 2 * k, 2 * k, 4 * k, 4 * k, 8 * k, 8 * k]
        self.stages = nnx.List([PreActBlock(i, o, 1 + (i < o), rngs) for i, o in itertools.pairwise(widths)])
        self.dense = nnx.Linear(8 * k, n_outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Outputs of a batch."""
        x = self.first((x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype))
        for stage in self.stages:
            x = stage(x)
        return self.dense(x.mean((1, 2)))


def uniform_shift(hertz: float, sfreq: float) -> Any:
    """Frequency shifts uniform within a bound, as (key, x) -> x."""

    def fn(key: Any, x: Any) -> Any:
        return eeg.frequency_shift(x, hertz * jax.random.uniform(key, x.shape[:1], x.dtype, minval=-1), sfreq)

    return fn
