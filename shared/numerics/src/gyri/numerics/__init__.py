"""Numerical building blocks that the gyri packages share: pure functions on JAX arrays and pytrees.

`validation` (checks of what users pass), `io` (pytrees on disk), `loops` (scanned loops, minibatch fitting), `linalg`
(linear operators, conjugate gradients, implicit differentiation), `optim` (minimisers), `prox` (proximal operators),
`csc` (convolutional sparse coding and dictionary learning), `relax` (differentiable discrete draws), `eeg`
(differentiable transforms of multichannel signals), `transform` (transforms with magnitudes), `recordings` (what is
asked of objects of MNE), `host` (compiled sequential code on a CPU), and `testing` (what a package's tests ask of its
functions).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import csc, eeg, host, io, linalg, loops, optim, prox, recordings, relax, transform, validation
from ._version import __version__
from .linalg import LinearOperator, as_operator
from .prox import prox_tv1d, soft_threshold

if TYPE_CHECKING:
    from . import testing

__all__ = [
    "LinearOperator",
    "__version__",
    "as_operator",
    "csc",
    "eeg",
    "host",
    "io",
    "linalg",
    "loops",
    "optim",
    "prox",
    "prox_tv1d",
    "recordings",
    "relax",
    "soft_threshold",
    "testing",
    "transform",
    "validation",
]


def __getattr__(name: str) -> Any:
    # Only tests need it, and numpy.testing is slow to import.
    if name == "testing":
        return import_module(".testing", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
