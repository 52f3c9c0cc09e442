"""Plate-amortized variational inference: posteriors of hierarchical NumPyro models with very many groups."""

from . import baselines, encoders, flows, models
from ._version import __version__
from .autoguide import AutoPAVI
from .elbo import elbo
from .params import load_params, save_params
from .plates import PlateGraph, plate_graph, sample_indices
from .plot import plot_elbo, plot_posterior
from .train import FitResult, fit

__all__ = [
    "AutoPAVI",
    "FitResult",
    "PlateGraph",
    "__version__",
    "baselines",
    "elbo",
    "encoders",
    "fit",
    "flows",
    "load_params",
    "models",
    "plate_graph",
    "plot_elbo",
    "plot_posterior",
    "sample_indices",
    "save_params",
]
