"""Solving and learning to solve 1-D total-variation problems.

Cherkaoui, Sulam, Moreau (2020), "Learning to solve TV regularised problems with unrolled algorithms", NeurIPS.
"""

from ._version import __version__ as __version__
from .datasets import hrf_operator, simulate
from .networks import apply_network, init_network
from .problem import duality_gap, lambda_max, objective, tv_norm
from .prox import prox_tv1d, prox_tv2d
from .solvers import Solution, solve

__all__ = [
    "Solution",
    "apply_network",
    "duality_gap",
    "hrf_operator",
    "init_network",
    "lambda_max",
    "objective",
    "prox_tv1d",
    "prox_tv2d",
    "simulate",
    "solve",
    "tv_norm",
]
