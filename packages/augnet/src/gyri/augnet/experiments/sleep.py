"""Sleep staging with learned augmentation, on simulated sleep or on Sleep-EDF."""

import functools
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score

from gyri.reproduce import Claim, Data, Result, experiment

from ..classifier import AugNetClassifier
from .networks import IDENTITY

CHANNELS = ("Fpz", "Pz")
N_SUBJECTS = 78  # of Sleep-EDF expanded, 83 less five
# Windows of each subject, subjects to train with, to test with; sampling frequency; epochs.
QUICK = (100, 2, 4, 50.0, 25)
N_RUNS = {"quick": 3, "paper": 5}
NEEDS = (
    "Sleep-EDF expanded, downloaded through MNE: pip install 'gyri-augnet[experiments]', some 8 GB and hours of a GPU"
)


@functools.cache
def simulated(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows and stages of simulated subjects, other ones to test with."""
    from gyri.cadda import simulate_sleep

    n_windows, n_train, n_test, sfreq, _ = QUICK
    X, y, subject = simulate_sleep(seed, n_train + n_test, n_windows, sfreq=sfreq)
    train = np.isin(subject, np.unique(subject)[:n_train])
    return X[train], X[~train], y[train], y[~train]


@functools.cache
def sleep_edf(fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows and stages of Sleep-EDF, a fifth of the subjects to test with."""
    from gyri.cadda import load_sleep_physionet, subject_folds

    subjects = [s for s in range(83) if s not in (39, 68, 69, 78, 79)]
    X, y, subject = load_sleep_physionet(subjects)
    train, test = list(subject_folds(subject, 5))[fold][:2]
    return X[train], X[test], y[train], y[test]


def train(setting: tuple[str, int, str]) -> dict[str, Any]:
    """Balanced accuracy on other subjects, and what was learned, for (method, seed or fold, scale)."""
    from gyri.cadda import SleepStager

    method, seed, scale = setting
    X, X_test, y, y_test = simulated(seed) if scale == "quick" else sleep_edf(seed)
    sfreq, epochs = (QUICK[3], QUICK[4]) if scale == "quick" else (100.0, 300)
    trunk = lambda rngs: SleepStager(X.shape[1], 5, X.shape[2], sfreq, rngs=rngs)
    options: dict[str, Any] = {"reg": 0.5 if scale == "quick" else 10.0, "init_magnitude": 0.1, "copies": 20}
    layers: Any = ("spatial", "time_freq", "time_freq")
    if method == "no augmentation":
        options, layers = {"reg": 0.0, "aug_learning_rate": 0.0, "copies": 1}, IDENTITY
    model = AugNetClassifier(
        trunk, layers, batch_size=16, learning_rate=1e-3, n_epochs=epochs, sfreq=sfreq, ch_names=CHANNELS,
        random_state=seed, verbose=False, **options,
    ).fit(X, y)  # fmt: skip
    score = balanced_accuracy_score(y_test, model.predict(X_test))
    return {"accuracy": float(score), "rows": model.model_.describe(), "history": model.history_}


NOISE = "few, short trainings: threads add in another order, and the median moves by some hundredths between runs"


@experiment(paper="augnet", figure="MASS", title="Sleep staging with learned augmentation")
def sleep(scale: str, key: int, sweep: Any) -> Result:
    """Balanced accuracy on subjects that were not trained on, without and with three augmentation layers.

    The paper's MASS recordings need a licence. Quick: simulated sleep, three draws. Paper: Sleep-EDF, five folds. All
    epochs are trained, on the cross-entropy without weights of classes, where the paper weighted and stopped early.

    Paper scale: about 200 CPU hours, a GPU is advised (extrapolated from the quick run: 17,000 times the steps, twice
    the samples a window); needs Sleep-EDF, some 8 GB.
    """
    methods = ("no augmentation", "AugNet")
    claimed = "within .8215 to .838 on MASS, at par with searched policies"
    if scale == "paper":
        try:
            sleep_edf(0)
        except Exception as error:  # no internet, no disk, no MNE: the message says which
            claims = [
                Claim.not_run(f"{method}: balanced accuracy", claimed, note=str(error)[:200]) for method in methods
            ]
            return Result(claims, {}, Data.missing(needs=NEEDS))
    runs = {method: sweep(train, [(method, key + i, scale) for i in range(N_RUNS[scale])]) for method in methods}
    accuracy = {method: np.array([run["accuracy"] for run in found]) for method, found in runs.items()}
    strength: dict[str, list[float]] = {}
    for run in runs["AugNet"]:
        for row in run["rows"]:
            strength.setdefault(row["operation"], []).append(row["weight"] * row["magnitude"])
    totals = {name: float(np.sum(values)) / N_RUNS[scale] for name, values in strength.items()}
    gain = float(np.median(accuracy["AugNet"] - accuracy["no augmentation"]))
    claims = [
        *[Claim.info(f"{name}: balanced accuracy", claimed if name == "AugNet" else None, values)
          for name, values in accuracy.items()],
        Claim.at_least("gain over no augmentation, median of the pairs", None, gain, 0.0, note=NOISE),
        Claim.info("transform learned most", None, max(totals.values()), note=max(totals, key=lambda n: totals[n])),
    ]  # fmt: skip
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    for pair in zip(*accuracy.values()):
        left.plot([0, 1], pair, "o-", color="0.5")
    left.set_xticks([0, 1], ["no\naugmentation", "AugNet"])
    left.set(ylabel="balanced accuracy", xlim=(-0.3, 1.3))
    right.barh(list(totals), list(totals.values()))
    right.set_xlabel("weight times magnitude, summed over layers")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    captions = {"sleep": "Balanced accuracy on other subjects, a line a draw; and what the layers learned, on average."}
    data = Data.simulated("sleep") if scale == "quick" else Data.real("Sleep-EDF expanded")
    return Result(claims, {"sleep": figure}, data, captions)
