"""One policy for all classes: accuracy against the time of the search, method by method."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Result, experiment

from ..search import PolicySearch
from .setting import N_SEEDS, Fold, Selected, data_of, make_fold, new_figure, new_network, select, show_distributions

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "random": {},
    "autoaugment": {},
    "fast_aa": {},
    "faster_aa": {"estimator": "softmax", "policy_learning_rate": 1e-3},
    "dada": {"hypergradient": "finite_difference", "policy_learning_rate": 3e-4},
    "adda": {},
}
BUDGET: dict[str, dict[str, int]] = {
    "quick": {"n_epochs": 8, "n_warmup": 4, "n_subpolicies": 1},
    "paper": {"n_epochs": 100, "n_warmup": 20, "n_subpolicies": 5},
}
OPERATIONS: dict[str, tuple[str, ...] | None] = {
    "quick": ("time_reverse", "sign_flip", "frequency_shift", "gaussian_noise", "channels_dropout"), "paper": None,
}  # fmt: skip
EVERY = {"quick": 4, "paper": 5}


def search_with(fold: Fold, scale: str, seed: int, method: str, **options: Any) -> PolicySearch:
    """A search on a fold, with what the scale allows for."""
    transforms = OPERATIONS[scale]
    return PolicySearch(
        new_network(fold, seed), None if transforms is None else list(transforms), method=method, sfreq=fold.sfreq,
        random_state=seed, verbose=False, **BUDGET[scale] | options,
    ).fit(*fold.learning())  # fmt: skip


def compare(setting: tuple[str, int]) -> dict[str, Selected]:
    """Seconds and accuracies of each method on one fold."""
    scale, seed = setting
    fold = make_fold(scale, seed)
    return {
        name: select(fold, scale, seed, search_with(fold, scale, seed, name, **options), EVERY[scale])
        for name, options in METHODS.items()
    }


@experiment(
    paper="cadda",
    figure="Class-agnostic benchmark",
    title="Class-agnostic policies: accuracy against search time",
    timed=True,
)
def agnostic(scale: str, key: int, sweep: Any) -> Result:
    """Search, retrain with the policies of some epochs, choose on validation subjects, report on test subjects.

    The paper compares GPU hours on MASS (licensed); here are seconds of the search on this machine, compilation
    included.

    Paper scale: about 600 CPU days, a GPU is advised (guessed from the README's time of a step: 10 seeds of 320
    trainings of 60 to 100 epochs on 140,000 windows); needs Sleep-EDF, some 8 GB.
    """
    runs = sweep(compare, [(scale, key + i) for i in range(N_SEEDS[scale])])
    test = {name: np.array([run[name].test for run in runs]) for name in METHODS}
    seconds = {name: np.array([run[name].seconds for run in runs]) for name in METHODS}
    gradient = ("faster_aa", "dada")
    claims = [
        *(Claim.info(f"test balanced accuracy, {name}", None, values) for name, values in test.items()),
        *(Claim.info(f"seconds of the search, {name}", None, values) for name, values in seconds.items()),
        Claim.at_least("ADDA over no augmentation", "above 0", np.median(test["adda"] - test["none"]), 0.0),
        Claim.at_least(
            "ADDA over the best of Faster AA and DADA", "0 or above",
            np.median(test["adda"] - np.maximum(*(test[name] for name in gradient))), 0.0,
            note="the better of the two is picked after the fact; short trainings move by hundredths between runs",
        ),
    ]  # fmt: skip
    figure, (ax, other) = new_figure(2)
    show_distributions(ax, list(METHODS), list(test.values()), "test balanced accuracy")
    for i, name in enumerate(METHODS):
        if name != "none":
            other.plot(np.median(seconds[name]), np.median(test[name]), "o", color=f"C{i}", label=name)
    other.set(xlabel="seconds of the search", ylabel="test balanced accuracy, median", xlim=(0, None))
    other.legend(frameon=False, fontsize="x-small")
    captions = {"agnostic": "Left: a point a seed, lines are medians. Right: medians against the time of the search."}
    return Result(claims, {"agnostic": figure}, data_of(scale), captions)
