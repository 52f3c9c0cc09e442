"""temporary."""

from ._version import __version__ as __version__
from .prior import HierarchicalPrior
from .simulation import Simulations, simulate
from .simulators import ToyModel
