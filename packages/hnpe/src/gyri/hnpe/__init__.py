"""Hierarchical neural posterior estimation: one network for a recording and any number of others.

Rodrigues, Moreau, Louppe, Gramfort (2021), "HNPE: Leveraging Global Parameters for Neural Posterior Estimation",
NeurIPS.
"""

from ._version import __version__ as __version__
from .diagnostics import sbc
from .estimator import HNPE
from .jansen_rit import JansenRit
from .plot import pairplot
from .posterior import HNPEPosterior
from .prior import HierarchicalPrior
from .simulation import Simulations, simulate
from .simulators import ToyModel
from .summaries import log_psd

__all__ = [
    "HNPE",
    "HNPEPosterior",
    "HierarchicalPrior",
    "JansenRit",
    "Simulations",
    "ToyModel",
    "log_psd",
    "pairplot",
    "sbc",
    "simulate",
]
