"""Reproduce the figures of the papers behind gyri: claims, experiments, their registry, runner and report.

`gyri.reproduce.bench` times a function against a peer. Importing this package imports no matplotlib, jinja2, joblib or
JAX.
"""

from ._version import __version__
from .claims import Claim, Verdict
from .registry import Experiment, experiment, find_experiments
from .result import Data, Result

__all__ = ["Claim", "Data", "Experiment", "Result", "Verdict", "__version__", "experiment", "find_experiments"]
