"""A fit on sinusoids, layers of transforms and predictions, against torch with braindecode and kornia.

    OMP_NUM_THREADS=1 taskset -c 1 python packages/augnet/benchmarks/bench_augnet.py [--quick] [--out FILE.json]

One thread, float32. The peers' layers are written here with the peers' functions, at the same strengths.
"""

import time
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gyri.augnet import AugmentationLayer, AugNet, AugNetClassifier, eeg_transforms, image_transforms, mix
from gyri.augnet.experiments.networks import Mlp, blocks
from gyri.augnet.experiments.sinusoids import SHIFT, sinusoids
from gyri.reproduce import bench

SFREQ, N_TIMES, BATCH = 100.0, 3000, 64
KEY = jax.random.key(0)
MAGNITUDE = 0.4


def fit_ours(n_epochs: int, seed: int = 0) -> float:
    """Accuracy on the test set after a fit with one copy, evaluated each epoch as the peer is by its history."""
    X, X_test, y, y_test = sinusoids(0)
    model = AugNetClassifier(
        partial(Mlp, 1000, 2, 1, 4), (SHIFT,), reg=0.8, init_magnitude=0.1, aug_learning_rate=3e-3, learning_rate=0.01,
        weight_decay=1e-4, batch_size=32, n_epochs=n_epochs, copies=4, random_state=seed, verbose=False,
    ).fit(X, y)  # fmt: skip
    return model.score(X_test, y_test)


