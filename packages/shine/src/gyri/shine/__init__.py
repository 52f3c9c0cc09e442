"""Implicit layers and bi-level optimisation with a backward pass that costs next to nothing.

Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau (2022), "SHINE: SHaring the INverse Estimate from the forward pass for
bi-level optimization and implicit models", ICLR.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .backward import Full, JacobianFree, Shine
from .bilevel import HoagResult, grid_search, hoag, random_search
from .implicit import Solution, fixed_point, minimize, root
from .inverse import InverseEstimate, inverse_quality
from .lbfgs import LBFGS
from .plot import plot_hoag, plot_inverse_quality
from .solvers import AdjointBroyden, Anderson, Broyden, Picard, SolveStats

if TYPE_CHECKING:
    from . import datasets, models
    from .deq import DEQ, jacobian_penalty, spectral_radius
    from .estimator import BilevelLogisticRegression

__all__ = [
    "DEQ",
    "LBFGS",
    "AdjointBroyden",
    "Anderson",
    "BilevelLogisticRegression",
    "Broyden",
    "Full",
    "HoagResult",
    "InverseEstimate",
    "JacobianFree",
    "Picard",
    "Shine",
    "Solution",
    "SolveStats",
    "datasets",
    "fixed_point",
    "grid_search",
    "hoag",
    "inverse_quality",
    "jacobian_penalty",
    "minimize",
    "models",
    "plot_hoag",
    "plot_inverse_quality",
    "random_search",
    "root",
    "spectral_radius",
]

# flax and scikit-learn take seconds to import, and only these need them.
_LAZY = {
    "DEQ": "deq",
    "jacobian_penalty": "deq",
    "spectral_radius": "deq",
    "BilevelLogisticRegression": "estimator",
    "datasets": "",
    "models": "",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name] or name}", __name__)
    return getattr(module, name) if _LAZY[name] else module


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
