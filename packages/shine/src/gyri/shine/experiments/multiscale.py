"""Figure 3: multiscale models by backward mode. CIFAR-10 where torchvision has it, small images of digits otherwise."""

import importlib
import time
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gyri.reproduce import Claim, Data, Result, experiment

from ..backward import Full, JacobianFree, Shine
from ..models import MDEQ, MDEQConfig
from .training import accuracy, cross_entropy, digits, fit

SMALL = MDEQConfig(
    (8, 8), (4, 4), 32, in_channels=1, forward_steps=6, backward_steps=8, n_layers=4, epochs=6, batch_size=32,
    pretrain_steps=0,
)  # fmt: skip
N_QUICK = 400  # training images at the quick scale
# Top-1 accuracy and milliseconds of a backward pass on CIFAR-10 (LARGE), five seeds, one GPU.
PAPER = {"full": (93.51, 209.0), "shine": (93.14, 16.0), "jacobian_free": (93.09, 12.9), "refine": (93.54, 97.0)}


def load_cifar(root: str = "data") -> tuple[np.ndarray, ...] | None:
    """CIFAR-10: images (n, 32, 32, 3) of training and test, labels; None if it is not in `root` or no torchvision."""
    if find_spec("torchvision") is None:
        return None
    CIFAR10 = importlib.import_module("torchvision.datasets").CIFAR10

    try:
        parts = [CIFAR10(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        return None
    normalise = lambda images: (images / 255 - [0.4914, 0.4822, 0.4465]) / [0.247, 0.2435, 0.2616]
    X, X_test = (normalise(part.data).astype(np.float32) for part in parts)
    return (X, X_test, *(np.asarray(part.targets, np.int32) for part in parts))


def modes_of(config: MDEQConfig) -> dict[str, Any]:
    """The modes that are compared, with the configuration's budget of the exact solve."""
    full = Full(max_steps=config.backward_steps)
    return {"full": full, "refine": Shine(refine_steps=5), "shine": Shine(), "jacobian_free": JacobianFree()}


def make_optimizer(config: MDEQConfig, n_samples: int) -> Any:
    """The recipe: cosine decay to 1e-6, weight decay in the gradient."""
    n_steps = max(1, config.epochs * (n_samples // config.batch_size))
    first = float(config.learning_rate)
    rate = optax.cosine_decay_schedule(first, n_steps, alpha=1e-6 / first)
    rule = optax.adam(rate) if config.optimizer == "adam" else optax.sgd(rate, momentum=0.9, nesterov=True)
    return optax.chain(optax.add_decayed_weights(float(config.weight_decay)), rule)


def unrolled(config: MDEQConfig) -> Any:
    """The loss of pretraining."""
    return lambda model, x, y, key: optax.softmax_cross_entropy_with_integer_labels(
        model(x, unroll=config.n_layers), y
    ).mean()


def augment(key: jax.Array, images: jax.Array, margin: int = 4) -> jax.Array:
    """Shift each image by up to `margin` pixels, zeros moving in, and mirror every other one."""
    n, height, width, channels = images.shape
    key_shift, key_flip = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    shifts = jax.random.randint(key_shift, (n, 2), 0, 2 * margin + 1)
    cut = lambda image, shift: jax.lax.dynamic_slice(image, (*shift, 0), (height, width, channels))
    moved = jax.vmap(cut)(padded, shifts)
    return jnp.where(jax.random.bernoulli(key_flip, shape=(n, 1, 1, 1)), moved[:, :, ::-1], moved)


def with_augmentation(config: MDEQConfig, loss: Any) -> Any:
    """A loss on augmented images, if the recipe says so."""
    if not config.augment:
        return loss
    return lambda model, x, y, key: loss(model, augment(key, x), y, key)


def train(setting: tuple[MDEQConfig, str, int, Any]) -> tuple[float, float]:
    """Test accuracy and milliseconds of a backward pass: (configuration, mode, seed, data or number of digits)."""
    config, mode, seed, data = setting
    if isinstance(data, int):
        X, X_test, y, y_test = digits(seed)
        X, X_test, y = X[:data].reshape(-1, 8, 8, 1), X_test.reshape(-1, 8, 8, 1), y[:data]
    else:
        X, X_test, y, y_test = data
    model = MDEQ(config, nnx.Rngs(seed), backward=modes_of(config)[mode])
    options = {"batch_size": config.batch_size, "seed": seed}
    n_epochs = config.pretrain_steps // max(1, len(y) // config.batch_size)
    first, then = (with_augmentation(config, loss) for loss in (unrolled(config), cross_entropy))
    if n_epochs:
        model, _ = fit(model, first, make_optimizer(config, len(y)), X, y, epochs=n_epochs, **options)
    epochs = max(1, config.epochs - n_epochs)
    model, _ = fit(model, then, make_optimizer(config, len(y)), X, y, epochs=epochs, **options)
    model.eval()
    return accuracy(model, X_test, y_test), backward_time(model, X[:32])


def backward_time(model: MDEQ, images: Any, n: int = 20) -> float:
    """Median milliseconds of the pullback through the equilibrium layer alone."""
    x = model.stem(jnp.asarray(images))
    graph, state = nnx.split(model.layer)
    solve = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    z, pull = jax.vjp(solve, state, x)
    run = jax.jit(lambda pull, v: pull(v))
    jax.block_until_ready(run(pull, z))
    times = []
    for _ in range(n):
        start = time.perf_counter()
        jax.block_until_ready(run(pull, z))
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


@experiment(
    paper="shine",
    figure="Figure 3",
    title="Multiscale models: accuracy against the time of the backward pass",
    timed=True,
)
def multiscale(scale: str, key: int, sweep: Any) -> Result:
    """MDEQ by backward mode. At the paper's scale CIFAR-10 (LARGE, five seeds), where there is a GPU and the data.

    Paper scale: about 1 CPU hour on digits (extrapolated from the quick run: 80 times the steps); where there are
    CIFAR-10 and a GPU, about 10 GPU days in its place (guessed: 20 trainings of 220 epochs).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    data: Any = load_cifar() if scale == "paper" else None
    if data is not None and jax.default_backend() == "gpu":
        config, n_seeds, where = MDEQConfig.cifar_large(), 5, Data.real("CIFAR-10")
    else:
        data, n_seeds = {"quick": (N_QUICK, 1), "paper": (1257, 5)}[scale]
        config = SMALL if scale == "quick" else SMALL.replace(epochs=15)
        where = Data.stand_in(for_="CIFAR-10 on a GPU", used="images of digits, 8 x 8, two branches of 8 channels")
    modes = ("full", "shine") if scale == "quick" else tuple(PAPER)
    runs = sweep(train, [(config, mode, key + seed, data) for mode in modes for seed in range(n_seeds)])
    found = {mode: np.array(runs[i * n_seeds : (i + 1) * n_seeds]) for i, mode in enumerate(modes)}
    notes = {"full": "one seed; .21 to .39 over seven"} if scale == "quick" else {}
    claims = [
        Claim.info(f"accuracy, {mode}", PAPER[mode][0] / 100, found[mode][:, 0], note=notes.get(mode, ""))
        for mode in modes
    ]
    claims.append(
        Claim.at_least("accuracy of SHINE less that of full", -0.004, (found["shine"] - found["full"])[:, 0], -0.1)
    )
    for mode in [mode for mode in modes if mode in ("shine", "jacobian_free")]:
        ratio, published = found["full"][:, 1] / found[mode][:, 1], PAPER["full"][1] / PAPER[mode][1]
        claims.append(Claim.at_least(f"backward pass: time of full over that of {mode}", published, ratio, 3.0))
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for mode in modes:
        axes.plot(found[mode][:, 1], found[mode][:, 0], "o", label=mode)
    axes.set(xscale="log", xlabel="backward pass (ms)", ylabel="test accuracy")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    caption = "Test accuracy by the time of the backward pass of a batch of 32, one point a seed."
    return Result(claims, {"accuracy": figure}, where, {"accuracy": caption})
