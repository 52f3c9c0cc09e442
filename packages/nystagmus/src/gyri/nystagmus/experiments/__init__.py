"""Experiments of the paper; importing the module registers them with `gyri.reproduce`."""

from . import clinical as clinical
from . import heartbeats as heartbeats
from . import recovery as recovery
from . import smoothing as smoothing
