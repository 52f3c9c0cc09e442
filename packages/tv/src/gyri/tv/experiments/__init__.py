"""Experiments of the TV paper; importing the module registers them with `gyri.reproduce`."""

from . import conditioning as conditioning
from . import learning as learning
