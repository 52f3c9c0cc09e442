"""Convolutional sparse coding and dictionary learning.

Shapes: signal (n_trials, n_channels, n_times), atoms (n_atoms, n_channels, n_times_atom), codes (n_trials, n_atoms,
n_times - n_times_atom + 1); operators, `csc_lambda_max` and FISTA take any number of trailing axes.

A method with a loop of its own (other data at each iteration, another rule for the level) builds it from the steps of
`learning` (`LearnData`, `start_learning`, `learn_step`, `finish_learning`), `coordinates`, `dictionary` and
`operators`, which check nothing and keep their meaning within a minor version.
"""

from .alignment import align_atoms
from .dictionary import rank1_from_full, update_atoms
from .initial import init_atoms
from .learning import Background, CDLResult, learn_atoms
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
    "Background",
    "CDLResult",
    "CSCResult",
    "align_atoms",
    "atom_gram",
    "code_statistics",
    "conv_correlate",
    "conv_synthesis",
    "csc_lambda_max",
    "csc_objective",
    "csc_solve",
    "init_atoms",
    "learn_atoms",
    "rank1_from_full",
    "update_atoms",
]
