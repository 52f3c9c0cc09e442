"""Plate-amortized variational inference: posteriors of hierarchical NumPyro models with very many groups."""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .params import load_params, save_params
from .plot import plot_elbo, plot_posterior

if TYPE_CHECKING:
    from . import baselines, encoders, flows, models
    from .autoguide import AutoPAVI
    from .bound import elbo
    from .plates import PlateGraph, plate_graph, sample_indices
    from .train import FitResult, fit

__all__ = [
    "AutoPAVI",
    "FitResult",
    "PlateGraph",
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

# NumPyro takes seconds to import: where one of these is asked for.
_LAZY = {
    "AutoPAVI": "autoguide",
    "FitResult": "train",
    "PlateGraph": "plates",
    "elbo": "bound",
    "fit": "train",
    "plate_graph": "plates",
    "sample_indices": "plates",
}
_MODULES = ("baselines", "encoders", "flows", "models")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
