"""Experiments of the paper; importing the module registers them with `gyri.reproduce`."""

from . import ablations as ablations
from . import cleaning as cleaning
from . import multiclass as multiclass
from . import quadratics as quadratics
from . import selection as selection
from . import toy as toy
