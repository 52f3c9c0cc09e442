"""temporary."""

from ._version import __version__ as __version__
from .estimator import HNPE
from .posterior import HNPEPosterior
from .prior import HierarchicalPrior
from .simulation import Simulations, simulate
from .simulators import ToyModel
