"""Experiments of the paper, for `gyri-reproduce run cadda`."""
