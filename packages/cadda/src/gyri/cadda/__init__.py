"""Learn which augmentations help which class of EEG windows, by gradient descent on the validation loss.

Rommel, Moreau, Paillard, Gramfort (2022), "CADDA: Class-wise automatic differentiable data augmentation for EEG
signals", ICLR.
"""

from ._version import __version__ as __version__
from .bilevel import hypergradient, momentum_hypergradient
from .critic import critic_losses
from .estimators import relax_bernoulli_gradient, relax_gradient

__all__ = [
    "critic_losses",
    "hypergradient",
    "momentum_hypergradient",
    "relax_bernoulli_gradient",
    "relax_gradient",
]
