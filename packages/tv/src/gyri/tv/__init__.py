"""Solving and learning to solve 1-D total-variation problems.

Cherkaoui, Sulam, Moreau (2020), "Learning to solve TV regularised problems with unrolled algorithms", NeurIPS.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .datasets import hrf_operator, simulate
from .networks import apply_network, init_network
from .plot import plot_convergence, plot_signals
from .problem import duality_gap, lambda_max, objective, tv_norm
from .prox import prox_tv1d, prox_tv2d
from .solvers import Solution, solve

if TYPE_CHECKING:
    from .estimator import LearnedTV

__all__ = [
    "LearnedTV",
    "Solution",
    "apply_network",
    "duality_gap",
    "hrf_operator",
    "init_network",
    "lambda_max",
    "objective",
    "plot_convergence",
    "plot_signals",
    "prox_tv1d",
    "prox_tv2d",
    "simulate",
    "solve",
    "tv_norm",
]


def __getattr__(name: str) -> Any:
    # scikit-learn takes seconds to import, and only the estimator needs it.
    if name == "LearnedTV":
        from .estimator import LearnedTV

        return LearnedTV
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "LearnedTV"])
