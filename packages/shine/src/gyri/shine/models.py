"""Cells for deep equilibrium layers: a dense one, and the multiscale one of MDEQ with its stem and head."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gyri.numerics.validation import check_positive_int, check_scalar

from .deq import DEQ
from .solvers import Broyden

N_GROUPS, EXPANSION, HEAD_EXPANSION, CONV_SCALE = 8, 5, 4, 0.01


class DenseCell(nnx.Module):
    r""":math:`f(z, x) = \tanh(z \bar W + x U + b)`, :math:`\bar W` being W with a spectral norm of at most `max_gain`.

    Parameters
    ----------
    dim_in, dim : int
        Features of x and of z.
    rngs : nnx.Rngs
        Draws the weights.
    max_gain : float, optional
        Largest spectral norm: below 1 the cell is a contraction. None leaves W as it is: training is then unstable,
        whatever the backward mode.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from gyri.shine.models import DenseCell
    >>> DenseCell(3, 5, rngs=nnx.Rngs(0))(jnp.zeros((2, 5)), jnp.ones((2, 3))).shape
    (2, 5)

    References
    ----------
    Bai, Kolter, Koltun (2019), Deep equilibrium models.
    """

    def __init__(self, dim_in: int, dim: int, *, rngs: nnx.Rngs, max_gain: float | int | None = 1.0) -> None:
        check_positive_int(dim_in, "dim_in")
        check_positive_int(dim, "dim")
        self.max_gain = None if max_gain is None else check_scalar(max_gain, "max_gain", minimum=0, strict=True)
        self.W = nnx.Param(0.4 / dim**0.5 * jax.random.normal(rngs.params(), (dim, dim)))
        self.U = nnx.Param(dim_in**-0.5 * jax.random.normal(rngs.params(), (dim_in, dim)))
        self.b = nnx.Param(jnp.zeros(dim))

    def init_state(self, x: Float[Array, "batch dim_in"]) -> Float[Array, "batch dim"]:
        """Zeros."""
        return jnp.zeros((x.shape[0], self.b.shape[0]), x.dtype)

    def prepare(self, x: Float[Array, "batch dim_in"]) -> tuple[Callable, tuple]:
        """The map of one solve, and what it takes besides z: capped weights and injection."""
        W, U, b = (p[...].astype(x.dtype) for p in (self.W, self.U, self.b))  # the solve is in the dtype of x
        if self.max_gain is not None:
            W = W * (self.max_gain / jnp.maximum(spectral_norm(W), self.max_gain))  # also where W is 0
        return dense_step, (W, x @ U + b)

    def __call__(self, z: Float[Array, "batch dim"], x: Float[Array, "batch dim_in"]) -> Float[Array, "batch dim"]:
        """One step."""
        step, consts = self.prepare(x)
        return step(z, *consts)


def dense_step(z: Array, W: Array, injection: Array) -> Array:
    """``tanh(z W + injection)``.

    Examples
    --------
    >>> dense_step(jnp.zeros((1, 2)), jnp.eye(2), jnp.zeros((1, 2)))
    Array([[0., 0.]], dtype=float32)
    """
    return jnp.tanh(z @ W + injection)


def spectral_norm(W: Float[Array, "n m"], n_steps: int = 8) -> Float[Array, ""]:
    """Largest singular value, from below, by a few power iterations; its derivative takes the vectors as constants.

    Examples
    --------
    >>> f"{spectral_norm(jnp.diag(jnp.array([3.0, 1.0]))):.3f}"
    '3.000'
    """
    fixed = jax.lax.stop_gradient(W)
    unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(v.dtype).tiny)
    v = unit(jax.random.normal(jax.random.key(0), W.shape[1:], W.dtype))
    v = jax.lax.fori_loop(0, n_steps, lambda _, v: unit(fixed.T @ unit(fixed @ v)), v)
    return jnp.vdot(unit(fixed @ v), W @ v)


# --- MDEQ -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MDEQConfig:
    """Sizes and training recipe of an `MDEQ`; `cifar_tiny`, `cifar_large` and `imagenet_small` are those of the paper.

    Parameters
    ----------
    channels : tuple of int
        Channels of each branch, the resolution halved from one to the next; multiples of 8.
    head_channels : tuple of int
        Channels of the head's bottlenecks, a quarter of what they put out.
    final_channels : int
        Channels before the linear layer.
    n_classes, in_channels : int
        Classes, channels of the images.
    downsample_times : int
        How often the stem halves the resolution.
    forward_steps, backward_steps : int
        Most steps of the solve, and of the exact backward solve.
    dropout : float
        Share of the channels that are dropped, the same in all steps of a solve.
    n_layers : int
        Steps unrolled in pretraining.
    optimizer, learning_rate, weight_decay, epochs, batch_size, pretrain_steps, augment
        The recipe: ``"adam"`` or ``"sgd"`` (momentum .9, Nesterov), cosine decay to 1e-6, crops and flips or not.

    Raises
    ------
    ValueError
        If a size is out of range.

    Examples
    --------
    >>> from gyri.shine.models import MDEQConfig
    >>> MDEQConfig.cifar_tiny().channels
    (24, 24)

    References
    ----------
    Bai, Koltun, Kolter (2020), Multiscale deep equilibrium models; Ramzi et al. (2022), appendix D.
    """

    channels: tuple[int, ...]
    head_channels: tuple[int, ...]
    final_channels: int
    n_classes: int = 10
    in_channels: int = 3
    downsample_times: int = 0
    forward_steps: int = 18
    backward_steps: int = 20
    dropout: float | int = 0.0
    n_layers: int = 10
    optimizer: str = "adam"
    learning_rate: float | int = 1e-3
    weight_decay: float | int = 0.0
    epochs: int = 50
    batch_size: int = 64
    pretrain_steps: int = 3000
    augment: bool = False

    def __post_init__(self) -> None:
        if not self.channels or len(self.head_channels) != len(self.channels):
            raise ValueError(f"head_channels: expected one for each of {self.channels}, got {self.head_channels}")
        for c in self.channels:
            if check_positive_int(c, "channels") % N_GROUPS:
                raise ValueError(f"channels: expected multiples of {N_GROUPS}, got {self.channels}")
        for c in self.head_channels:
            check_positive_int(c, "head_channels")
        for name in ("final_channels", "n_classes", "in_channels", "forward_steps", "backward_steps", "n_layers"):
            check_positive_int(getattr(self, name), name)
        check_positive_int(self.downsample_times, "downsample_times", minimum=0)
        if not 0 <= check_scalar(self.dropout, "dropout") < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")

    @classmethod
    def cifar_tiny(cls) -> "MDEQConfig":
        """CIFAR-10, two branches."""
        return cls((24, 24), (8, 16), 200, forward_steps=22, backward_steps=24, dropout=0.25, weight_decay=2.5e-6)

    @classmethod
    def cifar_large(cls) -> "MDEQConfig":
        """CIFAR-10, four branches."""
        return cls(
            (32, 64, 128, 256), (14, 28, 56, 112), 1680, dropout=0.3, epochs=220, batch_size=128,
            pretrain_steps=20_000, augment=True,
        )  # fmt: skip

    @classmethod
    def imagenet_small(cls) -> "MDEQConfig":
        """ImageNet, four branches."""
        return cls(
            (32, 64, 128, 256), (24, 48, 96, 192), 2048, n_classes=1000, downsample_times=2, forward_steps=26,
            backward_steps=27, n_layers=5, optimizer="sgd", learning_rate=5e-2, weight_decay=5e-5, epochs=100,
            batch_size=128, pretrain_steps=500_000, augment=True,
        )  # fmt: skip

    def replace(self, **changes: Any) -> "MDEQConfig":
        """A copy with other values."""
        return replace(self, **changes)


def _conv(n_in: int, n_out: int, size: int, rngs: nnx.Rngs, stride: int = 1) -> nnx.Conv:
    return nnx.Conv(
        n_in, n_out, (size, size), strides=stride, padding=size // 2, use_bias=False, rngs=rngs,
        kernel_init=nnx.initializers.normal(CONV_SCALE),
    )  # fmt: skip


def _group_norm(n: int, rngs: nnx.Rngs, groups: int = N_GROUPS) -> nnx.GroupNorm:
    return nnx.GroupNorm(n, groups, epsilon=1e-5, rngs=rngs)


def _batch_norm(n: int, rngs: nnx.Rngs, affine: bool = True) -> nnx.BatchNorm:
    return nnx.BatchNorm(n, momentum=0.9, epsilon=1e-5, use_bias=affine, use_scale=affine, rngs=rngs)


def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class NormalizedKernel(nnx.Module):
    """Kernel of a convolution as a direction and a length for each output channel.

    Examples
    --------
    >>> NormalizedKernel(2, 3, 1, rngs=nnx.Rngs(0))().shape
    (1, 1, 2, 3)

    References
    ----------
    Salimans, Kingma (2016), Weight normalization.
    """

    def __init__(self, n_in: int, n_out: int, size: int, *, rngs: nnx.Rngs) -> None:
        kernel = CONV_SCALE * jax.random.normal(rngs.params(), (size, size, n_in, n_out))
        self.direction = nnx.Param(kernel)
        self.length = nnx.Param(jnp.linalg.norm(kernel.reshape(-1, n_out), axis=0))

    def __call__(self) -> Array:
        """The kernel."""
        v = self.direction[...]
        return v * (self.length[...] / jnp.linalg.norm(v.reshape(-1, v.shape[-1]), axis=0))


class Chain(nnx.Module):
    """Convolutions, each with its norm, and a relu after all but the last, or after all.

    Examples
    --------
    >>> rngs = nnx.Rngs(0)
    >>> Chain([_conv(1, 8, 3, rngs, stride=2)], [_group_norm(8, rngs)])(jnp.zeros((1, 4, 4, 1))).shape
    (1, 2, 2, 8)
    """

    def __init__(self, convs: list, norms: list, relu_last: bool = False) -> None:
        self.convs, self.norms, self.relu_last = nnx.List(convs), nnx.List(norms), relu_last

    def __call__(self, x: Array) -> Array:
        """Apply."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            if self.relu_last or i + 1 < len(self.convs):
                x = jax.nn.relu(x)
        return x


