"""Convolutional sparse coding and dictionary learning.

Shapes: N trials, P channels, T samples, K atoms of L samples, V = T - L + 1 positions; signal (N, P, T), codes
(N, K, V), atoms (K, P, L).
"""

from .operators import (
    atom_gram,
    code_statistics,
    conv_correlate,
    conv_synthesis,
    csc_lambda_max,
    csc_objective,
)
from .solvers import CSCResult, csc_solve

__all__ = [
    "CSCResult",
    "atom_gram",
    "code_statistics",
    "conv_correlate",
    "conv_synthesis",
    "csc_lambda_max",
    "csc_objective",
    "csc_solve",
]
