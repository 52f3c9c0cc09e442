"""Stochastic bilevel optimisation: SOBA, SABA and the solvers they are compared with.

Dagréou, Ablin, Vaiter, Moreau (2022), "A framework for bilevel optimization that enables stochastic and global variance
reduction algorithms", NeurIPS. Throughout, v stands for minus the inverse Hessian times the outer gradient.
"""

from . import problems, solvers
from ._version import __version__ as __version__
from .drivers import minimize, run
from .drivers import run_sharded as run_sharded
from .implicit import hypergradient, inner_solve, value_function
from .io import load_state as load_state
from .io import save_state as save_state
from .plot import plot_convergence
from .rules import power_schedule as power_schedule
from .saga import memory_means as memory_means
from .saga import memory_tables as memory_tables
from .solvers import saba, soba
from .types import BilevelProblem as BilevelProblem
from .types import BilevelSolver as BilevelSolver
from .types import BilevelState as BilevelState
from .types import Hypergradient as Hypergradient
from .types import Result as Result

__all__ = [
    "hypergradient",
    "inner_solve",
    "minimize",
    "plot_convergence",
    "problems",
    "run",
    "saba",
    "soba",
    "solvers",
    "value_function",
]