class MDEQCell(nnx.Module):
    """The map of MDEQ: a residual block on each branch, then every branch sees all others.

    Parameters
    ----------
    config : MDEQConfig
        Sizes.
    rngs : nnx.Rngs
        Draws the weights, and the dropout masks from its stream ``dropout``.

    Examples
    --------
    >>> from flax import nnx
    >>> cell = MDEQCell(MDEQConfig((8, 8), (4, 4), 16), rngs=nnx.Rngs(0))
    >>> x = jnp.ones((2, 8, 8, 8))
    >>> [branch.shape for branch in cell(cell.init_state(x), x)]
    [(2, 8, 8, 8), (2, 4, 4, 8)]

    References
    ----------
    Bai, Koltun, Kolter (2020), Multiscale deep equilibrium models, section 3.
    """

    def __init__(self, config: MDEQConfig, *, rngs: nnx.Rngs) -> None:
        self.config, self.rngs = config, rngs
        self.deterministic = False
        kernels, norms, fuse, out_norms = [], [], [], []
        for i, c in enumerate(config.channels):
            wide = EXPANSION * c
            kernel = partial(NormalizedKernel, rngs=rngs)
            kernels.append(nnx.List([kernel(c, wide, 3), kernel(wide, c, 3), kernel(c, c, 1)]))
            norms.append(nnx.List([_group_norm(wide, rngs), _group_norm(c, rngs), _group_norm(c, rngs)]))
            fuse.append(nnx.List([_fusion(config.channels, j, i, rngs) for j in range(len(config.channels)) if j != i]))
            out_norms.append(_group_norm(c, rngs, N_GROUPS // 2))
        self.kernels, self.norms = nnx.List(kernels), nnx.List(norms)
        self.fuse, self.out_norms = nnx.List(fuse), nnx.List(out_norms)

    def init_state(self, x: Float[Array, "batch height width c"]) -> tuple[Array, ...]:
        """Zeros on each branch."""
        n, height, width, _ = x.shape
        return tuple(
            jnp.zeros((n, -(-height // 2**i), -(-width // 2**i), c), x.dtype)
            for i, c in enumerate(self.config.channels)
        )

    def prepare(self, x: Float[Array, "batch height width c"]) -> tuple[Callable, tuple]:
        """The map of one solve, and what it takes besides z: kernels, dropout masks, injection."""
        kernels = [[kernel().astype(x.dtype) for kernel in branch] for branch in self.kernels]
        masks = None
        if self.config.dropout and not self.deterministic:
            keep = 1 - float(self.config.dropout)
            draw = lambda c: jax.random.bernoulli(self.rngs.dropout(), keep, (x.shape[0], 1, 1, c)) / keep
            masks = [draw(c).astype(x.dtype) for c in self.config.channels]
        graph, state = nnx.split((self.norms, self.fuse, self.out_norms))
        return partial(_mdeq_step, graph), (state, kernels, masks, x)

    def __call__(self, z: tuple[Array, ...], x: Array) -> tuple[Array, ...]:
        """One step."""
        step, consts = self.prepare(x)
        return step(z, *consts)


def _fusion(channels: tuple[int, ...], source: int, target: int, rngs: nnx.Rngs) -> Chain:
    """From one branch to another: a 1x1 convolution up, convolutions of stride 2 down."""
    c_in, c_out = channels[source], channels[target]
    if source > target:
        return Chain([_conv(c_in, c_out, 1, rngs)], [_group_norm(c_out, rngs)])
    widths = [c_in] * (target - source) + [c_out]
    convs = [_conv(a, b, 3, rngs, stride=2) for a, b in pairwise(widths)]
    return Chain(convs, [_group_norm(b, rngs) for b in widths[1:]])


def _mdeq_step(graph: Any, z: tuple, state: Any, kernels: list, masks: list | None, x: Array) -> tuple:
    norms, fuse, out_norms = nnx.merge(graph, state)
    blocks = []
    for i, branch in enumerate(z):
        o = jax.nn.relu(norms[i][0](_convolve(branch, kernels[i][0])))
        o = _convolve(o, kernels[i][1])
        if masks is not None:
            o = o * masks[i]
        o = norms[i][1](o + x if i == 0 else o)
        blocks.append(norms[i][2](jax.nn.relu(o + branch)))
    out = []
    for i, own in enumerate(blocks):
        y = own
        others = [j for j in range(len(blocks)) if j != i]
        for j, transform in zip(others, fuse[i], strict=True):
            moved = transform(blocks[j])
            if j > i:
                moved = moved.repeat(2 ** (j - i), axis=1).repeat(2 ** (j - i), axis=2)
                moved = moved[:, : y.shape[1], : y.shape[2]]  # of odd sizes, the last repetition hangs over
            y = y + moved
        out.append(out_norms[i](_convolve(jax.nn.relu(y), kernels[i][2])))
    return tuple(out)


class MDEQ(nnx.Module):
    """Multiscale deep equilibrium classifier: stem, fixed point on all resolutions, head.

    Parameters
    ----------
    config : MDEQConfig
        Sizes.
    rngs : nnx.Rngs
        Draws the weights, and the dropout masks from its stream ``dropout``.
    solver : Broyden, AdjointBroyden, Anderson or Picard, optional
        ``Broyden`` with the configuration's steps and a tolerance of 1e-3 when None.
    backward : str, Shine, JacobianFree or Full
        As in `fixed_point`.

    Examples
    --------
    >>> from flax import nnx
    >>> from gyri.shine.models import MDEQ, MDEQConfig
    >>> model = MDEQ(MDEQConfig((8, 8), (4, 4), 16, forward_steps=4), rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 8, 8, 3))).shape
    (2, 10)

    References
    ----------
    Bai, Koltun, Kolter (2020), Multiscale deep equilibrium models; Ramzi et al. (2022), section 3.2.
    """

    def __init__(self, config: MDEQConfig, rngs: nnx.Rngs, *, solver: Any = None, backward: Any = "shine") -> None:
        c, n = config.channels[0], len(config.channels)
        self.config = config
        strides = [2 if config.downsample_times > i else 1 for i in range(2)]
        convs = [_conv(a, c, 3, rngs, s) for a, s in zip((config.in_channels, c), strides, strict=True)]
        if config.downsample_times or n > 2:
            convs.append(_conv(c, c, 1, rngs))
        self.stem = Chain(convs, [_batch_norm(c, rngs) for _ in convs], relu_last=True)
        solver = Broyden(max_steps=config.forward_steps, tol=1e-3) if solver is None else solver
        self.layer = DEQ(MDEQCell(config, rngs=rngs), solver=solver, backward=backward)
        self.head = Head(config, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width c"], *, unroll: int | None = None, return_info: bool = False
    ) -> Any:
        """Scores of the classes.

        Parameters
        ----------
        images : Array, shape (batch, height, width, in_channels)
            The images.
        unroll : int, optional
            So many steps from zero with ordinary backpropagation, in the place of the solve: pretraining.
        return_info : bool
            Return the statistics of the solve, too.

        Returns
        -------
        scores : Array, shape (batch, n_classes)
            The scores.
        stats : SolveStats
            If `return_info`.
        """
        x = self.stem(images)
        if unroll is not None:
            step, consts = self.layer.prepare(x)
            start = self.layer.cell.init_state(x)
            z, stats = jax.lax.scan(lambda z, _: (step(z, *consts), None), start, length=unroll)[0], None
        else:
            z, stats = self.layer(x, return_info=True)
        scores = self.head(z)
        return (scores, stats) if return_info else scores


class Head(nnx.Module):
    """A bottleneck on each branch, all brought down to the smallest resolution, their mean, a linear layer.

    Examples
    --------
    >>> head = Head(MDEQConfig((8, 8), (4, 4), 16), rngs=nnx.Rngs(0))
    >>> head((jnp.ones((2, 8, 8, 8)), jnp.ones((2, 4, 4, 8)))).shape
    (2, 10)
    """

    def __init__(self, config: MDEQConfig, *, rngs: nnx.Rngs) -> None:
        plain = partial(_batch_norm, rngs=rngs, affine=False)
        wide = [HEAD_EXPANSION * h for h in config.head_channels]
        bottlenecks, skips, down = [], [], []
        for c, h, w in zip(config.channels, config.head_channels, wide, strict=True):
            convs = [_conv(c, h, 1, rngs), _conv(h, h, 3, rngs), _conv(h, w, 1, rngs)]
            bottlenecks.append(Chain(convs, [plain(h), plain(h), plain(w)]))
            skips.append(Chain([_conv(c, w, 1, rngs)], [plain(w)]))
        for a, b in pairwise(wide):
            down.append(Chain([_conv(a, b, 3, rngs, stride=2)], [_batch_norm(b, rngs)], relu_last=True))
        self.bottlenecks, self.skips, self.down = nnx.List(bottlenecks), nnx.List(skips), nnx.List(down)
        final = config.final_channels
        self.final = Chain([_conv(wide[-1], final, 1, rngs)], [_batch_norm(final, rngs)], relu_last=True)
        self.linear = nnx.Linear(final, config.n_classes, rngs=rngs)

    def __call__(self, z: tuple[Array, ...]) -> Array:
        """Scores of the classes."""
        wide = [jax.nn.relu(b(x) + s(x)) for b, s, x in zip(self.bottlenecks, self.skips, z, strict=True)]
        y = wide[0]
        for down, x in zip(self.down, wide[1:], strict=True):
            y = down(y) + x
        return self.linear(self.final(y).mean((1, 2)))
