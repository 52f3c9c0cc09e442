"""Experiments of the paper, for `gyri-reproduce run augnet`."""

from . import images, pose, sinusoids, sleep

__all__ = ["images", "pose", "sinusoids", "sleep"]
