"""Implicit layers and bi-level optimisation with a backward pass that costs next to nothing.

Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau (2022), "SHINE: SHaring the INverse Estimate from the forward pass for
bi-level optimization and implicit models", ICLR.
"""

from ._version import __version__ as __version__
from .backward import Full, JacobianFree, Shine
from .implicit import Solution, fixed_point, minimize, root
from .inverse import InverseEstimate, inverse_quality
from .lbfgs import LBFGS
from .solvers import AdjointBroyden, Anderson, Broyden, Picard, SolveStats
