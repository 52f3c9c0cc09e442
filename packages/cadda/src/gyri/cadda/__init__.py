"""Learn which augmentations help which class of EEG windows, by gradient descent on the validation loss.

Rommel, Moreau, Paillard, Gramfort (2022), "CADDA: Class-wise automatic differentiable data augmentation for EEG
signals", ICLR.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .bilevel import hypergradient, momentum_hypergradient
from .critic import critic_losses
from .data import load_sleep_physionet, simulate_sleep, split_subjects, subject_folds, zscore
from .estimators import relax_bernoulli_gradient, relax_gradient
from .plot import plot_policy, plot_search
from .policy import Augmenter, Policy, augment, describe, exposure, init_policy

if TYPE_CHECKING:
    from .networks import SleepStager
    from .search import PolicySearch
    from .train import train_classifier

__all__ = [
    "Augmenter",
    "Policy",
    "PolicySearch",
    "SleepStager",
    "augment",
    "critic_losses",
    "describe",
    "exposure",
    "hypergradient",
    "init_policy",
    "load_sleep_physionet",
    "momentum_hypergradient",
    "plot_policy",
    "plot_search",
    "relax_bernoulli_gradient",
    "relax_gradient",
    "simulate_sleep",
    "split_subjects",
    "subject_folds",
    "train_classifier",
    "zscore",
]

_LAZY = {"PolicySearch": "search", "SleepStager": "networks", "train_classifier": "train"}


def __getattr__(name: str) -> Any:
    # flax and scikit-learn take seconds to import, and only these need them.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
