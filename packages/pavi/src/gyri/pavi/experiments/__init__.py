"""Experiments of the paper; importing the module registers them with `gyri.reproduce`."""

from . import convergence as convergence
from . import expressivity as expressivity
from . import parcellation as parcellation
from . import peers as peers
from . import random_effects as random_effects
