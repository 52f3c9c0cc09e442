"""Version of gyri-reproduce; `nox -s release` bumps it."""

__version__ = "0.1.1"
