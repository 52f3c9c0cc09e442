"""Version of gyri-pavi; `nox -s release` bumps it."""

__version__ = "0.1.0"
