"""Recognition of images with learned augmentation; CIFAR10, or rotated digits in its place."""

import functools
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy import ndimage

from gyri.numerics.transform import Transform
from gyri.reproduce import Claim, Data, Result, experiment

from ..augerino import Augerino
from ..classifier import AugNetClassifier
from ..image import image_transforms
from ..invariance import invariance
from .networks import IDENTITY, PreActResNet18, blocks

VARIABLE = "GYRI_CIFAR10"
NEEDS = f"the binary version of CIFAR10 (data_batch_1.bin ...) in the folder that {VARIABLE} names, and a GPU"
PAPER = {"no augmentation": 0.866, "fixed": 0.936, "Augerino": 0.916, "AugNet": 0.932}
# At paper scale only: other factors of the reward.
LAMBDAS = {f"AugNet, lambda {reg}": reg for reg in (0.05, 0.1, 1.0)}
COPIES = {"quick": (1, 4, 10, 20), "paper": (1, 4, 10, 20, 40)}
SEEDS = {"quick": (0, 1, 2, 3, 4), "paper": (1, 29, 42, 666, 777)}
DEGREES = 30.0


def fixed(degrees: float) -> tuple[Transform, ...]:
    """The rotation at full strength, always."""
    (rotate,) = image_transforms(("rotate",), rotate_degrees=degrees)
    return (rotate,)


def crop_and_flip() -> tuple[Transform, ...]:
    """The usual augmentation of CIFAR10: crops of padded images, half of them mirrored."""
    crop = image_transforms(("translate_x", "translate_y", "horizontal_flip"))

    def fn(key: Any, x: Any, arg: Any) -> Any:
        for transform, magnitude in zip(crop, (4 / 32 / 0.45, 4 / 32 / 0.45, 1.0)):
            key, key_now = jax.random.split(key)
            x = transform(key_now, x, magnitude)
        return x

    return (Transform("crop and flip", fn, (0.0, 1.0)),)


@functools.cache
def rotated_digits(seed: int, n_train: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits of 8 x 8 pixels turned by up to 30 degrees, few to train with and the others to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.images))
    degrees = rng.uniform(-DEGREES, DEGREES, len(order))
    turned = [ndimage.rotate(digits.images[i] / 16, d, reshape=False, order=1) for i, d in zip(order, degrees)]
    X, y = np.clip(np.array(turned), 0, 1)[..., None].astype(np.float32), digits.target[order]
    return X[:n_train], X[n_train:], y[:n_train], y[n_train:]


