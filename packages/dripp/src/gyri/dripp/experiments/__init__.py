"""Experiments of the DriPP paper; importing the module registers them with `gyri.reproduce`."""

from . import calibration as calibration
from . import camcan as camcan
from . import grasshopper as grasshopper
from . import mne_sample as mne_sample
from . import mne_somato as mne_somato
from . import raw_pipeline as raw_pipeline
from . import synthetic as synthetic
from . import synthetic_meg as synthetic_meg
