"""Networks that learn from their training set alone which transforms leave the labels unchanged, and how far.

Rommel, Moreau, Gramfort (2022), "Deep invariant networks with differentiable augmentation layers", NeurIPS.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gyri.numerics.transform import Transform, eeg_transforms

from ._version import __version__ as __version__
from .image import image_transforms
from .invariance import invariance
from .losses import invariance_penalty
from .mixing import mix
from .plot import plot_augmentations

if TYPE_CHECKING:
    from .augerino import Augerino
    from .classifier import AugNetClassifier
    from .layers import AugmentationLayer, AugNet

__all__ = [
    "AugNet",
    "AugNetClassifier",
    "Augerino",
    "AugmentationLayer",
    "Transform",
    "eeg_transforms",
    "image_transforms",
    "invariance",
    "invariance_penalty",
    "mix",
    "plot_augmentations",
]

# flax and scikit-learn take seconds to import, and only these need them.
_LAZY = {"AugNet": "layers", "AugNetClassifier": "classifier", "Augerino": "augerino", "AugmentationLayer": "layers"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
