"""Nystagmus waveforms out of eye-tracker recordings, by convolutional sparse coding with a trend.

Lalanne, Rateaux, Oudre, Robert, Moreau (2020), "Extraction of Nystagmus Patterns from Eye-Tracker Data with
Convolutional Sparse Coding", EMBC.
"""

from typing import TYPE_CHECKING, Any

from . import datasets as datasets
from ._version import __version__ as __version__
from .datasets import NystagmusData, simulate_nystagmus
from .metrics import pattern_correlation, relative_error
from .mne_io import blink_mask, gaze_to_degrees
from .plot import plot_atoms, plot_decomposition
from .trend import estimate_tv_threshold, tv_threshold

if TYPE_CHECKING:
    from .estimator import ConvolutionalDictionaryLearning, NystagmusCDL

__all__ = [
    "ConvolutionalDictionaryLearning",
    "NystagmusCDL",
    "NystagmusData",
    "blink_mask",
    "estimate_tv_threshold",
    "gaze_to_degrees",
    "pattern_correlation",
    "plot_atoms",
    "plot_decomposition",
    "relative_error",
    "simulate_nystagmus",
    "tv_threshold",
]


def __getattr__(name: str) -> Any:
    # scikit-learn takes seconds to import, and only the estimators need it.
    if name in ("ConvolutionalDictionaryLearning", "NystagmusCDL"):
        from . import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
