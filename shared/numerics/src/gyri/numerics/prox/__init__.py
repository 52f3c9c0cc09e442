"""Proximal operators of convex penalties, exact and differentiable."""

from .thresholding import soft_threshold
from .total_variation import prox_tv1d

__all__ = ["prox_tv1d", "soft_threshold"]
