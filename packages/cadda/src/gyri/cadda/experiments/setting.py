"""What the experiments share: folds by subject, trainings, the choice among the policies of a search, axes."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gyri.reproduce import Data

from ..data import SLEEP_EDF_SUBJECTS, STAGES, load_sleep_physionet, simulate_sleep, split_subjects
from ..functional import balanced_accuracy
from ..networks import SleepStager
from ..search import PolicySearch
from ..train import train_classifier

# One subject to train on: with more, every method recognises all simulated windows.
QUICK: dict[str, Any] = {"n_subjects": 8, "n_windows": 50, "sfreq": 40.0, "window_s": 15.0}
PARTS = {"quick": (1 / 8, 2 / 8, 5 / 8), "paper": (0.8 * 70 / 78, 0.2 * 70 / 78, 8 / 78)}
EPOCHS = {"quick": 30, "paper": 300}
PATIENCE = {"quick": 30, "paper": 30}
N_SEEDS = {"quick": 3, "paper": 10}


class Fold(NamedTuple):
    """Windows and labels to train on, to choose by, and to report."""

    X: np.ndarray
    y: np.ndarray
    X_valid: np.ndarray
    y_valid: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    sfreq: float

    def learning(self) -> tuple:
        """What a search or a training sees."""
        return self.X, self.y, self.X_valid, self.y_valid


def make_fold(scale: str, seed: int, fraction: float = 1.0) -> Fold:
    """A split by subject: of simulated sleep, another night for each seed, or of Sleep-EDF.

    `fraction` of the training windows are kept.
    """
    if scale == "quick":
        X, y, subject = simulate_sleep(seed, **QUICK)
        sfreq = QUICK["sfreq"]
    else:
        X, y, subject = load_sleep_physionet(SLEEP_EDF_SUBJECTS)
        sfreq = 100.0
    train, valid, test = split_subjects(subject, PARTS[scale], random_state=seed)
    if fraction < 1:
        rng = np.random.default_rng([seed, 7])
        train = np.sort(rng.permutation(train)[: max(len(STAGES), round(fraction * len(train)))])
    return Fold(X[train], y[train], X[valid], y[valid], X[test], y[test], sfreq)


def data_of(scale: str) -> Data:
    """What is said of the data."""
    if scale == "paper":
        return Data.real("Sleep-EDF expanded, 78 subjects, through MNE")
    return Data.stand_in(for_="Sleep-EDF and MASS", used="simulate_sleep, eight subjects, one of them to train on")


def new_network(fold: Fold, seed: int) -> SleepStager:
    """The network of the paper for these windows."""
    n_channels, n_times = fold.X.shape[1:]
    return SleepStager(n_channels, len(STAGES), n_times, fold.sfreq, rngs=nnx.Rngs(seed))


class Outcome(NamedTuple):
    """Balanced accuracies on the validation and the test set, and labels given to the latter."""

    valid: float
    test: float
    predicted: np.ndarray


def retrain(fold: Fold, scale: str, seed: int, augmenter: Any) -> Outcome:
    """Train a new network with an augmenter and evaluate it."""
    network, history = train_classifier(
        seed, new_network(fold, seed), *fold.learning(), augmenter=augmenter, n_epochs=EPOCHS[scale],
        patience=PATIENCE[scale], verbose=False,
    )  # fmt: skip
    parts = np.array_split(fold.X_test, -(-len(fold.X_test) // 250))
    predicted = np.concatenate([np.asarray(network(jnp.asarray(part)).argmax(-1)) for part in parts])
    accuracy = balanced_accuracy(fold.y_test, predicted)
    return Outcome(float(history["valid_balanced_accuracy"].max()), accuracy, predicted)


class Selected(NamedTuple):
    """Of a search: its seconds, and accuracies of the network trained with the policy that validation chose."""

    seconds: float
    valid: float
    test: float


def select(fold: Fold, scale: str, seed: int, search: PolicySearch, every: int) -> Selected:
    """Retrain with the policy of every so many epochs, and report the test accuracy where validation is best."""
    n_steps = len(search.history_["time"])
    steps = sorted({*range(every, n_steps + 1, every), n_steps})
    found = [retrain(fold, scale, seed, search.augmenter(step=step)) for step in steps]
    best = max(found, key=lambda outcome: outcome.valid)
    seconds = float(search.history_["time"][-1]) if n_steps else 0.0
    return Selected(seconds, best.valid, best.test)


def new_figure(n_panels: int = 1, width: float = 4.2, height: float = 3.2) -> tuple[Any, Any]:
    """A figure of panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n_panels, height), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def show_distributions(ax: Any, names: list[str], values: list[Any], label: str) -> None:
    """One column of points a name, with its median."""
    for i, column in enumerate(values):
        ax.plot(np.full(len(column), i), column, "o", color=f"C{i % 10}", alpha=0.6, markersize=4)
        ax.plot([i - 0.25, i + 0.25], 2 * [np.median(column)], color="black", linewidth=1.2)
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize="small")
    ax.set_ylabel(label)
