"""Experiments of the paper, for `gyri-reproduce run cadda`: simulated sleep, and Sleep-EDF at ``--scale paper``."""

from . import ablation, agnostic, class_wise, operations, pairs, toy

__all__ = ["ablation", "agnostic", "class_wise", "operations", "pairs", "toy"]
