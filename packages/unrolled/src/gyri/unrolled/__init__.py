"""Dictionary and prior learning through unrolled sparse coding.

Malézieux, Moreau, Kowalski (2022), "Understanding approximate and unrolled dictionary learning for pattern recovery",
ICLR.
"""

from ._version import __version__ as __version__
from .coding import lasso_objective, sparse_code
from .datasets import simulate
from .gradients import dictionary_gradient, lasso_jacobian, unrolled_jacobian
from .metrics import recovery_score

__all__ = [
    "dictionary_gradient",
    "lasso_jacobian",
    "lasso_objective",
    "recovery_score",
    "simulate",
    "sparse_code",
    "unrolled_jacobian",
]
