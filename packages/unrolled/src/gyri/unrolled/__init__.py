"""Dictionary and prior learning through unrolled sparse coding.

Malézieux, Moreau, Kowalski (2022), "Understanding approximate and unrolled dictionary learning for pattern recovery",
ICLR.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .coding import lasso_objective, sparse_code
from .datasets import simulate
from .gradients import dictionary_gradient, lasso_jacobian, unrolled_jacobian
from .image import restore_image
from .metrics import recovery_score
from .plot import plot_atoms, plot_history

if TYPE_CHECKING:
    from .analysis import AnalysisPrior
    from .conv import ConvDictionaryLearning
    from .dictionary import DictionaryLearning

__all__ = [
    "AnalysisPrior",
    "ConvDictionaryLearning",
    "DictionaryLearning",
    "dictionary_gradient",
    "lasso_jacobian",
    "lasso_objective",
    "plot_atoms",
    "plot_history",
    "recovery_score",
    "restore_image",
    "simulate",
    "sparse_code",
    "unrolled_jacobian",
]


_ESTIMATORS = {
    "AnalysisPrior": "analysis", "ConvDictionaryLearning": "conv", "DictionaryLearning": "dictionary"
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # scikit-learn takes seconds to import, and only the estimators need it.
    if name in _ESTIMATORS:
        from importlib import import_module

        return getattr(import_module(f".{_ESTIMATORS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
