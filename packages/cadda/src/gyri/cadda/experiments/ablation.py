"""Ablation: estimators of the gradient in the choices, and a warm start of the network."""

from typing import Any

import numpy as np

from gyri.reproduce import Claim, Result, experiment

from .agnostic import BUDGET, EVERY, search_with
from .setting import N_SEEDS, data_of, make_fold, new_figure, select, show_distributions

ESTIMATORS = ("softmax", "gumbel", "relax")


def compare(setting: tuple[str, int]) -> dict[str, float]:
    """Test accuracy with each estimator, from a trained network and from a new one."""
    scale, seed = setting
    fold, found = make_fold(scale, seed), {}
    for estimator in ESTIMATORS:
        for warm, n_warmup in (("warm", BUDGET[scale]["n_warmup"]), ("cold", 0)):
            search = search_with(fold, scale, seed, "adda", estimator=estimator, n_warmup=n_warmup)
            found[f"{estimator}, {warm}"] = select(fold, scale, seed, search, EVERY[scale]).test
    return found


@experiment(paper="cadda", figure="Ablation", title="Ablation: estimators and the warm start")
def ablation(scale: str, key: int, sweep: Any) -> Result:
    """ADDA with softmax, Gumbel-softmax and RELAX, after some epochs of training without augmentation or none.

    Paper scale: about 300 CPU days, a GPU is advised (guessed from the README's time of a step: 10 seeds of 6 searches
    and 120 trainings of 100 epochs on 140,000 windows); needs Sleep-EDF, some 8 GB.
    """
    runs = sweep(compare, [(scale, key + i) for i in range(N_SEEDS[scale])])
    test = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    claims = [Claim.info(f"test balanced accuracy, {name} start", None, values) for name, values in test.items()]
    claims.append(Claim.at_least(
        "RELAX over the better of the others, warm start", "0 or above",
        np.median(test["relax, warm"] - np.maximum(test["softmax, warm"], test["gumbel, warm"])), 0.0,
        note="estimators differ by less than seeds do, and the better of two is picked after the fact",
    ))  # fmt: skip
    figure, (ax,) = new_figure()
    show_distributions(ax, list(test), list(test.values()), "test balanced accuracy")
    captions = {"ablation": "Test balanced accuracy by estimator and start of the network; a point a seed."}
    return Result(claims, {"ablation": figure}, data_of(scale), captions)
