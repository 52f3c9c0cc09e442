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

if TYPE_CHECKING:
    from .networks import SleepStager
    from .train import train_classifier

__all__ = [
    "SleepStager",
    "critic_losses",
    "hypergradient",
    "load_sleep_physionet",
    "momentum_hypergradient",
    "relax_bernoulli_gradient",
    "relax_gradient",
    "simulate_sleep",
    "split_subjects",
    "subject_folds",
    "train_classifier",
    "zscore",
]

_WITH_FLAX = {"SleepStager": "networks", "train_classifier": "train"}


def __getattr__(name: str) -> Any:
    # flax takes a second to import, and only networks need it.
    if name in _WITH_FLAX:
        from importlib import import_module

        return getattr(import_module(f".{_WITH_FLAX[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
