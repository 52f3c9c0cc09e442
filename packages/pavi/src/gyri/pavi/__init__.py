"""The method in one line; the names listed here are the package's interface."""

from ._version import __version__
from .mean import shrunk_mean

__all__ = ["__version__", "shrunk_mean"]
