"""Plate-amortized variational inference: posteriors of hierarchical NumPyro models with very many groups."""

from . import encoders, flows
from ._version import __version__
from .autoguide import AutoPAVI
from .elbo import elbo
from .params import load_params, save_params
from .plates import PlateGraph, plate_graph, sample_indices
from .train import FitResult, fit

__all__ = [
    "AutoPAVI",
    "FitResult",
    "PlateGraph",
    "__version__",
    "elbo",
    "encoders",
    "fit",
    "flows",
    "load_params",
    "plate_graph",
    "sample_indices",
    "save_params",
]
