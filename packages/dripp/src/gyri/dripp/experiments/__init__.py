"""Experiments of the DriPP paper; importing the module registers them with `gyri.reproduce`."""

from . import calibration as calibration
from . import grasshopper as grasshopper
from . import synthetic as synthetic
