"""Experiments of the paper; importing the module registers them with `gyri.reproduce`."""

from . import eyes as eyes
from . import neural_mass as neural_mass
from . import sound as sound
from . import toy as toy