@functools.cache
def cifar10(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test images (n, 32, 32, 3) in [0, 1] and labels, from the binary files of CIFAR10."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
    parts: list[np.ndarray] = []
    for files in names:
        rows = np.concatenate([np.fromfile(Path(folder) / name, np.uint8).reshape(-1, 3073) for name in files])
        parts += [rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(np.float32) / 255, rows[:, 0]]
    X, y, X_test, y_test = parts
    return X, X_test, y.astype(int), y_test.astype(int)


def train(setting: tuple[str, int, str]) -> dict[str, Any]:
    """Test accuracy of one method and seed; for AugNet by the number of copies, too."""
    method, seed, scale = setting
    options: dict[str, Any] = {"random_state": seed, "verbose": False, "copies": 20}
    if scale == "quick":
        X, X_test, y, y_test = rotated_digits(seed, 200)
        trunk: Any = blocks((1, 16, 32), (True, True), 10)
        options |= {"batch_size": 50, "n_epochs": 100, "learning_rate": 3e-3, "aug_learning_rate": 3e-3}
        layers: Any = {"AugNet": ("affine",), "fixed": fixed(DEGREES)}
        reg, augerino_reg = 0.2, 0.05
    else:
        X, X_test, y, y_test = cifar10(os.environ[VARIABLE])
        keep = np.random.default_rng(seed).permutation(len(X))[:40_000]
        mean, std = (tuple(map(float, v)) for v in (X.mean((0, 1, 2)), X.std((0, 1, 2))))
        X, y = X[keep], y[keep]
        trunk = functools.partial(PreActResNet18, mean, std, 10)
        steps = 300 * (len(X) // 128)
        rate = optax.cosine_decay_schedule(1e-3, steps)
        options |= {"batch_size": 128, "n_epochs": 300, "learning_rate": rate, "aug_learning_rate": 1e-3}
        options |= {"weight_decay": 2e-2, "aug_weight_decay": 0.0, "decoupled": True}
        layers = {"AugNet": ("non_affine", "affine", "affine"), "fixed": crop_and_flip()}
        reg, augerino_reg = 0.5, 0.05
    if method == "AugNet" or method in LAMBDAS:
        reg = LAMBDAS.get(method, reg)
        schedule = None if scale == "quick" else lambda epoch: 1.0 if epoch < 40 else 0.1
        options |= {"reg": reg, "init_magnitude": 0.1 if scale == "quick" else 0.5, "reg_schedule": schedule}
        chosen: Any = layers["AugNet"]
    elif method == "Augerino":
        options |= {"reg": augerino_reg, "penalty": "width"}
        chosen = Augerino(init_width=0.1)
    else:
        options |= {"reg": 0.0, "init_magnitude": 1.0, "aug_learning_rate": 0.0}
        chosen = IDENTITY if method == "no augmentation" else layers["fixed"]
    model = AugNetClassifier(trunk, chosen, **options).fit(X, y)
    if method in ("no augmentation", "fixed"):  # a plain network predicts without augmentation
        outputs = [np.asarray(model.model_.trunk(X_test[i : i + 500])) for i in range(0, len(X_test), 500)]
        return {"accuracy": float((np.concatenate(outputs).argmax(1) == y_test).mean())}
    found: dict[str, Any] = {"accuracy": model.score(X_test, y_test), "rows": model.model_.describe()}
    if method == "AugNet":
        found["copies"] = {}
        for copies in COPIES[scale]:
            model.model_.copies = copies
            model.predict(X_test)
            begin = time.perf_counter()
            found["copies"][copies] = model.score(X_test, y_test), time.perf_counter() - begin
    if method == "AugNet" and scale == "paper":
        model.model_.copies, some = 20, X_test[:1000]
        (turn,), alone = fixed(DEGREES), lambda key, x: model.model_.trunk(x)
        of_trunk = np.asarray(invariance(alone, some, turn, jax.random.key(seed)))
        found["invariance"] = model.invariance(some, turn), of_trunk
    return found


@experiment(paper="augnet", figure="CIFAR10", title="Recognition of images with learned augmentation", timed=True)
def images(scale: str, key: int, sweep: Any) -> Result:
    """Test accuracy without augmentation, with a fixed one, with Augerino and with AugNet, and by the number of copies.

    Quick: 200 digits turned by up to 30 degrees. Paper: CIFAR10, 300 epochs of a residual network.

    Paper scale: about 14,000 CPU hours, a GPU is advised (guessed from the operations of the network: 35 trainings of
    300 epochs on 40,000 images); needs CIFAR10.
    """
    if scale == "paper" and not Path(os.environ.get(VARIABLE, "")).joinpath("data_batch_1.bin").is_file():
        claims = [Claim.not_run(f"{method}: accuracy", accuracy) for method, accuracy in PAPER.items()]
        return Result(claims, {}, Data.missing(needs=NEEDS))
    runs = {method: sweep(train, [(method, key + seed, scale) for seed in SEEDS[scale]]) for method in PAPER}
    accuracy = {method: np.array([run["accuracy"] for run in found]) for method, found in runs.items()}
    copies = {c: np.array([run["copies"][c] for run in runs["AugNet"]]) for c in COPIES[scale]}
    gain = float(np.median(accuracy["AugNet"]) - np.median(accuracy["no augmentation"]))
    note = "" if scale == "paper" else "the paper's is CIFAR10"
    claims = [
        *[Claim.info(f"{name}: accuracy", PAPER[name], values, note=note) for name, values in accuracy.items()],
        Claim.at_least("gain over no augmentation, medians", 0.066, gain, 0.0),
        *[Claim.info(f"AugNet with {c} copies: accuracy", None, values[:, 0]) for c, values in copies.items()],
        Claim.between("time of 20 copies over that of 4", 5.0,
                      float(np.median(copies[20][:, 1]) / np.median(copies[4][:, 1])), 3.0, 7.0),
    ]  # fmt: skip
    if scale == "paper":
        for name in LAMBDAS:
            found = sweep(train, [(name, key + seed, scale) for seed in SEEDS[scale]])
            claims.append(Claim.info(f"{name}: accuracy", None, [run["accuracy"] for run in found]))
        for i, name in enumerate(("averaged network", "its trunk alone")):
            medians = [float(np.median(run["invariance"][i])) for run in runs["AugNet"]]
            claims.append(Claim.info(f"{name}: median invariance to rotations after training", None, medians))
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, values in enumerate(accuracy.values()):
        left.plot(np.full(len(values), i), values, "o", color=f"C{i}", alpha=0.6)
    left.set_xticks(range(len(accuracy)), [name.replace(" ", "\n") for name in accuracy])
    left.set_ylabel("test accuracy")
    right.plot(list(copies), [np.median(values[:, 0]) for values in copies.values()], "o-")
    right.set(xlabel="copies in prediction", ylabel="median test accuracy")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    captions = {"accuracy": "Test accuracy, a dot a seed; and by the number of copies that a prediction averages."}
    used = "200 digits of scikit-learn turned by up to 30 degrees"
    data = Data.real("CIFAR10") if scale == "paper" else Data.stand_in(for_="CIFAR10", used=used)
    return Result(claims, {"accuracy": figure}, data, captions)
