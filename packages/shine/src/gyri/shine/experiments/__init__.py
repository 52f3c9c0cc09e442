"""Experiments of the SHINE paper; importing the module registers them with `gyri.reproduce`."""

from . import dense_layers as dense_layers
from . import directions as directions
from . import inversion as inversion
from . import multiscale as multiscale
from . import penalties as penalties
