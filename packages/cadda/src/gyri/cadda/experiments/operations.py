"""Which transform helps which class: one at a time, half of the windows, on a small training set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gyri.numerics.transform import Transform, eeg_transforms
from gyri.reproduce import Claim, Result, experiment

from ..data import STAGES
from ..policy import Augmenter
from ..spaces import discrete_policy
from .setting import N_SEEDS, data_of, make_fold, new_figure, retrain

# Arguments that later work of the authors found best on Sleep-EDF; None where there are none.
ARGUMENTS = {
    "time_reverse": None, "sign_flip": None, "ft_surrogate": 1.0, "frequency_shift": 0.6, "gaussian_noise": 0.16,
    "time_mask": 140.0, "channels_dropout": 0.2, "channels_shuffle": 0.6, "bandstop": 0.6,
}  # fmt: skip
FRACTION = {"quick": 1.0, "paper": 0.02}


def f1_scores(y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 of each stage."""
    from sklearn.metrics import f1_score

    return f1_score(y, predicted, labels=range(len(STAGES)), average=None, zero_division=0)


def make_operations(sfreq: float, names: Sequence[str]) -> tuple[Transform, ...]:
    """Transforms whose ranges reach `ARGUMENTS`; that of time_mask ends at 100 samples otherwise."""
    reach = lambda t: None if t.range is None else (t.range[0], max(t.range[1], ARGUMENTS[t.name]))
    return tuple(replace(t, range=reach(t)) for t in eeg_transforms(sfreq, include=list(names)))


def gains(setting: tuple[str, int]) -> np.ndarray:
    """Relative gain in F1 over no augmentation, (n_operations, n_classes)."""
    scale, seed = setting
    fold = make_fold(scale, seed, FRACTION[scale])
    transforms = make_operations(fold.sfreq, list(ARGUMENTS))
    scores = []
    for op, probability in [(0, 0.0), *((i, 0.5) for i in range(len(transforms)))]:
        low, high = transforms[op].range or (0.0, 1.0)
        magnitude = ((ARGUMENTS[transforms[op].name] or low) - low) / (high - low)
        # One list of operations and another policy each time: nothing is compiled twice.
        policy = discrete_policy([[[op]]], [[[probability]]], [[[magnitude]]], len(transforms))
        predicted = retrain(fold, scale, seed, Augmenter(policy, transforms)).predicted
        scores.append(f1_scores(fold.y_test, predicted))
    plain, augmented = scores[0], np.array(scores[1:])
    return (augmented - plain) / np.maximum(plain, 0.05)


@experiment(paper="cadda", figure="Gains by class", title="Which transform helps which class")
def operations(scale: str, key: int, sweep: Any) -> Result:
    """Train with one transform at a time, applied to half of the windows; per-class gains in F1 on test subjects.

    Paper scale: about 2 CPU days, a GPU is advised (guessed from the README's time of a step: 100 trainings on 2,800
    windows with 35,000 to validate); needs Sleep-EDF, some 8 GB.
    """
    found = np.array(sweep(gains, [(scale, key + i) for i in range(N_SEEDS[scale])]))
    at = {name: found[:, i] for i, name in enumerate(ARGUMENTS)}
    best = np.median(found, 0).argmax(0)
    claims = [
        Claim.at_least("the best operation differs between classes: different ones", "several", len(set(best)), 2),
        *(
            Claim.info(f"gain in F1, mean over classes, {name}", None, values.mean(1))
            for name, values in at.items()
        ),
        *(
            Claim.info(f"gain in F1 of {stage} by sign_flip", None, at["sign_flip"][:, c])
            for c, stage in enumerate(STAGES)
        ),
    ]  # fmt: skip
    captions = {"gains": "Relative gain in F1 over no augmentation: median over seeds. One operation a row."}
    return Result(claims, {"gains": draw(np.median(found, 0))}, data_of(scale), captions)


def draw(medians: np.ndarray) -> Any:
    """Operations by classes."""
    figure, (ax,) = new_figure(1, 5.0, 3.8)
    top = float(np.abs(medians).max())
    image = ax.imshow(medians, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
    ax.set_yticks(range(len(ARGUMENTS)), list(ARGUMENTS), fontsize="small")
    ax.set_xticks(range(len(STAGES)), STAGES)
    figure.colorbar(image, ax=ax, label="relative gain in F1")
    return figure
