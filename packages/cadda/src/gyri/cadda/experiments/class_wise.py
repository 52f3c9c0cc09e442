"""A policy for each class: by gradient descent, by trials, and none."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Result, experiment

from ..data import STAGES
from ..policy import exposure
from .agnostic import EVERY, search_with
from .setting import N_SEEDS, Selected, data_of, make_fold, new_figure, select, show_distributions

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "random": ("random", {"class_wise": True}),
    "TPE": ("autoaugment", {"class_wise": True}),
    "ADDA": ("adda", {}),
    "CADDA": ("cadda", {}),
}


def compare(setting: tuple[str, int]) -> tuple[dict[str, Selected], np.ndarray]:
    """Seconds and accuracies of each method on one fold, and how often CADDA flips the sign in each class."""
    scale, seed = setting
    fold, found, flips = make_fold(scale, seed), {}, np.zeros(len(STAGES))
    for name, (method, options) in METHODS.items():
        search = search_with(fold, scale, seed, method, **options)
        found[name] = select(fold, scale, seed, search, EVERY[scale])
        if name == "CADDA":
            at = [t.name for t in search.transforms_].index("sign_flip")
            flips = np.asarray(exposure(search.policy_))[:, at]
    return found, flips


FLIPS = "flips of simulated slow waves look like no other class: the search has no reason to avoid them"


@experiment(paper="cadda", figure="Class-wise benchmark", title="Class-wise policies")
def class_wise(scale: str, key: int, sweep: Any) -> Result:
    """CADDA against class-wise searches by trials, against ADDA and none, with equal numbers of epochs or trials.

    Paper scale: about 500 CPU days, a GPU is advised (guessed from the README's time of a step: 10 seeds of 280
    trainings of 60 to 100 epochs on 140,000 windows); needs Sleep-EDF, some 8 GB.
    """
    runs = sweep(compare, [(scale, key + i) for i in range(N_SEEDS[scale])])
    test = {name: np.array([run[name].test for run, _ in runs]) for name in METHODS}
    flips = np.array([row for _, row in runs])
    trials = np.maximum(test["random"], test["TPE"])
    ratio = lambda stage: flips[:, STAGES.index(stage)] / np.maximum(flips[:, 0], 1e-6)
    claims = [
        *(Claim.info(f"test balanced accuracy, {name}", None, values) for name, values in test.items()),
        Claim.at_least("CADDA over the best class-wise search by trials", "above 0",
                       np.median(test["CADDA"] - trials), 0.0,
                       note="50 windows are few for a policy a class; the better search is picked after the fact"),
        Claim.at_least("CADDA over no augmentation", "above 0", np.median(test["CADDA"] - test["none"]), 0.0),
        Claim.at_most("exposure to sign flips, N3 over W", None, np.median(ratio("N3")), 0.5, note=FLIPS),
        Claim.at_most("exposure to sign flips, R over W", None, np.median(ratio("R")), 0.5, note=FLIPS),
    ]  # fmt: skip
    figure, (ax, other) = new_figure(2)
    show_distributions(ax, list(METHODS), list(test.values()), "test balanced accuracy")
    show_distributions(other, list(STAGES), list(flips.T), "exposure to sign flips")
    captions = {"class-wise": "Left: a point a seed, lines are medians. Right: what CADDA learned, by class."}
    return Result(claims, {"class-wise": figure}, data_of(scale), captions)