def fit_torch(n_epochs: int) -> float:
    """The same fit in torch, with braindecode's frequency shift."""
    import torch
    from braindecode.augmentation import functional

    X, X_test, y, y_test = (torch.as_tensor(a) for a in sinusoids(0))
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1000, 2), torch.nn.ReLU(), torch.nn.Linear(2, 4))
    magnitude = torch.nn.Parameter(torch.tensor(0.1))
    groups = [{"params": trunk.parameters(), "lr": 0.01}, {"params": [magnitude], "lr": 3e-3}]
    optimizer = torch.optim.Adam(groups, weight_decay=1e-4)

    def shifted(x: Any) -> Any:
        hertz = 2 * magnitude.clamp(0, 1) * (2 * torch.rand(len(x)) - 1)
        return functional.frequency_shift(x, None, hertz, 100.0)[0]

    for _ in range(n_epochs):
        order = torch.randperm(len(X))
        for start in range(0, len(X) // 32 * 32, 32):
            rows = order[start : start + 32]
            loss = torch.nn.functional.cross_entropy(trunk(shifted(X[rows])), y[rows]) - 0.8 * magnitude.clamp(0, 1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        log_p = torch.stack([torch.log_softmax(trunk(shifted(X_test)), 1) for _ in range(4)]).mean(0)
    return float((log_p.argmax(1) == y_test).float().mean())


def fits(table: bench.Table, quick: bool) -> None:
    n_epochs = 5 if quick else 50

    def as_good(ours: float, peer: float) -> bool:
        print(f"# accuracy of one fit: ours {ours:.3f}, torch {peer:.3f}")
        return quick or ours > 0.6  # one draw of a fit whose outcome spreads; its median is an experiment's business

    begin = time.perf_counter()
    fit_ours(n_epochs)
    print(f"first fit with compilation: {time.perf_counter() - begin:.3g} s (the authors' code: 18 s on an idle core)")
    row = bench.paired(partial(fit_ours, n_epochs), partial(fit_torch, n_epochs), check=as_good, n_rounds=3)
    table.add(f"sinusoids, {n_epochs} epochs, against torch with braindecode", row)


def eeg_layer(table: bench.Table, quick: bool) -> None:
    import torch
    from braindecode.augmentation import functional as peer

    transforms = eeg_transforms(SFREQ, include="time_freq")
    x = np.random.default_rng(0).normal(size=(BATCH, 2, N_TIMES)).astype(np.float32)
    strengths = jnp.full(5, MAGNITUDE).at[0].set(1.0)  # the peer reverses all
    ours = jax.jit(lambda key, x: mix(key, jnp.ones(5), strengths, transforms, x))
    signals, tensor = jnp.asarray(x), torch.as_tensor(x)

    def theirs() -> Any:
        n = len(tensor)
        parts = [
            peer.time_reverse(tensor, None)[0],
            peer.gaussian_noise(tensor, None, 0.2 * MAGNITUDE, 0)[0],
            peer.smooth_time_mask(tensor, None, torch.rand(n) * (N_TIMES - 40), 40)[0],
            peer.ft_surrogate(tensor, None, MAGNITUDE, False, 0)[0],
            peer.frequency_shift(tensor, None, 5 * MAGNITUDE * (2 * torch.rand(n) - 1), SFREQ)[0],
        ]
        return sum(parts) / 5

    close = lambda a, b: bool(abs(np.asarray(a).std() - b.numpy().std()) < 0.02)  # random, but of one law
    row = bench.paired(lambda: ours(KEY, signals), theirs, check=close, n_rounds=3 if quick else 10)
    table.add("relaxed layer, five EEG transforms, against braindecode", row)


def affine_layer(table: bench.Table, quick: bool) -> None:
    import kornia.geometry.transform as peer
    import torch

    transforms = image_transforms("affine")
    x = np.random.default_rng(0).uniform(size=(128, 32, 32, 3)).astype(np.float32)
    images, tensor = jnp.asarray(x), torch.as_tensor(x.transpose(0, 3, 1, 2).copy())

    def loss(mu: Any, key: Any, x: Any) -> Any:
        y = mix(key, jnp.ones(5), mu, transforms, x)
        return (y**2).mean(), y

    ours = jax.jit(jax.grad(loss, has_aux=True))
    mu = torch.full((5,), MAGNITUDE, requires_grad=True)

    def theirs() -> Any:
        u, zero = 2 * torch.rand(5, len(tensor)) - 1, torch.zeros(len(tensor))
        parts = [
            peer.translate(tensor, torch.stack([mu[0] * 0.45 * 32 * u[0], zero], 1)),
            peer.translate(tensor, torch.stack([zero, mu[1] * 0.45 * 32 * u[1]], 1)),
            peer.rotate(tensor, mu[2] * 30 * u[2]),
            peer.shear(tensor, torch.stack([mu[3] * 0.3 * u[3], zero], 1)),
            peer.shear(tensor, torch.stack([zero, mu[4] * 0.3 * u[4]], 1)),
        ]
        mixed = sum(parts) / 5
        mu.grad = None
        (mixed**2).mean().backward()
        return mixed.detach()

    close = lambda a, b: bool(abs(np.asarray(a[1]).mean() - b.numpy().mean()) < 0.02)
    row = bench.paired(
        lambda: ours(jnp.full(5, MAGNITUDE), KEY, images), theirs, check=close, n_rounds=3 if quick else 10
    )
    table.add("relaxed layer with gradient, five affine transforms, against kornia", row)


def predictions(table: bench.Table, quick: bool) -> None:
    """Cost in the number of copies, and over that of as many calls of the trunk."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(128, 32, 32, 3)), jnp.float32)
    trunk = blocks((3, 32, 64), (True, True), 10)(nnx.Rngs(0))
    net = AugNet(trunk, AugmentationLayer(image_transforms("affine"), init_magnitude=MAGNITUDE))
    net.eval()

    def setup(copies: int) -> Any:
        net.copies = copies
        graph, state = nnx.split(net)
        call = jax.jit(lambda state, x, key: nnx.merge(graph, state)(x, key=key))
        return lambda: call(state, x, KEY)

    counts = (2, 8) if quick else (4, 40)
    table.add("prediction, in copies", bench.slope(lambda call: call(), counts, setup=setup, n_rounds=3))
    plain_graph, plain_state = nnx.split(trunk)
    plain = jax.jit(lambda state, x: nnx.merge(plain_graph, state)(x))

    def calls() -> Any:
        return [plain(plain_state, x) for _ in range(counts[0])]

    row = bench.paired(setup(counts[0]), calls, check=lambda ours, peer: ours.shape == peer[0].shape, n_rounds=5)
    table.add(f"prediction with {counts[0]} copies, against {counts[0]} calls of the trunk", row)


def benchmark(table: bench.Table, quick: bool) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the peers', about montages and precision
    fits(table, quick)
    eeg_layer(table, quick)
    affine_layer(table, quick)
    predictions(table, quick)


if __name__ == "__main__":
    raise SystemExit(bench.main(benchmark, title="Learned augmentation", peers=["torch", "braindecode", "kornia"]))
