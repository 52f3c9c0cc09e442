"""Experiments of the DriPP paper."""
