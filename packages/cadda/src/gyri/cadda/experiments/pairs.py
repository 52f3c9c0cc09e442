"""Hand-made class-wise policies: two operations, each class gets one of them."""

from itertools import combinations, product
from typing import Any

import numpy as np

from gyri.reproduce import Claim, Result, experiment

from ..data import STAGES
from ..policy import Augmenter
from ..spaces import discrete_policy
from .operations import ARGUMENTS, make_operations
from .setting import N_SEEDS, data_of, make_fold, new_figure, retrain, show_distributions

OPERATIONS = {
    "quick": ("identity", "sign_flip", "frequency_shift"),
    "paper": ("identity", *ARGUMENTS),
}
N_ASSIGNMENTS = {"quick": 3, "paper": 30}
FRACTION = {"quick": 1.0, "paper": 0.02}


def assignments(n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Some of the ways to give each class one of two operations, the two constant ones left out."""
    every = [a for a in product((0, 1), repeat=len(STAGES)) if 0 < sum(a) < len(STAGES)]
    return [every[i] for i in sorted(rng.choice(len(every), min(n, len(every)), replace=False))]


def best_policies(setting: tuple[str, int]) -> tuple[float, float, float]:
    """Test accuracy without augmentation, of the best class-agnostic policy and of the best class-wise one."""
    scale, seed = setting
    fold = make_fold(scale, seed, FRACTION[scale])
    names = OPERATIONS[scale]
    transforms = make_operations(fold.sfreq, names)
    rng = np.random.default_rng([seed, 3])

    def outcome(ops: Any) -> Any:
        chosen = np.array(ops).reshape(len(STAGES), 1, 1)
        limits = [t.range or (0.0, 1.0) for t in transforms]
        strength = [((ARGUMENTS.get(n) or low) - low) / (high - low) for n, (low, high) in zip(names, limits)]
        policy = discrete_policy(chosen, np.full(chosen.shape, 0.5), np.array(strength)[chosen], len(names))
        return retrain(fold, scale, seed, Augmenter(policy, transforms))

    same = [outcome([op] * len(STAGES)) for op in range(len(names))]
    mixed = [
        outcome([pair[i] for i in assignment])
        for pair in combinations(range(len(names)), 2)
        for assignment in assignments(N_ASSIGNMENTS[scale], rng)
    ]
    best = lambda outcomes: max(outcomes, key=lambda o: o.valid).test
    return same[0].test, best(same), best(same + mixed)


@experiment(paper="cadda", figure="Hand-made pairs", title="Hand-made class-wise policies")
def pairs(scale: str, key: int, sweep: Any) -> Result:
    """All pairs of some operations, ways to share them among the classes; the policy is chosen on validation subjects.

    The quick scale takes three operations and a few ways, the paper ten operations and all of them:
    an eleventh, channels_symmetry, is the identity where both channels are on the midline.

    Paper scale: about 300 CPU days, a GPU is advised (guessed from the README's time of a step: 13,600 trainings on
    2,800 windows with 35,000 to validate); needs Sleep-EDF, some 8 GB.
    """
    found = np.array(sweep(best_policies, [(scale, key + i) for i in range(N_SEEDS[scale])]))
    difference = found[:, 2] - found[:, 1]
    claims = [
        Claim.at_least("class-wise over class-agnostic, test balanced accuracy", "above 0", np.median(difference), 0.0),
        Claim.info("test balanced accuracy, no augmentation", None, found[:, 0]),
        Claim.info("best class-agnostic", None, found[:, 1]),
        Claim.info("best class-wise", None, found[:, 2]),
    ]
    figure, (ax,) = new_figure()
    names = ["none", "class-agnostic", "class-wise"]
    show_distributions(ax, names, list(found.T), "test balanced accuracy")
    captions = {"pairs": "Test balanced accuracy of the policy that is best on validation subjects; a point a seed."}
    return Result(claims, {"pairs": figure}, data_of(scale), captions)
