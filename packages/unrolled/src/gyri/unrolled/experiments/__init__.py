"""Experiments of the paper, for `gyri-reproduce run unrolled`."""

from . import gradients, images, inverse_problems, jacobians, optimisation, recordings, stochastic

__all__ = ["gradients", "images", "inverse_problems", "jacobians", "optimisation", "recordings", "stochastic"]
